"""What the agent needs of the program that drafts, and that program for a device that only carries an agent.

The agent never reaches into a session: it asks for a swap, and looks at counters.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

from outrider_edge.agent.update.turns import Answering
from outrider_edge.agent.usage import UsageMeter
from outrider_shared.drafting.runtime import DraftModel

if TYPE_CHECKING:
    from pathlib import Path


class Host(Answering, Protocol):
    """The program that answers requests.

    Attributes:
        usage: It tells each answer there.
    """

    usage: UsageMeter

    async def swap(self, pack: Path) -> None:
        """Draft with this pack from the next request on; requests under way keep theirs, none is interrupted.

        Raises:
            PackError: if it cannot be loaded; the old one stays.
        """

    async def restart_draft(self) -> None:
        """Load the present draft again."""

    def logs(self, lines: int) -> list[str]:
        """The last lines of the log; never prompts or texts."""


class StandaloneHost:
    """Holds the draft and answers nothing: for `outrider edge agent`."""

    answering = False

    def __init__(self) -> None:
        self.usage = UsageMeter()
        self.model: DraftModel | None = None
        self._pack: Path | None = None

    async def at_rest(self) -> None:
        """See `Host`."""

    async def swap(self, pack: Path) -> None:
        """See `Host`."""
        self.model = await asyncio.to_thread(DraftModel.load, pack)
        self._pack = pack

    async def restart_draft(self) -> None:
        """See `Host`."""
        if self._pack is not None:
            await self.swap(self._pack)

    def logs(self, lines: int) -> list[str]:  # noqa: ARG002 - it keeps none
        """See `Host`."""
        return []
