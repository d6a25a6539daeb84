"""How likely a draft is to be committed, from the margin of its guess: a prior, corrected by what the cloud committed.

The margin is the gap between the best and the second-best perturbed logit. Under the shared noise it tells agreement
better than the draft's probability or entropy does. Each margin bin keeps a moving count of guesses and of hits; the
prior counts as `PRIOR_WEIGHT` guesses, so the first answers are steered by it and later ones by evidence.

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
# Old evidence fades, so that another topic or temperature is followed within a few answers.
_MOST_EVIDENCE = 200.0


class Calibration:
    """Margin to survival, learned online.

    Args:
        prior: (margin, survival) pairs with ascending margin; the bins' centres.
    """

    def __init__(self, prior: Sequence[tuple[float, float]] = PRIOR) -> None:
        self._margins = [margin for margin, _ in prior]
        self._prior = [survival for _, survival in prior]
        self._guesses = [0.0] * len(prior)
        self._hits = [0.0] * len(prior)

    def survival_of(self, margin: float) -> float:
        """Probability in (0, 1) that the best of a guess with that margin is the target's choice; interpolated."""
        right = bisect.bisect_right(self._margins, margin)
        if right == 0:
            return self._estimate(0)
        if right == len(self._margins):
            return self._estimate(right - 1)
        low, high = self._margins[right - 1], self._margins[right]
        share = (margin - low) / (high - low)
        return (1.0 - share) * self._estimate(right - 1) + share * self._estimate(right)

    def observe(self, margin: float, *, hit: bool) -> None:
        """A guess of that margin was at the frontier, and the target chose its best token, or did not."""
        bin_ = self._nearest(margin)
        if self._guesses[bin_] >= _MOST_EVIDENCE:
            self._guesses[bin_] *= 0.5
            self._hits[bin_] *= 0.5
        self._guesses[bin_] += 1.0
        self._hits[bin_] += hit

    def pairs(self) -> list[tuple[float, float]]:
        """(margin, survival) as believed now; the form of a prior."""
        return [(margin, self._estimate(i)) for i, margin in enumerate(self._margins)]

    def evidence(self) -> list[tuple[float, float, float]]:
        """(margin, guesses, hits) of each bin."""
        return list(zip(self._margins, self._guesses, self._hits, strict=True))

    def _estimate(self, bin_: int) -> float:
        hits = self._hits[bin_] + PRIOR_WEIGHT * self._prior[bin_]
        return hits / (self._guesses[bin_] + PRIOR_WEIGHT)

    def _nearest(self, margin: float) -> int:
        right = bisect.bisect_right(self._margins, margin)
        if right == 0:
            return 0
        if right == len(self._margins):
            return right - 1
        return right if self._margins[right] - margin < margin - self._margins[right - 1] else right - 1


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

    def of(self, source: str) -> Calibration:
        """The calibration of one kind; a kind without a prior of its own starts from the model's."""
        if source not in self._of:
            self._of[source] = Calibration()
        return self._of[source]

    def survival_of(self, guess: Guess) -> float:
        """Probability that the guess's best token is the target's choice."""
        return self.of(guess.source).survival_of(guess.margin)

    def evidence(self) -> dict[str, list[tuple[float, float, float]]]:
        """Per kind of drafter, (margin, guesses, hits) of each bin."""
        return {source: calibration.evidence() for source, calibration in self._of.items()}

    def observe(self, guess: Guess, *, hit: bool) -> None:
        """The target decided where that guess was made."""
        self.of(guess.source).observe(guess.margin, hit=hit)
