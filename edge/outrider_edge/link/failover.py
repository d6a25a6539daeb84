"""Several clouds behind one connector: the first that is well, in the order of preference.

Rules:
    * A live session stays where it is; only a broken one moves. Text does not depend on where it runs.
    * New streams go to the address in use. After a failure the next address takes its place at once; the failed one is
      left alone for a jittered, growing time.
    * An address that does not answer within `hedge_s` gets company: the next one is tried beside it, the first wins.
    * While a less preferred address is in use, those before it are asked in the background, in their order; when one
      answers, new streams return to it.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import structlog

from outrider_edge.link.backoff import Backoff
from outrider_shared.errors import ConfigError, OutriderError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from types import TracebackType

    from outrider_edge.link.link import Link, Probed

_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Health:
    """What is remembered of one address.

    Attributes:
        failures: In a row.
        retry_at: Not before this time (loop clock, seconds).
        last_error: Why it failed last; empty if it never did.
    """

    failures: int = 0
    retry_at: float = 0.0
    last_error: str = ""


class FailoverConnector:
    """A connector over others; an async context manager as they are.

    Args:
        connectors: By address, the most preferred first.
        backoff: How long an address that failed is left alone.
        hedge_s: How long the first address has for itself.
        return_s: About how often a preferred address is asked while another is in use.
    """

    def __init__(
        self,
        connectors: Mapping[str, Probed],
        backoff: Backoff | None = None,
        *,
        hedge_s: float = 0.3,
        return_s: float = 2.0,
    ) -> None:
        if not connectors:
            raise ConfigError("no cloud address is given", hint="give at least one HOST:PORT")
        self._connectors = dict(connectors)
        self._backoff = backoff or Backoff(first_s=0.5, most_s=30.0)
        self._hedge_s, self._return_s = hedge_s, return_s
        self._health = {address: Health() for address in self._connectors}
        self._current = next(iter(self._connectors))
        self._returning: asyncio.Task[None] | None = None
        self._stack = contextlib.AsyncExitStack()

    @property
    def where(self) -> str:
        """See `Connector`."""
        return ", ".join(self._connectors)

    @property
    def current(self) -> str:
        """The address that new streams go to."""
        return self._current

    @property
    def health(self) -> Mapping[str, Health]:
        """What is remembered of each address."""
        return self._health

    async def __aenter__(self) -> Self:
        for connector in self._connectors.values():
            if isinstance(connector, contextlib.AbstractAsyncContextManager):
                await self._stack.enter_async_context(connector)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._returning is not None:
            self._returning.cancel()
            await asyncio.gather(self._returning, return_exceptions=True)
        await self._stack.aclose()

    async def connect(self) -> Link:
        """A stream to the best address that takes one; see `Connector`.

        Raises:
            UnavailableError: if none does; names each with its reason.
        """
        tries: dict[asyncio.Task[Link], str] = {}
        waiting = self._candidates()
        try:
            while waiting or tries:
                if waiting:
                    address = waiting.pop(0)
                    tries[asyncio.ensure_future(self._connectors[address].connect())] = address
                done, _ = await asyncio.wait(
                    tries, timeout=self._hedge_s if waiting else None, return_when=asyncio.FIRST_COMPLETED
                )
                for task in done:
                    address = tries.pop(task)
                    error = task.exception()
                    if error is None:
                        self._use(address)
                        return task.result()
                    if not isinstance(error, OutriderError):
                        raise error
                    self._failed(address, error.message)
        finally:
            await _drop(tries)
        told = [(address, health.last_error) for address, health in self._health.items()]
        reasons = "; ".join(error if address in error else f"{address}: {error}" for address, error in told)
        raise UnavailableError(f"no cloud can be reached: {reasons}", hint="is it running, do address and flags fit?")

    def note(self, peer: str, *, alive: bool) -> None:
        """Remember that a peer was heard of, or failed; see `Connector`."""
        if peer not in self._connectors:
            return
        self._connectors[peer].note(peer, alive=alive)
        if alive:
            self._health[peer].failures = 0
            self._health[peer].retry_at = 0.0
        else:
            self._failed(peer, "its stream broke")

    async def probe(self) -> object:
        """Ask the address in use; see `Probed`."""
        return await self._connectors[self._current].probe()

    def _candidates(self) -> list[str]:
        """Whom to try in turn: the one in use, then by preference, those that failed lately last."""
        now = asyncio.get_running_loop().time()
        rank = {address: number for number, address in enumerate(self._connectors)}
        health = self._health

        def order(address: str) -> tuple[float, bool, int]:
            return max(0.0, health[address].retry_at - now), address != self._current, rank[address]

        return sorted(self._connectors, key=order)

    def _use(self, address: str) -> None:
        if address != self._current:
            _log.info("moved to another cloud", address=address, before=self._current)
        self._current = address
        if self._better() and (self._returning is None or self._returning.done()):
            self._returning = asyncio.ensure_future(self._return())

    def _failed(self, address: str, reason: str) -> None:
        health = self._health[address]
        health.failures += 1
        health.retry_at = asyncio.get_running_loop().time() + self._backoff.wait_s(health.failures)
        health.last_error = reason

    def _better(self) -> list[str]:
        """Addresses before the one in use."""
        order = list(self._connectors)
        return order[: order.index(self._current)]

    async def _return(self) -> None:
        """Ask better addresses until the best of them answers; new streams go where one did."""
        while better := self._better():
            await asyncio.sleep(self._return_s / 2 + min(map(self._backoff_s, better)))
            for address in better:
                if self._left_alone_s(address) <= 0 and await self._answers(address):
                    if address in self._better():  # a stream may have moved meanwhile
                        self._use(address)
                    break

    async def _answers(self, address: str) -> bool:
        try:
            await self._connectors[address].probe()
        except OutriderError as error:
            self._failed(address, str(error))
            return False
        self.note(address, alive=True)
        return True

    def _backoff_s(self, address: str) -> float:
        return max(self._return_s / 2, self._left_alone_s(address))

    def _left_alone_s(self, address: str) -> float:
        return self._health[address].retry_at - asyncio.get_running_loop().time()


async def _drop(tries: Iterable[asyncio.Task[Link]]) -> None:
    """Give up on streams that are being opened, and give back those that are open; nobody waits for them any more."""
    for task in tries:
        task.cancel()
    for found in await asyncio.gather(*tries, return_exceptions=True):
        if not isinstance(found, BaseException):
            await found.close()
