"""Frozen dataclasses to msgpack and back, with every check that a field from outside needs.

Rules of reading, each broken one a `ProtocolError` that names the field:

1. A message is one msgpack map with string keys, no longer than `MAX_BYTES`, and nothing after it.
2. Its key `v` is the schema version of the type; another major version is refused before anything else is looked at.
3. A field without default must be there; each value has exactly the annotated type (no bool for int, no int for str; an
   int is taken where a float is asked for; a float is finite) and lies in its `Bound`.
4. Unknown keys are ignored: a newer peer of the same version may say more.

What it does not do: decide whether a message is true, in order or allowed.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import math
import types
import typing
from typing import Any, TypeVar, cast

import msgpack

from outrider_shared.errors import OutriderError, ProtocolError

MAX_BYTES = 1 << 17
_MAX_ITEMS = 4096

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, slots=True)
class Bound:
    """Annotation: a number from `low` to `high`, or a text, bytes or tuple of such a length."""

    low: float
    high: float


def encode(message: Any, version: int = 1) -> bytes:
    """The bytes of a message; a field that is None is left out."""
    packed: bytes = msgpack.packb({"v": version, **_plain(message)}, use_bin_type=True)
    if len(packed) > MAX_BYTES:
        raise ProtocolError(f"a {type(message).__name__} of {len(packed)} bytes is over {MAX_BYTES}")
    return packed


def decode(kind: type[T], data: bytes, version: int = 1) -> T:
    """Read and check one message.

    Raises:
        ProtocolError: if it breaks one of the rules above.
    """
    if len(data) > MAX_BYTES:
        raise ProtocolError(f"a {kind.__name__} of {len(data)} bytes is over {MAX_BYTES}")
    try:
        fields = msgpack.unpackb(data, raw=False, strict_map_key=True)
    except Exception as error:
        # msgpack raises a dozen unrelated types on bad bytes.
        raise ProtocolError(f"a {kind.__name__} that is not msgpack: {error!r}") from error
    if not isinstance(fields, dict):
        raise ProtocolError(f"a {kind.__name__} is a map, not {type(fields).__name__}")
    if fields.get("v") != version or isinstance(fields["v"], bool):
        raise ProtocolError(
            f"a {kind.__name__} of schema version {fields.get('v')!r}; this side reads {version}",
            hint="update the older side",
        )
    return _record(kind, fields, kind.__name__)


def check(kind: type[T], found: object) -> T:
    """Read and check a map that came in another way, such as out of JSON.

    Raises:
        ProtocolError: if it breaks rule 3.
    """
    return _record(kind, _map(found, kind.__name__), kind.__name__)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        named = ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value))
        return {name: _plain(inner) for name, inner in named if inner is not None}
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, tuple | list):
        return [_plain(inner) for inner in value]
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return value


@functools.cache
def _fields(kind: Any) -> tuple[tuple[str, Any, bool], ...]:
    """(name, type, must be there) of each field."""
    hints = typing.get_type_hints(kind, include_extras=True)
    absent = dataclasses.MISSING
    return tuple(
        (field.name, hints[field.name], field.default is absent and field.default_factory is absent)
        for field in dataclasses.fields(kind)
    )


def _record(kind: type[T], found: dict[Any, Any], where: str) -> T:
    values = {}
    for name, annotation, required in _fields(cast("Any", kind)):
        if name in found:
            values[name] = _value(annotation, found[name], f"{where}.{name}")
        elif required:
            raise ProtocolError(f"{where} has no {name}")
    try:
        return kind(**values)
    except OutriderError as error:
        raise ProtocolError(f"{where}: {error.message}", hint=error.hint) from error


def _value(annotation: Any, found: Any, where: str) -> Any:
    if found is None and type(None) in typing.get_args(annotation):
        return None
    checked = _typed(annotation, found, where)
    for extra in getattr(annotation, "__metadata__", ()):
        size = checked if isinstance(checked, int | float) else len(checked)
        if isinstance(extra, Bound) and not extra.low <= size <= extra.high:
            what = "is" if isinstance(checked, int | float) else "has length"
            raise ProtocolError(f"{where} {what} {size}, expected {extra.low:g} to {extra.high:g}")
    return checked


def _typed(annotation: Any, found: Any, where: str) -> Any:  # noqa: PLR0911 - one return per kind of type
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _value(arguments[0], found, where)
    if origin is types.UnionType or origin is typing.Union:
        return _value(next(inner for inner in arguments if inner is not type(None)), found, where)
    if origin is tuple:
        return tuple(_value(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(_list(found, where)))
    if origin is dict:
        return {str(key): _value(arguments[1], item, f"{where}[{key!r}]") for key, item in _map(found, where).items()}
    if dataclasses.is_dataclass(annotation):
        return _record(cast("type[Any]", annotation), _map(found, where), where)
    if isinstance(annotation, type) and issubclass(annotation, enum.StrEnum):
        return _member(annotation, found, where)
    if annotation is float and type(found) is int:
        return float(found)
    if annotation is Any and isinstance(found, bool | int | float | str):
        return found
    if type(found) is not annotation or (annotation is float and not math.isfinite(found)):
        raise ProtocolError(f"{where} is {_shown(found)}, expected {getattr(annotation, '__name__', annotation)}")
    return found


def _member(kind: type[enum.StrEnum], found: Any, where: str) -> enum.StrEnum:
    try:
        return kind(found)
    except ValueError as error:
        raise ProtocolError(f"{where} is {_shown(found)}, expected one of {[str(m) for m in kind]}") from error


def _list(found: Any, where: str) -> list[Any]:
    if not isinstance(found, list) or len(found) > _MAX_ITEMS:
        raise ProtocolError(f"{where} is {_shown(found)}, expected a list of at most {_MAX_ITEMS}")
    return found


def _map(found: Any, where: str) -> dict[Any, Any]:
    if not isinstance(found, dict) or len(found) > _MAX_ITEMS:
        raise ProtocolError(f"{where} is {_shown(found)}, expected a map of at most {_MAX_ITEMS}")
    return found


def _shown(found: Any) -> str:
    text = repr(found)
    return text if len(text) <= 80 else text[:80] + "..."
