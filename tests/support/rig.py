"""An engine by itself, with a clock to turn and every session's events at hand; and plain decoding without one."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForCausalLM

from outrider_cloud.engine.config import EngineConfig
from outrider_cloud.engine.engine import Engine
from outrider_cloud.engine.events import Committed, Event, Failed, Opened, Request
from outrider_cloud.engine.runner import ModelRunner
from outrider_cloud.kernels.platform import cpu_platform
from outrider_shared.ids import SessionId
from outrider_shared.packing import pack_tokens, pack_varints
from outrider_shared.sampling import SamplingParams
from outrider_shared.sampling.rule import choose
from outrider_wire.v1 import verifier_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np

    from outrider_cloud.model.loading import LoadedModel
    from outrider_shared.errors import OutriderError

GREEDY = SamplingParams()


class Rig:
    """An engine whose clock stands still unless `now` is set.

    Args:
        model: What it serves.
        config: Fields of `EngineConfig` to change.
    """

    def __init__(self, model: LoadedModel, **config: Any) -> None:
        self.now = 0.0
        self.config = EngineConfig(**{"kv_tokens": 2048, **config})
        self.runner = ModelRunner(model, cpu_platform(exact=self.config.exact), self.config)
        self.engine = Engine(self.runner, self.config, lambda: self.now)
        self.events: dict[SessionId, list[Event]] = {}

    def open(
        self, prompt: Sequence[int], max_tokens: int = 16, params: SamplingParams = GREEDY, name: str = "", **more: Any
    ) -> SessionId:
        session_id = SessionId(name or f"session-{len(self.events)}")
        events: list[Event] = []
        more.setdefault("own_drafts", False)  # else the cloud would draft beside the test
        self.engine.open(Request(session_id, tuple(prompt), max_tokens, params, **more), events.append)
        self.events[session_id] = events
        return session_id

    def resume(self, session_id: SessionId, committed: Sequence[int]) -> bool:
        """Resume with a fresh list of events."""
        events: list[Event] = []
        held = self.engine.resume(session_id, committed, events.append)
        if held:
            self.events[session_id] = events
        return held

    def draft(
        self,
        session_id: SessionId,
        tokens: Sequence[int],
        *,
        parents: Sequence[int] | None = None,
        anchor: int | None = None,
        **more: Any,
    ) -> None:
        """A message of nodes: a chain, or with a distance back to each node's parent (0 = the log at `anchor`)."""
        message = pb.Draft(
            tokens=pack_tokens(tokens, self.runner.loaded.vocabulary), count=len(tokens), anchor=anchor, **more
        )
        if parents is not None:
            message.parents = pack_varints(parents)
        self.engine.draft(session_id, pb.Draft.FromString(message.SerializeToString()))

    def step(self) -> bool:
        worked = self.engine.step()
        self.engine.pool.check()
        return worked

    def run(self, most: int = 3000) -> None:
        """Step until nothing is left to do, with the clock moving on to what the engine waits for."""
        for _ in range(most):
            if not self.step():
                if all(self.ended(session_id) for session_id in self.engine.sessions):
                    return
                self.now = max(self.now, self.engine.idle_until())
        raise AssertionError(f"no end after {most} steps")

    def ended(self, session_id: SessionId) -> bool:
        return self.finish(session_id) is not None or self.error(session_id) is not None

    def commits(self, session_id: SessionId) -> list[Committed]:
        return [event for event in self.events[session_id] if isinstance(event, Committed)]

    def opened(self, session_id: SessionId) -> Opened:
        first = self.events[session_id][0]
        assert isinstance(first, Opened)
        return first

    def tokens(self, session_id: SessionId) -> list[int]:
        return [token for event in self.commits(session_id) for token in event.tokens]

    def finish(self, session_id: SessionId) -> str | None:
        last = self.events[session_id][-1]
        return last.finish.value if isinstance(last, Committed) and last.finish is not None else None

    def error(self, session_id: SessionId) -> OutriderError | None:
        last = self.events[session_id][-1]
        return last.error if isinstance(last, Failed) else None


@functools.cache
def _eager(folder: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


@torch.inference_mode()
def direct_logits(folder: Path, tokens: Sequence[int]) -> np.ndarray:
    """[tokens, vocab] float32 of one forward of transformers' own model, no cache, no engine."""
    return _eager(folder)(torch.tensor([list(tokens)]), use_cache=False).logits[0].numpy()


@functools.cache
def plain(folder: Path, prompt: tuple[int, ...], count: int, params: SamplingParams = GREEDY) -> tuple[int, ...]:
    """`count` tokens by the rule over transformers' own forwards, past any end token."""
    log = list(prompt)
    for _ in range(count):
        log.append(choose(direct_logits(folder, log)[-1], len(log), params))
    return tuple(log[len(prompt) :])


def check_usage(rig: Rig, session_id: SessionId) -> None:
    """The last commit's bill adds up to the tokens that came."""
    last = rig.commits(session_id)[-1]
    assert last.usage is not None
    assert len(rig.tokens(session_id)) == last.usage.steps + last.usage.accepted
    assert last.usage.rows >= last.usage.steps
