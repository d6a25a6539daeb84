"""The engine's thread: calls run between steps in their order, and no fault of one stops it."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from outrider_cloud.build import build_engine
from outrider_cloud.engine.config import EngineConfig
from outrider_cloud.engine.events import Committed, Event, Pace, Request
from outrider_cloud.engine.thread import EngineThread
from outrider_shared.errors import PromptError, UnavailableError
from outrider_shared.ids import SessionId
from support.rig import GREEDY, plain

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from outrider_cloud.model.loading import LoadedModel

PROMPT = (11, 42, 7)
WAIT_S = 20.0


@pytest.fixture
def thread(tiny: LoadedModel) -> Iterator[EngineThread]:
    running = EngineThread(build_engine(tiny, EngineConfig(kv_tokens=1024, hold_s=0.05)))
    running.start()
    yield running
    running.stop()


class Listener:
    """Collects events, and tells when the last has come."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.done = threading.Event()

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, Committed) and event.finish is not None:
            self.done.set()

    def tokens(self) -> list[int]:
        return [token for event in self.events if isinstance(event, Committed) for token in event.tokens]


def request(name: str, pace: Pace = Pace.AHEAD) -> Request:
    return Request(SessionId(name), PROMPT, 6, GREEDY, ignore_eos=True, pace=pace)


@pytest.mark.parametrize("pace", Pace)
def test_a_session_runs_by_itself(thread: EngineThread, tiny_folder: Path, pace: Pace):
    """Also one that waits for drafts that never come: the thread wakes up when its wait is over."""
    listener = Listener()
    thread.ask(lambda engine: engine.open(request("session", pace), listener)).result(WAIT_S)
    assert listener.done.wait(WAIT_S)
    assert listener.tokens() == list(plain(tiny_folder, PROMPT, 6))


def test_a_refusal_reaches_the_asker_and_the_thread_goes_on(thread: EngineThread):
    listener = Listener()
    with pytest.raises(PromptError, match="empty"):
        thread.ask(lambda engine: engine.open(Request(SessionId("none"), (), 6), listener)).result(WAIT_S)
    thread.post(lambda _: 1 / 0)
    assert thread.ask(lambda engine: len(engine.sessions)).result(WAIT_S) == 0


def test_calls_run_in_the_order_they_were_posted(thread: EngineThread):
    order: list[int] = []
    for number in range(50):
        thread.post(lambda _, number=number: order.append(number))
    thread.ask(lambda _: None).result(WAIT_S)
    assert order == list(range(50))


def test_a_bug_in_a_step_does_not_end_the_thread(thread: EngineThread):
    def spoil(engine) -> None:
        engine.step = lambda: 1 / 0

    thread.ask(spoil).result(WAIT_S)
    assert thread.ask(lambda engine: engine.config.hold_s).result(WAIT_S) == 0.05


def test_a_stopped_engine_takes_no_more_calls(tiny: LoadedModel):
    running = EngineThread(build_engine(tiny, EngineConfig(kv_tokens=1024)))
    running.start()
    running.stop()
    with pytest.raises(UnavailableError, match="stopped"):
        running.ask(lambda _: None)


def test_calls_that_came_behind_the_stop_are_refused_and_do_not_hang(tiny: LoadedModel):
    running = EngineThread(build_engine(tiny, EngineConfig(kv_tokens=1024)))
    running.start()
    gate, stopper = threading.Event(), threading.Thread(target=running.stop)
    running.post(lambda _: gate.wait(WAIT_S) and None)
    stopper.start()
    while running._mailbox.empty():
        gate.wait(0.01)
    late = running.ask(lambda _: "never")
    gate.set()
    stopper.join(WAIT_S)
    with pytest.raises(UnavailableError, match="stopped"):
        late.result(WAIT_S)


def test_a_call_whose_asker_has_gone_is_not_run(thread: EngineThread, monkeypatch: pytest.MonkeyPatch):
    faults: list[str] = []
    monkeypatch.setattr("outrider_cloud.engine.thread._log.exception", faults.append)
    gate, ran = threading.Event(), []
    thread.post(lambda _: gate.wait(WAIT_S) and None)
    forgotten = thread.ask(lambda _: ran.append("it"))
    assert forgotten.cancel()
    gate.set()
    thread.ask(lambda _: None).result(WAIT_S)
    assert (ran, faults) == ([], [])
