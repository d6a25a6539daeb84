"""`--exact` is checked on the machine that promises it."""

from __future__ import annotations

import pytest
from transformers import AutoModelForCausalLM, Qwen3MoeConfig

from outrider_cloud.build import build_engine
from outrider_cloud.engine.config import EngineConfig
from outrider_cloud.model.loading import load_model
from outrider_shared.errors import ModelError
from support.models import TINY_CONTEXT, TINY_VOCABULARY


@pytest.mark.parametrize("buckets", [(1,), (4,), (4, 8, 16, 32, 64)])
def test_dense_model_passes_the_check(tiny, buckets):
    """A dense model in fixed buckets has rows that do not depend on their neighbours; the largest bucket is kept."""
    engine = build_engine(tiny, EngineConfig(exact=True, buckets=buckets, kv_tokens=512))
    assert set(engine.runner.buckets) <= set(buckets)
    assert engine.runner.buckets[-1] == buckets[-1]


def test_bucket_that_disagrees_is_not_used(tiny, monkeypatch):
    """A bucket whose rows come out otherwise than the largest one's is left out, the others are used."""
    mlp = tiny.model.model.layers[0].mlp
    plain = mlp.forward
    monkeypatch.setattr(mlp, "forward", lambda x: plain(x) * (1 + 1e-6 if x.shape[1] == 8 else 1))
    engine = build_engine(tiny, EngineConfig(exact=True, buckets=(4, 8, 16), kv_tokens=512))
    assert engine.runner.buckets == (4, 16)


def test_model_whose_rows_depend_on_each_other_is_refused(tiny, monkeypatch):
    """A model that lets one row see another's values is refused with --exact, and told so."""
    mlp = tiny.model.model.layers[0].mlp
    plain = mlp.forward
    monkeypatch.setattr(mlp, "forward", lambda x: plain(x) + 1e-7 * x.mean(1, keepdim=True))
    with pytest.raises(ModelError, match="without --exact"):
        build_engine(tiny, EngineConfig(exact=True, buckets=(8,), kv_tokens=256))


def test_mixture_of_experts_is_checked_like_any_other(tmp_path, tiny_folder):
    """A mixture of experts either passes bit for bit or is refused; it is never promised unchecked."""
    config = Qwen3MoeConfig(
        vocab_size=TINY_VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32,
        max_position_embeddings=TINY_CONTEXT, pad_token_id=None, bos_token_id=None, eos_token_id=5,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes((tiny_folder / "tokenizer.json").read_bytes())
    model = load_model(tmp_path)
    try:
        build_engine(model, EngineConfig(exact=True, buckets=(16,), kv_tokens=256))
    except ModelError as error:
        assert "exact" in str(error)  # noqa: PT017 - refusing is one of two right answers
