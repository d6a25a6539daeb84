"""What a device has measured of a cloud and of its own drafter; all its sessions measure, and each begins with it.

A session that begins knows how far the cloud is and how long its steps take before it has heard a word.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

_MOST_PEERS = 16


@dataclass(slots=True)
class Estimates:
    """Of one cloud.

    Attributes:
        rtt_s: Smoothed round trip of pings; None before the first.
        jitter_s: Smoothed distance of round trips from it.
        step_s: Time of a step of the cloud, as short as the short ones; None before two commits followed each other.
        pass_s: Smoothed time of a draft pass; None before the second.
    """

    rtt_s: float | None = None
    jitter_s: float = 0.0
    step_s: float | None = None
    pass_s: float | None = None


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
