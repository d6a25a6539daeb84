"""Drafts over the wire: both sides keep the same tree, few bytes travel, and malformed messages are refused."""

from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from outrider_shared.errors import DraftError, OutriderError, ProtocolError
from outrider_shared.packing import pack_tokens, pack_varints, packed_size
from outrider_shared.tree import DraftTree, Node
from outrider_shared.wire import FRAME_BYTES, append_draft, draft_to_wire
from outrider_wire.v1 import verifier_pb2 as pb

VOCABULARY = 5
TOKENS = st.integers(0, VOCABULARY - 1)


def live_paths(tree: DraftTree) -> dict[tuple[int, ...], int]:
    """Number of each live node by its tokens from the frontier on."""
    found = {}
    for node in tree.walk():
        tokens, walk = [], node
        while walk is not None and walk.position >= len(tree.log):
            tokens.append(walk.token)
            walk = walk.parent
        found[tuple(tokens[::-1])] = node.number
    return found


class TwoSides(RuleBasedStateMachine):
    """An edge and a cloud with messages under way in both directions, delivered at random."""

    @initialize(prompt=st.lists(TOKENS, min_size=1, max_size=3))
    def begin(self, prompt: list[int]) -> None:
        self.edge, self.cloud = DraftTree(list(prompt)), DraftTree(list(prompt))
        self.sent = 0
        self.up: deque[bytes] = deque()
        self.down: deque[int] = deque()

    @rule(token=TOKENS, data=st.data())
    def draft(self, token: int, data: st.DataObject) -> None:
        parents: list[Node | None] = [None, *self.edge.walk()]
        parent = data.draw(st.sampled_from(parents))
        siblings = self.edge.children if parent is None else parent.children
        if token not in siblings and (parent is not None or self._can_hang_on_the_log()):
            self.edge.append(token, parent, len(self.edge.log))

    def _can_hang_on_the_log(self) -> bool:
        """One message has one anchor; the edge starts its next burst after it sent the last."""
        unsent = [self.edge.node(n) for n in range(self.sent, len(self.edge))]
        return all(node.position == len(self.edge.log) for node in unsent if node.parent is None)

    @rule(size=st.integers(1, 5))
    def send(self, size: int) -> None:
        nodes = [self.edge.node(n) for n in range(self.sent, min(len(self.edge), self.sent + size))]
        if nodes:
            self.up.append(draft_to_wire(nodes, self.sent - 1, VOCABULARY).SerializeToString())
            self.sent += len(nodes)

    @rule()
    def deliver_draft(self) -> None:
        if self.up:
            append_draft(self.cloud, pb.Draft.FromString(self.up.popleft()), VOCABULARY)

    @rule(token=TOKENS)
    def commit_any_token(self, token: int) -> None:
        self.cloud.advance(token)
        self.down.append(token)

    @precondition(lambda self: self.cloud.children)
    @rule(data=st.data())
    def commit_a_drafted_token(self, data: st.DataObject) -> None:
        self.commit_any_token(data.draw(st.sampled_from(sorted(self.cloud.children))))

    @rule()
    def deliver_commit(self) -> None:
        if self.down:
            self.edge.advance(self.down.popleft())
            self.edge.forget_dead_tail(self.sent)

    def teardown(self) -> None:
        """Everything arrives in the end; then both sides hold the same live nodes under the same numbers."""
        if not hasattr(self, "edge"):
            return
        self.send(10_000)
        while self.up:
            self.deliver_draft()
        while self.down:
            self.deliver_commit()
        assert self.edge.log == self.cloud.log
        assert len(self.edge) == len(self.cloud) == self.sent
        assert live_paths(self.edge) == live_paths(self.cloud)
        assert self.edge.pending == self.cloud.pending


TestTwoSides = TwoSides.TestCase
TestTwoSides.settings = settings(max_examples=200, stateful_step_count=40)


@st.composite
def drafted_trees(draw: st.DrawFn) -> tuple[list[tuple[int, int]], int]:
    """(parent number or -1, token) of each node, no two alike; and the vocabulary."""
    vocabulary = draw(st.sampled_from([2, 97, 4096, 50_000, 151_936]))
    nodes: list[tuple[int, int]] = []
    for number in range(draw(st.integers(1, 40))):
        node = draw(st.integers(-1, number - 1)), draw(st.integers(0, vocabulary - 1))
        nodes += [node] if node not in nodes else []
        if len(nodes) <= number:
            break
    return nodes, vocabulary


def grow(tree: DraftTree, nodes: list[tuple[int, int]]) -> list[Node]:
    return [tree.append(token, tree.node(parent) if parent >= 0 else None, len(tree.log)) for parent, token in nodes]


@given(drafted_trees(), st.data())
def test_any_tree_in_any_split_arrives_as_it_was_drafted(case: tuple[list, int], data: st.DataObject):
    nodes, vocabulary = case
    edge, cloud = DraftTree([1, 1]), DraftTree([1, 1])
    drafted = grow(edge, nodes)
    first = 0
    while first < len(drafted):
        size = data.draw(st.integers(1, len(drafted) - first))
        message = draft_to_wire(drafted[first : first + size], first - 1, vocabulary, more=first % 2 == 0)
        assert message.more == (first % 2 == 0)
        arrived = append_draft(cloud, pb.Draft.FromString(message.SerializeToString()), vocabulary)
        assert [node.number for node in arrived] == list(range(first, first + size))
        first += size
    assert live_paths(cloud) == live_paths(edge)


@given(st.lists(st.integers(0, 4095), min_size=1, max_size=30), st.booleans(), st.integers(0, 9))
def test_a_chain_costs_no_parent_bytes(tokens: list[int], on_the_log: bool, before: int):
    """Whether it begins at the frontier or goes on below the node that was sent last."""
    tree = DraftTree([3] * (before + 1))
    first = 0 if on_the_log else 1
    nodes = grow(tree, [(number - 1, token) for number, token in enumerate([7] * first + tokens)])[first:]
    message = draft_to_wire(nodes, first - 1, 4096)
    assert message.parents == b""
    assert message.HasField("anchor") == on_the_log
    assert len(message.tokens) == -(-len(tokens) * 12 // 8)


@given(drafted_trees(), st.integers(1, 16_000))
def test_a_tree_costs_one_byte_more_a_node_than_its_packed_tokens(case: tuple[list, int], length: int):
    nodes, vocabulary = case
    message = draft_to_wire(grow(DraftTree([0] * length), nodes), -1, vocabulary)
    assert len(message.tokens) == packed_size(len(nodes), vocabulary)
    assert len(message.parents) in {0, len(nodes)}
    # The bytes of gRPC, HTTP/2 and of our own fields around them, with lengths and a log position of up to two bytes.
    around = pb.DecodeRequest(draft=message).ByteSize() + FRAME_BYTES - len(message.tokens) - len(message.parents)
    assert around <= 26


@given(st.lists(st.integers(0, 65_535), min_size=1, max_size=40), st.integers(1, 16_000))
def test_a_chain_takes_at_most_two_bytes_a_token_and_24_a_message(tokens: list[int], length: int):
    nodes = grow(DraftTree([0] * length), [(number - 1, token) for number, token in enumerate(tokens)])
    request = pb.DecodeRequest(draft=draft_to_wire(nodes, -1, 65_536))
    assert request.ByteSize() + FRAME_BYTES <= 2 * len(tokens) + 24


def test_nodes_of_one_message_must_follow_each_other():
    tree = DraftTree([1])
    nodes = grow(tree, [(-1, 1), (0, 2), (1, 3)])
    with pytest.raises(DraftError, match="do not follow node 4"):
        draft_to_wire(nodes, 4, VOCABULARY)
    with pytest.raises(DraftError, match="do not follow"):
        draft_to_wire([nodes[0], nodes[2]], -1, VOCABULARY)


def test_one_message_cannot_hang_nodes_at_several_log_positions():
    tree = DraftTree([1])
    nodes = grow(tree, [(-1, 1), (0, 2)])
    tree.advance(1)
    nodes += grow(tree, [(-1, 3)])
    with pytest.raises(DraftError, match="several log positions"):
        draft_to_wire(nodes, -1, VOCABULARY)


def draft(ids: list[int], /, parents: bytes = b"", anchor: int | None = None, **changes: object) -> pb.Draft:
    message = pb.Draft(tokens=pack_tokens(ids, 8), count=len(ids), parents=parents, anchor=anchor)
    for name, value in changes.items():
        setattr(message, name, value)
    return message


@pytest.mark.parametrize(
    ("message", "error", "words"),
    [
        pytest.param(draft([1, 2], anchor=3, count=9), ProtocolError, "packed tokens", id="count too large"),
        pytest.param(draft([1, 2], anchor=3, count=2**32 - 1), ProtocolError, "packed tokens", id="count huge"),
        pytest.param(draft([1, 2], anchor=3, tokens=b""), ProtocolError, "packed tokens", id="no tokens"),
        pytest.param(draft([1], anchor=3, tokens=b"\xf9"), ProtocolError, "fill bits", id="fill bits"),
        pytest.param(draft([1, 7], anchor=3), ProtocolError, "outside the vocabulary", id="token id"),
        pytest.param(draft([1, 2], b"\0", anchor=3), ProtocolError, "varints", id="a parent missing"),
        pytest.param(draft([1, 2], b"\0\1\1", anchor=3), ProtocolError, "varints", id="a parent too many"),
        pytest.param(draft([1, 2], b"\0\x81", anchor=3), ProtocolError, "torn", id="torn parent"),
        pytest.param(draft([1], b"\x80\x80\x80\x80\x80\1", anchor=3), ProtocolError, "varint", id="long parent"),
        pytest.param(draft([1, 2], b"\0\2", anchor=3), DraftError, "does not exist", id="parent before all"),
        pytest.param(draft([1], pack_varints([2**34])), DraftError, "does not exist", id="parent far before all"),
        pytest.param(draft([1]), DraftError, "does not exist", id="a chain below nothing"),
        pytest.param(draft([1, 2], b"\0\1"), DraftError, "no anchor", id="no anchor"),
        pytest.param(draft([1], anchor=0), DraftError, "anchor 0", id="anchor before the log"),
        pytest.param(draft([1], anchor=4), DraftError, "anchor 4", id="anchor beyond the log"),
        pytest.param(draft([1], anchor=2**32 - 1), DraftError, "anchor", id="anchor far beyond the log"),
    ],
)
def test_a_malformed_draft_is_refused_by_a_typed_error(message: pb.Draft, error: type[OutriderError], words: str):
    with pytest.raises(error, match=words):
        append_draft(DraftTree([1, 2, 3]), message, 7)


@given(
    st.binary(max_size=12),
    st.integers(0, 12),
    st.binary(max_size=12),
    st.one_of(st.none(), st.integers(0, 2**32 - 1), st.integers(1, 3)),
)
def test_any_draft_is_taken_or_refused_and_nothing_else(tokens: bytes, count: int, parents: bytes, anchor: int | None):
    tree = DraftTree([1, 2, 3])
    message = pb.Draft(tokens=tokens, count=count, parents=parents, anchor=anchor)
    try:
        nodes = append_draft(tree, message, 200)
    except (ProtocolError, DraftError):
        return
    # A token of this vocabulary takes a byte: a count that is left out is that of the bytes.
    assert len(nodes) == len(tree) == (count or len(tokens))


def test_a_message_without_nodes_changes_nothing():
    tree = DraftTree([1])
    assert append_draft(tree, pb.Draft(), 7) == []
    assert len(tree) == 0
