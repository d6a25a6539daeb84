"""Computations over fixed buffers as something that can be repeated cheaply: CUDA graphs, or again and again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import structlog
import torch

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")
_log = structlog.get_logger(__name__)


class Capture(Protocol):
    """Turns a computation over fixed buffers into something that can be repeated cheaply."""

    def __call__(self, compute: Callable[[], T]) -> Callable[[], T]:
        """A function that computes again into the tensors it returned first."""


def eagerly(compute: Callable[[], T]) -> Callable[[], T]:
    """No capture: compute every time, as the host build of the kernels does."""
    return compute


class Uncapturable(Exception):  # noqa: N818 - no fault: the step is computed in another way
    """A computation that no graph can hold; the message is the first line of what CUDA said."""


class Recorder:
    """Records on the thread's current card, all graphs in one pool of memory: after the largest the others fit in.

    So graphs must not run at once, and what one of them returned holds until another one runs: steps on one stream.
    Other threads may use CUDA meanwhile, hence the thread-local mode.
    """

    def __init__(self) -> None:
        self._stream: Any = None
        self._pool: Any = None

    def __call__(self, compute: Callable[[], T]) -> Callable[[], T]:
        """See `Capture`.

        Raises:
            Uncapturable: if it looks at a result on the host, or makes a tensor whose size depends on one.
            torch.OutOfMemoryError: if there is no room for it.
        """
        if self._stream is None:
            self._stream, self._pool = torch.cuda.Stream(), torch.cuda.graph_pool_handle()  # type: ignore[no-untyped-call]
        before = torch.cuda.current_stream()
        self._stream.wait_stream(before)
        with torch.cuda.stream(self._stream):
            for _ in range(2):  # compiles kernels, lets cuBLAS take its workspace on the stream that will be captured
                compute()
        before.wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        try:
            # The outer one: a capture that fails leaves its stream behind as the current one.
            with (
                torch.cuda.stream(before),
                torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"),
            ):
                result = compute()
        except RuntimeError as error:
            first = error.__context__ or error  # that of ending the capture comes on top
            if isinstance(first, torch.OutOfMemoryError):
                raise first from None
            raise Uncapturable(str(first).partition("\n")[0]) from error

        def replay() -> T:
            graph.replay()
            return result

        return replay


class Graphs:
    """Graphs where all processes of a team can record them; what one of them cannot is computed every time by all.

    A step of several ranks has collectives in it, and NCCL takes them as captured by all ranks or by none: a rank that
    replays beside one that launches may wait for ever. So ranks agree on each computation, and all that comes after
    one that was refused is computed every time, too.

    Args:
        agree: Whether something is so for all of them; each asks at the same points. By default there is one.
        record: Records one computation, or raises `Uncapturable`.
    """

    def __init__(self, agree: Callable[[bool], bool] = bool, record: Capture | None = None) -> None:
        self._agree, self._record = agree, record or Recorder()
        self._refused = False

    def __call__(self, compute: Callable[[], T]) -> Callable[[], T]:
        """See `Capture`.

        Raises:
            torch.OutOfMemoryError: if there is no room for it.
        """
        if self._refused:
            return compute
        replay, reason = compute, ""
        try:
            replay = self._record(compute)
        except Uncapturable as error:
            reason = str(error)
        except BaseException:
            self._agree(False)  # the others wait for this rank's word
            raise
        if self._agree(not reason):
            return replay
        self._refused = True
        _log.warning(
            "a step cannot be captured in a CUDA graph: its kernels are launched one by one, which is slower",
            reason=reason or "another rank of this model could not, and all have to do the same",
        )
        return compute
