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


def write_model(
    model: nn.Module,
    folder: Path,
    beside: Path,
    dtype: torch.dtype = torch.float32,
    *,
    told: dict[str, Any] | None = None,
) -> None:
    """Write a model folder, whole or not at all.

    Args:
        model: What to write.
        folder: Where; files of the same names are replaced.
        beside: The folder whose tokenizer, template and generation settings it gets.
        dtype: How weights are kept.
        told: JSON files to lie beside the weights, by name.

    Raises:
        StorageError: it cannot be written.
    """
    transformers_logging.disable_progress_bar()
    part = folder.with_name(f".{folder.name}.part")
    with storage_errors(folder):
        shutil.rmtree(part, ignore_errors=True)
        try:
            part.mkdir(parents=True)
            _write(model, part, beside, dtype)
            for name, value in (told or {}).items():
                (part / name).write_text(json.dumps(value, indent=1) + "\n")
            folder.mkdir(exist_ok=True)
            for path in sorted(part.iterdir(), key=lambda each: each.name == "config.json"):  # by it a folder is known
                path.replace(folder / path.name)
        finally:
            shutil.rmtree(part, ignore_errors=True)


def _write(model: nn.Module, folder: Path, beside: Path, dtype: torch.dtype) -> None:
    whole: Any = model
    kept = {name: value.detach().to(dtype).cpu().contiguous() for name, value in model.state_dict().items()}
    if whole.config.tie_word_embeddings:
        kept.pop("lm_head.weight", None)
    whole.save_pretrained(folder, state_dict=kept)
    # transformers tells the type that the model has in memory.
    config = json.loads((folder / "config.json").read_text())
    config["dtype"] = str(dtype).removeprefix("torch.")
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    for weights in folder.glob("*.safetensors"):  # safetensors makes files that their owner alone may read
        weights.chmod((folder / "config.json").stat().st_mode)
    for name in _BESIDE:
        if (beside / name).is_file():
            shutil.copyfile(beside / name, folder / name)
