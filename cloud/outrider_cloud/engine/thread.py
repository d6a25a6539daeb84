"""Runs the engine in a thread of its own, so that a step never blocks an event loop.

All calls reach the engine through one mailbox and run in the order posted: between steps, and while a device computes
one and leaves the host free.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from concurrent.futures import Future, InvalidStateError
from typing import TYPE_CHECKING, Any, TypeVar

import structlog

from outrider_shared.errors import UnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable

    from outrider_cloud.engine.engine import Engine

T = TypeVar("T")
_log = structlog.get_logger(__name__)
_LONGEST_WAIT_S = 1.0
_STOPPED = "the engine has stopped"
# While a device is at a step, mail is taken in for this part of the time that one takes, looking up so often. Then the
# host waits for the device alone: the answer to a step's end must not wait for a look.
_BESIDE = 0.6
_LOOK_S = 0.0002


class EngineThread:
    """The engine's owner: nothing else touches it after `start`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._mailbox: queue.SimpleQueue[Callable[[Engine], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._stopped = threading.Event()
        self._asked: set[Future[Any]] = set()

    def start(self) -> None:
        """Begin to run steps."""
        self._thread.start()

    def stop(self) -> None:
        """Finish the step at hand, then end; open sessions get no further events."""
        self._mailbox.put(None)
        if self._thread.is_alive():
            self._thread.join()

    def post(self, call: Callable[[Engine], None]) -> None:
        """Run `call` between two steps, or beside one; its errors are logged."""
        self._mailbox.put(call)

    def ask(self, call: Callable[[Engine], T]) -> Future[T]:
        """As `post`, unless the future is cancelled before; it has the call's result or its error.

        Raises:
            UnavailableError: if the engine has ended.
        """
        future: Future[T] = Future()
        if self._stopped.is_set():
            raise UnavailableError(_STOPPED)

        def answer(engine: Engine) -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(call(engine))
            except Exception as error:  # noqa: BLE001 - the asker gets it, whatever it is
                future.set_exception(error)

        self._asked.add(future)
        future.add_done_callback(self._asked.discard)
        self._mailbox.put(answer)
        if self._stopped.is_set():
            self._refuse_asked()
        return future

    def _run(self) -> None:
        busy = True
        while self._take_mail(wait_s=0.0 if busy else self._idle_s()):
            try:
                busy = self._engine.step(self._beside)
            except Exception:  # noqa: BLE001 - logged
                # The engine contains the faults of sessions and models; this is a bug of ours, and must not spin.
                _log.exception("engine step failed")
                time.sleep(0.1)
        self._stopped.set()
        self._refuse_asked()

    def _refuse_asked(self) -> None:
        """Answer those who asked behind the stop; nobody else will."""
        for future in list(self._asked):
            with contextlib.suppress(InvalidStateError):
                future.set_exception(UnavailableError(_STOPPED))

    def _idle_s(self) -> float:
        return min(_LONGEST_WAIT_S, max(0.0, self._engine.idle_until() - time.monotonic()))

    def _take_mail(self, wait_s: float) -> bool:
        """Run what is in the mailbox, waiting for the first at most `wait_s`; False when told to end."""
        try:
            call = self._mailbox.get(timeout=wait_s) if wait_s > 0 else self._mailbox.get_nowait()
            while call is not None:
                self._guard(call)
                call = self._mailbox.get_nowait()
        except queue.Empty:
            return True
        return False

    def _beside(self, busy: Callable[[], bool]) -> None:
        """While a device computes: run what comes in."""
        until = time.monotonic() + _BESIDE * self._engine.stats.step_s
        going_on = self._take_mail(wait_s=0.0)
        while going_on and busy() and time.monotonic() < until:
            going_on = self._take_mail(wait_s=_LOOK_S)
        if not going_on:
            self._mailbox.put(None)  # the step at hand is finished first

    def _guard(self, call: Callable[[Engine], None]) -> None:
        try:
            call(self._engine)
        except Exception:  # noqa: BLE001 - logged; one bad call must not end the engine
            _log.exception("engine call failed")
