"""Which matrices of an int4 pack stay in int8."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper
from transformers import AutoModelForCausalLM

from outrider_cloud.pack.export import Request, export_pack
from outrider_cloud.pack.mixed import BUDGET, LEFT, Matrix, choose, matrices, mix, most_sensitive
from outrider_shared.packs import Precision
from unit.pack.tiny import CONFIGS, write_model

Graphs = tuple[onnx.ModelProto, onnx.ModelProto]
COSTS = st.lists(st.tuples(st.integers(1, 10_000), st.floats(0, 10)), max_size=30)  # (saved bytes, cost) of each matrix


@pytest.fixture(scope="module")
def graphs(model_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Graphs:
    """One draft with every matrix in int8, and in int4."""
    folder = tmp_path_factory.mktemp("mixed")
    packs = [
        export_pack(Request(model_folder("tied"), folder / str(precision), precision))
        for precision in (Precision.INT8, Precision.INT4_ALL)
    ]
    wide, narrow = (onnx.load(pack.model_path) for pack in packs)
    return wide, narrow


@given(COSTS)
def test_what_stays_in_int8_takes_at_most_its_share_of_what_int4_saves(drawn: list[tuple[int, float]]):
    costs = {Matrix(f"/model/layers.{i}/x/y", saved): cost for i, (saved, cost) in enumerate(drawn)}
    kept = choose(costs)
    room = BUDGET * sum(matrix.saved_bytes for matrix in costs) - sum(matrix.saved_bytes for matrix in kept)
    assert room >= 0
    left = sum(cost for matrix, cost in costs.items() if matrix not in kept)
    enough = left <= LEFT * sum(costs.values()) + 1e-9
    assert enough or all(matrix.saved_bytes > room for matrix in costs if matrix not in kept)  # or no other would fit
    assert len(set(kept)) == len(kept)


def test_the_dearest_by_the_byte_stay_first():
    small, large, cheap = Matrix("small", 10), Matrix("large", 50), Matrix("cheap", 60)
    assert choose({cheap: 1.0, large: 4.0, small: 2.0}) == [small, large]


def test_no_more_stay_than_it_takes():
    one, rest = Matrix("one", 10), [Matrix(str(i), 10) for i in range(9)]
    assert choose({**dict.fromkeys(rest, 0.01), one: 1.0}) == [one]


def test_a_mixed_graph_has_each_product_as_one_of_the_two(graphs: Graphs):
    wide, narrow = graphs
    found = matrices(wide, narrow)
    layers = [matrix for matrix in found if "layers" in matrix.output]
    assert [matrix.name for matrix in layers[:2]] == ["layers.0.attn.qkv_proj", "layers.0.attn.o_proj"]
    assert all(matrix.saved_bytes > 0 for matrix in found)
    whole = wide.ByteSize()
    mixed = mix(wide, narrow, [layers[0].output, layers[3].output])
    assert {node.name for node in mixed.graph.node if node.name.endswith("_Q4")} == {
        "/model/layers.0/attn/qkv_proj/MatMul_Q4",
        "/model/layers.0/mlp/up_proj/MatMul_Q4",
    }
    saved = layers[0].saved_bytes + layers[3].saved_bytes
    assert whole - mixed.ByteSize() == pytest.approx(saved, abs=200)
    assert wide.ByteSize() == whole  # the graphs that it is made of stay as they are


def test_costs_are_asked_of_graphs_with_one_matrix_in_int4(graphs: Graphs):
    seen, ticks = [], []

    def cost(model: onnx.ModelProto) -> float:
        four = [node.output[0] for node in model.graph.node if node.name.endswith("_Q4")]
        seen.append(four)
        return float(len(seen))

    most_sensitive(*graphs, cost, lambda done, of: ticks.append((done, of)))
    names = [matrix.output for matrix in matrices(*graphs)]
    assert seen == [[name] for name in names]
    assert ticks == [(i, len(names)) for i in range(len(names))]


def test_the_one_matrix_that_int4_cannot_hold_stays_in_int8(tmp_path: Path):
    """All others hold sixteen values at equal distances, least and greatest in every block: what four bits hold."""
    folder = write_model(tmp_path / "model", CONFIGS["llama"])
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        for name, weight in model.model.layers.named_parameters():
            if weight.dim() > 1 and name != "1.mlp.gate_proj.weight":
                steps = torch.clamp(torch.round(weight / 0.04), -8, 7)
                steps[:, ::8], steps[:, 1::8] = -8, 7
                weight.copy_(steps * 0.04)
    model.save_pretrained(folder)
    pack = export_pack(Request(folder, tmp_path / "pack", Precision.INT4))
    assert pack.manifest.evaluation["export"]["int8_matrices"][0] == "layers.1.mlp.gate_proj"
    graph = onnx.load(pack.model_path).graph
    product = next(node for node in graph.node if node.output[0].startswith("/model/layers.1/mlp/gate_proj/"))
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    blocks, scales, zeros = (stored[name] for name in product.input[1:])
    rows = (blocks.astype(np.float32) - zeros.reshape(*scales.shape, 1)) * scales[..., None]
    weight = model.model.layers[1].mlp.gate_proj.weight.detach().numpy()
    assert np.abs(rows.reshape(rows.shape[0], -1) - weight).max() < 0.005
