"""Reading and writing of models of any kind as Hugging Face folders, tokenizer and template beside the weights."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForCausalLM

from outrider_shared.errors import ModelError

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


def read_model(folder: Path, device: torch.device | str = "cpu") -> Any:
    """A model in float32 on a device. Raises ModelError."""
    try:
        load: Any = AutoModelForCausalLM.from_pretrained
        model, report = load(folder, dtype=torch.float32, output_loading_info=True)
    except Exception as error:
        raise ModelError(f"{folder} cannot be read: {error}") from error
    if report["missing_keys"]:
        raise ModelError(f"the weights of {folder} lack {', '.join(sorted(report['missing_keys'])[:3])}")
    return model.to(device)


def write_model(model: nn.Module, folder: Path, beside: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write a model folder; tokenizer, template and generation settings are those of `beside`."""
    folder.mkdir(parents=True, exist_ok=True)
    whole: Any = model
    kept = {name: value.detach().to(dtype).cpu().contiguous() for name, value in model.state_dict().items()}
    if whole.config.tie_word_embeddings:
        kept.pop("lm_head.weight", None)
    whole.config.dtype = dtype
    whole.save_pretrained(folder, state_dict=kept)
    for name in _BESIDE:
        if (beside / name).is_file() and beside.resolve() != folder.resolve():
            shutil.copyfile(beside / name, folder / name)
