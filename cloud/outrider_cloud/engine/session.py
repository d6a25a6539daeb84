"""One session in the engine: its log, its draft tree, and which of its tokens have KV."""

from __future__ import annotations

import enum
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from outrider_cloud.engine.events import Finish, Refused, Usage
from outrider_cloud.engine.survival import DraftSurvival
from outrider_shared.sampling.shape import TokenCounts
from outrider_shared.tree import UNNUMBERED, DraftTree

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from outrider_cloud.engine.blocks import BlockPool
    from outrider_cloud.engine.events import Hint, Request, Sink
    from outrider_shared.logprobs import TokenLogprobs
    from outrider_shared.tree import Node


_LEARNING_RATE = 0.1
_REMEMBERED_COMMITS = 64
# Times the usual time from a commit to its first draft: later than that, nobody else waits for it.
_OVERDUE = 1.5
# Percent of load, or of the nodes told: smaller changes are not worth their bytes.
_WORTH_TELLING = 25

# A node whose parent was right: its depth below the log's end, and whether it was right, too.
Judged = tuple["Node", int, bool]


class State(enum.Enum):
    """Where a session stands. Only a running one holds a place in the schedule."""

    WAITING = "waiting"  # has no KV: new, or preempted; its log is whole
    RUNNING = "running"
    PARKED = "parked"  # its stream broke; kept until the lease ends
    FINISHED = "finished"  # kept until its owner has the last commit, or the lease ends


class Session:
    """State of one session; owned by the engine's thread.

    Token ranges of the log, half-open:
        [0, computed)               have KV in `slots`
        [computed, len(log))        sure rows, to be computed; at least one while running
        beyond                      draft nodes; while a step runs they use the slots that follow

    Args:
        request: What was asked for.
        arrival: Rank by age; the older session is served first when memory is short.
        sink: Takes the session's events.

    Attributes:
        matcher: Where the answer stands in its grammar; None is free text.
        counts: How often the log has each token, where penalties need it; as far as the last step looked.
        shaped: Whether anything changes its logits before the temperature.
        opened_at: Length of the log when the session was opened here: prompt, and what its owner knew already.
        logprobs: Of the log's tokens from there on, where asked for; kept, since a resume may need the last again.
        survival: How likely the edge's drafts are right; learned.
        gain: Tokens that a step with drafts of the edge commits; learned.
        own_gain: Tokens that a step without them commits, the cloud's own drafts included; learned.
        won_s: Time that drafts saved so far against a step per token, less what was spent on waiting for them.
        response_s: Time from a commit to the first draft that builds on it; learned, None before the first.
    """

    def __init__(self, request: Request, arrival: int, sink: Sink) -> None:
        if request.params.shaped:
            request = replace(request, params=replace(request.params, answer_start=len(request.prompt)))
        self.request = request
        self.arrival = arrival
        self.sink = sink
        self.state = State.WAITING
        self.log: list[int] = [*request.prompt, *request.committed]
        self.matcher = request.matcher
        self.counts = TokenCounts(len(request.prompt)) if request.params.penalised else None
        self.shaped = request.params.shaped or request.min_tokens > 0 or request.matcher is not None
        self.opened_at = len(self.log)
        self.logprobs: list[TokenLogprobs] = []
        self.tree = DraftTree(self.log)
        self.computed = 0
        self.blocks: list[int] = []
        self.digests: list[bytes] = []
        self.slots: NDArray[np.int64] = np.zeros(0, np.int64)
        self.usage = Usage()
        self.finish: Finish | None = None
        self.lease_end = float("inf")
        self.hold_since = 0.0
        self.more_drafts = False
        self.no_drafts = False
        self.last_step = 0
        self.survival = DraftSurvival()
        self.gain = 3.0
        self.own_gain = 1.0
        self.response_s: float | None = None
        self.silent_since: float | None = None
        self.won_s = 0.0
        self._refused: list[Refused] = []
        self._judged_to = len(request.prompt) - 1
        self.hint: Hint | None = None
        self._told: Hint | None = None
        self._committed_at: dict[int, float] = {}

    @property
    def generated(self) -> int:
        """Tokens committed beyond the prompt."""
        return len(self.log) - len(self.request.prompt)

    def fresh_hint(self) -> Hint | None:
        """What the edge should know of the load, if it differs enough from what it was told."""
        hint, told = self.hint, self._told
        if hint is None or (told is None and hint.load < _WORTH_TELLING):
            return None
        if (
            told is not None
            and abs(hint.max_nodes - told.max_nodes) * 100 < _WORTH_TELLING * told.max_nodes
            and abs(hint.load - told.load) < _WORTH_TELLING
        ):
            return None
        self._told = hint
        return hint

    def forget_hint(self) -> None:
        """A new stream was told nothing yet."""
        self._told = None

    @property
    def draftable(self) -> int:
        """How deep a draft is of use: the last token of an answer is always the target's own."""
        return self.request.max_tokens - self.generated - 1

    @property
    def sure_rows(self) -> int:
        """Log tokens without KV."""
        return len(self.log) - self.computed

    def holds(self, now: float, patience_s: float) -> bool:
        """Whether the session waits for drafts, at most `patience_s`, rather than decode a token by itself."""
        if self.sure_rows > 1 or now >= self.hold_since + patience_s:
            return False
        if self.no_drafts or self.generated + 1 >= self.request.max_tokens:
            return False
        return self.more_drafts or not self.tree.children

    @property
    def overdue_at(self) -> float:
        """When drafts for its log's end are so late that nobody should wait for them; at once where none ever came."""
        return self.hold_since + _OVERDUE * (self.response_s or 0.0)

    def note_commit(self, now: float) -> None:
        """The log grew: from here on drafts for its new end can come."""
        self.hold_since, self.no_drafts = now, False
        if self.silent_since is None:
            self.silent_since = now
        self._committed_at[len(self.log)] = now
        if len(self._committed_at) > _REMEMBERED_COMMITS:
            del self._committed_at[next(iter(self._committed_at))]

    def awaited_s(self, soon_s: float, latest_s: float) -> float:
        """How long after its last commit a draft is worth waiting for, if drafts usually come within `soon_s`.

        After the first nodes of a burst the rest is waited for until `latest_s`. A device that let a whole commit pass
        in silence is not waited for. The first drafts travel behind the opening itself, however far the device is.
        """
        if self.response_s is not None and self.generated == 0:
            return latest_s if self.tree.children else soon_s
        if self.response_s is None or self.response_s > soon_s:
            return 0.0
        if self.silent_since is None:
            return latest_s
        return soon_s if self._heard else 0.0

    def keeps_up(self, soon_s: float) -> bool:
        """Whether the device's drafts usually come within `soon_s` of a commit, and did lately."""
        return self._heard and self.response_s is not None and self.response_s <= soon_s

    @property
    def _heard(self) -> bool:
        """Whether no whole commit passed since the device was heard."""
        return self.silent_since is None or self.silent_since >= self.hold_since

    def note_draft(self, anchor: int, now: float) -> None:
        """A draft for the log's end at `anchor` came (0: below an older one): follow how long drafts take."""
        self.silent_since = None
        started = self._committed_at.pop(anchor, None)
        if started is not None:
            taken = now - started
            self.response_s = taken if self.response_s is None else self.response_s + 0.3 * (taken - self.response_s)

    def note_refused(self, chosen: int) -> None:
        """Before the log grows by what the target chose: was it the edge's best draft there?"""
        if not self.request.report_refused:
            return
        drafted = [node for node in self.tree.children.values() if node.number != UNNUMBERED]
        if drafted:
            drafted.sort(key=lambda node: node.number)
            self._judge(drafted[0].position, tuple(node.token for node in drafted), refused=drafted[0].token != chosen)

    def note_late(self, first: int) -> None:
        """Nodes from number `first` on came: of those that the log has overtaken, which were wrong?"""
        if not self.request.report_refused:
            return
        for number in range(first, len(self.tree)):
            node = self.tree.node(number)
            if node.position < len(self.log) and (node.parent is None or not node.parent.dead):
                self._judge(node.position, (node.token,), refused=node.dead)

    def _judge(self, position: int, drafted: tuple[int, ...], *, refused: bool) -> None:
        """Each place is judged once, by the first that was drafted for it; siblings may come later."""
        if position > self._judged_to:
            self._judged_to = position
            if refused:
                self._refused.append(Refused(position, drafted))

    def take_refused(self) -> tuple[Refused, ...]:
        """What was noted since this was asked last."""
        taken, self._refused = tuple(self._refused), []
        return taken

    def likeliest(self, nodes: Iterable[Node], depth: int) -> tuple[Node, float]:
        """Of siblings at that depth, the one that is most likely right, and how likely that is."""
        rated = self.rated(nodes, depth)
        return max(rated, key=lambda pair: pair[1])

    def rated(self, nodes: Iterable[Node], depth: int) -> list[tuple[Node, float]]:
        """Siblings at that depth, each with the probability that it is right if its parent is."""
        rated, first = [], True
        for node in nodes:
            if node.survival is not None:
                rated.append((node, node.survival))
            else:
                rated.append((node, self.survival.of(depth, first=first)))
                first = False
        return rated

    def learn(self, judged: Sequence[Judged], committed: int) -> None:
        """A step ran with draft nodes, and committed that many tokens: follow how often drafts are right."""
        firsts = _first_numbers(judged)
        for node, depth, hit in judged:
            if node.number != UNNUMBERED:
                self.survival.observe(depth, first=node.number == firsts[depth], hit=hit)
        accepted = sum(1 for node, _, hit in judged if hit and node.number != UNNUMBERED)
        if any(depth == 1 and node.number != UNNUMBERED for node, depth, _ in judged):
            self.gain += _LEARNING_RATE * (accepted + 1 - self.gain)
        else:
            self.own_gain += _LEARNING_RATE * (committed - self.own_gain)

    def blocks_for(self, rows: int, block_size: int) -> int:
        """Blocks missing to hold `rows` more tokens behind the computed ones."""
        return max(0, -(-(self.computed + rows) // block_size) - len(self.blocks))

    def adopt(self, blocks: Sequence[int], block_size: int) -> None:
        """Append blocks to the table."""
        self.blocks.extend(blocks)
        starts = np.asarray(blocks, np.int64)[:, None] * block_size
        self.slots = np.concatenate((self.slots, (starts + np.arange(block_size)).reshape(-1)))

    def adopt_prefix(self, pool: BlockPool) -> None:
        """Start from what the prefix cache holds; the last token is computed anew, since its logits are needed."""
        blocks, digests = pool.match(self.log[:-1], self.request.scope)
        self.adopt(blocks, pool.block_size)
        self.digests = digests
        self.computed = len(blocks) * pool.block_size

    def seal(self, pool: BlockPool) -> None:
        """Register blocks that became full."""
        size = pool.block_size
        while (len(self.digests) + 1) * size <= self.computed:
            index = len(self.digests)
            parent = self.digests[-1] if self.digests else self.request.scope
            self.digests.append(pool.chain(parent, self.log[index * size : (index + 1) * size]))
            pool.seal(self.blocks[index], self.digests[-1])

    def drop_kv(self, pool: BlockPool) -> None:
        """Give all blocks back; the log stays, so everything can be computed again."""
        pool.release(self.blocks)
        self.blocks, self.digests, self.computed = [], [], 0
        self.slots = np.zeros(0, np.int64)

    def finish_of(self, eos: frozenset[int], context_length: int) -> Finish | None:
        """Why the session ends after its last token, if it does."""
        if self.generated and self.log[-1] in self.request.stop:
            return Finish.STOP
        if self.generated and self.log[-1] in eos and not self.request.ignore_eos:
            return Finish.EOS
        if self.generated >= self.request.max_tokens:
            return Finish.LENGTH
        if len(self.log) >= context_length:
            return Finish.CONTEXT
        return None


def _first_numbers(judged: Sequence[Judged]) -> dict[int, int]:
    """Per depth, the number of the edge's first node there: its best guess."""
    firsts: dict[int, int] = {}
    for node, depth, _ in judged:
        if node.number != UNNUMBERED:
            firsts[depth] = min(firsts.get(depth, node.number), node.number)
    return firsts
