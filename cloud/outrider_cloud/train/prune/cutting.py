"""A smaller model out of a larger one: layers, then widths, each by what they are worth on calibration texts.

- Layers: greedily, again and again the one whose removal raises the loss least (measured, not guessed).
- Heads by key/value group, MLP channels, and channels of the residual stream by mean activation (Minitron, arXiv
  2407.14679; Sheared LLaMA, arXiv 2310.06694): the norm of what a head hands to the output projection, of what an MLP
  channel hands to the down projection, and of what the norms let through. Embeddings stay tied to the head.

The result is an ordinary Hugging Face model of the same class. Weights that this module does not know how to cut are
refused by name.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from outrider_cloud.train.loop.losses import mean_loss
from outrider_cloud.train.prune.keep import Keep, part_widths, widths
from outrider_cloud.train.texts.batches import Batch
from outrider_shared.errors import ConfigError, ModelError


@dataclass(frozen=True)
class Worth:
    """Importances on the calibration texts; larger is worth more."""

    hidden: Tensor  # [hidden]
    heads: list[Tensor]  # per layer [heads]
    channels: list[Tensor]  # per layer [intermediate]


def _layers(model: nn.Module) -> nn.ModuleList:
    return cast("nn.ModuleList", cast("Any", model).get_decoder().layers)


def choose_layers(model: nn.Module, batches: Sequence[Batch], count: int) -> tuple[list[int], list[dict[str, float]]]:
    """The layers to keep, ascending, and the removals in their order with the loss after each."""
    decoder = cast("Any", model).get_decoder()
    every, kept = decoder.layers, list(range(len(decoder.layers)))
    steps: list[dict[str, float]] = []
    try:
        while len(kept) > count:
            losses = {}
            for layer in kept:
                decoder.layers = nn.ModuleList([every[i] for i in kept if i != layer])
                losses[layer] = mean_loss(model, batches)
            gone = min(losses, key=lambda layer: losses[layer])
            kept.remove(gone)
            steps.append({"layer": gone, "loss": losses[gone]})
    finally:
        decoder.layers = every
    return kept, steps


@torch.no_grad()
def measure(model: nn.Module, batches: Sequence[Batch]) -> Worth:
    """Importances of channels and heads, by hooks on one pass over the calibration texts."""
    layers, config = _layers(model), cast("Any", model).config.get_text_config()
    head_dim = _head_dim(config)
    hidden = torch.zeros(config.hidden_size)
    heads = [torch.zeros(config.num_attention_heads) for _ in layers]
    channels = [torch.zeros(config.intermediate_size) for _ in layers]
    handles = []

    def of_norm(_: nn.Module, __: Any, out: Tensor) -> None:
        hidden.add_(out.float().abs().mean((0, 1)).cpu())

    def of_heads(into: Tensor) -> Any:
        def hook(_: nn.Module, given: tuple[Tensor, ...]) -> None:
            split = given[0].float().reshape(*given[0].shape[:-1], -1, head_dim)
            into.add_(split.norm(dim=-1).mean((0, 1)).cpu())

        return hook

    def of_channels(into: Tensor) -> Any:
        def hook(_: nn.Module, given: tuple[Tensor, ...]) -> None:
            into.add_(given[0].float().abs().mean((0, 1)).cpu())

        return hook

    try:
        for index, layer in enumerate(layers):
            block = cast("Any", layer)
            handles.append(block.input_layernorm.register_forward_hook(of_norm))
            handles.append(block.post_attention_layernorm.register_forward_hook(of_norm))
            handles.append(block.self_attn.o_proj.register_forward_pre_hook(of_heads(heads[index])))
            handles.append(block.mlp.down_proj.register_forward_pre_hook(of_channels(channels[index])))
        for batch in batches:
            mean_loss(model, [batch])
    except AttributeError as error:
        raise ModelError(
            f"{config.model_type} cannot be pruned in width: {error}", hint="prune its layers only"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    return Worth(hidden, heads, channels)


def _head_dim(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def prune(model: nn.Module, batches: Sequence[Batch], keep: Keep) -> tuple[nn.Module, dict[str, Any]]:
    """A smaller model, and what was removed. Raises ConfigError, ModelError."""
    hf = cast("Any", model)
    config = copy.deepcopy(hf.config)
    text = config.get_text_config()
    keep = planned(model, keep)
    model.eval()
    before = mean_loss(model, batches)
    layers, removed = list(range(text.num_hidden_layers)), list[dict[str, float]]()
    if keep.layers:
        layers, removed = choose_layers(model, batches, keep.layers)
    cut = _Cut(measure(model, batches), text, keep) if _narrower(keep) else None
    state = {name: value.detach() for name, value in model.state_dict().items()}
    new_state = _cut_state(state, layers, cut)
    text.num_hidden_layers = len(layers)
    if getattr(text, "layer_types", None):
        text.layer_types = [text.layer_types[i] for i in layers]
    if cut is not None:
        cut.describe(text)
    small = type(hf)(config)
    try:
        missing = small.load_state_dict(new_state, strict=False).missing_keys
    except RuntimeError as error:
        raise ModelError(
            f"{text.model_type} cannot be cut to {keep}: {error}", hint="leave hidden and heads as they are"
        ) from error
    if [name for name in missing if name != "lm_head.weight"]:
        raise ModelError(f"{text.model_type} cannot be pruned: no weights for {missing[0]}")
    small.tie_weights()
    small.eval()
    report = {
        "keep": {name: value for name, value in vars(keep).items() if value},
        "layers_kept": layers,
        "layers_removed": removed,
        "loss_before": before,
        "loss_after": mean_loss(small, batches),
        "parameters_before": sum(p.numel() for p in model.parameters()),
        "parameters_after": sum(p.numel() for p in small.parameters()),
    }
    return small, report


def _narrower(keep: Keep) -> bool:
    return bool(keep.hidden or keep.heads or keep.kv_heads or keep.intermediate)


def planned(model: nn.Module, keep: Keep) -> Keep:
    """What would stay, shares settled; the model may be a hollow one. Raises ConfigError, ModelError."""
    text = cast("Any", model).config.get_text_config()
    _check(keep, text)
    return keep.settled(model, text)


def _check(keep: Keep, text: Any) -> None:
    lacking = [name for name in ("num_key_value_heads", "intermediate_size") if not hasattr(text, name)]
    if lacking:
        raise ModelError(
            f"{text.model_type} cannot be pruned: its configuration has no {lacking[0]}",
            hint="models laid out as Llama are (llama, mistral, qwen2, qwen3, bitnet and the like)",
        )
    for name, most in widths(text).items():
        if getattr(keep, name) > most:
            raise ConfigError(f"--keep {name}={getattr(keep, name)} is more than the model's {most}")
    heads, groups = keep.heads or text.num_attention_heads, keep.kv_heads or text.num_key_value_heads
    each = text.num_attention_heads // text.num_key_value_heads
    if heads % groups or heads // groups > each:
        raise ConfigError(
            f"{heads} heads over {groups} key/value heads",
            hint=f"keep up to {each} heads for each key/value head, the same number for all",
        )


class _Cut:
    """Which rows and columns stay."""

    def __init__(self, worth: Worth, text: Any, keep: Keep) -> None:
        self.head_dim = _head_dim(text)
        self.hidden = _best(worth.hidden, keep.hidden or text.hidden_size)
        self.channels = [_best(each, keep.intermediate or text.intermediate_size) for each in worth.channels]
        groups = keep.kv_heads or text.num_key_value_heads
        each = (keep.heads or text.num_attention_heads) // groups
        per_group = text.num_attention_heads // text.num_key_value_heads
        self.groups, self.heads = [], list[Tensor]()
        for layer in worth.heads:
            table = layer.view(-1, per_group)  # [kv_heads, heads of it]
            best = table.topk(each, -1)
            chosen = _best(best.values.sum(-1), groups)
            self.groups.append(chosen)
            self.heads.append(torch.cat([g * per_group + best.indices[g].sort().values for g in chosen]))

    def describe(self, text: Any) -> None:
        """Write the new widths into a configuration."""
        text.hidden_size = len(self.hidden)
        text.intermediate_size = len(self.channels[0])
        text.num_attention_heads, text.num_key_value_heads = len(self.heads[0]), len(self.groups[0])
        text.head_dim = self.head_dim

    def rows(self, heads: Tensor) -> Tensor:
        """Indices of the heads' rows in a projection."""
        return (heads[:, None] * self.head_dim + torch.arange(self.head_dim)).flatten()

    def apply(self, name: str, value: Tensor, layer: int) -> Tensor:
        """Cut one weight or bias of a layer; the part's name decides over its dimensions."""
        stay = {
            "hidden": self.hidden,
            "heads": self.rows(self.heads[layer]),
            "kv_heads": self.rows(self.groups[layer]),
            "intermediate": self.channels[layer],
        }
        for dimension, width in enumerate(part_widths(name, value)[: value.ndim]):
            if width is not None:
                value = value.index_select(dimension, stay[width])
        return value


def _best(worth: Tensor, count: int) -> Tensor:
    return worth.topk(count).indices.sort().values


def _cut_state(state: dict[str, Tensor], layers: list[int], cut: _Cut | None) -> dict[str, Tensor]:
    new: dict[str, Tensor] = {}
    for name, value in state.items():
        before, marker, after = name.partition(".layers.")
        number, _, rest = after.partition(".")
        if marker and int(number) not in layers:
            continue
        target = f"{before}.layers.{layers.index(int(number))}.{rest}" if marker else name
        new[target] = (cut.apply(name, value, int(number or 0)) if cut is not None else value).clone()
    return new
