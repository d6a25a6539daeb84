"""Which matrices of an int4 pack stay in int8: those that lose most for the bytes that int4 saves on them.

The draft is built twice, all in int8 and, head and embedding aside, all in int4; a matrix is a node of one graph or
of the other. What int4 costs a matrix is measured: how far the int8 graph with that one matrix in int4 is from the
model, on text that the model sampled. Costs of several matrices add up nearly, so each is measured once. Then the
dearest per byte stay in int8 until the others together cost no more than `LEFT` of all, as many as fit into `BUDGET`
of what int4 would save (decision 0028).
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import onnx
from onnx import helper

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

LEFT = 0.1  # of the cost of all matrices in int4
BUDGET = 2 / 3  # of the bytes by which the int4 graph is smaller than the int8 one
_PRODUCT = "MatMulNBits"


@dataclasses.dataclass(frozen=True)
class Matrix:
    """One matrix that may be in int4.

    Attributes:
        output: Name of its product, the same in both graphs.
        saved_bytes: By which int4 is smaller than int8.
    """

    output: str
    saved_bytes: int

    @property
    def name(self) -> str:
        """As the model calls it: layers.0.attn.qkv_proj."""
        parts = [part for part in self.output.split("/") if part and part != "model"]
        return ".".join(parts[:-2] if len(parts) > 2 else parts)  # without the operator and its output


def matrices(wide: onnx.ModelProto, narrow: onnx.ModelProto) -> list[Matrix]:
    """Those that are in int4 in `narrow` and in int8 in `wide`, in the graph's order."""
    eight, four = _products(wide, 8), _products(narrow, 4)
    sizes = _sizes(wide), _sizes(narrow)
    return [
        Matrix(output, _bytes(eight[output], sizes[0]) - _bytes(node, sizes[1]))
        for output, node in four.items()
        if output in eight
    ]


def mix(wide: onnx.ModelProto, narrow: onnx.ModelProto, outputs: Sequence[str]) -> onnx.ModelProto:
    """`wide` with the products `outputs` as `narrow` has them; both stay as they are."""
    mixed = onnx.ModelProto()
    mixed.CopyFrom(wide)
    four, weights = _products(narrow, 4), {tensor.name: tensor for tensor in narrow.graph.initializer}
    eight = _products(mixed, 8)
    gone = {name for output in outputs for name in eight[output].input[1:]}
    kept = [tensor for tensor in mixed.graph.initializer if tensor.name not in gone]
    kept += [weights[name] for output in outputs for name in four[output].input[1:]]
    del mixed.graph.initializer[:]
    mixed.graph.initializer.extend(kept)
    for output in outputs:
        eight[output].CopyFrom(four[output])
    return mixed


def most_sensitive(
    wide: onnx.ModelProto,
    narrow: onnx.ModelProto,
    cost: Callable[[onnx.ModelProto], float],
    tick: Callable[[int, int], None] = lambda _done, _of: None,
) -> list[Matrix]:
    """The matrices that are to stay in int8.

    Args:
        wide: The graph with every matrix in int8.
        narrow: Likewise in int4.
        cost: Divergence of a graph from the model.
        tick: Called with the number of measured matrices, and of all.
    """
    found = matrices(wide, narrow)
    costs = {}
    for done, matrix in enumerate(found):
        tick(done, len(found))
        costs[matrix] = cost(mix(wide, narrow, [matrix.output]))
    return choose(costs)


def choose(costs: dict[Matrix, float]) -> list[Matrix]:
    """The dearest per saved byte that fit into the budget together, no more of them than it takes."""
    room, left = BUDGET * sum(matrix.saved_bytes for matrix in costs), sum(costs.values())
    enough = LEFT * left
    kept = []
    for matrix in sorted(costs, key=lambda each: -costs[each] / max(1, each.saved_bytes)):
        if left > enough and matrix.saved_bytes <= room:
            kept.append(matrix)
            room -= matrix.saved_bytes
            left -= costs[matrix]
    return kept


def _products(model: onnx.ModelProto, bits: int) -> dict[str, onnx.NodeProto]:
    return {
        node.output[0]: node
        for node in model.graph.node
        if node.op_type == _PRODUCT
        and any(each.name == "bits" and helper.get_attribute_value(each) == bits for each in node.attribute)
    }


def _sizes(model: onnx.ModelProto) -> dict[str, int]:
    return {tensor.name: len(tensor.raw_data) for tensor in model.graph.initializer}


def _bytes(node: onnx.NodeProto, sizes: dict[str, int]) -> int:
    return sum(sizes[name] for name in node.input[1:] if name)
