"""The conductor: `step` is schedule, draft, reserve, launch, tell, wait, commit.

Single-threaded; `thread` puts it beside an event loop. Sessions come and go through `roster`. What does not depend on a
step's outcome is done between launch and wait, while a GPU computes: telling and learning from what the step before
committed (`ledger`), penalties and grammar masks, and the caller's own work.

Rules:
    * Only `step` commits, and only what the target itself chose.
    * One session's fault ends that session alone. A fault of the model ends the sessions of that step, nothing else.
    * A preempted session keeps its log and is computed again: never lost, never different.
    * The oldest running session always finds memory, so the engine always makes progress.
    * Sessions may be opened, given drafts, parked, resumed and closed while a step runs over them: what it finds out
      about a session that has gone is dropped.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from outrider_cloud.drafts.fill import CloudDrafts, source_of
from outrider_cloud.engine import schedule
from outrider_cloud.engine.accept import accept
from outrider_cloud.engine.batch import lay_out
from outrider_cloud.engine.events import Source
from outrider_cloud.engine.ledger import Entry
from outrider_cloud.engine.roster import Roster
from outrider_cloud.engine.session import Session, State
from outrider_cloud.engine.shaping import Shaper
from outrider_cloud.engine.stats import EngineStats
from outrider_shared.errors import InternalError, OutriderError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from concurrent.futures import Executor

    from outrider_cloud.drafts.model import GuessModel
    from outrider_cloud.engine.config import EngineConfig
    from outrider_cloud.engine.runner import Decision, ModelRunner
    from outrider_cloud.engine.schedule import Work

# Is told whether a device is busy with the step.
Meanwhile = Callable[[Callable[[], bool]], None]
_NO_NUMBERS = "the model's logits are not numbers for this session"


class Engine(Roster):
    """Many sessions over one model: the roster, and the loop that steps who is on it.

    Args:
        runner: The model with its KV memory.
        config: Sizes and policies; the same that the runner was made with.
        clock: Seconds, monotonic.
        draft_model: A small model beside the target, for sessions whose edge is late; None drafts by lookup alone.
        executor: Where that one drafts while a step runs; by default a thread.
    """

    def __init__(
        self,
        runner: ModelRunner,
        config: EngineConfig,
        clock: Callable[[], float] = time.monotonic,
        draft_model: GuessModel | None = None,
        executor: Executor | None = None,
    ) -> None:
        super().__init__(runner.loaded, config, CloudDrafts(config, draft_model, clock, executor), clock)
        self.runner = runner
        self.stats = EngineStats()
        self._step_began = self._busy_since = 0.0
        self._shaper = Shaper(runner.loaded.eos)

    def step(self, meanwhile: Meanwhile | None = None) -> bool:
        """Run one batch; returns whether there was anything to do.

        Args:
            meanwhile: Called once the step is launched, with what tells whether a device is busy with it. With it, what
                the step commits is told beside the next step, or by the next call that finds nothing to do.
        """
        began, drafting_s, forward_s = time.perf_counter(), self.stats.draft_s, self.runner.forward_s
        works = self._plan()
        if not works:
            self.tell()
            return False
        try:
            decision, faults = self._run(works, meanwhile)
        except Exception as error:  # noqa: BLE001 - whatever a model throws must not stop the other sessions
            fault = self.runner.fault(error)
            for work in works:
                if work.session.state is not State.FINISHED:
                    self._fail(work.session, fault)
            return True
        finally:
            self.drafts.end(works)
        self._commit(works, decision, {**{row: InternalError(_NO_NUMBERS) for row in decision.bad}, **faults})
        if meanwhile is None:
            self.tell()
        taken_s = time.perf_counter() - began - (self.stats.draft_s - drafting_s)
        self.stats.add(sum(work.rows for work in works), self.runner.forward_s - forward_s, taken_s)
        return True

    def _plan(self) -> list[Work]:
        """What the next step runs, with its memory; empty if there is nothing to do."""
        now = self._step_began = self._clock()
        self._expire(now)
        self.memory.admit(self.sessions.values())
        self.drafts.gather()
        own_s = self.drafts.own_s(self.stats.step_s)
        ready = schedule.ready(self.sessions.values(), self.config, now, self.stats.step_s, own_s)
        if not ready:
            return []
        self._busy_since = time.perf_counter()
        self.stats.draft_s += self.drafts.fill(ready, self.stats.step_s)
        return self._works(ready)

    def _run(self, works: list[Work], meanwhile: Meanwhile | None) -> tuple[Decision, Mapping[int, OutriderError]]:
        """Launch, do what does not depend on the outcome, and wait; returns what grammars refused, too."""
        self.drafts.begin(works, self.stats.step_s)
        flight = self.runner.launch(lay_out(works))
        self.tell()
        changes = self._shaper.lay_out(works)
        flight.choose(None if changes is None else changes[0])
        if meanwhile is not None:
            meanwhile(flight.busy)
        return flight.wait(), {} if changes is None else changes[1]

    def _works(self, ready: list[Session]) -> list[Work]:
        """A plan that has its memory. Sessions that find none are left out of the next attempt, never of the next step.

        The oldest session can take everyone else's KV, so some attempt succeeds whenever anyone is ready.
        """
        while works := schedule.plan(ready, self.config):
            reserved = self.memory.reserve(works, self.sessions.values())
            self.stats.preemptions = self.memory.preemptions
            if reserved:
                return reserved
            blocked = {id(work.session) for work in works}
            ready = [s for s in ready if id(s) not in blocked and s.state is State.RUNNING]
        return []

    def idle_until(self) -> float:
        """When `step` may have something to do without further input: a holding session's or a lease's end."""
        sessions, step_s = self.sessions.values(), self.stats.step_s
        own_s = self.drafts.own_s(step_s)
        return min(
            schedule.next_hold_end(sessions, self.config, self._clock(), step_s, own_s),
            min((s.lease_end for s in sessions), default=float("inf")),
        )

    def _commit(self, works: list[Work], decision: Decision, bad: Mapping[int, OutriderError]) -> None:
        running = [s for s in self.sessions.values() if s.state is State.RUNNING]
        first, load, step_s = 0, schedule.load(running, self.config), self.stats.step_s
        share_us = round(1e6 * (time.perf_counter() - self._busy_since) / len(works))
        for work in works:
            session, count = work.session, 1 + len(work.nodes) if work.decodes else 0
            rows = range(first, first + count)
            first += count
            if session.state is State.FINISHED:
                continue  # it was closed while the step ran
            session.usage.busy_us += share_us
            session.hint = schedule.hint(session, len(running), load, self.config, step_s)
            session.last_step = self.stats.steps + 1
            session.usage.prefill_rows += work.sure - (1 if work.decodes else 0)
            if not work.decodes:
                session.computed += work.sure
                session.seal(self.pool)
                continue
            path = accept(work.nodes, decision.chosen[rows.start : rows.stop])
            # A draft row that went wrong matters only if the target's own choices lead through it.
            wrong = next((rows[offset] for offset in path[1] if rows[offset] in bad), None) if bad else None
            if wrong is not None:
                self._fail(session, bad[wrong])
            else:
                self._extend(work, decision, rows, *path)

    def _extend(self, work: Work, decision: Decision, rows: range, tokens: list[int], offsets: list[int]) -> None:
        """Commit what the target chose for one session and keep the KV of the accepted branch."""
        session, before, ran = work.session, len(work.session.log), offsets
        for taken, token in enumerate(tokens, 1):
            session.note_refused(token)
            session.tree.advance(token)
            session.finish = session.finish_of(self._loaded.eos, self._loaded.context_length)
            if session.finish is not None:
                tokens, offsets = tokens[:taken], offsets[:taken]
                break
        self._keep_branch(session, before - 1, offsets)
        session.computed = len(session.log) - 1
        session.seal(self.pool)
        self.stats.committed += len(tokens)
        waited_s = self._step_began - session.hold_since if work.sure == 1 else 0.0
        session.won_s += (len(tokens) - 1) * self.stats.step_s - waited_s
        session.note_commit(self._clock())
        if session.request.logprobs:
            session.logprobs += decision.logprobs([rows[o] for o in offsets], session.request.top_logprobs)
        # Of an answer that ends here, the last token counts as drafted if it was.
        origins = [*(source_of(work.nodes[offset - 1]) for offset in ran[1:]), Source.TARGET][: len(tokens)]
        own = any(origin > Source.EDGE for origin in origins)
        event = self._committed(session, before, origins=tuple(origins) if own else ())
        self._ledger.add(Entry(work, ran, origins, event, session.sink))
        if session.finish is not None:
            self._retire(session)

    def _keep_branch(self, session: Session, root: int, offsets: list[int]) -> None:
        """Move the accepted nodes' KV behind the root's; a chain lies there already."""
        moves = [(offset, depth) for depth, offset in enumerate(offsets) if offset != depth]
        if moves:
            slots = session.slots
            self.runner.move([int(slots[root + o]) for o, _ in moves], [int(slots[root + d]) for _, d in moves])
