"""The exported graph, run with plain arrays: the whole cache goes in and comes out, which is slow and simple."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from outrider_shared.packs import Architecture

MASKED = -1e9
_SLOTS = 256


class Passes:
    """An opened graph with a cache of at most 256 slots."""

    def __init__(self, graph: Path, architecture: Architecture) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
        shape = (1, architecture.kv_heads, min(architecture.context_length, _SLOTS), architecture.head_dim)
        sides = [f"{layer}.{side}" for layer in range(architecture.layers) for side in ("key", "value")]
        self._cache = {side: np.zeros(shape, np.float32) for side in sides}

    def run(self, tokens: Sequence[int], start: int, parents: Sequence[int] | None = None) -> NDArray[np.float32]:
        """Logits [count, vocab_size] of `tokens` in slots start, start + 1, ...; slots below `start` are a chain."""
        count, total = len(tokens), start + len(tokens)
        positions, bias = np.arange(start, total), np.zeros((count, total), np.float32)
        if parents is not None:
            bias[:, start:] = MASKED
            for row, parent in enumerate(parents):
                if parent >= start:
                    bias[row] = bias[parent - start]
                bias[row, start + row] = 0
                positions[row] = 1 + (positions[parent - start] if parent >= start else parent)
        feeds: dict[str, Any] = {
            "input_ids": np.array([tokens], np.int64),
            "position_ids": positions[None],
            "attention_bias": bias[None, None],
            "seqlens_k": np.array([total - 1], np.int32),
            "total_sequence_length": np.array(total, np.int32),
            "logits_rows": np.arange(count),
            **{f"past_key_values.{side}": array for side, array in self._cache.items()},
        }
        logits, *present = self._session.run(["logits", *(f"present.{side}" for side in self._cache)], feeds)
        self._cache = dict(zip(self._cache, present, strict=True))
        return np.asarray(logits[0], np.float32)
