"""What the handlers share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from outrider_cloud.fleet.web.glance import Glance

if TYPE_CHECKING:
    from outrider_cloud.fleet.artifacts.repository import Repository
    from outrider_cloud.fleet.controller import Controller
    from outrider_cloud.fleet.plane import Plane


@dataclass(frozen=True, slots=True)
class Services:
    """One running fleet service.

    Attributes:
        repository: Where the packs are; None where this service only watches.
        glance: The overview, shared by all who look.
    """

    controller: Controller
    plane: Plane
    repository: Repository | None
    glance: Glance = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "glance", Glance(self.controller.database))
