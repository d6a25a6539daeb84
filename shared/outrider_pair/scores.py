"""What a draft knows at every place of the target's own texts: one pass over each, the same noise, no cloud.

Under the shared noise a chain's token is accepted exactly if the draft, given the target's text so far, chooses what
the target chose; so each place tells whether a guess would have been right, and how sure the draft was of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from outrider_shared.drafting.runtime import MAX_ROWS
from outrider_shared.sampling.rule import guess

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from outrider_shared.drafting.runtime import DraftRuntime
    from outrider_shared.sampling import SamplingParams

_NEVER_SURER = 30.0  # nats; the margin of a guess with one possible token is infinite


@dataclass(frozen=True)
class Scores:
    """Places of one answer; all arrays are [places].

    Attributes:
        hit: Whether the draft's best guess is the target's choice; `hit2` whether one of its two best is.
        margin: Gap between the two best perturbed logits, nats.
        probability: Of the best guess under the draft, at this temperature (at 1 for greedy).
        entropy: Of the draft's distribution, nats, at this temperature.
        tv: Total variation distance between the two distributions at this temperature; at 0, whether they disagree.
    """

    hit: NDArray[np.bool_]
    hit2: NDArray[np.bool_]
    margin: NDArray[np.float64]
    probability: NDArray[np.float64]
    entropy: NDArray[np.float64]
    tv: NDArray[np.float64]


def draft_logits(runtime: DraftRuntime, tokens: Sequence[int], first: int) -> NDArray[np.float32]:
    """Logits [len(tokens) - first, vocab] for the places from `first` on, each given all tokens before it."""
    runtime.rewind(0)
    parts = []
    for start in range(0, len(tokens) - 1, MAX_ROWS):
        chunk = tokens[start : min(start + MAX_ROWS, len(tokens) - 1)]
        asked = [i for i in range(len(chunk)) if start + i >= first - 1]
        logits = runtime.forward(chunk, rows=asked or (0,))
        if asked:
            parts.append(logits.copy())
    return np.concatenate(parts)


@torch.inference_mode()
def target_logits(model: torch.nn.Module, tokens: Sequence[int], first: int) -> NDArray[np.float32]:
    """Likewise of a Hugging Face model."""
    keep = len(tokens) - first + 1
    out = model(input_ids=torch.tensor([list(tokens)]), use_cache=False, logits_to_keep=keep)
    logits: NDArray[np.float32] = out.logits[0, :-1].float().numpy()
    return logits


def score(
    draft: NDArray[np.float32],
    target: NDArray[np.float32],
    tokens: Sequence[int],
    first: int,
    params: SamplingParams,
) -> Scores:
    """Compare both logits [places, vocab] along the target's tokens from position `first` on."""
    temperature = params.temperature or 1.0
    mine, theirs = softmax(draft, temperature), softmax(target, temperature)
    guesses = [guess(row, first + i, params, 2) for i, row in enumerate(draft)]
    chosen = tokens[first:]
    entropy = -(mine * np.log(np.maximum(mine, 1e-30))).sum(-1)
    apart = np.abs(mine - theirs).sum(-1) / 2
    if params.greedy:
        apart = (draft.argmax(-1) != target.argmax(-1)).astype(np.float64)
    return Scores(
        hit=np.array([g.tokens[0] == token for g, token in zip(guesses, chosen, strict=True)]),
        hit2=np.array([token in g.tokens for g, token in zip(guesses, chosen, strict=True)]),
        margin=np.array([min(g.margin, _NEVER_SURER) for g in guesses]),
        probability=np.array([mine[i, g.tokens[0]] for i, g in enumerate(guesses)]),
        entropy=entropy,
        tv=apart,
    )


def softmax(logits: NDArray[np.float32], temperature: float = 1.0) -> NDArray[np.float64]:
    """[rows, vocab] float64."""
    scaled = logits.astype(np.float64) / temperature
    powers = np.exp(scaled - scaled.max(-1, keepdims=True))
    result: NDArray[np.float64] = powers / powers.sum(-1, keepdims=True)
    return result


def bits(logits: NDArray[np.float32], tokens: Sequence[int]) -> float:
    """Bits that the tokens [places] cost under logits [places, vocab]."""
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    own = shifted[np.arange(len(tokens)), np.asarray(tokens)] - np.log(np.exp(shifted).sum(-1))
    return float(-own.sum() / np.log(2))
