"""What a step commits, measured under the real coupling: the product's noise, seeds and rule, chains and trees.

A draft's node is accepted exactly if it is what the target chose, and those choices do not depend on drafts. So one
pass of the draft over the target's own texts tells every acceptance of every chain and tree: at each position, the
rank that the draft's perturbed scores give to the target's choice. What this leaves out: drafts that stop early for
want of confidence, and drafts that come too late; `outrider demo` and `outrider bench link` have both.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from outrider_shared.sampling.philox_torch import gumbel_rows

CHAIN, DEEP, WIDTH = 4, 8, 2
_RESAMPLES = 1000


@dataclass(frozen=True)
class Answers:
    """The target's own texts at one temperature.

    Attributes:
        temperature: Of sampling; 0 is greedy.
        prompts: Token ids.
        texts: What the target chose after each, its end token included.
        seeds: Of the noise, one a text.
    """

    temperature: float
    prompts: list[list[int]]
    texts: list[list[int]]
    seeds: list[int]


def scores(logits: Tensor, temperature: float, seeds: Sequence[int], places: Sequence[int]) -> Tensor:
    """Perturbed scores [n, vocabulary] of float32 logits, by the rule that cloud and edge share."""
    if temperature == 0:
        return logits
    noise = gumbel_rows(list(seeds), list(places), logits.shape[-1], logits.device)
    return (logits - logits.amax(-1, keepdim=True)) / temperature + noise


@torch.no_grad()
def answers_of(
    target: nn.Module, prompts: Sequence[Sequence[int]], ends: Iterable[int], temperature: float, most: int = 96
) -> Answers:
    """Let the target answer each prompt by itself, in float32."""
    hf, stops = cast("Any", target), set(ends)
    texts: list[list[int]] = []
    for row, prompt in enumerate(prompts):
        ids, cache, text = torch.tensor([list(prompt)]), None, list[int]()
        while len(text) < most:
            out = hf(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache, place = out.past_key_values, len(prompt) + len(text)
            text.append(int(scores(out.logits[:, -1].float(), temperature, [row], [place]).argmax()))
            if text[-1] in stops:
                break
            ids = torch.tensor([[text[-1]]])
        texts.append(text)
    return Answers(temperature, [list(p) for p in prompts], texts, list(range(len(prompts))))


@torch.no_grad()
def ranks(draft: nn.Module, answers: Answers) -> list[NDArray[np.int64]]:
    """Per text [tokens], how many of the draft's candidates stand before the target's choice; 0 is the draft's own."""
    found = []
    for prompt, text, seed in zip(answers.prompts, answers.texts, answers.seeds, strict=True):
        whole = torch.tensor([prompt + text])
        logits = cast("Any", draft)(input_ids=whole, use_cache=False).logits[0, len(prompt) - 1 : -1].float()
        places = range(len(prompt), len(prompt) + len(text))
        perturbed = scores(logits, answers.temperature, [seed] * len(text), list(places))
        taken = perturbed.gather(-1, torch.tensor(text)[:, None])
        found.append((perturbed > taken).sum(-1).numpy())
    return found


def walk(found: NDArray[np.int64], depth: int, width: int) -> tuple[int, int]:
    """(tokens, steps) of one text with trees of a chain of `depth` and `width - 1` sibling leaves at each level.

    A step commits its accepted run, a sibling if one is right where the chain is not, and the target's own token.
    """
    at = steps = 0
    while at < len(found):
        run = 0
        while run < depth and at + run < len(found) and found[at + run] == 0:
            run += 1
        if run < depth and at + run < len(found) and found[at + run] < width:
            run += 1
        at += run + 1
        steps += 1
    return len(found), steps


def per_step(found: Sequence[NDArray[np.int64]], depth: int, width: int, seed: int = 0) -> dict[str, float]:
    """Committed tokens per step over all texts, with a bootstrap interval of 95 % over texts."""
    pairs = np.array([walk(text, depth, width) for text in found], np.float64)  # [texts, 2]
    picks = np.random.default_rng(seed).integers(0, len(pairs), (_RESAMPLES, len(pairs)))
    sums = pairs[picks].sum(1)
    low, high = np.percentile(sums[:, 0] / np.maximum(1, sums[:, 1]), (2.5, 97.5))
    tokens, steps = pairs.sum(0)
    return {"tokens_per_step": tokens / max(1.0, steps), "low": float(low), "high": float(high)}


def acceptance(draft: nn.Module, answers: Answers) -> dict[str, Any]:
    """The figures of one draft at one temperature."""
    draft.eval()
    found = ranks(draft, answers)
    flat = np.concatenate(found)
    return {
        "temperature": answers.temperature,
        "tokens": len(flat),
        "accepted": float((flat == 0).mean()),
        "among_two": float((flat < WIDTH).mean()),
        "chain": per_step(found, CHAIN, 1),
        "deep_chain": per_step(found, DEEP, 1),
        "tree": per_step(found, DEEP, WIDTH),
    }
