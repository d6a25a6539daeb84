"""Who gets KV memory when it is short.

Rules:
    * Waiting sessions are admitted oldest first; nobody overtakes one that does not fit yet.
    * A step that lacks slots gives up its drafts first, then takes the KV of parked sessions, then of younger ones.
    * An older session's KV is never taken for a younger one: the oldest always runs on, so everyone ends.
    * Whose KV was taken keeps its log, and is computed again when there is room.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from outrider_cloud.engine.blocks import BlockPool
from outrider_cloud.engine.session import Session, State

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from outrider_cloud.engine.config import EngineConfig
    from outrider_cloud.engine.schedule import Work


class KvMemory:
    """The block pool and the decisions around it.

    Attributes:
        pool: The blocks.
        preemptions: Times that a session's KV was taken.
    """

    def __init__(self, config: EngineConfig) -> None:
        self.pool = BlockPool(config.blocks, config.block_size)
        self.preemptions = 0

    def admit(self, sessions: Collection[Session]) -> None:
        """Let waiting sessions run, starting from what the prefix cache holds of them."""
        waiting = sorted((s for s in sessions if s.state is State.WAITING), key=lambda s: s.arrival)
        for session in waiting:
            needed = session.blocks_for(len(session.log) + 1, self.pool.block_size)
            if needed > self.pool.free and any(s.state is State.RUNNING for s in sessions):
                return
            session.adopt_prefix(self.pool)
            if not session.usage.preemptions:
                # Later it finds what it computed itself.
                session.usage.cached_tokens = min(session.computed, len(session.request.prompt))
            session.state = State.RUNNING

    def reserve(self, works: Sequence[Work], sessions: Collection[Session]) -> list[Work]:
        """Find slots for each work in turn; returns those that have them, some without their drafts."""
        reserved: list[Work] = []
        for work in works:
            if work.session.state is not State.RUNNING:
                continue  # its KV was taken for an earlier work
            if not self._has_room(work):
                work.nodes.clear()
            while not self._has_room(work) and (victim := _victim(work.session, sessions)) is not None:
                reserved = [w for w in reserved if w.session is not victim]
                self._preempt(victim)
            if self._has_room(work):
                missing = work.session.blocks_for(work.rows, self.pool.block_size)
                work.session.adopt(self.pool.allocate(missing), self.pool.block_size)
                reserved.append(work)
        return reserved

    def _has_room(self, work: Work) -> bool:
        return work.session.blocks_for(work.rows, self.pool.block_size) <= self.pool.free

    def _preempt(self, session: Session) -> None:
        session.drop_kv(self.pool)
        session.usage.preemptions += 1
        self.preemptions += 1
        if session.state is State.RUNNING:
            session.state = State.WAITING


def _victim(session: Session, sessions: Collection[Session]) -> Session | None:
    holders = [s for s in sessions if s.blocks and s is not session]
    parked = [s for s in holders if s.state is State.PARKED]
    younger = [s for s in holders if s.arrival > session.arrival and s.state is State.RUNNING]
    return max(parked or younger, key=lambda s: s.arrival, default=None)
