"""Models of real shapes with random weights: a step's time depends on shapes, not on what the weights know."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import nn
from transformers import LlamaConfig, Qwen3Config

from outrider_cloud.model.loading import LoadedModel
from outrider_cloud.model.probe import probe_layers
from outrider_cloud.model.reading import skeleton
from outrider_shared.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_NO_TOKENS: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
_TINY: dict[str, Any] = {
    "vocab_size": 515, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 64, "max_position_embeddings": 4096, **_NO_TOKENS,
}  # fmt: skip
_LLAMA_31: dict[str, Any] = {
    "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip
_SMALL: dict[str, Any] = {
    **_TINY, "vocab_size": 8192, "hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8,
    "num_attention_heads": 8, "num_key_value_heads": 4,
}  # fmt: skip
# As published in the models' config.json; the tiny ones run on a CPU in seconds, the small one has real work for it.
_CONFIGS: dict[str, Any] = {
    "llama-3.1-8b": lambda: LlamaConfig(
        vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8, head_dim=128, max_position_embeddings=131072, rms_norm_eps=1e-5,
        rope_parameters=_LLAMA_31, **_NO_TOKENS,
    ),
    "qwen3-8b": lambda: Qwen3Config(
        vocab_size=151936, hidden_size=4096, intermediate_size=12288, num_hidden_layers=36, num_attention_heads=32,
        num_key_value_heads=8, head_dim=128, max_position_embeddings=40960, rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6}, **_NO_TOKENS,
    ),
    "small-llama": lambda: LlamaConfig(**_SMALL),
    "tiny-llama": lambda: LlamaConfig(**_TINY),
    "tiny-qwen3": lambda: Qwen3Config(**_TINY),
}  # fmt: skip
SHAPES = tuple(_CONFIGS)
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
_SPREAD = 0.02


def config_of(name: str) -> Any:
    """The configuration of a named shape.

    Raises:
        ConfigError: if there is none of that name.
    """
    if name not in _CONFIGS:
        raise ConfigError(f"there is no shape {name}", hint=f"there are {', '.join(SHAPES)}")
    return _CONFIGS[name]()


def random_model(name: str, dtype: torch.dtype, device: torch.device, layers: int = 0) -> LoadedModel:
    """A model of a named shape, its weights drawn on the device, as an engine takes it; no token ends an answer.

    Args:
        name: Of the shape.
        dtype: Of the weights.
        device: Where.
        layers: Fewer than the shape has; 0 is all of them.
    """
    config = config_of(name)
    if layers:
        config.num_hidden_layers = layers
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[:layers]
    model = skeleton(config, dtype).eval()
    generator = torch.Generator(device).manual_seed(1)
    empty = list(model.parameters())  # kept until the end, so that a number names one of them only
    drawn = {id(held): _draw(held, device, generator) for held in empty}
    for module in model.modules():
        for key, held in list(module._parameters.items()):  # noqa: SLF001 - tied ones must stay tied
            if held is not None:
                setattr(module, key, drawn[id(held)])
        for key, buffer in module.named_buffers(recurse=False):
            setattr(module, key, buffer.to(device))
    return as_loaded(name, model, dtype)


def as_loaded(name: str, model: PreTrainedModel, dtype: torch.dtype) -> LoadedModel:
    """A model that has no folder: what a folder would tell is empty."""
    text: Any = model.config.get_text_config()
    return LoadedModel(
        name=name, model=model, tokenizer=Tokenizer(WordLevel({"a": 0}, "a")), layers=probe_layers(model), dtype=dtype,
        vocabulary=text.vocab_size, context_length=text.max_position_embeddings, eos=frozenset(), fingerprint="",
        tokenizer_sha256="", chat_template="",
    )  # fmt: skip


def weight_bytes(loaded: LoadedModel) -> int:
    """What a step reads of the weights: all but an embedding that is not the head, too."""
    model: Any = loaded.model
    held = {id(p): p for p in model.parameters()}
    if model.get_output_embeddings().weight is not model.get_input_embeddings().weight:
        held.pop(id(model.get_input_embeddings().weight))
    return sum(p.numel() * p.element_size() for p in held.values())


def _draw(like: nn.Parameter, device: torch.device, generator: torch.Generator) -> nn.Parameter:
    empty = torch.empty(like.shape, dtype=like.dtype, device=device)
    values = empty.fill_(1.0) if like.dim() == 1 else empty.normal_(0.0, _SPREAD, generator=generator)
    return nn.Parameter(values, requires_grad=False)
