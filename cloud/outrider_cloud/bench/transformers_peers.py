"""How transformers generates, as peers of the engine: greedy, timed from the first token on.

The sessions of a call have prompts of equal length, so that nothing is padded.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig
from transformers.generation import StoppingCriteriaList
from transformers.generation.candidate_generator import CandidateGenerator
from transformers.generation.configuration_utils import ContinuousBatchingConfig

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from outrider_cloud.bench.acceptance import Replay
    from outrider_cloud.model.loading import LoadedModel

# Of a page of its cache, and of a step; pages for twice the sessions, so that none waits for another.
_CB_PAGE, _CB_STEP = 256, 512


@dataclass(frozen=True, slots=True)
class Decoded:
    """One run.

    Attributes:
        tokens: Made after the first of every session.
        seconds: They took.
        steps: Forwards in that time; 0 if unknown.
        answers: All tokens of each session.
    """

    tokens: int
    seconds: float
    steps: int
    answers: list[list[int]]


class _Clock:
    """Notes when the first tokens were there and how many, and counts the forwards after that."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.started, self.length, self.steps = 0.0, 0, -1

    def tick(self, input_ids: torch.Tensor) -> None:
        """A forward has ended, with these tokens so far: [sessions, length]."""
        self.steps += 1
        if self.steps == 0:
            _wait(self._device)
            self.started, self.length = time.perf_counter(), input_ids.shape[1]

    def __call__(self, input_ids: torch.Tensor, _scores: Any, **_: Any) -> torch.Tensor:
        """As a stopping criterion, which is asked after every forward, stops nothing: [sessions] false."""
        self.tick(input_ids)
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


def generate(loaded: LoadedModel, prompts: Sequence[Sequence[int]], count: int, **how: Any) -> Decoded:
    """`generate` for `count` tokens of each session, with further arguments `how`."""
    clock = _Clock(loaded.model.device)
    return _generate(loaded, prompts, count, clock, stopping_criteria=StoppingCriteriaList([clock]), **how)


def _generate(loaded: LoadedModel, prompts: Sequence[Sequence[int]], count: int, clock: _Clock, **how: Any) -> Decoded:
    model: Any = loaded.model
    device = model.device
    given = torch.tensor(prompts, device=device)
    with sdpa(model):
        out = model.generate(
            given, attention_mask=torch.ones_like(given), do_sample=False, max_new_tokens=count, pad_token_id=0, **how
        )
        _wait(device)
    seconds = time.perf_counter() - clock.started
    answers = out[:, given.shape[1] :].tolist()
    return Decoded((out.shape[1] - clock.length) * len(prompts), seconds, clock.steps, answers)


class _Candidates(CandidateGenerator):  # type: ignore[misc]
    """Drafts of a replay in the place of an assistant's, at no cost."""

    def __init__(self, replay: Replay, clock: _Clock) -> None:
        self._replay, self._clock, self._asked = replay, clock, False

    def get_candidates(self, input_ids: torch.Tensor, **_: Any) -> tuple[torch.Tensor, None]:
        """[1, length + drafts]. It is asked before every forward, so from the second time on one has ended."""
        if self._asked:
            self._clock.tick(input_ids)
        self._asked = True
        chain = self._replay(input_ids[0].tolist())
        return torch.cat((input_ids, input_ids.new_tensor([chain])), 1) if chain else input_ids, None

    def update_candidate_strategy(self, *_: Any) -> None:
        """There is nothing to learn."""


def assisted(loaded: LoadedModel, prompt: Sequence[int], count: int, drafts: int, replay: Replay) -> Decoded:
    """Assisted generation of one session (it takes no more), with a replay's drafts in place of an assistant's."""
    model: Any = loaded.model
    clock = _Clock(model.device)
    candidates = _Candidates(replay, clock)
    model._get_candidate_generator = lambda **_: candidates  # noqa: SLF001 - it has no public place for one
    try:
        done = _generate(loaded, [prompt], count, clock, prompt_lookup_num_tokens=drafts)
        return dataclasses.replace(done, steps=done.steps + 1)  # the last forward is not followed by a question
    finally:
        del model._get_candidate_generator  # noqa: SLF001 - the class's own again


def generate_batch(loaded: LoadedModel, prompts: Sequence[Sequence[int]], count: int) -> Decoded:
    """`generate_batch`, transformers' continuous batching, with its own graphs where it has them."""
    model: Any = loaded.model
    pages = 2 * len(prompts) * (-(-(len(prompts[0]) + count) // _CB_PAGE) + 1)
    wanted = {"num_blocks": pages, "max_batch_tokens": _CB_STEP, "auto_switch_to_flash": False}  # flash is downloaded
    known = {field.name for field in dataclasses.fields(ContinuousBatchingConfig)}
    config = ContinuousBatchingConfig(**{key: value for key, value in wanted.items() if key in known})
    with sdpa(model):
        outputs = model.generate_batch(
            inputs=[list(prompt) for prompt in prompts],
            generation_config=GenerationConfig(do_sample=False, max_new_tokens=count, eos_token_id=-1, pad_token_id=0),
            continuous_batching_config=config, record_timestamps=True, progress_bar=False,
        )  # fmt: skip
    made = sorted(outputs.values(), key=lambda output: _number(output.request_id))
    if len(made) != len(prompts) or any(len(output.generated_tokens) < count for output in made):
        errors = {output.error for output in made if output.error}
        raise RuntimeError(f"{len(made)} of {len(prompts)} sessions ended, with errors {errors or 'none'}")
    first, last = max(o.timestamps[0] for o in made), max(o.timestamps[-1] for o in made)
    tokens = sum(1 for output in made for at in output.timestamps if at > first)
    return Decoded(tokens, last - first, 0, [list(output.generated_tokens) for output in made])


def _number(request_id: str) -> int:
    return int(request_id.rpartition("_")[2])


@contextlib.contextmanager
def sdpa(model: Any) -> Iterator[None]:
    """The model's usual attention for a while, in the place of the engine's."""
    before = model.config._attn_implementation  # noqa: SLF001 - transformers has no public getter
    model.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
