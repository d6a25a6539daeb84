"""The sampling rule over the rows of a step, on the CPU platform.

Noise comes from the numpy generator, row by row and remembered: siblings share a position, and the position after a
refused draft is asked for again in the next step. Scores are the torch reference's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch

from outrider_shared.logprobs import TokenLogprobs
from outrider_shared.sampling.philox import cached_gumbel_row
from outrider_shared.sampling.rule_torch import filtered_scores

if TYPE_CHECKING:
    from collections.abc import Sequence

    from outrider_shared.sampling import SamplingParams


class Sampler(Protocol):
    """Chooses the token of every row."""

    def choose(self, logits: torch.Tensor, positions: Sequence[int], params: Sequence[SamplingParams]) -> list[int]:
        """The chosen token ids.

        Args:
            logits: [rows, vocab].
            positions: Per row, the index in the log of the token to be chosen.
            params: Per row.
        """


class TorchSampler:
    """The reference on a CPU."""

    def choose(self, logits: torch.Tensor, positions: Sequence[int], params: Sequence[SamplingParams]) -> list[int]:
        """The chosen token ids; see `Sampler`."""
        rows = [r for r, p in enumerate(params) if not p.greedy]
        if not rows:
            return logits.argmax(-1).tolist()
        if len(rows) == len(params):
            return self._noisy(logits, positions, params).argmax(-1).tolist()
        chosen = logits.argmax(-1)
        index = torch.tensor(rows)
        noisy = self._noisy(logits[index], [positions[r] for r in rows], [params[r] for r in rows])
        chosen[index] = noisy.argmax(-1)
        return chosen.tolist()

    @staticmethod
    def _noisy(logits: torch.Tensor, positions: Sequence[int], params: Sequence[SamplingParams]) -> torch.Tensor:
        scores = filtered_scores(logits, params)
        vocabulary = scores.shape[-1]
        for row, (position, p) in enumerate(zip(positions, params, strict=True)):
            scores[row].numpy()[...] += cached_gumbel_row(p.seed, position, vocabulary)
        return scores


def log_probabilities(logits: torch.Tensor, tokens: Sequence[int], top: int = 0) -> list[TokenLogprobs]:
    """Natural log-probabilities under softmax(logits [rows, vocab]) at temperature 1, unfiltered.

    Args:
        logits: [rows, vocab], any float type.
        tokens: The chosen token of each row.
        top: How many of each row's likeliest tokens to tell, too.
    """
    scores = logits.float().log_softmax(-1)
    own = scores.gather(-1, torch.tensor(tokens, device=logits.device)[:, None])[:, 0].tolist()
    if not top:
        return [TokenLogprobs(logprob) for logprob in own]
    values, ids = (column.tolist() for column in scores.topk(min(top, scores.shape[-1]), -1))
    return [
        TokenLogprobs(logprob, tuple(zip(row_ids, row_values, strict=True)))
        for logprob, row_ids, row_values in zip(own, ids, values, strict=True)
    ]
