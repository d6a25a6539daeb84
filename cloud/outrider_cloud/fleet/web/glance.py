"""The fleet at a glance, computed once for all who look.

It is asked for several times a second by every open page. One computation serves everybody, and a new one begins when
the last is older than ten times what it took: however large the fleet, about a tenth of a core goes into each at most,
and a small fleet's figures are fresh to the millisecond.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from outrider_cloud.fleet.registry import devices, members

if TYPE_CHECKING:
    from collections.abc import Callable

    from outrider_cloud.fleet.registry.database import Database

T = TypeVar("T")
_HOUR_S = 3600
_SHARE = 0.1  # of the time, at most, that goes into computing


class _Shared(Generic[T]):
    """What a computation gave, not older than it needs to be."""

    def __init__(self, compute: Callable[[], T], clock: Callable[[], float]) -> None:
        self._compute, self._clock = compute, clock
        self._lock = threading.Lock()
        self._seen: list[T] = []
        self._good_until = 0.0

    def get(self) -> T:
        with self._lock:
            began = self._clock()
            if not self._seen or began >= self._good_until:
                self._seen = [self._compute()]
                ended = self._clock()
                self._good_until = ended + (ended - began) / _SHARE
            return self._seen[0]


class Glance:
    """What `devices.overview` and `members.counts` say.

    Args:
        database: The registry.
        clock: Monotonic seconds.
    """

    def __init__(self, database: Database, clock: Callable[[], float] = time.monotonic) -> None:
        self._database = database
        self._overview, self._counts = _Shared(self._look, clock), _Shared(self._count, clock)

    def overview(self) -> dict[str, Any]:
        """Counts, versions and sums; the last hour's beside those of all time."""
        return self._overview.get()

    def counts(self) -> dict[str, dict[str, int]]:
        """How many devices of each roll-out are in which state."""
        return self._counts.get()

    def _look(self) -> dict[str, Any]:
        with self._database.reading() as connection:
            return devices.overview(connection, time.time() - _HOUR_S)

    def _count(self) -> dict[str, dict[str, int]]:
        with self._database.reading() as connection:
            return members.counts(connection)
