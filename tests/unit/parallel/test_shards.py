"""A model in shards computes what it computes whole, with sums in the order of the shards."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GptOssConfig,
    LlamaConfig,
    Olmo2Config,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

from outrider_cloud.engine.batch import Batch
from outrider_cloud.engine.config import EngineConfig
from outrider_cloud.engine.runner import ModelRunner
from outrider_cloud.kernels.layers import TorchLayers
from outrider_cloud.kernels.layout import Segment
from outrider_cloud.kernels.platform import cpu_platform
from outrider_cloud.model.attention import ATTENTION
from outrider_cloud.model.decoder import Decoder, is_known
from outrider_cloud.model.loading import load_model
from outrider_cloud.model.probe import probe_layers
from outrider_cloud.model.weights import Int8Linear, Weights
from outrider_cloud.parallel.shards import shard
from outrider_cloud.parallel.world import World
from outrider_shared.errors import ConfigError, ModelError
from outrider_shared.sampling import SamplingParams
from support.models import as_loaded

# A vocabulary that nothing divides, and fewer heads of keys and values than shards.
COMMON = {
    "vocab_size": 97, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "bos_token_id": None, "eos_token_id": None,
    "pad_token_id": None,
}  # fmt: skip
CONFIGS = {
    "llama": LlamaConfig(**COMMON),
    "llama-one-kv-head": LlamaConfig(**{**COMMON, "num_key_value_heads": 1}),
    "qwen2-bias": Qwen2Config(**COMMON),
    "qwen3-tied": Qwen3Config(**COMMON, head_dim=32, tie_word_embeddings=True),
    "phi3-fused": Phi3Config(**COMMON),
    "olmo2-gathered": Olmo2Config(**COMMON),
}


def build(config):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = AutoModelForCausalLM.from_config(copy.deepcopy(config), attn_implementation=ATTENTION).eval()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, mean=0.0 if parameter.dim() > 1 else 1.0, std=0.15)
    return model.requires_grad_(False)


def batch():
    rng, slots = np.random.default_rng(1), np.arange(64)
    segments = [
        Segment(np.zeros(0, np.int64), slots[:11], list(range(-1, 10))),
        Segment(np.zeros(0, np.int64), slots[32:38], [-1, 0, 1, 1, 2, 0]),
    ]
    tokens, positions = rng.integers(0, 97, 17).tolist(), [*range(11), 0, 1, 2, 2, 3, 1]
    return Batch(tokens, positions, segments, [10, 11, 12, 13, 14, 15, 16], [1] * 7, [SamplingParams()] * 7)


def logits(tiny, model):
    loaded = as_loaded(tiny, model)
    return ModelRunner(loaded, cpu_platform(exact=True), EngineConfig(kv_tokens=64)).run(batch())


@pytest.mark.parametrize("shards", [2, 4])
@pytest.mark.parametrize("name", CONFIGS)
def test_shards_add_up_to_the_model(tiny, name, shards):
    """Every published style: the logits of the whole model to a rounding, and its tokens."""
    whole, cut = build(CONFIGS[name]), build(CONFIGS[name])
    origins = shard(cut, World(shards=shards))
    expected, ours = logits(tiny, whole), logits(tiny, cut)
    assert ours.shape == expected.shape == (7, 97)
    assert (ours - expected).abs().max() < 1e-4 * expected.abs().max()
    assert torch.equal(ours.argmax(-1), expected.argmax(-1))
    state = dict(whole.state_dict())
    for new, origin in origins.items():
        assert torch.equal(cut.get_parameter(new), origin.cut(state[origin.name]) if origin.cut else state[origin.name])


@pytest.mark.parametrize("name", ["llama", "qwen2-bias", "qwen3-tied"])
def test_our_forward_runs_shards_too(tiny, name):
    """The fused forward over two shards is that of the cut model itself."""
    model = build(CONFIGS[name])
    shard(model, World(shards=2))
    assert is_known(model)
    expected, given = logits(tiny, model), batch()
    loaded, platform = as_loaded(tiny, model), cpu_platform(exact=True)
    kv = platform.kv_pool(probe_layers(model), 64, torch.float32)
    slots = torch.from_numpy(np.concatenate([s.slots for s in given.segments]))
    ours = Decoder(model, loaded.layers, TorchLayers())(
        torch.tensor(given.tokens), torch.tensor(given.positions), slots, torch.tensor(given.sampled), kv,
        platform.attention.plan(given.segments, 17),
    )  # fmt: skip
    assert (ours - expected).abs().max() < 1e-4 * expected.abs().max()


def test_a_rank_holds_its_shards_alone():
    """Two of four ranks of a team: heads, vocabulary with padding, and a copy of the shared head of keys."""
    for rank in (0, 3):
        model = build(CONFIGS["llama"])
        shard(model, World(rank, 4, 4))
        attention = model.model.layers[0].self_attn
        assert attention.q_proj.parts[0].weight.shape == (16, 64)
        assert attention.k_proj.parts[0].weight.shape == (16, 64)
        whole = build(CONFIGS["llama"]).model.layers[0].self_attn.k_proj.weight
        assert torch.equal(attention.k_proj.parts[0].weight, whole[rank // 2 * 16 :][:16])
        assert model.lm_head.parts[0].weight.shape == (25, 64)
    assert not model.lm_head.parts[0].weight[22:].any()  # 97 = 3 * 25 + 22


def test_shards_are_held_as_integers_but_for_the_head(tiny_folder):
    """Quantising comes behind the cut, so a shard has its own scales; the head stays."""
    loaded = load_model(tiny_folder, check=False, weights=Weights.INT8, world=World(shards=2))
    layer = loaded.model.model.layers[0]
    assert all(isinstance(part, Int8Linear) for part in [*layer.mlp.down_proj.parts, *layer.self_attn.q_proj.parts])
    assert all(type(part) is torch.nn.Linear for part in loaded.model.lm_head.parts)


@pytest.mark.parametrize(
    ("config", "shards", "reason"),
    [
        (LlamaConfig(**COMMON), 3, r"q_proj: 64 cannot be cut into 3.*2, 4, 8"),
        (LlamaConfig(**{**COMMON, "num_key_value_heads": 4, "num_attention_heads": 8}), 3, "cannot be cut"),
        (
            LlamaConfig(**{**COMMON, "hidden_size": 72, "num_attention_heads": 6, "num_key_value_heads": 3}),
            2,
            "3 heads",
        ),
        (Qwen3MoeConfig(**COMMON), 2, "has experts"),
        (
            GptOssConfig(num_hidden_layers=1, hidden_size=32, intermediate_size=32, num_local_experts=2),
            2,
            "no tensor-p",
        ),
    ],
)
def test_what_cannot_be_cut_is_refused(config, shards, reason):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(ModelError, match=reason):
        shard(model, World(shards=shards))


def test_shards_are_a_multiple_of_ranks():
    with pytest.raises(ConfigError, match="6 shards over 4 ranks"):
        World(0, 4, 6)
