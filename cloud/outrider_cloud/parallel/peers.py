"""Keeps all ranks in step: rank 0 tells what it runs, the others run the same rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist

from outrider_cloud.parallel.messages import HEADER, STOP, Step, decode, encode, stop_message
from outrider_shared.errors import InternalError, OutriderError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from outrider_cloud.engine.batch import Batch
    from outrider_cloud.engine.runner import ModelRunner
    from outrider_cloud.parallel.watch import Failure

# Integers of the first broadcast, which holds a whole decoding step; longer messages take a second one.
_FRAME = 4096
# How long after a failed collective the end of its rank may take to be seen.
_SEEN_WITHIN_S = 2.0


class Channel:
    """Messages from rank 0 to all, in order, over the CPU's backend of a process group.

    Args:
        group: None is the default one.
    """

    def __init__(self, group: Any = None) -> None:
        self._group = group
        self._frame = torch.zeros(_FRAME, dtype=torch.int32)

    def send(self, message: NDArray[np.int32]) -> None:
        """To all others."""
        first = message[:_FRAME]
        self._frame.numpy()[: len(first)] = first
        dist.broadcast(self._frame, 0, group=self._group)
        if len(message) > _FRAME:
            dist.broadcast(torch.from_numpy(message[_FRAME:].copy()), 0, group=self._group)

    def receive(self) -> NDArray[np.int32]:
        """The next one, however long it takes."""
        dist.broadcast(self._frame, 0, group=self._group)
        length = int(self._frame[1])
        if length <= _FRAME:
            return self._frame.numpy()[:length].copy()
        rest = torch.empty(length - _FRAME, dtype=torch.int32)
        dist.broadcast(rest, 0, group=self._group)
        return np.concatenate((self._frame.numpy(), rest.numpy()))


class Followers:
    """The other ranks, as rank 0's runner tells them of its steps; see `engine.peers.Peers`.

    Args:
        channel: To them.
        failure: Where their loss is reported.
    """

    def __init__(self, channel: Channel, failure: Failure) -> None:
        self._channel, self._failure = channel, failure
        self._sources: list[int] = []
        self._targets: list[int] = []

    def step(self, batch: Batch, bucket: int, buckets: tuple[int, ...]) -> None:
        """Tell of a step, and of the moves since the last one."""
        if self._failure.reason:
            raise UnavailableError(self._failure.reason, hint="resume at another replica")
        self._channel.send(encode(Step(batch, bucket, tuple(buckets), self._sources, self._targets)))
        self._sources, self._targets = [], []

    def move(self, source: Sequence[int], target: Sequence[int]) -> None:
        """Told with the next step."""
        self._sources += source
        self._targets += target

    def fault(self, error: Exception) -> OutriderError:
        """A rank's loss shows as any error of a collective; the sessions go on elsewhere then."""
        if reason := self._failure.wait(_SEEN_WITHIN_S):
            return UnavailableError(reason, hint="resume at another replica")
        return InternalError(f"the model failed in this step: {error}")

    def stop(self) -> None:
        """Let them end."""
        self._channel.send(stop_message())


def follow(channel: Channel, runner: ModelRunner) -> None:
    """Run what rank 0 runs, until it says to stop."""
    while (message := channel.receive())[0] != STOP:
        assert len(message) >= HEADER
        step = decode(message)
        runner.buckets = step.buckets
        if step.sources:
            runner.move(step.sources, step.targets)
        runner.run(step.batch, step.bucket)
