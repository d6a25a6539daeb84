"""A test of canary against control that may be looked at after every observation.

Observations come in pairs, one of the canary group and one of the control group. Under the null hypothesis both of a
pair have one distribution, or the canary's is better by chance or by right; then a *loss* of the canary, the control's
value minus the canary's minus a margin that is tolerated, has an odd part with mean at most 0. Somebody who bets a
share of his money on the canary's loss in each pair,

    wealth_t = wealth_{t-1} * (1 + bet_t * clip(loss_t / scale_t, -1, 1)),     0 <= bet_t <= 0.8,

with bet and scale chosen from earlier pairs alone, then plays a game that is fair at best: his wealth is a
non-negative supermartingale, and by Ville's inequality it ever reaches 1 / alpha with probability alpha at most,
whenever and however often one looks. So `alarmed` is raised falsely with probability alpha at most, over the whole
life of a roll-out.

Bets follow the past mean over the past mean square (the approximate growth-rate adaptive bet of Waudby-Smith and
Ramdas, "Estimating means of bounded random variables by betting", JRSS B 2024, section B.2); the scale is twice the
past median of the losses' size, so that the test is as sharp as the metric is steady.

What this does not do: it does not see that a pair's devices differ from the start. `evidence` takes each device's own
past off before.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from outrider_shared.errors import ConfigError

_MOST_BET = 0.8
_WARM_UP = 4
_REMEMBERED = 200


@dataclass(slots=True)
class BettingTest:
    """The wealth of one bettor; feed pairs with `observe`.

    Args:
        alpha: Probability of a false alarm, over all time.
        margin: A loss per pair that is tolerated, in the metric's unit.
        scale: Size of a loss in the metric's unit that the first bets are made for.

    Raises:
        ConfigError: if alpha is not within (0, 0.5], margin is negative or scale is not positive.
    """

    alpha: float = 0.01
    margin: float = 0.0
    scale: float = 0.1
    pairs: int = 0
    log_wealth: float = 0.0
    peak: float = 0.0
    total: float = 0.0  # of the losses before the margin
    _sum: float = 0.0
    _square: float = 0.0
    _sizes: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not 0 < self.alpha <= 0.5 or self.margin < 0 or self.scale <= 0:
            raise ConfigError(
                f"alpha {self.alpha}, margin {self.margin}, scale {self.scale}: alpha is from above 0 to 0.5, margin "
                "0 or more, scale above 0"
            )

    def observe(self, canary: float, control: float) -> None:
        """Take one pair; larger values are better."""
        loss = control - canary
        self.total += loss
        step = max(-1.0, min(1.0, (loss - self.margin) / self._scale()))
        self.log_wealth += math.log1p(self._bet() * step)
        self.peak = max(self.peak, self.log_wealth)
        self.pairs += 1
        self._sum += step
        self._square += step * step
        self._sizes = [*self._sizes[1 - _REMEMBERED :], abs(loss - self.margin)]

    @property
    def alarmed(self) -> bool:
        """Whether the wealth ever reached 1 / alpha."""
        return self.peak >= -math.log(self.alpha)

    @property
    def mean_loss(self) -> float:
        """Mean of control minus canary so far, in the metric's unit."""
        return self.total / self.pairs if self.pairs else 0.0

    @property
    def p_value(self) -> float:
        """Valid at any time: the smallest alpha that would have been alarmed by now."""
        return min(1.0, math.exp(-self.peak))

    def dump(self) -> dict[str, Any]:
        """The whole state, for the registry."""
        return {
            "alpha": self.alpha, "margin": self.margin, "scale": self.scale, "pairs": self.pairs,
            "log_wealth": self.log_wealth, "peak": self.peak, "total": self.total,
            "sum": self._sum, "square": self._square, "sizes": self._sizes,
        }  # fmt: skip

    @classmethod
    def load(cls, state: dict[str, Any]) -> BettingTest:
        """What `dump` gave."""
        rest = dict(state)
        inner = {f"_{name}": rest.pop(name) for name in ("sum", "square", "sizes")}
        return cls(**rest, **inner)

    def _bet(self) -> float:
        if self.pairs < _WARM_UP:
            return 0.1
        mean, square = self._sum / (self.pairs + 1), (self._square + 0.25) / (self.pairs + 1)
        return max(0.0, min(_MOST_BET, mean / (square + mean * mean)))

    def _scale(self) -> float:
        if self.pairs < _WARM_UP:
            return self.scale
        ordered = sorted(self._sizes)
        return max(2 * ordered[len(ordered) // 2], self.scale / 10)
