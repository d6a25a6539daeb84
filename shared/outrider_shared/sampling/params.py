"""Sampling parameters, validated once and equal on both sides."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from outrider_shared.errors import ParameterError

MAX_TEMPERATURE = 100.0
MAX_TOP_K = 1 << 31


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is chosen. The filters apply in the order of the fields.

    Reals are rounded to float32 on construction: that is how they travel, so both sides compute with the same bits.

    Attributes:
        temperature: Divides the logits; 0 is greedy decoding. At most 100.
        top_k: Keep the k largest logits; 0 keeps all.
        top_p: Keep the smallest set of most likely tokens whose mass reaches p, in (0, 1].
        min_p: Keep tokens at least this fraction as likely as the likeliest, in [0, 1].
        seed: Key of the noise, an unsigned 64-bit integer.

    Raises:
        ParameterError: if a value is out of its range or not a finite number.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("temperature", "top_p", "min_p"):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not math.isfinite(value):
                raise ParameterError(f"{name} is {value!r}", hint="it must be a finite number")
        _require(
            0.0 <= self.temperature <= MAX_TEMPERATURE, "temperature", self.temperature, "in [0, 100]; 0 is greedy"
        )
        _require(0 <= self.top_k <= MAX_TOP_K, "top_k", self.top_k, "0 (off) or a positive integer")
        _require(0.0 < self.top_p <= 1.0, "top_p", self.top_p, "in (0, 1]; 1 is off")
        _require(0.0 <= self.min_p <= 1.0, "min_p", self.min_p, "in [0, 1]; 0 is off")
        _require(0 <= self.seed < 1 << 64, "seed", self.seed, "an unsigned 64-bit integer")
        for name in ("temperature", "top_p", "min_p"):
            object.__setattr__(self, name, float(np.float32(getattr(self, name))))
        if self.top_p == 0.0:
            raise ParameterError("top_p is below the smallest float32", hint="it must be in (0, 1]; 1 is off")

    @property
    def greedy(self) -> bool:
        """Whether the choice is the plain argmax, without noise or filters."""
        return self.temperature == 0.0

    @property
    def filtered(self) -> bool:
        """Whether any of top-k, top-p and min-p can remove a token."""
        return self.top_k > 0 or self.top_p < 1.0 or self.min_p > 0.0


def _require(ok: bool, name: str, value: object, expected: str) -> None:
    if not ok:
        raise ParameterError(f"{name} is {value!r}", hint=f"it must be {expected}")
