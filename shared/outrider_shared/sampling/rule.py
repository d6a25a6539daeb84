"""The sampling rule in numpy, as the edge and the CPU platform use it, and the definition of its filters.

    choose(z, i) = argmax_v ( filter((z_v - max z) / T) + g(seed, i, v) )   T > 0
    choose(z, i) = argmax_v z_v                                             T = 0

This is the Gumbel-max trick: it samples exactly from softmax(filter(z / T)). Taking z relative to its maximum changes
no argmax; it keeps float32 fine where the winner is, and any T > 0 finite. Ties go to the lowest token id.

The edge applies the same rule with its own logits and the same noise. A draft is right when both argmaxes agree
(common-random-numbers coupling: Daliri et al., arXiv 2408.07978).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from outrider_shared.sampling.noise import gumbel_of, noise_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from outrider_shared.sampling.params import SamplingParams

_NEVER = np.float32(-np.inf)
_FULL_NOISE_VOCABULARY = 8192
_NOISED_LOGITS = 512


def scale(logits: NDArray[np.float32], temperature: float) -> NDArray[np.float32]:
    """Temperature: (z - max z) / T. logits [vocab] float32, T > 0. The likeliest tokens have 0, all others less."""
    with np.errstate(over="ignore", invalid="ignore"):
        scores: NDArray[np.float32] = (logits - logits.max()) / np.float32(temperature)
    return scores


def keep_top_k(scores: NDArray[np.float32], k: int) -> NDArray[np.float32]:
    """Top-k: tokens below the k-th largest score are removed (-inf). Ties with the k-th are all kept; k = 0 is off."""
    if k == 0 or k >= len(scores):
        return scores
    threshold = np.partition(scores, len(scores) - k)[len(scores) - k]
    return np.where(scores < threshold, _NEVER, scores)


def keep_top_p(scores: NDArray[np.float32], p: float) -> NDArray[np.float32]:
    """Top-p (nucleus, Holtzman et al. 2019): keep the smallest set of likeliest tokens whose mass reaches p.

    The mass is that of softmax over what the earlier filters left, summed in float64 from the likeliest down. Tokens
    tied with the last one needed are all kept; the likeliest is always kept; p = 1 is off.
    """
    if p >= 1.0:
        return scores
    ordered = np.sort(scores[scores > _NEVER])[::-1]
    if not len(ordered):
        return scores
    mass = np.cumsum(np.exp(ordered, dtype=np.float64))
    last = int(np.searchsorted(mass, np.float64(p) * mass[-1]))
    return np.where(scores < ordered[min(last, len(ordered) - 1)], _NEVER, scores)


def keep_min_p(scores: NDArray[np.float32], min_p: float) -> NDArray[np.float32]:
    """Min-p (Nguyen et al., arXiv 2407.01082): remove tokens less likely than min_p times the likeliest.

    In scores relative to the maximum: keep s_v >= log(min_p). Ties at the border are kept; 0 is off.
    """
    if min_p <= 0.0:
        return scores
    return np.where(scores < scores.max() + np.float32(np.log(min_p)), _NEVER, scores)


def filtered_scores(logits: NDArray[np.float32], params: SamplingParams) -> NDArray[np.float32]:
    """Temperature, top-k, top-p, min-p, in this order: [vocab] float32, -inf for removed tokens. Needs T > 0."""
    scores = scale(logits, params.temperature)
    if params.filtered:
        scores = keep_min_p(keep_top_p(keep_top_k(scores, params.top_k), params.top_p), params.min_p)
    return scores


def choose(logits: NDArray[np.float32], position: int, params: SamplingParams) -> int:
    """The token of `position` in the log, from the target's logits [vocab] float32 there."""
    if params.greedy:
        return int(np.argmax(logits))
    (noise,) = noise_rows(len(logits))([(params.seed, position)])
    return int(np.argmax(filtered_scores(logits, params) + noise))


@dataclass(frozen=True, slots=True)
class Guess:
    """What a draft's logits say of one position.

    Attributes:
        tokens: The likeliest choices of the target, best first (by perturbed logit).
        margins: Per token, how far its perturbed logit lies below the best; 0 for the best.
        margin: Gap between the best and the second best, the confidence of the guess (AUC 0.83 against 0.74 for the
            draft's probability, measured at T = 1); infinite if only one token is possible.
        source: Kind of drafter; margins of different kinds are not comparable.
    """

    tokens: tuple[int, ...]
    margins: tuple[float, ...]
    margin: float
    source: str = "model"


def guess(logits: NDArray[np.float32], position: int, params: SamplingParams, width: int) -> Guess:
    """The `width` likeliest outcomes of `choose` for the target, judged by a draft's logits [vocab] float32.

    A guess needs no exactness: with a large vocabulary the noise is computed for the top few hundred logits only.
    """
    ids, scores = _perturbed(logits, position, params)
    count = min(max(width, 2), len(scores))
    best = np.argpartition(scores, len(scores) - count)[len(scores) - count :]
    best = best[np.lexsort((ids[best], -scores[best]))]
    top = scores[best]
    kept = [i for i in range(min(width, count)) if top[i] > _NEVER]
    margin = float(top[0] - top[1]) if count > 1 else float("inf")
    return Guess(tuple(int(ids[best[i]]) for i in kept), tuple(float(top[0] - top[i]) for i in kept), margin)


def _perturbed(
    logits: NDArray[np.float32], position: int, params: SamplingParams
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    if params.greedy:
        return np.arange(len(logits)), logits
    scores = filtered_scores(logits, params)
    if len(logits) <= _FULL_NOISE_VOCABULARY:
        (noise,) = noise_rows(len(logits))([(params.seed, position)])
        return np.arange(len(logits)), scores + noise
    ids = np.argpartition(scores, len(scores) - _NOISED_LOGITS)[len(scores) - _NOISED_LOGITS :]
    return ids, scores[ids] + gumbel_of(params.seed, position, ids)
