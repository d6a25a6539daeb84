"""A proxy in a process of its own, told what to do over its standard input: what it emulates costs the caller nothing.

One JSON object a line goes in: {"set": {field of LinkProfile: value}} changes the link, {"fault": {"kind": ...,
"duration_s": ...}} breaks it, {} does nothing. For each, one line comes out: the counters, or {"error": ...}; for
{"frames": true} the HTTP/2 frames. {"listen": true} notes TLS records of connections from now on, {"heard": true} gives
and forgets them: [[seconds, bytes, up], ...]. The first line, before any request, is {"address": HOST:PORT}.
"""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Self

from outrider_shared.emulator.faults import Fault, FaultKind
from outrider_shared.emulator.proxy import Counters
from outrider_shared.emulator.records import Heard
from outrider_shared.errors import ConfigError, OutriderError, UnavailableError

if TYPE_CHECKING:
    from types import TracebackType

    from outrider_shared.emulator.profile import LinkProfile
    from outrider_shared.emulator.proxy import LinkProxy

_REQUESTS = ("set", "fault", "frames", "listen", "heard")
_STOP_S = 5.0
_LINE_BYTES = 1 << 24


async def obey(proxy: LinkProxy) -> None:
    """Serve the requests of standard input until it ends; in the proxy's process."""
    _tell({"address": proxy.address})
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        try:
            request = request_of(line)
            apply(proxy, request)
        except OutriderError as error:
            _tell({"error": str(error)})
        else:
            _tell(answer_to(proxy, request))


def request_of(line: bytes) -> dict[str, Any]:
    """A line as a request.

    Raises:
        ConfigError: if it is none.
    """
    try:
        request = json.loads(line)
    except ValueError:
        request = None
    if not isinstance(request, dict):
        raise ConfigError("a request is a JSON object on a line of its own", hint='such as {"set": {"rtt_s": 0.05}}')
    if unknown := request.keys() - _REQUESTS:
        raise ConfigError(f"there is no request {min(unknown)!r}", hint=f"there are {', '.join(_REQUESTS)}")
    for name in ("set", "fault"):
        if not isinstance(request.get(name, {}), dict):
            raise ConfigError(f"what {name!r} takes is a JSON object")
    return request


def apply(proxy: LinkProxy, request: dict[str, Any]) -> None:
    """Do what one request says.

    Raises:
        ConfigError: if a field or a kind of fault does not exist, or a value is out of range.
    """
    if "set" in request:
        proxy.set_profile(proxy.profile.changed(request["set"]))
    if "listen" in request:
        proxy.listen()
    if "fault" in request:
        proxy.inject(_fault(request["fault"]))


def _fault(fields: dict[str, Any]) -> Fault:
    kind, duration_s = fields.get("kind"), fields.get("duration_s", 0.0)
    if kind not in list(FaultKind):
        raise ConfigError(f"there is no fault of kind {kind!r}", hint=f"there are {', '.join(FaultKind)}")
    if not isinstance(duration_s, int | float):
        raise ConfigError(f"a fault's duration_s is {duration_s!r}", hint="it must be a number of seconds")
    return Fault(0.0, FaultKind(kind), float(duration_s))


def answer_to(proxy: LinkProxy, request: dict[str, Any]) -> dict[str, Any]:
    """What one request asks for."""
    if "frames" in request:
        return proxy.frames.as_dict()
    if "heard" in request:
        return {"heard": [[record.at_s, record.bytes, record.up] for record in proxy.take_heard()]}
    return proxy.counters.as_dict()


def _tell(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


class LinkProcess:
    """The caller's handle; use as an async context manager.

    Args:
        to: HOST:PORT of the server.
        profile: How the link begins.
        seed: Of all randomness.

    Attributes:
        address: HOST:PORT that it listens on.
        status: How it ended; None before. -9: it did not end by itself.
    """

    def __init__(self, to: str, profile: LinkProfile, seed: int = 0) -> None:
        self._to, self._profile, self._seed = to, profile, seed
        self.address = ""
        self.status: int | None = None

    async def __aenter__(self) -> Self:
        command = [sys.executable, "-m", "outrider_shared.emulator.cli", "--control", "--listen", "127.0.0.1:0"]
        pipe = asyncio.subprocess.PIPE
        self._process = await asyncio.create_subprocess_exec(
            *command, "--to", self._to, "--seed", str(self._seed), stdin=pipe, stdout=pipe, limit=_LINE_BYTES
        )
        try:
            self.address = (await self._read())["address"]
            await self.ask({"set": asdict(self._profile)})
        except BaseException:  # whoever is cancelled here leaves no process behind
            await self._end()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._end()

    async def _end(self) -> None:
        try:
            async with asyncio.timeout(_STOP_S):
                await self._process.communicate(b"")  # with no input at all Python 3.11 does not close it
        except TimeoutError:
            self._process.kill()
            await self._process.communicate()
        self.status = self._process.returncode

    async def set(self, profile: LinkProfile) -> None:
        """Change the link."""
        await self.ask({"set": asdict(profile)})

    async def counters(self) -> Counters:
        """Totals so far."""
        return Counters(**await self.ask({}))

    async def frames(self) -> dict[str, dict[str, list[int]]]:
        """HTTP/2 frames so far: direction, kind, [frames, bytes]; empty with TLS."""
        return await self.ask({"frames": True})

    async def listen(self) -> None:
        """Note TLS records of connections from now on."""
        await self.ask({"listen": True})

    async def heard(self) -> list[Heard]:
        """TLS records since the last time."""
        return [Heard(*record) for record in (await self.ask({"heard": True}))["heard"]]

    async def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send one request and read its answer.

        Raises:
            ConfigError: if the process refused it.
            UnavailableError: if the process is gone.
        """
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        answer = await self._read()
        if "error" in answer:
            raise ConfigError(f"the emulated link refused: {answer['error']}")
        return answer

    async def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        if not line:
            raise UnavailableError("the emulated link has ended", hint="its own message is above")
        answer: dict[str, Any] = json.loads(line)
        return answer
