"""What stays of a pruned model: widths told one by one, or a share of its parameters from which they are worked out."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, fields, replace
from itertools import product
from typing import TYPE_CHECKING, Any, NamedTuple

from outrider_shared.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor, nn

# The widths that a part's weight has, rows first; None stays as it is.
PARTS: dict[str, tuple[str | None, str | None]] = {
    "embed_tokens": (None, "hidden"),
    "lm_head": (None, "hidden"),
    "q_proj": ("heads", "hidden"),
    "k_proj": ("kv_heads", "hidden"),
    "v_proj": ("kv_heads", "hidden"),
    "o_proj": ("hidden", "heads"),
    "gate_proj": ("intermediate", "hidden"),
    "up_proj": ("intermediate", "hidden"),
    "down_proj": ("hidden", "intermediate"),
    "input_layernorm": ("hidden", None),
    "post_attention_layernorm": ("hidden", None),
    "norm": ("hidden", None),
    "attn_sub_norm": ("heads", None),
    "ffn_sub_norm": ("intermediate", None),
    "q_norm": (None, None),
    "k_norm": (None, None),
}
_NEAR = 0.01  # of the asked share: widths as close as this are chosen by how even they are
_FAR = 0.03  # a share that no widths come closer to is refused
_GRAINS = (128, 64, 32, 16, 8, 4, 2, 1)  # widths are multiples of one: kernels and blocks of int4 want them
_CHOICES = 8


@dataclass(frozen=True)
class Keep:
    """What stays; 0 keeps all. `heads` and `kv_heads` are numbers of heads, whose size stays as it is.

    With `share`, what is 0 is chosen so that this share of the parameters stays, every width cut by about as much.
    """

    layers: int = 0
    hidden: int = 0
    heads: int = 0
    kv_heads: int = 0
    intermediate: int = 0
    share: float = 0.0

    @classmethod
    def parse(cls, text: str) -> Keep:
        """Read `layers=2,hidden=128` or `share=0.5`. Raises ConfigError."""
        known = {field.name for field in fields(cls)}
        values: dict[str, Any] = {}
        for part in filter(None, text.split(",")):
            name, _, value = (each.strip() for each in part.partition("="))
            whole = value.isdigit() and name != "share"
            if name not in known or not (whole or (name == "share" and _is_share(value))):
                raise ConfigError(
                    f"--keep has {part!r}",
                    hint=f"such as layers=2,hidden=128 or share=0.5 (above 0, at most 1); known: {sorted(known)}",
                )
            values[name] = float(value) if name == "share" else int(value)
        return cls(**values)

    def settled(self, model: nn.Module, text: Any) -> Keep:
        """The same with every width told, for a model and its text configuration. Raises ConfigError, ModelError."""
        if not self.share:
            return self
        sizes = Sizes.of(model, text)
        asked = self.share * sizes.parameters(widths(text))
        found = [(keep, abs(sizes.parameters(vars(keep)) / asked - 1)) for keep in _candidates(self, sizes, asked)]
        best = min((apart for _, apart in found), default=math.inf)
        if best > _FAR:
            told, near_by = _told(self), "" if best == math.inf else f"; the nearest is {best:.0%} off"
            raise ConfigError(
                f"no widths of this model leave {self.share:.0%} of its parameters"
                f"{f' beside {told}' if told else ''}{near_by}",
                hint="ask for another share, or leave more open",
            )
        near = [keep for keep, apart in found if apart <= max(best, _NEAR)]
        return min(near, key=lambda keep: _unevenness(keep, sizes.whole))


class Sizes(NamedTuple):
    """How many parameters widths give: for each product of widths the parameters that the whole model has of it."""

    terms: Counter[tuple[str, ...]]
    whole: dict[str, int]

    @classmethod
    def of(cls, model: nn.Module, text: Any) -> Sizes:
        """Count a model's parameters by the widths that they grow with. Raises ModelError."""
        terms: Counter[tuple[str, ...]] = Counter()
        for name, value in model.named_parameters():
            layered = ("layers",) if ".layers." in name else ()
            dims = part_widths(name, value)[: value.ndim]
            terms[*layered, *(each for each in dims if each)] += value.numel()
        return cls(terms, widths(text))

    def parameters(self, kept: dict[str, Any]) -> float:
        """Parameters of the model with these widths."""
        ratios = {name: (kept[name] or most) / most for name, most in self.whole.items()}
        return sum(count * math.prod(ratios[name] for name in dims) for dims, count in self.terms.items())


def widths(text: Any) -> dict[str, int]:
    """A configuration's widths, by their names in a Keep."""
    return {
        "layers": text.num_hidden_layers,
        "hidden": text.hidden_size,
        "heads": text.num_attention_heads,
        "kv_heads": text.num_key_value_heads,
        "intermediate": text.intermediate_size,
    }


def part_widths(name: str, value: Tensor) -> tuple[str | None, str | None]:
    """The widths of one weight or bias, by the name of its part. Raises ModelError."""
    part, _, kind = name.rpartition(".")
    part = part.rpartition(".")[2]
    if part not in PARTS or kind not in ("weight", "bias"):
        raise ModelError(f"{name} [{', '.join(map(str, value.shape))}] is a weight that pruning does not know")
    return PARTS[part]


def _candidates(keep: Keep, sizes: Sizes, asked: float) -> Iterator[Keep]:
    """For all layers, heads and residual widths, the two MLP widths about the asked number of parameters."""
    whole = sizes.whole
    layers = [keep.layers] if keep.layers else range(1, whole["layers"] + 1)
    hidden = [keep.hidden] if keep.hidden else _steps(whole["hidden"])
    most = whole["heads"] // whole["kv_heads"]
    groups = [keep.kv_heads] if keep.kv_heads else range(1, whole["kv_heads"] + 1)
    heads = [(each * group, group) for each, group in product(range(1, most + 1), groups)]
    heads = [pair for pair in heads if keep.heads in (0, pair[0])]
    channels = [keep.intermediate] if keep.intermediate else list(_steps(whole["intermediate"]))
    for depth, width, (queries, group) in product(layers, hidden, heads):
        small = replace(keep, layers=depth, hidden=width, heads=queries, kv_heads=group, share=0.0)
        # Parameters are linear in the MLP's width.
        low, high = (sizes.parameters(vars(replace(small, intermediate=end))) for end in (channels[0], channels[-1]))
        at = (len(channels) - 1) * (asked - low) / (high - low) if high > low else 0.0
        for index in {math.floor(at), math.ceil(at)}:
            if 0 <= index < len(channels):
                yield replace(small, intermediate=channels[index])


def _steps(most: int) -> range:
    grain = next(each for each in _GRAINS if most % each == 0 and (most // each >= _CHOICES or each == 1))
    return range(grain, most + 1, grain)


def _unevenness(keep: Keep, whole: dict[str, int]) -> float:
    """How unlike the shares of the widths are: the variance of their logarithms."""
    logs = [math.log(vars(keep)[name] / most) for name, most in whole.items()]
    mean = sum(logs) / len(logs)
    return sum((each - mean) ** 2 for each in logs)


def _told(keep: Keep) -> str:
    return ",".join(f"{name}={value}" for name, value in vars(keep).items() if value and name != "share")


def _is_share(value: str) -> bool:
    try:
        return 0 < float(value) <= 1
    except ValueError:
        return False
