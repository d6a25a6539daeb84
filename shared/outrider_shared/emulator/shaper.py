"""When the bytes of one direction arrive: pure timing, the clock comes in with every call.

Rules:
    * Bytes leave in the order they came; nothing is lost, doubled or reordered, as TCP promises its user.
    * A chunk is cut into segments. A segment leaves when the token bucket lets it, arrives half a round trip later give
      or take jitter, and is delivered when all before it are.
    * A lost segment arrives by retransmission: after the third later segment arrived and a round trip (fast
      retransmit, RFC 5681), or after the retransmission timeout, whichever is first; a retransmission that is lost,
      too, doubles the timeout (RFC 6298). Tail loss probes and selective acknowledgements are not modelled.
    * Segment n of a direction has the n-th random numbers of its stream, whatever happened before.

What it does not do: congestion control. The sending and receiving kernels' own runs on loopback, where it is invisible.
"""

from __future__ import annotations

import math
import random
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from outrider_shared.emulator.profile import LinkProfile

SEGMENT_BYTES = 1400
_DUPLICATES = 3
_MOST_BACKOFFS = 6


@dataclass(slots=True)
class Segment:
    """Bytes on their way.

    Attributes:
        data: The payload; empty is the end of the stream.
        due: When it reaches the receiver's TCP; infinite while everything is lost.
        later: If it was lost: segments behind it that arrive before it (duplicate acknowledgements).
    """

    data: bytes
    due: float
    later: int = 0


class Shaper:
    """One direction of one connection.

    Args:
        seed: Of the emulator.
        connection: Number of the connection, from 0.
        up: Whether towards the server.
        opens: Nothing leaves before (the handshake).
    """

    def __init__(self, seed: int, connection: int, *, up: bool, opens: float = 0.0) -> None:
        name = f"{seed}:{connection}:{'up' if up else 'down'}"
        self._random = random.Random(name)  # noqa: S311 - reproducible, not secret
        self._up = up
        self._opens = opens
        self._bucket_until = -math.inf
        self._queue: deque[Segment] = deque()
        self._holes: list[Segment] = []
        self._stalled_until = -math.inf
        self.waiting_bytes = 0

    def push(self, data: bytes, now: float, profile: LinkProfile) -> None:
        """Take a chunk from the sender; an empty one is its end, which travels behind its bytes."""
        for start in range(0, max(1, len(data)), SEGMENT_BYTES):
            self._segment(data[start : start + SEGMENT_BYTES], now, profile)

    def next_due(self) -> float | None:
        """When the head of the line is due; None if nothing is on its way."""
        return max(self._queue[0].due, self._stalled_until) if self._queue else None

    def pop(self, now: float) -> list[bytes]:
        """What has arrived, in order; an empty item is the end of the stream."""
        arrived: list[bytes] = []
        while self._queue and now >= max(self._queue[0].due, self._stalled_until):
            segment = self._queue.popleft()
            self.waiting_bytes -= len(segment.data)
            arrived.append(segment.data)
        return arrived

    def stall(self, until: float) -> None:
        """Deliver nothing before."""
        self._stalled_until = max(self._stalled_until, until)

    def profile_changed(self, now: float, profile: LinkProfile) -> None:
        """The link is another now: what found no way through is sent once more after a timeout."""
        for segment in self._queue:
            if segment.due == math.inf and profile.loss < 1.0:
                segment.due = now + profile.rto_s - profile.one_way_s

    def _segment(self, data: bytes, now: float, profile: LinkProfile) -> None:
        jitter, chance = self._random.uniform(-0.5, 0.5), self._random.random()
        sent = self._through_bucket(len(data), max(now, self._opens), profile)
        due = sent + self._flight_s(profile, jitter)
        segment = Segment(data, due)
        if data and chance < profile.loss:
            segment.due += self._timeouts_s(profile, chance)
            self._holes = [hole for hole in self._holes if hole.due > now]
            self._holes.append(segment)
        else:
            self._acknowledge(segment, profile)
        self.waiting_bytes += len(data)
        self._queue.append(segment)

    def _through_bucket(self, count: int, now: float, profile: LinkProfile) -> float:
        rate = profile.rate_bps(up=self._up) / 8.0
        if rate == 0:
            return now
        # A bucket of `burst` bytes that fills at `rate`, told as the time until which its bytes are spent.
        self._bucket_until = max(self._bucket_until, now - profile.burst_bytes / rate) + count / rate
        return max(now, self._bucket_until)

    def _acknowledge(self, arrived: Segment, profile: LinkProfile) -> None:
        """Count an arrival for the lost segments before it; the third brings their fast retransmission."""
        for segment in self._holes:
            if arrived.due < segment.due:
                segment.later += 1
                if segment.later == _DUPLICATES:
                    segment.due = min(segment.due, arrived.due + profile.rtt_s)

    @staticmethod
    def _flight_s(profile: LinkProfile, jitter: float) -> float:
        return max(0.0, profile.one_way_s + jitter * profile.jitter_s)

    @staticmethod
    def _timeouts_s(profile: LinkProfile, chance: float) -> float:
        """Delay of a segment that is lost, by timeouts alone: `chance` < loss^n says that n transmissions were lost."""
        if profile.loss >= 1.0:
            return math.inf
        lost, left = 1, profile.loss * profile.loss
        while chance < left and lost < _MOST_BACKOFFS:
            lost, left = lost + 1, left * profile.loss
        return profile.rto_s * (2.0**lost - 1.0)
