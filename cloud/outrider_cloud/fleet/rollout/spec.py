"""What an operator asks for: which draft, for whom, in which stages, and when to stop."""

from __future__ import annotations

import dataclasses
import enum
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

from outrider_shared.errors import ConfigError, ProtocolError
from outrider_shared.fleet.codec import Bound, check
from outrider_shared.fleet.messages import Count, Name, Ratio, Seconds, Sha256  # noqa: TC001 - read by `check`

if TYPE_CHECKING:
    from collections.abc import Mapping

_Percent = Annotated[float, Bound(0, 100)]


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

    percent: _Percent
    soak_s: Seconds = 600.0
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

    min_executed: Count = 3
    max_failed: Ratio = 0.1
    max_silent: Ratio = 0.2
    acceptance: bool = True
    latency: bool = True
    alpha: Annotated[float, Bound(1e-6, 0.5)] = 0.01
    acceptance_margin: Ratio = 0.02
    latency_margin: Ratio = 0.05
    min_pairs: Count = 40
    min_baseline: Count = 20


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

    name: Annotated[str, Bound(1, 64)]
    target: Name
    sha256: Sha256
    device_class: Name
    group: Annotated[str, Bound(0, 64)] = ""
    stages: tuple[Stage, ...] = STAGES
    control_percent: _Percent = 10.0
    per_minute: Annotated[float, Bound(0, 1e9)] = 60.0
    growth: Annotated[float, Bound(1, 1e3)] = 4.0
    timeout_s: Seconds = 3600.0
    attempts: Annotated[int, Bound(1, 10)] = 2
    approvals: Annotated[int, Bound(0, 100)] = 0
    start_at: Seconds = 0.0
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
            ConfigError: naming the field that is unknown, of the wrong kind, or beyond its bounds.
        """
        table = dict(stored)
        stages, gates = table.get("stages"), table.get("gates")
        if isinstance(stages, tuple | list):
            table["stages"] = stages = list(stages)
            for stage in stages:
                _known(Stage, stage, "a stage")
        _known(Gates, gates, "the gates")
        _known(cls, table, "a roll-out")
        try:
            return check(cls, table)
        except ProtocolError as error:
            raise ConfigError(f"not a roll-out: {error.message}", hint=error.hint) from error


def _known(kind: type[Any], found: object, what: str) -> None:
    fields = [one.name for one in dataclasses.fields(kind)]
    if isinstance(found, dict) and (unknown := sorted(map(str, found.keys() - set(fields)))):
        raise ConfigError(f"{what} has no field {', '.join(unknown)}", hint=f"there are: {', '.join(fields)}")
