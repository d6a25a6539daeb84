"""What a device has measured of a cloud and of its own drafter; all its sessions measure, and each begins with it.

A session that begins knows how far the cloud is and how long its steps take before it has heard a word.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from outrider_edge.session.uplink import Uplink

_MOST_PEERS = 16
# Of the pace: what is left of old evidence at each commit.
_KEPT = 0.9


@dataclass(slots=True)
class Estimates:
    """Of one cloud.

    Attributes:
        rtt_s: Smoothed round trip of pings, without what they waited behind; None before the first.
        jitter_s: Smoothed distance of round trips from it.
        step_s: Time of a step of the cloud, as short as the short ones; None before two commits followed each other.
        pass_s: Smoothed time of a draft pass; None before the second.
        uplink: The way up: the time of a byte, and what is under way.
    """

    rtt_s: float | None = None
    jitter_s: float = 0.0
    step_s: float | None = None
    pass_s: float | None = None
    uplink: Uplink = field(default_factory=Uplink)
    _tokens: float = 0.0
    _taken_s: float = 0.0

    @property
    def tokens_per_s(self) -> float | None:
        """The pace at which a session gets tokens; None before two commits followed each other."""
        return self._tokens / self._taken_s if self._taken_s > 0.0 else None

    def note_tokens(self, count: int, taken_s: float) -> None:
        """So many tokens came, that long after those before them."""
        self._tokens = _KEPT * self._tokens + count
        self._taken_s = _KEPT * self._taken_s + taken_s


class Measured:
    """Estimates by the cloud's address. Shared by a device's sessions."""

    def __init__(self) -> None:
        self._of: OrderedDict[str, Estimates] = OrderedDict()

    def of(self, peer: str) -> Estimates:
        """What is known of that cloud; sessions write to it, too."""
        if peer not in self._of:
            latest = next(reversed(self._of.values()), None)
            # How fast this device drafts does not depend on where it sends.
            self._of[peer] = Estimates(pass_s=None if latest is None else latest.pass_s)
        self._of.move_to_end(peer)
        while len(self._of) > _MOST_PEERS:
            self._of.popitem(last=False)
        return self._of[peer]
