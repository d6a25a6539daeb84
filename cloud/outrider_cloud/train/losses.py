"""Losses of a causal model over a Batch; positions of weight 0 cost no logits."""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from outrider_cloud.train.batches import Batch


def positions(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """(rows, columns, weights) of the positions whose NEXT token counts, each [chosen]."""
    ahead = batch.weight[:, 1:]
    rows, columns = torch.nonzero(ahead, as_tuple=True)
    return rows, columns, ahead[rows, columns]


def chosen_logits(model: nn.Module, batch: Batch, rows: Tensor, columns: Tensor) -> Tensor:
    """Logits [chosen, vocabulary] of a Hugging Face causal model at the given positions only, computed in bfloat16."""
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.model(input_ids=batch.ids, use_cache=False).last_hidden_state  # type: ignore[operator]
        return cast("Tensor", model.lm_head(hidden[rows, columns]))  # type: ignore[operator]


def text_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Weighted mean cross-entropy of the next token, in nats."""
    rows, columns, weight = positions(batch)
    logits = chosen_logits(model, batch, rows, columns)
    each = functional.cross_entropy(logits.float(), batch.ids[rows, columns + 1], reduction="none")
    return (each * weight).sum() / weight.sum()
