"""The engine with a scripted model, beside the event loop instead of in a thread."""

from __future__ import annotations

import asyncio
import types
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from outrider_cloud.engine.runner import Decision
from outrider_shared.errors import InternalError

if TYPE_CHECKING:
    from outrider_cloud.engine.engine import Engine

_LEAST_WAIT_S = 1e-4


@dataclass(frozen=True)
class StepCost:
    """How long a step of the target takes: flat up to the knee where rows become compute-bound.

    Attributes:
        base_s: Of a step of up to `knee` rows.
        row_s: Of each row beyond.
        knee: Rows that come with the base.
    """

    base_s: float
    row_s: float = 0.0
    knee: int = 0

    def seconds(self, rows: int) -> float:
        return self.base_s + self.row_s * max(0, rows - self.knee)


class Flown:
    """A step that is over when it is launched; the virtual loop's clock knows how long it took."""

    def __init__(self, decision: Decision) -> None:
        self._decision = decision

    def choose(self, shaping) -> None:
        """Nothing changes what was recorded."""

    def busy(self) -> bool:
        return False

    def wait(self) -> Decision:
        return self._decision


def no_logprobs(rows, top: int) -> list:
    raise AssertionError("nothing was recorded of them")


class ScriptedRunner:
    """Stands for `ModelRunner` and its platform: says what was recorded, and takes its time."""

    def __init__(self, pair, cost: StepCost, loop) -> None:
        self._pair, self._cost, self._loop = pair, cost, loop
        self.forward_s = 0.0
        self.loaded = types.SimpleNamespace(
            name="recorded", vocabulary=pair.vocabulary, eos=frozenset({pair.eos}), context_length=4096,
            tokenizer_sha256="00" * 32, fingerprint="00" * 32, tokenizer=None, layers=[],
        )  # fmt: skip
        self.platform = types.SimpleNamespace(sampler=self)

    def run(self, batch, bucket: int = 0) -> torch.Tensor:
        seconds = self._cost.seconds(len(batch.tokens))
        self._loop.ahead_s += seconds
        self.forward_s += seconds
        return torch.zeros(len(batch.sampled), 1)

    def move(self, source, target) -> None:
        """Nothing is held."""

    def fault(self, error: Exception) -> InternalError:
        return InternalError(f"the scripted model failed: {error}")

    def launch(self, batch) -> Flown:
        return Flown(Decision(self.choose(self.run(batch), batch.choosing, batch.params), set(), no_logprobs))

    def choose(self, logits, positions, params) -> list[int]:
        return [self._pair.choose(p.seed, position) for position, p in zip(positions, params, strict=True)]


class ScriptedDrafts:
    """Stands for the draft model beside the target.

    Args:
        round_s: What a round takes.
    """

    def __init__(self, pair, round_s: float, loop) -> None:
        self._pair, self._loop, self._round_s = pair, loop, round_s

    def seconds(self, asks: int) -> float:
        return self._round_s

    def reading_s(self, ask) -> float:
        return 0.0

    def guess(self, asks, width: int) -> list:
        self._loop.ahead_s += self._round_s
        return [self._pair.guess(ask.params.seed, ask.log + ask.tail, width) for ask in asks]

    def forget(self, session_id) -> None:
        """Nothing is held."""


class Beside:
    """Stands for the thread that drafts while the target computes: computes now, and is done when it would be.

    Waiting for it moves the clock on to its end.
    """

    def __init__(self, loop) -> None:
        self._loop = loop

    def submit(self, call, *args):
        """Run it from now on, beside what the caller does."""
        started, future = self._loop.ahead_s, Future()
        future.set_result(call(*args))
        ends_at, self._loop.ahead_s = self._loop.clock(), started
        result = future.result

        def wait():
            self._loop.ahead_s += max(0.0, ends_at - self._loop.clock())
            return result()

        future.result = wait
        return future


class EngineTask:
    """`EngineThread`'s twin: same mailbox, same order, a task of the virtual loop.

    Attributes:
        busy_s: Time that the engine spent in steps.
    """

    def __init__(self, engine: Engine, loop) -> None:
        self._engine, self._loop = engine, loop
        self._mail: deque = deque()
        self._posted = asyncio.Event()
        self.busy_s = 0.0
        self._task: asyncio.Task | None = None

    def start(self) -> None:
        self._task = self._loop.create_task(self._run())
        self._task.add_done_callback(self._ended)

    def stop(self) -> None:
        self._task.cancel()

    def post(self, call) -> None:
        self._mail.append(call)
        self._posted.set()

    def ask(self, call) -> Future:
        future: Future = Future()

        def answer(engine) -> None:
            try:
                future.set_result(call(engine))
            except Exception as error:  # noqa: BLE001 - the asker gets it, whatever it is
                future.set_exception(error)

        self.post(answer)
        return future

    def _ended(self, task: asyncio.Task) -> None:
        """An engine that failed ends the simulation: devices would ping it for ever."""
        if not task.cancelled() and task.exception() is not None:
            self._loop.call_exception_handler({"message": "the engine failed", "exception": task.exception()})
            self._loop.stop()

    async def _run(self) -> None:
        while True:
            self._posted.clear()
            while self._mail:
                self._mail.popleft()(self._engine)
            if self._engine.step():
                taken_s, self._loop.ahead_s = self._loop.ahead_s, 0.0
                self.busy_s += taken_s
                await asyncio.sleep(taken_s)
            else:
                assert self._loop.ahead_s == 0.0
                wait_s = max(_LEAST_WAIT_S, min(1.0, self._engine.idle_until() - self._loop.clock()))
                try:
                    async with asyncio.timeout(wait_s):
                        await self._posted.wait()
                except TimeoutError:
                    pass
