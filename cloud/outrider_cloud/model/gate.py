"""The capability gate: configurations that the attention interface cannot express exactly, refused with the reason.

It reads the configuration and the model class alone, so a refusal comes before any weight is loaded.
"""

from __future__ import annotations

from typing import Any

from transformers import AutoModelForCausalLM

from outrider_shared.errors import ModelError

_LAYERS = {"full_attention", "sliding_attention"}
_VARYING_ROPE = {"dynamic", "longrope"}


def refusals(config: Any) -> list[str]:
    """Reasons why such a model cannot be served; empty if none is known before the conformance check."""
    try:
        model_class = AutoModelForCausalLM._model_mapping[type(config)]  # noqa: SLF001 - no public lookup by configuration
    except KeyError:
        return ["transformers has no causal language model for it"]
    text = config.get_text_config()
    reasons = []
    if getattr(text, "is_encoder_decoder", False):
        reasons.append("it is an encoder-decoder")
    other = sorted(set(getattr(text, "layer_types", None) or ()) - _LAYERS)
    if getattr(text, "attention_chunk_size", None):
        reasons.append("its chunked attention lives in the mask, which is not passed to the attention function")
    elif other:
        reasons.append(f"it has layers of type {', '.join(other)}: a state that is not KV cannot be paged or rewound")
    if not reasons and not getattr(model_class, "_supports_attention_backend", False):
        reasons.append(f"{model_class.__name__} does not route its attention through transformers' AttentionInterface")
    varying = sorted(_rope_types(text) & _VARYING_ROPE)
    if varying:
        reasons.append(f"its rotary embedding ({', '.join(varying)}) depends on the longest position in the batch")
    return reasons


def check(config: Any) -> None:
    """Refuse a model that the gate knows to be unservable.

    Raises:
        ModelError: with every reason.
    """
    reasons = refusals(config)
    if reasons:
        raise ModelError(f"{config.model_type} cannot be served: {'; '.join(reasons)}")


def _rope_types(text: Any) -> set[str]:
    parameters = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    nested = parameters and all(isinstance(v, dict) for v in parameters.values())
    groups = list(parameters.values()) if nested else [parameters]
    return {g.get("rope_type", "default") for g in groups}
