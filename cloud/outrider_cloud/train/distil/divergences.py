"""How far a draft is from its target at a position, from the target's k likeliest tokens and one bucket for the rest.

What decides here is the chance that both choose the same token under shared Gumbel noise. With p of the target and q of
the draft it is exactly

    J(p, q) = sum_v 1 / sum_w max(p_w / p_v, q_w / q_v)

(the coupling of consistent sampling: Moulton and Jiang, arXiv 1809.04052; Daliri et al., arXiv 2408.07978), so 1 - J is
what a step loses, and `coupling` trains on it. Total variation bounds it: (1 - TV) / (1 + TV) <= J <= 1 - TV.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from outrider_cloud.train.loop.losses import chosen_logits, positions
from outrider_cloud.train.texts.batches import Batch

Divergence = Callable[[Tensor, Tensor], Tensor]
_LEAST = 1e-8  # of a probability; float32 keeps it apart from 0 in ratios


def forward_kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(target || draft) [n] in nats, of p and q [n, k + 1] over the same buckets."""
    return (p * (p.clamp_min(_LEAST).log() - q.clamp_min(_LEAST).log())).sum(-1)


def reverse_kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(draft || target) [n] in nats."""
    return forward_kl(q, p)


def variation(p: Tensor, q: Tensor) -> Tensor:
    """Total variation distance [n], in [0, 1]."""
    return (p - q).abs().sum(-1) / 2


def mixed(p: Tensor, q: Tensor) -> Tensor:
    """Forward KL, which finds the target's tokens early, and total variation, which counts what is refused."""
    return (forward_kl(p, q) + variation(p, q)) / 2


def coupling(p: Tensor, q: Tensor) -> Tensor:
    """1 - J(p, q) [n]: the chance that shared noise makes target and draft choose differently."""
    p, q = p.clamp_min(_LEAST), q.clamp_min(_LEAST)
    ratio_p = p[:, None, :] / p[:, :, None]  # [n, v, w]
    ratio_q = q[:, None, :] / q[:, :, None]
    return 1 - (1 / torch.maximum(ratio_p, ratio_q).sum(-1)).sum(-1)


def coupled_kl(p: Tensor, q: Tensor) -> Tensor:
    """Forward KL, which has a gradient everywhere, and the loss that a step feels."""
    return (forward_kl(p, q) + coupling(p, q)) / 2


DIVERGENCES: dict[str, Divergence] = {
    "forward-kl": forward_kl,
    "reverse-kl": reverse_kl,
    "tv": variation,
    "mix": mixed,
    "coupling": coupling,
    "coupled-kl": coupled_kl,
}


def buckets(batch: Batch, logits: Tensor) -> tuple[Tensor, Tensor]:
    """(p, q) [n, k + 1] of the target's stored tokens and of a draft's logits [n, vocabulary], the rest as one."""
    assert batch.top_ids is not None
    assert batch.top_logs is not None
    p = batch.top_logs.exp()
    q = logits.float().log_softmax(-1).gather(-1, batch.top_ids).exp()
    return _with_rest(p), _with_rest(q)


def _with_rest(known: Tensor) -> Tensor:
    return torch.cat([known, (1 - known.sum(-1, keepdim=True)).clamp_min(0)], -1)


def stored_loss(name: str, text_share: float = 0.0) -> Callable[[nn.Module, Batch], Tensor]:
    """A loss for `Fit` over batches that carry the target's tokens; `text_share` of it is cross-entropy of the text."""
    divergence = DIVERGENCES[name]

    def loss_of(draft: nn.Module, batch: Batch) -> Tensor:
        rows, columns, weight = positions(batch)
        logits = chosen_logits(draft, batch, rows, columns).float()
        each = divergence(*buckets(batch, logits))
        if text_share:
            text = functional.cross_entropy(logits, batch.ids[rows, columns + 1], reduction="none")
            each = (1 - text_share) * each + text_share * text
        return (each * weight).sum() / weight.sum()

    return loss_of
