"""A toy world for training: a small grammar, its texts on disk, its tokenizer, models of a few thousand weights."""

from __future__ import annotations

import json
from random import Random
from typing import TYPE_CHECKING

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from outrider_cloud.train.texts.chat import END
from outrider_cloud.train.texts.vocabulary import train_vocabulary

if TYPE_CHECKING:
    from pathlib import Path

    from tokenizers import Tokenizer

_WHO, _DOES, _WHAT = ("a dog", "the cat", "my bird"), ("sees", "likes", "eats"), ("red fish", "old bread", "blue rice")


def sentence(rng: Random) -> str:
    """One line of the toy language."""
    return f"{rng.choice(_WHO)} {rng.choice(_DOES)} {rng.choice(_WHAT)} and {rng.choice(_WHAT)}."


def write_texts(path: Path, count: int, seed: int = 0) -> Path:
    """A .jsonl file of sentences, each with a number so that none is said twice."""
    rng = Random(seed)
    path.write_text("".join(json.dumps({"text": f"{n} {sentence(rng)}"}) + "\n" for n in range(count)))
    return path


def toy_tokenizer() -> Tokenizer:
    """300 tokens."""
    rng = Random(1)
    return train_vocabulary((sentence(rng) + END for _ in range(50)), 300)


def toy_model(seed: int, layers: int = 2, hidden: int = 16, tokenizer: Tokenizer | None = None) -> LlamaForCausalLM:
    """A Llama of some ten thousand weights."""
    torch.manual_seed(seed)
    end = (tokenizer or toy_tokenizer()).token_to_id(END)
    config = LlamaConfig(
        vocab_size=300, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=4, num_key_value_heads=2,
        head_dim=16, intermediate_size=24, max_position_embeddings=128, tie_word_embeddings=True,
        bos_token_id=None, eos_token_id=end, pad_token_id=0,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def write_folder(model: LlamaForCausalLM, folder: Path) -> Path:
    """A model folder with the toy tokenizer."""
    model.save_pretrained(folder)
    toy_tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    return folder
