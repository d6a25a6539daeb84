"""Reads weights one tensor at a time, straight to where and how they are held.

transformers reads a whole model before anything of it can be cut, quantised or moved. Here the model is built without
memory for its parameters. Each tensor of the safetensors files is then read (of one that is cut, only this process's
part), brought to its dtype and device, and its layer quantised, before the next one is read: memory holds what the
model will hold, one layer more, and the mapped pages of one file.

Files whose names are not the model's own (weights that transformers converts on reading, other formats) are left to it.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoModelForCausalLM

from outrider_cloud.model.attention import ATTENTION
from outrider_cloud.model.weights import Weights, held_as, linears
from outrider_cloud.parallel.shards import Origin, shard
from outrider_shared.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from transformers import PreTrainedModel

    from outrider_cloud.parallel.shards import Cut
    from outrider_cloud.parallel.world import World

_INDEX, _SINGLE = "model.safetensors.index.json", "model.safetensors"


@dataclass(frozen=True)
class _Place:
    """A tensor of the model that is to be read.

    Attributes:
        name: In the model.
        source: In its file.
        cut: The part of it; None is the whole.
        holders: (module, attribute) of everything that holds it; several if it is tied.
        like: Without memory: shape and dtype.
    """

    name: str
    source: str
    cut: Cut | None
    holders: list[tuple[nn.Module, str]]
    like: torch.Tensor

    @property
    def bytes(self) -> int:
        """Of memory."""
        return self.like.numel() * self.like.element_size()


def skeleton(config: Any, dtype: torch.dtype) -> PreTrainedModel:
    """A model whose parameters have no memory; buffers that no file holds, such as rotary frequencies, are real."""
    build: Any = AutoModelForCausalLM.from_config
    with _parameters_without_memory():
        model: PreTrainedModel = build(config, dtype=dtype, attn_implementation=ATTENTION)
        model.tie_weights()
    return model


def needed_bytes(model: nn.Module, weights: Weights) -> int:
    """Memory of parameters and buffers, once linear layers are held as `weights` says."""
    tensors = {id(t): t for t in (*model.parameters(), *model.buffers())}
    total = sum(t.numel() * t.element_size() for t in tensors.values())
    if weights is Weights.NATIVE:
        return total
    return total - sum(linear.weight.numel() * (linear.weight.element_size() - 1) for _, _, linear in linears(model))


def widened_bytes(model: nn.Module, weights: Weights) -> int:
    """Memory of the largest matrix in floating point, which a product of 8-bit ones makes on a card."""
    if weights is Weights.NATIVE:
        return 0
    sizes = (linear.weight.numel() * linear.weight.element_size() for _, _, linear in linears(model))
    return max(sizes, default=0)


def read_weights(
    model: PreTrainedModel,
    folder: Path,
    *,
    weights: Weights,
    device: torch.device,
    world: World | None,
    room: Callable[[int, int], None] | None = None,
) -> bool:
    """Fill a `skeleton` from the safetensors files of a folder.

    Args:
        model: Cut and quantised on the way.
        folder: Of the model.
        weights: How matrices are held.
        device: Where.
        world: Whose shards of the model this process holds; None holds the whole model.
        room: Told the bytes that this process will hold, and those of the largest matrix that it will widen, before
            anything is read; it may refuse.

    Returns:
        Whether the files have all that the model wants, under its own names; if not, nothing was read.

    Raises:
        ModelError: if a file cannot be read, a tensor has another shape, or the model cannot be cut or quantised.
    """
    index = _index(folder)
    tied = _names_by_tensor(model)
    origins = shard(model, world) if world is not None else {}
    places = _places(model, index, origins, tied)
    if places is None:
        return False
    if room is not None:
        room(needed_bytes(model, weights), widened_bytes(model, weights))
    to_quantise = {} if weights is Weights.NATIVE else {linear: (up, name) for up, name, linear in linears(model)}
    if weights is not Weights.NATIVE and not to_quantise:
        raise ModelError(f"{type(model).__name__} has no linear layers to hold as {weights}", hint="serve it as it is")
    with _progress() as progress:
        task = progress.add_task(folder.name, total=sum(p.bytes for group in places.values() for p in group))
        for file, group in places.items():
            with _opened(folder / file) as opened:
                while group:  # a place that is done lets go of its layer, which may have been replaced
                    place = group.pop()
                    _read(opened, place, folder, device, rounded=any(h in to_quantise for h, _ in place.holders))
                    for holder, _ in place.holders:
                        if isinstance(holder, nn.Linear) and holder in to_quantise and not _waits(holder):
                            parent, name = to_quantise.pop(holder)
                            setattr(parent, name, _held(holder, weights, place))
                    progress.advance(task, place.bytes)
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))
    return True


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as opened:
            yield opened
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} cannot be read: {error}", hint="is the file whole?") from error


def _read(opened: Any, place: _Place, folder: Path, device: torch.device, *, rounded: bool) -> None:
    """Read a tensor to where it is held. A matrix that will be rounded at once stays as and where it is in its file."""
    tensor = opened.get_tensor(place.source) if place.cut is None else place.cut(opened.get_slice(place.source))
    if tensor.shape != place.like.shape:
        raise ModelError(
            f"{folder} cannot be read: {place.source} is {list(tensor.shape)}, by config.json {list(place.like.shape)}",
            hint="weights and config.json belong to different models",
        )
    rounded = rounded and tensor.dim() > 1
    widened = torch.promote_types(tensor.dtype, place.like.dtype) == place.like.dtype
    held = tensor.to(device) if rounded and widened else tensor.to(device, place.like.dtype)
    if held.data_ptr() == tensor.data_ptr() and place.cut is None and not rounded:
        held = held.clone()  # what is mapped would change with its file
    if isinstance(place.like, nn.Parameter):
        held = nn.Parameter(held, requires_grad=False)
    for holder, name in place.holders:
        setattr(holder, name, held)


def _held(linear: nn.Linear, weights: Weights, place: _Place) -> nn.Module:
    try:
        return held_as(linear, weights)
    except ModelError as error:
        raise ModelError(f"{place.source}: {error.message}", hint=error.hint) from error


def _waits(linear: nn.Linear) -> bool:
    """Whether something of a layer is still to be read."""
    return any(parameter.is_meta for parameter in linear.parameters())


def _places(
    model: nn.Module, index: dict[str, str], origins: dict[str, Origin], tied: dict[str, list[str]]
) -> dict[str, list[_Place]] | None:
    """What is read from each file, the last first; None if the files do not have it."""
    holders: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for name, parameter in (*module._parameters.items(), *module._buffers.items()):  # noqa: SLF001 - tied ones, too
            if parameter is not None:
                holders.setdefault(id(parameter), []).append((module, name))
    places: dict[str, list[_Place]] = {}
    kept = dict.fromkeys(name for name, value in model.state_dict(keep_vars=True).items() if value is not None)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if name not in kept:
            continue
        origin = origins.get(name, Origin(name, None))
        source = next((n for n in (origin.name, *tied.get(origin.name, ())) if n in index), None)
        if source is None:
            return None
        places.setdefault(index[source], []).append(_Place(name, source, origin.cut, holders[id(tensor)], tensor))
    return {file: places[file][::-1] for file in sorted(places)}


def _index(folder: Path) -> dict[str, str]:
    """The file of each tensor; empty if there are no safetensors files."""
    if (folder / _INDEX).is_file():
        try:
            return dict(json.loads((folder / _INDEX).read_text("utf-8"))["weight_map"])
        except (ValueError, LookupError, TypeError) as error:
            raise ModelError(f"{folder / _INDEX} cannot be read: {error!r}") from error
    if not (folder / _SINGLE).is_file():
        return {}
    with _opened(folder / _SINGLE) as opened:
        return dict.fromkeys(opened.keys(), _SINGLE)


def _names_by_tensor(model: nn.Module) -> dict[str, list[str]]:
    """All names of each tied parameter, by each of them."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return {name: same for same in names.values() if len(same) > 1 for name in same}


@contextlib.contextmanager
def _parameters_without_memory() -> Iterator[None]:
    """Modules made here keep no memory of their parameters."""
    real = nn.Module.register_parameter

    def register(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta:
            parameter = nn.Parameter(parameter.to("meta"), requires_grad=False)
        real(module, name, parameter)

    nn.Module.register_parameter = register  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = real  # type: ignore[method-assign]


def _progress() -> Progress:
    """On a terminal; a service's log is no place for a bar."""
    columns = (TextColumn("loading {task.description}"), BarColumn(), DownloadColumn(binary_units=True))
    console = Console(stderr=True)
    return Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal, transient=True)
