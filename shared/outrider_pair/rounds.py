"""A cloud engine and a device in one thread, in rounds: draft a burst, send it, verify it in one step, commit.

Nothing is simulated but the network, which delivers at once: engine, session state, drafters, policy and wire messages
are the product's. In rounds the device never drafts while the cloud verifies, so the figures do not depend on anybody's
speed and are the same on every machine up to near-ties of its arithmetic.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from outrider_cloud.engine.events import Committed, Event, Failed, Opened, Pace, Request, Usage
from outrider_cloud.service.outbox import commit_to_wire, merge
from outrider_edge.session.plan import Action, plan
from outrider_edge.session.state import SessionState
from outrider_shared.errors import InternalError
from outrider_shared.ids import new_session_id
from outrider_shared.wire import draft_to_wire
from outrider_wire.v1 import verifier_pb2 as pb

if TYPE_CHECKING:
    from outrider_cloud.engine.engine import Engine
    from outrider_edge.session.events import GenerateRequest
    from outrider_edge.session.policy import DraftPolicy
    from outrider_shared.calibration import Calibrations
    from outrider_shared.drafting.drafter import Drafter

_MOST_STEPS_PER_TOKEN = 64  # more is no progress, and a defect of ours


@dataclasses.dataclass(frozen=True, slots=True)
class Burst:
    """One verification: how deep the draft's best path was, and how many of its tokens were committed."""

    depth: int
    accepted: int


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """One answer and what it took.

    Attributes:
        tokens: Token ids beyond the prompt.
        bursts: Verifications in order.
        drafted: Nodes sent.
        usage: The engine's account.
        finish: Why it ended.
    """

    tokens: list[int]
    bursts: list[Burst]
    drafted: int
    usage: Usage
    finish: str


def answer(
    engine: Engine, request: GenerateRequest, drafter: Drafter | None, policy: DraftPolicy, calibration: Calibrations
) -> Answer:
    """Generate one answer on an engine that this thread owns.

    Raises:
        OutriderError: if the engine refuses the prompt or fails.
    """
    policy = dataclasses.replace(policy, bursts_ahead=0)
    device = _Device(SessionState(request, policy, engine.runner.loaded.vocabulary, calibration), drafter)
    cloud = _Cloud(engine, request, hold=drafter is not None)
    for _ in range(_MOST_STEPS_PER_TOKEN + _MOST_STEPS_PER_TOKEN * request.max_tokens):
        device.take(cloud.events, engine)
        if device.state.finish is not None:
            assert cloud.usage is not None, "the last commit tells the usage"
            tokens = device.state.committed
            return Answer(tokens, device.bursts, device.state.totals.drafted, cloud.usage, device.state.finish)
        for message in device.draft():
            engine.draft(cloud.session_id, pb.Draft.FromString(message))
        engine.step()
    raise InternalError(f"no end of an answer after {len(device.state.committed)} tokens")


class _Cloud:
    """One session of the engine."""

    def __init__(self, engine: Engine, request: GenerateRequest, *, hold: bool) -> None:
        self.session_id = new_session_id()
        self.events: list[Event] = []
        self.usage: Usage | None = None
        pace = Pace.HOLD if hold else Pace.AHEAD
        asked = Request(
            self.session_id, request.prompt, request.max_tokens, request.params,
            stop=frozenset(request.stop), ignore_eos=request.ignore_eos, pace=pace,
            own_drafts=False,  # what the device's drafts are worth, not the cloud's
        )  # fmt: skip
        engine.open(asked, self._take)

    def _take(self, event: Event) -> None:
        if isinstance(event, Committed) and event.usage is not None:
            self.usage = event.usage
        self.events.append(event)


class _Device:
    """One session of the device."""

    def __init__(self, state: SessionState, drafter: Drafter | None) -> None:
        self.state = state
        self.bursts: list[Burst] = []
        self._drafter = drafter

    def draft(self) -> list[bytes]:
        """Draft until there is nothing to do but to wait; the messages to send."""
        state, messages = self.state, []
        while (action := plan(state, drafting=self._drafter is not None, unsent_s=0.0)) is not Action.WAIT:
            assert self._drafter is not None, "only a drafter has something to do"
            if action is Action.SEND:
                nodes = state.unsent()
                more = not state.burst_done or len(state.tree) - state.sent > len(nodes)
                first, width = state.sent - 1, state.vocabulary
                message = draft_to_wire(nodes, first, width, more=more) if nodes else pb.Draft(more=more)
                state.mark_sent(nodes)
                state.flushed = not more
                messages.append(message.SerializeToString())
            else:
                state.grow(self._drafter.propose(state.path(), state.request.params, state.policy.width))
        return messages

    def take(self, events: list[Event], engine: Engine) -> None:
        """Take over what the cloud told, and empty the list."""
        commits = [event for event in events if isinstance(event, Committed)]
        for event in events:
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, Opened):
                self.state.open(
                    pb.Opened(
                        lease=b"-",
                        length=event.length,
                        context_length=engine.runner.loaded.context_length,
                        max_nodes=engine.config.max_nodes,
                        max_nodes_per_message=engine.config.max_nodes,
                    )
                )
        events.clear()
        if commits:
            depth, before = len(self.state.path()) - len(self.state.log), len(self.state.log)
            message = commit_to_wire(merge(commits), self.state.vocabulary)
            self.state.commit(pb.Commit.FromString(message.SerializeToString()))
            self.bursts.append(Burst(depth, len(self.state.log) - before - 1))
