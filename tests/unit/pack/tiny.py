"""Tiny random models in Hugging Face folders, and packs without a model."""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, models
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

from outrider_shared.packs import (
    Architecture,
    Manifest,
    Precision,
    describe_files,
    tokenizer_fingerprint,
    tokenizer_size,
    write_manifest,
)

VOCAB = 320

_COMMON = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 192,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}

CONFIGS: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**_COMMON, tie_word_embeddings=False),
    "tied": LlamaConfig(**_COMMON, tie_word_embeddings=True),
    "narrow": LlamaConfig(**{**_COMMON, "num_attention_heads": 8, "num_key_value_heads": 4}, tie_word_embeddings=True),
    "qwen2": Qwen2Config(**_COMMON),
    "qwen3": Qwen3Config(**_COMMON, head_dim=32),
    "smollm3": SmolLM3Config(**_COMMON, no_rope_layers=[1, 0]),
}


def tokenizer_json() -> bytes:
    """A tokenizer of `VOCAB` words."""
    words = {"<unk>": 0, "<s>": 1, "</s>": 2, **{f"w{i}": i for i in range(3, VOCAB)}}
    return Tokenizer(models.WordLevel(words, unk_token="<unk>")).to_str().encode()


def write_model(folder: Path, config: PretrainedConfig) -> Path:
    """A model with random weights, large enough that its logits differ visibly."""
    generator = torch.Generator().manual_seed(7)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.normal_(0, 0.12, generator=generator)
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_bytes(tokenizer_json())
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>", "bos_token": "<s>"})
    )
    return folder


def write_hollow_pack(folder: Path) -> Path:
    """A pack that is whole in every respect but that its model is no model."""
    folder.mkdir()
    (folder / "model.onnx").write_bytes(bytes(range(256)) * 8)
    (folder / "tokenizer.json").write_bytes(tokenizer_json())
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    write_manifest(folder, hollow_manifest(folder))
    return folder


def hollow_manifest(folder: Path) -> Manifest:
    """The manifest of a hollow pack."""
    return Manifest(
        name="hollow",
        precision=Precision.FP32,
        architecture=Architecture(layers=1, kv_heads=1, head_dim=16, vocab_size=VOCAB, context_length=64),
        eos_ids=(2,),
        tokenizer_fingerprint=tokenizer_fingerprint(tokenizer_json()),
        tokenizer_size=tokenizer_size(tokenizer_json()),
        files=describe_files(folder),
        source="nothing",
        licence="Apache-2.0",
        survival=((0.0, 0.25), (1.5, 1)),
    )
