"""Who runs in the next step, and with which rows. Decides only: nothing is changed here.

Rules:
    * A session without a usable draft waits for one as long as its pace says (`patience_s`); all others are ready.
    * Every ready session gets its next sure token before anyone gets drafts; least recently served first. So of n ready
      sessions each is served within ceil(n / rows) steps, whatever the others draft.
    * Prompts get at least `prefill_share` of the rows while they wait, and all that decoding leaves. Neither starves:
      each gets one row at least, in turn if there is only one.
    * Of what is left, half is dealt evenly: that many of its own worthiest nodes each session gets. The rest goes to
      the worthiest of all. A sure row is worth one token, a node the product of the survivals on its path.
    * A node runs only if its parent runs in the same step or is the log.

What it does not do: find memory (the engine does, and may shrink a plan), draft, or know what a row costs.
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


def ready(sessions: Iterable[Session], config: EngineConfig, now: float, step_s: float = 0.0) -> list[Session]:
    """Who does not wait.

    Args:
        sessions: All of them.
        config: Bounds.
        now: Seconds, monotonic.
        step_s: How long a step takes these days; 0 if unknown.
    """
    present = [s for s in sessions if s.state is State.RUNNING]
    loaded = is_loaded(present, config)
    return [s for s in present if not s.holds(now, patience_s(s, config, now, step_s, loaded=loaded))]


def plan(running: Iterable[Session], config: EngineConfig) -> list[Work]:
    """The work of a step for sessions that are ready, at most `config.rows` rows."""
    running = sorted(running, key=lambda s: (s.last_step, s.arrival))
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
    """Fill `left` rows with draft nodes, at most `most` a session: a fair share first, then the worthiest."""
    queues = [_Worthiest(work) for work in works if work.session.tree.children]
    if not queues:
        return
    share = min(most, left // (2 * len(queues)))
    for queue in queues:
        left -= queue.take(share)
    heap = [(queue.worth, rank, queue) for rank, queue in enumerate(queues) if queue]
    heapq.heapify(heap)
    while heap and left:
        _, rank, queue = heapq.heappop(heap)
        if len(queue.work.nodes) == most:
            continue
        left -= queue.take(1)
        if queue:
            heapq.heappush(heap, (queue.worth, rank, queue))


class _Worthiest:
    """One session's nodes that may run next, worthiest first."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self._heap: list[tuple[float, int, int, Node]] = []
        self._count = 0
        self._offer(work.session.tree.children.values(), 1, 1.0)

    def __len__(self) -> int:
        return len(self._heap)

    @property
    def worth(self) -> float:
        """Of the next node, negative: the least is the worthiest."""
        return self._heap[0][0]

    def take(self, count: int) -> int:
        """Add up to `count` nodes to the work; returns how many."""
        taken = 0
        while self._heap and taken < count:
            worth, _, depth, node = heapq.heappop(self._heap)
            self.work.nodes.append(node)
            self._offer(node.children.values(), depth + 1, -worth)
            taken += 1
        return taken

    def _offer(self, nodes: Iterable[Node], depth: int, reach: float) -> None:
        for node, survival in self.work.session.rated(nodes, depth):
            self._count += 1  # ties go to what was drafted first
            heapq.heappush(self._heap, (-reach * survival, self._count, depth, node))


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
    late = session.survival.overall**alone * max(0.0, session.gain - 1.0 - alone)
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
