"""One copy of a tied embedding: the builder quantises the LM head to int8 and stores the same weights again in fp32."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

_CHECKED_ROWS = 64


def share_embedding(model: onnx.ModelProto) -> bool:
    """Let an int8 LM head serve as the embedding too, where both hold the same weights; in place.

    Returns:
        Whether there was something to share.
    """
    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    head = next((node for node in graph.node if _is_int8_product(node) and "lm_head" in node.input[1]), None)
    lookup = next((node for node in graph.node if node.op_type == "Gather" and node.input[1] == "input_ids"), None)
    if head is None or lookup is None or lookup.input[0] not in weights:
        return False
    blocks, scales, zeros = (weights[name] for name in list(head.input)[1:4])
    embedding = weights[lookup.input[0]]
    if not _same(embedding, blocks, scales, zeros):
        return False
    flat = numpy_helper.from_array(np.array(embedding.dims, np.int64), "embedding/shape")
    reshape = helper.make_node("Reshape", [blocks.name, flat.name], ["embedding/flat"], name="embedding/reshape")
    gather = helper.make_node(
        "GatherBlockQuantized",
        [reshape.output[0], "input_ids", scales.name, zeros.name],
        list(lookup.output),
        name="embedding/gather",
        domain="com.microsoft",
        bits=8,
        block_size=blocks.dims[-1],
        gather_axis=0,
        quantize_axis=1,
    )
    place = list(graph.node).index(lookup)
    graph.node.remove(lookup)
    graph.node.insert(place, gather)
    graph.node.insert(place, reshape)
    graph.initializer.remove(embedding)
    graph.initializer.append(flat)
    return True


def _is_int8_product(node: onnx.NodeProto) -> bool:
    bits = next((attribute.i for attribute in node.attribute if attribute.name == "bits"), 0)
    return node.op_type == "MatMulNBits" and bits == 8 and len(node.input) == 4 and all(node.input)


def _same(
    embedding: onnx.TensorProto, blocks: onnx.TensorProto, scales: onnx.TensorProto, zeros: onnx.TensorProto
) -> bool:
    """Whether the first rows of the blocks, dequantised, are the embedding up to rounding."""
    width = int(np.prod(blocks.dims[1:]))
    if list(embedding.dims) != [blocks.dims[0], width] or list(scales.dims) != list(blocks.dims)[:2]:
        return False  # padded blocks, or a head of another size
    step = numpy_helper.to_array(scales)[:_CHECKED_ROWS, :, None].astype(np.float32)
    zero = numpy_helper.to_array(zeros)[:_CHECKED_ROWS].reshape(step.shape).astype(np.float32)
    head = (numpy_helper.to_array(blocks)[:_CHECKED_ROWS].astype(np.float32) - zero) * step
    wanted = numpy_helper.to_array(embedding)[:_CHECKED_ROWS].reshape(head.shape)
    return bool((np.abs(head - wanted) <= 2 * np.abs(step)).all())
