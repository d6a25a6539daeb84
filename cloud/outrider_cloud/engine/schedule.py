"""Which rows the next step runs. Decides only: nothing is changed here.

Rules:
    * Every session that is not holding gets its next sure token before anyone gets drafts; least recently served first.
    * Prompts get at least `prefill_share` of the rows while they wait, and all that decoding leaves. Neither starves:
      each gets one row at least, in turn if there is only one.
    * What is left goes to draft rows by worth: a node at depth d of a session whose drafts survive with probability p
      is worth p^d tokens; a sure row is worth one.
    * A node runs only if its parent runs in the same step or is the log.

    * A session without a usable draft waits for one as long as its pace says (`patience_s`).

What it does not do: find memory (the engine does, and may shrink a plan), or know what a row costs.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from outrider_cloud.engine.events import Pace
from outrider_cloud.engine.session import State

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from outrider_cloud.engine.config import EngineConfig
    from outrider_cloud.engine.session import Session
    from outrider_shared.tree import Node

_LOADED_SHARE = 0.5
# A draft that is expected after w is waited for this much longer before it is given up.
_MARGIN = 2.0


@dataclass(slots=True)
class Work:
    """Rows of one session in a step: `sure` log tokens, then draft nodes if the last sure token is the log's last."""

    session: Session
    sure: int
    nodes: list[Node] = field(default_factory=list)

    @property
    def rows(self) -> int:
        """Rows of this session."""
        return self.sure + len(self.nodes)

    @property
    def decodes(self) -> bool:
        """Whether the step reaches the end of the log, so that a token is chosen."""
        return self.sure == self.session.sure_rows


def plan(sessions: Iterable[Session], config: EngineConfig, now: float, step_s: float = 0.0) -> list[Work]:
    """The next step's work, at most `config.rows` rows; empty if nobody is ready.

    Args:
        sessions: All of them.
        config: Bounds.
        now: Seconds, monotonic.
        step_s: How long a step takes these days; 0 if unknown.
    """
    present = [s for s in sessions if s.state is State.RUNNING]
    loaded = is_loaded(present, config)
    running = [s for s in present if not s.holds(now, patience_s(s, config, now, step_s, loaded=loaded))]
    running.sort(key=lambda s: (s.last_step, s.arrival))
    prompts = [s for s in running if s.sure_rows > 1]
    decoders = [s for s in running if s.sure_rows == 1]
    reserved = min(max(1, int(config.rows * config.prefill_share)), sum(s.sure_rows for s in prompts))
    if decoders and reserved == config.rows and (config.rows > 1 or running[0] is decoders[0]):
        reserved -= 1
    decoding = [Work(s, 1) for s in decoders[: config.rows - reserved]]
    left = config.rows - len(decoding)
    filling: list[Work] = []
    for session in prompts:
        if left == 0:
            break
        filling.append(Work(session, min(session.sure_rows, left)))
        left -= filling[-1].sure
    works = decoding + filling
    _add_drafts([w for w in works if w.decodes], left, config.max_draft_rows)
    return works


def _add_drafts(works: list[Work], left: int, most: int) -> None:
    """Fill `left` rows with the worthiest nodes, at most `most` a session."""
    heap: list[tuple[float, int, int, Node, Work]] = []

    def offer(work: Work, nodes: Iterable[Node], worth: float) -> None:
        for node in nodes:
            heapq.heappush(heap, (-worth * work.session.survival, node.number, work.session.arrival, node, work))

    for work in works:
        offer(work, work.session.tree.children.values(), 1.0)
    while heap and left:
        worth, _, _, node, work = heapq.heappop(heap)
        if len(work.nodes) == most:
            continue
        work.nodes.append(node)
        left -= 1
        offer(work, node.children.values(), -worth)


def is_loaded(running: Sequence[Session], config: EngineConfig) -> bool:
    """Whether rows are scarce: sure tokens and waiting drafts together would fill a good part of a step."""
    wanted = sum(1 + min(s.tree.pending, config.max_draft_rows) for s in running)
    return wanted >= config.rows * _LOADED_SHARE


def patience_s(session: Session, config: EngineConfig, now: float, step_s: float, *, loaded: bool) -> float:
    """How long a session without a usable draft waits for one, by its pace.

    `auto` waits where tokens come faster so, or are needed cheaply. With drafts that take w to come and then commit E
    tokens a step, waiting yields E tokens in w + T (T a step's time). Decoding on by itself yields, in k + 1 steps with
    k = ceil(w / T), k + 1 tokens and what is left of the late draft if its first k tokens agree: p^k (E - 1 - k).
    """
    if session.request.pace is Pace.AHEAD:
        return 0.0
    if session.request.pace is Pace.HOLD or loaded:
        return config.hold_s
    if step_s <= 0.0:
        return 0.0
    wait_s = session.expected_wait_s(now, step_s)
    alone = math.ceil(wait_s / step_s)
    late = session.survival**alone * max(0.0, session.gain - 1.0 - alone)
    waiting, ahead = session.gain / (wait_s + step_s), (alone + 1.0 + late) / ((alone + 1.0) * step_s)
    if waiting <= ahead:
        return 0.0
    # Nothing is known of a new session's device: no more than one step's time is risked on it.
    return min(config.hold_s, step_s if session.response_s is None else _MARGIN * wait_s + step_s)


def next_hold_end(sessions: Iterable[Session], config: EngineConfig, now: float, step_s: float = 0.0) -> float:
    """When the first holding session gives up waiting; infinite if none holds."""
    running = [s for s in sessions if s.state is State.RUNNING]
    loaded = is_loaded(running, config)
    ends = [
        s.hold_since + patience_s(s, config, now, step_s, loaded=loaded)
        for s in running
        if s.request.pace is not Pace.AHEAD
    ]
    return min(ends, default=float("inf"))
