"""The sampling rule in torch, over many rows at once: the reference of the fused GPU kernel.

The filters are those of `outrider_shared.sampling.rule`, with the same treatment of ties.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from outrider_shared.sampling.philox_torch import gumbel_rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from outrider_shared.sampling.params import SamplingParams


def filtered_scores(logits: torch.Tensor, params: Sequence[SamplingParams]) -> torch.Tensor:
    """Temperature, top-k, top-p, min-p per row.

    Args:
        logits: [rows, vocab], any float type; computed in float32.
        params: One per row, each with T > 0.

    Returns:
        [rows, vocab] float32, -inf for removed tokens.
    """

    def column(values: list[float]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float32, device=logits.device)[:, None]

    scores = logits.float()
    scores = (scores - scores.amax(-1, keepdim=True)) / column([p.temperature for p in params])
    if not any(p.filtered for p in params):
        return scores
    if any(p.top_k for p in params):
        scores = _keep_top_k(scores, [p.top_k for p in params])
    if any(p.top_p < 1.0 for p in params):
        scores = _keep_top_p(scores, column([p.top_p for p in params]))
    if any(p.min_p > 0.0 for p in params):
        floor = torch.log(column([p.min_p for p in params])) + scores.amax(-1, keepdim=True)
        scores = scores.masked_fill(scores < floor, -torch.inf)
    return scores


def _keep_top_k(scores: torch.Tensor, ks: list[int]) -> torch.Tensor:
    vocabulary = scores.shape[-1]
    rank = torch.tensor([min(k or vocabulary, vocabulary) - 1 for k in ks], device=scores.device)[:, None]
    ordered = scores.sort(-1, descending=True).values
    return scores.masked_fill(scores < ordered.gather(-1, rank), -torch.inf)


def _keep_top_p(scores: torch.Tensor, ps: torch.Tensor) -> torch.Tensor:
    ordered = scores.sort(-1, descending=True).values
    mass = ordered.double().exp().cumsum(-1)
    last = torch.searchsorted(mass, ps.double() * mass[:, -1:]).clamp_(max=scores.shape[-1] - 1)
    removed = (scores < ordered.gather(-1, last)) & (ps < 1.0)
    return scores.masked_fill(removed, -torch.inf)


def choose(logits: torch.Tensor, positions: Sequence[int], params: Sequence[SamplingParams]) -> torch.Tensor:
    """The token of each row's position: [rows] int64, from the target's logits [rows, vocab].

    Args:
        logits: [rows, vocab], any float type.
        positions: Per row, the index in the log of the token to be chosen.
        params: Per row.
    """
    chosen = logits.argmax(-1)
    rows = [r for r, p in enumerate(params) if not p.greedy]
    if rows:
        index = torch.tensor(rows, device=logits.device)
        picked = [params[r] for r in rows]
        noise = gumbel_rows([p.seed for p in picked], [positions[r] for r in rows], logits.shape[-1], logits.device)
        chosen[index] = (filtered_scores(logits[index], picked) + noise).argmax(-1)
    return chosen
