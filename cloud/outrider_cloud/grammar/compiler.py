"""Compiles grammars beside the engine, bounded in time, and keeps those that were asked for lately.

A grammar is compiled in a process of its own first (`trial`), which is killed when its time is over; only what ended
there is compiled here. So a schema bomb costs its sender an error, and nobody else more than a place in the queue.
"""

from __future__ import annotations

import asyncio
import json
import os
import queue
import selectors
import subprocess
import sys
import threading
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from outrider_cloud.grammar.language import new_matcher, new_tokenizer
from outrider_cloud.grammar.matcher import Matcher
from outrider_shared.errors import GrammarError, LimitError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from outrider_cloud.model.loading import LoadedModel
    from outrider_shared.grammar import Grammar

_REMEMBERED = 128
_TRIALS = 2
_START_S = 60.0


class GrammarCompiler:
    """Matchers for one model's sessions; `compile` may be called from any thread, and blocks it.

    Args:
        model: The target.
        timeout_s: Most time that one grammar may take to compile, and most time that a session waits for its turn.
    """

    def __init__(self, model: LoadedModel, timeout_s: float = 5.0) -> None:
        self._model = model
        self._timeout_s = timeout_s
        self._threads = ThreadPoolExecutor(2 * _TRIALS, thread_name_prefix="grammar")
        self._tokenizer: Any = None
        self._known: OrderedDict[Grammar, Any] = OrderedDict()
        self._lock = threading.Lock()
        self._trials: queue.SimpleQueue[_Trial] = queue.SimpleQueue()
        for _ in range(_TRIALS):
            self._trials.put(_Trial())

    def compile(self, grammar: Grammar) -> Matcher:
        """A matcher at the start of an answer.

        Raises:
            GrammarError: if the grammar is malformed, not supported, too complex, or takes too long.
            LimitError: if too many others are being compiled.
        """
        with self._lock:
            start = self._known.get(grammar)
            if start is not None:
                self._known.move_to_end(grammar)
        if start is None:
            self._try(grammar)
            start = new_matcher(self._own_tokenizer(), grammar)
            with self._lock:
                self._known[grammar] = start
                if len(self._known) > _REMEMBERED:
                    self._known.popitem(last=False)
        return Matcher(start, self._model.vocabulary)

    async def prepare(self, grammar: Grammar, answer: Sequence[int]) -> Matcher:
        """`compile` off the event loop, and the matcher taken behind what is already committed of an answer.

        Raises:
            GrammarError: as `compile`, or if the answer does not fit the grammar.
            LimitError: as `compile`.
        """

        def run() -> Matcher:
            matcher = self.compile(grammar)
            matcher.follow(answer)
            return matcher

        return await asyncio.get_running_loop().run_in_executor(self._threads, run)

    def close(self) -> None:
        """End the trial processes."""
        self._threads.shutdown(cancel_futures=True)
        while not self._trials.empty():
            self._trials.get().close()

    def _try(self, grammar: Grammar) -> None:
        try:
            trial = self._trials.get(timeout=self._timeout_s)
        except queue.Empty:
            raise LimitError("too many grammars are being compiled", hint="try again later") from None
        try:
            problem = trial.ask(self._head(), grammar, self._timeout_s)
        finally:
            self._trials.put(trial)
        if problem:
            raise GrammarError(problem)

    def _own_tokenizer(self) -> Any:
        with self._lock:
            if self._tokenizer is None:
                head = json.loads(self._head())
                self._tokenizer = new_tokenizer(head["tokenizer"], head["vocabulary"], head["eos"])
            return self._tokenizer

    def _head(self) -> str:
        model = self._model
        return json.dumps({
            "tokenizer": model.tokenizer.to_str(), "vocabulary": model.vocabulary, "eos": sorted(model.eos),
        })  # fmt: skip


class _Trial:
    """One trial process; started when it is needed."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def ask(self, head: str, grammar: Grammar, timeout_s: float) -> str:
        """What is wrong with a grammar; empty if nothing is."""
        process = self._process
        try:
            if process is None or process.poll() is not None:
                process = self._process = self._start(head)
                # The start of Python and the tokenizer do not count.
                self._exchange(process, _PING, _START_S)
            answer = self._exchange(process, {"kind": grammar.kind.value, "text": grammar.text}, timeout_s)
        except OSError:
            answer = f"the {grammar.kind} is too complex: its compiler failed"
        if answer is None:
            self.close()
            return f"the {grammar.kind} is too complex: it was not compiled within {timeout_s:g} s"
        if not answer and process is not None and process.poll() is not None:
            self.close()
            return f"the {grammar.kind} is too complex: its compiler ran out of memory"
        problem: str = json.loads(answer)
        return problem

    def close(self) -> None:
        """End the process, whatever it does."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    @staticmethod
    def _start(head: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "outrider_cloud.grammar.trial"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        )  # fmt: skip
        assert process.stdin is not None
        process.stdin.write(head + "\n")
        return process

    @staticmethod
    def _exchange(process: subprocess.Popen[str], asked: dict[str, str], timeout_s: float) -> str | None:
        """The answer line; empty if the process ended, None if none came in time."""
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(asked) + "\n")
        process.stdin.flush()
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            if not selector.select(timeout_s):
                return None
        return process.stdout.readline()


_PING = {"kind": "json_object", "text": ""}
