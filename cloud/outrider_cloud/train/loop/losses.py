"""Losses of a causal model over a Batch; positions of weight 0 cost no logits."""

import contextlib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from outrider_cloud.train.texts.batches import Batch

# Models whose logits are their head's product with the decoder's last state and nothing more.
_PLAIN_HEAD = frozenset({"bitnet", "llama", "mistral", "olmo2", "qwen2", "qwen3", "smollm3"})
_BFLOAT16: ContextVar[bool] = ContextVar("bfloat16", default=True)


def positions(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """(rows, columns, weights) of the positions whose NEXT token counts, each [chosen]."""
    ahead = batch.weight[:, 1:]
    rows, columns = torch.nonzero(ahead, as_tuple=True)
    return rows, columns, ahead[rows, columns]


@contextlib.contextmanager
def computing(*, bfloat16: bool) -> Iterator[None]:
    """Inside, the passes of `chosen_logits` are computed in bfloat16 (as they are by default) or in float32."""
    token = _BFLOAT16.set(bfloat16)
    try:
        yield
    finally:
        _BFLOAT16.reset(token)


def chosen_logits(model: nn.Module, batch: Batch, rows: Tensor, columns: Tensor) -> Tensor:
    """Logits [chosen, vocabulary] of a Hugging Face causal model at the given positions (rows, columns) only."""
    hf = cast("Any", model)
    with torch.autocast(batch.ids.device.type, torch.bfloat16, enabled=_BFLOAT16.get()):
        if hf.config.model_type in _PLAIN_HEAD:
            hidden = hf.get_decoder()(input_ids=batch.ids, use_cache=False).last_hidden_state
            return cast("Tensor", hf.get_output_embeddings()(hidden[rows, columns]))
        return cast("Tensor", hf(input_ids=batch.ids, use_cache=False).logits[rows, columns])


def text_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Weighted mean cross-entropy of the next token, in nats."""
    rows, columns, weight = positions(batch)
    logits = chosen_logits(model, batch, rows, columns)
    each = functional.cross_entropy(logits.float(), batch.ids[rows, columns + 1], reduction="none")
    return (each * weight).sum() / weight.sum()


@torch.no_grad()
def mean_loss(model: nn.Module, batches: Sequence[Batch]) -> float:
    """Cross-entropy of the learned tokens, in nats."""
    total = weights = 0.0
    for batch in batches:
        rows, columns, weight = positions(batch)
        logits = chosen_logits(model, batch, rows, columns).float()
        each = functional.cross_entropy(logits, batch.ids[rows, columns + 1], reduction="none")
        total += float((each * weight).sum())
        weights += float(weight.sum())
    return total / max(1e-9, weights)
