"""Cases of the matrix products of a layer: the library's, whose time a step is mostly made of, by rows."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import linear

from outrider_cloud.bench.kernels import Case, Setup
from outrider_cloud.bench.shapes import config_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_SPREAD = 0.02
_CHECKED = 64


def product_sizes(shape: str) -> dict[str, tuple[int, int]]:
    """(in, out) of each product of a step, fused as the engine fuses them."""
    config: Any = config_of(shape)
    hidden, inner, dim = config.hidden_size, config.intermediate_size, config.head_dim
    heads = config.num_attention_heads * dim
    return {
        "qkv": (hidden, heads + 2 * config.num_key_value_heads * dim),
        "output": (heads, hidden),
        "gate and up": (hidden, 2 * inner),
        "down": (inner, hidden),
        "head": (hidden, config.vocab_size),
    }


def product_cases(setup: Setup) -> Iterator[tuple[str, Callable[[], Case]]]:
    """Each product at each number of rows."""
    for name in product_sizes(setup.shape):
        for rows in setup.sizes.products:
            yield f"product {name}, {rows} rows", functools.partial(_case, setup, name, rows)


def _case(setup: Setup, name: str, rows: int) -> Case:
    size_in, size_out = product_sizes(setup.shape)[name]
    x = torch.randn(rows, size_in, dtype=setup.dtype, device=setup.device)
    weight = torch.empty(size_out, size_in, dtype=setup.dtype, device=setup.device).normal_(0.0, _SPREAD)

    def error() -> float:
        expected = x.double() @ weight[:_CHECKED].double().T
        return ((linear(x, weight)[:, :_CHECKED] - expected).abs().max() / expected.abs().max()).item()

    return Case(
        bytes=weight.element_size() * (weight.numel() + x.numel() + rows * size_out),
        ours=lambda: linear(x, weight),
        error=error,
        peers={},
        fields={"kernel": "product", "product": name, "rows": rows, "in": size_in, "out": size_out,
                "error_is": "relative to the largest value"},
    )  # fmt: skip
