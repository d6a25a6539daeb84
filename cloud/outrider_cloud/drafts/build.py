"""Makes the draft model beside a target: from a pack, as devices have it, or from a Hugging Face folder."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import structlog
import torch

from outrider_cloud.drafts.fit import check_tokens, draft_folder, tokens_of_pack
from outrider_cloud.drafts.model import DraftModel
from outrider_cloud.engine.cuda_graphs import eagerly
from outrider_cloud.engine.cuda_runner import CudaRunner
from outrider_cloud.engine.runner import ModelRunner
from outrider_cloud.kernels.cuda.fit import check_fit
from outrider_cloud.kernels.cuda.platform import CudaPlatform
from outrider_cloud.kernels.cuda.source import DTYPES
from outrider_cloud.kernels.platform import cpu_platform
from outrider_cloud.model.loading import LoadedModel, load_model
from outrider_cloud.model.outline import outline
from outrider_cloud.parallel.world import World
from outrider_shared.errors import ConfigError, ModelError
from outrider_shared.packs import MANIFEST, read_pack

if TYPE_CHECKING:
    from pathlib import Path

    from outrider_cloud.drafts.model import GuessModel
    from outrider_cloud.engine.config import EngineConfig
    from outrider_cloud.kernels.platform import Platform

_log = structlog.get_logger(__name__)


def build_draft(
    draft: str | Path | LoadedModel, target: LoadedModel, config: EngineConfig, platform: Platform | None = None
) -> GuessModel:
    """A draft model with KV memory of its own for as many tokens as the target has.

    Args:
        draft: A pack, which is quickest for a few sessions, on the processor; a Hugging Face folder or a model that is
            loaded already, computed for all sessions in one forward; or `bundled`, the pack that ships.
        target: Beside which it is to draft.
        config: The target's.
        platform: The target's. On a GPU a folder is computed there, too, if there are kernels and room for it; a model
            that is loaded already is computed where it is.

    Raises:
        ConfigError: the folder is no model, or a step's buffers do not fit onto the card.
        MismatchError: draft and target do not share their tokens.
        PackError: the pack is damaged.
    """
    if isinstance(draft, LoadedModel):
        loaded = draft
    else:
        folder = draft_folder(draft)
        if (folder / MANIFEST).exists():
            return _packed(folder, target, config)
        loaded = _load(folder, target, config, platform)
    check_tokens(loaded, target)
    natural = dataclasses.replace(config, exact=False)  # a draft is a guess: its bits decide nothing
    if isinstance(platform, CudaPlatform) and loaded.model.device == platform.device and loaded.dtype in DTYPES:
        return _on_card(loaded, natural, platform)
    return DraftModel(ModelRunner(loaded, cpu_platform(exact=False), natural), natural)


def _load(folder: Path, target: LoadedModel, config: EngineConfig, platform: Platform | None) -> LoadedModel:
    """On the platform's card in the target's type, if it can be computed there; else for the processor."""
    if isinstance(platform, CudaPlatform):
        try:
            planned = outline(folder)
            if planned is not None:
                check_fit(planned.layers, planned.vocabulary, target.dtype, platform.launcher.shared_bytes)
                kv_bytes = planned.kv_bytes(config.blocks * config.block_size, target.dtype, World())
                return load_model(folder, target.dtype, device=platform.device, kv_bytes=kv_bytes)
        except (ConfigError, ModelError) as error:
            _log.warning("the draft model drafts on the processor instead of the GPU", reason=str(error))
    return load_model(folder)


def _on_card(loaded: LoadedModel, config: EngineConfig, platform: CudaPlatform) -> DraftModel:
    """On a stream of its own, so that it drafts while a step of the target runs."""
    device = platform.device
    try:
        runner = CudaRunner(loaded, platform, config, None if device.type == "cuda" else eagerly)
        runner.prepare()
    except torch.OutOfMemoryError as error:
        raise ConfigError(
            f"the buffers of a step of the draft {loaded.name} do not fit onto {device} beside the target: {error}",
            hint="give a pack as --draft, or a smaller --kv-tokens",
        ) from error
    if device.type != "cuda":
        return DraftModel(runner, config)
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    torch.cuda.synchronize(device)  # what was prepared, was on another one
    return DraftModel(runner, config, stream=lambda: torch.cuda.stream(stream))


def _packed(folder: Path, target: LoadedModel, config: EngineConfig) -> GuessModel:
    pack = read_pack(folder)
    check_tokens(tokens_of_pack(pack), target)
    from outrider_cloud.drafts.packed import PackedDraftModel  # noqa: PLC0415 - ONNX Runtime, for who drafts by a pack
    from outrider_shared.drafting import runtime  # noqa: PLC0415 - likewise

    return PackedDraftModel(runtime.DraftModel.load(pack), config.blocks * config.block_size)
