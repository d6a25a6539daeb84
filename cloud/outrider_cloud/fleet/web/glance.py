"""The fleet at a glance, computed once for all who look.

It is asked for several times a second by every open page. One computation serves everybody, and a new one begins when
the last is older than ten times what it took: however large the fleet, about a tenth of a core goes into it at most,
and a small fleet's figures are fresh to the millisecond.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

from outrider_cloud.fleet.registry import devices

if TYPE_CHECKING:
    from collections.abc import Callable

    from outrider_cloud.fleet.registry.database import Database

_HOUR_S = 3600
_SHARE = 0.1  # of the time, at most, that goes into computing


class Glance:
    """What `devices.overview` says, not older than it needs to be.

    Args:
        database: The registry.
        clock: Monotonic seconds.
    """

    def __init__(self, database: Database, clock: Callable[[], float] = time.monotonic) -> None:
        self._database, self._clock = database, clock
        self._lock = threading.Lock()
        self._seen: dict[str, Any] = {}
        self._good_until = 0.0

    def overview(self) -> dict[str, Any]:
        """Counts, versions and sums; the last hour's beside those of all time."""
        with self._lock:
            began = self._clock()
            if not self._seen or began >= self._good_until:
                with self._database.reading() as connection:
                    self._seen = devices.overview(connection, time.time() - _HOUR_S)
                ended = self._clock()
                self._good_until = ended + (ended - began) / _SHARE
            return self._seen
