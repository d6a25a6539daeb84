"""Targets whose matrices are int8: close to the model, the same rows whatever surrounds them, told apart by name."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from outrider_cloud.model.loading import fingerprint, load_model
from outrider_cloud.model.plain import plain_model
from outrider_cloud.model.weights import Int8Linear, Weights, quantise, rounded
from outrider_shared.errors import ModelError


def test_a_rounded_matrix_is_off_by_half_a_step():
    weight = torch.randn(48, 64) * torch.logspace(-6, 2, 48)[:, None]
    matrix, scale = rounded(weight)
    assert (matrix.float() * scale.float()[:, None] - weight).abs().le(scale.float()[:, None] * 0.76).all()


def test_a_row_of_nothing_stays_nothing():
    matrix, scale = rounded(torch.zeros(2, 8))
    assert not matrix.any()
    assert scale.isfinite().all()


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


def test_layers_are_replaced_and_the_head_is_not(tiny_folder):
    native, int8 = plain_model(tiny_folder), plain_model(tiny_folder, Weights.INT8)
    kinds = {type(child) for child in int8.model.modules() if hasattr(child, "in_features")}
    assert kinds == {Int8Linear}
    assert type(int8.lm_head) is nn.Linear
    ids = torch.arange(24)[None]
    both = [model(ids).logits[0].softmax(-1) for model in (native, int8)]
    assert 0 < (both[0] - both[1]).abs().sum(-1).mean() / 2 < 0.05


def test_precisions_have_fingerprints_of_their_own(tiny_folder):
    assert load_model(tiny_folder).fingerprint == fingerprint(tiny_folder)
    assert load_model(tiny_folder, weights=Weights.INT8).fingerprint == fingerprint(tiny_folder, Weights.INT8)
    assert fingerprint(tiny_folder) != fingerprint(tiny_folder, Weights.INT8)


def test_a_model_without_linear_layers_is_refused():
    with pytest.raises(ModelError, match="no linear layers"):
        quantise(nn.Sequential(nn.Conv1d(2, 2, 1)), Weights.INT8)
