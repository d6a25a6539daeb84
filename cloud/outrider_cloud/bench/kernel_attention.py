"""Cases of attention: sessions that verify a chain of drafts, from one row (plain decoding) up, over paged keys."""

from __future__ import annotations

import functools
import importlib
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention

from outrider_cloud.bench.kernels import Case, Setup
from outrider_cloud.bench.shapes import config_of
from outrider_cloud.kernels.cuda.attention import CudaAttention
from outrider_cloud.kernels.cuda.kv import CudaKvPool
from outrider_cloud.kernels.layout import LayerSpec, Segment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_PAGE_BITS = 4
_FLASHINFER_WORKSPACE = 128 << 20


def attention_cases(setup: Setup) -> Iterator[tuple[str, Callable[[], Case]]]:
    """All contexts and rows."""
    for context in setup.sizes.contexts:
        for rows in setup.sizes.rows:
            name = f"attention, {rows} rows, context {context}"
            yield name, functools.partial(_case, setup, context, rows)


def layer_spec(shape: str) -> LayerSpec:
    """Attention of a layer of a named shape."""
    config = config_of(shape)
    heads, kv_heads, dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    return LayerSpec(heads, kv_heads, dim, dim, dim**-0.5, None, None, sinks=False)


def _case(setup: Setup, context: int, rows: int) -> Case:
    spec, sessions, page = layer_spec(setup.shape), setup.sizes.sessions, 1 << _PAGE_BITS
    tokens = context + rows
    pages = -(-tokens // page)
    pool = CudaKvPool(setup.launcher, [spec], sessions * pages * page, setup.dtype, _PAGE_BITS)
    pool.pool.normal_()
    order = np.random.default_rng(3).permutation(sessions * pages).reshape(sessions, pages)
    slots = ((order[:, :, None] << _PAGE_BITS) + np.arange(page)).reshape(sessions, -1)[:, :tokens].astype(np.int64)
    segments = [Segment(own[:context], own[context:], list(range(-1, rows - 1))) for own in slots]
    plan = CudaAttention(setup.launcher, _PAGE_BITS).plan(segments, sessions * rows)
    query = torch.randn(sessions * rows, spec.q_heads, spec.k_dim, dtype=setup.dtype, device=setup.device)
    keys, values = (_dense(plane, order, tokens) for plane in pool.planes(0))
    dense = query.view(sessions, rows, spec.q_heads, spec.k_dim).transpose(1, 2).contiguous()

    def ours() -> torch.Tensor:
        return plan.attend(query.transpose(0, 1), pool, 0, spec, None)

    def error() -> float:
        out = ours().view(sessions, rows, spec.q_heads, spec.k_dim)
        worst = 0.0
        for session in range(sessions):
            expected = _in_float64(dense[session], keys[session], values[session], spec)
            worst = max(worst, (out[session].transpose(0, 1).double() - expected).abs().max().item())
        return worst

    return Case(
        bytes=pool.pool.element_size() * (2 * sessions * tokens * spec.kv_heads * spec.k_dim + 2 * query.numel()),
        ours=ours,
        error=error,
        peers={
            "sdpa": functools.partial(_sdpa, dense, keys, values),
            "torch": functools.partial(_plainly, dense, keys, values, spec),
            "flashinfer": _flashinfer(setup, spec, order, tokens, rows, query, pool),
        },
        fields={"kernel": "attention", "context": context, "rows": rows, "sessions": sessions},
    )


def _dense(plane: torch.Tensor, order: np.ndarray[Any, Any], tokens: int) -> torch.Tensor:
    """[sessions, kv_heads, tokens, dim] of the pages of each session."""
    index = torch.from_numpy(order.reshape(-1)).to(plane.device)
    paged = plane.index_select(0, index).view(*order.shape, *plane.shape[1:])  # [sessions, pages, heads, page, dim]
    return paged.transpose(1, 2).flatten(2, 3)[:, :, :tokens].contiguous()


def _hidden(rows: int, tokens: int, device: torch.device) -> torch.Tensor:
    """[rows, tokens]: what lies behind each of the last rows."""
    return torch.ones(rows, tokens, dtype=torch.bool, device=device).triu(tokens - rows + 1)


def _in_float64(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, spec: LayerSpec) -> torch.Tensor:
    """[q_heads, rows, dim] of one session."""
    rows = query.shape[1]
    grouped = query.double().view(spec.kv_heads, -1, rows, spec.k_dim)
    scores = torch.einsum("hgrd,htd->hgrt", grouped, keys.double()) * spec.scale
    scores = scores.masked_fill(_hidden(rows, keys.shape[1], keys.device), -torch.inf)
    return torch.einsum("hgrt,htd->hgrd", scores.softmax(-1), values.double()).flatten(0, 1)


def _plainly(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, spec: LayerSpec) -> torch.Tensor:
    """Products and a softmax in torch, keys lying densely: [sessions, q_heads, rows, dim]."""
    sessions, _, rows, dim = query.shape
    grouped = query.view(sessions, spec.kv_heads, -1, dim)
    scores = ((grouped @ keys.transpose(-1, -2)) * spec.scale).view(sessions, spec.q_heads, rows, -1)
    if rows > 1:
        scores = scores.masked_fill(_hidden(rows, keys.shape[2], keys.device), -torch.inf)
    weights = scores.softmax(-1).view(*grouped.shape[:3], -1)
    return (weights @ values).view(query.shape)


def _sdpa(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """The fused attention of torch attention, keys lying densely; rows end where the keys do."""
    rows, tokens = query.shape[2], keys.shape[2]
    bias: Any = causal_lower_right(rows, tokens) if rows > 1 else None
    return scaled_dot_product_attention(query, keys, values, attn_mask=bias, enable_gqa=True)


def _flashinfer(
    setup: Setup, spec: LayerSpec, order: np.ndarray[Any, Any], tokens: int, rows: int, query: torch.Tensor,
    pool: CudaKvPool,
) -> Callable[[], Any] | str:  # fmt: skip
    """Its paged prefill, which is what verifies drafts there, over the same pages."""
    if setup.device.type != "cuda":
        return "needs a card"
    try:
        flashinfer = importlib.import_module("flashinfer")
    except ImportError as error:
        return f"not importable: {error}"

    def numbers(values: Any) -> torch.Tensor:
        return torch.as_tensor(values, dtype=torch.int32, device=setup.device)

    sessions, pages = order.shape
    try:
        workspace = torch.empty(_FLASHINFER_WORKSPACE, dtype=torch.uint8, device=setup.device)
        wrapper = flashinfer.BatchPrefillWithPagedKVCacheWrapper(workspace, "HND")
        last = (tokens - 1) % (1 << _PAGE_BITS) + 1
        wrapper.plan(
            numbers(range(0, sessions * rows + 1, rows)), numbers(range(0, sessions * pages + 1, pages)),
            numbers(order.reshape(-1)), numbers([last] * sessions), spec.q_heads, spec.kv_heads, spec.k_dim,
            1 << _PAGE_BITS, causal=True, q_data_type=setup.dtype, kv_data_type=setup.dtype,
        )  # fmt: skip
    except Exception as error:  # noqa: BLE001 - it compiles its kernels here, and may not be able to
        return f"{type(error).__name__}: {error}"
    return lambda: wrapper.run(query, pool.planes(0))
