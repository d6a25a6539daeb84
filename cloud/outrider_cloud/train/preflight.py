"""What would go wrong after hours, told before the first step: disk, target, tokenizer, what a pack cannot hold."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForCausalLM

from outrider_cloud.model import conformance, gate
from outrider_cloud.train.prune.cutting import planned
from outrider_shared.errors import ConfigError, MismatchError, ModelError, OutriderError
from outrider_shared.packs import Precision, tokenizer_fingerprint

if TYPE_CHECKING:
    from outrider_cloud.train.distil.distillation import DistilConfig
    from outrider_cloud.train.prune.keep import Keep

# Model types that `outrider pack` is known to export.
EXPORTED = frozenset({"llama", "mistral", "qwen2", "qwen3", "smollm3"})
_CHECKPOINTS = 2 * 3  # one there, one being written; each with weights and two moments
_SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
_SPARE_BYTES = 64 << 20


def check_target(folder: Path, flag: str = "--target") -> Any:
    """The configuration of a target that the cloud can serve. Raises ConfigError, ModelError."""
    for needed in ("config.json", "tokenizer.json"):
        if not (folder / needed).is_file():
            raise ConfigError(f"{folder} has no {needed}", hint=f"{flag} takes a Hugging Face model folder")
    try:
        config = AutoConfig.from_pretrained(folder)
    except Exception as error:
        raise ModelError(f"{folder} cannot be read: {error}") from error
    gate.check(config)
    conformance.check(config)
    size = read_tokenizer(folder).get_vocab_size()
    if size > config.get_text_config().vocab_size:
        raise MismatchError(
            f"{folder}: the tokenizer has {size} tokens, the model {config.get_text_config().vocab_size}",
            hint="tokenizer.json belongs to another model",
        )
    return config


def read_tokenizer(folder: Path) -> Tokenizer:
    """A folder's tokenizer. Raises ConfigError."""
    path = folder / "tokenizer.json"
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # of the library's own kind
        raise ConfigError(f"{path} is no tokenizer: {error}", hint="save a fast tokenizer there") from error


def new_model(fields: dict[str, Any], seed: int, where: str) -> Any:
    """A fresh model that the cloud can serve.

    Args:
        fields: Of a Hugging Face configuration, `model_type` among them.
        seed: Of its weights.
        where: The recipe's table, for messages.

    Raises:
        ConfigError: they make no model.
        ModelError: the cloud could not serve it.
    """
    try:
        config = AutoConfig.for_model(**fields)
        gate.check(config)
        conformance.check(config)
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config)
    except OutriderError:
        raise
    except Exception as error:  # transformers refuses fields in many ways
        raise ConfigError(f"the recipe's {where} makes no model: {_sentence(error)}") from error


def _sentence(error: Exception) -> str:
    """What a library said, without its list of all that it knows."""
    return " ".join(str(error).partition(" Should contain one of")[0].split())


def check_start(folder: Path, told: dict[str, Any], tokenizer: str) -> None:
    """A target to go on from is what the recipe says it is. Raises ConfigError, MismatchError, ModelError.

    Args:
        folder: The target.
        told: The recipe's fields of a configuration; none says nothing.
        tokenizer: The recipe's tokenizer; likewise.
    """
    theirs = check_target(folder, "--init").to_dict()
    if told:
        try:
            ours, plain = (AutoConfig.for_model(**each).to_dict() for each in (told, _kind_of(told)))
        except Exception as error:  # as above
            raise ConfigError(f"the recipe's [model] makes no model: {_sentence(error)}") from error
        wanted = {name for name, value in ours.items() if name in told or value != plain.get(name)}
        for name in sorted(wanted):
            if theirs.get(name) != ours[name]:
                raise MismatchError(
                    f"{name} is {ours[name]!r} in the recipe's [model], {theirs.get(name)!r} in {folder}",
                    hint="what goes on from a folder has its sizes: leave [model] out",
                )
    if tokenizer:
        given = Path(tokenizer)
        check_tokenizer(
            given if given.is_dir() else given.parent, folder, hint="leave `tokenizer` out: it is the folder's"
        )


def _kind_of(told: dict[str, Any]) -> dict[str, Any]:
    return {"model_type": told.get("model_type")}


def check_student(
    folder: Path, target: Path, hint: str = "init is prune, scratch, or a Hugging Face folder"
) -> dict[str, Any]:
    """A draft folder to go on from speaks the target's tokens; returns its configuration.

    Args:
        folder: The draft.
        target: The target's folder.
        hint: What to do where there is no folder.

    Raises:
        ConfigError: it is no model folder.
        MismatchError: its tokenizer is another.
        ModelError: no pack can hold such a draft, or its configuration cannot be read.
    """
    if not (folder / "config.json").is_file():
        raise ConfigError(f"no model folder at {folder}", hint=hint)
    own = "a draft must speak the target's tokens: start from scratch, or by pruning the target"
    check_tokenizer(folder, target, hint=own)
    try:
        config = AutoConfig.from_pretrained(folder)
    except Exception as error:
        raise ModelError(f"{folder} cannot be read: {_sentence(error)}") from error
    check_export(config.model_type)
    found: dict[str, Any] = config.to_dict()
    return found


def check_tokenizer(folder: Path, other: Path, *, hint: str) -> None:
    """Two folders have the same tokenizer. Raises MismatchError."""
    ours, theirs = folder / "tokenizer.json", other / "tokenizer.json"
    if not ours.is_file() or tokenizer_fingerprint(ours.read_bytes()) != tokenizer_fingerprint(theirs.read_bytes()):
        raise MismatchError(f"the tokenizer of {folder} is not that of {other}", hint=hint)


def check_longest(longest: int, config: Any, whose: str) -> None:
    """No text is longer than the context of the model that learns it, or writes it. Raises ConfigError."""
    context = config.get_text_config().max_position_embeddings
    if not 1 < longest <= context:
        raise ConfigError(f"data.longest is {longest}, the {whose}'s context {context}")


def check_shape(shape: dict[str, Any]) -> None:
    """A draft from scratch has its sizes told: transformers' own are of seven billion weights. Raises ConfigError."""
    lacking = [name for name in _SIZES if name not in shape]
    if lacking:
        told = ", ".join(f"student.shape.{name}" for name in lacking)
        raise ConfigError(f"a draft from scratch needs {told}", hint="tell them in the recipe, or --init prune")


def check_export(model_type: str) -> None:
    """A pack can be made of such a draft. Raises ModelError."""
    if model_type not in EXPORTED:
        raise ModelError(
            f"a draft of type {model_type} cannot be made into a pack",
            hint=f"start from scratch (a Llama); packs hold {', '.join(sorted(EXPORTED))}",
        )


def check_pruning(config: Any, keep: Keep) -> dict[str, Any]:
    """The target can be pruned so; returns the widths of what stays, by their names. Raises ConfigError, ModelError."""
    text = config.get_text_config()
    kept = planned(_hollow(config), keep)
    heads = text.num_attention_heads
    return {
        "hidden_size": kept.hidden or text.hidden_size,
        "intermediate_size": kept.intermediate or text.intermediate_size,
        "num_attention_heads": kept.heads or heads,
        "head_dim": getattr(text, "head_dim", None) or text.hidden_size // heads,
    }


def check_precision(precision: str, shape: dict[str, Any]) -> None:
    """A pack of that precision can hold a draft of these widths. Raises ConfigError, ModelError."""
    from outrider_cloud.pack.build import block_size  # noqa: PLC0415 - the builder takes a second to import

    if precision not in set(Precision):
        raise ConfigError(f"precision is {precision!r}", hint=", ".join(Precision))
    if precision in {Precision.INT4, Precision.INT4_ALL}:
        block_size(shape)


def count_parameters(config: Any) -> int:
    """Weights of a model, without making it."""
    return sum(p.numel() for p in _hollow(config).parameters())


def _hollow(config: Any) -> Any:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def distillation_bytes(config: DistilConfig, longest: int, vocabulary: int) -> int:
    """Most bytes of stored texts: the target's and those of each round, every position learned."""
    token = (2 if vocabulary <= 1 << 16 else 4) + 1
    per_text = longest * token + longest * config.top_k * (token + 1)
    rounds = config.rounds if max(config.on_policy) > 0 else 0
    return int(config.prompts * per_text * (1 + rounds / max(1, config.reuse)))


def check_disk(folder: Path, wanted: int, parameters: int) -> None:
    """There is room for texts, checkpoints and the model itself. Raises ConfigError."""
    wanted += parameters * 4 * (_CHECKPOINTS + 2) + _SPARE_BYTES
    existing = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    free = shutil.disk_usage(existing).free
    if free < wanted:
        raise ConfigError(
            f"{existing} has {free / 1e9:.2f} GB free, the run needs up to {wanted / 1e9:.2f} GB",
            hint="give --work on a larger disk, or fewer or shorter texts",
        )
