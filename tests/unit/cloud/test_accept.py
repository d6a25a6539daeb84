"""The accept walk: greedy tables, and the same as walking a dictionary of paths."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider_cloud.engine.accept import accept, judge
from outrider_shared.tree import DraftTree, Node

LOG = [7, 7, 7]


def nodes_of(drafted: list[tuple[int, int]]) -> list[Node]:
    """Nodes for (parent or -1, token), each below the log of `LOG`."""
    tree = DraftTree(list(LOG))
    for parent, token in drafted:
        tree.append(token, tree.node(parent) if parent >= 0 else None, len(LOG))
    return [tree.node(number) for number in range(len(tree))]


@pytest.mark.parametrize(
    ("drafted", "chosen", "tokens", "offsets", "judged"),
    [
        pytest.param([], [5], [5], [0], [], id="no draft"),
        pytest.param([(-1, 5)], [5, 6], [5, 6], [0, 1], [(0, 1, True)], id="accepted, with a bonus"),
        pytest.param([(-1, 4)], [5, 6], [5], [0], [(0, 1, False)], id="corrected at once"),
        pytest.param(
            [(-1, 5), (0, 6), (1, 8)],
            [5, 6, 7, 9],
            [5, 6, 7],
            [0, 1, 2],
            [(0, 1, True), (1, 2, True), (2, 3, False)],
            id="corrected later",
        ),
        pytest.param(
            [(-1, 5), (0, 6), (1, 7)],
            [5, 6, 7, 9],
            [5, 6, 7, 9],
            [0, 1, 2, 3],
            [(0, 1, True), (1, 2, True), (2, 3, True)],
            id="whole chain",
        ),
        pytest.param(
            [(-1, 4), (-1, 5)],
            [5, 1, 2],
            [5, 2],
            [0, 2],
            [(0, 1, False), (1, 1, True)],
            id="the second of two siblings",
        ),
        pytest.param(
            [(-1, 4), (-1, 5), (1, 6), (0, 6)],
            [5, 0, 6, 3, 0],
            [5, 6, 3],
            [0, 2, 3],
            [(0, 1, False), (1, 1, True), (2, 2, True)],
            id="a branch",
        ),
        pytest.param([(-1, 4), (0, 5)], [5, 5, 6], [5], [0], [(0, 1, False)], id="the right token at the wrong depth"),
        pytest.param(
            [(-1, 5), (0, 5), (1, 5)],
            [5, 5, 4, 4],
            [5, 5, 4],
            [0, 1, 2],
            [(0, 1, True), (1, 2, True), (2, 3, False)],
            id="one token throughout",
        ),
    ],
)
def test_the_path_is_followed_as_far_as_it_was_drafted(
    drafted: list[tuple[int, int]],
    chosen: list[int],
    tokens: list[int],
    offsets: list[int],
    judged: list[tuple[int, int, bool]],
):
    nodes = nodes_of(drafted)
    assert accept(nodes, chosen) == (tokens, offsets)
    assert [(node.number, depth, hit) for node, depth, hit in judge(nodes, offsets)] == judged


def test_nodes_below_an_agreed_parent_hang_on_the_root_row():
    """After a commit the frontier's children still name their old parent, which is no row of this step."""
    tree = DraftTree(list(LOG))
    above = tree.append(1, None, len(LOG))
    below = tree.append(2, above)
    deeper = tree.append(3, below)
    tree.advance(1)
    assert accept([below, deeper], [2, 3, 4]) == ([2, 3, 4], [0, 1, 2])


@st.composite
def trees_that_ran(draw: st.DrawFn) -> tuple[list[tuple[int, int]], list[int]]:
    drafted: list[tuple[int, int]] = []
    for _ in range(draw(st.integers(0, 14))):
        node = draw(st.integers(-1, len(drafted) - 1)), draw(st.integers(0, 2))
        drafted += [node] if node not in drafted else []
    return drafted, draw(st.lists(st.integers(0, 2), min_size=len(drafted) + 1, max_size=len(drafted) + 1))


@given(trees_that_ran())
def test_accepting_is_walking_a_dictionary_of_paths(case: tuple[list[tuple[int, int]], list[int]]):
    drafted, chosen = case
    paths: list[tuple[int, ...]] = []
    for parent, token in drafted:
        paths.append((*paths[parent], token) if parent >= 0 else (token,))
    rows = {(): 0} | {path: number for number, path in enumerate(paths, 1)}
    walked: tuple[int, ...] = ()
    tokens, offsets = [chosen[0]], [0]
    while (*walked, tokens[-1]) in rows:
        walked = (*walked, tokens[-1])
        offsets.append(rows[walked])
        tokens.append(chosen[rows[walked]])
    nodes = nodes_of(drafted)
    assert accept(nodes, chosen) == (tokens, offsets)
    right = [walked[:depth] for depth in range(len(walked) + 1)]
    expected = [(n, len(path), path in right) for n, path in enumerate(paths) if path[:-1] in right]
    assert [(node.number, depth, hit) for node, depth, hit in judge(nodes, offsets)] == expected
