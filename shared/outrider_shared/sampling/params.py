"""Sampling parameters, validated once and equal on both sides."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from outrider_shared.errors import ParameterError

MAX_TEMPERATURE = 100.0
MAX_TOP_K = 1 << 31
MAX_PENALTY = 2.0
MAX_REPETITION = 10.0
MAX_BIAS = 100.0
MAX_BIASES = 1024
_REALS = ("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty")


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is chosen.

    Penalties and bias change the logits (`outrider_shared.sampling.shape`) before the temperature; then the filters
    apply in the order of the fields. Reals are rounded to float32 on construction: that is how they travel, so both
    sides compute with the same bits.

    Attributes:
        temperature: Divides the logits; 0 is greedy decoding. At most 100.
        top_k: Keep the k largest logits; 0 keeps all.
        top_p: Keep the smallest set of most likely tokens whose mass reaches p, in (0, 1].
        min_p: Keep tokens at least this fraction as likely as the likeliest, in [0, 1].
        seed: Key of the noise, an unsigned 64-bit integer.
        presence_penalty: Taken once off the logit of every token that the answer has so far, in [-2, 2].
        frequency_penalty: Taken off as often as the answer has the token, in [-2, 2].
        repetition_penalty: Divides positive logits and multiplies others of every token of prompt and answer, in
            (0, 10]; 1 is off (Keskar et al., arXiv 1909.05858).
        logit_bias: Added to the logits of chosen tokens: a mapping or pairs of (token id, bias in [-100, 100]), at most
            1024; kept as pairs by ascending id.
        answer_start: Index in the log where the answer begins. Each side's session sets it; it does not travel.

    Raises:
        ParameterError: if a value is out of its range or not a finite number.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    answer_start: int = 0

    def __post_init__(self) -> None:
        for name in _REALS:
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not math.isfinite(value):
                raise ParameterError(f"{name} is {value!r}", hint="it must be a finite number", param=name)
        _require(
            0.0 <= self.temperature <= MAX_TEMPERATURE, "temperature", self.temperature, "in [0, 100]; 0 is greedy"
        )
        _require(0 <= self.top_k <= MAX_TOP_K, "top_k", self.top_k, "0 (off) or a positive integer")
        _require(0.0 < self.top_p <= 1.0, "top_p", self.top_p, "in (0, 1]; 1 is off")
        _require(0.0 <= self.min_p <= 1.0, "min_p", self.min_p, "in [0, 1]; 0 is off")
        _require(0 <= self.seed < 1 << 64, "seed", self.seed, "an unsigned 64-bit integer")
        for name in ("presence_penalty", "frequency_penalty"):
            _require(abs(getattr(self, name)) <= MAX_PENALTY, name, getattr(self, name), "in [-2, 2]; 0 is off")
        repetition = self.repetition_penalty
        _require(1e-6 <= repetition <= MAX_REPETITION, "repetition_penalty", repetition, "in (0, 10]; 1 is off")
        for name in _REALS:
            object.__setattr__(self, name, float(np.float32(getattr(self, name))))
        if self.logit_bias:
            object.__setattr__(self, "logit_bias", _biases(self.logit_bias))
        if self.top_p == 0.0:
            raise ParameterError(
                "top_p is below the smallest float32", hint="it must be in (0, 1]; 1 is off", param="top_p"
            )

    @property
    def greedy(self) -> bool:
        """Whether the choice is the plain argmax, without noise or filters."""
        return self.temperature == 0.0

    @property
    def filtered(self) -> bool:
        """Whether any of top-k, top-p and min-p can remove a token."""
        return self.top_k > 0 or self.top_p < 1.0 or self.min_p > 0.0

    @property
    def penalised(self) -> bool:
        """Whether the choice depends on the tokens before it in other ways than through the logits."""
        return self.presence_penalty != 0.0 or self.frequency_penalty != 0.0 or self.repetition_penalty != 1.0

    @property
    def shaped(self) -> bool:
        """Whether penalties or a bias change the logits."""
        return self.penalised or bool(self.logit_bias)


def _require(ok: bool, name: str, value: object, expected: str) -> None:
    if not ok:
        raise ParameterError(f"{name} is {value!r}", hint=f"it must be {expected}", param=name)


def _biases(given: Mapping[int, float] | tuple[tuple[int, float], ...]) -> tuple[tuple[int, float], ...]:
    pairs = sorted(given.items() if isinstance(given, Mapping) else given)
    _require(len(pairs) <= MAX_BIASES, "logit_bias", f"for {len(pairs)} tokens", f"for at most {MAX_BIASES}")
    for (token, bias), (after, _) in zip(pairs, [*pairs[1:], (-1, 0.0)], strict=True):
        ok = isinstance(token, int) and 0 <= token < 1 << 31 and isinstance(bias, (int, float))
        _require(ok and token != after, "logit_bias", token, "one number for each token id")
        _require(abs(bias) <= MAX_BIAS, "logit_bias", bias, "in [-100, 100] for every token")
    return tuple((token, float(np.float32(bias))) for token, bias in pairs)
