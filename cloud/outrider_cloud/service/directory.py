"""Who is connected: live streams by session and by device, and the leases that let a broken one return."""

from __future__ import annotations

import hmac
import secrets
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from outrider_shared.errors import LimitError, SessionExistsError
from outrider_shared.prefix import KEY_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable

    from outrider_cloud.engine.events import Request
    from outrider_shared.ids import SessionId


@dataclass(eq=False)
class Stream:
    """One live stream.

    Attributes:
        session_id: Its session.
        device: Who opened it (certificate CN, or peer address).
        request: What it asked for.
        end: Ends the stream with an error; called when its owner returns on another, or the service drains.
        lease: Proof of ownership, given to the device in `Opened`.
        log_key: Names the log for the device's later sessions.
        log: Prompt and committed tokens, as far as they were told.
    """

    session_id: SessionId
    device: str
    request: Request
    end: Callable[[Exception], None]
    lease: bytes = field(default_factory=lambda: secrets.token_bytes(16))
    log_key: bytes = field(default_factory=lambda: secrets.token_bytes(KEY_BYTES))
    log: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.log = [*self.request.prompt, *self.request.committed]


class Directory:
    """Streams and leases.

    Rules:
        * A session id has one live stream. A second one is refused, unless it shows the lease: then it is the owner on
          a new connection, and takes over.
        * A lease is bound to the device and to the request; it is remembered after its stream broke, for a while.

    Args:
        per_device: Live streams of one device at most.
        remembered: Broken streams whose leases are kept.
    """

    def __init__(self, per_device: int, remembered: int = 1024) -> None:
        self._per_device = per_device
        self._remembered = remembered
        self._live: dict[SessionId, Stream] = {}
        self._broken: dict[SessionId, Stream] = {}
        self._devices: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._live)

    def streams(self) -> list[Stream]:
        """All live streams."""
        return list(self._live.values())

    def enter(self, stream: Stream, lease: bytes) -> bool:
        """Register a stream; returns whether its session is one that it may resume.

        Raises:
            SessionExistsError: if the session has a live stream, or belongs to another device.
            LimitError: if the device has too many streams.
        """
        held = self._live.get(stream.session_id) or self._broken.get(stream.session_id)
        owned = held is not None and _owns(stream, held, lease)
        if held is not None and not owned:
            raise SessionExistsError(f"session {stream.session_id} is in use", hint="open with a fresh session id")
        if held is not None and self._live.get(stream.session_id) is held:
            held.end(SessionExistsError(f"session {stream.session_id} was taken over by its owner's new stream"))
            self.leave(held, broken=False)
        if self._devices[stream.device] >= self._per_device:
            raise LimitError(f"{stream.device} has {self._devices[stream.device]} streams", hint="close some first")
        self._broken.pop(stream.session_id, None)
        self._live[stream.session_id] = stream
        self._devices[stream.device] += 1
        return owned

    def leave(self, stream: Stream, *, broken: bool) -> bool:
        """Take a stream off; with `broken`, remember its lease. False if it was taken off before (taken over)."""
        if self._live.get(stream.session_id) is not stream:
            return False
        del self._live[stream.session_id]
        self._devices[stream.device] -= 1
        if self._devices[stream.device] == 0:
            del self._devices[stream.device]
        if broken:
            self._broken[stream.session_id] = stream
            while len(self._broken) > self._remembered:
                self._broken.pop(next(iter(self._broken)))
        return True


def _owns(stream: Stream, held: Stream, lease: bytes) -> bool:
    asked, known = stream.request, held.request
    same = (asked.prompt, asked.params, asked.max_tokens, asked.stop) == (
        known.prompt,
        known.params,
        known.max_tokens,
        known.stop,
    )
    return same and stream.device == held.device and hmac.compare_digest(lease, held.lease)
