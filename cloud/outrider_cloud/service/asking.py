"""Makes an `Open` whole that names the beginning of its prompt: from memory, or by asking the device for it.

A device need not wait for the answer to go on drafting, so drafts, pings and a cancel may come before the prompt does.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NamedTuple

from outrider_shared.errors import ProtocolError
from outrider_shared.wire import NODES_BEFORE_OPENED
from outrider_wire.v1 import verifier_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from outrider_cloud.service.memory import LogMemory


class WholeOpen(NamedTuple):
    """An `Open` of which all is known.

    Attributes:
        message: It, or the one that the device sent when it was asked.
        prefix: The tokens that its prefix names; empty if it names none.
        requests: What comes after it.
    """

    message: pb.Open
    prefix: tuple[int, ...]
    requests: AsyncIterator[pb.DecodeRequest]


async def whole_open(
    message: pb.Open,
    requests: AsyncIterator[pb.DecodeRequest],
    memory: LogMemory,
    device: str,
    send: Callable[[pb.DecodeResponse], Awaitable[None]],
    limit_s: float,
) -> WholeOpen:
    """Look up what an `Open` names, and ask for the prompt if it is not held.

    Args:
        message: As it came.
        requests: What comes after it.
        memory: Logs that devices need not send again.
        device: Who the peer is.
        send: Sends one message to it.
        limit_s: How long the device may take to send the whole prompt.

    Raises:
        ProtocolError: if something else than the prompt comes.
        TimeoutError: if it does not come in time.
    """
    if not message.prefix:
        return WholeOpen(message, (), requests)
    prefix = memory.find(message.prefix, device, message.prefix_length, message.prefix_digest)
    if prefix is not None:
        return WholeOpen(message, prefix, requests)
    await send(pb.DecodeResponse(need_prompt=pb.NeedPrompt()))
    early: list[pb.DecodeRequest] = []
    async with asyncio.timeout(limit_s):
        async for request in requests:
            kind = request.WhichOneof("body")
            if kind == "open" and not request.open.prefix:
                return WholeOpen(request.open, (), _after(early, requests))
            if kind == "ping":
                await send(pb.DecodeResponse(pong=pb.Pong(number=request.ping.number)))
            elif kind in {"draft", "cancel"} and len(early) < NODES_BEFORE_OPENED:
                early.append(request)
            elif kind is not None:
                raise ProtocolError(f"a message of kind {kind!r} came, the whole prompt was asked for")
    raise ProtocolError("the stream ended before the whole prompt came")


async def _after(
    early: list[pb.DecodeRequest], requests: AsyncIterator[pb.DecodeRequest]
) -> AsyncIterator[pb.DecodeRequest]:
    for request in early:
        yield request
    async for request in requests:
        yield request
