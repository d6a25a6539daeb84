"""The way up to a cloud: how long a byte takes on it, and until when it is busy with what this device sent.

A narrow link carries one message after the other. What is handed to it early waits in its queue, where it can neither
be taken back nor overtaken; what waits here instead leaves as it is by then, without what died meanwhile. So the device
keeps the books of what it sent, and knows what the next message would wait behind.

Rules:
    * The time of a byte is the one with which the pings of late took the same time each, besides what they waited
      behind. The one right behind an opening waited for much, the others for little: that tells a rate from a distance.
    * A ping's round trip is told without what it waited behind, lest the device's own queue be taken for distance.
    * What was sent before a ping that came back was carried, whatever the books say.
    * To believe a link narrower than it is costs more than the reverse: a rate has to explain most of the differences.
"""

from __future__ import annotations

import statistics
from bisect import bisect_right
from collections import deque
from dataclasses import dataclass

# Messages and pings that are remembered.
_MESSAGES, _PINGS = 256, 10
# What the cloud sends before the answer to an opening's ping is longer than a ping by so many bytes, and the way down
# may be as narrow as the one up.
_ANSWER_BYTES = 30
# Times of a byte that are tried: from 8 Mbit/s to 800 bit/s, then between the neighbours of the best.
_TRIED = tuple(1e-6 * 10 ** (n / 12) for n in range(49))
_FINER = 8
# Part of the differences between round trips that a rate may leave unexplained, and what is worth an explanation: a
# link on which a usual opening takes a ping no longer than that is as good as any.
_UNEXPLAINED, _FELT_S = 0.3, 0.001
# What was sent so long before the first ping that is remembered does not hold it up.
_BEFORE_S = 5.0


@dataclass(frozen=True, slots=True)
class _Ping:
    rtt_s: float
    sent_at: float
    opening: bool


class Uplink:
    """Of one cloud; all of a device's sessions share it.

    Args:
        byte_s: As below, to begin with.

    Attributes:
        byte_s: Time of a byte, seconds; 0 before it is known, and where it is too short to tell.
        free_at: When it has carried all that was sent (loop clock, seconds).
    """

    def __init__(self, byte_s: float = 0.0) -> None:
        self.byte_s, self.free_at = byte_s, 0.0
        self._sent: deque[tuple[float, int]] = deque(maxlen=_MESSAGES)
        self._pings: deque[_Ping] = deque(maxlen=_PINGS)

    def note_sent(self, at: float, count: int) -> None:
        """So many bytes were handed to the link (loop clock, seconds)."""
        self._sent.append((at, count))
        self.free_at = max(self.free_at, at) + count * self.byte_s

    def note_ping(self, rtt_s: float, sent_at: float, *, opening: bool = False) -> float | None:
        """A ping came back; returns how long it took besides what it waited behind.

        Args:
            rtt_s: Seconds from sending it to its answer.
            sent_at: When that was (loop clock, seconds).
            opening: Whether it went right behind an opening. It takes the next one to tell its time apart: None.
        """
        told = bool(self._pings) and self._pings[-1].opening and not opening
        self._pings.append(_Ping(rtt_s, sent_at, opening))
        while self._sent and self._sent[0][0] < self._pings[0].sent_at - _BEFORE_S:
            self._sent.popleft()
        if told:
            self.byte_s = self._fit()
        waited_s = self._waits(self.byte_s)[-1]
        free_at = sent_at
        for at, count in self._sent:
            if at > sent_at:
                free_at = max(free_at, at) + count * self.byte_s
        self.free_at = free_at
        return None if opening else max(0.0, rtt_s - waited_s)

    def _fit(self) -> float:
        """The time of a byte that explains the pings best; 0 if none does well, or there is little to explain."""
        unexplained = self._differences(0.0)
        if unexplained < _FELT_S * len(self._pings):
            return 0.0
        best = min(range(len(_TRIED)), key=lambda n: self._differences(_TRIED[n]))
        low, high = _TRIED[max(0, best - 1)], _TRIED[min(len(_TRIED) - 1, best + 1)]
        byte_s = min((low + (high - low) * n / _FINER for n in range(_FINER + 1)), key=self._differences)
        return byte_s if self._differences(byte_s) < _UNEXPLAINED * unexplained else 0.0

    def _differences(self, byte_s: float) -> float:
        """How far the pings' round trips are from the usual one besides what they waited behind; seconds, summed."""
        alone = [
            ping.rtt_s - waited_s - ping.opening * _ANSWER_BYTES * byte_s
            for ping, waited_s in zip(self._pings, self._waits(byte_s), strict=True)
        ]
        usual = statistics.median_low(alone)
        return sum(abs(one - usual) for one in alone)

    def _waits(self, byte_s: float) -> list[float]:
        """How long each ping waited, if a byte takes that long."""
        times, busy, free_at = [], [0.0], 0.0
        for at, count in self._sent:
            free_at = max(free_at, at) + count * byte_s
            times.append(at)
            busy.append(free_at)
        return [max(0.0, busy[bisect_right(times, ping.sent_at)] - ping.sent_at) for ping in self._pings]
