"""Other processes that compute the same steps, as a runner sees them; `outrider_cloud.parallel` has the real ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from outrider_shared.errors import InternalError, OutriderError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from outrider_cloud.engine.batch import Batch


class Peers(Protocol):
    """Who must be told of what this runner does."""

    def step(self, batch: Batch, bucket: int, buckets: tuple[int, ...]) -> None:
        """The runner is about to run a batch, padded to `bucket` or by `buckets`.

        Raises:
            UnavailableError: if one of them is lost.
        """

    def move(self, source: Sequence[int], target: Sequence[int]) -> None:
        """Tokens of its KV memory were copied."""

    def fault(self, error: Exception) -> OutriderError:
        """What the sessions of a step are told that failed with an error."""


class Alone:
    """There are none."""

    def step(self, batch: Batch, bucket: int, buckets: tuple[int, ...]) -> None:
        """Nobody to tell."""

    def move(self, source: Sequence[int], target: Sequence[int]) -> None:
        """Nobody to tell."""

    def fault(self, error: Exception) -> OutriderError:
        """The model's fault."""
        return InternalError(f"the model failed in this step: {error}")
