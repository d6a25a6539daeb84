"""How likely a draft is to be committed, from the margin of its guess: a prior, corrected by what the cloud committed.

The margin is the gap between the best and the second-best perturbed logit. Under the shared noise it tells agreement
better than the draft's probability or entropy does. Each margin bin keeps a moving count of guesses and of hits; the
prior counts as `PRIOR_WEIGHT` guesses, so the first answers are steered by it and later ones by evidence. Within a bin
each group of depths has counts of its own, shrunk to the bin's estimate: far below the frontier only easy text is
reached, and its guesses are right more or less often than others of their margin. Where the best of a guess was wrong,
the next ones are right at rates of their own.

One set of calibrations, one per kind of drafter, serves a device, and one the drafters of a cloud: sessions learn from
each other.
"""

from __future__ import annotations

import bisect
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from outrider_shared.sampling.rule import Guess

# Margin in nats -> survival of the best guess: 1,970 guesses of the bundled draft at T = 0, 0.7 and 1, as counted by
# `outrider edge compare --limit 60 --json`, key `calibration`.
PRIOR = ((0.0, 0.4), (0.25, 0.44), (0.5, 0.56), (1.0, 0.69), (2.0, 0.82), (3.0, 0.93), (5.0, 0.98), (8.0, 0.997))
# Length of the repeated run in tokens -> survival of the token that followed it. Cautious: beside the bundled draft,
# lookup was right in 11 of the 40 cases in which it had the word; evidence raises it where texts quote more.
LOOKUP_PRIOR = ((2.0, 0.25), (3.0, 0.3), (4.0, 0.35), (5.0, 0.4), (6.0, 0.45))
PRIOR_WEIGHT = 12.0
# Of the probability that better candidates leave, how much the next one takes (0.6 measured on the bundled pair).
NEXT_SHARE_PRIOR = 0.6
# The first depths of the groups: a child of the frontier, one below, ...
_GROUPS = (1, 2, 4, 8)
# A group of depths starts as its bin, which counts as so many guesses.
_BIN_WEIGHT = 24.0
# Old evidence fades, so that another topic or temperature is followed within a few answers.
_MOST_EVIDENCE = 200.0


class _Counts:
    """Moving counts of guesses and hits."""

    __slots__ = ("guesses", "hits")

    def __init__(self) -> None:
        self.guesses = self.hits = 0.0

    def observe(self, *, hit: bool) -> None:
        if self.guesses >= _MOST_EVIDENCE:
            self.guesses *= 0.5
            self.hits *= 0.5
        self.guesses += 1.0
        self.hits += hit

    def estimate(self, prior: float, weight: float) -> float:
        return (self.hits + weight * prior) / (self.guesses + weight)


class Calibration:
    """Margin and depth to survival, learned online.

    Args:
        prior: (margin, survival) pairs with ascending margin; the bins' centres.
    """

    def __init__(self, prior: Sequence[tuple[float, float]] = PRIOR) -> None:
        self._margins = [margin for margin, _ in prior]
        self._prior = [survival for _, survival in prior]
        self._bins = [_Counts() for _ in prior]
        self._groups = [[_Counts() for _ in _GROUPS] for _ in prior]

    def survival_of(self, margin: float, depth: int = 0) -> float:
        """Probability in (0, 1) that the best of a guess with that margin is the target's choice; interpolated.

        Args:
            margin: Nats, or whatever the kind of drafter has.
            depth: How far below the frontier the guess was made, 1 being the next token; 0 is over all depths.
        """
        right = bisect.bisect_right(self._margins, margin)
        if right == 0:
            return self._estimate(0, depth)
        if right == len(self._margins):
            return self._estimate(right - 1, depth)
        low, high = self._margins[right - 1], self._margins[right]
        share = (margin - low) / (high - low)
        return (1.0 - share) * self._estimate(right - 1, depth) + share * self._estimate(right, depth)

    def observe(self, margin: float, *, hit: bool, depth: int = 0) -> None:
        """A guess of that margin was at the frontier, and the target chose its best token, or did not."""
        bin_ = self._nearest(margin)
        self._bins[bin_].observe(hit=hit)
        if depth:
            self._groups[bin_][_group(depth)].observe(hit=hit)

    def pairs(self) -> list[tuple[float, float]]:
        """(margin, survival) as believed now; the form of a prior."""
        return [(margin, self._estimate(i, 0)) for i, margin in enumerate(self._margins)]

    def evidence(self) -> list[tuple[float, float, float]]:
        """(margin, guesses, hits) of each bin."""
        return [(margin, of.guesses, of.hits) for margin, of in zip(self._margins, self._bins, strict=True)]

    def _estimate(self, bin_: int, depth: int) -> float:
        over_all = self._bins[bin_].estimate(self._prior[bin_], PRIOR_WEIGHT)
        return self._groups[bin_][_group(depth)].estimate(over_all, _BIN_WEIGHT) if depth else over_all

    def _nearest(self, margin: float) -> int:
        right = bisect.bisect_right(self._margins, margin)
        if right == 0:
            return 0
        if right == len(self._margins):
            return right - 1
        return right if self._margins[right] - margin < margin - self._margins[right - 1] else right - 1


def _group(depth: int) -> int:
    return bisect.bisect_right(_GROUPS, depth) - 1


class Calibrations:
    """One calibration per kind of drafter.

    Args:
        model: Prior of the draft model, for example from its pack.
        lookup: Prior of prompt lookup.
    """

    def __init__(
        self,
        model: Sequence[tuple[float, float]] = PRIOR,
        lookup: Sequence[tuple[float, float]] = LOOKUP_PRIOR,
    ) -> None:
        self._of = {"model": Calibration(model), "lookup": Calibration(lookup)}
        # Of second, third, ... candidates.
        self._next: list[_Counts] = []

    def of(self, source: str) -> Calibration:
        """The calibration of one kind; a kind without a prior of its own starts from the model's."""
        if source not in self._of:
            self._of[source] = Calibration()
        return self._of[source]

    def survival_of(self, guess: Guess, depth: int = 0) -> float:
        """Probability that the guess's best token is the target's choice.

        Args:
            guess: What a drafter said.
            depth: How far below the frontier, 1 being the next token; 0 is over all depths.
        """
        return self.of(guess.source).survival_of(guess.margin, depth)

    def survivals_of(self, guess: Guess, depth: int = 0) -> list[float]:
        """The same for each of the guess's tokens, best first."""
        found = [self.survival_of(guess, depth)]
        left = 1.0 - found[0]
        for rank in range(1, len(guess.tokens)):
            share = self._next[rank - 1] if rank <= len(self._next) else _Counts()
            found.append(left * share.estimate(NEXT_SHARE_PRIOR, PRIOR_WEIGHT))
            left -= found[-1]
        return found

    def evidence(self) -> dict[str, list[tuple[float, float, float]]]:
        """Per kind of drafter, (margin, guesses, hits) of each bin."""
        return {source: calibration.evidence() for source, calibration in self._of.items()}

    def observe(self, guess: Guess, *, hit: bool, depth: int = 0) -> None:
        """The target decided where that guess was made."""
        self.of(guess.source).observe(guess.margin, hit=hit, depth=depth)

    def learn(self, guess: Guess, token: int, depth: int) -> None:
        """The target chose `token` where that guess was made: judge all candidates of it."""
        self.observe(guess, hit=token == guess.tokens[0], depth=depth)
        if token == guess.tokens[0]:
            return
        for rank, candidate in enumerate(guess.tokens[1:]):
            if rank == len(self._next):
                self._next.append(_Counts())
            self._next[rank].observe(hit=candidate == token)
            if candidate == token:
                return
