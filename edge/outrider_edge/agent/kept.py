"""What an agent remembers over restarts: the number of its connection, and what was desired last; one file."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field

from outrider_shared.errors import OutriderError
from outrider_shared.fleet.codec import decode, encode
from outrider_shared.fleet.desired import Applied, Desired


@dataclass(slots=True)
class Kept:
    """As on disk.

    Attributes:
        bd: Of the last connection.
        applied: Number and digest of `desired`.
        desired: What the fleet wants; None before it said so.
    """

    bd: int = 0
    applied: Applied = field(default_factory=Applied)
    desired: Desired | None = None

    @classmethod
    def read(cls, data: bytes | None) -> Kept:
        """What can be read. Where that is all but the document, its number still guards against older ones."""
        try:
            found = json.loads(data or b"{}")
            kept = cls(int(found.get("bd", 0)), Applied(**found.get("applied", {})))
            wanted = found.get("desired", "")
        except (ValueError, TypeError, AttributeError):
            return cls()
        try:
            kept.desired = decode(Desired, bytes.fromhex(wanted)) if wanted else None
        except (OutriderError, ValueError, TypeError):
            kept.applied = dataclasses.replace(kept.applied, digest="")  # the retained one comes again, and is taken
        return kept

    def to_json(self) -> bytes:
        """As written."""
        payload = encode(self.desired).hex() if self.desired else ""
        return json.dumps({"bd": self.bd, "applied": dataclasses.asdict(self.applied), "desired": payload}).encode()
