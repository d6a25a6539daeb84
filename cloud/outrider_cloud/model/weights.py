"""How a target's weights are held: as they are, or its matrices in 8 bits with a scale per output channel.

    w[o, i]  ~=  q[o, i] * s[o]      s bfloat16,  q int8 in -127..127, or fp8 (e4m3: 3 bits of mantissa, up to 448)

Weight-only: activations stay floating point, so a row's result depends on that row alone, which the engine's promises
need (an activation in 8 bits has a scale over all rows of a step). The scale is rounded to bfloat16 *before* the
weights are divided by it, so its rounding costs nothing. Embeddings, norms and the head stay as they are: the head
decides near-ties.

The product widens the matrix: exact, since every q is a bfloat16, and on a GPU no gain in speed, since what was widened
is written and read again. On a CPU int8 has a kernel that reads the integers as they are (`torch._weight_int8pack_mm`,
with bfloat16 activations); torchao's int8 weight-only widens there, too, which is slower than no quantisation at all
(docs/decisions, with figures).
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

from outrider_shared.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from collections.abc import Iterator

# The largest q of each type.
_LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}
# Values that are rounded at a time. On a host they are few: the C library keeps the holes that they leave.
_AT_ONCE = {"cpu": 1 << 16, "cuda": 1 << 22}
# By so much int8 may move a sum of the trial: 32 weights by half a step of 7/8/127 each, rows of up to 3, and bfloat16.
_OFF = 0.4
_WIDTH = 16  # the CPU kernel reads rows in such parts: of other widths it gives wrong sums, or reads beyond the matrix


class Weights(enum.StrEnum):
    """What `--weights` takes."""

    NATIVE = "native"
    INT8 = "int8"
    FP8 = "fp8"


class ScaledLinear(nn.Module):
    """A linear layer whose matrix is held in 8 bits.

    Args:
        linear: In place of this one.
        held: `int8` or `float8_e4m3fn`.

    Attributes:
        matrix: [out, in] of that type.
        scale: [out] bfloat16.
        bias: [out] or None.
    """

    matrix: torch.Tensor
    scale: torch.Tensor

    def __init__(self, linear: nn.Linear, held: torch.dtype) -> None:
        super().__init__()
        matrix, scale = rounded(linear.weight.detach(), held)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.register_buffer("matrix", matrix)
        self.register_buffer("scale", scale)
        self.bias = linear.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., in] -> [..., out], in the dtype of `x`."""
        out = self.product(x.reshape(-1, self.in_features))
        if self.bias is not None:
            out = out + self.bias.to(x.dtype)
        return out.reshape(*x.shape[:-1], self.out_features)

    def product(self, rows: torch.Tensor) -> torch.Tensor:
        """[rows, in] -> [rows, out]; padding of the matrix's inputs is left out."""
        return (rows @ self.matrix[:, : self.in_features].to(rows.dtype).T) * self.scale.to(rows.dtype)


class Fp8Linear(ScaledLinear):
    """A linear layer whose matrix is fp8 (e4m3)."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear, torch.float8_e4m3fn)


class Int8Linear(ScaledLinear):
    """A linear layer whose matrix is int8; its inputs are filled up with zeros to a multiple of 16."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear, torch.int8)
        if missing := -self.in_features % _WIDTH:
            self.matrix = functional.pad(self.matrix, (0, missing))

    def product(self, rows: torch.Tensor) -> torch.Tensor:
        """[rows, in] -> [rows, out]."""
        if rows.device.type != "cpu":
            return super().product(rows)
        padded = functional.pad(rows, (0, -self.in_features % _WIDTH))
        # Contiguous: the kernel reads rows by their width, whatever their stride.
        out = torch._weight_int8pack_mm(padded.to(torch.bfloat16).contiguous(), self.matrix, self.scale)  # noqa: SLF001 - torch has no public name for it
        return out.to(rows.dtype)


_LAYERS: dict[Weights, type[Int8Linear | Fp8Linear]] = {Weights.INT8: Int8Linear, Weights.FP8: Fp8Linear}


def rounded(weight: torch.Tensor, held: torch.dtype = torch.int8) -> tuple[torch.Tensor, torch.Tensor]:
    """([out, in] of type `held`, bfloat16 scale [out]) of a matrix; symmetric, per output channel, round to nearest.

    Raises:
        ModelError: if a weight is infinite or no number, which no scale brings back.
    """
    largest, rows = _LARGEST[held], max(1, _AT_ONCE[weight.device.type] // weight.shape[1])
    matrix = torch.empty(weight.shape, dtype=held, device=weight.device)
    scale = torch.empty(len(weight), dtype=torch.bfloat16, device=weight.device)
    for first in range(0, len(weight), rows):
        part = slice(first, first + rows)
        wide = weight[part].to(torch.float32, copy=True)
        exact = torch.linalg.vector_norm(wide, torch.inf, 1).div_(largest)
        exact.clamp_(min=torch.finfo(torch.float32).tiny * largest)
        scale[part] = exact.to(torch.bfloat16)
        wide.div_(scale[part].float()[:, None]).clamp_(-largest, largest)
        matrix[part] = wide.round_() if held is torch.int8 else wide
    if not bool(scale.isfinite().all()):
        raise ModelError("it holds infinities, or what is no number", hint="serve the model with --weights native")
    return matrix, scale


def check_product(weights: Weights, device: torch.device, dtype: torch.dtype) -> None:
    """Refuse weights that a device cannot hold or multiply, before any is read: a small product is tried.

    Raises:
        ConfigError: what is wrong.
    """
    if weights is Weights.NATIVE:
        return
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"this {device.type}"
    linear = nn.Linear(32, 16, bias=False, device=device, dtype=dtype).requires_grad_(requires_grad=False)
    steps = torch.arange(linear.weight.numel(), device=device)
    linear.weight.copy_((steps % 15 - 7).view_as(linear.weight) / 8)
    rows = (steps[:96] % 7 - 3).view(3, 32).to(dtype)
    hint = "serve with --weights native"
    try:
        off = (held_as(linear, weights)(rows) - linear(rows)).abs().max().item()
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            f"--weights {weights} cannot be computed on {where} by torch {torch.__version__}: {reason}", hint=hint
        ) from error
    if not off <= _OFF:
        raise ConfigError(
            f"--weights {weights} gives wrong products on {where} with torch {torch.__version__}: off by {off:g}",
            hint=hint,
        )


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
    return linear if weights is Weights.NATIVE else _LAYERS[weights](linear)


def linears(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    """Every linear layer but the head (whole or in shards), with its place."""
    head = getattr(model, "get_output_embeddings", lambda: None)()
    heads = set() if head is None else {id(part) for part in head.modules()}
    for parent in model.modules():
        for name, child in parent.named_children():
            if type(child) is nn.Linear and id(child) not in heads:
                yield parent, name, child
