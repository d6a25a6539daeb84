"""Dynamic int8: matrices in int8 per output channel, activations in uint8 with a scale over all rows of each pass.

Quicker than weight-only formats where a pass has many rows, and worth a measurement per device. Its results depend
slightly on what else is in the pass, which costs a draft little: a guess needs no exactness.

Seven bits are used of the weights' eight (`reduce_range`): processors without VNNI add two products in 16 bits, and
saturate. A tied embedding is read from the head's integers, row by row; one of its own stays as it is.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

from outrider_shared.errors import ModelError

if TYPE_CHECKING:
    from pathlib import Path


def quantise_dynamically(model: onnx.ModelProto, scratch: Path) -> onnx.ModelProto:
    """The graph with its matrix products in int8, and with them a tied embedding.

    Raises:
        ModelError: if onnxruntime cannot quantise it.
    """
    weights = {tensor.name for tensor in model.graph.initializer}
    nodes = [node.name for node in model.graph.node if node.op_type == "MatMul" and node.input[1] in weights]
    out = scratch / "dynamic.onnx"
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)  # it advises a pre-processing that has nothing to do here
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            quantize_dynamic(
                model,
                out,
                op_types_to_quantize=["MatMul"],
                per_channel=True,
                reduce_range=True,
                weight_type=QuantType.QInt8,
                nodes_to_quantize=nodes,
                extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
            )
    except Exception as error:  # a tool that fails in any way it likes
        raise ModelError(
            f"onnxruntime cannot quantise the graph dynamically: {error!r}", hint="pack it as int8"
        ) from error
    finally:
        logging.disable(disabled)
    made = onnx.load(out)
    _share_embedding(made.graph)
    return made


def _share_embedding(graph: onnx.GraphProto) -> None:
    """Let a tied embedding read the head's integers: a row of the table is a column of the head."""
    weights = {tensor.name: tensor for tensor in graph.initializer}
    lookup = next((node for node in graph.node if node.op_type == "Gather" and node.input[1] == "input_ids"), None)
    table = next((node for node in graph.node if lookup is not None and lookup.input[0] in node.output), None)
    if lookup is None or table is None or table.op_type != "Transpose":
        return
    name = table.input[0]
    integers, scale, zero = (weights.get(f"{name}_{part}") for part in ("quantized", "scale", "zero_point"))
    if integers is None or scale is None or zero is None or numpy_helper.to_array(zero).any():
        return
    last = numpy_helper.from_array(np.array([-1], np.int64), "embedding/last")
    made = [
        helper.make_node("Transpose", [integers.name], ["embedding/table"], perm=[1, 0]),
        helper.make_node("Gather", ["embedding/table", "input_ids"], ["embedding/integers"]),
        helper.make_node("Cast", ["embedding/integers"], ["embedding/wide"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Gather", [scale.name, "input_ids"], ["embedding/scale"]),
        helper.make_node("Unsqueeze", ["embedding/scale", last.name], ["embedding/scales"]),
        helper.make_node("Mul", ["embedding/wide", "embedding/scales"], list(lookup.output)),
    ]
    place = list(graph.node).index(lookup)
    graph.node.remove(lookup)
    graph.node.remove(table)
    for node in reversed(made):
        graph.node.insert(min(place, len(graph.node)), node)
    graph.initializer.append(last)
    if not any(name in node.input for node in graph.node):
        graph.initializer.remove(weights[name])
