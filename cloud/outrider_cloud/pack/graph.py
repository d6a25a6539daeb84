"""The graph of a pack: what the onnxruntime-genai builder writes, opened for rewinding and trees.

The builder's graph takes an attention mask of ones and counts it; positions are the cache slots. A drafter needs to say
both itself; the optional inputs of `GroupQueryAttention` exist for that (onnxruntime PR #23944). Weights
stay as they are.

    input                    shape                      what
    input_ids                [1, count] int64
    position_ids             [1, count] int64           depth in the tree
    attention_bias           [1, 1, count, total] f32   0, or -1e9 where a row must not see a slot
    seqlens_k                [1] int32                  total - 1
    total_sequence_length    [] int32                   used slots after the pass
    logits_rows              [rows] int64               which of the rows are projected to the vocabulary
    past_key_values.L.key    [1, kv_heads, capacity, head_dim] f32, and .value; the same buffer as present.L.*
    -> logits                [1, rows, vocab_size] f32
"""

from __future__ import annotations

import dataclasses
from typing import Any

import onnx
from onnx import TensorProto, helper

from outrider_shared.errors import ModelError

_ATTENTION = "GroupQueryAttention"
_HEADS = frozenset({"MatMul", "MatMulNBits", "Gemm"})
_AFTER_HEAD = frozenset({"Add", "Cast", "Div", "Mul", "Tanh"})  # soft caps and scales of the logits
_ROTARY_MULTIPLE = 16  # the fused rotary embedding refuses other head sizes
_HINT = "export it with the onnxruntime-genai model builder for the CPU"

# Places of GroupQueryAttention's inputs (onnxruntime docs/ContribOperators.md).
_QUERY, _KEY, _VALUE, _PAST_KEY = 0, 1, 2, 3
_SEQLENS, _TOTAL, _COS, _SIN, _POSITIONS, _BIAS, _INPUTS = 5, 6, 7, 8, 9, 10, 11


@dataclasses.dataclass(frozen=True)
class Shapes:
    """What the graph does not say itself: the exporter's configuration."""

    layers: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    unrotated: frozenset[int] = frozenset()  # layers without rotary embedding, which the builder cannot say (SmolLM3)


def patch_graph(model: onnx.ModelProto, shapes: Shapes) -> None:
    """Open `model` for trees and rewinding, in place.

    Raises:
        ModelError: The graph is not of the shape that the builder gives a decoder with grouped-query attention.
    """
    graph = model.graph
    attention = [node for node in graph.node if node.op_type == _ATTENTION]
    if len(attention) != shapes.layers:
        raise ModelError(
            f"the graph has {len(attention)} {_ATTENTION} nodes for {shapes.layers} layers; it must have one a layer",
            hint=_HINT,
        )
    for layer, node in enumerate(attention):
        if layer in shapes.unrotated:
            _stop_rotating(node)
        _open_attention(node)
        if shapes.head_dim % _ROTARY_MULTIPLE and _attribute(node, "do_rotary", 0):
            _rotate_before(graph, node, shapes)
    _gather_rows(graph)
    _set_inputs(graph, shapes)
    _drop_dead_nodes(graph)
    _check_closed(graph)


def window_of(model: onnx.ModelProto) -> int | None:
    """The shortest sliding window of the graph's attention, in slots; None without one."""
    windows = [_attribute(node, "local_window_size", -1) for node in model.graph.node if node.op_type == _ATTENTION]
    return min((window for window in windows if window > 0), default=None)


def _open_attention(node: onnx.NodeProto) -> None:
    inputs = list(node.input) + [""] * (_INPUTS - len(node.input))
    if inputs[_BIAS] or not inputs[_PAST_KEY].startswith("past_key_values."):
        raise ModelError(f"{node.name} has inputs {list(node.input)}: a bias already, or no past keys", hint=_HINT)
    inputs[_SEQLENS], inputs[_TOTAL] = "seqlens_k", "total_sequence_length"
    inputs[_POSITIONS], inputs[_BIAS] = "position_ids" if _attribute(node, "do_rotary", 0) else "", "attention_bias"
    node.input[:] = inputs


def _stop_rotating(node: onnx.NodeProto) -> None:
    node.input[_COS] = node.input[_SIN] = ""
    for attribute in node.attribute:
        if attribute.name == "do_rotary":
            attribute.i = 0


def _rotate_before(graph: onnx.GraphProto, node: onnx.NodeProto, shapes: Shapes) -> None:
    """Take the rotary embedding out of `node`, into nodes of its own that know no limit on the head size."""
    if _attribute(node, "rotary_embedding_dim", 0) or any(node.input[_INPUTS:]):
        raise ModelError(f"{node.name}: partial rotary embedding or fused norms need a head size in 16s", hint=_HINT)
    before = list(graph.node).index(node)
    if not node.input[_KEY]:
        _split_packed(graph, node, before, shapes)
        before += 1
    for place in (_QUERY, _KEY):
        rotated = f"{node.input[place]}/rotated"
        inputs = [node.input[place], "position_ids", node.input[_COS], node.input[_SIN]]
        interleaved = _attribute(node, "rotary_interleaved", 0)
        graph.node.insert(
            before,
            helper.make_node(
                "RotaryEmbedding", inputs, [rotated], name=rotated, domain="com.microsoft", interleaved=interleaved
            ),
        )
        node.input[place] = rotated
        before += 1
    node.input[_POSITIONS] = ""
    _stop_rotating(node)


def _split_packed(graph: onnx.GraphProto, node: onnx.NodeProto, before: int, shapes: Shapes) -> None:
    kv_width = shapes.kv_heads * shapes.head_dim
    widths = [_attribute(node, "num_heads", 0) * shapes.head_dim, kv_width, kv_width]
    sizes = helper.make_tensor(f"{node.name}/widths", TensorProto.INT64, [3], widths)
    graph.initializer.append(sizes)
    parts = [f"{node.name}/{part}" for part in ("query", "key", "value")]
    split = helper.make_node("Split", [node.input[_QUERY], sizes.name], parts, name=f"{node.name}/split", axis=-1)
    graph.node.insert(before, split)
    node.input[_QUERY], node.input[_KEY], node.input[_VALUE] = parts


def _gather_rows(graph: onnx.GraphProto) -> None:
    makers = {output: node for node in graph.node for output in node.output}
    node = makers.get("logits")
    while node is not None and node.op_type in _AFTER_HEAD:
        node = makers.get(node.input[0])
    if node is None or node.op_type not in _HEADS:
        raise ModelError(
            f"the logits come from {node.op_type if node else 'no node'}, not from a matrix product", hint=_HINT
        )
    gathered = "logits_rows/gathered"
    gather = helper.make_node("Gather", [node.input[0], "logits_rows"], [gathered], name="logits_rows/gather", axis=1)
    graph.node.insert(list(graph.node).index(node), gather)
    node.input[0] = gathered


def _set_inputs(graph: onnx.GraphProto, shapes: Shapes) -> None:
    make = helper.make_tensor_value_info
    cache = [1, shapes.kv_heads, "capacity", shapes.head_dim]
    sides = [f"{layer}.{side}" for layer in range(shapes.layers) for side in ("key", "value")]
    inputs = [
        make("input_ids", TensorProto.INT64, [1, "count"]),
        make("position_ids", TensorProto.INT64, [1, "count"]),
        make("attention_bias", TensorProto.FLOAT, [1, 1, "count", "total"]),
        make("seqlens_k", TensorProto.INT32, [1]),
        make("total_sequence_length", TensorProto.INT32, []),
        make("logits_rows", TensorProto.INT64, ["rows"]),
        *(make(f"past_key_values.{side}", TensorProto.FLOAT, cache) for side in sides),
    ]
    outputs = [
        make("logits", TensorProto.FLOAT, [1, "rows", shapes.vocab_size]),
        *(make(f"present.{side}", TensorProto.FLOAT, cache) for side in sides),
    ]
    for have, want, kind in ((graph.input, inputs, "inputs"), (graph.output, outputs, "outputs")):
        odd = {value.name for value in have} - {value.name for value in want} - {"attention_mask"}
        if odd:
            raise ModelError(f"the graph has {kind} that a draft cannot fill: {sorted(odd)}", hint=_HINT)
        del have[:]
        have.extend(want)
    del graph.value_info[:]  # the old symbolic shapes; onnxruntime infers them anew


def _drop_dead_nodes(graph: onnx.GraphProto) -> None:
    used, live = {value.name for value in graph.output}, []
    for node in reversed(graph.node):
        if used.intersection(node.output):
            live.append(node)
            used.update(name for name in node.input if name)
    del graph.node[:]
    graph.node.extend(reversed(live))
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _check_closed(graph: onnx.GraphProto) -> None:
    known = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        open_ends = [name for name in node.input if name and name not in known]
        if open_ends:
            raise ModelError(f"{node.op_type} {node.name} needs {open_ends}, which the opened graph lacks", hint=_HINT)
        known.update(node.output)
    lost = {value.name for value in graph.output} - known
    if lost:
        raise ModelError(f"the graph does not make {sorted(lost)}", hint=_HINT)


def _attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    return next((helper.get_attribute_value(item) for item in node.attribute if item.name == name), default)
