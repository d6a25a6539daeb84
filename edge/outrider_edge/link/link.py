"""What the session needs of a transport. Tests put an in-memory twin in its place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from outrider_wire.v1 import verifier_pb2 as pb


class Link(Protocol):
    """One stream to the cloud. All methods raise `OutriderError` kinds; a broken stream is an `UnavailableError`."""

    @property
    def peer(self) -> str:
        """Address at the other end."""

    async def send(self, message: pb.DecodeRequest) -> None:
        """Send one message; returns when the transport took it."""

    async def receive(self) -> pb.DecodeResponse | None:
        """The next message; None when the cloud ended the stream in order."""

    async def half_close(self) -> None:
        """Say that nothing more will be sent."""

    async def close(self) -> None:
        """Let go of the stream, finished or not. Never raises."""


class Connector(Protocol):
    """Opens links."""

    @property
    def where(self) -> str:
        """Address or addresses that it tries, as people read them."""

    async def connect(self) -> Link:
        """A fresh stream.

        Raises:
            UnavailableError: if the cloud cannot be reached.
        """

    def note(self, peer: str, *, alive: bool) -> None:
        """A session heard of that peer, or its stream broke there."""


class Probed(Connector, Protocol):
    """A connector that can ask whether its cloud is there."""

    async def probe(self) -> object:
        """Ask the cloud for any answer.

        Raises:
            OutriderError: if none came.
        """
