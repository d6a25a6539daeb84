"""What the handlers share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from outrider_cloud.fleet.artifacts.repository import Repository
    from outrider_cloud.fleet.controller import Controller
    from outrider_cloud.fleet.plane import Plane


@dataclass(frozen=True, slots=True)
class Services:
    """One running fleet service.

    Attributes:
        repository: Where the packs are; None where this service only watches.
    """

    controller: Controller
    plane: Plane
    repository: Repository | None
