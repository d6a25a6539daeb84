"""Reads a Hugging Face folder and makes sure that the engine can serve it exactly, before it takes a request."""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from outrider_cloud.model import conformance, gate
from outrider_cloud.model.attention import ATTENTION
from outrider_cloud.model.probe import probe_layers
from outrider_cloud.model.reading import needed_bytes, read_weights, skeleton
from outrider_cloud.model.weights import Weights, check_product, quantise
from outrider_cloud.parallel.shards import shard
from outrider_shared.chat import read_chat_template
from outrider_shared.errors import ConfigError, ModelError
from outrider_shared.packs import tokenizer_fingerprint

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedModel

    from outrider_cloud.kernels.layout import LayerSpec
    from outrider_cloud.parallel.world import World

BUNDLED = "bundled"
# Large weight files are told apart by their size and both ends, so that a 70B model does not take minutes to name.
_SAMPLE_BYTES = 1 << 20


@dataclass(frozen=True)
class LoadedModel:
    """A checked model with what the service tells about it.

    Attributes:
        name: Folder name.
        model: The Hugging Face model with our attention.
        tokenizer: Its tokenizer.
        layers: Attention of each layer, as probed.
        dtype: Of the weights, and of stored keys and values.
        vocabulary: Rows of the output layer.
        context_length: Most tokens of a log.
        eos: Token ids that end an answer.
        fingerprint: sha256 hex over configuration and weights.
        tokenizer_sha256: Canonical fingerprint of the tokenizer, hex.
        chat_template: Jinja text; empty if the folder has none.
    """

    name: str
    model: PreTrainedModel
    tokenizer: Tokenizer
    layers: list[LayerSpec]
    dtype: torch.dtype
    vocabulary: int
    context_length: int
    eos: frozenset[int]
    fingerprint: str
    tokenizer_sha256: str
    chat_template: str


def bundled_model() -> Path:
    """Folder of the target that ships with the package."""
    return Path(str(files("outrider_cloud") / "bundled" / "target"))


def model_folder(path: str | Path) -> Path:
    """The folder that is meant, `bundled` included."""
    return bundled_model() if str(path) == BUNDLED else Path(path)


def bundled_draft() -> Path:
    """Folder of the draft that ships with the package, as a model; devices get it as a pack."""
    return Path(str(files("outrider_cloud") / "bundled" / "draft"))


def load_model(
    path: str | Path,
    dtype: torch.dtype = torch.float32,
    *,
    check: bool = True,
    weights: Weights = Weights.NATIVE,
    device: torch.device | None = None,
    world: World | None = None,
    kv_bytes: int = 0,
) -> LoadedModel:
    """Load a folder, or the bundled model for the name `bundled`, with its weights held as `weights` says.

    Args:
        path: Folder or `bundled`.
        dtype: Of the weights.
        check: Compare a small clone of the model with transformers first.
        weights: How matrices are held.
        device: Where they live; None is the CPU.
        world: Whose shards of the model this process holds; None holds the whole model.
        kv_bytes: What a card must have room for beside the weights.

    Raises:
        ConfigError: if the folder is not a Hugging Face model with a tokenizer, or does not fit onto the card.
        ModelError: if the model cannot be served exactly, or its weights cannot be read.
    """
    folder = model_folder(path)
    for needed in ("config.json", "tokenizer.json"):
        if not (folder / needed).is_file():
            raise ConfigError(f"{folder} has no {needed}", hint="give a Hugging Face model folder")
    config = _read(folder, lambda: AutoConfig.from_pretrained(folder))
    gate.check(config)
    if check:
        conformance.check(config)
    on = device or torch.device("cpu")
    check_product(weights, on, dtype)
    model = _weights(folder, config, dtype, weights, world, _Room(folder.name, on, kv_bytes, weights))
    model.eval().requires_grad_(False)
    text, tokenizer_json = config.get_text_config(), (folder / "tokenizer.json").read_bytes()
    tokenizer = _read(folder, lambda: Tokenizer.from_str(tokenizer_json.decode()))
    if tokenizer.get_vocab_size() > text.vocab_size:
        raise ConfigError(
            f"{folder}: the tokenizer has {tokenizer.get_vocab_size()} tokens, the model {text.vocab_size}",
            hint="tokenizer.json belongs to another model",
        )
    return LoadedModel(
        name=folder.resolve().name if str(path) != BUNDLED else BUNDLED,
        model=model,
        tokenizer=tokenizer,
        layers=probe_layers(model),
        dtype=dtype,
        vocabulary=text.vocab_size,
        context_length=text.max_position_embeddings,
        eos=_eos(folder, text),
        fingerprint=fingerprint(folder, weights),
        tokenizer_sha256=tokenizer_fingerprint(tokenizer_json),
        chat_template=_read(folder, lambda: read_chat_template(folder)),
    )


def fingerprint(folder: Path, weights: Weights = Weights.NATIVE) -> str:
    """sha256 hex over config.json and every weight file (its name, size, first and last MiB).

    Quantised weights give other texts, so they have another fingerprint.
    """
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for path in sorted(folder.glob("*.safetensors")):
        size = path.stat().st_size
        digest.update(f"{path.name}:{size}:".encode())
        with path.open("rb") as file:
            digest.update(file.read(_SAMPLE_BYTES))
            file.seek(max(0, size - _SAMPLE_BYTES))
            digest.update(file.read(_SAMPLE_BYTES))
    if weights is not Weights.NATIVE:
        digest.update(f"weights:{weights}".encode())
    return digest.hexdigest()


def _weights(
    folder: Path, config: Any, dtype: torch.dtype, weights: Weights, world: World | None, room: _Room
) -> PreTrainedModel:
    """The model, its weights read one by one where the files allow it, else by transformers."""
    device = room.device
    with _on_card(folder, room):
        if not _converted(config, dtype):
            model: PreTrainedModel = _read(folder, lambda: skeleton(config, dtype))
            if read_weights(model, folder, weights=weights, device=device, world=world, room=room.check):
                return model
        model = _read_by_transformers(folder, config, dtype)
        if world is not None:
            shard(model, world)
        quantise(model, weights)
        room.check(needed_bytes(model, Weights.NATIVE))
        model.to(device)
        return model


def _read_by_transformers(folder: Path, config: Any, dtype: torch.dtype) -> PreTrainedModel:
    try:
        model: PreTrainedModel = _read(folder, lambda: _load_weights(folder, dtype))
    except ModelError as error:
        given = getattr(config, "quantization_config", None)
        if given is None:
            raise
        how = given.get("quant_method") if isinstance(given, dict) else given.quant_method
        raise ModelError(
            f"{folder} is quantised as {how}, and cannot be read so here: {error.__cause__ or error.message}",
            hint="take the checkpoint in 16 bits; --weights fp8 or int8 holds it in 8",
        ) from error
    return model


def _converted(config: Any, dtype: torch.dtype) -> bool:
    """Whether transformers changes weights on reading, other than into `dtype`."""
    if getattr(config, "quantization_config", None) is not None:
        return True
    model_class = AutoModelForCausalLM._model_mapping[type(config)]  # noqa: SLF001 - no public lookup by configuration
    half = dtype in {torch.float16, torch.bfloat16}
    kept = getattr(model_class, "_keep_in_fp32_modules", None) or getattr(
        model_class, "_keep_in_fp32_modules_strict", None
    )
    return half and bool(kept)


def _load_weights(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    if not sys.stderr.isatty():
        transformers_logging.disable_progress_bar()  # a service's log is no place for a bar
    load: Any = AutoModelForCausalLM.from_pretrained
    model, report = load(folder, dtype=dtype, attn_implementation=ATTENTION, output_loading_info=True)
    if report["missing_keys"]:
        # transformers would go on with random numbers in their place.
        raise ModelError(f"the weights lack {', '.join(sorted(report['missing_keys'])[:3])}")
    loaded: PreTrainedModel = model
    return loaded


_NO_ROOM = "take a smaller model or --kv-tokens, a larger card, more cards (--tensor-parallel)"
_SMALLER = ", or --weights int8 or fp8"


@dataclass(frozen=True)
class _Room:
    """What a card must have room for: `kv_bytes` beside the weights of the model `name`, held as `weights` says."""

    name: str
    device: torch.device
    kv_bytes: int
    weights: Weights

    @property
    def hint(self) -> str:
        """What may help."""
        return _NO_ROOM + (_SMALLER if self.weights is Weights.NATIVE else "")

    def check(self, weight_bytes: int, widened_bytes: int = 0) -> None:
        """Refuse what does not fit, before anything is read.

        Raises:
            ConfigError: if it does not.
        """
        if self.device.type != "cuda":
            return
        free, total = torch.cuda.mem_get_info(self.device)
        if weight_bytes + widened_bytes + self.kv_bytes > free:
            matrix = f", {widened_bytes / 2**30:.2f} GiB for the largest matrix as it is multiplied"
            kv = f" and {self.kv_bytes / 2**30:.2f} GiB of KV" if self.kv_bytes else ""
            held = "" if self.weights is Weights.NATIVE else f" in {self.weights}"
            raise ConfigError(
                f"{self.name} needs {weight_bytes / 2**30:.2f} GiB of weights{held}{matrix * bool(widened_bytes)}{kv}, "
                f"{torch.cuda.get_device_name(self.device)} has {free / 2**30:.2f} of {total / 2**30:.2f} GiB free",
                hint=self.hint,
            )


@contextlib.contextmanager
def _on_card(folder: Path, room: _Room) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ConfigError(f"{folder.name} does not fit onto {room.device}: {error}", hint=room.hint) from error


def _read(folder: Path, load: Any) -> Any:
    try:
        return load()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        raise ModelError(f"{folder} cannot be read: {error}") from error


def _eos(folder: Path, text: Any) -> frozenset[int]:
    """End tokens of generation_config.json, which overrides the model's configuration as in transformers."""
    path = folder / "generation_config.json"
    value = _read(folder, lambda: json.loads(path.read_text()).get("eos_token_id")) if path.is_file() else None
    value = text.eos_token_id if value is None else value
    ids = value if isinstance(value, list) else [value]
    return frozenset(i for i in ids if isinstance(i, int) and 0 <= i < text.vocab_size)
