"""The accept walk: follow the target's own choices through a tree as far as it drafted them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from outrider_cloud.engine.session import Judged
    from outrider_shared.tree import Node


def accept(nodes: Sequence[Node], chosen: Sequence[int]) -> tuple[list[int], list[int]]:
    """Tokens that one step commits for a session.

    Args:
        nodes: The draft nodes that ran, parents before children.
        chosen: The token that the target chose after the root row, then after each node: [1 + nodes].

    Returns:
        The tokens (the accepted path and the correction or bonus), and the row offsets (0 = root, i + 1 = nodes[i])
        that chose them.
    """
    ran = {id(node): offset for offset, node in enumerate(nodes, 1)}
    below: dict[tuple[int, int], Node] = {}
    for node in nodes:
        below[ran.get(id(node.parent), 0), node.token] = node
    tokens, offsets = [chosen[0]], [0]
    while (taken := below.get((offsets[-1], tokens[-1]))) is not None:
        offsets.append(ran[id(taken)])
        tokens.append(chosen[offsets[-1]])
    return tokens, offsets


def judge(nodes: Sequence[Node], offsets: Sequence[int]) -> list[Judged]:
    """What a step says of its draft nodes: of those whose parent was right, which were right, too.

    Args:
        nodes: The draft nodes that ran, parents before children.
        offsets: As `accept` returned them.
    """
    right = {offset: depth for depth, offset in enumerate(offsets)}
    ran = {id(node): offset for offset, node in enumerate(nodes, 1)}
    parents = [ran.get(id(node.parent), 0) for node in nodes]
    return [
        (node, right[parent] + 1, offset in right)
        for offset, (node, parent) in enumerate(zip(nodes, parents, strict=True), 1)
        if parent in right
    ]
