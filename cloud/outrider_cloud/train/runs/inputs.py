"""What a run was given, as what it needs: a source of texts, and what ends and begins a text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from outrider_cloud.train.home.source import HomeSource
from outrider_cloud.train.home.texts import read_texts
from outrider_cloud.train.texts.sources import FileSource, NoSource
from outrider_shared.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tokenizers import Tokenizer

    from outrider_cloud.train.settings import DataConfig
    from outrider_cloud.train.texts.documents import Reading
    from outrider_cloud.train.texts.sources import Source


def source_of(
    config: DataConfig,
    data: Sequence[Path],
    tokenizer: Tokenizer,
    template: str,
    reading: Reading,
    starts: Sequence[int],
) -> Source:
    """The texts that a recipe and --data name. Raises ConfigError, CorpusError."""
    if config.source == "smart-home":
        if len(data) != 1 or not data[0].is_dir():
            raise ConfigError("the smart-home data is one folder", hint="--data DIR")
        return HomeSource(read_texts(data[0]), tokenizer, config.longest)
    if config.source == "nothing" and data:
        raise ConfigError(
            "--data would not be read: data.source is 'nothing'", hint="leave it out, or --set data.source=files"
        )
    if not data:
        return NoSource(tuple((start,) for start in starts) or ((0,),))
    return FileSource(files_of(data), tokenizer, template, config.longest, config.prompt_tokens, reading)


def files_of(data: Sequence[Path]) -> tuple[Path, ...]:
    """The files of --data, those of folders included. Raises ConfigError."""
    found = tuple(
        sorted(each for path in data for each in (path.iterdir() if path.is_dir() else (path,)) if each.is_file())
    )
    if not found:
        raise ConfigError(f"no files in {', '.join(map(str, data))}")
    return found


def ids_of(value: Any) -> list[int]:
    """Token ids of a configuration's value: one, several or none."""
    return [each for each in (value if isinstance(value, list) else [value]) if isinstance(each, int)]


def starts_of(text: Any) -> list[int]:
    """What a text begins with where there is no corpus: the model's first token."""
    return ids_of(text.bos_token_id)[:1] or ids_of(text.eos_token_id)[:1]
