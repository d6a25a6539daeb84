"""Continuations of many prompts at once, with noise known per position, so that two models can be given the same.

The rule is Gumbel-max: the next token is the argmax of logits / T + noise (plain argmax at T = 0). The noise here comes
from torch's generator, not from the product's Philox: it serves for estimates, and never reaches the wire.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from outrider_cloud.train.corpus import stable_hash


def gumbel(seed: int, row: int, position: int, vocabulary: int) -> Tensor:
    """Noise [vocabulary] of one position of one text."""
    generator = torch.Generator().manual_seed(stable_hash(seed, row, position) % 2**63)
    return -torch.empty(vocabulary).exponential_(generator=generator).log()


def perturbed(logits: Tensor, temperature: float, seed: int, rows: Sequence[int], position: Sequence[int]) -> Tensor:
    """Scores [n, vocabulary] whose argmax is the choice, of float32 logits [n, vocabulary], one place per line."""
    if temperature == 0:
        return logits
    noise = [gumbel(seed, row, place, logits.shape[-1]) for row, place in zip(rows, position, strict=True)]
    return logits / temperature + torch.stack(noise)


@torch.no_grad()
def continue_texts(
    model: nn.Module,
    prompts: list[list[int]],
    end: int,
    temperature: float = 0.0,
    seed: int = 0,
    most: int = 96,
    rows_at_once: int = 64,
) -> list[list[int]]:
    """The new tokens of each prompt, up to and including `end`; noise is by the index in the whole text."""
    results: list[list[int]] = [[] for _ in prompts]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for start in range(0, len(order), rows_at_once):
        group = order[start : start + rows_at_once]
        _continue_group(model, prompts, group, results, end, temperature, seed, most)
    return results


def _continue_group(
    model: nn.Module, prompts: list[list[int]], group: list[int], results: list[list[int]],
    end: int, temperature: float, seed: int, most: int,
) -> None:  # fmt: skip
    width = max(len(prompts[i]) for i in group)
    ids = torch.tensor([[0] * (width - len(prompts[i])) + prompts[i] for i in group])
    mask = torch.tensor([[0] * (width - len(prompts[i])) + [1] * len(prompts[i]) for i in group])
    cache, running = DynamicCache(), set(group)
    for index in range(most):
        places = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=places,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits[:, -1]
        scores = perturbed(logits.float(), temperature, seed, group, [len(prompts[i]) + index for i in group])
        chosen = scores.argmax(-1)
        for row, token in zip(group, chosen.tolist(), strict=True):
            if row in running:
                results[row].append(token)
                if token == end:
                    running.discard(row)
        if not running:
            break
        ids = chosen[:, None]
        mask = torch.cat([mask, torch.ones_like(ids)], 1)
