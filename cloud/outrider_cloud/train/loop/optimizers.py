"""Which optimizer moves which weights."""

import torch
from torch import nn

from outrider_cloud.train.loop.config import FitConfig


def make_optimizers(model: nn.Module, config: FitConfig) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for the rest (embeddings and norms)."""
    hidden: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        inside = parameter.ndim == 2 and "embed" not in name and "lm_head" not in name
        (hidden if inside else rest).append(parameter)
    decay = config.weight_decay
    if config.optimizer == "adamw":
        return [torch.optim.AdamW([*hidden, *rest], lr=config.adam_lr, betas=(0.9, 0.95), weight_decay=decay)]
    return [
        torch.optim.Muon(hidden, lr=config.muon_lr, weight_decay=decay),
        torch.optim.AdamW(rest, lr=config.adam_lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]
