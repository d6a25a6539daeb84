"""Pruned models are ordinary folders, keep what is worth most, and refuse what cannot be cut."""

from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BitNetConfig,
    BitNetForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

import outrider_cloud
from outrider_cloud.model.loading import load_model
from outrider_cloud.train.distil.samples import Writing, write_texts
from outrider_cloud.train.loop.losses import mean_loss
from outrider_cloud.train.prune.cutting import choose_layers, prune
from outrider_cloud.train.prune.keep import Keep, Sizes
from outrider_cloud.train.runs.prune import prune_folder
from outrider_cloud.train.texts.batches import Batch
from outrider_cloud.train.texts.documents import Reading
from outrider_shared.errors import ConfigError, ModelError
from unit.train.toys import toy_model, write_folder

TARGET = Path(outrider_cloud.__file__).parent / "bundled" / "target"
KEEP = Keep(layers=2, hidden=16, heads=2, kv_heads=1, intermediate=8)


def batches(count: int = 2) -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(2, 300, (3, 20), generator=generator) for _ in range(count)]
    return [Batch(each, torch.ones(3, 20)) for each in ids]


def test_a_pruned_model_has_the_shape_asked_for():
    small, report = prune(toy_model(0, layers=4, hidden=32), batches(), KEEP)
    config = small.config
    assert (config.num_hidden_layers, config.hidden_size, config.intermediate_size) == (2, 16, 8)
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (2, 1, 16)
    assert small.lm_head.weight is small.model.embed_tokens.weight
    assert report["parameters_after"] == sum(p.numel() for p in small.parameters()) < report["parameters_before"]


def test_the_layer_that_does_nothing_goes_first():
    model = toy_model(0, layers=4)
    with torch.no_grad():
        for layer in model.model.layers:
            for p in (layer.self_attn.o_proj.weight, layer.mlp.down_proj.weight):
                p.mul_(30)
        for p in (model.model.layers[2].self_attn.o_proj.weight, model.model.layers[2].mlp.down_proj.weight):
            p.zero_()
    # Texts that the model itself finds likely: taking a layer that works makes them less so.
    prompts = [[n, n + 1] for n in range(5, 45)]
    texts = write_texts(model, prompts, {1}, Writing(temperatures=(0.0,), most=20), 0)
    own = [Batch(torch.tensor([p + t]), torch.ones(1, len(p) + len(t))) for p, t in zip(prompts, texts, strict=True)]
    whole = mean_loss(model, own)
    kept, removed = choose_layers(model, own, 3)
    assert kept == [0, 1, 3]
    assert removed == [{"layer": 2, "loss": pytest.approx(whole, abs=1e-3)}]
    assert len(model.model.layers) == 4


def test_channels_and_heads_that_carry_nothing_are_cut_without_loss():
    """Half of everything is dead; what is left computes what the whole did."""
    model = toy_model(0, hidden=32)
    dead = torch.arange(0, 32, 2)
    with torch.no_grad():
        model.model.embed_tokens.weight[:, dead] = 0
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight[dead] = 0
            layer.mlp.down_proj.weight[dead] = 0
            layer.mlp.up_proj.weight[:12] = 0
            layer.self_attn.v_proj.weight[:16] = 0  # the first key/value head, and with it two heads
    keep = Keep(heads=2, kv_heads=1, intermediate=12)
    small, report = prune(model, batches(), keep)
    assert report["loss_after"] == pytest.approx(report["loss_before"], abs=2e-3)  # bfloat16 passes
    ids = batches(1)[0].ids
    assert torch.allclose(small(ids).logits, model.eval()(ids).logits, atol=1e-5)
    narrow, _ = prune(model, batches(), Keep(hidden=16))
    assert torch.equal(narrow.model.embed_tokens.weight, model.model.embed_tokens.weight[:, 1::2])


@pytest.mark.parametrize("kind", ["bitnet", "qwen3"])
def test_other_families_are_cut_too(kind: str):
    shape = {
        "vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 24, "max_position_embeddings": 64, "tie_word_embeddings": True, "pad_token_id": 0,
        "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    torch.manual_seed(0)
    bitnet = kind == "bitnet"
    model = BitNetForCausalLM(BitNetConfig(**shape)) if bitnet else Qwen3ForCausalLM(Qwen3Config(head_dim=8, **shape))
    # A BitNet has a norm between heads and output projection that is as wide as the residual stream.
    keep = Keep(layers=2, intermediate=8) if bitnet else KEEP
    small, _ = prune(model, batches(), keep)
    assert torch.isfinite(small(batches(1)[0].ids).logits).all()


def test_a_model_that_cannot_be_cut_is_refused_by_name():
    model = GPT2LMHeadModel(GPT2Config(vocab_size=300, n_positions=32, n_embd=16, n_layer=2, n_head=2))
    with pytest.raises((ModelError, ConfigError)):
        prune(model, batches(), Keep(hidden=8))


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ("layers=9", "more than the model's 2"),
        ("heads=3,kv_heads=2", "3 heads over 2"),
        ("heads=4,kv_heads=1", "4 heads over 1"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(keep: str, message: str):
    with pytest.raises(ConfigError, match=message):
        prune(toy_model(0), batches(), Keep.parse(keep))


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_a_share_of_the_parameters_is_what_stays(share: float):
    model = AutoModelForCausalLM.from_pretrained(TARGET)
    small, report = prune(model, batches(1), Keep.parse(f"share={share}"))
    stayed = sum(p.numel() for p in small.parameters())
    assert stayed == pytest.approx(share * sum(p.numel() for p in model.parameters()), rel=0.03)
    config = small.config
    assert {"layers": config.num_hidden_layers, "hidden": config.hidden_size}.items() <= report["keep"].items()


def test_widths_told_beside_a_share_stay_as_told():
    model = AutoModelForCausalLM.from_pretrained(TARGET)
    keep = Keep.parse("share=0.5,layers=8").settled(model, model.config)
    assert keep.layers == 8
    assert Sizes.of(model, model.config).parameters(vars(keep)) == pytest.approx(
        0.5 * sum(p.numel() for p in model.parameters()), rel=0.03
    )


def test_a_share_that_no_widths_leave_is_refused():
    model = toy_model(0)
    with pytest.raises(ConfigError, match="no widths"):
        Keep.parse("share=0.05,hidden=32").settled(model, model.config)


@pytest.mark.parametrize("text", ["layers", "layer=3", "layers=-1", "layers=two", "share=0", "share=1.5", "share=nan"])
def test_what_is_no_keep_is_refused(text: str):
    with pytest.raises(ConfigError, match="--keep has"):
        Keep.parse(text)


def test_a_pruned_folder_is_served_and_read_by_transformers(tmp_path: Path):
    folder = write_folder(toy_model(0, layers=3, hidden=32), tmp_path / "whole")
    report = prune_folder(folder, KEEP, (), tmp_path / "small", 16, Reading())
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "small").num_parameters() == report["parameters_after"]
    loaded = load_model(tmp_path / "small")
    assert len(loaded.layers) == 2
    assert loaded.tokenizer.get_vocab_size() == 300
