"""Whether a draft fits its target, told by their folders before the weights of either are read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from transformers import AutoConfig

from outrider_cloud.model.loading import BUNDLED, model_folder
from outrider_shared.errors import ConfigError, MismatchError, ModelError
from outrider_shared.packs import MANIFEST, bundled_pack, read_pack, tokenizer_fingerprint

if TYPE_CHECKING:
    from outrider_shared.packs import Pack

_CONFIG, _TOKENIZER = "config.json", "tokenizer.json"


class HasTokens(Protocol):
    """What a draft and its target must share, and the name to tell it by."""

    @property
    def name(self) -> str:
        """For messages."""

    @property
    def vocabulary(self) -> int:
        """Rows of the output layer."""

    @property
    def tokenizer_sha256(self) -> str:
        """Canonical fingerprint of the tokenizer, hex."""


@dataclass(frozen=True)
class Tokens:
    """The tokens of a model that is not loaded; see `HasTokens`."""

    name: str
    vocabulary: int
    tokenizer_sha256: str


def draft_folder(draft: str | Path) -> Path:
    """The folder that is meant, `bundled` included."""
    return bundled_pack() if str(draft) == BUNDLED else Path(draft)


def check_draft(draft: str | Path, target: str | Path) -> None:
    """Refuse a draft that cannot draft for a target.

    A target that is no model folder is let through: loading it tells more.

    Args:
        draft: Pack, Hugging Face folder or `bundled`.
        target: Hugging Face folder or `bundled`.

    Raises:
        ConfigError: the draft is neither a pack nor a model folder.
        MismatchError: they do not share their tokens.
        ModelError: a folder's configuration cannot be read.
        PackError: the pack is damaged.
    """
    folder, target_folder = draft_folder(draft), model_folder(target)
    if (folder / MANIFEST).is_file():
        tokens = tokens_of_pack(read_pack(folder))
    elif _is_model(folder):
        tokens = _tokens_of_model(folder)
    else:
        lacks = f"has no {MANIFEST}, and not both {_CONFIG} and {_TOKENIZER}" if folder.exists() else "does not exist"
        raise ConfigError(
            f"the draft {folder} {lacks}", hint="give a pack, a Hugging Face model folder, 'bundled' or 'none'"
        )
    if _is_model(target_folder):
        check_tokens(tokens, _tokens_of_model(target_folder))


def check_tokens(draft: HasTokens, target: HasTokens) -> None:
    """Compare what both must share.

    Raises:
        MismatchError: what differs.
    """
    for what, ours, theirs in (
        ("vocabulary", target.vocabulary, draft.vocabulary),
        ("tokenizer", target.tokenizer_sha256[:16], draft.tokenizer_sha256[:16]),
    ):
        if ours != theirs:
            raise MismatchError(
                f"the {what} of the draft {draft.name} is {theirs}, that of the target {target.name} {ours}",
                hint="use a draft that was made for this target",
            )


def tokens_of_pack(pack: Pack) -> Tokens:
    """As its manifest has them."""
    manifest = pack.manifest
    return Tokens(manifest.name, manifest.architecture.vocab_size, manifest.tokenizer_fingerprint)


def _is_model(folder: Path) -> bool:
    return all((folder / needed).is_file() for needed in (_CONFIG, _TOKENIZER))


def _tokens_of_model(folder: Path) -> Tokens:
    try:
        vocabulary = AutoConfig.from_pretrained(folder).get_text_config().vocab_size
    except Exception as error:  # transformers raises what it likes about a configuration
        raise ModelError(f"{folder} cannot be read: {error}") from error
    return Tokens(folder.resolve().name, vocabulary, tokenizer_fingerprint((folder / _TOKENIZER).read_bytes()))
