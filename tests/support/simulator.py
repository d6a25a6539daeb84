"""A whole cloud and its devices in one thread, without sockets or clocks: any order of events can be played.

Messages are real bytes. The network is two queues per stream; a `Chooser` decides what happens next, so that hypothesis
can search the schedules and shrink the ones that fail.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from outrider_cloud.engine.engine import Engine
from outrider_cloud.engine.events import Committed, Event, Failed, Opened, Pace, Request
from outrider_cloud.service.outbox import commit_to_wire, merge
from outrider_edge.session.plan import Action, plan
from outrider_edge.session.state import SessionState
from outrider_shared.ids import SessionId
from outrider_shared.packing import pack_varints, unpack_varints
from outrider_shared.wire import draft_to_wire
from outrider_wire.v1 import verifier_pb2 as pb
from support.grammars import matcher_of

if TYPE_CHECKING:
    import torch

    from outrider_cloud.engine.config import EngineConfig
    from outrider_cloud.engine.runner import Decision, ModelRunner
    from outrider_cloud.engine.schedule import Work
    from outrider_cloud.engine.session import Session
    from outrider_cloud.grammar.matcher import Matcher
    from outrider_edge.session.events import GenerateRequest, Token
    from outrider_edge.session.policy import DraftPolicy
    from outrider_shared.drafting.drafter import Drafter
    from outrider_shared.grammar import Grammar


class Chooser(Protocol):
    """Decides what happens next: a number below `count`."""

    def __call__(self, count: int) -> int: ...


class AtOnce(Executor):
    """Drafts ahead of a step before it instead of beside it: always the same rounds."""

    def submit(self, call, *args):
        """Run it."""
        future: Future = Future()
        future.set_result(call(*args))
        return future


class RecordingEngine(Engine):
    """An engine that keeps the logits from which every committed token was chosen."""

    def __init__(self, runner: ModelRunner, config: EngineConfig, clock, draft_model=None) -> None:
        super().__init__(runner, config, clock, draft_model, AtOnce())
        self.rows: dict[tuple[SessionId, int], torch.Tensor] = {}

    def _run(self, works, meanwhile):
        run = self.runner.run

        def keep(batch, bucket: int = 0) -> torch.Tensor:
            self._logits = run(batch, bucket)
            return self._logits

        self.runner.run = keep
        try:
            return super()._run(works, meanwhile)
        finally:
            del self.runner.run

    def _extend(self, work: Work, decision: Decision, rows: range, tokens: list[int], offsets: list[int]) -> None:
        first = len(work.session.log)
        for depth, offset in enumerate(offsets):
            self.rows[work.session.request.session_id, first + depth] = self._logits[rows[offset]].clone()
        super()._extend(work, decision, rows, tokens, offsets)


@dataclass
class Device:
    """One device with its stream."""

    session_id: SessionId
    request: GenerateRequest
    state: SessionState
    drafter: Drafter | None
    up: deque[bytes] = field(default_factory=deque)
    down: deque[bytes] = field(default_factory=deque)
    events: deque[Event] = field(default_factory=deque)
    connected: bool = False
    told: list[Token] = field(default_factory=list)

    @property
    def shown(self) -> list[int]:
        """Token ids that were told."""
        return [token.id for token in self.told]


class Simulation:
    """Devices around one cloud.

    Args:
        runner: The model.
        config: The engine's sizes.
        choose: Decides the schedule.
        faults: How many cuts and restarts may happen in all.
        split: Tear every draft message into single nodes.
        draft_model: Drafts in the cloud, too.
    """

    def __init__(
        self,
        runner: ModelRunner,
        config: EngineConfig,
        choose: Chooser,
        faults: int = 0,
        *,
        split: bool = False,
        draft_model=None,
    ):
        self.now = 0.0
        self.runner, self.config, self._choose, self.faults, self.split = runner, config, choose, faults, split
        self._draft_model = draft_model
        self.engine = RecordingEngine(runner, config, lambda: self.now, draft_model)
        self.rows: dict[tuple[SessionId, int], torch.Tensor] = self.engine.rows
        self.devices: list[Device] = []
        self.finished: dict[SessionId, Session] = {}

    def add(self, name: str, request: GenerateRequest, drafter: Drafter | None, policy: DraftPolicy) -> Device:
        """A device that wants one answer."""
        state = SessionState(request, policy, self.runner.loaded.vocabulary)
        device = Device(SessionId(name), request, state, drafter)
        self.devices.append(device)
        return device

    def run(self, most: int = 20000) -> None:
        """Play until every device has its answer."""
        for _ in range(most):
            if all(device.state.finish for device in self.devices):
                return
            moves = self._moves()
            move = moves[self._choose(len(moves))] if moves else self._wait
            move()
        states = [(d.state.finish, len(d.state.log), d.connected) for d in self.devices]
        raise AssertionError(f"no end after {most} moves: {states}")

    def _moves(self, *, running: bool = False):
        moves = []
        for device in self.devices:
            if device.state.finish:
                continue
            if not device.connected:
                moves.append(lambda d=device: self._connect(d))
                continue
            if device.up:
                moves.append(lambda d=device: self._deliver_up(d))
            if device.events:
                moves.append(lambda d=device: self._collect(d))
            if device.down:
                moves.append(lambda d=device: self._deliver_down(d))
            if plan(device.state, drafting=device.drafter is not None, unsent_s=1.0) in {Action.DRAFT, Action.SEND}:
                moves.append(lambda d=device: self._edge(d))
            if self.faults:
                moves.append(lambda d=device: self._cut(d))
        if self.engine.sessions and not running:
            moves.append(self._step)
        if self.faults and not running:
            moves.append(self._restart)
        return moves

    def _wait(self) -> None:
        self.now += self.config.hold_s

    def _step(self) -> None:
        if not self.engine.step(self._beside if self._choose(2) else None):
            self._wait()
        self.engine.pool.check()

    def _beside(self, _busy) -> None:
        """While a step runs, anything may happen but another step."""
        for _ in range(self._choose(5)):
            if moves := self._moves(running=True):
                moves[self._choose(len(moves))]()

    def _connect(self, device: Device) -> None:
        device.state.reset()
        device.state.totals.connects += 1
        device.connected = True
        request, sink = device.request, device.events.append
        committed = tuple(device.state.committed)
        if self.engine.resume(device.session_id, committed, sink):
            return
        self.engine.close(device.session_id)
        pace = Pace(request.pace.value)
        self.engine.open(
            Request(device.session_id, request.prompt, request.max_tokens, request.params, committed,
                    frozenset(request.stop), request.ignore_eos, pace, request.logprobs, request.top_logprobs,
                    request.min_tokens, self._matcher(request.grammar, committed), request.cloud_drafts), sink,
        )  # fmt: skip

    def _matcher(self, grammar: Grammar | None, committed: tuple[int, ...]) -> Matcher | None:
        matcher = matcher_of(grammar, self.runner.loaded)
        if matcher is not None:
            matcher.follow(committed)
        return matcher

    def _edge(self, device: Device) -> None:
        state = device.state
        if plan(state, drafting=True, unsent_s=float(self._choose(2))) is Action.SEND:
            nodes = state.unsent()
            more = state.more_after(nodes)
            message = (
                draft_to_wire(nodes, state.sent - 1, state.vocabulary, more=more) if nodes else pb.Draft(more=more)
            )
            state.mark_sent(nodes)
            state.flushed = not more
            device.up.extend(self._torn(message, state.vocabulary))
        else:
            state.grow(device.drafter.propose(state.path(), state.request.params, state.policy.width))

    def _torn(self, draft: pb.Draft, vocabulary: int) -> list[bytes]:
        if not self.split or draft.count < 2:
            return [draft.SerializeToString()]
        from outrider_shared.packing import pack_tokens, unpack_tokens

        tokens = unpack_tokens(draft.tokens, draft.count, vocabulary)
        anchored = draft.HasField("anchor")
        deltas = (
            unpack_varints(draft.parents, draft.count)
            if draft.parents
            else [0 if anchored else 1] + [1] * (draft.count - 1)
        )
        single = []
        for i, (token, delta) in enumerate(zip(tokens, deltas, strict=True)):
            part = pb.Draft(tokens=pack_tokens([token], vocabulary), count=1, parents=pack_varints([delta]))
            part.more = draft.more or i < draft.count - 1
            if anchored:
                part.anchor = draft.anchor
            single.append(part.SerializeToString())
        return single

    def _deliver_up(self, device: Device) -> None:
        self.engine.draft(device.session_id, pb.Draft.FromString(device.up.popleft()))

    def _collect(self, device: Device) -> None:
        """The service's writer wakes up: waiting commits leave as one message."""
        event = device.events.popleft()
        if isinstance(event, Failed):
            raise event.error
        if isinstance(event, Opened):
            message = pb.DecodeResponse(opened=pb.Opened(
                lease=b"l", length=event.length, context_length=self.runner.loaded.context_length,
                max_nodes=self.config.max_nodes, max_nodes_per_message=32))  # fmt: skip
        else:
            run: list[Committed] = [event]
            while device.events and isinstance(device.events[0], Committed):
                run.append(device.events.popleft())
            message = pb.DecodeResponse(commit=commit_to_wire(merge(run), self.runner.loaded.vocabulary))
        device.down.append(message.SerializeToString())

    def _deliver_down(self, device: Device) -> None:
        message = pb.DecodeResponse.FromString(device.down.popleft())
        if message.HasField("opened"):
            device.state.open(message.opened)
        else:
            device.told += device.state.commit(message.commit)
        if device.state.finish:
            self.engine.close(device.session_id)

    def _cut(self, device: Device) -> None:
        self.faults -= 1
        device.connected = False
        device.up.clear()
        device.down.clear()
        device.events = deque()  # what the engine still tells the old stream is lost with it
        self.engine.park(device.session_id)

    def _restart(self) -> None:
        """The cloud process dies: all its state is gone, all streams break."""
        faults = self.faults - 1
        for device in self.devices:
            if device.connected:
                self._cut(device)
        self.faults = faults
        self.engine = RecordingEngine(self.runner, self.config, lambda: self.now, self._draft_model)
        self.rows.update(self.engine.rows)
        self.engine.rows = self.rows
