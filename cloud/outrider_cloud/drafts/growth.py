"""A session's draft tree as a draft model makes it larger: the likeliest leaf first, on paper until it is grafted.

A growth looks at the tree once, from the log as it is then. What the model says below its leaves is kept by path, so
that it may be said while the target computes: `graft` hangs up whatever still agrees with the log, and finds out which
guesses were right that the log has passed meanwhile.
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING

from outrider_cloud.drafts.model import READING, Ask
from outrider_cloud.engine.schedule import WORTH_A_ROW
from outrider_cloud.engine.session import State

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from outrider_cloud.engine.session import Session
    from outrider_shared.calibration import Calibrations
    from outrider_shared.sampling.rule import Guess
    from outrider_shared.tree import Node

# Survival of the next guess, before it is made: less than the mean, since others may bring the same token (0041).
EXPECTED = 0.5
# Of the probability that the best candidate leaves, how much the next one takes (measured on the bundled pair).
_NEXT_BEST_SHARE = 0.6


class Rows:
    """Rows that a step has for draft nodes, given to the worthiest.

    Args:
        count: How many.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        # The reaches of the nodes that would run; the least on top.
        self._running: list[float] = []

    @property
    def least(self) -> float:
        """What a node must be worth more than to run; 0 while rows are empty."""
        if len(self._running) < self._count:
            return 0.0
        return self._running[0] if self._running else 1.0

    @property
    def tokens(self) -> float:
        """Tokens that the nodes which run are expected to bring."""
        return sum(self._running)

    def below(self, reach: float) -> int:
        """How many rows are empty, or run what is worth no more than that."""
        return self._count - sum(1 for other in self._running if other > reach)

    def add(self, reach: float) -> bool:
        """A node more, committed with that probability; returns whether it runs."""
        if len(self._running) < self._count:
            heapq.heappush(self._running, reach)
            return True
        return bool(self._running) and heapq.heappushpop(self._running, reach) < reach


class Growth:
    """One session's tree and what is guessed below it.

    Args:
        session: Whose.
        rows: Of its nodes, how many a step can run.
        least: A node that is committed with less than this probability is left out, and nothing is asked below it.
        shared: The rows of a step that it competes for with others; None has room for all.

    Attributes:
        told: Guesses with the pending tokens that they follow, in the order made.
    """

    def __init__(self, session: Session, rows: int, least: float, shared: Rows | None = None) -> None:
        self.session = session
        self.told: list[tuple[tuple[int, ...], Guess]] = []
        self._log, self._limit = list(session.log), session.draftable
        self._rows, self._least = rows, least
        self._own, self._shared = Rows(rows), shared
        self._order = 0
        self._leaves: list[tuple[float, int, tuple[int, ...]]] = []
        if session.tree.children:
            self._gather(session.tree.children.values(), (), 1.0)
        else:
            self._offer((), 1.0)

    @property
    def live(self) -> bool:
        """Whether the session still runs."""
        return self.session.finish is None and self.session.state is State.RUNNING

    @property
    def reach(self) -> float:
        """Probability that the best leaf is committed; 0 if nothing may grow.

        However much time there is, no more is asked for than this step and the next can run.
        """
        if not self._leaves or len(self.told) >= 2 * self._rows:
            return 0.0
        reach = -self._leaves[0][0]
        return reach if reach >= self._least else 0.0

    @property
    def gain(self) -> float:
        """Tokens that one more guess is expected to win."""
        child = self.reach * EXPECTED
        if child < self._least:
            return 0.0
        displaced = self._own.least if self._shared is None else max(self._own.least, self._shared.least)
        return max(0.0, child - displaced)

    def ask(self) -> Ask:
        """What to ask the model next."""
        return Ask(self.session.request.session_id, self._log, list(self._leaves[0][2]), self.session.request.params)

    def take(self, guess: Guess | None, survival_of: Callable[[Guess], float]) -> None:
        """Put the answer below the best leaf. Without one nothing more is asked."""
        if guess is READING:
            return
        if guess is None or not guess.tokens:
            self._leaves.clear()
            return
        reach, _, tail = heapq.heappop(self._leaves)
        self.told.append((tail, guess))
        for rank, (token, survival) in enumerate(branches(guess, survival_of(guess))):
            if rank and survival < WORTH_A_ROW:
                break
            self._add((*tail, token), -reach * survival)
            self._offer((*tail, token), -reach * survival)

    def graft(self, calibration: Calibrations) -> int:
        """Hang the guesses into the tree as it is now; returns how many were of use, or had the word that came."""
        session, used = self.session, 0
        grown, begun = session.log, len(self._log)
        if grown[:begun] != self._log:
            return 0
        since = tuple(grown[begun:])
        for tail, guess in self.told:
            known = min(len(tail), len(since))
            if tail[:known] != since[:known]:
                continue
            if len(tail) < len(since):
                calibration.observe(guess, hit=since[len(tail)] == guess.tokens[0])
                used += since[len(tail)] in guess.tokens
                continue
            used += self._hang(tail[known:], guess, calibration)
        return used

    def _hang(self, tail: tuple[int, ...], guess: Guess, calibration: Calibrations) -> bool:
        """Hang a guess below the pending tokens of `tail`, if they hang there."""
        session = self.session
        node, children = None, session.tree.children
        for token in tail:
            node = children.get(token)
            if node is None:
                return False
            children = node.children
        if len(tail) >= session.draftable:
            return False
        for rank, (token, survival) in enumerate(branches(guess, calibration.survival_of(guess))):
            if rank and survival < WORTH_A_ROW:
                break
            session.tree.grow(token, node, survival, None if rank else guess)
        return True

    def _gather(self, nodes: Iterable[Node], tail: tuple[int, ...], reach: float) -> None:
        """Take in live nodes that hang below `tail`."""
        for node, survival in self.session.rated(nodes, len(tail) + 1):
            if reach * survival < self._least:
                continue
            path = (*tail, node.token)
            self._add(path, reach * survival)
            if node.children:
                self._gather(node.children.values(), path, reach * survival)
            else:
                self._offer(path, reach * survival)

    def _add(self, path: tuple[int, ...], reach: float) -> None:
        if len(path) > self._limit:
            return
        if self._own.add(reach) and self._shared is not None:
            self._shared.add(reach)

    def _offer(self, path: tuple[int, ...], reach: float) -> None:
        if len(path) < self._limit:
            self._order += 1  # ties go to what was drafted first
            heapq.heappush(self._leaves, (-reach, self._order, path))


def branches(guess: Guess, survival: float) -> list[tuple[int, float]]:
    """The tokens of a guess, each with the probability that it is right."""
    found, left = [(guess.tokens[0], survival)], 1.0 - survival
    for token in guess.tokens[1:]:
        left *= _NEXT_BEST_SHARE
        found.append((token, left))
    return found
