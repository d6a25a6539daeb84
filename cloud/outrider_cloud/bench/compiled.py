"""A step by `torch.compile`, as a baseline of ours: transformers' forward over a static cache and the greedy choice.

Weights and prompts are those of the engine's step, so the cache holds the same keys and values to a rounding. What is
timed is what the engine's step is: from the call to the tokens on the host. On a card it is compiled with
`reduce-overhead`, which captures CUDA graphs; on a CPU as by default.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import torch
from transformers import StaticCache

from outrider_cloud.bench.stopwatch import Spread
from outrider_cloud.bench.transformers_peers import sdpa

if TYPE_CHECKING:
    from collections.abc import Sequence

    from outrider_cloud.model.loading import LoadedModel

# Before those that count: the first compiles, the second and third are what captures need.
_LEAST_WARMUP = 3


def compiled_step(
    loaded: LoadedModel, prompts: Sequence[Sequence[int]], rows: int, warmup: int, repeats: int
) -> dict[str, Any]:
    """Times of steps of `rows` rows for each prompt, behind it.

    Returns:
        `median_us` and its like, `compile_s`, and the share of rows that choose what the forward chooses that is not
        compiled; or `missing`, a sentence, where it cannot be compiled.
    """
    step = _Step(loaded, prompts, rows)
    try:
        with torch.no_grad(), sdpa(loaded.model):
            step.fill(prompts)
            plain = step.tokens(step.forward)
            compiled = torch.compile(step.forward, mode="reduce-overhead" if step.on_card else None, dynamic=False)
            started = time.perf_counter()
            first = step.tokens(compiled)
            compile_s = time.perf_counter() - started
            seconds = [step.seconds(compiled) for _ in range(max(warmup, _LEAST_WARMUP) + repeats)][-repeats:]
    except Exception as error:  # noqa: BLE001 - whatever a compiler lacks here is told, and ours goes on
        lines = str(error).strip().splitlines()
        return {"missing": f"torch.compile cannot compile here: {type(error).__name__}: {lines[0] if lines else ''}"}
    finally:
        torch._dynamo.reset()  # noqa: SLF001 - or its graphs hold their memory
    same = sum(a == b for a, b in zip(first, plain, strict=True)) / len(plain)
    return {**Spread.of(seconds).as_us(), "compile_s": compile_s, "same_tokens": same}


class _Step:
    """The same rows again and again, at the same place of the cache."""

    def __init__(self, loaded: LoadedModel, prompts: Sequence[Sequence[int]], rows: int) -> None:
        self._model: Any = loaded.model
        device = self._model.device
        self.on_card = device.type == "cuda"
        self._context = len(prompts[0])
        self._cache: Any = StaticCache(config=self._model.config, max_cache_len=self._context + rows)
        generator = torch.Generator().manual_seed(7)
        self._given = torch.randint(5, loaded.vocabulary, (len(prompts), rows), generator=generator).to(device)

    def fill(self, prompts: Sequence[Sequence[int]]) -> None:
        """The prompts' keys and values."""
        given = torch.tensor([list(prompt) for prompt in prompts], device=self._model.device)
        self._model(input_ids=given, past_key_values=self._cache, use_cache=True, logits_to_keep=1)

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        """[sessions, rows] tokens, chosen behind given ones."""
        out = self._model(input_ids=given, past_key_values=self._cache, use_cache=True)
        chosen: torch.Tensor = out.logits.argmax(-1)
        return chosen

    def tokens(self, forward: Any) -> list[int]:
        """What a step chooses, on the host."""
        for layer in self._cache.layers:
            layer.cumulative_length.fill_(self._context)
        if self.on_card:
            torch.cuda.synchronize()
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        self._started = time.perf_counter()
        chosen: list[int] = forward(self._given).flatten().tolist()
        return chosen

    def seconds(self, forward: Any) -> float:
        """What a step takes."""
        self.tokens(forward)
        return time.perf_counter() - self._started
