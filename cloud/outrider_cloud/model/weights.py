"""How a target's weights are held: as they are, or its matrices as 8-bit integers with a scale per output channel.

    w[o, i]  ~=  q[o, i] * s[o]      q int8 in -127..127,  s bfloat16

Weight-only: activations stay floating point, so a row's result depends on that row alone, which the engine's promises
need (an int8 activation has a scale over all rows of a step). The scale is rounded to bfloat16 *before* the weights are
divided by it, so its rounding costs nothing. Embeddings, norms and the head stay as they are: it decides near-ties.

On the CPU the product is `torch._weight_int8pack_mm` with bfloat16 activations, which reads the integers as they are;
elsewhere the integers are widened in the product. torchao's int8 weight-only widens the matrix in memory first on a
CPU, which is slower than no quantisation at all (docs/decisions, with figures).
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

from outrider_shared.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Iterator

_LARGEST = 127
_WIDTH = 16  # the CPU kernel reads rows in such parts: of other widths it gives wrong sums, or reads beyond the matrix


class Weights(enum.StrEnum):
    """What `--weights` takes."""

    NATIVE = "native"
    INT8 = "int8"


class Int8Linear(nn.Module):
    """A linear layer whose matrix is int8.

    Attributes:
        matrix: [out, in] int8; `in` filled up with zeros to a multiple of 16.
        scale: [out] bfloat16.
        bias: [out] or None.
    """

    matrix: torch.Tensor
    scale: torch.Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        matrix, scale = rounded(linear.weight.detach())
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.register_buffer("matrix", functional.pad(matrix, (0, -self.in_features % _WIDTH)))
        self.register_buffer("scale", scale)
        self.bias = linear.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., in] -> [..., out], in the dtype of `x`."""
        rows = functional.pad(x.reshape(-1, self.in_features), (0, -self.in_features % _WIDTH))
        if x.device.type == "cpu":
            # Contiguous: the kernel reads rows by their width, whatever their stride.
            out = torch._weight_int8pack_mm(rows.to(torch.bfloat16).contiguous(), self.matrix, self.scale).to(x.dtype)  # noqa: SLF001 - torch has no public name for it
        else:
            out = (rows @ self.matrix.to(x.dtype).T) * self.scale.to(x.dtype)
        if self.bias is not None:
            out = out + self.bias.to(x.dtype)
        return out.reshape(*x.shape[:-1], self.out_features)


def rounded(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(int8 [out, in], bfloat16 scale [out]) of a matrix; symmetric, per output channel, round to nearest."""
    wide = weight.float()
    exact = (wide.abs().amax(1) / _LARGEST).clamp(min=torch.finfo(torch.float32).tiny * _LARGEST)
    scale = exact.to(torch.bfloat16)
    matrix = (wide / scale.float()[:, None]).round().clamp(-_LARGEST, _LARGEST).to(torch.int8)
    return matrix, scale


def quantise(model: nn.Module, weights: Weights) -> int:
    """Hold the matrices of a model's layers as `weights` says, in place; returns how many were replaced.

    Raises:
        ModelError: if the model has no linear layer to replace (a mixture of experts may hold its matrices otherwise).
    """
    if weights is Weights.NATIVE:
        return 0
    places = list(linears(model))
    if not places:
        raise ModelError(f"{type(model).__name__} has no linear layers to hold as {weights}", hint="serve it as it is")
    for parent, name, linear in places:
        setattr(parent, name, held_as(linear, weights))
    return len(places)


def held_as(linear: nn.Linear, weights: Weights) -> nn.Module:
    """A layer in place of another that holds its matrix as `weights` says."""
    return linear if weights is Weights.NATIVE else Int8Linear(linear)


def linears(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    """Every linear layer but the head (whole or in shards), with its place."""
    head = getattr(model, "get_output_embeddings", lambda: None)()
    heads = set() if head is None else {id(part) for part in head.modules()}
    for parent in model.modules():
        for name, child in parent.named_children():
            if type(child) is nn.Linear and id(child) not in heads:
                yield parent, name, child
