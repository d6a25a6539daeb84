"""`outrider edge serve --fleet`: the endpoint's desk as the agent's host."""

from __future__ import annotations

import json
from collections import deque
from typing import TYPE_CHECKING, Any

import structlog

from outrider_edge.agent.usage import UsageMeter

if TYPE_CHECKING:
    from collections.abc import MutableMapping
    from pathlib import Path

    from outrider_edge.api.desk import Desk

_KEPT = 1000


class DeskHost:
    """Swaps through the desk; the desk counts into `usage`.

    Args:
        desk: What answers.
        keep_logs: Off where prompts are logged: they do not leave the device.
    """

    def __init__(self, desk: Desk, *, keep_logs: bool) -> None:
        self._desk = desk
        self._lines: deque[str] = deque(maxlen=_KEPT)
        self.usage = desk.usage = UsageMeter()
        if keep_logs:
            processors = structlog.get_config()["processors"]
            # Before the renderer, which is last.
            structlog.configure(processors=[*processors[:-1], self._remember, processors[-1]])

    @property
    def answering(self) -> bool:
        """See `Host`."""
        return self._desk.slots.used > 0

    async def at_rest(self) -> None:
        """See `Host`."""
        await self._desk.slots.idle()

    async def swap(self, pack: Path) -> None:
        """See `Host`."""
        await self._desk.swap(pack)

    async def restart_draft(self) -> None:
        """See `Host`."""
        await self._desk.swap(self._desk.outfit.path)

    def logs(self, lines: int) -> list[str]:
        """See `Host`."""
        return list(self._lines)[-lines:]

    def _remember(self, _logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        self._lines.append(json.dumps(dict(event), default=str))
        return event
