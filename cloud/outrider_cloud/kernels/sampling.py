"""The sampling rule over the rows of a step, on the CPU platform.

It is the rule in numpy, as a device has it: filters row by row, noise for all rows at once. Of a large vocabulary only
tokens get noise that could be chosen with any: those near enough to the likeliest that the most noise there is would
bring them past it with the least.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from outrider_shared.logprobs import TokenLogprobs
from outrider_shared.sampling.noise import HIGHEST, LOWEST, gumbel_of, noise_rows
from outrider_shared.sampling.rule import filtered_scores

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


class CpuSampler:
    """The rule in numpy, over the rows of a step."""

    def choose(self, logits: torch.Tensor, positions: Sequence[int], params: Sequence[SamplingParams]) -> list[int]:
        """The chosen token ids; see `Sampler`."""
        rows = [r for r, p in enumerate(params) if not p.greedy]
        chosen = logits.argmax(-1).tolist() if len(rows) < len(params) else [0] * len(rows)
        if rows:
            scores = [filtered_scores(logits[r].float().numpy(), params[r]) for r in rows]
            tokens = _perturbed_argmax(scores, [(params[r].seed, positions[r]) for r in rows])
            for row, token in zip(rows, tokens, strict=True):
                chosen[row] = token
        return chosen


def _perturbed_argmax(scores: Sequence[NDArray[np.float32]], keys: Sequence[tuple[int, int]]) -> list[int]:
    """Of each row [vocab] the best token under the noise of its seed and position."""
    few = _few_within_reach(scores)
    others = [row for row in range(len(scores)) if row not in few]
    noise = noise_rows(len(scores[0]))([keys[row] for row in others])
    chosen = {row: int(np.argmax(scores[row] + own)) for row, own in zip(others, noise, strict=True)}
    if few:
        lengths = [len(tokens) for tokens in few.values()]
        seeds = np.repeat(np.array([keys[row][0] for row in few], np.uint64), lengths)
        positions = np.repeat([keys[row][1] for row in few], lengths)
        together = gumbel_of(seeds, positions, np.concatenate(list(few.values())))
        parts = np.split(together, np.cumsum(lengths)[:-1])
        for (row, tokens), part in zip(few.items(), parts, strict=True):
            chosen[row] = int(tokens[np.argmax(scores[row][tokens] + part)])
    return [chosen[row] for row in range(len(scores))]


def _few_within_reach(scores: Sequence[NDArray[np.float32]]) -> dict[int, NDArray[np.int64]]:
    """The tokens of those rows of which only few could be chosen with any noise."""
    vocabulary = len(scores[0])
    if vocabulary <= _WHOLE_ROWS:
        return {}
    near = {row: np.flatnonzero(values >= _REACH) for row, values in enumerate(scores)}
    return {row: tokens for row, tokens in near.items() if 0 < len(tokens) <= _FEW * vocabulary}


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
