"""The heavy parts of an update in a process of their own, which gets the processor time that nobody else wants.

    this process --stdin--> (part, arguments), pickled, one after the other
                 <-stdout-- share of the download ..., then the result or the error

Why a process and not a thread: a thread of low priority holds Python's lock while it is not run, and answers would
wait for it. Beside that, a pack that crashes the runtime at its self-test ends this process and nothing else, and work
that is cancelled ends at once. A part that is not through after a minute is begun again, or goes on, at nice 10: a
device that is busy all the time would never update otherwise. While answers are made it takes turns (`turns`).

When the device's program ends in whatever way, stdin ends and so does this. It may be stopped just then, so it is in a
process group of its own, which POSIX sends SIGHUP and SIGCONT when it is orphaned; where init is of our session, as in
containers, it is not, but Linux kills it.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import pickle
import queue
import signal
import struct
import sys
import threading
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import structlog

from outrider_edge.agent.config import AgentConfig
from outrider_edge.agent.disk import Disk, finished
from outrider_edge.agent.update.http import new_pool
from outrider_edge.agent.update.slots import Slots
from outrider_edge.agent.update.trust import Catalogue
from outrider_edge.agent.update.turns import take_turns
from outrider_edge.agent.update.work import INCOMING, Fits, Part, Share, Source, Work
from outrider_shared.errors import InternalError, OutriderError, SelfTestError
from outrider_shared.logs import configure_logs
from outrider_shared.packs import read_pack

if TYPE_CHECKING:
    from collections.abc import Callable

    from outrider_edge.agent.update.turns import Answering

_LENGTH = struct.Struct("!I")
_NICE, _LAST_S = 10, 5.0
_PR_SET_PDEATHSIG = 1
_log = structlog.get_logger()


class Aside:
    """A `Doer`.

    Args:
        file: `agent.toml`, or its folder.
        base: The pack that is used while none was installed.
        host: Who answers, and goes before.
        patient_s: How long a part may take with nothing but the time that is left over.
    """

    def __init__(self, file: Path, base: Path, host: Answering, *, patient_s: float = 60.0) -> None:
        self._arguments, self._patient_s, self._host = (str(file), str(base)), patient_s, host
        self._idle = True
        self._process: asyncio.subprocess.Process | None = None
        self._turns: asyncio.Task[None] | None = None

    async def do(self, part: Part, *args: Any, progress: Callable[[float], None] = lambda _share: None) -> Any:
        """See `Doer`; a process that ends meanwhile is an error like any other."""
        if self._idle:
            with contextlib.suppress(TimeoutError):
                return await asyncio.wait_for(self._do(part, args, progress), self._patient_s)
            _log.info("fleet_update_hurries", part=str(part), after_s=self._patient_s)
            self._idle = False
        return await self._do(part, args, progress)

    async def _do(self, part: Part, args: tuple[Any, ...], progress: Callable[[float], None]) -> Any:
        process = self._process or await self._start()
        try:
            assert process.stdin is not None, "it was asked for"
            process.stdin.write(_framed((part, args)))
            answer = await self._answer(process, progress)
        except (OSError, asyncio.IncompleteReadError):
            with contextlib.suppress(TimeoutError):  # to kill what is dead already loses its status
                await asyncio.wait_for(process.wait(), _LAST_S)
            raise _died(part, await self._ended()) from None
        except BaseException:
            await self._ended()
            raise
        if isinstance(answer, OutriderError):
            raise answer
        return answer

    async def close(self) -> None:
        """See `Doer`."""
        self._idle = True
        await self._ended()

    async def _start(self) -> asyncio.subprocess.Process:
        command = (sys.executable, "-m", __name__, *self._arguments, *(["idle"] if self._idle else []))
        pipe = asyncio.subprocess.PIPE
        self._process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, process_group=0)
        self._turns = asyncio.create_task(take_turns(self._process, self._host))
        return self._process

    @staticmethod
    async def _answer(process: asyncio.subprocess.Process, progress: Callable[[float], None]) -> Any:
        assert process.stdout is not None, "it was asked for"
        while True:
            (length,) = _LENGTH.unpack(await process.stdout.readexactly(_LENGTH.size))
            answer = pickle.loads(await process.stdout.readexactly(length))  # noqa: S301 - our own child wrote it
            if not isinstance(answer, Share):
                return answer
            await finished(progress, answer.done)  # it writes

    async def _ended(self) -> int:
        """End it; returns its status."""
        process, self._process = self._process, None
        if process is None:
            return 0
        if self._turns is not None:
            self._turns.cancel()
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        return await asyncio.shield(process.wait())


def _died(part: Part, status: int) -> OutriderError:
    how = f"signal {-status}" if status < 0 else f"status {status}"
    if part is Part.TRY:
        return SelfTestError(f"the process that tried the pack ended with {how}")
    return InternalError(f"the process that was to {part} ended with {how}")


def _framed(message: object) -> bytes:
    data = pickle.dumps(message)
    return _LENGTH.pack(len(data)) + data


# In the process


def main(file: str, base: str, idle: str = "") -> None:
    """Do what stdin asks for until it ends."""
    _end_with_parent()
    _step_aside(idle=bool(idle))
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever prints does not print into the answers
    configure_logs()
    asked: queue.SimpleQueue[tuple[Part, tuple[Any, ...]]] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(sys.stdin.buffer, asked), daemon=True).start()
    work = _work(Path(file), Path(base))
    while True:
        part, args = asked.get()
        _tell(out, _done(work, part, args, lambda share: _tell(out, Share(share))))


def _work(file: Path, base: Path) -> Work:
    config, disk = AgentConfig.load(file), Disk()
    slots = Slots(disk, config.state / "slots", base)
    pool = new_pool(config.ca, config.folder / "device.pem", config.folder / "device.key")
    catalogue = Catalogue(config.state / "tuf", config.artifacts, config.root, pool)
    fits = Fits(read_pack(base).manifest.tokenizer_fingerprint, config.device_class)
    return Work(config.state / INCOMING, Source(catalogue, pool, config.artifacts), slots, fits, disk)


def _step_aside(*, idle: bool) -> None:
    """Answers come first: all of a processor that they want, or nine tenths of it."""
    if idle:
        with contextlib.suppress(AttributeError, OSError):  # not Linux, or not allowed
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
            return
    os.nice(_NICE)
    with contextlib.suppress(AttributeError, OSError):
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def _end_with_parent() -> None:
    """Whoever is stopped does not see its stdin end."""
    with contextlib.suppress(AttributeError, OSError):  # not Linux
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _listen(source: IO[bytes], asked: queue.SimpleQueue[tuple[Part, tuple[Any, ...]]]) -> None:
    while head := source.read(_LENGTH.size):
        asked.put(pickle.loads(source.read(_LENGTH.unpack(head)[0])))  # noqa: S301 - our own parent wrote it
    os._exit(0)  # whatever is under way can be done again


def _done(work: Work, part: Part, args: tuple[Any, ...], progress: Callable[[float], None]) -> Any:
    more = (progress,) if part is Part.GET else ()
    try:
        return getattr(work, part)(*args, *more)
    except OutriderError as error:
        return error
    except Exception as error:  # noqa: BLE001 - told to who asked
        _log.exception("fleet_update_work_failed", part=str(part))
        return InternalError(f"{part}: {type(error).__name__}: {error}")


def _tell(out: IO[bytes], message: object) -> None:
    out.write(_framed(message))
    out.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
