"""What breaks on a link, and when."""

from __future__ import annotations

import enum
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from outrider_shared.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


class FaultKind(enum.StrEnum):
    """Ways to break."""

    CUT = "cut"  # every open connection is reset, both ways at once
    HALF_OPEN = "half-open"  # open connections swallow all bytes from now on, both ways; their sockets stay open
    STALL = "stall"  # nothing is delivered for `duration_s`, then all that waited
    REFUSE = "refuse"  # for `duration_s` new connections are reset, as at a server that restarts


_LASTING = {FaultKind.STALL, FaultKind.REFUSE}


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault.

    Attributes:
        at_s: Seconds since the proxy's start.
        kind: What happens.
        duration_s: How long, for those that last.
    """

    at_s: float
    kind: FaultKind
    duration_s: float = 0.0

    def __post_init__(self) -> None:
        if not (self.at_s >= 0 and self.duration_s >= 0):
            raise ConfigError(f"a fault at {self.at_s} s for {self.duration_s} s", hint="neither may be negative")
        if (self.duration_s > 0) != (self.kind in _LASTING):
            raise ConfigError(f"{self.kind} for {self.duration_s} s", hint="stall and refuse have one, others not")


@dataclass(frozen=True, slots=True)
class FaultSchedule:
    """Faults in the order of their time."""

    faults: tuple[Fault, ...] = ()

    def __post_init__(self) -> None:
        times = [fault.at_s for fault in self.faults]
        if times != sorted(times):
            raise ConfigError(f"faults at {times} s", hint="put them in the order of their time")

    def __iter__(self) -> Iterator[Fault]:
        return iter(self.faults)

    @classmethod
    def draw(
        cls,
        seed: int,
        count: int,
        span_s: float,
        kinds: Sequence[FaultKind] = tuple(FaultKind),
        longest_s: float = 0.3,
    ) -> FaultSchedule:
        """Random faults, the same for the same arguments.

        Args:
            seed: Of the schedule.
            count: How many.
            span_s: They happen within so many seconds.
            kinds: To choose from.
            longest_s: Longest stall or refusal; the shortest is a tenth of it.
        """
        source = random.Random(f"faults:{seed}")  # noqa: S311 - reproducible, not secret
        faults = []
        for at_s in sorted(source.uniform(0.0, span_s) for _ in range(count)):
            kind = source.choice(list(kinds))
            faults.append(Fault(at_s, kind, source.uniform(longest_s / 10, longest_s) if kind in _LASTING else 0.0))
        return cls(tuple(faults))
