"""Reading and writing of models of any kind as Hugging Face folders, tokenizer and template beside the weights."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from outrider_shared.errors import ConfigError, ModelError
from outrider_shared.files import storage_errors

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

_BESIDE = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
)

DTYPES = ("float32", "bfloat16")


def weights_dtype(name: str) -> torch.dtype:
    """How weights are kept. Raises ConfigError."""
    if name not in DTYPES:
        raise ConfigError(f"dtype is {name!r}", hint=f"one of {', '.join(DTYPES)}")
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def read_model(folder: Path, device: torch.device | str = "cpu") -> Any:
    """A model in float32 on a device. Raises ModelError."""
    transformers_logging.disable_progress_bar()
    try:
        load: Any = AutoModelForCausalLM.from_pretrained
        model, report = load(folder, dtype=torch.float32, output_loading_info=True)
    except Exception as error:
        raise ModelError(f"{folder} cannot be read: {error}") from error
    if report["missing_keys"]:
        raise ModelError(f"the weights of {folder} lack {', '.join(sorted(report['missing_keys'])[:3])}")
    return model.to(device)


def write_model(model: nn.Module, folder: Path, beside: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write a model folder; tokenizer, template and generation settings are those of `beside`. Raises StorageError."""
    transformers_logging.disable_progress_bar()
    with storage_errors(folder):
        _write(model, folder, beside, dtype)


def _write(model: nn.Module, folder: Path, beside: Path, dtype: torch.dtype) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    whole: Any = model
    kept = {name: value.detach().to(dtype).cpu().contiguous() for name, value in model.state_dict().items()}
    if whole.config.tie_word_embeddings:
        kept.pop("lm_head.weight", None)
    whole.save_pretrained(folder, state_dict=kept)
    # transformers tells the type that the model has in memory.
    config = json.loads((folder / "config.json").read_text())
    config["dtype"] = str(dtype).removeprefix("torch.")
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    for name in _BESIDE:
        if (beside / name).is_file() and beside.resolve() != folder.resolve():
            shutil.copyfile(beside / name, folder / name)
