"""Puts an engine together from a model folder and a configuration; what `cloud serve`, `generate` and benches share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, Unpack

import torch

from outrider_cloud.drafts.build import build_draft
from outrider_cloud.drafts.fit import check_draft
from outrider_cloud.engine.cuda_graphs import Graphs
from outrider_cloud.engine.cuda_runner import CudaRunner
from outrider_cloud.engine.engine import Engine
from outrider_cloud.engine.exactness import agreeing_buckets
from outrider_cloud.engine.paced import PacedRunner
from outrider_cloud.engine.runner import ModelRunner
from outrider_cloud.kernels.cuda.fit import check_fit
from outrider_cloud.kernels.cuda.gpu import GpuLauncher, check_gpu, shared_bytes
from outrider_cloud.kernels.cuda.platform import cuda_platform
from outrider_cloud.kernels.platform import cpu_platform
from outrider_cloud.model.loading import load_model, model_folder
from outrider_cloud.model.outline import outline
from outrider_cloud.model.weights import Weights
from outrider_cloud.parallel.world import World
from outrider_shared.errors import ConfigError

if TYPE_CHECKING:
    from outrider_cloud.engine.config import EngineConfig
    from outrider_cloud.model.loading import LoadedModel
    from outrider_cloud.parallel.team import Team

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


class Placement(TypedDict, total=False):
    """How a model is held and computed; what is left out is as the field says.

    Attributes:
        threads: Threads of a step; 0 or none leaves torch's own choice.
        pace_step_s: Least duration of a step, to stand in for a larger model in benchmarks; 0 is the model's own.
        weights: How the model's matrices are held (native); for a model that is loaded already it is decided.
        device: `cpu`, the default, `cuda` or `cuda:N`.
        dtype: Of the weights: `bfloat16`, `float16` or `float32`; empty is bfloat16 on a GPU and float32 on a CPU.
    """

    threads: int
    pace_step_s: float
    weights: Weights
    device: str
    dtype: str


def build_engine(
    model: str | Path | LoadedModel,
    config: EngineConfig,
    *,
    draft: str | Path | LoadedModel | None = None,
    shards: int = 1,
    team: Team | None = None,
    **placement: Unpack[Placement],
) -> Engine:
    """An engine on one device, or over the ranks of a team.

    Args:
        model: A Hugging Face folder, `bundled`, or a model that is loaded already.
        config: Sizes and policies.
        draft: Model beside the target that drafts for sessions whose edge is late: a pack, a folder or `bundled`.
        shards: Parts that the model is computed in without a team: a team of as many shards gives the same bits.
        team: Processes that hold the model together; this one leads.
        placement: See `Placement`.

    Raises:
        ConfigError: if a folder is no model, or there is no card that it fits onto.
        MismatchError: if draft and target do not share their tokens.
        ModelError: if the model cannot be served there, or with `config.exact` not bit for bit.
        PackError: if the draft is a damaged pack.
    """
    if isinstance(draft, (str, Path)) and isinstance(model, (str, Path)):
        check_draft(draft, model)  # before minutes are spent on the target
    world = team.world if team is not None else World(shards=shards, ordered=config.exact)
    runner = build_runner(model, config, world, **placement)
    if team is not None:
        runner.peers = team.peers
    if config.exact:
        runner.buckets = agreeing_buckets(runner)
    guesses = None if draft is None else build_draft(draft, runner.loaded, config, runner.platform)
    return Engine(runner, config, draft_model=guesses)


def build_runner(
    model: str | Path | LoadedModel, config: EngineConfig, world: World | None = None, **placement: Unpack[Placement]
) -> ModelRunner:
    """The runner of an engine, or of a rank that follows one; arguments as of `build_engine`."""
    if threads := placement.get("threads", 0):
        torch.set_num_threads(threads)
    on = _device(placement.get("device", "cpu"))
    if on.type == "cuda":
        check_gpu(on)
        on = torch.device("cuda", on.index or 0)  # torch sets no device whose number it would have to guess
        torch.cuda.set_device(on)
    if isinstance(model, (str, Path)):
        dtype, weights = _dtype(placement.get("dtype", ""), on), placement.get("weights", Weights.NATIVE)
        kv_bytes = _admit(model_folder(model), config, dtype, world or World(), on) if on.type == "cuda" else 0
        loaded = load_model(model, dtype, weights=weights, device=on, world=world, kv_bytes=kv_bytes)
    else:
        loaded = model
    platform = cpu_platform(exact=config.exact)
    if on.type == "cuda":
        return _on_card(loaded, config, world or World(), on)
    if pace_step_s := placement.get("pace_step_s", 0.0):
        return PacedRunner(loaded, platform, config, pace_step_s)
    return ModelRunner(loaded, platform, config)


def _admit(folder: Path, config: EngineConfig, dtype: torch.dtype, world: World, device: torch.device) -> int:
    """Refuse a model without kernels before its weights are read; the bytes of the KV memory that it will have."""
    planned = outline(folder)
    if planned is None:
        return 0
    check_fit(planned.layers, planned.vocabulary, dtype, shared_bytes(device))
    return planned.kv_bytes(config.blocks * config.block_size, dtype, world)


def _on_card(loaded: LoadedModel, config: EngineConfig, world: World, device: torch.device) -> ModelRunner:
    check_fit(loaded.layers, loaded.vocabulary, loaded.dtype, shared_bytes(device))
    try:
        platform = cuda_platform(GpuLauncher(device), config.block_size)
        runner = CudaRunner(loaded, platform, config, Graphs(world.agree))
        runner.prepare()
    except torch.OutOfMemoryError as error:
        raise ConfigError(
            f"the buffers of a step of {loaded.name} do not fit onto {device} beside its weights and KV: {error}",
            hint="give a smaller --kv-tokens or --row-budget, or more cards with --tensor-parallel",
        ) from error
    return runner


def check_device(name: str, ranks: int = 1) -> None:
    """Refuse a device that cannot be used, before anything is started on it.

    Args:
        name: `cpu`, `cuda` or `cuda:N`.
        ranks: Processes that this machine is to start, a card each.

    Raises:
        ConfigError: what is wrong, and what to do.
    """
    device = _device(name)
    if device.type != "cuda":
        return
    check_gpu(device)
    if ranks > 1 and device.index is not None:
        raise ConfigError(
            f"--device {name} is one card, --tensor-parallel {ranks} takes {ranks}",
            hint="give --device cuda, and CUDA_VISIBLE_DEVICES for the cards to use",
        )
    if ranks > (count := torch.cuda.device_count()):
        raise ConfigError(
            f"--tensor-parallel {ranks} takes {ranks} cards, here are {count}", hint="give at most so many"
        )


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in {"cpu", "cuda"}:
        raise ConfigError(f"--device is {name!r}", hint="give cpu, cuda or cuda:N")
    return device


def _dtype(name: str, device: torch.device) -> torch.dtype:
    chosen = name or ("bfloat16" if device.type == "cuda" else "float32")
    if chosen not in _DTYPES:
        raise ConfigError(f"--dtype is {name!r}", hint=f"give one of {', '.join(_DTYPES)}")
    return _DTYPES[chosen]
