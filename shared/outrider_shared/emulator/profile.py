"""How an emulated link behaves, and how that changes over time."""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from outrider_shared.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class LinkProfile:
    """One state of a link; the default is a wire without a length.

    Attributes:
        rtt_s: Round-trip time; each direction takes half of it.
        jitter_s: A segment's delay differs from half the round trip by up to half of this, uniformly; never reorders.
        up_bps, down_bps: Bits per second towards the server and back; 0 is unlimited.
        burst_bytes: What an idle direction may send at once before its rate binds (depth of the token bucket).
        queue_bytes: A direction takes no more from its sender while this much waits (the bottleneck's buffer).
        loss: Probability that a segment is lost. A proxy cannot lose bytes of a TCP stream, so the loss shows as TCP
            shows it: the segment and all behind it come after a retransmission. 1.0 delivers nothing.
        rto_min_s: Least retransmission timeout beyond the round trip (Linux: 200 ms).
        cut_every_s: Mean life of a connection, uniform between half and one and a half of it; 0 is for ever.
        half_open: Part of those ends at which the connection does not break but silently swallows all bytes.
    """

    rtt_s: float = 0.0
    jitter_s: float = 0.0
    up_bps: float = 0.0
    down_bps: float = 0.0
    burst_bytes: int = 3000
    queue_bytes: int = 262144
    loss: float = 0.0
    rto_min_s: float = 0.2
    cut_every_s: float = 0.0
    half_open: float = 0.0

    def __post_init__(self) -> None:
        for name in ("rtt_s", "jitter_s", "up_bps", "down_bps", "rto_min_s", "cut_every_s"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"{name} of a link is {value}", hint="it must be a number of at least 0")
        for name in ("loss", "half_open"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ConfigError(f"{name} of a link is {getattr(self, name)}", hint="it must be from 0 to 1")
        for name in ("burst_bytes", "queue_bytes"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} of a link is {getattr(self, name)}", hint="it must be at least 1")

    @property
    def one_way_s(self) -> float:
        """Delay of one direction without jitter."""
        return self.rtt_s / 2.0

    @property
    def rto_s(self) -> float:
        """Retransmission timeout after the first loss: RTT + max(rto_min, 4 x variation), as RFC 6298 has it."""
        return self.rtt_s + max(self.rto_min_s, 4.0 * self.jitter_s)

    def rate_bps(self, *, up: bool) -> float:
        """Bits per second of a direction; 0 is unlimited."""
        return self.up_bps if up else self.down_bps

    def changed(self, fields: Mapping[str, Any]) -> LinkProfile:
        """This profile with some fields set.

        Raises:
            ConfigError: if there is no such field, or its value is out of range.
        """
        unknown = fields.keys() - {field.name for field in dataclasses.fields(self)}
        if unknown:
            raise ConfigError(f"a link has no field {min(unknown)!r}")
        try:
            return dataclasses.replace(self, **fields)
        except TypeError as error:
            raise ConfigError(f"a field of the link is no number: {error}") from error


@dataclass(frozen=True, slots=True)
class LinkPlan:
    """A link over time.

    Attributes:
        stages: (second since the proxy's start, profile from then on), ascending; the first begins at 0.
    """

    stages: tuple[tuple[float, LinkProfile], ...] = ((0.0, LinkProfile()),)

    def __post_init__(self) -> None:
        times = [at_s for at_s, _ in self.stages]
        if not times or times[0] != 0.0 or any(b <= a for a, b in itertools.pairwise(times)):
            raise ConfigError(f"stages of a link begin at {times} s", hint="the first at 0, each later than the last")

    @classmethod
    def of(cls, profile: LinkProfile, changes: Mapping[float, Mapping[str, Any]] | None = None) -> LinkPlan:
        """A profile, and fields that change at given seconds; each change builds on the one before it."""
        stages = [(0.0, profile)]
        for at_s in sorted(changes or {}):
            stages.append((at_s, stages[-1][1].changed((changes or {})[at_s])))
        return cls(tuple(stages))

    def at(self, elapsed_s: float) -> LinkProfile:
        """The profile that holds then."""
        return self.stages[max(0, bisect.bisect_right([at_s for at_s, _ in self.stages], elapsed_s) - 1)][1]

    @property
    def changes(self) -> list[float]:
        """Seconds of the changes."""
        return [at_s for at_s, _ in self.stages[1:]]
