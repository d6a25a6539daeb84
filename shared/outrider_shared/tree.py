"""The draft tree: candidate tokens that hang below the frontier of a log. Both sides keep the same one.

Rules:
    A node is useful if and only if its root path agrees with the log.
    * Nodes are numbered 0, 1, 2, ... in the order of `append`; a parent is an earlier node or a position of the log.
    * A node at a position that the log already covers is *agreed* if its token is the log's, else *dead*.
    * A child of a dead node is dead. A child of an agreed node hangs on the log.
    * `advance` moves the frontier: the child with that token becomes agreed and keeps its subtree, all others die.
    * Two nodes with the same parent and token are one: the later number is another name of the earlier node.
    * The cloud may hang nodes of its own (`grow`). They have no number, so the edge's numbering knows nothing of them;
      one that the edge drafts, too, gets its number then. Ancestors of a numbered node are numbered or agreed.

What it does not do: decide what to draft, or what to verify; bound the number of nodes (callers do, by `pending`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from outrider_shared.errors import DraftError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from outrider_shared.sampling.rule import Guess

UNNUMBERED = -1


class Node:
    """One candidate token.

    Attributes:
        number: Its (first) number; `UNNUMBERED` for one that only the cloud drafted.
        token: Token id.
        position: Index in the log that the token would take.
        parent: The node above; None where it hangs on the log.
        children: Live children by token.
        dead: Whether its path disagrees with the log.
        guess: The drafter's guess whose best token this is; None for a second best, and for the edge's nodes in the
            cloud.
        survival: Probability that it is right if its parent is; None for the edge's nodes in the cloud.
        depth: At the edge, how far below the frontier it was drafted: 1 for the next token.
    """

    __slots__ = ("children", "dead", "depth", "guess", "number", "parent", "position", "survival", "token")

    def __init__(self, number: int, token: int, position: int, parent: Node | None) -> None:
        self.number = number
        self.token = token
        self.position = position
        self.parent = parent
        self.children: dict[int, Node] = {}
        self.dead = False
        self.guess: Guess | None = None
        self.survival: float | None = None
        self.depth = 0


class DraftTree:
    """The tree of one session, over the log that it shares with its owner.

    Args:
        log: The committed tokens. The tree appends to it in `advance`; nobody else may.

    Attributes:
        log: The same list.
        children: Live nodes at the frontier, by token.
        pending: Number of live numbered nodes at or beyond the frontier.
        last_agreed: The deepest numbered node that the log grew through.
    """

    def __init__(self, log: list[int]) -> None:
        self.log = log
        self.children: dict[int, Node] = {}
        self.pending = 0
        self.last_agreed: Node | None = None
        self._nodes: list[Node] = []

    def __len__(self) -> int:
        """How many numbers were given out."""
        return len(self._nodes)

    def node(self, number: int) -> Node:
        """The node of that number.

        Raises:
            DraftError: if the number was never given out.
        """
        if not 0 <= number < len(self._nodes):
            raise DraftError(f"node {number} does not exist; {len(self._nodes)} nodes were sent")
        return self._nodes[number]

    def append(self, token: int, parent: Node | None, anchor: int = 0) -> Node:
        """Add a node below `parent`, or, with None, below the first `anchor` tokens of the log.

        Raises:
            DraftError: if the anchor lies beyond the log.
        """
        if parent is None and not 0 < anchor <= len(self.log):
            raise DraftError(f"anchor {anchor} is not a position of the log of {len(self.log)} tokens")
        position = anchor if parent is None else parent.position + 1
        if parent is not None and parent.dead:
            return self._dead(token, position, parent)
        if position < len(self.log):
            return self._behind(token, position, parent)
        siblings = self.children if position == len(self.log) or parent is None else parent.children
        known = siblings.get(token)
        if known is not None:
            if known.number == UNNUMBERED:
                known.number = len(self._nodes)
                self.pending += 1
            self._nodes.append(known)
            return known
        node = self._new(token, position, parent)
        siblings[token] = node
        self.pending += 1
        return node

    def grow(self, token: int, parent: Node | None, survival: float, guess: Guess | None = None) -> Node:
        """Add a node of the cloud's own below a live node, or, with None, below the log; an equal one is returned."""
        position = len(self.log) if parent is None else parent.position + 1
        assert parent is None or not (parent.dead or parent.position < len(self.log)), "a parent is live and pending"
        siblings = self.children if parent is None else parent.children
        node = siblings.get(token)
        if node is None:
            node = siblings[token] = Node(UNNUMBERED, token, position, parent)
            node.survival, node.guess = survival, guess
        return node

    def advance(self, token: int) -> Node | None:
        """Append a committed token to the log; returns the node that had it, if one did."""
        taken = self.children.pop(token, None)
        self._kill(self.children)
        self.log.append(token)
        self.children = {} if taken is None else taken.children
        if taken is not None and taken.number != UNNUMBERED:
            self.pending -= 1
            self.last_agreed = taken
        return taken

    def clear(self) -> None:
        """Drop all pending nodes; their numbers stay known as dead."""
        self._kill(self.children)
        self.children = {}

    def forget_dead_tail(self, first: int) -> None:
        """Give the numbers from `first` on out again: dead nodes lose theirs, live ones move up. For unsent nodes."""
        live = [node for node in self._nodes[first:] if not node.dead]
        # An agreed node is only needed as a parent of pending ones.
        self._nodes[first:] = live if self.pending else []
        for number, node in enumerate(self._nodes[first:], first):
            node.number = number

    def path(self, node: Node) -> list[int]:
        """Tokens from the first of the node's ancestors that hangs on the log down to the node."""
        tokens = []
        walk: Node | None = node
        while walk is not None:
            tokens.append(walk.token)
            walk = walk.parent
        return tokens[::-1]

    def walk(self) -> Iterator[Node]:
        """Live pending nodes, parents before children, shallow before deep."""
        level = list(self.children.values())
        while level:
            yield from level
            level = [child for node in level for child in node.children.values()]

    def _new(self, token: int, position: int, parent: Node | None) -> Node:
        node = Node(len(self._nodes), token, position, parent)
        self._nodes.append(node)
        return node

    def _dead(self, token: int, position: int, parent: Node | None) -> Node:
        node = self._new(token, position, parent)
        node.dead = True
        return node

    def _behind(self, token: int, position: int, parent: Node | None) -> Node:
        if self.log[position] != token:
            return self._dead(token, position, parent)
        return self._new(token, position, parent)

    def _kill(self, nodes: dict[int, Node]) -> None:
        stack = list(nodes.values())
        while stack:
            node = stack.pop()
            node.dead = True
            self.pending -= node.number != UNNUMBERED
            stack.extend(node.children.values())
            node.children = {}
