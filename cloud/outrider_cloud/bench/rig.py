"""An engine over a model without a folder, with sessions at a given context, stepped and timed from outside."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from outrider_cloud.engine.config import EngineConfig
from outrider_cloud.engine.cuda_runner import CudaRunner
from outrider_cloud.engine.engine import Engine
from outrider_cloud.engine.events import Request
from outrider_cloud.engine.runner import ModelRunner
from outrider_cloud.kernels.cuda.gpu import GpuLauncher
from outrider_cloud.kernels.cuda.platform import cuda_platform
from outrider_cloud.kernels.platform import cpu_platform
from outrider_shared.ids import SessionId
from outrider_shared.packing import pack_tokens
from outrider_shared.sampling import SamplingParams
from outrider_wire.v1 import verifier_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch

    from outrider_cloud.model.loading import LoadedModel


@dataclass(frozen=True, slots=True)
class StepTime:
    """One step, in seconds.

    Attributes:
        wall: From call to return.
        inside: Of that, the model's forward; on a card the device's time, from the first copy to the last.
        rows, tokens: Run, committed.
    """

    wall: float
    inside: float
    rows: int
    tokens: int


class Rig:
    """An engine on a device.

    Args:
        loaded: The model, on the device.
        device: Where.
        config: Sizes; room for the sessions is the caller's business.
    """

    def __init__(self, loaded: LoadedModel, device: torch.device, config: EngineConfig) -> None:
        self.runner: ModelRunner
        if device.type == "cuda":
            self.runner = CudaRunner(loaded, cuda_platform(GpuLauncher(device), config.block_size), config)
        else:
            self.runner = ModelRunner(loaded, cpu_platform(exact=config.exact), config)
        self.engine = Engine(self.runner, config)
        self._sessions: list[SessionId] = []
        self._opened = 0

    def open(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> None:
        """Greedy sessions that nothing but their length ends, and all steps until each has its first token.

        Sessions of an earlier call are not stepped any more.
        """
        self._sessions = []
        for prompt in prompts:
            self._opened += 1
            name = SessionId(f"bench{self._opened:08d}")
            request = Request(
                name, tuple(prompt), max_tokens, SamplingParams(), ignore_eos=True, own_drafts=False
            )  # the cloud would draft beside what is measured
            self.engine.open(request, _ignore)
            self._sessions.append(name)
        while any(s.sure_rows > 1 or not s.blocks for s in self._live()):
            self.engine.step()

    def logs(self) -> list[list[int]]:
        """Every session's tokens so far, prompt first."""
        return [list(self.engine.sessions[name].log) for name in self._sessions]

    @property
    def done(self) -> bool:
        """Whether every session has ended."""
        return not self._live()

    def step(self, drafts: Callable[[int, list[int]], Sequence[int]] | None = None) -> StepTime:
        """One step.

        Args:
            drafts: Told a session's number and its log, gives the chain of tokens that its device drafted.
        """
        if drafts is not None:
            self._draft(drafts)
        stats, forward = self.engine.stats, self.runner.forward_s
        rows, committed = stats.rows, stats.committed
        started = time.perf_counter()
        self.engine.step()
        wall = time.perf_counter() - started
        return StepTime(wall, self.runner.forward_s - forward, stats.rows - rows, stats.committed - committed)

    def _draft(self, drafts: Callable[[int, list[int]], Sequence[int]]) -> None:
        vocabulary = self.runner.loaded.vocabulary
        for number, name in enumerate(self._sessions):
            session = self.engine.sessions[name]
            if session.finish is not None:
                continue
            chain = list(drafts(number, session.log))
            session.tree.clear()
            if chain:
                message = pb.Draft(tokens=pack_tokens(chain, vocabulary), count=len(chain), anchor=len(session.log))
                self.engine.draft(name, message)

    def _live(self) -> list[Any]:
        return [s for s in self.engine.sessions.values() if s.finish is None]


def random_prompts(sessions: int, tokens: int, vocabulary: int) -> list[list[int]]:
    """Different ones, so that no KV is shared."""
    generator = np.random.default_rng(5)
    return [list(map(int, generator.integers(5, vocabulary, tokens))) for _ in range(sessions)]


def engine_config(sessions: int, tokens: int, drafts: int, buckets: tuple[int, ...] = ()) -> EngineConfig:
    """Room for so many sessions of so many tokens each; exact with those buckets, if any."""
    block = EngineConfig().block_size
    each = -(-(tokens + drafts + block) // block) * block
    exact: dict[str, Any] = {"exact": True, "buckets": buckets} if buckets else {}
    return EngineConfig(
        kv_tokens=sessions * each + 4 * block, max_draft_rows=max(1, drafts), max_sessions=sessions, **exact
    )


def _ignore(_: object) -> None:
    """A sink for events that nobody reads."""
