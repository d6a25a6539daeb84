"""Teaching the draft to agree with the target.

With shared noise, draft and target choose the same token with a probability that grows as their distributions come
together, so the loss is the forward Kullback-Leibler divergence to the target at temperature 1, mixed with a little
cross-entropy on the text itself.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from outrider_cloud.train.batches import Batch
from outrider_cloud.train.losses import chosen_logits, positions


def divergence(target_logits: Tensor, draft_logits: Tensor) -> Tensor:
    """KL(target || draft) per position [n], in nats; logits [n, vocabulary] float32."""
    target = target_logits.log_softmax(-1)
    return (target.exp() * (target - draft_logits.log_softmax(-1))).sum(-1)


def total_variation(target_logits: Tensor, draft_logits: Tensor) -> Tensor:
    """Total variation distance per position [n], in [0, 1]: the share that even the best coupling rejects."""
    return (target_logits.softmax(-1) - draft_logits.softmax(-1)).abs().sum(-1) / 2


def distil_loss(target: nn.Module, text_share: float = 0.1) -> Callable[[nn.Module, Batch], Tensor]:
    """A loss for `Fit`: divergence to the target, and `text_share` of cross-entropy. The target is only read."""
    target.requires_grad_(False)

    def loss_of(draft: nn.Module, batch: Batch) -> Tensor:
        rows, columns, weight = positions(batch)
        with torch.no_grad():
            wanted = chosen_logits(target, batch, rows, columns).float()
        logits = chosen_logits(draft, batch, rows, columns).float()
        each = (1 - text_share) * divergence(wanted, logits)
        each = each + text_share * functional.cross_entropy(logits, batch.ids[rows, columns + 1], reduction="none")
        return (each * weight).sum() / weight.sum()

    return loss_of


@torch.no_grad()
def agreement(target: nn.Module, draft: nn.Module, batches: list[Batch]) -> dict[str, float]:
    """On the positions that count: mean divergence and total variation, and the share of equal argmaxes."""
    kl, tv, same, count = 0.0, 0.0, 0, 0
    for batch in batches:
        rows, columns, _ = positions(batch)
        wanted = chosen_logits(target, batch, rows, columns).float()
        logits = chosen_logits(draft, batch, rows, columns).float()
        kl += float(divergence(wanted, logits).sum())
        tv += float(total_variation(wanted, logits).sum())
        same += int((wanted.argmax(-1) == logits.argmax(-1)).sum())
        count += len(rows)
    return {"kl": kl / count, "tv": tv / count, "top1": same / count}
