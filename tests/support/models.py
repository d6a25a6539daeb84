"""Models for tests: a tiny random one, the third-party pair and the bundled pair."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import BPE
from transformers import AutoModelForCausalLM, LlamaConfig

from outrider_cloud.model.loading import LoadedModel, bundled_model, load_model
from outrider_cloud.model.probe import probe_layers
from outrider_cloud.model.weights import Weights

TINY_VOCABULARY = 97
TINY_CONTEXT = 128
TINY_EOS = 5
ROOT = Path(__file__).resolve().parents[2]


def write_tiny_model(folder: Path, **changes: object) -> Path:
    """A Hugging Face folder of a random two-layer Llama whose logits are spread enough to have clear winners."""
    settings = {
        "vocab_size": TINY_VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": TINY_CONTEXT,
        "bos_token_id": None, "eos_token_id": TINY_EOS, "pad_token_id": None,
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = AutoModelForCausalLM.from_config(LlamaConfig(**{**settings, **changes}))
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.25)
    model.save_pretrained(folder)
    tokenizer = Tokenizer(BPE({chr(0x4E00 + i): i for i in range(TINY_VOCABULARY)}, []))
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@functools.cache
def third_party(name: str) -> Path:
    """A folder of the third-party test weights; skips where they are not at hand."""
    base = Path(os.environ.get("OUTRIDER_TEST_MODELS", ROOT.parent / "shared" / "models"))
    if not (base / name / "config.json").is_file():
        pytest.skip(f"third-party weights {name} are not in {base}; set OUTRIDER_TEST_MODELS")
    return base / name


@functools.cache
def loaded(path: Path, weights: Weights = Weights.NATIVE) -> LoadedModel:
    """A model, loaded once per process."""
    return load_model(path, weights=weights)


def as_loaded(tiny: LoadedModel, model: torch.nn.Module) -> LoadedModel:
    """A model of transformers in the place of the tiny one, whose tokenizer it gets."""
    text = model.config.get_text_config()
    return dataclasses.replace(
        tiny, model=model, layers=probe_layers(model), dtype=model.dtype, vocabulary=text.vocab_size,
        context_length=text.max_position_embeddings, eos=frozenset(),
    )  # fmt: skip


def bundled_target() -> LoadedModel:
    """The bundled target."""
    return loaded(bundled_model())


def read_config(folder: Path) -> dict[str, object]:
    """A folder's config.json."""
    return json.loads((folder / "config.json").read_text())
