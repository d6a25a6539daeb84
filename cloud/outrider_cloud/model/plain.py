"""A target as transformers itself runs it, for measurements beside the engine: no paging, no trees."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from outrider_cloud.model.loading import BUNDLED, bundled_model
from outrider_cloud.model.weights import Weights, quantise
from outrider_shared.errors import ModelError

if TYPE_CHECKING:
    from pathlib import Path


def plain_model(folder: str | Path, weights: Weights = Weights.NATIVE, dtype: torch.dtype = torch.float32) -> Any:
    """The model of a folder with eager attention, ready to be called.

    Raises:
        ModelError: if its weights cannot be read.
    """
    transformers_logging.disable_progress_bar()
    load: Any = AutoModelForCausalLM.from_pretrained
    place = bundled_model() if str(folder) == BUNDLED else folder
    try:
        model = load(place, local_files_only=True, dtype=dtype, attn_implementation="eager").eval()
    except Exception as error:
        raise ModelError(f"{place} cannot be read: {error}") from error
    model.requires_grad_(False)
    quantise(model, weights)
    return model
