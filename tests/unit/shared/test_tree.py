"""The draft tree against a model that has no tree: every node is its root path, and its state is read off the log."""

from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from outrider_shared.errors import DraftError
from outrider_shared.tree import UNNUMBERED, DraftTree, Node

TOKENS = st.integers(0, 3)


@dataclass
class Drafted:
    """A node of the model.

    Attributes:
        path: All tokens of the sequence from the start of the log up to and with the node's own.
        cleared: Whether it, or a node above it, was pending when the tree was cleared.
    """

    path: tuple[int, ...]
    cleared: bool = False

    def dead(self, log: tuple[int, ...]) -> bool:
        shared = min(len(self.path), len(log))
        return self.cleared or self.path[:shared] != log[:shared]

    def pending(self, log: tuple[int, ...]) -> bool:
        return not self.dead(log) and len(self.path) > len(log)


class TreeAgainstPaths(RuleBasedStateMachine):
    """Appends, commits and clears at random; after each, every node is compared."""

    @initialize(prompt=st.lists(TOKENS, min_size=1, max_size=3))
    def begin(self, prompt: list[int]) -> None:
        self.tree = DraftTree(list(prompt))
        self.drafted: list[Drafted] = []
        self.own: list[Drafted] = []

    @property
    def log(self) -> tuple[int, ...]:
        return tuple(self.tree.log)

    @rule(token=TOKENS, back=st.integers(0, 3))
    def append_below_the_log(self, token: int, back: int) -> None:
        anchor = max(1, len(self.log) - back)
        node = self.tree.append(token, None, anchor)
        self._note(node, Drafted((*self.log[:anchor], token)))

    @precondition(lambda self: self.drafted)
    @rule(token=TOKENS, data=st.data())
    def append_below_a_node(self, token: int, data: st.DataObject) -> None:
        number = data.draw(st.integers(max(0, len(self.drafted) - 6), len(self.drafted) - 1))
        parent = self.drafted[number]
        node = self.tree.append(token, self.tree.node(number))
        self._note(node, Drafted((*parent.path, token), parent.cleared))

    @rule(token=TOKENS, data=st.data())
    def grow_a_node_of_the_clouds_own(self, token: int, data: st.DataObject) -> None:
        parent = data.draw(st.sampled_from([None, *self.tree.walk()]))
        node = self.tree.grow(token, parent, 0.5)
        above = self.log if parent is None else self._path(parent)
        self.own.append(Drafted((*above, token)))
        assert (node.token, node.position) == (token, len(above))

    def _note(self, node: Node, drafted: Drafted) -> None:
        self.drafted.append(drafted)
        assert node is self.tree.node(len(self.drafted) - 1)

    @rule(token=TOKENS)
    def commit_any_token(self, token: int) -> None:
        self._advance(token)

    @precondition(lambda self: self.tree.children)
    @rule(data=st.data())
    def commit_a_drafted_token(self, data: st.DataObject) -> None:
        self._advance(data.draw(st.sampled_from(sorted(self.tree.children))))

    def _advance(self, token: int) -> None:
        before = self.log
        drafted, own = (
            any(d.pending(before) and d.path == (*before, token) for d in nodes) for nodes in (self.drafted, self.own)
        )
        agreed = self.tree.last_agreed
        taken = self.tree.advance(token)
        assert self.log == (*before, token)
        assert (taken is not None) == (drafted or own)
        if taken is not None:
            assert (taken.token, taken.position) == (token, len(before))
            assert (taken.number != UNNUMBERED) == drafted
        assert self.tree.last_agreed is (taken if drafted else agreed)

    @rule()
    def clear(self) -> None:
        self.tree.clear()
        for drafted in (*self.drafted, *self.own):
            drafted.cleared = drafted.cleared or drafted.pending(self.log)

    @invariant()
    def nodes_are_as_their_paths_say(self) -> None:
        assert len(self.tree) == len(self.drafted)
        for number, drafted in enumerate(self.drafted):
            node = self.tree.node(number)
            assert node.dead == drafted.dead(self.log)
            assert node.position == len(drafted.path) - 1
            assert node.token == drafted.path[-1]
            assert node.number <= number
            below = self.tree.path(node)
            assert tuple(below) == drafted.path[len(drafted.path) - len(below) :]

    @invariant()
    def live_nodes_are_the_pending_paths_each_once(self) -> None:
        live = [self._path(node) for node in self.tree.walk()]
        pending = {d.path for d in self.drafted if d.pending(self.log)}
        assert len(live) == len(set(live))
        assert len(pending) == self.tree.pending
        assert set(live) == pending | {d.path for d in self.own if d.pending(self.log)}
        assert pending == {self._path(node) for node in self.tree.walk() if node.number != UNNUMBERED}
        assert set(self.tree.children) == {path[-1] for path in live if len(path) == len(self.log) + 1}

    def _path(self, node: Node) -> tuple[int, ...]:
        below = self.tree.path(node)
        return (*self.log[: node.position + 1 - len(below)], *below)

    @invariant()
    def walking_meets_parents_before_children(self) -> None:
        seen: set[int] = set()
        depth = 0
        for node in self.tree.walk():
            assert node.position >= depth
            assert node.position == len(self.log) or id(node.parent) in seen
            seen.add(id(node))
            depth = node.position

    @invariant()
    def equal_live_nodes_are_one(self) -> None:
        objects: dict[tuple[int, ...], Node] = {}
        for number, drafted in enumerate(self.drafted):
            if drafted.pending(self.log):
                assert objects.setdefault(drafted.path, self.tree.node(number)) is self.tree.node(number)


TestTree = TreeAgainstPaths.TestCase
TestTree.settings = settings(max_examples=120, stateful_step_count=30)


def chain(tree: DraftTree, *tokens: int) -> list[Node]:
    nodes: list[Node] = []
    for token in tokens:
        nodes.append(tree.append(token, nodes[-1] if nodes else None, len(tree.log)))
    return nodes


def test_a_commit_keeps_the_subtree_of_the_committed_token_and_kills_its_siblings():
    tree = DraftTree([9])
    right, deeper = chain(tree, 1, 2)
    wrong = tree.append(5, None, 1)
    below_wrong = tree.append(2, wrong)
    assert tree.advance(1) is right
    assert (right.dead, deeper.dead, wrong.dead, below_wrong.dead) == (False, False, True, True)
    assert list(tree.walk()) == [deeper]
    assert tree.pending == 1


def test_a_token_that_nobody_drafted_ends_the_whole_tree():
    tree = DraftTree([9])
    nodes = chain(tree, 1, 2, 3)
    assert tree.advance(7) is None
    assert all(node.dead for node in nodes)
    assert (tree.pending, tree.children, tree.last_agreed) == (0, {}, None)


def test_a_late_draft_of_tokens_that_were_committed_meanwhile_hangs_its_children_below_the_frontier():
    tree = DraftTree([9])
    tree.advance(1)
    tree.advance(2)
    late = [tree.append(1, None, 1)]
    for token in (2, 3):
        late.append(tree.append(token, late[-1]))
    assert [node.dead for node in late] == [False, False, False]
    assert tree.children == {3: late[2]}
    assert tree.pending == 1


def test_a_late_draft_that_took_another_turn_is_dropped_with_everything_below():
    tree = DraftTree([9])
    tree.advance(1)
    wrong = tree.append(4, None, 1)
    assert wrong.dead
    assert tree.append(1, wrong).dead
    assert tree.pending == 0


def test_a_node_that_the_cloud_drafted_first_gets_its_number_when_the_edge_drafts_it_too():
    tree = DraftTree([9])
    own = [tree.grow(1, None, 0.9)]
    own.append(tree.grow(2, own[0], 0.8))
    assert tree.pending == 0
    assert tree.append(1, None, 1) is own[0]
    assert [node.number for node in own] == [0, UNNUMBERED]
    assert tree.pending == 1
    tree.advance(1)
    tree.advance(2)
    assert tree.last_agreed is own[0]


@pytest.mark.parametrize("anchor", [0, -1, 4])
def test_a_node_cannot_hang_before_or_beyond_the_log(anchor: int):
    with pytest.raises(DraftError, match="anchor"):
        DraftTree([1, 2, 3]).append(0, None, anchor)


@pytest.mark.parametrize("number", [-1, 2, 1000])
def test_a_number_that_was_never_given_out_is_refused(number: int):
    tree = DraftTree([1])
    chain(tree, 1, 2)
    with pytest.raises(DraftError, match=f"node {number} does not exist; 2 nodes"):
        tree.node(number)


def test_unsent_dead_nodes_give_their_numbers_back():
    """Sent numbers stay; the live ones behind them move up, in order, and the next node takes the next number."""
    tree = DraftTree([9])
    sent = chain(tree, 1, 2)
    tree.append(7, None, 1)
    live = [tree.append(3, sent[1]), tree.append(4, sent[1])]
    tree.append(8, tree.node(2))
    tree.advance(1)
    tree.forget_dead_tail(2)
    assert [node.number for node in (*sent, *live)] == [0, 1, 2, 3]
    assert [tree.node(n) for n in range(len(tree))] == [*sent, *live]
    assert tree.append(5, live[0]).number == 4


def test_when_nothing_is_pending_all_unsent_numbers_are_given_back():
    tree = DraftTree([9])
    chain(tree, 1, 2)
    for token in (1, 2, 3):
        tree.advance(token)
    tree.forget_dead_tail(1)
    assert len(tree) == 1


def test_unsent_agreed_nodes_are_kept_while_drafts_hang_below_them():
    tree = DraftTree([9])
    nodes = chain(tree, 1, 2)
    tree.advance(1)
    tree.forget_dead_tail(0)
    assert [tree.node(n) for n in range(len(tree))] == nodes
