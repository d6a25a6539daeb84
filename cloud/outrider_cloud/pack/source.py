"""What a Hugging Face folder says beside the weights: configuration, tokenizer, chat template, licence."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer

from outrider_shared.chat import check_template, read_chat_template
from outrider_shared.errors import ConfigError
from outrider_shared.packs import tokenizer_fingerprint

if TYPE_CHECKING:
    from pathlib import Path

_LICENCES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "COPYING")
_NOTICES = ("NOTICE", "NOTICE.txt", "NOTICE.md")
_CARD_LICENCE = re.compile(r"^---\n.*?^license: *([^\n]+)$.*?^---$", re.DOTALL | re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Source:
    """A model folder that can be packed.

    Attributes:
        path: The folder.
        config: Its config.json.
        tokenizer: The bytes of its tokenizer.json.
        chat_template: Jinja text; None for a model without chat.
        eos_ids: Token ids that end a text, ascending.
        licence: Text of its licence file, else what its model card names; empty without either.
        attribution: Text of its notice file; empty without one.
    """

    path: Path
    config: dict[str, Any]
    tokenizer: bytes
    chat_template: str | None
    eos_ids: tuple[int, ...]
    licence: str
    attribution: str


def read_source(path: Path) -> Source:
    """Read a Hugging Face folder.

    Raises:
        ConfigError: The folder, its config.json or its tokenizer.json is missing or not readable, or its chat
            template is none.
    """
    if not path.is_dir():
        raise ConfigError(
            f"no model folder at {path}", hint="--model takes a local Hugging Face folder, not a hub name"
        )
    if not (path / "tokenizer.json").is_file():
        raise ConfigError(f"{path} has no tokenizer.json", hint="save a fast tokenizer beside the model")
    config = _json(path / "config.json")
    try:
        tokenizer_fingerprint((path / "tokenizer.json").read_bytes())
        Tokenizer.from_file(str(path / "tokenizer.json"))
    except Exception as error:  # of the library's own kind
        raise ConfigError(
            f"{path / 'tokenizer.json'} is no tokenizer: {error}", hint="save a fast one there"
        ) from error
    return Source(
        path=path,
        config=config,
        tokenizer=(path / "tokenizer.json").read_bytes(),
        chat_template=_template(path),
        eos_ids=_eos_ids(path, config),
        licence=_first_text(path, _LICENCES) or _card_licence(path),
        attribution=_first_text(path, _NOTICES),
    )


def _template(path: Path) -> str | None:
    """The chat template, if there is one; what it makes of messages is its own affair, but it must be readable."""
    template = read_chat_template(path)
    check_template(template)
    return template or None


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {path}: {error}", hint="is this a Hugging Face model folder?") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds no object", hint="is this a Hugging Face model folder?")
    return content


def _eos_ids(path: Path, config: dict[str, Any]) -> tuple[int, ...]:
    generation = _json(path / "generation_config.json") if (path / "generation_config.json").is_file() else {}
    found = generation.get("eos_token_id", config.get("eos_token_id"))
    ids = found if isinstance(found, list) else [found]
    return tuple(sorted({token for token in ids if isinstance(token, int)}))


def _first_text(path: Path, names: tuple[str, ...]) -> str:
    return next(((path / name).read_text("utf-8") for name in names if (path / name).is_file()), "")


def _card_licence(path: Path) -> str:
    match = _CARD_LICENCE.match(_first_text(path, ("README.md",)))
    return match.group(1).strip() if match else ""
