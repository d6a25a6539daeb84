"""Cuts a model's linear layers along the tensor-parallel plan that it publishes, in place.

    colwise                 outputs are cut: queries, keys, values, gate, up
    rowwise                 inputs are cut, outputs are added: attention's output, down
    colwise_gather_output   outputs are cut and gathered: the head, fused projections
    rowwise_split_input     as rowwise, of an input that every rank has whole

Everything else is whole on every rank: norms, embeddings, and what the plan does not name. Where there are fewer
heads of keys and values than shards, shards share one, each with a copy. A head's vocabulary is padded with zeros to a
multiple of the shards. A mixture of experts is refused.

The model may live on the meta device: then nothing is copied, and the returned origins tell what to read.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from outrider_cloud.parallel.layers import ColumnLinear, GatheredLinear, RowLinear
from outrider_shared.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from outrider_cloud.parallel.world import World

_GATHERED = {"colwise_gather_output", "colwise_rep"}
_SPLIT = {"rowwise_split_input", "rowwise_rep"}
_STYLES = {"colwise", "rowwise", *_GATHERED, *_SPLIT}
_EXPERTS = ("expert", "moe", "packed", "grouped")
_ALONE = "serve it on one rank, without --tensor-parallel and --shards"
_KEYS_AND_VALUES = (".k_proj", ".v_proj")


@dataclass(frozen=True)
class Cut:
    """A part of a tensor, zeros behind its end.

    Attributes:
        dim: 0 or 1.
        start, end: What is taken.
        size: With zeros.
    """

    dim: int
    start: int
    end: int
    size: int

    def __call__(self, whole: Any) -> torch.Tensor:
        """The part of a tensor, or of a slice of a safetensors file, which reads no more than that."""
        part: torch.Tensor = whole[self.start : self.end] if self.dim == 0 else whole[:, self.start : self.end]
        missing = self.size - part.shape[self.dim]
        if missing == 0:
            return part.clone(memory_format=torch.contiguous_format)
        padding = list(part.shape)
        padding[self.dim] = missing
        return torch.cat((part, part.new_zeros(padding)), self.dim)


@dataclass(frozen=True)
class Origin:
    """Where a parameter of a cut model comes from: the parameter's name in the whole model, and its part of it."""

    name: str
    cut: Cut | None


def shard(model: PreTrainedModel, world: World) -> dict[str, Origin]:
    """Replace linear layers by our shards of them.

    Returns:
        The origin of each parameter whose name changed.

    Raises:
        ModelError: if the model publishes no plan that this knows, or its sizes do not divide.
    """
    if world.shards == 1:
        return {}
    plan = _plan(model)
    origins: dict[str, Origin] = {}
    found = [
        (name, module, plan[generic])
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and (generic := re.sub(r"\.\d+\.", ".*.", name)) in plan
    ]
    if not any(style.startswith("rowwise") for _, _, style in found):
        raise ModelError(f"{type(model).__name__} publishes no tensor-parallel plan for its layers", hint=_ALONE)
    for name, linear, style in found:
        parent, _, leaf = name.rpartition(".")
        new, parts = _cut_linear(model, name, linear, style, world)
        setattr(model.get_submodule(parent), leaf, new)
        origins |= parts
    return origins


def _plan(model: PreTrainedModel) -> dict[str, str]:
    published: dict[str, str] = dict(getattr(model, "tp_plan", None) or getattr(model, "_tp_plan", None) or {})
    experts = sorted(key for key, style in published.items() if any(word in f"{key} {style}" for word in _EXPERTS))
    if experts:
        raise ModelError(f"{type(model).__name__} has experts ({experts[0]}), which are not cut here", hint=_ALONE)
    return {key: style for key, style in published.items() if style in _STYLES}


def _cut_linear(
    model: PreTrainedModel, name: str, linear: nn.Linear, style: str, world: World
) -> tuple[nn.Module, dict[str, Origin]]:
    """The layer in our shards, and where its parameters come from."""
    origins: dict[str, Origin] = {}
    if style.startswith("rowwise"):
        cuts = [_even(name, linear.in_features, 1, shard, world.shards) for shard in world.own]
        parts = [_part(linear, cut, None) for cut in cuts]
        new: nn.Module = RowLinear(parts, linear.bias, world, whole=style in _SPLIT)
    else:
        cuts = _column_cuts(model, name, linear, style, world)
        parts = [_part(linear, cut, linear.bias) for cut in cuts]
        gathered = style in _GATHERED
        new = GatheredLinear(parts, linear.out_features, world) if gathered else ColumnLinear(parts)
        if linear.bias is not None:
            origins = {f"{name}.parts.{i}.bias": Origin(f"{name}.bias", cut) for i, cut in enumerate(cuts)}
    return new, origins | {f"{name}.parts.{i}.weight": Origin(f"{name}.weight", cut) for i, cut in enumerate(cuts)}


def _column_cuts(model: PreTrainedModel, name: str, linear: nn.Linear, style: str, world: World) -> list[Cut]:
    out, shards = linear.out_features, world.shards
    if style in _GATHERED:
        size = -(-out // shards)
        return [Cut(0, min(out, i * size), min(out, (i + 1) * size), size) for i in world.own]
    if not name.endswith(_KEYS_AND_VALUES):
        return [_even(name, out, 0, i, shards) for i in world.own]
    heads = int(model.config.get_text_config().num_key_value_heads)
    if heads % shards == 0:
        return [_even(name, out, 0, i, shards) for i in world.own]
    if shards % heads:
        raise ModelError(f"{heads} heads of keys and values do not fit {shards} shards", hint=_fitting(heads))
    size = out // heads
    return [Cut(0, i * heads // shards * size, (i * heads // shards + 1) * size, size) for i in world.own]


def _even(name: str, size: int, dim: int, index: int, shards: int) -> Cut:
    if size % shards:
        raise ModelError(f"{name}: {size} cannot be cut into {shards} equal shards", hint=_fitting(size))
    each = size // shards
    return Cut(dim, index * each, (index + 1) * each, each)


def _fitting(size: int) -> str:
    fits = [str(n) for n in (2, 4, 8, 16) if size % n == 0]
    return f"shards that fit: {', '.join(fits)}" if fits else _ALONE


def _part(linear: nn.Linear, cut: Cut, bias: nn.Parameter | None) -> nn.Linear:
    weight = cut(linear.weight.data)
    part = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    part.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        part.bias = nn.Parameter(cut(bias.data), requires_grad=False)
    return part
