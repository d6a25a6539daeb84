"""Which rows the next step runs. Decides only: nothing is changed here.

Rules:
    * Every session that is not holding gets its next sure token before anyone gets drafts; least recently served first.
    * Prompts get at least `prefill_share` of the rows while they wait, and all that decoding leaves. Neither starves:
      each gets one row at least, in turn if there is only one.
    * What is left goes to draft rows by worth: a node at depth d of a session whose drafts survive with probability p
      is worth p^d tokens; a sure row is worth one.
    * A node runs only if its parent runs in the same step or is the log.

What it does not do: find memory (the engine does, and may shrink a plan), or know what a row costs.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from outrider_cloud.engine.events import Pace
from outrider_cloud.engine.session import State

if TYPE_CHECKING:
    from collections.abc import Iterable

    from outrider_cloud.engine.config import EngineConfig
    from outrider_cloud.engine.session import Session
    from outrider_shared.tree import Node


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


def plan(sessions: Iterable[Session], config: EngineConfig, now: float) -> list[Work]:
    """The next step's work, at most `config.rows` rows; empty if nobody is ready."""
    running = [s for s in sessions if s.state is State.RUNNING and not s.holds(now, config.hold_s)]
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


def next_hold_end(sessions: Iterable[Session], config: EngineConfig) -> float:
    """When the first holding session gives up waiting; infinite if none holds."""
    ends = [s.hold_since + config.hold_s for s in sessions if s.state is State.RUNNING and s.request.pace is Pace.HOLD]
    return min(ends, default=float("inf"))
