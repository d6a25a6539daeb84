"""The fused layer kernels' own text, run on the CPU, against the torch reference."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from outrider_cloud.kernels.cuda.kv import CudaKvPool
from outrider_cloud.kernels.cuda.layers import CudaLayers
from outrider_cloud.kernels.kv import KvPool
from outrider_cloud.kernels.layers import Rotation, TorchLayers
from outrider_cloud.kernels.layout import LayerSpec

DTYPES = [torch.bfloat16, torch.float16]


def close(ours, reference, dtype):
    """Equal to a rounding or two of the 16-bit type."""
    unit = 2.0**-7 if dtype == torch.bfloat16 else 2.0**-10
    return torch.allclose(ours.float(), reference.float(), rtol=2 * unit, atol=unit)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [64, 3072])
def test_norm_adds_the_residual_and_keeps_the_sum(host, dtype, width):
    torch.manual_seed(1)
    x, residual, weight = torch.randn(5, width).to(dtype), torch.randn(5, width).to(dtype), torch.rand(width).to(dtype)
    ours, theirs = residual.clone(), residual.clone()
    out = CudaLayers(host).rms_norm(x, ours, weight, 1e-5)
    assert close(out, TorchLayers().rms_norm(x, theirs, weight, 1e-5), dtype)
    assert torch.equal(ours, theirs)
    assert close(CudaLayers(host).rms_norm(x, None, weight, 1e-5), TorchLayers().rms_norm(x, None, weight, 1e-5), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_activation(host, dtype):
    torch.manual_seed(2)
    gate_up = (3 * torch.randn(7, 2 * 94)).to(dtype)
    assert close(CudaLayers(host).silu_mul(gate_up), TorchLayers().silu_mul(gate_up), dtype)


@pytest.mark.parametrize(("dim", "rotary", "normed"), [(64, 64, True), (96, 96, False), (128, 64, False)])
def test_rotation_norm_and_write(host, dim, rotary, normed):
    """Queries come back, keys and values lie in their slots, and padding rows write nothing."""
    torch.manual_seed(3)
    dtype, q_heads, kv_heads = torch.bfloat16, 6, 2
    spec = LayerSpec(q_heads, kv_heads, dim, dim, 1.0, None, None, sinks=False)
    ours, theirs = CudaKvPool(host, [spec, spec], 64, dtype, 4), KvPool([spec, spec], 64, dtype)
    qkv = torch.randn(5, (q_heads + 2 * kv_heads) * dim).to(dtype)
    angle = torch.rand(5, rotary // 2) * 6
    weights = (torch.rand(dim).to(dtype), torch.rand(dim).to(dtype)) if normed else (None, None)
    rotation = Rotation(torch.cat((angle, angle), 1).cos(), torch.cat((angle, angle), 1).sin(), *weights, 1e-6)
    slots = torch.tensor([33, 2, 63, 17, -1], dtype=torch.int32)
    query = CudaLayers(host).rope_store(qkv, rotation, slots, ours, 1, q_heads)
    assert close(query, TorchLayers().rope_store(qkv, rotation, slots, theirs, 1, q_heads), dtype)
    keys, values = (plane.transpose(1, 2).reshape(64, kv_heads, dim) for plane in ours.planes(1))
    assert close(keys, theirs.keys[1].transpose(0, 1), dtype)
    assert torch.equal(values, theirs.values[1].transpose(0, 1))
    assert not ours.pool[0].any()


@given(
    seed=st.integers(0, 2**31),
    dtype=st.sampled_from(DTYPES),
    rows=st.integers(1, 9),
    width=st.integers(1, 700).map(lambda half: 2 * half),
)
@settings(max_examples=25)
def test_norms_and_activations_of_any_width_equal_float64(host, seed, dtype, rows, width):
    """Odd halves, single rows, widths below and above a block's threads; padding is nobody's."""
    torch.manual_seed(seed)
    x, residual = torch.randn(rows, width).to(dtype), torch.randn(rows, width).to(dtype)
    weight, gate_up = torch.rand(width).to(dtype), (3 * torch.randn(rows, 2 * width)).to(dtype)
    total = residual.clone()
    out = CudaLayers(host).rms_norm(x, total, weight, 1e-5)
    wide = total.double()
    assert close(total, residual.double() + x.double(), dtype)
    assert close(out, wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-5) * weight.double(), dtype)
    gate, up = gate_up.double().chunk(2, -1)
    assert close(CudaLayers(host).silu_mul(gate_up), gate * torch.sigmoid(gate) * up, dtype)


@given(
    seed=st.integers(0, 2**31),
    dtype=st.sampled_from(DTYPES),
    dim=st.sampled_from([64, 96, 128, 256]),
    part=st.sampled_from([1, 2, 4]),
    q_heads=st.integers(1, 9),
    kv_heads=st.integers(1, 3),
    normed=st.booleans(),
)
@settings(max_examples=25)
def test_rotations_of_any_shape_equal_float64(host, seed, dtype, dim, part, q_heads, kv_heads, normed):
    """Whole and partial rotations of any number of heads, with and without norms, keys and values in their slots."""
    torch.manual_seed(seed)
    rows, rotary = 4, dim // part
    pool = CudaKvPool(host, [LayerSpec(q_heads, kv_heads, dim, dim, 1.0, None, None, sinks=False)], 32, dtype, 4)
    qkv = torch.randn(rows, (q_heads + 2 * kv_heads) * dim).to(dtype)
    angle = (torch.rand(rows, rotary // 2) * 6).repeat(1, 2)
    weights = (torch.rand(dim).to(dtype), torch.rand(dim).to(dtype)) if normed else (None, None)
    slots = torch.randperm(32)[:rows].int()
    rotation = Rotation(angle.cos(), angle.sin(), *weights, 1e-6)
    query = CudaLayers(host).rope_store(qkv, rotation, slots, pool, 0, q_heads)
    heads = qkv.double().view(rows, -1, dim)

    def expected(part, weight):
        if weight is not None:
            part = part * torch.rsqrt(part.square().mean(-1, keepdim=True) + 1e-6) * weight.double()
        turned, rest = part[..., :rotary], part[..., rotary:]
        low, high = turned.chunk(2, -1)
        cos, sin = angle.cos().double()[:, None], angle.sin().double()[:, None]
        return torch.cat((turned * cos + torch.cat((-high, low), -1) * sin, rest), -1)

    unit = 2.0**-6 if dtype == torch.bfloat16 else 2.0**-9  # a norm rounds once more before the rotation
    keys, values = (plane.transpose(1, 2).reshape(32, kv_heads, dim)[slots.long()] for plane in pool.planes(0))
    near = {"rtol": unit, "atol": 2 * unit}
    assert torch.allclose(query.double(), expected(heads[:, :q_heads], weights[0]), **near)
    assert torch.allclose(keys.double(), expected(heads[:, q_heads : q_heads + kv_heads], weights[1]), **near)
    assert torch.equal(values.double(), heads[:, q_heads + kv_heads :])
