"""A graph that is not what the builder writes is refused with the reason, before it can draft nonsense."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from outrider_cloud.pack.graph import Shapes, patch_graph, window_of
from outrider_cloud.pack.share import share_embedding
from outrider_shared.errors import ModelError

SHAPES = Shapes(layers=1, kv_heads=1, head_dim=16, vocab_size=32)


def decoder(attention: dict[str, Any] | None = None, **changes: Any) -> onnx.ModelProto:
    """One layer as the builder writes it: hidden = embedding, packed projections, attention, head."""
    value = helper.make_tensor_value_info
    inputs = {"input_ids": TensorProto.INT64, "attention_mask": TensorProto.INT64, **changes.get("inputs", {})}
    weights = {"embed": (32, 16), "qkv": (16, 48), "head": (16, 32), "cos": (64, 8), "sin": (64, 8)}
    query = changes.get("query", ["projected", "", ""])
    cache = ["past_key_values.0.key", "past_key_values.0.value"]
    attrs = {"num_heads": 1, "kv_num_heads": 1, "do_rotary": 1, **(attention or {})}
    ends = [*query, *cache, "lengths", "total", "cos", "sin", *changes.get("extra", ["", "", ""])]
    nodes = [
        helper.make_node("ReduceSum", ["attention_mask"], ["lengths"]),
        helper.make_node("Shape", ["attention_mask"], ["total"]),
        helper.make_node("Gather", ["embed", "input_ids"], ["hidden"]),
        helper.make_node("MatMul", ["hidden", "qkv"], ["projected"]),
        helper.make_node(
            "GroupQueryAttention",
            ends,
            ["out", "present.0.key", "present.0.value"],
            "attn",
            domain="com.microsoft",
            **attrs,
        ),
        *changes.get("after", [helper.make_node("MatMul", ["out", "head"], ["logits"])]),
    ]
    graph = helper.make_graph(
        nodes,
        "decoder",
        [*(value(name, kind, None) for name, kind in inputs.items()), *(value(name, 1, None) for name in cache)],
        [value(name, 1, None) for name in ("logits", "present.0.key", "present.0.value", *changes.get("outputs", []))],
        [numpy_helper.from_array(np.ones(shape, np.float32), name) for name, shape in weights.items()],
    )
    return helper.make_model(graph)


def by_kind(model: onnx.ModelProto, kind: str) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type == kind]


def test_the_mask_gives_way_to_lengths_positions_and_a_bias():
    model = decoder()
    patch_graph(model, SHAPES)
    (attention,) = by_kind(model, "GroupQueryAttention")
    assert list(attention.input[5:11]) == [
        "seqlens_k",
        "total_sequence_length",
        "cos",
        "sin",
        "position_ids",
        "attention_bias",
    ]
    assert not by_kind(model, "ReduceSum")
    assert "attention_mask" not in {value.name for value in model.graph.input}


def test_rows_are_picked_before_the_head_even_below_a_soft_cap():
    cap = [
        helper.make_node("MatMul", ["out", "head"], ["raw"]),
        helper.make_node("Tanh", ["raw"], ["bent"]),
        helper.make_node("Mul", ["bent", "cos"], ["logits"]),
    ]
    model = decoder(after=cap)
    patch_graph(model, SHAPES)
    kinds = [node.op_type for node in model.graph.node][-4:]
    assert kinds == ["Gather", "MatMul", "Tanh", "Mul"]


def test_small_heads_are_rotated_outside_the_attention():
    model = decoder()
    patch_graph(model, Shapes(layers=1, kv_heads=1, head_dim=8, vocab_size=32))
    (attention,) = by_kind(model, "GroupQueryAttention")
    assert [len(by_kind(model, kind)) for kind in ("Split", "RotaryEmbedding")] == [1, 2]
    assert list(attention.input[7:10]) == ["", "", ""]
    assert all(attention.input[:3])


def test_a_layer_without_rotary_embedding_gets_no_positions():
    model = decoder()
    patch_graph(model, Shapes(layers=1, kv_heads=1, head_dim=16, vocab_size=32, unrotated=frozenset({0})))
    (attention,) = by_kind(model, "GroupQueryAttention")
    assert list(attention.input[7:11]) == ["", "", "", "attention_bias"]
    assert "cos" not in {tensor.name for tensor in model.graph.initializer}


def test_the_shortest_window_is_found():
    assert window_of(decoder()) is None
    assert window_of(decoder({"local_window_size": -1})) is None
    assert window_of(decoder({"local_window_size": 48})) == 48


REFUSED: dict[str, tuple[Callable[[], onnx.ModelProto], Shapes, str]] = {
    "layer count": (decoder, Shapes(2, 1, 16, 32), "1 GroupQueryAttention nodes for 2 layers"),
    "no past": (lambda: decoder(query=["projected", "", "", "", ""]), SHAPES, "no past keys"),
    "bias taken": (lambda: decoder(extra=["", "hidden", ""]), SHAPES, "a bias already"),
    "head": (lambda: decoder(after=[helper.make_node("Relu", ["out"], ["logits"])]), SHAPES, "come from Relu"),
    "no head": (lambda: decoder(after=[]), SHAPES, "come from no node"),
    "input": (lambda: decoder(inputs={"pixels": 1}), SHAPES, r"inputs that a draft cannot fill: \['pixels'\]"),
    "output": (lambda: decoder(outputs=["hidden"]), SHAPES, r"outputs that a draft cannot fill: \['hidden'\]"),
    "partial rotary": (lambda: decoder({"rotary_embedding_dim": 4}), Shapes(1, 1, 8, 32), "partial rotary"),
    "fused norm": (lambda: decoder(extra=["", "", "", "", "", "cos", "sin"]), Shapes(1, 1, 8, 32), "fused norms"),
    "mask elsewhere": (
        lambda: decoder(after=[helper.make_node("MatMul", ["out", "attention_mask"], ["logits"])]),
        SHAPES,
        r"MatMul .* needs \['attention_mask'\]",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_unexpected_graph_is_refused_with_the_reason(case: str):
    make, shapes, message = REFUSED[case]
    with pytest.raises(ModelError, match=message):
        patch_graph(make(), shapes)


def quantised_head(embedding: np.ndarray, seen: np.ndarray) -> onnx.ModelProto:
    """An int8 LM head of `seen` [vocab, width], blocks of 32, above a lookup in `embedding`."""
    blocks = seen.reshape(len(seen), -1, 32)
    low = blocks.min(-1)
    step = np.maximum((blocks.max(-1) - low) / 255, 1e-6).astype(np.float32)
    zero = np.rint(-low / step).clip(0, 255).astype(np.uint8)
    quantised = (np.rint(blocks / step[..., None]) + zero[..., None]).clip(0, 255).astype(np.uint8)
    arrays = {"embed": embedding, "lm_head.Q8": quantised, "lm_head.scale": step, "lm_head.zero": zero}
    nodes = [
        helper.make_node("Gather", ["embed", "input_ids"], ["hidden"]),
        helper.make_node(
            "MatMulNBits",
            ["hidden", "lm_head.Q8", "lm_head.scale", "lm_head.zero"],
            ["logits"],
            domain="com.microsoft",
            bits=8,
            block_size=32,
            K=embedding.shape[1],
            N=len(seen),
        ),
    ]
    tensors = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    return helper.make_model(helper.make_graph(nodes, "head", [], [], tensors))


def test_a_tied_embedding_is_stored_once():
    weights = np.random.default_rng(0).normal(size=(40, 64)).astype(np.float32)
    model = quantised_head(weights, weights)
    assert share_embedding(model)
    assert [node.op_type for node in model.graph.node] == ["Reshape", "GatherBlockQuantized", "MatMulNBits"]
    assert "embed" not in {tensor.name for tensor in model.graph.initializer}


def test_an_untied_embedding_is_kept():
    weights = np.random.default_rng(0).normal(size=(2, 40, 64)).astype(np.float32)
    model = quantised_head(weights[0], weights[1])
    assert not share_embedding(model)
    assert model.graph.node[0].op_type == "Gather"


def test_a_graph_without_an_int8_head_is_left_alone():
    model = decoder()
    before = model.SerializeToString()
    assert not share_embedding(model)
    assert model.SerializeToString() == before
