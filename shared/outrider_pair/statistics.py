"""Intervals, ranks and curves: the little statistics that an evaluation needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

_RESAMPLES, _SEED = 2000, 7
_MARGIN_EDGES = (0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 9.0, 14.0)  # nats


def ratio_interval(above: Sequence[float], below: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Bootstrap interval of sum(above) / sum(below) over requests: whole requests are drawn, with a fixed seed.

    Tokens of one answer depend on each other; requests do not, so they are what is resampled (Efron 1979).
    """
    tops, bottoms = np.asarray(above, np.float64), np.asarray(below, np.float64)
    drawn = np.random.default_rng(_SEED).integers(0, len(tops), (_RESAMPLES, len(tops)))
    ratios = tops[drawn].sum(-1) / np.maximum(bottoms[drawn].sum(-1), 1e-12)
    tail = (1 - level) / 2
    low, high = np.quantile(ratios, [tail, 1 - tail])
    return float(low), float(high)


def compare_ratios(
    mine: tuple[Sequence[float], Sequence[float]], other: tuple[Sequence[float], Sequence[float]], level: float = 0.95
) -> tuple[float, float, float]:
    """(ratio, low, high) of two ratios of sums over the same requests: both are resampled together."""
    arrays = [np.asarray(each, np.float64) for each in (*mine, *other)]
    drawn = np.random.default_rng(_SEED).integers(0, len(arrays[0]), (_RESAMPLES, len(arrays[0])))
    top, bottom, other_top, other_bottom = (each[drawn].sum(-1) for each in arrays)
    tail = (1 - level) / 2
    low, high = np.quantile((top / bottom) / (other_top / other_bottom), [tail, 1 - tail])
    sums = [float(each.sum()) for each in arrays]
    return (sums[0] / sums[1]) / (sums[2] / sums[3]), float(low), float(high)


def auc(score: ArrayLike, label: ArrayLike) -> float | None:
    """Area under the ROC curve: how often a hit has a higher score than a miss, ties count half. None without both."""
    scores, labels = np.asarray(score, np.float64), np.asarray(label, bool)
    hits = int(labels.sum())
    if hits in {0, len(labels)}:
        return None
    ranks = _ranks(scores)
    return float((ranks[labels].sum() - hits * (hits + 1) / 2) / (hits * (len(labels) - hits)))


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks from 1, ties get their mean."""
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    mean: NDArray[np.float64] = (last - counts + 1 + last) / 2
    return mean[group]


def reliability(margin: ArrayLike, hit: ArrayLike) -> list[dict[str, float]]:
    """Margins in bins: the mean margin, the share of hits and the count of each that is not empty.

    The bins are finest where decisions fall: most margins are large, and of those nearly all are hits.
    """
    margins, hits = np.asarray(margin, np.float64), np.asarray(hit, np.float64)
    bins = np.digitize(margins, _MARGIN_EDGES)
    parts = [bins == number for number in range(len(_MARGIN_EDGES) + 1)]
    return [
        {"margin": float(margins[part].mean()), "survival": float(hits[part].mean()), "places": float(part.sum())}
        for part in parts
        if part.any()
    ]


def prior_of(curve: Sequence[dict[str, float]]) -> tuple[tuple[float, float], ...]:
    """A reliability curve as the prior of a calibration: never falling, never quite 0 or 1, margins ascending.

    Falling neighbours are pooled (isotonic regression, pool adjacent violators); a hit and a miss are added to each.
    """
    pools: list[list[float]] = []  # [margin mass, hits, places]
    for bin_ in curve:
        places = bin_["places"]
        pools.append([bin_["margin"] * places, bin_["survival"] * places, places])
        while len(pools) > 1 and pools[-2][1] / pools[-2][2] > pools[-1][1] / pools[-1][2]:
            top = pools.pop()
            pools[-1] = [a + b for a, b in zip(pools[-1], top, strict=True)]
    prior: list[tuple[float, float]] = []
    for mass, hits, places in pools:
        margin, survival = round(mass / places, 3), round((hits + 1) / (places + 2), 4)
        if not prior or margin > prior[-1][0]:
            prior.append((margin, max([survival, *(before for _, before in prior)])))
    return tuple(prior)
