"""How far a graph is from its model on text that the model samples: what choices of precision are measured by."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from outrider_cloud.pack.passes import Passes
from outrider_cloud.pack.reference import divergence, load_model, sample

if TYPE_CHECKING:
    from pathlib import Path

    from outrider_shared.packs import Architecture

_TEXTS, _PLACES, _SEED = 8, 96, 1  # other texts than those of the export's check


class Calibration:
    """Texts of a model folder, and the model's logits on them."""

    def __init__(self, source: Path, architecture: Architecture) -> None:
        self._architecture = architecture
        count = min(_PLACES, architecture.context_length - 1)
        self._texts, self._wanted = sample(load_model(source), _TEXTS, count, _SEED)

    def cost(self, graph: Path) -> float:
        """Mean divergence of an opened graph from the model, nats a place."""
        passes = Passes(graph, self._architecture)
        got = [passes.run(text, 0) for text in self._texts]
        return divergence(np.concatenate(self._wanted), np.concatenate(got))
