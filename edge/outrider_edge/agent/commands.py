"""Commands: signed, for this device, not expired, and each done once however often it comes."""

from __future__ import annotations

import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import structlog

from outrider_shared.errors import OutriderError, ProtocolError, ReplayError, SignatureError
from outrider_shared.fleet.messages import Command, CommandResult

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from outrider_edge.agent.config import AgentConfig
    from outrider_shared.fleet.transport import Message

_log = structlog.get_logger()
_ANSWERED = 64  # commands remembered


class Commands:
    """What one device was told to do.

    Args:
        config: Who this is, and whose commands count.
    """

    def __init__(self, config: AgentConfig) -> None:
        self._config = config
        self._answered: OrderedDict[str, CommandResult] = OrderedDict()

    async def result(self, message: Message, do: Callable[[Command], Awaitable[dict[str, Any]]]) -> CommandResult:
        """What a message comes to: a refusal, what was said before, or what `do` says now."""
        try:
            command = self._opened(message)
        except (ProtocolError, SignatureError, ReplayError) as error:
            _log.warning("fleet_command_refused", code=error.code, reason=error.message)
            return CommandResult(_shown(message.correlation), time.time(), error.code, error.message[:1000])
        if (known := self._answered.get(command.id)) is not None:
            return known
        try:
            result = CommandResult(command.id, time.time(), output=await do(command))
        except OutriderError as error:
            result = CommandResult(command.id, time.time(), error.code, error.message[:1000])
        self._answered[command.id] = result
        while len(self._answered) > _ANSWERED:
            self._answered.popitem(last=False)
        return result

    def _opened(self, message: Message) -> Command:
        command = self._config.trust.open("command", Command, message.payload)
        if command.device != self._config.device:
            raise SignatureError(f"a command for {command.device!r} came to {self._config.device!r}")
        if command.expires < time.time():
            raise ReplayError(f"command {command.id} expired {time.time() - command.expires:.0f} s ago")
        return command


def _shown(correlation: bytes | None) -> str:
    return (correlation or b"unknown").decode("utf-8", "replace")[:128] or "unknown"
