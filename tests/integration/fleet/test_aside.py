"""The heavy parts of an update in a process of their own: what its end, in whatever way, means."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from outrider_edge.agent.host import StandaloneHost
from outrider_edge.agent.update.aside import Aside
from outrider_edge.agent.update.work import Part
from outrider_shared.errors import InternalError, SelfTestError, UnavailableError
from outrider_shared.fleet.artifact import Golden
from outrider_shared.packs import bundled_pack
from support.daemon import ENVIRONMENT
from support.mosquitto import new_fleet

LONG = tuple(Golden((1,) * 20, (2,) * 400) for _ in range(100))  # seconds of work


class Asked:
    """Answers from `asked` to `answered`."""

    def __init__(self) -> None:
        self._idle = asyncio.Event()
        self._idle.set()

    def asked(self) -> None:
        self._idle.clear()

    @property
    def answering(self) -> bool:
        return not self._idle.is_set()

    async def at_rest(self) -> None:
        await self._idle.wait()

    def answered(self) -> None:
        self._idle.set()


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    home = new_fleet(tmp_path_factory.mktemp("fleet") / "f", "d1")
    (home.device_folder("d1") / "state" / "incoming").mkdir(parents=True)
    return home.device_folder("d1")


@pytest.fixture
def aside(file):
    return Aside(file, bundled_pack(), StandaloneHost())


def alive(pid: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


def test_parts_are_done_there_with_low_priority_and_errors_come_back_as_what_they_are(aside):
    async def run():
        assert await aside.do(Part.HOLDING, "0" * 64) is None
        pid = aside._process.pid
        assert os.sched_getscheduler(pid) == os.SCHED_IDLE
        await aside.do(Part.TRY, "", ())
        with pytest.raises(SelfTestError, match="of 5 golden tokens agree"):
            await aside.do(Part.TRY, "", (Golden((1, 2, 3), (1, 1, 1, 1, 1)),))
        with pytest.raises(UnavailableError):  # no server listens there
            await aside.do(Part.LOOK, "draft/int8/x.tar", "0" * 64)
        assert aside._process.pid == pid, "one process for all of an update"
        await aside.close()
        assert not alive(pid)

    asyncio.run(run())


def test_what_does_not_get_done_in_the_time_that_is_left_over_gets_some_of_its_own(file):
    """And the next update begins modestly again."""
    aside = Aside(file, bundled_pack(), StandaloneHost(), patient_s=0.0)

    async def run():
        assert await aside.do(Part.HOLDING, "0" * 64) is None
        pid = aside._process.pid
        assert os.sched_getscheduler(pid) == os.SCHED_BATCH
        assert os.getpriority(os.PRIO_PROCESS, pid) == os.getpriority(os.PRIO_PROCESS, 0) + 10
        await aside.do(Part.TRY, "", ())
        await aside.close()
        aside._patient_s = 120.0
        await aside.do(Part.HOLDING, "0" * 64)
        assert os.sched_getscheduler(aside._process.pid) == os.SCHED_IDLE
        await aside.close()

    asyncio.run(run())


@pytest.mark.parametrize(("part", "error"), [(Part.TRY, SelfTestError), (Part.HOLDING, InternalError)])
def test_a_process_that_crashes_is_a_failed_step_and_the_next_one_gets_another(aside, part, error):
    """A pack that brings the runtime down at its self-test does not bring the device down."""

    async def run():
        await aside.do(Part.HOLDING, "0" * 64)
        os.kill(aside._process.pid, signal.SIGSTOP)
        doing = asyncio.create_task(aside.do(part, *(("", ()) if part is Part.TRY else ("0" * 64,))))
        await asyncio.sleep(0)
        os.kill(aside._process.pid, signal.SIGKILL)
        with pytest.raises(error, match="ended with signal 9"):
            await doing
        assert await aside.do(Part.HOLDING, "0" * 64) is None
        await aside.close()

    asyncio.run(run())


def state(pid: int) -> str:
    return stat(pid)[0]


def cpu_s(pid: int) -> float:
    return (int(stat(pid)[11]) + int(stat(pid)[12])) / os.sysconf("SC_CLK_TCK")


def stat(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def test_while_somebody_waits_for_an_answer_it_has_a_small_share_of_the_time(file):
    """And all of it again once nobody does."""

    async def run():
        host = Asked()
        host.asked()
        aside = Aside(file, bundled_pack(), host)
        starting = asyncio.create_task(aside.do(Part.TRY, "", LONG))
        while aside._process is None:  # noqa: ASYNC110 - it is about to be started
            await asyncio.sleep(0)
        pid = aside._process.pid
        before, began = cpu_s(pid), time.monotonic()
        await asyncio.sleep(1.0)
        assert cpu_s(pid) - before < 0.5 * (time.monotonic() - began)
        host.answered()
        while not starting.done() and cpu_s(pid) - before < 1.0:  # noqa: ASYNC110 - another process works
            await asyncio.sleep(0.01)
        assert not starting.done()
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        assert not alive(pid)

    asyncio.run(asyncio.wait_for(run(), 60))


def test_cancelled_work_ends_at_once(aside):
    async def run():
        await aside.do(Part.HOLDING, "0" * 64)
        pid = aside._process.pid
        doing = asyncio.create_task(aside.do(Part.TRY, "", LONG))
        await asyncio.sleep(0.05)
        doing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await doing
        assert not alive(pid)

    asyncio.run(run())


def test_it_does_not_outlive_the_program_that_started_it(file):
    """SIGKILL of the device's program in the middle of a self-test, while it answers: the other is stopped then."""
    code = (
        "import asyncio, sys, pathlib\n"
        "sys.path.insert(0, sys.argv[2])\n"
        "from outrider_edge.agent.update.aside import Aside\n"
        "from outrider_edge.agent.update.work import Part\n"
        "from outrider_shared.packs import bundled_pack\n"
        "from test_aside import LONG, Asked\n"
        "async def run():\n"
        "    host = Asked()\n"
        "    aside = Aside(pathlib.Path(sys.argv[1]), bundled_pack(), host)\n"
        "    await aside.do(Part.HOLDING, '0' * 64)\n"
        "    print(aside._process.pid, flush=True)\n"
        "    host.asked()\n"
        "    await aside.do(Part.TRY, '', LONG)\n"
        "asyncio.run(run())\n"
    )
    here = os.path.dirname(__file__)  # noqa: PTH120 - for another process
    command = [sys.executable, "-c", code, str(file), here]
    with subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE) as parent:
        pid = int(parent.stdout.readline())
        end = time.monotonic() + 30
        while state(pid) != "T":
            assert time.monotonic() < end
            time.sleep(0.001)
        parent.kill()
    while alive(pid):
        assert time.monotonic() < end
        time.sleep(0.02)
