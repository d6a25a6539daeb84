"""The engine over a tiny random model: what it takes, what it commits, when it ends, and what it tells."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from outrider_cloud.engine.events import Opened
from outrider_shared.errors import LimitError, OutriderError, PromptError, ProtocolError
from outrider_shared.ids import SessionId
from outrider_shared.sampling import SamplingParams
from support.models import TINY_CONTEXT, TINY_VOCABULARY
from support.rig import GREEDY, Rig, check_usage, direct_logits, plain

if TYPE_CHECKING:
    from pathlib import Path

    from outrider_cloud.model.loading import LoadedModel

PROMPT = (11, 42, 7, 93, 60)
WARM = SamplingParams(1.0, top_k=40, top_p=0.95, seed=77)
PROMPTS = [tuple((7 * i + j * j) % TINY_VOCABULARY for j in range(3 + 5 * i)) for i in range(6)]


@pytest.mark.parametrize(
    ("prompt", "more", "error", "words"),
    [
        ((), {}, PromptError, "empty"),
        ((1,) * TINY_CONTEXT, {}, PromptError, f"{TINY_CONTEXT} tokens"),
        ((1,) * 500, {}, PromptError, "500 tokens"),
        ((1, TINY_VOCABULARY), {}, PromptError, f"token id {TINY_VOCABULARY} is outside"),
        ((1, -1), {}, PromptError, "token id -1 is outside"),
        ((1, 2), {"committed": (TINY_VOCABULARY,)}, PromptError, "outside"),
        ((1, 2), {"committed": (3,) * (TINY_CONTEXT - 1)}, PromptError, "the context holds"),
        ((1,) * 20, {"max_tokens": 100}, LimitError, "the pool holds 96"),
        ((1, 2), {"name": "taken"}, ProtocolError, "open already"),
    ],
)
def test_what_cannot_be_served_is_refused_and_leaves_no_trace(
    tiny: LoadedModel, prompt: tuple[int, ...], more: dict[str, Any], error: type[OutriderError], words: str
):
    rig = Rig(tiny, kv_tokens=96)
    rig.open(PROMPT, name="taken")
    with pytest.raises(error, match=words):
        rig.open(prompt, **more)
    assert list(rig.engine.sessions) == ["taken"]
    rig.run()
    assert rig.finish(SessionId("taken")) is not None


def test_sessions_beyond_the_bound_are_refused_until_one_has_finished(endless: LoadedModel):
    rig = Rig(endless, max_sessions=2)
    rig.open(PROMPT, 3)
    rig.open(PROMPT, 3)
    with pytest.raises(LimitError, match="2 sessions"):
        rig.open(PROMPT, 3)
    rig.run()
    rig.open(PROMPT, 3)


@pytest.mark.parametrize("exact", [False, True], ids=["natural", "exact"])
@pytest.mark.parametrize(
    "params", [GREEDY, WARM, SamplingParams(0.7, min_p=0.05, seed=3), SamplingParams(1.3, seed=2**64 - 1)], ids=str
)
def test_tokens_are_the_rule_over_the_models_own_logits(
    endless: LoadedModel, tiny_folder: Path, params: SamplingParams, exact: bool
):
    rig = Rig(endless, exact=exact)
    ids = [rig.open(prompt, 20, params) for prompt in PROMPTS]
    rig.run()
    for session_id, prompt in zip(ids, PROMPTS, strict=True):
        assert rig.tokens(session_id) == list(plain(tiny_folder, prompt, 20, params))
        check_usage(rig, session_id)


@pytest.mark.parametrize("row_budget", [1, 2, 3, 7, 64])
@pytest.mark.parametrize("block_size", [1, 4, 16])
def test_a_prompt_may_be_computed_in_pieces_of_any_size(
    endless: LoadedModel, tiny_folder: Path, row_budget: int, block_size: int
):
    rig = Rig(endless, row_budget=row_budget, block_size=block_size, kv_tokens=512)
    ids = [rig.open(prompt, 6, WARM) for prompt in PROMPTS]
    rig.run()
    for session_id, prompt in zip(ids, PROMPTS, strict=True):
        assert rig.tokens(session_id) == list(plain(tiny_folder, prompt, 6, WARM))
        usage = rig.commits(session_id)[-1].usage
        assert usage is not None
        assert usage.prefill_rows + usage.cached_tokens == len(prompt) - 1


def test_events_add_up_to_the_log(endless: LoadedModel):
    rig = Rig(endless)
    session_id = rig.open(PROMPT, 9)
    rig.run()
    assert rig.opened(session_id) == Opened(session_id, len(PROMPT), 0)
    length = len(PROMPT)
    for event in rig.commits(session_id):
        length += len(event.tokens)
        assert event.length == length
        assert (event.finish is None) == (event.usage is None) == (event is not rig.events[session_id][-1])


def test_one_token_is_one_step(endless: LoadedModel, tiny_folder: Path):
    rig = Rig(endless)
    session_id = rig.open(PROMPT, 1)
    assert rig.step()
    assert rig.tokens(session_id) == list(plain(tiny_folder, PROMPT, 1))
    assert rig.finish(session_id) == "length"
    assert not rig.step()
    assert rig.engine.pool.used == 0


def first_new(tokens: tuple[int, ...], start: int) -> int:
    """Index from `start` on of a token that did not occur before."""
    return next(i for i in range(start, len(tokens)) if tokens[i] not in tokens[:i])


@pytest.mark.parametrize("drafted", [False, True], ids=["plain", "inside an accepted run"])
@pytest.mark.parametrize("why", ["eos", "stop", "length", "context"])
def test_an_answer_ends_where_it_should_and_no_token_later(
    endless: LoadedModel, tiny_folder: Path, why: str, drafted: bool
):
    prompt = PROMPT if why != "context" else tuple(PROMPTS[4]) * 5
    room = TINY_CONTEXT - len(prompt)
    answer = plain(tiny_folder, prompt, 30, WARM)
    at = {"length": 4, "context": room - 1}.get(why, first_new(answer, 3))
    assert at < 14
    model = dataclasses.replace(endless, eos=frozenset({answer[at]})) if why == "eos" else endless
    rig = Rig(model)
    session_id = rig.open(
        prompt, 5 if why == "length" else 100, WARM, stop=frozenset({answer[at]} if why == "stop" else ())
    )
    if drafted:
        rig.draft(session_id, answer[: min(14, room - 1)], anchor=len(prompt))
    rig.run()
    assert rig.finish(session_id) == why
    assert rig.tokens(session_id) == list(answer[: at + 1])
    assert rig.engine.pool.used == 0
    check_usage(rig, session_id)
    assert (rig.engine.stats.steps == 1) == drafted


def test_the_models_end_token_can_be_ignored_but_not_the_requests_stop_token(endless: LoadedModel, tiny_folder: Path):
    answer = plain(tiny_folder, PROMPT, 30, WARM)
    eos, stop = first_new(answer, 2), first_new(answer, 9)
    rig = Rig(dataclasses.replace(endless, eos=frozenset({answer[eos]})))
    session_id = rig.open(PROMPT, 30, WARM, ignore_eos=True, stop=frozenset({answer[stop]}))
    rig.run()
    assert (rig.tokens(session_id), rig.finish(session_id)) == (list(answer[: stop + 1]), "stop")


def test_an_end_token_inside_the_prompt_does_not_end_the_answer(endless: LoadedModel, tiny_folder: Path):
    rig = Rig(dataclasses.replace(endless, eos=frozenset(PROMPT)))
    answer = plain(tiny_folder, PROMPT, 4)
    assert not set(answer) & set(PROMPT)
    session_id = rig.open(PROMPT, 4)
    rig.run()
    assert (rig.tokens(session_id), rig.finish(session_id)) == (list(answer), "length")


@pytest.mark.parametrize("drafted", [False, True])
def test_log_probabilities_are_those_of_the_models_own_softmax(endless: LoadedModel, tiny_folder: Path, drafted: bool):
    """At temperature 1 and unfiltered, whatever the sampling parameters, also for tokens that were drafted."""
    answer = plain(tiny_folder, PROMPT, 7, WARM)
    rig = Rig(endless)
    session_id = rig.open(PROMPT, 7, WARM, logprobs=True)
    if drafted:
        wrong = (answer[3] + 1) % TINY_VOCABULARY
        rig.draft(session_id, [answer[0], wrong, *answer[1:3]], parents=[0, 1, 2, 1], anchor=len(PROMPT))
    rig.run()
    got = [entry.logprob for event in rig.commits(session_id) for entry in event.logprobs]
    logits = torch.from_numpy(direct_logits(tiny_folder, [*PROMPT, *answer])).double().log_softmax(-1).numpy()
    expected = [logits[len(PROMPT) - 1 + i, token] for i, token in enumerate(answer)]
    np.testing.assert_allclose(got, expected, atol=1e-4)
    assert [len(event.logprobs) for event in rig.commits(session_id)] == [
        len(event.tokens) for event in rig.commits(session_id)
    ]


def test_log_probabilities_come_only_if_asked_for(endless: LoadedModel):
    rig = Rig(endless)
    session_id = rig.open(PROMPT, 3)
    rig.run()
    assert all(event.logprobs == () for event in rig.commits(session_id))


def test_totals_count_steps_rows_and_tokens(endless: LoadedModel, tiny_folder: Path):
    rig = Rig(endless)
    answer = plain(tiny_folder, PROMPT, 8)
    session_id = rig.open(PROMPT, 8)
    rig.draft(session_id, [answer[0], (answer[1] + 1) % TINY_VOCABULARY], anchor=len(PROMPT))
    rig.run()
    stats, usage = rig.engine.stats, rig.commits(session_id)[-1].usage
    assert usage is not None
    assert (stats.steps, stats.committed, stats.preemptions) == (7, 8, 0)
    assert stats.rows == len(PROMPT) + 2 + 6 == usage.rows
    assert 0.0 < stats.forward_s < stats.total_s
