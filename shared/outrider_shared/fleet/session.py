"""Staying connected: connect, subscribe, say birth, deliver; when it breaks, wait with jitter and begin again.

Wills and births have numbers (`bd`), so the options of each connection are asked for anew. The handler gets each
message and the connection; a message is acknowledged when the handler returns, so what it did must be safe to do
twice. An `OutriderError` of the handler is told to `on_error` and the message is acknowledged all the same: it would
fail again.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import structlog

from outrider_shared.errors import ConfigError, OutriderError, RefusedError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from outrider_shared.fleet.transport import Broker, Connect, Connection, Message

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Retry:
    """Exponential waits with full jitter, so that a fleet does not come back as one wave.

    Attributes:
        first_s, most_s: Upper bounds of the first wait and of any.
    """

    first_s: float = 0.5
    most_s: float = 60.0
    random: random.Random = field(default_factory=random.Random, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 0 < self.first_s <= self.most_s:
            raise ConfigError(f"retry waits from {self.first_s} to {self.most_s} s")

    def wait_s(self, failures: int) -> float:
        """Seconds to wait after that many failures in a row (1 for the first)."""
        return self.random.uniform(0.0, min(self.most_s, self.first_s * 2.0 ** min(failures - 1, 32)))


class FleetSession:
    """One client's life on the broker.

    Args:
        broker: Where to connect.
        options: Called before each connection.
        filters: What to subscribe to.
        on_connect: Called when the subscriptions stand; publishes birth. Raising `UnavailableError` starts over.
        on_message: Called for each message.
        on_error: Told what a handler refused, with the message.
        retry: How long to wait between tries.
        own_ack: The handler acknowledges by itself, later (for batches).
    """

    def __init__(
        self,
        broker: Broker,
        options: Callable[[], Connect],
        filters: tuple[str, ...],
        on_connect: Callable[[Connection], Awaitable[None]],
        on_message: Callable[[Connection, Message], Awaitable[None]],
        *,
        on_error: Callable[[Message, OutriderError], None] | None = None,
        retry: Retry | None = None,
        own_ack: bool = False,
    ) -> None:
        self._broker, self._options, self._filters = broker, options, filters
        self._on_connect, self._on_message = on_connect, on_message
        self._on_error = on_error or (lambda _message, _error: None)
        self._retry = retry or Retry()
        self._own_ack = own_ack
        self._connected = asyncio.Event()
        self.connection: Connection | None = None

    async def connected(self) -> Connection:
        """The connection, as soon as there is one."""
        while self.connection is None:
            await self._connected.wait()
        return self.connection

    async def run(self) -> None:
        """Stay connected until cancelled.

        Raises:
            RefusedError: if the broker does not take this client: waiting would not help.
        """
        failures = 0
        while True:
            try:
                await self._once()
            except UnavailableError as error:
                failures = 1 if self._was_connected() else failures + 1
                wait_s = self._retry.wait_s(failures)
                _log.info("fleet_reconnect", reason=error.message, wait_s=round(wait_s, 2))
            await asyncio.sleep(wait_s)

    def _was_connected(self) -> bool:
        was, self.connection = self.connection is not None, None
        self._connected.clear()
        return was

    async def _once(self) -> None:
        connection = await self._broker.connect(self._options())
        try:
            await connection.subscribe(*self._filters)
            await self._on_connect(connection)
            self.connection = connection
            self._connected.set()
            while True:
                message = await connection.receive()
                try:
                    await self._on_message(connection, message)
                except UnavailableError:
                    raise
                except OutriderError as error:
                    self._on_error(message, error)
                if not self._own_ack:
                    connection.ack(message)
        except (UnavailableError, RefusedError):
            connection.drop()
            raise
        except asyncio.CancelledError:
            # Whoever cancels has said goodbye, if `connection` was there to say it with; else the Will has to.
            if self.connection is None:
                connection.drop()
            else:
                await connection.close()
            raise
