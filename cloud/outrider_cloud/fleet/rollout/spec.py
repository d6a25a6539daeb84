"""What an operator asks for: which draft, for whom, in which stages, and when to stop."""

from __future__ import annotations

import enum
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from outrider_shared.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping


class OnBreach(enum.StrEnum):
    """What the controller does by itself when a gate is broken."""

    PAUSE = "pause"
    ROLLBACK = "rollback"


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage.

    Attributes:
        percent: Of the devices selected, this stage's included: 5, 25, 100.
        soak_s: Seconds that pass between its last device and the next stage.
        approval: Whether somebody has to allow the step to the next stage.
    """

    percent: float
    soak_s: float = 600.0
    approval: bool = False


STAGES = (Stage(5), Stage(25), Stage(100))


@dataclass(frozen=True, slots=True)
class Gates:
    """When a stage is bad. Shares are of devices that were told to update in this stage.

    Attributes:
        min_executed: Devices that must have ended one way or the other before the next two gates speak; a stage of
            fewer devices is judged when all of them have.
        max_failed: Share that failed or went back by itself.
        max_silent: Share that timed out.
        acceptance, latency: Whether canary is tested against control on these.
        alpha: Probability of a false alarm of each of both tests, over the whole roll-out.
        acceptance_margin: Loss of acceptance rate that is tolerated.
        latency_margin: Share of slow answers (those beyond about the p95 of before) tolerated on top of control's.
        min_pairs: Pairs of windows that a stage needs before it may pass; 0 switches that off.
        min_baseline: Windows of the old draft that a device must have shown before it takes part in these tests.
    """

    min_executed: int = 3
    max_failed: float = 0.1
    max_silent: float = 0.2
    acceptance: bool = True
    latency: bool = True
    alpha: float = 0.01
    acceptance_margin: float = 0.02
    latency_margin: float = 0.05
    min_pairs: int = 40
    min_baseline: int = 20


@dataclass(frozen=True, slots=True)
class Spec:
    """A whole roll-out; checked when made.

    Attributes:
        target, sha256: The pack, as the TUF repository lists it.
        device_class: Only devices of this class are selected.
        group: Name of the group to select from; empty for all devices.
        control_percent: Devices that keep the old draft until the last stage, to compare with.
        per_minute, growth: Devices told per minute in the first stage, and by how much that grows with each stage.
        timeout_s: A device that does not end its update in this time is silent.
        attempts: How often a device that failed is told again.
        approvals: People other than the author who have to agree before it starts.
        start_at: Unix seconds; 0 for at once.
        late_joiners: Whether devices that match later take part, in the stage that runs then.
    """

    name: str
    target: str
    sha256: str
    device_class: str
    group: str = ""
    stages: tuple[Stage, ...] = STAGES
    control_percent: float = 10.0
    per_minute: float = 60.0
    growth: float = 4.0
    timeout_s: float = 3600.0
    attempts: int = 2
    approvals: int = 0
    start_at: float = 0.0
    late_joiners: bool = True
    on_breach: OnBreach = OnBreach.ROLLBACK
    gates: Gates = field(default_factory=Gates)

    def __post_init__(self) -> None:
        percents = [stage.percent for stage in self.stages]
        if not percents or sorted(set(percents)) != percents or percents[0] <= 0 or percents[-1] != 100:
            raise ConfigError(f"stages {percents} do not rise from above 0 to 100 percent")
        if not 0 <= self.control_percent <= 50 or percents[0] + self.control_percent > 100:
            raise ConfigError(
                f"control_percent {self.control_percent} is not from 0 to 50, beside a first stage of {percents[0]}"
            )
        if self.per_minute <= 0 or self.growth < 1 or self.timeout_s <= 0 or not 1 <= self.attempts <= 10:
            raise ConfigError("per_minute and timeout_s must be above 0, growth at least 1, attempts from 1 to 10")
        if not self.name or len(self.name) > 64 or not self.target or len(self.sha256) != 64:
            raise ConfigError("a roll-out needs a name of 1 to 64 characters, a target, and the sha256 of its archive")

    def rate(self, stage: int) -> float:
        """Devices per second in that stage."""
        return self.per_minute * self.growth**stage / 60

    def stored(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    @classmethod
    def read(cls, stored: Mapping[str, Any]) -> Spec:
        """What `stored` gave, or an operator wrote.

        Raises:
            ConfigError: naming the field that is unknown or of the wrong kind.
        """
        table = dict(stored)
        try:
            table["stages"] = tuple(Stage(**stage) for stage in table.get("stages", [asdict(s) for s in STAGES]))
            table["gates"] = Gates(**table.get("gates", {}))
            table["on_breach"] = OnBreach(table.get("on_breach", OnBreach.ROLLBACK))
            return cls(**table)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"not a roll-out: {error}") from error
