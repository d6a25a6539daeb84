"""Small configurations of the model families that are served."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import transformers as hf

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import PretrainedConfig

COMMON: dict[str, Any] = {
    "vocab_size": 331, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
MOE: dict[str, Any] = {**COMMON, "head_dim": 16, "num_experts_per_tok": 2}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
# 4 of window 7 and full attention in one clone; gemma3 has one full layer in six.
SERVED: dict[str, Callable[[], PretrainedConfig]] = {
    "llama": lambda: hf.LlamaConfig(**COMMON),
    "llama-3.1-rope": lambda: hf.LlamaConfig(**COMMON, rope_parameters=LLAMA3),
    "qwen2": lambda: hf.Qwen2Config(**COMMON, tie_word_embeddings=True),
    "qwen3": lambda: hf.Qwen3Config(**COMMON, head_dim=32),
    "mistral-window": lambda: hf.MistralConfig(**COMMON, head_dim=16, sliding_window=7),
    "gemma2": lambda: hf.Gemma2Config(**COMMON, head_dim=16, sliding_window=7, query_pre_attn_scalar=16),
    "gemma3": lambda: hf.Gemma3TextConfig(
        **{**COMMON, "num_hidden_layers": 7}, head_dim=16, sliding_window=7, query_pre_attn_scalar=16
    ),
    "phi3": lambda: hf.Phi3Config(**COMMON),
    "olmo2": lambda: hf.Olmo2Config(**COMMON),
    "qwen3-moe": lambda: hf.Qwen3MoeConfig(**MOE, num_experts=4, moe_intermediate_size=48),
    "gpt2": lambda: hf.GPT2Config(
        vocab_size=331, n_embd=64, n_layer=3, n_head=4, n_positions=512, bos_token_id=1, eos_token_id=2
    ),
    "granite": lambda: hf.GraniteConfig(**COMMON, attention_multiplier=0.1),
    "smollm3": lambda: hf.SmolLM3Config(**COMMON),
    "gpt-oss": lambda: hf.GptOssConfig(**MOE, num_local_experts=4, sliding_window=8),
    "glm4": lambda: hf.Glm4Config(**COMMON, head_dim=16),
    "bitnet": lambda: hf.BitNetConfig(**COMMON),
    "deepseek-v3": lambda: hf.DeepseekV3Config(
        **{**COMMON, "num_key_value_heads": 4}, q_lora_rank=32, kv_lora_rank=16, qk_rope_head_dim=8,
        qk_nope_head_dim=8, v_head_dim=16, n_routed_experts=4, n_group=1, topk_group=1, num_experts_per_tok=2,
        moe_intermediate_size=32, first_k_dense_replace=1,
    ),
}  # fmt: skip
