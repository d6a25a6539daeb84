"""Who is here, and what was lost: pure rules over `bd` and `seq`, after Sparkplug B 3.0.

Rules:

1. A birth with any `bd` makes the device online and that `bd` the current one.
2. A Will counts only with the current `bd`: one of an older connection came late and is ignored.
3. A goodbye counts like a Will.
4. Within one `bd`, `seq` goes up by one; a jump counts the messages between as lost, a number at or below the last
one is
   a repeat and is not counted again. A new `bd` starts from 0, and what an ended `bd` still sends late is a repeat.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from outrider_shared.fleet.messages import Presence


@dataclass(slots=True)
class PresenceRule:
    """Presence of one device; `judge` applies one message."""

    online: bool = False
    bd: int = -1

    def judge(self, message: Presence) -> bool:
        """Take one message; returns whether it counts."""
        if not message.online and self.bd >= 0 and message.bd != self.bd:
            return False
        self.online, self.bd = message.online, message.bd
        return True


@dataclass(slots=True)
class SequenceRule:
    """Loss of one device's stream; `judge` applies one message."""

    bd: int = -1
    last: int = -1
    lost: int = 0
    repeated: int = 0

    def judge(self, bd: int, seq: int) -> bool:
        """Take one number; returns whether the message is new."""
        if bd < self.bd or (bd == self.bd and seq <= self.last):
            self.repeated += 1
            return False
        if bd > self.bd:
            # What the old connection still had to send is unknown; the new one starts at 0.
            self.lost += seq if self.bd >= 0 else 0
        else:
            self.lost += seq - self.last - 1
        self.bd, self.last = bd, seq
        return True
