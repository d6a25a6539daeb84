"""A draft model beside the target: the same paged machinery, one forward for all sessions that are drafted for.

Its KV memory is its own and soft: whoever was drafted for longest ago gives way, and is computed again when needed. It
never takes memory from the target.

    held      tokens whose keys and values are in a session's slots; the first `sure` of them are the log's
    fresh     what a forward adds: the log's new tokens and the path to the tip, usually one or two rows
"""

from __future__ import annotations

import contextlib
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from outrider_cloud.engine.batch import Batch
from outrider_cloud.engine.blocks import BlockPool
from outrider_cloud.kernels.layout import Segment
from outrider_shared.sampling.rule import Guess, guess

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from numpy.typing import NDArray

    from outrider_cloud.engine.config import EngineConfig
    from outrider_cloud.engine.runner import ModelRunner
    from outrider_shared.ids import SessionId
    from outrider_shared.sampling import SamplingParams

_FOLLOW = 0.2
# Rows of a session that a round usually adds; more are a text that was not read yet.
USUAL_ROWS = 4
# Not an answer yet: a part of the text was read, and more is left.
READING = Guess((), (), 0.0)


@dataclass(frozen=True, slots=True)
class Ask:
    """One session's question: what comes after `log` and `tail`?

    Attributes:
        log: Committed tokens; the session's own list, which only ever grows.
        tail: Pending tokens down to the tip.
        params: How the target will choose.
    """

    session_id: SessionId
    log: list[int]
    tail: list[int]
    params: SamplingParams

    def token(self, position: int) -> int:
        """Token at a position of the sequence."""
        return self.log[position] if position < len(self.log) else self.tail[position - len(self.log)]

    @property
    def length(self) -> int:
        """Tokens in all."""
        return len(self.log) + len(self.tail)


@dataclass(slots=True)
class Pace:
    """What a draft model takes these days: for what is usually new, and for a row of a text that was not read yet.

    Attributes:
        usual_s: Of a forward that adds what usually is new; 0 before the first.
        row_s: Of a row of any other; 0 before the first.
    """

    usual_s: float = 0.0
    row_s: float = 0.0

    def note(self, rows: int, asks: int, taken_s: float) -> None:
        """A forward of so many rows for so many questions took that long."""
        if rows <= USUAL_ROWS * asks:
            self.usual_s = _followed(self.usual_s, taken_s)
        else:
            self.row_s = _followed(self.row_s, taken_s / rows)

    def reading_s(self, rows: int) -> float:
        """See `GuessModel`, for a question that takes so many rows."""
        return rows * self.row_s if rows > USUAL_ROWS else 0.0


def _followed(old: float, new: float) -> float:
    return old + (new - old) * (_FOLLOW if old else 1.0)


class GuessModel(Protocol):
    """A draft model, as those who ask see it."""

    def seconds(self, asks: int) -> float:
        """What a round with so many questions takes these days, prompts aside; 0 before the first."""

    def reading_s(self, ask: Ask) -> float:
        """What must be read before this can be answered takes so long; 0 for what usually is new, and if unknown."""

    def guess(self, asks: Sequence[Ask], width: int) -> list[Guess | None]:
        """One guess per question: None where it has nothing to say, `READING` where it must be asked again for it."""

    def forget(self, session_id: SessionId) -> None:
        """Free what is held for a session."""


@dataclass(slots=True)
class _Held:
    """KV of one session."""

    tokens: list[int] = field(default_factory=list)
    sure: int = 0
    blocks: list[int] = field(default_factory=list)
    slots: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))

    def rewind(self, ask: Ask) -> None:
        """Keep the longest prefix that agrees; the last token is always computed: its logits are asked for."""
        common, end = self.sure, min(len(self.tokens), ask.length - 1)
        while common < end and self.tokens[common] == ask.token(common):
            common += 1
        del self.tokens[min(common, end) :]


class DraftModel:
    """Guesses of many sessions in one forward.

    Args:
        runner: The draft model, with its own KV memory.
        config: Of that runner.
        clock: Seconds.
        stream: Entered around each forward, in whichever thread asks for it.
    """

    def __init__(
        self,
        runner: ModelRunner,
        config: EngineConfig,
        clock: Callable[[], float] = time.perf_counter,
        stream: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext,
    ) -> None:
        self._runner, self._config, self._clock, self._stream = runner, config, clock, stream
        self._pool = BlockPool(config.blocks, config.block_size)
        self._held: OrderedDict[SessionId, _Held] = OrderedDict()
        self._pace = Pace()

    def seconds(self, asks: int) -> float:  # noqa: ARG002 - one forward for all
        """See `GuessModel`."""
        return self._pace.usual_s

    def reading_s(self, ask: Ask) -> float:
        """See `GuessModel`."""
        held = self._held.get(ask.session_id)
        return self._pace.reading_s(ask.length - (0 if held is None else len(held.tokens)))

    def guess(self, asks: Sequence[Ask], width: int) -> list[Guess | None]:
        """See `GuessModel`; None where the draft's context or memory ends."""
        started, asked = self._clock(), {ask.session_id for ask in asks}
        batch, answers, left = Batch([], [], [], [], [], []), dict[int, int](), self._config.row_budget
        guesses: list[Guess | None] = [None] * len(asks)
        for index, ask in enumerate(asks):
            held = self._room_for(ask, asked) if left and ask.length <= self._runner.loaded.context_length else None
            if held is None:
                continue
            rows = min(left, ask.length - len(held.tokens))
            left -= rows
            _lay_out(batch, held, ask, rows)
            if len(held.tokens) == ask.length:
                answers[index] = len(batch.sampled)
                batch.sampled.append(len(batch.tokens) - 1)
            else:
                guesses[index] = READING
        if not batch.tokens:
            return guesses
        with self._stream():
            logits = self._runner.run(batch).float().cpu().numpy()
        for index, row in answers.items():
            guesses[index] = guess(logits[row], asks[index].length, asks[index].params, width)
        self._pace.note(len(batch.tokens), len(asks), self._clock() - started)
        return guesses

    def forget(self, session_id: SessionId) -> None:
        """Free a session's memory, if it has any."""
        held = self._held.pop(session_id, None)
        if held is not None:
            self._pool.release(held.blocks)

    def _room_for(self, ask: Ask, asked: set[SessionId]) -> _Held | None:
        """The session's memory, large enough, rewound to what agrees; None if those asked for leave no room."""
        held = self._held.setdefault(ask.session_id, _Held())
        self._held.move_to_end(ask.session_id)
        size = self._config.block_size
        missing = max(0, -(-ask.length // size) - len(held.blocks))
        while self._pool.free < missing:
            oldest = next((s for s in self._held if s not in asked), None)
            if oldest is None:
                return None
            self.forget(oldest)
        if missing:
            blocks = self._pool.allocate(missing)
            held.blocks += blocks
            starts = np.asarray(blocks, np.int64)[:, None] * size
            held.slots = np.concatenate((held.slots, (starts + np.arange(size)).reshape(-1)))
        held.rewind(ask)
        return held


def _lay_out(batch: Batch, held: _Held, ask: Ask, rows: int) -> None:
    first = len(held.tokens)
    fresh = [ask.token(position) for position in range(first, first + rows)]
    batch.tokens.extend(fresh)
    batch.positions.extend(range(first, first + rows))
    batch.segments.append(Segment(held.slots[:first], held.slots[first : first + rows], list(range(-1, rows - 1))))
    held.tokens += fresh
    held.sure = min(len(held.tokens), len(ask.log))
