"""Where the update stands, in one file that is replaced before each step: after a power failure this is what is known.

Rules:

1. The record is written before the step that it names is begun; every step can be done again.
2. `number` grows with each write and is the `seq` of the status that tells it.
3. A file that cannot be read (a failing disk: `replace` leaves no halves) counts as no update; what runs stays.
"""

from __future__ import annotations

import dataclasses
import json

from outrider_shared.fleet.messages import UpdateState


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
    """One attempt.

    Attributes:
        rollout, attempt, target, sha256: The assignment.
        state: The step that is being done, or how it ended.
        slot: Where the new pack goes; empty until known, and for the pack that came with the package.
        previous: Slot to go back to; empty for the pack that came with the package.
        boots: Starts since the switch.
        since: Unix time of the switch.
        retries: Times that it was deferred.
        code, message: Why it ended, or waits.
        number: Of this write, over the device's life.
    """

    rollout: str = ""
    attempt: int = 0
    target: str = ""
    sha256: str = ""
    state: UpdateState = UpdateState.COMMITTED
    slot: str = ""
    previous: str = ""
    boots: int = 0
    since: float = 0.0
    retries: int = 0
    code: str = ""
    message: str = ""
    number: int = 0

    @property
    def switched(self) -> bool:
        """Whether the new pack is in use and not proven yet."""
        return self.state in {UpdateState.SWITCHED, UpdateState.PROBATION}

    @property
    def doomed(self) -> bool:
        """Whether the verdict was that it goes back, and that is not done yet."""
        return self.switched and bool(self.code)

    def to_json(self) -> bytes:
        """As written."""
        return json.dumps(dataclasses.asdict(self)).encode()

    @classmethod
    def from_json(cls, data: bytes | None) -> Record:
        """As read; an empty record where there is none or it is unreadable (rule 3)."""
        try:
            fields = json.loads(data or b"{}")
            return cls(**{**fields, "state": UpdateState(fields.get("state", UpdateState.COMMITTED))})
        except (ValueError, TypeError, AttributeError):
            return cls()
