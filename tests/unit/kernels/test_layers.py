"""The fused layer kernels' own text, run on the CPU, against the torch reference."""

from __future__ import annotations

import pytest
import torch

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
