"""The device's drafter, watched: which passes it made, and what became of its guesses."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from outrider_edge.draft.lookup import LookupDrafter
from outrider_edge.draft.mixed import MixedDrafter
from outrider_shared.drafting.drafter import ModelDrafter
from outrider_shared.drafting.runtime import DEFAULT_CAPACITY, DraftModel, DraftRuntime

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from outrider_shared.calibration import Calibrations
    from outrider_shared.drafting.drafter import Drafter


class CountedRuntime(DraftRuntime):
    """A runtime that counts its passes by their rows.

    Attributes:
        passes: Rows of a pass -> number of such passes; the first pass over a prompt is not among them.
    """

    def __init__(self, model: DraftModel) -> None:
        super().__init__(model, min(model.manifest.architecture.context_length, DEFAULT_CAPACITY))
        self.passes: Counter[int] = Counter()

    def forward(
        self, tokens: Sequence[int], parents: Sequence[int] | None = None, rows: Sequence[int] | None = None
    ) -> NDArray[np.float32]:
        """As the base class."""
        if self.length:
            self.passes[len(tokens)] += 1
        return super().forward(tokens, parents, rows)


def device_drafter(runtime: DraftRuntime, calibration: Calibrations) -> Drafter:
    """The drafter of a device: the model, and prompt lookup where that is trusted more."""
    return MixedDrafter(LookupDrafter(), ModelDrafter(runtime), calibration.survival_of)
