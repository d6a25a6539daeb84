"""The sampling rule over the rows of a step, on the CPU platform.

Noise comes from the numpy generator, for all rows of a step at once; scores are the torch reference's. Of a large
vocabulary only tokens get noise that could be chosen with any: those near enough to the likeliest that the most noise
there is would bring them past it with the least.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from outrider_shared.logprobs import TokenLogprobs
from outrider_shared.sampling.noise import HIGHEST, LOWEST, gumbel_of, noise_rows
from outrider_shared.sampling.rule_torch import filtered_scores

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from outrider_shared.sampling import SamplingParams

_WHOLE_ROWS = 8192
_FEW = 1 / 8
# Half an ulp of a sum of this size is 1e-6.
_REACH = np.float32(LOWEST - HIGHEST - 1e-3)


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
            return _sampled(logits, positions, params)
        chosen = logits.argmax(-1).tolist()
        tokens = _sampled(logits[torch.tensor(rows)], [positions[r] for r in rows], [params[r] for r in rows])
        for row, token in zip(rows, tokens, strict=True):
            chosen[row] = token
        return chosen


def _sampled(logits: torch.Tensor, positions: Sequence[int], params: Sequence[SamplingParams]) -> list[int]:
    scores = filtered_scores(logits, params).numpy()
    keys = [(p.seed, position) for p, position in zip(params, positions, strict=True)]
    vocabulary = scores.shape[-1]
    if vocabulary <= _WHOLE_ROWS:
        return _by_rows(scores, keys)
    near = scores >= _REACH
    counts = near.sum(-1)
    few = (counts > 0) & (counts <= _FEW * vocabulary)
    chosen = np.empty(len(keys), np.int64)
    if few.any():
        chosen[few] = _by_tokens(scores[few], near[few], [keys[r] for r in few.nonzero()[0]])
    if not few.all():
        chosen[~few] = _by_rows(scores[~few], [keys[r] for r in (~few).nonzero()[0]])
    return chosen.tolist()


def _by_rows(scores: NDArray[np.float32], keys: Sequence[tuple[int, int]]) -> list[int]:
    """The choices from scores [rows, vocab], which are overwritten, with noise for every token."""
    for row, noise in zip(scores, noise_rows(scores.shape[-1])(keys), strict=True):
        row += noise
    return scores.argmax(-1).tolist()


def _by_tokens(
    scores: NDArray[np.float32], near: NDArray[np.bool_], keys: Sequence[tuple[int, int]]
) -> list[int]:
    """The choices from scores [rows, vocab] among the tokens of `near` [rows, vocab], at least one in each row."""
    rows, tokens = near.nonzero()
    seeds, positions = np.array([s for s, _ in keys], np.uint64), np.array([p for _, p in keys])
    noisy = scores[rows, tokens] + gumbel_of(seeds[rows], positions[rows], tokens)
    bounds = np.searchsorted(rows, np.arange(len(keys) + 1)).tolist()
    return [int(tokens[a + noisy[a:b].argmax()]) for a, b in itertools.pairwise(bounds)]


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
