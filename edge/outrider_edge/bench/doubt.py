"""How sure a ratio is: the interval that holds 95 of 100 of the ratios of what was measured, drawn anew (bootstrap)."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_DRAWS = 2000
_CUT = round(0.025 * _DRAWS)


def interval(above: Sequence[Sequence[float]], below: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Low and high end of sum(above) / sum(below), where both were measured in pairs.

    Args:
        above: By round, then by request or device. Rounds are drawn anew, with repetition, and of each its places.
        below: Each place belongs to that of `above`.
    """
    draw, rounds = random.Random(0), len(above)  # noqa: S311 - no secret

    def places() -> Iterator[tuple[int, int]]:
        for one in draw.choices(range(rounds), k=rounds) if rounds > 1 else (0,):
            for place in draw.choices(range(len(above[one])), k=len(above[one])):
                yield one, place

    drawn = (list(places()) for _ in range(_DRAWS))
    ratios = sorted(sum(above[r][i] for r, i in some) / sum(below[r][i] for r, i in some) for some in drawn)
    return ratios[_CUT], ratios[-1 - _CUT]
