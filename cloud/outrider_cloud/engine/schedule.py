"""Who runs in the next step, and with which rows. Decides only: nothing is changed here.

Rules:
    * A session without a usable draft waits for one as long as its pace says (`patience_s`); all others are ready.
    * Sessions of pace `hold` wait a little for each other, to step together (`gathering_until`).
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

from outrider_cloud.engine.events import Hint, Pace
from outrider_cloud.engine.session import State
from outrider_shared.tree import UNNUMBERED

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from outrider_cloud.engine.config import EngineConfig
    from outrider_cloud.engine.session import Session
    from outrider_shared.tree import Node

# A node of the cloud's own that is committed with less than this probability is not worth a row, however free.
WORTH_A_ROW = 0.1
_LOADED_SHARE = 0.5
# Fair shares of a step's rows that a session may have in flight: at the cloud, and per step that a round trip takes.
_SHARES_AT_HAND = 2.0
_SHARES_UNDER_WAY = 4.0
# Fewer nodes in flight would not let a device show what its drafts are worth.
_LEAST_NODES = 4
# Parts of a step's time: drafts expected within the first are waited for, until the second is over (decision 0032).
SOON = 0.6
LATEST = 0.8
# Part of its usual wait for its own drafts that a session of pace `hold` waits for others' (decision 0031).
_GATHERING = 0.5


@dataclass(slots=True)
class Work:
    """Rows of one session in a step: `sure` log tokens, then draft nodes if the last sure token is the log's last.

    Attributes:
        decodes: Whether the step reaches the end of the log, so that a token is chosen. As planned: a session that is
            closed while the step runs has no KV any more, and its rows still lie before those of others.
    """

    session: Session
    sure: int
    nodes: list[Node] = field(default_factory=list)
    decodes: bool = field(init=False)

    def __post_init__(self) -> None:
        self.decodes = self.sure == self.session.sure_rows

    @property
    def rows(self) -> int:
        """Rows of this session."""
        return self.sure + len(self.nodes)


def ready(
    sessions: Iterable[Session], config: EngineConfig, now: float, step_s: float = 0.0, own_s: float = math.inf
) -> list[Session]:
    """Who does not wait.

    Args:
        sessions: All of them.
        config: Bounds.
        now: Seconds, monotonic.
        step_s: How long a step takes these days; 0 if unknown.
        own_s: Drafts that come later than this are as well made in the cloud; infinite if they cannot.
    """
    present = [s for s in sessions if s.state is State.RUNNING]
    found = [s for s in present if not s.holds(now, patience_s(s, config, step_s, own_s))]
    return [] if now < gathering_until(present, found, config, now, step_s) else found


def gathering_until(
    present: Sequence[Session], found: Sequence[Session], config: EngineConfig, now: float, step_s: float
) -> float:
    """Until when those who are ready wait for others, so that they share a step; minus infinity if they do not.

    Only pace `hold` gathers, while nobody of another pace and no prompt is ready, for sessions whose drafts are due. It
    ends a step after the last commit, or half as long as one of those ready usually waits for its own drafts.
    """
    if not found or any(s.request.pace is not Pace.HOLD or s.sure_rows > 1 or not s.response_s for s in found):
        return -math.inf
    due = [s.overdue_at for s in present if s.request.pace is Pace.HOLD and s.holds(now, config.hold_s)]
    if not due or max(due) <= now:
        return -math.inf
    usual_s = min(max(_GATHERING * (s.response_s or 0.0), step_s) for s in found)
    return min(max(due), max(s.hold_since for s in present) + min(config.hold_s, usual_s))


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
            if node.number == UNNUMBERED and reach * survival < WORTH_A_ROW:
                continue
            self._count += 1  # ties go to what was drafted first
            heapq.heappush(self._heap, (-reach * survival, self._count, depth, node))


def wanted_rows(running: Sequence[Session], config: EngineConfig) -> int:
    """Rows that sure tokens and waiting drafts could use."""
    return sum(1 + min(s.tree.pending, config.max_draft_rows) for s in running)


def load(running: Sequence[Session], config: EngineConfig) -> int:
    """Rows that all sessions could use, in percent of a step's."""
    return 100 * wanted_rows(running, config) // config.rows


def hint(session: Session, sessions: int, load: int, config: EngineConfig, step_s: float) -> Hint:
    """What a session's edge should know: with scarce rows, how many nodes in flight steps could run of a fair share.

    A node that is sent now runs a round trip later, behind those that run meanwhile (decision 0041).

    Args:
        session: Whose.
        sessions: How many share the rows.
        load: See `load`.
        config: Bounds.
        step_s: How long a step takes these days; 0 if unknown.
    """
    if load < 100 * _LOADED_SHARE:
        return Hint(config.max_nodes, load)
    under_way = (session.response_s or 0.0) / step_s if step_s else 0.0
    shares = _SHARES_AT_HAND + _SHARES_UNDER_WAY * under_way
    share = config.rows / max(1, sessions)
    return Hint(min(config.max_nodes, max(_LEAST_NODES, int(shares * share))), load)


def patience_s(session: Session, config: EngineConfig, step_s: float, own_s: float = math.inf) -> float:
    """How long after a commit a session waits for drafts, by its pace.

    `hold` waits up to `hold_s`. Both `auto` and `ahead` wait for drafts that are nearly there: expected within
    `SOON` of a step's time, and sooner than the cloud's own would be (`own_s`), and then for `LATEST` of it at most.
    `ahead` waits no longer than drafts have won for the session before, so that it is never behind plain streaming.
    """
    pace = session.request.pace
    if pace is Pace.HOLD:
        return config.hold_s
    soon_s = min(SOON * step_s, own_s) if session.request.own_drafts else SOON * step_s
    most_s = min(config.hold_s, session.awaited_s(soon_s, LATEST * step_s))
    return min(most_s, max(0.0, session.won_s)) if pace is Pace.AHEAD else most_s


def next_hold_end(
    sessions: Iterable[Session], config: EngineConfig, now: float, step_s: float = 0.0, own_s: float = math.inf
) -> float:
    """When the first session that holds now gives up waiting; infinite if none holds. Arguments as for `ready`."""
    running = [s for s in sessions if s.state is State.RUNNING]
    waits = [(s, patience_s(s, config, step_s, own_s)) for s in running]
    ends = [s.hold_since + wait for s, wait in waits if s.holds(now, wait)]
    gathering = gathering_until(running, [s for s, wait in waits if not s.holds(now, wait)], config, now, step_s)
    return min([*ends, gathering] if gathering > now else ends, default=math.inf)
