"""How likely a drafted node is to be committed: learned per session, for each depth and each rank among siblings.

Decayed counts, shrunk twice: a depth's rate towards the session's rate over all depths of that rank, and that towards a
prior. So a new session is judged by the prior, a few answers in by its own rate, and later each depth by itself; what
is old fades, so another topic is followed within some dozens of tokens.
"""

from __future__ import annotations

_PRIOR = (0.7, 0.15)  # of a first child, of a sibling
_PRIOR_WEIGHT = 3.0
_POOL_WEIGHT = 8.0
_DECAY = 0.97
_DEPTHS = 8


class _Rate:
    """Decayed counts of hits and trials."""

    __slots__ = ("hits", "trials")

    def __init__(self) -> None:
        self.hits = self.trials = 0.0

    def observe(self, *, hit: bool) -> None:
        self.hits = self.hits * _DECAY + hit
        self.trials = self.trials * _DECAY + 1.0

    def estimate(self, prior: float, weight: float) -> float:
        return (self.hits + weight * prior) / (self.trials + weight)


class DraftSurvival:
    """Survival of one session's drafts.

    Args:
        prior: Probability that a first child is right, before anything is known.
    """

    def __init__(self, prior: float = _PRIOR[0]) -> None:
        self._prior = (prior, min(prior, _PRIOR[1]))
        self._pooled = (_Rate(), _Rate())
        self._by_depth = [(_Rate(), _Rate()) for _ in range(_DEPTHS)]

    def of(self, depth: int, *, first: bool = True) -> float:
        """Probability that a node is right if its parent is.

        Args:
            depth: 1 for a child of the log's end.
            first: Whether it is its parent's first child; the drafter's best guess goes first.
        """
        rank = 0 if first else 1
        rate = self._by_depth[min(depth, _DEPTHS) - 1][rank]
        return rate.estimate(self._pool(rank), _POOL_WEIGHT)

    @property
    def overall(self) -> float:
        """Of first children, over all depths."""
        return self._pool(0)

    def observe(self, depth: int, *, first: bool, hit: bool) -> None:
        """A node whose parent was right ran, and was right, or was not."""
        rank = 0 if first else 1
        self._pooled[rank].observe(hit=hit)
        self._by_depth[min(depth, _DEPTHS) - 1][rank].observe(hit=hit)

    def _pool(self, rank: int) -> float:
        return self._pooled[rank].estimate(self._prior[rank], _PRIOR_WEIGHT)
