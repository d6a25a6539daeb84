"""What one session on the device knows: the log, its draft tree, and how much of it was sent.

Rules:
    * The log grows by commits alone, and each is checked against the length that the cloud tells.
    * Nodes are numbered in the order they are sent. Nodes that die before they are sent are forgotten.
    * The tip, below which the next guess belongs, is the open leaf with the greatest reach: the probability that it is
      on the committed path. So the tree grows best-first, and a branch is left while another one is likelier.
    * After a broken stream the log stays, the tree starts anew.

What it does not do: wait, send, draft or keep time.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from outrider_edge.session.events import Origin, Token, Totals
from outrider_shared.calibration import Calibrations
from outrider_shared.errors import ProtocolError
from outrider_shared.logprobs import unpack_logprobs
from outrider_shared.packing import unpack_tokens
from outrider_shared.tree import DraftTree
from outrider_shared.wire import NODES_BEFORE_OPENED
from outrider_wire.v1 import verifier_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Sequence

    from outrider_edge.session.events import GenerateRequest
    from outrider_edge.session.policy import DraftPolicy
    from outrider_shared.logprobs import TokenLogprobs
    from outrider_shared.sampling.rule import Guess
    from outrider_shared.tree import Node

# By the numbers of `Commit.origins`; the target's own tokens are told apart here.
_ORIGINS = (None, Origin.ACCEPTED, Origin.CLOUD_LOOKUP, Origin.CLOUD_DRAFT)
_DRAFTED = {Origin.ACCEPTED, Origin.CLOUD_LOOKUP, Origin.CLOUD_DRAFT}

_REASONS = {
    pb.FINISH_REASON_EOS: "eos",
    pb.FINISH_REASON_STOP: "stop",
    pb.FINISH_REASON_LENGTH: "length",
    pb.FINISH_REASON_CONTEXT: "context",
    pb.FINISH_REASON_CANCELLED: "cancelled",
}


class SessionState:
    """State of one session.

    Args:
        request: What is generated.
        policy: How to draft.
        calibration: Margin to survival; learns from each commit.
        vocabulary: Width of a token id on the wire.

    Attributes:
        tip: Where the next guess belongs; None is the frontier.
        reach: Probability that the tip is on the committed path.
        at_end: Whether no further node could win anything: the last token is always the target's own.
        burst_done: Whether more nodes would bring less than they cost now: what there is may go up.
    """

    def __init__(
        self, request: GenerateRequest, policy: DraftPolicy, vocabulary: int, calibration: Calibrations | None = None
    ) -> None:
        if request.params.shaped:
            request = replace(request, params=replace(request.params, answer_start=len(request.prompt)))
        self.request = request
        self.policy = policy
        self.calibration = calibration or Calibrations()
        self.vocabulary = vocabulary
        self.log: list[int] = list(request.prompt)
        self.totals = Totals()
        self.finish: str | None = None
        self.lease = b""
        self.tip: Node | None = None
        self.reach = 1.0
        self.burst_done = self.at_end = False
        self._starts: list[Node] = []
        self._depth = self._passes = 0
        self.reset()

    @property
    def committed(self) -> list[int]:
        """Tokens beyond the prompt."""
        return self.log[len(self.request.prompt) :]

    def reset(self) -> None:
        """Forget all drafts: a new stream numbers its nodes from 0."""
        self.tree = DraftTree(self.log)
        self.opened = False
        self.sent = 0
        self.max_nodes = self.most_nodes = NODES_BEFORE_OPENED
        self.max_per_message = NODES_BEFORE_OPENED
        self.context_length = 0
        self._begin_anew()

    @property
    def full(self) -> bool:
        """Whether as many nodes are pending as the cloud takes: no more come before a commit."""
        return self.tree.pending + self.policy.width > self.max_nodes

    # ---- drafting -----------------------------------------------------------------------------------------------

    def path(self) -> list[int]:
        """The sequence that the next draft step continues: the log and the pending nodes down to the tip."""
        tokens: list[int] = []
        node = self.tip
        while node is not None and node.position >= len(self.log):
            tokens.append(node.token)
            node = node.parent
        return self.log + tokens[::-1]

    def grow(self, guess: Guess | None) -> None:
        """Hang the candidates of a guess below the tip, as many as are worth it; then aim at the next."""
        if self.burst_done:
            self._begin_ahead()
        if guess is None or not guess.tokens:
            self.exhausted = self.burst_done = True
            return
        parent, depth, reach = self.tip, self._depth + 1, self.reach
        for rank, survival in enumerate(self.calibration.survivals_of(guess, depth)):
            if rank and reach * survival < self.policy.sibling_survival:
                break
            node = self.tree.append(guess.tokens[rank], parent, len(self.log))
            node.survival, node.depth, node.guess = survival, depth, None if rank else guess
        self._passes += 1
        self.flushed = False
        self._aim()

    def drafted(self) -> list[tuple[int, Guess | None]]:
        """The likeliest pending path, each token with the guess that it is the best of."""
        found: list[tuple[int, Guess | None]] = []
        children = self.tree.children
        while children:
            node = max(children.values(), key=_survival)
            found.append((node.token, node.guess))
            children = node.children
        return found

    def hang(self, tokens: Sequence[int], guesses: Sequence[Guess | None]) -> None:
        """Hang a chain below the frontier, as far as the cloud takes nodes; what hangs there already stays."""
        node, children = None, self.tree.children
        for token, guess in zip(tokens, guesses, strict=True):
            child = children.get(token)
            if child is None:
                if self.tree.pending >= self.max_nodes:
                    break
                child = self.tree.append(token, node, len(self.log))
                child.guess = guess
                child.survival = None if guess is None else self.calibration.survival_of(guess)
            node, children = child, child.children
        if node is not None:
            self._starts, self._passes, self.flushed = [], 0, False
            self._aim()
            self.burst_done = True

    @property
    def bursts_ahead(self) -> int:
        """Bursts that start beyond the frontier."""
        return sum(1 for start in self._starts if start.position >= len(self.log))

    def unsent(self) -> list[Node]:
        """Nodes that the cloud does not have, as many as one message takes."""
        count = min(len(self.tree) - self.sent, self.max_per_message, self.policy.per_message)
        return [self.tree.node(self.sent + i) for i in range(count)]

    def more_after(self, nodes: Sequence[Node]) -> bool:
        """Whether further nodes of the burst follow a message with these, without a commit in between."""
        return not (self.burst_done or self.full) or len(self.tree) - self.sent > len(nodes)

    def mark_sent(self, nodes: list[Node]) -> None:
        """The nodes are on their way."""
        self.sent += len(nodes)
        self.totals.drafted += len(nodes)

    # ---- what the cloud says ------------------------------------------------------------------------------------

    def open(self, message: pb.Opened) -> None:
        """The cloud took the session.

        Raises:
            ProtocolError: if it does not know as many tokens as we do.
        """
        if message.length < len(self.log):
            raise ProtocolError(f"the cloud knows {message.length} tokens, {len(self.log)} are committed")
        self.opened = True
        self.lease = message.lease
        self.max_nodes = self.most_nodes = message.max_nodes
        self.max_per_message = max(1, message.max_nodes_per_message)
        self.context_length = message.context_length
        self._aim()
        if self.totals.connects <= 1:
            # What a later stream finds is mostly this session's own.
            self.totals.cached_tokens = message.cached_tokens

    def commit(self, message: pb.Commit) -> list[Token]:
        """Take over what the cloud committed; returns the new tokens.

        Raises:
            ProtocolError: if the commit does not fit the log or the tree.
        """
        path = self._accepted_path(message)
        explicit = unpack_tokens(message.tokens, message.count, self.vocabulary)
        tokens = path + explicit
        if len(self.log) + len(tokens) != message.length:
            have = len(self.log) + len(tokens)
            raise ProtocolError(f"after this commit the log has {have} tokens here, {message.length} in the cloud")
        logprobs = self._logprobs(message, len(tokens))
        sources = (
            unpack_tokens(message.origins, len(explicit), len(_ORIGINS)) if message.origins else [0] * len(explicit)
        )
        origins = self._advance(path, explicit, [_ORIGINS[source] for source in sources])
        self.totals.accepted += origins.count(Origin.ACCEPTED)
        self._settle()
        self._count(message, tokens)
        if not logprobs:
            return [Token(t, o) for t, o in zip(tokens, origins, strict=True)]
        return [Token(t, o, p.logprob, p.top) for t, o, p in zip(tokens, origins, logprobs, strict=True)]

    def _logprobs(self, message: pb.Commit, count: int) -> list[TokenLogprobs]:
        """One per token where the request asked for them; checked before the log grows."""
        if not self.request.logprobs:
            return []
        packed = (message.token_logprobs, message.top_tokens, message.top_logprobs)
        top = min(self.request.top_logprobs, self.vocabulary)
        return unpack_logprobs(packed, count, top, self.vocabulary)

    def _accepted_path(self, message: pb.Commit) -> list[int]:
        if message.accepted == 0:
            return []
        if message.accepted > self.sent:
            raise ProtocolError(f"the cloud accepted node {message.accepted - 1}, {self.sent} were sent")
        node = self.tree.node(message.accepted - 1)
        path = self.tree.path(node)
        first = node.position - len(path) + 1
        known = self.log[first : node.position + 1]
        if path[: len(known)] != known or first > len(self.log):
            raise ProtocolError(f"the path of accepted node {node.number} disagrees with the log")
        return path[len(known) :]

    def _advance(self, path: list[int], explicit: list[int], told: list[Origin | None]) -> list[Origin]:
        for token in path:
            self._learn(token)
            self.tree.advance(token)
        origins = [Origin.ACCEPTED] * len(path)
        for token, known in zip(explicit, told, strict=True):
            refused = any(child.number < self.sent for child in self.tree.children.values())
            drafted = bool(origins) and origins[-1] in _DRAFTED
            self._learn(token)
            self.tree.advance(token)
            own = Origin.CORRECTION if refused else Origin.BONUS if drafted else Origin.CLOUD
            origins.append(known or own)
        return origins

    def _learn(self, token: int) -> None:
        """The target chose `token` at the frontier: was it what we guessed there?"""
        for node in self.tree.children.values():
            if node.guess is not None:
                self.calibration.learn(node.guess, token, node.depth)

    def _settle(self) -> None:
        """Let go of what the commit made useless, and find where to draft on."""
        self.tree.forget_dead_tail(self.sent)
        self.exhausted = False
        self._starts = [start for start in self._starts if start.position >= len(self.log) and not start.dead]
        if not self.tree.children:
            self._begin_anew()
        else:
            self._aim()

    def _count(self, message: pb.Commit, tokens: list[int]) -> None:
        totals = self.totals
        if tokens:
            totals.cloud_steps += 1 + message.more_steps
        if message.max_nodes:
            self.max_nodes = message.max_nodes
        if message.finish:
            self.finish = _REASONS.get(message.finish, "unknown")
        if message.HasField("usage") and totals.connects == 1:
            # A session that moved between replicas has our own count only.
            totals.accepted, totals.cloud_rows = message.usage.accepted, message.usage.rows
            totals.cloud_steps, totals.cached_tokens = message.usage.steps, message.usage.cached_tokens
            totals.cloud_lookups, totals.cloud_drafts = message.usage.accepted_lookup, message.usage.accepted_cloud
            totals.cloud_busy_s = message.usage.busy_us / 1e6
            totals.lookup_rows, totals.draft_rows = message.usage.lookup_rows, message.usage.cloud_rows

    def _begin_anew(self) -> None:
        """Start at the frontier."""
        self._starts, self._passes = [], 0
        self.exhausted = self.flushed = False
        self._aim()

    def _begin_ahead(self) -> None:
        """Draft on beyond a burst whose verdict is on its way."""
        assert self.tip is not None, "a burst that is done has a tip"
        self._starts.append(self.tip)
        self._passes, self.burst_done = 0, False

    def _aim(self) -> None:
        """Find the open leaf that is likeliest on the committed path, and see whether it is worth a pass."""
        end = len(self.request.prompt) + self.request.max_tokens
        last = (min(end, self.context_length) if self.context_length else end) - 3
        fresh = not self.tree.children
        best: tuple[float, int, Node | None] = (1.0 if fresh else 0.0, 0, None)
        inner = [(1.0, 1, self.tree.children)]
        while inner:
            above, depth, children = inner.pop()
            for node in children.values():
                reach = above * _survival(node)
                if reach <= best[0] or node.position > last:
                    continue
                if node.children:
                    inner.append((reach, depth + 1, node.children))
                else:
                    best = (reach, depth, node)
        self.reach, self._depth, self.tip = best
        self.at_end = len(self.log) - 1 > last if fresh else self.tip is None
        policy = self.policy
        least = policy.ahead_survival if self._starts else policy.stop_survival
        over = self._passes >= policy.depth or self.reach < least or self.at_end
        self.burst_done = over and not fresh


def _survival(node: Node) -> float:
    return 1.0 if node.survival is None else node.survival
