"""Drafting ahead: while the target computes a step, the draft model goes on below the drafts that the step runs.

Rules:
    * Rounds run in a helper thread, over growths made before the step; trees are touched between steps only.
    * A round is begun only if it should end before the step does. One that is late is waited for by the next drafting,
      never by a commit.
    * Both models may share a processor. So the first steps go with and without by turns, then one in thirty-two goes
      without, and if steps with a helper turn out longer by more than the rounds that it saves, it is the other way
      round until that changes.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Executor, Future

    from outrider_cloud.drafts.growth import Growth
    from outrider_cloud.drafts.model import GuessModel
    from outrider_shared.calibration import Calibrations

_WIDTH = 2
_PROBE = 32
_KNOWN = 4
_FOLLOW = 0.1


class DraftAhead:
    """One helper's work, a step at a time.

    Args:
        model: The draft model; between `begin` and `gather` the helper's alone.
        calibration: Margin to survival.
        clock: Seconds, monotonic.
        executor: Runs it; by default a thread.

    Attributes:
        rounds: Forwards of the draft model so far.
        useful: Guesses that the log or the trees had use for, so far.
    """

    def __init__(
        self,
        model: GuessModel,
        calibration: Calibrations,
        clock: Callable[[], float] = time.monotonic,
        executor: Executor | None = None,
    ) -> None:
        self._model, self._calibration, self._clock = model, calibration, clock
        self._executor = executor or ThreadPoolExecutor(1, "draft-ahead")
        self._task: Future[None] | None = None
        self._growths: list[Growth] = []
        self._stop = threading.Event()
        self._worth = _Worth()
        self._began: float | None = None
        self._rested: float | None = None
        self.rounds = self.useful = 0

    @property
    def running(self) -> bool:
        """Whether growths are out."""
        return self._task is not None

    def begin(self, growths: Callable[[], list[Growth]], step_s: float) -> None:
        """Start, for a step that should take `step_s`, unless it is this one's turn to go without."""
        assert self._task is None, "what was begun is gathered first"
        self._began = self._clock()
        if not self._worth.turn() or not step_s > self._model.seconds(1):
            return
        self._growths = growths()
        if self._growths:
            self._stop.clear()
            self._rested = None
            until = self._began + step_s - self._model.seconds(len(self._growths))
            self._task = self._executor.submit(self._run, self._growths, until)

    def end(self, *, alike: bool) -> None:
        """The step is over: no further round. `alike`: its time may be compared with others' (no prompts)."""
        self._stop.set()
        self._book()
        if alike and self._began is not None:
            self._worth.step(self._clock() - self._began, helped=self.running)
        self._began = None

    def _book(self) -> None:
        """A session's cloud time counts its share of the helper's, as far as the step's end."""
        if self._task is None or self._began is None:
            return
        now = self._clock()
        worked_s = (now if self._rested is None else min(now, self._rested)) - self._began
        for growth in self._growths:
            growth.session.usage.busy_us += round(1e6 * worked_s / len(self._growths))

    def gather(self) -> None:
        """Hang up what was guessed; waits for a round that still runs.

        Raises:
            Exception: whatever the model threw.
        """
        if self._task is None:
            return
        task, self._task = self._task, None
        task.result()
        used = sum(growth.graft(self._calibration) for growth in self._growths if growth.live)
        self.useful += used
        self._worth.saved(used / len(self._growths) * self._model.seconds(len(self._growths)))

    def _run(self, growths: Sequence[Growth], until: float) -> None:
        try:
            self._guess(growths, until)
        finally:
            self._rested = self._clock()

    def _guess(self, growths: Sequence[Growth], until: float) -> None:
        while not self._stop.is_set() and self._clock() <= until:
            asking = [growth for growth in growths if growth.reach > 0.0]
            if not asking:
                return
            self.rounds += 1
            for growth, guess in zip(asking, self._model.guess([g.ask() for g in asking], _WIDTH), strict=True):
                growth.take(guess, self._calibration.survival_of)


class _Worth:
    """Whether steps with a helper cost less than it saves; averages of both kinds of steps."""

    def __init__(self) -> None:
        self._turns = 0
        self._steps = [0, 0]
        self._mean_s = [0.0, 0.0]
        self._saved_s = 0.0

    def turn(self) -> bool:
        """Whether the next step has a helper."""
        self._turns += 1
        if min(self._steps) < _KNOWN:
            return self._steps[True] <= self._steps[False]
        return (self._turns % _PROBE != 0) == self._pays

    def step(self, taken_s: float, *, helped: bool) -> None:
        """A step took that long."""
        self._steps[helped] += 1
        weight = max(_FOLLOW, 1.0 / self._steps[helped])
        self._mean_s[helped] += weight * (taken_s - self._mean_s[helped])

    def saved(self, seconds: float) -> None:
        """A helper's rounds would have taken the engine that long."""
        self._saved_s += _FOLLOW * (seconds - self._saved_s)

    @property
    def _pays(self) -> bool:
        return self._mean_s[True] - self._mean_s[False] <= self._saved_s
