"""From a model folder to a pack, for every architecture and precision; and what happens when it goes wrong."""

import dataclasses
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from transformers import PretrainedConfig

from outrider_cloud.pack import build, check, export, mixed, passes, reference
from outrider_cloud.pack.export import STEPS, Request, export_pack
from outrider_shared.errors import ConfigError, ModelError, PackError
from outrider_shared.packs import Precision, read_pack
from support.full_disk import files_of_at_most
from unit.pack.tiny import CONFIGS, VOCAB, write_model

Folder = Callable[[str], Path]


def operators(graph: Path) -> set[str]:
    return {node.op_type for node in onnx.load(graph).graph.node}


@pytest.mark.parametrize("kind", CONFIGS)
def test_every_architecture_is_exported_as_it_computes(model_folder: Folder, tmp_path: Path, kind: str):
    """The check against transformers is part of the export; a pack that exists has passed it."""
    seen: list[str] = []
    pack = export_pack(Request(model_folder(kind), tmp_path / "packs" / kind, Precision.FP32), seen.append)
    result = pack.manifest.evaluation["export"]
    assert result["max_logit_error"] < 1e-4
    assert (result["tv"], result["top1"]) == (pytest.approx(0, abs=1e-5), 1)
    assert seen == list(STEPS)
    assert pack.manifest.name == pack.manifest.source == kind
    assert pack.manifest.architecture.context_length == 192


@pytest.mark.parametrize(("precision", "worst"), [(Precision.INT8, 0.05), (Precision.INT4, 0.4)])
@pytest.mark.parametrize("kind", ["llama", "tied", "narrow", "smollm3"])
def test_a_quantised_pack_is_smaller_and_says_what_it_lost(
    model_folder: Folder, tmp_path: Path, kind: str, precision: Precision, worst: float
):
    plain = export_pack(Request(model_folder(kind), tmp_path / "plain", Precision.FP32))
    small = export_pack(Request(model_folder(kind), tmp_path / "small", precision))
    result = small.manifest.evaluation["export"]
    assert 0 < result["tv"] < worst
    assert 0 < result["top1"] <= 1
    assert small.manifest.precision is precision
    assert small.model_path.stat().st_size < 0.7 * plain.model_path.stat().st_size
    assert "MatMulNBits" in operators(small.model_path)


@pytest.mark.parametrize(
    ("precision", "worst", "operator"),
    [(Precision.INT8_DYNAMIC, 0.1, "MatMulInteger"), (Precision.INT4_ALL, 0.4, "MatMulNBits")],
)
def test_every_matrix_of_these_precisions_is_quantised(
    model_folder: Folder, tmp_path: Path, precision: Precision, worst: float, operator: str
):
    """The head, too: no matrix product in floats is left, nor, where the head is tied, a table of floats."""
    pack = export_pack(Request(model_folder("tied"), tmp_path / "pack", precision))
    graph = onnx.load(pack.model_path).graph
    assert 0 < pack.manifest.evaluation["export"]["tv"] < worst
    assert pack.manifest.precision is precision
    assert operator in operators(pack.model_path)
    floats = [t for t in graph.initializer if t.data_type == onnx.TensorProto.FLOAT]
    assert not any(list(tensor.dims) in ([VOCAB, 64], [64, VOCAB]) for tensor in floats)


@pytest.mark.parametrize("precision", [Precision.INT8, Precision.INT4])
def test_a_tied_embedding_is_quantised_with_the_head(model_folder: Folder, tmp_path: Path, precision: Precision):
    pack = export_pack(Request(model_folder("tied"), tmp_path / "pack", precision))
    assert "GatherBlockQuantized" in operators(pack.model_path)


@pytest.mark.parametrize("kind", ["llama", "tied", "qwen3"])
def test_int4_keeps_the_head_and_what_it_names_in_int8_and_the_rest_in_int4(
    model_folder: Folder, tmp_path: Path, kind: str
):
    pack = export_pack(Request(model_folder(kind), tmp_path / "pack", Precision.INT4))
    kept = pack.manifest.evaluation["export"]["int8_matrices"]
    bits = bits_by_name(onnx.load(pack.model_path))
    wide = {name for name, each in bits.items() if each == 8}
    assert 0 < len(kept) < len(bits) - 1
    assert wide == {"lm_head", *kept}
    assert set(bits.values()) == {4, 8}


def bits_by_name(model: onnx.ModelProto) -> dict[str, int]:
    """Bits of each quantised matrix."""
    return {
        mixed.Matrix(node.output[0], 0).name if node.output[0] != "logits" else "lm_head": attribute.i
        for node in model.graph.node
        if node.op_type == "MatMulNBits"
        for attribute in node.attribute
        if attribute.name == "bits"
    }


def test_int4_takes_the_block_size_that_fits_the_widths():
    """The quantiser packs two zero points into a byte and trips over an odd number of blocks (96 = 3 x 32, 6 x 16)."""
    widths = {"num_attention_heads": 4, "hidden_size": 64}
    assert build.block_size({**widths, "intermediate_size": 128}) == 32
    assert build.block_size({**widths, "intermediate_size": 96}) == 16
    with pytest.raises(ModelError, match=r"no block size .* \(pack it as int8\)"):
        build.block_size({**widths, "hidden_size": 48, "intermediate_size": 8})


def test_an_export_says_nothing_on_its_own(
    model_folder: Folder, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
):
    with caplog.at_level(logging.WARNING):
        export_pack(Request(model_folder("tied"), tmp_path / "pack", Precision.INT8))
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []


def test_a_pack_tells_no_path_of_the_machine_that_made_it(model_folder: Folder, tmp_path: Path):
    pack = export_pack(Request(model_folder("tied"), tmp_path / "pack", Precision.INT8))
    for file in pack.path.iterdir():
        assert str(tmp_path.parent).encode() not in file.read_bytes()


def test_the_same_model_gives_the_same_pack(model_folder: Folder, tmp_path: Path):
    packs = [export_pack(Request(model_folder("tied"), tmp_path / name, Precision.INT8)) for name in ("one", "two")]
    assert packs[0].manifest == packs[1].manifest


def test_chat_name_and_licence_reach_the_manifest(tmp_path: Path):
    folder = write_model(tmp_path / "model", CONFIGS["tied"])
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (folder / "LICENSE").write_text("Free.")
    pack = export_pack(Request(folder, tmp_path / "pack", Precision.FP32, name="scout", attribution="Me."))
    assert pack.chat_template == "{{ messages }}"
    assert (pack.manifest.name, pack.manifest.licence, pack.manifest.attribution) == ("scout", "Free.", "Me.")
    assert pack.manifest.eos_ids == (2,)


def test_a_sliding_window_bounds_the_context(model_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(export, "window_of", lambda _model: 100)
    pack = export_pack(Request(model_folder("tied"), tmp_path / "pack", Precision.FP32))
    assert pack.manifest.architecture.context_length == 100


def test_weights_over_the_limit_of_one_file_go_beside_the_graph(
    model_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(export, "_ONE_FILE_BYTES", 1000)
    pack = export_pack(Request(model_folder("tied"), tmp_path / "pack", Precision.FP32))
    assert set(pack.manifest.files) == {"model.onnx", "model.onnx.data", "tokenizer.json"}


def test_a_pack_that_exists_is_replaced_only_by_force(model_folder: Folder, tmp_path: Path):
    request = Request(model_folder("tied"), tmp_path / "pack", Precision.FP32)
    request.out.mkdir()  # an empty directory is in nobody's way
    export_pack(request)
    with pytest.raises(ConfigError, match=r"exists .--force"):
        export_pack(request)
    export_pack(dataclasses.replace(request, precision=Precision.INT8, force=True))
    assert read_pack(request.out).manifest.precision is Precision.INT8
    assert [path.name for path in tmp_path.iterdir()] == ["pack"]


def test_force_does_not_delete_what_is_no_pack(model_folder: Folder, tmp_path: Path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match="is not a pack; refusing to replace it"):
        export_pack(Request(model_folder("tied"), tmp_path / "home", Precision.FP32, force=True))
    assert (tmp_path / "home" / "thesis.tex").exists()


def test_a_failed_check_leaves_nothing_and_keeps_the_old_pack(
    model_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    request = Request(model_folder("tied"), tmp_path / "pack", Precision.FP32, force=True)
    old = export_pack(request).manifest

    def patch_wrongly(model: onnx.ModelProto, shapes: export.Shapes) -> None:
        real(model, shapes)
        gather = next(node for node in model.graph.node if node.name == "logits_rows/gather")
        gather.input[0] = next(node for node in model.graph.node if "Norm" in node.op_type).output[0]

    real = export.patch_graph
    monkeypatch.setattr(export, "patch_graph", patch_wrongly)
    with pytest.raises(ModelError, match="prefill differs from the model by"):
        export_pack(request)
    assert [path.name for path in tmp_path.iterdir()] == ["pack"]
    assert read_pack(tmp_path / "pack").manifest == old


def test_a_full_disk_leaves_the_old_pack(model_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    request = Request(model_folder("tied"), tmp_path / "pack", Precision.FP32, force=True)
    old = export_pack(request).manifest
    real = Path.rename

    def rename(self: Path, target: Path) -> Path:
        if self.name == "pack" and target == request.out:
            raise OSError(28, "No space left on device")
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(PackError, match=r"cannot move the pack .*No space left"):
        export_pack(request)
    assert read_pack(request.out).manifest == old


def test_a_disk_that_is_full_while_the_graph_is_built_is_told_as_such(model_folder: Folder, tmp_path: Path):
    """The builder's libraries say it in ways of their own."""
    with files_of_at_most(20_000), pytest.raises(PackError, match=r"cannot write into .*the disk is full"):
        export_pack(Request(model_folder("tied"), tmp_path / "pack", Precision.FP32))
    assert not list(tmp_path.iterdir())


def test_weights_that_cannot_be_read_are_told_as_such(model_folder: Folder, tmp_path: Path):
    folder = Path(shutil.copytree(model_folder("tied"), tmp_path / "cut"))
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-100])
    with pytest.raises(ModelError, match=r"the weights of .*cut cannot be read"):
        export_pack(Request(folder, tmp_path / "pack", Precision.FP32))


def test_an_unwritable_place_is_a_pack_error(model_folder: Folder, tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PackError, match="cannot write beside"):
        export_pack(Request(model_folder("tied"), tmp_path / "file" / "pack", Precision.FP32))


def test_an_unknown_architecture_is_a_model_error(model_folder: Folder, tmp_path: Path):
    folder = tmp_path / "strange"
    folder.mkdir()
    for file in model_folder("tied").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = (folder / "config.json").read_text().replace("LlamaForCausalLM", "StrangeForCausalLM")
    (folder / "config.json").write_text(config)
    with pytest.raises(ModelError, match=r"cannot export \['StrangeForCausalLM'\] as fp32"):
        export_pack(Request(folder, tmp_path / "pack", Precision.FP32))


def damaged(graph: Path, target: Path, name: str) -> Path:
    """A copy of a graph, one weight of which is scrambled."""
    model = onnx.load(graph)
    weight = next(tensor for tensor in model.graph.initializer if name in tensor.name)
    array = numpy_helper.to_array(weight)
    weight.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(np.flip(array)), weight.name))
    onnx.save(model, target)
    return target


def test_the_check_sees_scrambled_weights_at_any_precision(model_folder: Folder, tmp_path: Path):
    folder = model_folder("tied")
    for precision, weight in ((Precision.FP32, "qkv_proj"), (Precision.INT8, "lm_head.MatMul.weight_Q8")):
        pack = export_pack(Request(folder, tmp_path / precision, precision))
        graph = damaged(pack.model_path, tmp_path / f"{precision}.onnx", weight)
        with pytest.raises(ModelError, match=r"differs from the model|in total variation away"):
            check.check_graph(graph, folder, pack.manifest.architecture, precision)


def test_the_check_sees_a_quantised_graph_that_ignores_the_tree(
    model_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = model_folder("tied")
    pack = export_pack(Request(folder, tmp_path / "pack", Precision.INT8))
    monkeypatch.setattr(passes, "MASKED", 0.0)
    with pytest.raises(ModelError, match="a tree pass and a chain of the same tokens are"):
        check.check_graph(pack.model_path, folder, pack.manifest.architecture, Precision.INT8)


@pytest.mark.parametrize(
    ("bos", "eos", "first"), [(3, 2, 3), (0, 2, 0), (None, 2, 2), (None, [5, 6], 5), (None, [], 0), (None, None, 0)]
)
def test_sampled_text_begins_as_the_models_texts_do(bos: int | None, eos: int | list[int] | None, first: int):
    assert reference.first_token(PretrainedConfig(bos_token_id=bos, eos_token_id=eos)) == first
