"""Recipes: one TOML file says how a model is made; flags override it. Unknown keys are refused by name."""

from __future__ import annotations

import dataclasses
import tomllib
import types
import typing
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

from outrider_cloud.train.distil.distillation import DistilConfig
from outrider_cloud.train.loop.config import FitConfig
from outrider_cloud.train.prune.keep import Keep
from outrider_cloud.train.texts.reported import ReplayConfig
from outrider_shared.errors import ConfigError

Made = TypeVar("Made")
SOURCES = ("files", "smart-home", "nothing")


@dataclass(frozen=True)
class DataConfig:
    """Where texts come from.

    Attributes:
        source: `files` (.jsonl and .txt), `smart-home` (the bundled pair's), or `nothing`: the target's samples alone.
        longest: Longest text, in tokens.
        prompt_tokens: Of a plain text without chat turns, what a model is given to continue.
        context_share: Of tokens that are not the assistant's, how many are learned.
        passes: Of texts that differ from pass to pass, how many are prepared.
    """

    source: str = "files"
    longest: int = 448
    prompt_tokens: int = 32
    context_share: float = 0.1
    passes: int = 1

    def __post_init__(self) -> None:
        if self.source not in SOURCES:
            raise ConfigError(f"data.source is {self.source!r}", hint=", ".join(SOURCES))
        if min(self.longest, self.prompt_tokens, self.passes) < 1 or not 0 <= self.context_share <= 1:
            raise ValueError(
                f"longest {self.longest}, prompt_tokens {self.prompt_tokens} and passes {self.passes} are at least 1, "
                f"context_share {self.context_share} is from 0 to 1"
            )


@dataclass(frozen=True)
class StudentConfig:
    """What the draft is made from: a pruned target (`keep`), a fresh Llama (`shape`), or a model folder.

    Attributes:
        init: `prune`, `scratch`, or a model folder to go on from (`bundled`: the draft that ships).
        keep: Of the target, for `prune`.
        shape: Fields of a LlamaConfig, for `scratch`.
        seed: Of fresh weights.
    """

    init: str = "prune"
    keep: Keep = field(default_factory=lambda: Keep(layers=2))
    shape: dict[str, Any] = field(default_factory=dict)
    seed: int = 2


@dataclass(frozen=True)
class DraftRecipe:
    """How a draft is made for a target.

    Attributes:
        precision: Of the pack.
        dtype: `float32` or `bfloat16`: how the draft's model folder keeps its weights, and what the pack is made from.
        name: Of the pack; by default its folder's.
    """

    data: DataConfig = field(default_factory=DataConfig)
    student: StudentConfig = field(default_factory=StudentConfig)
    distil: DistilConfig = field(default_factory=DistilConfig)
    fit: FitConfig = field(default_factory=lambda: FitConfig(2000, checkpoint_every=200, validate_every=200))
    precision: str = "int8"
    dtype: str = "float32"
    name: str = ""


@dataclass(frozen=True)
class ReplayRecipe:
    """How a draft learns from what fleets reported; fields are those of a draft's recipe."""

    data: DataConfig = field(default_factory=DataConfig)
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    distil: DistilConfig = field(default_factory=DistilConfig)
    fit: FitConfig = field(default_factory=lambda: FitConfig(400, checkpoint_every=50, validate_every=50))
    precision: str = "int8"
    dtype: str = "float32"
    name: str = ""


@dataclass(frozen=True)
class TargetRecipe:
    """How a target is made from texts.

    Attributes:
        init: Model folder to go on from (`bundled`: the target that ships), with its tokenizer; empty: fresh weights.
        model: Fields of a Hugging Face configuration, `model_type` among them; with `init`, those told must be its own.
        vocabulary: Size of a tokenizer to train on the texts; 0: `tokenizer` is given.
        tokenizer: Path of a tokenizer.json, or a folder with one.
        tokens_per_batch: Padding included.
        seed: Of fresh weights.
        dtype: `float32` or `bfloat16`: how the folder keeps its weights.
    """

    data: DataConfig = field(default_factory=DataConfig)
    init: str = ""
    model: dict[str, Any] = field(default_factory=dict)
    vocabulary: int = 4096
    tokenizer: str = ""
    tokens_per_batch: int = 8192
    seed: int = 1
    dtype: str = "float32"
    fit: FitConfig = field(default_factory=lambda: FitConfig(2000))

    def __post_init__(self) -> None:
        if self.tokens_per_batch < 1 or self.vocabulary < 0:
            raise ValueError(f"tokens_per_batch {self.tokens_per_batch}, vocabulary {self.vocabulary}")


def recipe_path(name: str) -> Path:
    """A recipe's file: a path, or the name of one that ships with the package. Raises ConfigError."""
    path = Path(name)
    if path.suffix == ".toml":
        return path
    shipped = Path(str(files("outrider_cloud"))) / "train" / "recipes"
    found = shipped / f"{name}.toml"
    if not found.is_file():
        known = ", ".join(sorted(each.stem for each in shipped.glob("*.toml")))
        raise ConfigError(f"no recipe {name!r}", hint=f"a path that ends in .toml, or one of: {known}")
    return found


def read_table(name: str) -> dict[str, Any]:
    """What a recipe's file says. Raises ConfigError."""
    path = recipe_path(name)
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the recipe {path}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{path} is no TOML: {error}") from error


def read_recipe(kind: type[Made], name: str, overrides: dict[str, Any]) -> Made:
    """Read a recipe (none for an empty name) and lay overrides, by dotted key, over it. Raises ConfigError."""
    table = read_table(name) if name else {}
    for key, value in overrides.items():
        *path_to, last = key.split(".")
        inner = table
        for part in path_to:
            inner = inner.setdefault(part, {})
            if not isinstance(inner, dict):
                raise ConfigError(f"{key}: {part} is no table of the recipe")
        inner[last] = value
    return _build(kind, table, "", kind().fit.steps)  # type: ignore[attr-defined]


def parse_set(texts: tuple[str, ...]) -> dict[str, Any]:
    """Overrides of the form `fit.steps=200`; values are TOML, bare words are text. Raises ConfigError."""
    found = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"--set {text!r} has no '='", hint="such as --set fit.steps=200")
        try:
            found[key.strip()] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            found[key.strip()] = value
    return found


def _build(kind: type[Made], table: dict[str, Any], where: str, steps: int) -> Made:
    """One table; `steps` are those of a recipe that tells none."""
    hints = typing.get_type_hints(kind)
    known = {each.name for each in dataclasses.fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(set(table) - known)
    if unknown:
        raise ConfigError(f"the recipe has no {where}{unknown[0]}", hint=f"known: {', '.join(sorted(known))}")
    if kind is FitConfig:
        table = {"steps": steps} | table
    values = {key: _value(hints[key], value, f"{where}{key}", steps) for key, value in table.items()}
    try:
        return kind(**values)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where.rstrip('.') or 'the recipe'}: {error}") from error


def _value(hint: Any, value: Any, where: str, steps: int) -> Any:
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, dict):
            raise ConfigError(f"{where} is {value!r}", hint="it must be a table")
        return _build(hint, value, f"{where}.", steps)
    origin = typing.get_origin(hint)
    if origin is tuple:
        if not isinstance(value, list) or not all(isinstance(each, (int, float)) for each in value):
            raise ConfigError(f"{where} is {value!r}", hint="it must be a list of numbers")
        wanted = typing.get_args(hint)
        if Ellipsis not in wanted and len(value) != len(wanted):
            raise ConfigError(f"{where} is {value!r}", hint=f"it must be a list of {len(wanted)} numbers")
        return tuple(float(each) for each in value)
    plain = dict if origin is dict else hint
    if plain is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(plain, (type, types.UnionType)) and (
        not isinstance(value, plain) or (isinstance(value, bool) and plain is not bool)
    ):
        raise ConfigError(f"{where} is {value!r}", hint=f"it must be of type {getattr(plain, '__name__', plain)}")
    return value
