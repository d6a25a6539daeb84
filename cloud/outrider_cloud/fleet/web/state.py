"""What the handlers share."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from outrider_cloud.fleet.web.glance import Glance

if TYPE_CHECKING:
    from collections.abc import Callable

    from outrider_cloud.fleet.artifacts.repository import Repository
    from outrider_cloud.fleet.controller import Controller
    from outrider_cloud.fleet.plane import Plane


class PerMinute:
    """At most so many in a minute; the clock's seconds are monotonic."""

    def __init__(self, most: int = 60, clock: Callable[[], float] = time.monotonic) -> None:
        self._most, self._clock = most, clock
        self._lock = threading.Lock()
        self._minute, self._count = -1.0, 0

    def allow(self) -> bool:
        """Count one; whether it is among them."""
        with self._lock:
            minute = self._clock() // 60
            self._minute, self._count = minute, self._count + 1 if minute == self._minute else 1
            return self._count <= self._most


@dataclass(frozen=True, slots=True)
class Services:
    """One running fleet service.

    Attributes:
        repository: Where the packs are; None where this service only watches.
        glance: The overview, shared by all who look.
        strangers: How many requests with unknown tokens are written into the audit log; anybody can send those.
    """

    controller: Controller
    plane: Plane
    repository: Repository | None
    glance: Glance = field(init=False)
    strangers: PerMinute = field(default_factory=PerMinute)

    def __post_init__(self) -> None:
        object.__setattr__(self, "glance", Glance(self.controller.database))
