"""How the configuration is read: file < environment < flags.

file          TOML with the sections of `config.py`: --config, else OUTRIDER_EDGE_CONFIG, else the first that exists of
              ~/.config/outrider/edge.toml and /etc/outrider/edge.toml
environment   OUTRIDER_EDGE_SECTION_KEY, such as OUTRIDER_EDGE_SERVE_LISTEN; lists are separated by commas
flags         of `outrider edge serve`
"""

from __future__ import annotations

import dataclasses
import os
import tomllib
import typing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from outrider_edge.api.config import EdgeConfig
from outrider_shared.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

PREFIX = "OUTRIDER_EDGE_"
_WORDS = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}


def places(environment: Mapping[str, str] = os.environ) -> list[Path]:
    """Where a configuration file is looked for when none is named."""
    home = environment.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return [Path(home) / "outrider" / "edge.toml", Path("/etc/outrider/edge.toml")]


def find_file(named: Path | None, environment: Mapping[str, str] = os.environ) -> Path | None:
    """The configuration file; None where there is none.

    Raises:
        ConfigError: if the named one does not exist, or nobody may look where one could be.
    """
    chosen = named or (Path(name) if (name := environment.get(PREFIX + "CONFIG")) else None)
    try:
        if chosen is None:
            return next((place for place in places(environment) if place.is_file()), None)
        found = chosen.is_file()
    except OSError as error:
        raise ConfigError(f"{error.filename} cannot be read: {error.strerror}", hint="is HOME this user's?") from error
    if not found:
        raise ConfigError(f"there is no configuration file {chosen}", hint="see --config and OUTRIDER_EDGE_CONFIG")
    return chosen


def load(
    file: Path | None, flags: Mapping[tuple[str, str], Any], environment: Mapping[str, str] = os.environ
) -> EdgeConfig:
    """The configuration of all three.

    Args:
        file: TOML, or None.
        flags: (section, key) -> value; None is not given.
        environment: Of the process.

    Raises:
        ConfigError: an unknown section or key, a value of the wrong kind or out of its range; says where it was set.
    """
    values: dict[tuple[str, str], Any] = {}
    origin: dict[tuple[str, str], str] = {}
    for source, found in (
        (str(file), _from_file(file)),
        ("the environment", _from_environment(environment)),
        ("the flags", {place: value for place, value in flags.items() if value is not None}),
    ):
        values |= found
        origin |= dict.fromkeys(found, source)
    sections = {}
    for section, kind in _sections().items():
        own = {key: value for (name, key), value in values.items() if name == section}
        typed = {key: _typed(kind, section, key, value, origin[section, key]) for key, value in own.items()}
        sections[section] = kind(**typed)
    return EdgeConfig(**sections)


def _sections() -> dict[str, Any]:
    return {name: kind for name, kind in typing.get_type_hints(EdgeConfig).items() if dataclasses.is_dataclass(kind)}


def _from_file(file: Path | None) -> dict[tuple[str, str], Any]:
    if file is None:
        return {}
    try:
        data = tomllib.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from error
    for section, body in data.items():
        if not isinstance(body, dict):
            raise ConfigError(f"{file}: {section} stands outside of any section", hint=f"sections: {list(_sections())}")
    return {(section, key): value for section, body in data.items() for key, value in body.items()} | _unknown(
        data, str(file)
    )


def _unknown(data: Mapping[str, Mapping[str, Any]], where: str) -> dict[tuple[str, str], Any]:
    """Refuses names that mean nothing; a typing error in a bound must not leave the bound unset."""
    known = _sections()
    for section, body in data.items():
        keys = [field.name for field in dataclasses.fields(known[section])] if section in known else []
        odd = [key for key in body if key not in keys]
        if section not in known or odd:
            name = f"section {section}" if section not in known else f"{section}.{odd[0]}"
            raise ConfigError(f"{where}: {name} is unknown", hint=f"known: {', '.join(keys or known)}")
    return {}


def _from_environment(environment: Mapping[str, str]) -> dict[tuple[str, str], Any]:
    found = {}
    for section, kind in _sections().items():
        for field in dataclasses.fields(kind):
            name = f"{PREFIX}{section}_{field.name}".upper()
            if name in environment:
                found[section, field.name] = environment[name]
    return found


def _typed(kind: Any, section: str, key: str, value: Any, where: str) -> Any:
    wanted = typing.get_type_hints(kind)[key]
    try:
        return _convert(wanted, value)
    except (TypeError, ValueError):
        text = getattr(wanted, "__name__", str(wanted))
        raise ConfigError(f"{section}.{key} is {value!r} in {where}", hint=f"it must be of type {text}") from None


def _convert(wanted: Any, value: Any) -> Any:
    if typing.get_origin(wanted) is tuple:
        parts = [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else list(value)
        if not all(isinstance(part, str) for part in parts):
            raise TypeError
        return tuple(parts)
    if wanted is bool:
        word = value.lower() if isinstance(value, str) else None
        return value if isinstance(value, bool) else _WORDS[word] if word in _WORDS else _wrong()
    if wanted in {int, float} and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        return wanted(value) if wanted is float or isinstance(value, (int, str)) else _wrong()
    if wanted is str and isinstance(value, str):
        return value
    raise TypeError


def _wrong() -> Any:
    raise ValueError
