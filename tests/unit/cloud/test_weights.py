"""Targets in int8 or fp8: close to the model, the same rows whatever surrounds them, told apart by name."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from outrider_cloud.build import build_engine
from outrider_cloud.cli import cloud
from outrider_cloud.engine.config import EngineConfig
from outrider_cloud.engine.engine import Engine
from outrider_cloud.model import weights as weights_module
from outrider_cloud.model.loading import fingerprint, load_model
from outrider_cloud.model.plain import plain_model
from outrider_cloud.model.weights import (
    Fp8Linear,
    Int8Linear,
    ScaledLinear,
    Weights,
    check_product,
    held_as,
    quantise,
    rounded,
)
from outrider_shared.errors import ConfigError, ModelError
from outrider_shared.sampling import SamplingParams
from support.rig import Rig

TOLERANCE = {torch.float32: {"rtol": 1e-4, "atol": 1e-5}, torch.bfloat16: {"rtol": 0.02, "atol": 0.02}}


def test_a_rounded_matrix_is_off_by_half_a_step():
    weight = torch.randn(48, 64) * torch.logspace(-6, 2, 48)[:, None]
    matrix, scale = rounded(weight)
    assert (matrix.float() * scale.float()[:, None] - weight).abs().le(scale.float()[:, None] * 0.76).all()


def test_a_matrix_in_fp8_is_off_by_half_a_last_bit():
    """Three bits of mantissa: a sixteenth of each weight, or half the smallest step of its row; nothing overflows."""
    weight = torch.randn(48, 64) * torch.logspace(-6, 2, 48)[:, None]
    matrix, scale = rounded(weight, torch.float8_e4m3fn)
    assert matrix.float().isfinite().all()
    off = (matrix.float() * scale.float()[:, None] - weight).abs()
    assert (off <= torch.maximum(weight.abs() / 16, scale.float()[:, None] * 2**-10) * 1.01).all()


@pytest.mark.parametrize("held", [torch.int8, torch.float8_e4m3fn])
def test_a_row_of_nothing_stays_nothing(held):
    matrix, scale = rounded(torch.zeros(2, 8), held)
    assert not matrix.float().any()
    assert scale.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("held", [torch.int8, torch.float8_e4m3fn])
def test_a_widened_product_is_that_of_the_rounded_matrix(held, dtype):
    """What a GPU computes for both, and a CPU for fp8: every 8-bit number is a bfloat16, so widening loses nothing."""
    torch.manual_seed(0)
    linear = nn.Linear(70, 48)
    layer, (matrix, scale) = ScaledLinear(linear, held), rounded(linear.weight.detach(), held)
    assert torch.equal(matrix.to(torch.bfloat16).float(), matrix.float())
    rows = torch.randn(5, 70).to(dtype)
    wanted = rows.float() @ (matrix.float() * scale.float()[:, None]).T + linear.bias
    assert torch.allclose(layer(rows).float(), wanted, **TOLERANCE[dtype])


@pytest.mark.parametrize("weights", [Weights.INT8, Weights.FP8])
def test_weights_that_are_no_numbers_are_refused(weights):
    """No scale brings them back: without a word they would make whole rows no numbers."""
    for wrong in (float("inf"), float("nan")):
        linear = nn.Linear(8, 4).requires_grad_(requires_grad=False)
        linear.weight[2, 3] = wrong
        with pytest.raises(ModelError, match=r"infinities, or what is no number.*--weights native"):
            held_as(linear, weights)


@pytest.mark.parametrize("held", [torch.int8, torch.float8_e4m3fn])
def test_a_matrix_is_rounded_in_parts_and_left_alone(held, monkeypatch):
    """Whatever the size of a part: the bits of the whole at once, and the source is as it was."""
    weight = torch.randn(37, 24)
    before = weight.clone()
    whole = rounded(weight, held)
    monkeypatch.setitem(weights_module._AT_ONCE, "cpu", 100)
    assert all(torch.equal(a.float(), b.float()) for a, b in zip(rounded(weight, held), whole, strict=True))
    assert torch.equal(weight, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("weights", Weights)
def test_a_cpu_multiplies_all_kinds_of_weights(weights, dtype):
    check_product(weights, torch.device("cpu"), dtype)


def test_weights_that_a_device_cannot_multiply_are_told_before_they_are_read(monkeypatch):
    """In a sentence of their own, with what to serve instead: whether it fails, or gives something else."""

    def missing(*_):
        raise NotImplementedError("\"mul\" not implemented for 'Float8_e4m3fn'\nmore")

    monkeypatch.setattr(Fp8Linear, "product", missing)
    done = CliRunner().invoke(cloud, ["generate", "--weights", "fp8", "--prompt", "a"])
    assert done.exit_code == 2
    assert "--weights fp8 cannot be computed on this cpu by torch" in done.stderr
    assert "not implemented for 'Float8_e4m3fn' (serve with --weights native)" in done.stderr
    monkeypatch.setattr(Fp8Linear, "product", lambda _, rows: torch.zeros(len(rows), 16))
    with pytest.raises(ConfigError, match=r"fp8 gives wrong products on this cpu .* off by \d"):
        check_product(Weights.FP8, torch.device("cpu"), torch.float32)


def test_a_checkpoint_that_is_quantised_and_cannot_be_read_here_is_told(tmp_path, tiny_folder):
    """With what it is, what is missing, and what to take in its place."""
    shutil.copytree(tiny_folder, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"is quantised as gptq, and cannot be read so here: .*--weights fp8 or int8"):
        load_model(tmp_path)


def test_int8_on_a_gpu_is_int8_on_a_cpu():
    """The widened product and the CPU's kernel differ by bfloat16's rounding of the activations and of the result."""
    torch.manual_seed(0)
    layer, rows = Int8Linear(nn.Linear(70, 48)), torch.randn(5, 70).bfloat16()
    assert torch.allclose(layer.product(rows), ScaledLinear.product(layer, rows), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_has_the_same_bits_whatever_is_beside_it(dtype):
    """The engine's promise needs it: every count of rows, every place among them."""
    torch.manual_seed(0)
    layer = Int8Linear(nn.Linear(96, 80))
    rows = torch.randn(33, 96, dtype=dtype)
    whole = layer(rows)
    assert whole.dtype == dtype
    for count in range(1, 33):
        assert torch.equal(layer(rows[count:]), whole[count:])
        assert torch.equal(layer(rows[None, count - 1 : count])[0], whole[count - 1 : count])


@pytest.mark.parametrize("width", [16, 24, 56, 70])
def test_a_matrix_of_any_width_gives_the_sums_of_its_rounded_form(width):
    """The kernel itself is wrong, or reads beyond the matrix, at widths that are no multiple of 16."""
    torch.manual_seed(0)
    linear = torch.nn.Linear(width, 64, bias=False)
    layer = Int8Linear(linear)
    for count in (1, 5):
        rows = torch.randn(count, width).bfloat16()
        matrix, scale = rounded(linear.weight.detach())
        wanted = (rows.float() @ matrix.float().T) * scale.float()
        assert torch.allclose(layer(rows).float(), wanted, rtol=0.02, atol=0.02)


@pytest.mark.parametrize(
    ("weights", "layer", "most"), [(Weights.INT8, Int8Linear, 0.05), (Weights.FP8, Fp8Linear, 0.1)]
)
def test_layers_are_replaced_and_the_head_is_not(tiny_folder, weights, layer, most):
    """Random weights; e4m3 keeps fewer bits of most of them than integers do."""
    native, held = plain_model(tiny_folder), plain_model(tiny_folder, weights)
    kinds = {type(child) for child in held.model.modules() if hasattr(child, "in_features")}
    assert kinds == {layer}
    assert type(held.lm_head) is nn.Linear
    ids = torch.arange(24)[None]
    both = [model(ids).logits[0].softmax(-1) for model in (native, held)]
    assert 0 < (both[0] - both[1]).abs().sum(-1).mean() / 2 < most


def test_precisions_have_fingerprints_of_their_own(tiny_folder):
    for weights in Weights:
        assert load_model(tiny_folder, weights=weights).fingerprint == fingerprint(tiny_folder, weights)
    assert len({fingerprint(tiny_folder, weights) for weights in Weights}) == len(Weights)


def test_a_model_without_linear_layers_is_refused():
    with pytest.raises(ModelError, match="no linear layers"):
        quantise(nn.Sequential(nn.Conv1d(2, 2, 1)), Weights.INT8)


def test_an_engine_in_fp8_serves_exactly_and_drafts_change_nothing(tiny_folder):
    """Every bucket's rows have the same bits, and a drafted answer is the plain one."""
    config = EngineConfig(kv_tokens=512, exact=True, buckets=(8, 16))
    engine = build_engine(str(tiny_folder), config, weights=Weights.FP8)
    answers = []
    for drafts in (False, True):
        rig = Rig(engine.runner.loaded, kv_tokens=512)
        rig.engine = Engine(engine.runner, config)
        session = rig.open([3, 1, 4], 12, SamplingParams(0.8, seed=2), ignore_eos=True)
        while not rig.ended(session):
            made = len(rig.engine.sessions[session].log) - 3
            if drafts:
                rig.draft(session, [*answers[0][made : made + 2], 5], anchor=3 + made)
            rig.step()
        answers.append(rig.tokens(session))
    assert answers[0] == answers[1]
    assert rig.commits(session)[-1].usage.steps < 8
