"""Cases of what lies between a layer's matrix products, and of the kernels that write KV memory."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch

from outrider_cloud.bench.kernel_attention import layer_spec
from outrider_cloud.bench.kernels import Case, Setup
from outrider_cloud.bench.shapes import config_of
from outrider_cloud.kernels.cuda.kv import CudaKvPool
from outrider_cloud.kernels.cuda.layers import CudaLayers
from outrider_cloud.kernels.kv import KvPool
from outrider_cloud.kernels.layers import Rotation, TorchLayers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_PAGE_BITS = 4
_MOVES = 64
_MOVED_LAYERS = 8


def layer_cases(setup: Setup) -> Iterator[tuple[str, Callable[[], Case]]]:
    """Each kernel at each number of rows."""
    for rows in setup.sizes.steps:
        for name, make in (("norm with residual", _norm), ("SiLU times up", _activation), ("rotation and KV", _rope)):
            yield f"{name}, {rows} rows", functools.partial(make, setup, rows)
    yield "KV moves", functools.partial(_moves, setup)


def _random(setup: Setup, *shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=setup.dtype, device=setup.device)


def _apart(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return (ours.float() - theirs.float()).abs().max().item()


def _norm(setup: Setup, rows: int) -> Case:
    width = config_of(setup.shape).hidden_size
    x, residual, weight = _random(setup, rows, width), _random(setup, rows, width), _random(setup, width)
    ours, theirs = CudaLayers(setup.launcher), TorchLayers()

    def error() -> float:
        return _apart(
            ours.rms_norm(x, residual.clone(), weight, 1e-5), theirs.rms_norm(x, residual.clone(), weight, 1e-5)
        )

    sums = residual.clone()  # grows as it is measured; its values do not matter
    return Case(
        bytes=4 * x.numel() * x.element_size(),
        ours=lambda: ours.rms_norm(x, sums, weight, 1e-5),
        error=error,
        peers={"torch": lambda: theirs.rms_norm(x, sums, weight, 1e-5)},
        fields={"kernel": "rms_norm", "rows": rows, "width": width},
    )


def _activation(setup: Setup, rows: int) -> Case:
    width = config_of(setup.shape).intermediate_size
    gate_up = _random(setup, rows, 2 * width)
    ours, theirs = CudaLayers(setup.launcher), TorchLayers()
    return Case(
        bytes=3 * rows * width * gate_up.element_size(),
        ours=lambda: ours.silu_mul(gate_up),
        error=lambda: _apart(ours.silu_mul(gate_up), theirs.silu_mul(gate_up)),
        peers={"torch": lambda: theirs.silu_mul(gate_up)},
        fields={"kernel": "silu_mul", "rows": rows, "width": width},
    )


def _rope(setup: Setup, rows: int) -> Case:
    spec, slots = layer_spec(setup.shape), -(-rows // 16) * 16
    dim, normed = spec.k_dim, "qwen3" in setup.shape
    qkv = _random(setup, rows, (spec.q_heads + 2 * spec.kv_heads) * dim)
    angle = torch.rand(rows, dim // 2, device=setup.device).repeat(1, 2) * 6
    weights: tuple[Any, Any] = (_random(setup, dim), _random(setup, dim)) if normed else (None, None)
    rotation = Rotation(angle.cos(), angle.sin(), *weights, 1e-6)
    ours, theirs = CudaLayers(setup.launcher), TorchLayers()
    pool, plain = CudaKvPool(setup.launcher, [spec], slots, setup.dtype, _PAGE_BITS), KvPool([spec], slots, setup.dtype)
    plain.keys, plain.values = ([part.to(setup.device) for part in parts] for parts in (plain.keys, plain.values))
    places = torch.arange(rows, dtype=torch.int32, device=setup.device)

    def run(kernels: Any, kv: KvPool) -> torch.Tensor:
        out: torch.Tensor = kernels.rope_store(qkv, rotation, places, kv, 0, spec.q_heads)
        return out

    def error() -> float:
        query = _apart(run(ours, pool), run(theirs, plain))
        keys, values = (plane.transpose(0, 1).flatten(1, 2) for plane in pool.planes(0))
        return max(query, _apart(keys, plain.keys[0]), _apart(values, plain.values[0]))

    return Case(
        bytes=2 * qkv.numel() * qkv.element_size(),
        ours=lambda: run(ours, pool),
        error=error,
        peers={"torch": lambda: run(theirs, plain)},
        fields={"kernel": "rope_store", "rows": rows, "norms": normed},
    )


def _moves(setup: Setup) -> Case:
    """Committed branches of several sessions move behind their roots in all layers at once."""
    spec, slots = layer_spec(setup.shape), 4 * _MOVES
    pool = CudaKvPool(setup.launcher, [spec] * _MOVED_LAYERS, slots, setup.dtype, _PAGE_BITS)
    pool.pool.normal_()
    source = torch.arange(2 * _MOVES, 3 * _MOVES, dtype=torch.int32, device=setup.device)
    moves = torch.stack((source, source - 2 * _MOVES), 1).contiguous()
    starts = torch.arange(0, _MOVES + 1, 4, dtype=torch.int32, device=setup.device)
    groups = torch.tensor([len(starts) - 1], dtype=torch.int32, device=setup.device)

    def ours() -> None:
        pool.launch_moves(moves, starts, groups, len(starts) - 1)

    def theirs() -> None:
        pool.pool.view(_MOVED_LAYERS, 2, -1, spec.kv_heads, 1 << _PAGE_BITS, spec.k_dim)[:, :, : _MOVES // 16] = (
            pool.pool[:, :, 2 * _MOVES // 16 : 3 * _MOVES // 16]
        )

    def error() -> float:
        ours()
        return _apart(pool.pool[:, :, : _MOVES // 16], pool.pool[:, :, 2 * _MOVES // 16 : 3 * _MOVES // 16])

    moved = 2 * _MOVED_LAYERS * _MOVES * spec.kv_heads * spec.k_dim
    return Case(
        bytes=2 * moved * pool.pool.element_size(),
        ours=ours,
        error=error,
        peers={"torch copy of whole pages": theirs},
        fields={"kernel": "kv_move", "moves": _MOVES, "layers": _MOVED_LAYERS},
    )
