"""What the engine does while a device computes a step, with a runner whose forward really runs beside it."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from outrider_cloud.engine.config import EngineConfig
from outrider_cloud.engine.engine import Engine
from outrider_cloud.engine.events import Committed, Failed, Opened, Request
from outrider_cloud.engine.runner import ModelRunner
from outrider_cloud.engine.thread import EngineThread
from outrider_cloud.kernels.platform import cpu_platform
from outrider_shared.ids import SessionId
from outrider_shared.packing import pack_tokens
from outrider_shared.sampling import SamplingParams
from outrider_wire.v1 import verifier_pb2 as pb
from support.rig import GREEDY, Rig, plain

PROMPT, OTHER = (11, 42, 7), (3, 60, 9, 1)
WAIT_S = 20.0
PENALISED = SamplingParams(repetition_penalty=1.3)


class Beside:
    """A flight whose forward runs in a thread, and ends no sooner than `gate` is set."""

    def __init__(self, inner, pool, gate: threading.Event) -> None:
        self._inner, self._pool, self._gate = inner, pool, gate

    def choose(self, shaping) -> None:
        self._inner.choose(shaping)
        self._done = self._pool.submit(self._run)

    def _run(self):
        assert self._gate.wait(WAIT_S), "nothing opened the gate while the forward ran"
        return self._inner.wait()

    def busy(self) -> bool:
        return not self._done.done()

    def wait(self):
        return self._done.result()


class GatedRunner(ModelRunner):
    """A device: computes beside the host. The gate of a step must be opened while it runs.

    Attributes:
        gates: Of the steps so far.
        launched: Set with the first of them.
        closed: Whether the next step's gate is closed.
    """

    def __init__(self, loaded, config: EngineConfig) -> None:
        super().__init__(loaded, cpu_platform(exact=config.exact), config)
        self._pool = ThreadPoolExecutor(1)
        self.gates: list[threading.Event] = []
        self.launched = threading.Event()
        self.closed = False

    def launch(self, batch) -> Beside:
        gate = threading.Event()
        self.gates.append(gate)
        if not self.closed:
            gate.set()
        self.launched.set()
        return Beside(super().launch(batch), self._pool, gate)


@pytest.fixture
def rig(tiny) -> Rig:
    made = Rig(tiny)
    made.runner = GatedRunner(tiny, made.config)
    made.engine = Engine(made.runner, made.config, lambda: made.now)
    return made


def anything(_busy) -> None:
    """Work of the caller's."""


def test_a_commit_is_told_while_the_next_step_runs(rig):
    """The forward of the second step ends only once the first one's event has come."""
    events: list = []

    def sink(event) -> None:
        events.append(event)
        if isinstance(event, Committed):
            rig.runner.gates[-1].set()

    rig.engine.open(Request(SessionId("told"), PROMPT, 4, GREEDY, ignore_eos=True, own_drafts=False), sink)
    rig.engine.step(anything)
    assert [type(event) for event in events] == [Opened]
    rig.runner.closed = True
    rig.engine.step(anything)
    assert [type(event) for event in events] == [Opened, Committed]


def test_penalties_are_looked_up_while_the_forward_is_under_way(rig, monkeypatch):
    """Launched first, then told what changes its logits."""
    order: list[str] = []
    launch, shape = rig.runner.launch, rig.engine._shaper.lay_out
    monkeypatch.setattr(rig.runner, "launch", lambda batch: (order.append("launch"), launch(batch))[1])
    monkeypatch.setattr(rig.engine._shaper, "lay_out", lambda works: (order.append("shape"), shape(works))[1])
    session = rig.open(PROMPT, 2, PENALISED, ignore_eos=True)
    rig.run()
    assert order == ["launch", "shape"] * 2
    assert len(rig.tokens(session)) == 2


def test_without_work_beside_it_a_step_tells_at_its_end(rig):
    session = rig.open(PROMPT, 4, ignore_eos=True)
    rig.step()
    assert len(rig.tokens(session)) == 1


def test_the_last_commit_is_told_when_nothing_is_left_to_run(rig):
    """A waiting device must not wait for a step that never comes."""
    session = rig.open(PROMPT, 1, ignore_eos=True)
    assert rig.engine.step(anything)
    assert rig.tokens(session) == []
    assert not rig.engine.step(anything)
    assert len(rig.tokens(session)) == 1


def test_mail_is_taken_while_a_step_runs(tiny):
    """A call posted during a forward is what lets that forward end."""
    runner = GatedRunner(tiny, config := EngineConfig(kv_tokens=1024))
    engine = Engine(runner, config)
    engine.stats.step_s = 2 * WAIT_S  # a step of a large model: mail is looked for while it runs
    thread, done = EngineThread(engine), threading.Event()
    runner.closed = True

    def sink(event) -> None:
        if isinstance(event, Committed):
            done.set()

    request = Request(SessionId("mail"), PROMPT, 1, GREEDY, ignore_eos=True, own_drafts=False)
    thread.start()
    thread.ask(lambda engine: engine.open(request, sink)).result(WAIT_S)
    assert runner.launched.wait(WAIT_S)
    thread.post(lambda _: runner.gates[-1].set())
    assert done.wait(WAIT_S)
    thread.stop()


@pytest.mark.parametrize("leave", ["close", "cancel", "park", "spoil"])
def test_a_session_may_leave_while_its_step_runs(rig, tiny, tiny_folder, leave):
    """What the step finds out about it is dropped (a parked one keeps it); the other session is not touched."""
    expected = list(plain(tiny_folder, PROMPT, 6))
    # Others say something else: rows that are taken for a neighbour's show.
    leaver, other = rig.open(PROMPT, 6, ignore_eos=True), rig.open(OTHER, 6, ignore_eos=True)
    rig.step()

    def go(_busy) -> None:
        if leave == "spoil":
            tokens = pack_tokens([1], tiny.vocabulary)
            rig.engine.draft(leaver, pb.Draft(tokens=tokens, count=1, anchor=999))
        else:
            getattr(rig.engine, leave)(leaver)

    rig.engine.step(go)
    rig.engine.tell()
    rig.engine.pool.check()
    if leave == "park":
        assert rig.engine.sessions[leaver].log[len(PROMPT) :] == expected[:2]
        assert rig.resume(leaver, expected[:1])
    else:
        assert leaver not in rig.engine.sessions
        assert rig.tokens(leaver) == expected[:1]
        assert (leave == "spoil") == any(isinstance(event, Failed) for event in rig.events[leaver])
    rig.run()
    assert rig.tokens(other) == list(plain(tiny_folder, OTHER, 6))
    if leave == "park":
        assert [*expected[:1], *rig.tokens(leaver)] == expected


def test_a_session_may_be_resumed_and_drafted_for_while_its_step_runs(rig, tiny, tiny_folder):
    """The new stream's nodes wait for the next step; nothing is told twice."""
    expected = list(plain(tiny_folder, PROMPT, 6))
    session = rig.open(PROMPT, 6, ignore_eos=True)
    rig.draft(session, [expected[0], 3], anchor=len(PROMPT))
    before = rig.events[session]

    def go(_busy) -> None:
        rig.engine.park(session)
        assert rig.resume(session, [])
        rig.draft(session, expected[:4], anchor=len(PROMPT))

    rig.engine.step(go)
    rig.run()
    assert [event for event in before if isinstance(event, Committed)] == []
    assert rig.tokens(session) == expected
    assert rig.commits(session)[-1].usage.steps <= 3


@pytest.mark.parametrize("params", [GREEDY, PENALISED, SamplingParams(temperature=1.0, seed=3)])
def test_answers_are_the_same_with_all_of_it_overlapped(tiny, params):
    """Right and wrong drafts that come while steps run, three sessions at once: the tokens are those of plain steps."""
    calm = Rig(tiny)
    expected = {calm.open([5, n, 9], 12, params, ignore_eos=True): n for n in (1, 2, 3)}
    calm.run()
    rig = Rig(tiny)
    rig.runner = GatedRunner(tiny, rig.config)
    rig.engine = Engine(rig.runner, rig.config, lambda: rig.now)
    sessions = {rig.open([5, n, 9], 12, params, ignore_eos=True): n for n in (1, 2, 3)}

    def draft(_busy) -> None:
        for session, n in sessions.items():
            if rig.engine.sessions[session].finish is None:
                right = calm.tokens(next(name for name, number in expected.items() if number == n))
                made = len(rig.engine.sessions[session].log) - 3
                rig.draft(session, [*right[made + 1 : made + 3], 7], anchor=3 + made)

    while rig.engine.step(draft):
        rig.engine.pool.check()
    assert [rig.tokens(s) for s in sessions] == [calm.tokens(s) for s in expected]
