"""Blocks of one size at fixed times, so that sizes and times on the network tell nothing of what they carry.

How many tokens a commit brings, and when, identifies prompts even under TLS (arXiv 2411.01076). With padding, messages
are cut into blocks that leave on a schedule that was fixed when the stream began, full, partly full or empty.

Rules:
    * Each direction sends one block per interval, from its first to its last, whatever there is to say.
    * A block that is late, since the network or the machine was, moves none of the others; a missed one is left out.
    * `Open` travels in one block of the smallest class of 1 KiB, 4 KiB, ... that holds it: the length of a prompt is
      told to a factor of four. Nothing else changes the size of a block.
    * The cloud ends the stream, after a multiple of a round: the length of an answer is told to a round.

Not hidden: that a device asks, when, and from where.
"""

from __future__ import annotations

import asyncio
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from outrider_shared.errors import ConfigError, OutriderError, ProtocolError
from outrider_shared.packing import pack_varints
from outrider_wire.v1 import verifier_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

# Bytes of a block that say how many of the others are content.
_HEAD = 4
# Larger classes of blocks, for `Open`; the largest fits into the largest message that services take.
_CLASSES = (*(1 << bits for bits in range(10, 20, 2)), (1 << 20) - 64)
_BLOCK_BYTES, _INTERVAL_S, _ROUND_S = (64, 16_384), (0.005, 1.0), (0.0, 30.0)
_LENGTH_BYTES = 4


@dataclass(frozen=True, slots=True)
class Padding:
    """How a stream is padded.

    Attributes:
        block_bytes: Of a block.
        interval_s: Between blocks, each way.
        round_s: Streams last a multiple of it.
    """

    block_bytes: int = 128
    interval_s: float = 0.02
    round_s: float = 2.0

    def __post_init__(self) -> None:
        for name, (least, most) in (("block_bytes", _BLOCK_BYTES), ("interval_s", _INTERVAL_S), ("round_s", _ROUND_S)):
            if not least <= getattr(self, name) <= most:
                raise ConfigError(f"padding {name} is {getattr(self, name):g}", hint=f"from {least:g} to {most:g}")

    @property
    def room(self) -> int:
        """Bytes of content in a block."""
        return self.block_bytes - _HEAD

    @property
    def round_blocks(self) -> int:
        """Blocks of a round."""
        return max(1, round(self.round_s / self.interval_s))

    @classmethod
    def parse(cls, text: str) -> Padding | None:
        """From a setting: `off` (or nothing), `on`, or BYTES/INTERVAL such as `256/20ms`.

        Raises:
            ConfigError: if it is none of these, or out of range.
        """
        if text in {"", "off"}:
            return None
        if text == "on":
            return cls()
        found = re.fullmatch(r"(\d+)/(\d+(?:\.\d+)?)ms", text)
        if found is None:
            raise ConfigError(f"padding is {text!r}", hint="write off, on, or BYTES/INTERVAL such as 256/20ms")
        return cls(int(found[1]), float(found[2]) / 1e3)

    def to_wire(self) -> pb.PaddingRule:
        """What the cloud is asked for."""
        return pb.PaddingRule(
            block_bytes=self.block_bytes, interval_us=round(self.interval_s * 1e6), round_blocks=self.round_blocks
        )

    @classmethod
    def from_wire(cls, rule: pb.PaddingRule) -> Self:
        """A rule whose bounds were checked.

        Raises:
            ProtocolError: if it asks for too much or too little.
        """
        interval_s = rule.interval_us / 1e6
        try:
            return cls(rule.block_bytes, interval_s, rule.round_blocks * interval_s)
        except ConfigError as error:
            raise ProtocolError(error.message, hint=error.hint) from None


class BlockWriter:
    """Messages in, blocks out."""

    def __init__(self, padding: Padding) -> None:
        self._padding = padding
        self._queue = bytearray()
        self._whole = 0

    @property
    def waiting(self) -> int:
        """Bytes that no block has taken yet."""
        return len(self._queue)

    def put(self, message: bytes, *, whole: bool = False) -> None:
        """Queue a message; with `whole`, up to its end the next block takes all, whatever class that needs.

        An empty message is the end of the sequence.
        """
        self._queue += pack_varints([len(message)]) + message
        if whole:
            self._whole = len(self._queue)

    def next(self) -> bytes:
        """The next block."""
        size = self._padding.block_bytes
        if self._whole:
            needed = max(size, self._whole + _HEAD)
            size = next((c for c in _CLASSES if c >= needed), needed)
        self._whole = 0
        content = bytes(self._queue[: size - _HEAD])
        del self._queue[: size - _HEAD]
        return len(content).to_bytes(_HEAD, "little") + content + bytes(size - _HEAD - len(content))


class BlockReader:
    """Blocks in, messages out.

    Args:
        max_message_bytes: Longest message that is taken.

    Attributes:
        ended: The other side has no more to say.
    """

    def __init__(self, max_message_bytes: int) -> None:
        self._most = max_message_bytes
        self._buffer = bytearray()
        self.ended = False

    def feed(self, block: bytes) -> list[bytes]:
        """Messages that this block completes.

        Raises:
            ProtocolError: if the block is none, or a message is too long.
        """
        count = int.from_bytes(block[:_HEAD], "little")
        if len(block) < _HEAD or count > len(block) - _HEAD:
            raise ProtocolError(f"a block of {len(block)} bytes says that {count} of them are content")
        self._buffer += block[_HEAD : _HEAD + count]
        messages: list[bytes] = []
        while not self.ended and (message := self._pop()) is not None:
            if message:
                messages.append(message)
            else:
                self.ended = True
        return messages

    def _pop(self) -> bytes | None:
        length = shift = 0
        for used, byte in enumerate(self._buffer[:_LENGTH_BYTES], start=1):
            length |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return self._take(used, length)
        if shift >= 7 * _LENGTH_BYTES:
            raise ProtocolError(f"the length of a message is longer than {_LENGTH_BYTES} bytes")
        return None

    def _take(self, used: int, length: int) -> bytes | None:
        if length > self._most:
            raise ProtocolError(f"a message of {length} bytes came in blocks", hint=f"at most {self._most} are taken")
        if len(self._buffer) < used + length:
            return None
        message = bytes(self._buffer[used : used + length])
        del self._buffer[: used + length]
        return message


class PacedSender:
    """Sends blocks on schedule.

    Args:
        padding: The schedule.
        send: Sends one block; returns when the transport took it.
    """

    def __init__(self, padding: Padding, send: Callable[[bytes], Awaitable[None]]) -> None:
        self._padding, self._send = padding, send
        self._writer = BlockWriter(padding)
        self._begun, self._room = asyncio.Event(), asyncio.Event()
        self._failure: OutriderError | None = None
        self.ended = False

    async def put(self, message: bytes, *, whole: bool = False) -> None:
        """Queue a message; returns when no more than a block's worth waits.

        Raises:
            OutriderError: what sending failed with.
        """
        self._writer.put(message, whole=whole)
        self._begun.set()
        while self._failure is None and self._writer.waiting > self._padding.room:
            self._room.clear()
            await self._room.wait()
        if self._failure is not None:
            raise self._failure

    def end(self) -> None:
        """Nothing more will be put; blocks go on."""
        if not self.ended:
            self.ended = True
            self._writer.put(b"")

    async def run(self, *, closes: bool, begin: bool = False) -> None:
        """Send blocks until cancelled; with `closes`, until the round in which all was said.

        Args:
            closes: Whether this side ends the stream.
            begin: Do not wait for the first message.

        Raises:
            OutriderError: what sending failed with.
        """
        if not begin:
            await self._begun.wait()
        clock, interval_s = asyncio.get_running_loop().time, self._padding.interval_s
        started, number, sent = clock(), 0, 0
        try:
            while True:
                await self._send(self._writer.next())
                sent += 1
                if self._writer.waiting <= self._padding.room:
                    self._room.set()
                if closes and self.ended and not self._writer.waiting and sent % self._padding.round_blocks == 0:
                    return
                number = max(number + 1, math.ceil((clock() - started) / interval_s))
                await asyncio.sleep(started + number * interval_s - clock())
        except OutriderError as error:
            self._failure = error
            raise
        finally:
            self._room.set()
