"""Texts that a model writes itself, and what the target would have said at each place of them.

Shards made here are what a draft is distilled from. `teacher` always scores; the writer is the target (off-policy) or
the draft itself (on-policy: GKD, arXiv 2306.13649; DistillSpec, arXiv 2310.08461).
"""

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from outrider_cloud.train.loop.losses import chosen_logits, positions
from outrider_cloud.train.loop.meter import Meter, note, progress_bar
from outrider_cloud.train.texts.batches import Batch
from outrider_cloud.train.texts.chat import Example
from outrider_cloud.train.texts.corpus import stable_hash
from outrider_cloud.train.texts.shards import Shard, ShardWriter, is_finished

_SCORED_TOKENS = 8192


@dataclass(frozen=True)
class Writing:
    """How texts are written.

    Attributes:
        temperatures: Taken in turn, text by text; those that devices will ask for.
        most: Longest continuation, in tokens.
        longest: Longest text, prompt included.
        rows: Texts written at once.
        context_share: Of the prompt's tokens, how many are learned besides the continuation's.
        opening: First tokens, chosen at temperature 1 or more, so that cool texts differ where every prompt
            is the same.
    """

    temperatures: tuple[float, ...] = (0.0, 0.7, 1.0)
    most: int = 96
    longest: int = 448
    rows: int = 96
    context_share: float = 0.1
    opening: int = 0

    def __post_init__(self) -> None:
        if not self.temperatures or not all(0 <= each < math.inf for each in self.temperatures):
            raise ValueError(f"temperatures are {list(self.temperatures)}: at least one, each from 0 on")
        if min(self.most, self.rows) < 1 or self.opening < 0 or not 0 <= self.context_share <= 1:
            raise ValueError(
                f"most {self.most} and rows {self.rows} are at least 1, opening {self.opening} from 0 on, "
                f"context_share {self.context_share} from 0 to 1"
            )


@torch.no_grad()
def write_texts(
    model: nn.Module, prompts: Sequence[Sequence[int]], end: Iterable[int], writing: Writing, seed: int,
    tick: Callable[[int, int], None] = lambda _texts, _tokens: None,
) -> list[list[int]]:  # fmt: skip
    """The new tokens of each prompt, up to and including an end token: a function of the other arguments alone.

    `tick` is called with the numbers of texts and of new tokens whenever some are written.
    """
    results: list[list[int]] = [[] for _ in prompts]
    ends = torch.tensor(sorted(end), dtype=torch.long)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for start in range(0, len(order), writing.rows):
        group = order[start : start + writing.rows]
        _write_group(model, prompts, group, results, ends, writing, stable_hash(seed, start))
        tick(len(group), sum(len(results[i]) for i in group))
    return results


def _write_group(
    model: nn.Module, prompts: Sequence[Sequence[int]], group: list[int], results: list[list[int]],
    ends: Tensor, writing: Writing, seed: int,
) -> None:  # fmt: skip
    hf = cast("Any", model)
    device = hf.device
    width = max(len(prompts[i]) for i in group)
    ids = torch.tensor([[0] * (width - len(prompts[i])) + list(prompts[i]) for i in group], device=device)
    mask = torch.tensor([[0] * (width - len(prompts[i])) + [1] * len(prompts[i]) for i in group], device=device)
    heat = torch.tensor([writing.temperatures[i % len(writing.temperatures)] for i in group], device=device)[:, None]
    generator = torch.Generator().manual_seed(seed % 2**63)
    room = torch.tensor([min(writing.most, writing.longest - len(prompts[i])) for i in group], device=device)
    running = room > 0
    cache = None
    for index in range(int(room.max())):
        places = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        with torch.autocast(device.type, torch.bfloat16):
            out = hf(
                input_ids=ids, attention_mask=mask, position_ids=places, past_key_values=cache,
                use_cache=True, logits_to_keep=1,
            )  # fmt: skip
        cache, logits = out.past_key_values, out.logits[:, -1].float()
        noise = -torch.empty(logits.shape).exponential_(generator=generator).log().to(device)
        warmth = heat.clamp_min(1) if index < writing.opening else heat
        chosen = torch.where(warmth > 0, logits / warmth.clamp_min(1e-6) + noise, logits).argmax(-1)
        for row, (text, token, going) in enumerate(zip(group, chosen.tolist(), running.tolist(), strict=True)):
            if going:
                results[text].append(token)
                running[row] = index + 1 < room[row]
        running &= ~torch.isin(chosen, ends.to(device))
        if not bool(running.any()):
            break
        ids = chosen[:, None]
        mask = torch.cat([mask, torch.ones_like(ids)], 1)


@torch.no_grad()
def likeliest(teacher: nn.Module, examples: Sequence[Example], k: int) -> list[tuple[NDArray[Any], NDArray[Any]]]:
    """Per example, the teacher's k likeliest tokens [learned, k] and their log-probabilities."""
    found: dict[int, tuple[NDArray[Any], NDArray[Any]]] = {}
    order = sorted(range(len(examples)), key=lambda i: len(examples[i].ids))
    device = cast("Any", teacher).device
    for group in _groups(order, [len(example.ids) for example in examples]):
        batch = _padded([examples[i] for i in group]).to(device)
        rows, columns, _ = positions(batch)
        logs = chosen_logits(teacher, batch, rows, columns).float().log_softmax(-1)
        values, ids = (part.cpu().numpy() for part in logs.topk(min(k, logs.shape[-1])))
        counts = [int(examples[i].learn[1:].sum()) for i in group]
        cuts = np.cumsum(counts)[:-1]
        for index, some_ids, some in zip(group, np.split(ids, cuts), np.split(values, cuts), strict=True):
            found[index] = some_ids, some
    return [found[i] for i in range(len(examples))]


def _groups(order: list[int], lengths: list[int]) -> Iterator[list[int]]:
    group: list[int] = []
    for index in order:
        if group and (len(group) + 1) * lengths[index] > _SCORED_TOKENS:
            yield group
            group = []
        group.append(index)
    if group:
        yield group


def _padded(examples: Sequence[Example]) -> Batch:
    longest = max(len(example.ids) for example in examples)
    ids = np.zeros((len(examples), longest), np.int64)
    weight = np.zeros((len(examples), longest), np.float32)
    for row, example in enumerate(examples):
        ids[row, : len(example.ids)] = example.ids
        weight[row, 1 : len(example.ids)] = example.learn[1:]
    return Batch(torch.from_numpy(ids), torch.from_numpy(weight))


def as_example(prompt: Sequence[int], new: Sequence[int], context_share: float, seed: int) -> Example:
    """A prompt and its continuation; the continuation is learned, and a random share of the prompt."""
    ids = np.array([*prompt, *new], np.uint32)
    learn = np.random.default_rng(seed).random(len(ids)) < context_share
    learn[len(prompt) :] = True
    learn[0] = False
    return Example(ids, learn)


def score_into(
    writer: ShardWriter, teacher: nn.Module, examples: Iterable[Example], k: int, at_once: int = 512
) -> None:
    """Score examples and append them to a shard, `at_once` in memory."""
    waiting = iter(examples)
    while part := list(islice(waiting, at_once)):
        for example, (ids, logs) in zip(part, likeliest(teacher, part, k), strict=True):
            writer.add(example, ids, logs)


def sampled_shard(
    folder: Path,
    writers: Sequence[tuple[nn.Module, Sequence[Sequence[int]]]],
    teacher: nn.Module,
    end: Iterable[int],
    writing: Writing,
    *,
    k: int,
    seed: int,
    source: str,
) -> Shard:
    """A shard of texts that each of `writers` wrote after its prompts, scored by the teacher; made once."""
    if not is_finished(folder, source):
        vocabulary = cast("Any", teacher).config.get_text_config().vocab_size
        stops = sorted(end)
        with ShardWriter(folder, vocabulary, source, min(k, vocabulary)) as writer:
            for number, (model, prompts) in enumerate(writers):
                _append(writer, _writing_copy(model), teacher, prompts, stops, writing, k, stable_hash(seed, number))
    return Shard(folder)


def _writing_copy(model: nn.Module) -> nn.Module:
    """The model with weights in bfloat16, cast once instead of in every pass; buffers keep their precision."""
    twin = copy.deepcopy(model).eval().requires_grad_(requires_grad=False)
    for parameter in twin.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    return twin


def _append(
    writer: ShardWriter, model: nn.Module, teacher: nn.Module, prompts: Sequence[Sequence[int]],
    stops: list[int], writing: Writing, k: int, seed: int,
) -> None:  # fmt: skip
    # Long stretches keep the padding small; 8 groups of texts are still little memory.
    stride, meter = writing.rows * 8, Meter()
    with progress_bar(shown=True) as progress:
        bar = progress.add_task("", total=len(prompts), note="")

        def tick(texts: int, tokens: int) -> None:
            meter.add(0.0, tokens)
            progress.update(bar, advance=texts)
            note(progress, bar, f"texts, {meter.take()['tokens_per_s']:.4g} tokens/s")

        for start in range(0, len(prompts), stride):
            part = prompts[start : start + stride]
            texts = write_texts(model, part, stops, writing, stable_hash(seed, start), tick)
            examples = [
                as_example(prompt, new, writing.context_share, stable_hash(seed, start + i) % 2**32)
                for i, (prompt, new) in enumerate(zip(part, texts, strict=True))
                if new
            ]
            score_into(writer, teacher, examples, k)
