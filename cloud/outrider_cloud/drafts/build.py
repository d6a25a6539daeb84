"""Makes the draft model beside a target: from a pack, as devices have it, or from a Hugging Face folder."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from outrider_cloud.drafts.fit import Tokens, check_tokens, draft_folder
from outrider_cloud.drafts.model import DraftModel
from outrider_cloud.engine.runner import ModelRunner
from outrider_cloud.kernels.platform import cpu_platform
from outrider_cloud.model.loading import LoadedModel, load_model
from outrider_shared.packs import MANIFEST, read_pack

if TYPE_CHECKING:
    from pathlib import Path

    from outrider_cloud.drafts.model import GuessModel
    from outrider_cloud.engine.config import EngineConfig


def build_draft(draft: str | Path | LoadedModel, target: LoadedModel, config: EngineConfig) -> GuessModel:
    """A draft model on the processor, with KV memory of its own for as many tokens as the target has.

    Args:
        draft: A pack, which is quickest for a few sessions; a Hugging Face folder or a model that is loaded already,
            computed for all sessions in one forward; or `bundled`, the pack that ships.
        target: Beside which it is to draft.
        config: The target's.

    Raises:
        ConfigError: the folder is no model.
        MismatchError: draft and target do not share their tokens.
        PackError: the pack is damaged.
    """
    if isinstance(draft, LoadedModel):
        return _paged(draft, target, config)
    folder = draft_folder(draft)
    if (folder / MANIFEST).exists():
        return _packed(folder, target, config)
    return _paged(load_model(folder), target, config)


def _paged(loaded: LoadedModel, target: LoadedModel, config: EngineConfig) -> DraftModel:
    check_tokens(loaded, target)
    natural = dataclasses.replace(config, exact=False)  # a draft is a guess: its bits decide nothing
    return DraftModel(ModelRunner(loaded, cpu_platform(exact=False), natural), natural)


def _packed(folder: Path, target: LoadedModel, config: EngineConfig) -> GuessModel:
    pack = read_pack(folder)
    manifest = pack.manifest
    check_tokens(Tokens(manifest.name, manifest.architecture.vocab_size, manifest.tokenizer_fingerprint), target)
    from outrider_cloud.drafts.packed import PackedDraftModel  # noqa: PLC0415 - ONNX Runtime, for who drafts by a pack
    from outrider_shared.drafting import runtime  # noqa: PLC0415 - likewise

    return PackedDraftModel(runtime.DraftModel.load(pack), config.blocks * config.block_size)
