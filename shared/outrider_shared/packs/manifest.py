"""The manifest of a pack: every fact about the draft that is needed before its weights are loaded.

Rules, each broken one a `PackError` that names the field, what was found and what was expected:

1. `format` is the first field looked at; any value but `FORMAT` is refused without reading on.
2. No field is missing, unknown or of another type; numbers are in their range.
3. File names are plain names: no separators, no leading dot, so a manifest cannot point outside its pack.
4. `model.onnx` and `tokenizer.json` are listed; every listed file has a sha256 and a size.

What it does not do: look at the files themselves (`reader.py`), or say who wrote the pack (the fleet plane signs them).
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any

from outrider_shared.errors import PackError

FORMAT = 1
REQUIRED_FILES = ("model.onnx", "tokenizer.json")
_MAX_BYTES = 1 << 22  # a manifest is a few kB; anything larger is not one
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,127}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class Precision(StrEnum):
    """How the weights are stored, and what the activations are.

    `int8` and `int4` are weight-only; `int4` keeps the LM head and the most sensitive matrices in int8, `int4-all` does
    not. `int8-dynamic` has 8-bit
    activations too, scaled pass by pass.
    """

    FP32 = "fp32"
    INT8_DYNAMIC = "int8-dynamic"
    INT8 = "int8"
    INT4 = "int4"
    INT4_ALL = "int4-all"


@dataclasses.dataclass(frozen=True)
class FileEntry:
    """What one file of the pack must be: its sha256 in lower-case hex and its size."""

    sha256: str
    size_bytes: int


@dataclasses.dataclass(frozen=True)
class Architecture:
    """What the runtime must know to allocate: KV is [1, kv_heads, capacity, head_dim] float32 twice per layer.

    `vocab_size` is the width of the logits, `context_length` the number of positions that the model was made for.
    """

    layers: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    context_length: int


@dataclasses.dataclass(frozen=True)
class Manifest:
    """One pack's manifest; the exporter sets all fields, nobody changes them afterwards.

    Attributes:
        name: What users call the draft.
        precision: How the weights are stored.
        architecture: Shapes.
        eos_ids: Token ids that end a text; may be empty.
        tokenizer_fingerprint: `outrider_shared.packs.tokenizer_fingerprint` of its tokenizer.json.
        tokenizer_size: Number of token ids that the tokenizer can give; at most `architecture.vocab_size` are usable.
        files: Every file of the pack but the manifest itself.
        source: Name of the model that the pack was made from.
        licence: Licence of the weights, as text or SPDX id; empty where the source said nothing.
        attribution: Who is to be credited.
        evaluation: Free-form measurements: agreement with the source model, acceptance per domain.
        survival: Prior of the confidence calibration: (margin in nats, probability of survival), ascending margin.
        format: Version of this layout.
    """

    name: str
    precision: Precision
    architecture: Architecture
    eos_ids: tuple[int, ...]
    tokenizer_fingerprint: str
    tokenizer_size: int
    files: Mapping[str, FileEntry]
    source: str
    licence: str = ""
    attribution: str = ""
    evaluation: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    survival: tuple[tuple[float, float], ...] = ()
    format: int = FORMAT

    def __post_init__(self) -> None:
        _check(self)

    def to_json(self) -> str:
        """The manifest as written to disk: JSON, two spaces of indent, stable order."""
        fields = {"format": self.format, **dataclasses.asdict(self)}
        return json.dumps(fields, indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Manifest:
        """Parse and check a manifest.

        Raises:
            PackError: It is no JSON, of another format version, or breaks one of the rules above.
        """
        if len(text) > _MAX_BYTES:
            raise _bad("manifest", f"{len(text)} bytes", f"at most {_MAX_BYTES}")
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise PackError(f"manifest.json is not JSON: {error}", hint="export or download the pack again") from error
        if not isinstance(data, dict):
            raise _bad("manifest", data, "an object")
        if data.get("format") != FORMAT or isinstance(data["format"], bool):
            raise PackError(
                f"manifest.json has format {data.get('format')!r}; this version reads format {FORMAT}",
                hint="update outrider, or export the pack again with this version",
            )
        return cls(**_typed_fields(data))


def check_file_name(name: str) -> None:
    """Refuse a name that could leave the pack's directory.

    Raises:
        PackError: `name` is not a plain file name.
    """
    if not _NAME.fullmatch(name):
        raise _bad("files", name, "a plain file name of letters, digits, '.', '_', '+' and '-'")


def _typed_fields(data: dict[str, Any]) -> dict[str, Any]:
    fields = {field.name: field for field in dataclasses.fields(Manifest)}
    unknown, missing = sorted(data.keys() - fields.keys()), sorted(fields.keys() - data.keys())
    if unknown or missing:
        raise _bad("manifest", f"unknown fields {unknown}, missing fields {missing}", f"exactly {sorted(fields)}")
    typed = dict(data)
    typed["precision"] = _precision(data["precision"])
    typed["architecture"] = _record(Architecture, data["architecture"], "architecture")
    typed["eos_ids"] = tuple(_list(data["eos_ids"], "eos_ids"))
    files = data["files"]
    if not isinstance(files, dict):
        raise _bad("files", files, "an object of file name -> {sha256, size_bytes}")
    typed["files"] = {name: _record(FileEntry, entry, f"files[{name!r}]") for name, entry in files.items()}
    typed["survival"] = tuple(tuple(_list(pair, "survival")) for pair in _list(data["survival"], "survival"))
    return typed


def _precision(value: object) -> Precision:
    try:
        return Precision(value)  # type: ignore[arg-type]  # it raises ValueError for every other type
    except ValueError as error:
        raise _bad("precision", value, " or ".join(Precision)) from error


def _record(kind: type[Any], value: object, where: str) -> Any:
    names = [field.name for field in dataclasses.fields(kind)]
    if not isinstance(value, dict) or sorted(value) != sorted(names):
        raise _bad(where, value, f"an object with {names}")
    return kind(**value)


def _list(value: object, where: str) -> Sequence[Any]:
    if not isinstance(value, list):
        raise _bad(where, value, "a list")
    return value


def _check(manifest: Manifest) -> None:
    for field in ("name", "source", "licence", "attribution"):
        if not isinstance(getattr(manifest, field), str):
            raise _bad(field, getattr(manifest, field), "a string")
    if not manifest.name:
        raise _bad("name", "", "a name")
    if not isinstance(manifest.evaluation, Mapping):
        raise _bad("evaluation", manifest.evaluation, "an object")
    for field, value in dataclasses.asdict(manifest.architecture).items():
        _check_int(f"architecture.{field}", value, 1, 1 << 31)
    _check_int("tokenizer_size", manifest.tokenizer_size, 1, 1 << 31)
    for token in manifest.eos_ids:
        _check_int("eos_ids", token, 0, manifest.architecture.vocab_size)
    _check_digest("tokenizer_fingerprint", manifest.tokenizer_fingerprint)
    _check_files(manifest.files)
    _check_survival(manifest.survival)


def _check_files(files: Mapping[str, FileEntry]) -> None:
    for name, entry in files.items():
        check_file_name(name)
        _check_digest(f"files[{name!r}].sha256", entry.sha256)
        _check_int(f"files[{name!r}].size_bytes", entry.size_bytes, 1, 1 << 50)
    for name in REQUIRED_FILES:
        if name not in files:
            raise _bad("files", sorted(files), f"{name!r} among them")


def _check_survival(pairs: Sequence[Sequence[float]]) -> None:
    last = -math.inf
    for pair in pairs:
        numbers = [value for value in pair if isinstance(value, int | float) and not isinstance(value, bool)]
        if len(pair) != 2 or len(numbers) != 2 or not last < pair[0] < math.inf or not 0 <= pair[1] <= 1:
            raise _bad(
                "survival", list(pair), "[margin, survival] with ascending finite margins and 0 <= survival <= 1"
            )
        last = pair[0]


def _check_int(where: str, value: object, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value < high:
        raise _bad(where, value, f"an integer from {low} to {high - 1}")


def _check_digest(where: str, value: object) -> None:
    if not isinstance(value, str) or not _SHA256.fullmatch(value):
        raise _bad(where, value, "64 lower-case hex digits")


def _bad(where: str, found: object, expected: str) -> PackError:
    shown = repr(found)
    shown = shown if len(shown) <= 200 else shown[:200] + "..."
    return PackError(
        f"manifest.json: {where} is {shown}, expected {expected}", hint="export or download the pack again"
    )
