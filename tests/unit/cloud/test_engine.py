"""The engine over a tiny random model: what it commits, when it ends, and that one session's fault is its own."""

from __future__ import annotations

import copy
import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from outrider_cloud.engine.events import Committed, Failed, Opened, Pace
from outrider_shared.errors import DraftError, InternalError, LimitError, OutriderError, PromptError, ProtocolError
from outrider_shared.ids import SessionId
from outrider_shared.sampling import SamplingParams
from support.models import TINY_CONTEXT, TINY_VOCABULARY
from support.rig import GREEDY, Rig, direct_logits, plain

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from outrider_cloud.model.loading import LoadedModel

PROMPT = (11, 42, 7, 93, 60)
WARM = SamplingParams(1.0, top_k=40, top_p=0.95, seed=77)
PROMPTS = [tuple((7 * i + j * j) % TINY_VOCABULARY for j in range(3 + 5 * i)) for i in range(6)]


@pytest.fixture
def endless(tiny: LoadedModel) -> LoadedModel:
    """The tiny model without end tokens."""
    return dataclasses.replace(tiny, eos=frozenset())


def check_usage(rig: Rig, session_id: SessionId) -> None:
    last = rig.commits(session_id)[-1]
    assert last.usage is not None
    assert len(rig.tokens(session_id)) == last.usage.steps + last.usage.accepted
    assert last.usage.rows >= last.usage.steps


# ---- what is taken -------------------------------------------------------------------------------------------------


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


# ---- plain decoding ------------------------------------------------------------------------------------------------


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


# ---- the end -------------------------------------------------------------------------------------------------------


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


# ---- drafts --------------------------------------------------------------------------------------------------------


def test_a_right_chain_is_committed_in_one_step_with_a_bonus(endless: LoadedModel, tiny_folder: Path):
    rig = Rig(endless)
    answer = plain(tiny_folder, PROMPT, 6)
    session_id = rig.open(PROMPT, 6)
    rig.draft(session_id, answer[:4], anchor=len(PROMPT))
    rig.step()
    (commit,) = rig.commits(session_id)
    assert commit.tokens == answer[:5]
    assert (commit.accepted, commit.known) == (3, 4)


def test_a_right_branch_among_wrong_ones_is_found_and_its_kv_kept(endless: LoadedModel, tiny_folder: Path):
    """The accepted nodes do not lie behind each other; what follows shows whether their keys were moved."""
    answer = plain(tiny_folder, PROMPT, 12)
    wrong = [(token + 1) % TINY_VOCABULARY for token in answer]
    rig = Rig(endless, block_size=4)
    session_id = rig.open(PROMPT, 12)
    # Two siblings at each depth, the wrong one first.
    tokens = [token for pair in zip(wrong[:4], answer[:4], strict=True) for token in pair]
    rig.draft(session_id, tokens, parents=[0, 0, 1, 2, 1, 2, 1, 2], anchor=len(PROMPT))
    rig.step()
    (commit,) = rig.commits(session_id)
    assert (commit.tokens, commit.accepted, commit.known) == (answer[:5], 7, 4)
    rig.run()
    assert rig.tokens(session_id) == list(answer)
    check_usage(rig, session_id)


def test_a_commit_tells_how_much_of_it_lies_on_the_drafted_path(endless: LoadedModel, tiny_folder: Path):
    answer = plain(tiny_folder, PROMPT, 8)
    rig = Rig(endless)
    session_id = rig.open(PROMPT, 8)
    rig.draft(session_id, [answer[0], answer[1], (answer[2] + 1) % TINY_VOCABULARY], anchor=len(PROMPT))
    rig.step()
    assert rig.commits(session_id)[-1] == Committed(session_id, answer[:3], len(PROMPT) + 3, accepted=1, known=2)
    # The next node hangs on a token that the cloud committed itself; it comes late, below nodes that are agreed.
    rig.draft(session_id, [answer[2], answer[3]], anchor=len(PROMPT) + 2)
    rig.step()
    assert rig.commits(session_id)[-1] == Committed(session_id, answer[3:5], len(PROMPT) + 5, accepted=4, known=1)
    rig.step()
    assert rig.commits(session_id)[-1] == Committed(session_id, answer[5:6], len(PROMPT) + 6)


@settings(max_examples=40)
@given(data=st.data())
def test_whatever_is_drafted_whenever_the_tokens_are_the_plain_ones(
    tiny: LoadedModel, tiny_folder: Path, data: st.DataObject
):
    """Random trees of right and wrong tokens, at any anchor, to some of several sessions between any two steps."""
    params = data.draw(st.sampled_from([GREEDY, WARM, SamplingParams(1.3, seed=9)]))
    rig = Rig(
        dataclasses.replace(tiny, eos=frozenset()),
        exact=data.draw(st.booleans()),
        row_budget=data.draw(st.sampled_from([3, 16, 64])),
        block_size=data.draw(st.sampled_from([2, 16])),
        kv_tokens=data.draw(st.sampled_from([48, 512])),
        max_nodes=400,
    )
    prompts = PROMPTS[: data.draw(st.integers(1, 3))]
    answers = {rig.open(prompt, 12, params, pace=data.draw(st.sampled_from(Pace))): prompt for prompt in prompts}
    while not all(rig.ended(session_id) for session_id in answers):
        for session_id, prompt in answers.items():
            if not rig.ended(session_id) and data.draw(st.booleans()):
                random_draft(rig, session_id, [*prompt, *plain(tiny_folder, prompt, 12, params)], data)
        if not rig.step():
            rig.now += rig.config.hold_s
    for session_id, prompt in answers.items():
        assert rig.tokens(session_id) == list(plain(tiny_folder, prompt, 12, params))
        check_usage(rig, session_id)
    assert rig.engine.pool.used == 0


def random_draft(rig: Rig, session_id: SessionId, log: list[int], data: st.DataObject) -> None:
    """A small tree below a log position near the frontier, each token right with even odds."""
    committed = rig.engine.sessions[session_id].log
    anchor = max(1, len(committed) - data.draw(st.integers(0, 2)))
    depth, tokens, parents = [], [], []
    for number in range(data.draw(st.integers(1, 6))):
        above = data.draw(st.integers(-1, number - 1))
        depth.append(0 if above < 0 else depth[above] + 1)
        position = anchor + depth[-1]
        right = data.draw(st.booleans()) and position < len(log)
        tokens.append(log[position] if right else data.draw(st.integers(0, TINY_VOCABULARY - 1)))
        parents.append(0 if above < 0 else number - above)
    rig.draft(session_id, tokens, parents=parents, anchor=anchor, more=data.draw(st.booleans()))


@pytest.mark.parametrize(
    ("tokens", "more", "error"),
    [
        ([1], {"anchor": 99}, DraftError),
        ([1], {"parents": [9], "anchor": 5}, DraftError),
        ([1], {}, DraftError),
        ([127], {"anchor": 5}, ProtocolError),
        ([1, 2], {"anchor": 5, "parents": [0]}, ProtocolError),
        (range(70), {"anchor": len(PROMPT) + 1, "parents": [0] * 70}, DraftError),
    ],
    ids=["anchor beyond", "no such parent", "no anchor", "token id", "a parent missing", "too many pending"],
)
def test_a_bad_draft_ends_its_own_session_with_a_typed_error(
    endless: LoadedModel, tiny_folder: Path, tokens: Sequence[int], more: dict[str, Any], error: type[OutriderError]
):
    rig = Rig(endless, max_nodes=64)
    good, bad = rig.open(PROMPT, 6), rig.open(PROMPT, 6)
    rig.step()
    rig.draft(bad, tokens, **more)
    assert type(rig.error(bad)) is error
    assert list(rig.engine.sessions) == [good]
    before = len(rig.events[bad])
    rig.run()
    assert rig.tokens(good) == list(plain(tiny_folder, PROMPT, 6))
    assert len(rig.events[bad]) == before
    assert rig.engine.pool.used == 0


def test_nodes_of_a_stream_are_bounded_even_if_they_all_die(endless: LoadedModel):
    """Nodes that disagree with the log are never pending, but each keeps its number."""
    rig = Rig(endless, max_nodes=64)
    session_id = rig.open(PROMPT, 1)
    for _ in range(4):
        rig.draft(session_id, [TINY_VOCABULARY - 1] * 32, parents=[0] * 32, anchor=1)
        assert rig.engine.sessions[session_id].tree.pending == 0
    rig.draft(session_id, [TINY_VOCABULARY - 1], anchor=1)
    assert isinstance(rig.error(session_id), DraftError)


def test_messages_to_sessions_that_are_gone_are_no_error(endless: LoadedModel):
    rig = Rig(endless)
    ghost = SessionId("never-opened")
    rig.draft(ghost, [1], anchor=1)
    rig.engine.cancel(ghost)
    rig.engine.close(ghost)
    rig.engine.park(ghost)
    session_id = rig.open(PROMPT, 1)
    rig.run()
    before = list(rig.events[session_id])
    rig.draft(session_id, [1], anchor=1)
    rig.engine.cancel(session_id)
    assert rig.events[session_id] == before


# ---- pace ----------------------------------------------------------------------------------------------------------


def test_a_holding_session_waits_for_drafts_and_not_forever(endless: LoadedModel, tiny_folder: Path):
    rig = Rig(endless, hold_s=0.25)
    answer = plain(tiny_folder, PROMPT, 8)
    session_id = rig.open(PROMPT, 8, pace=Pace.HOLD)
    assert rig.step(), "a prompt is work"
    assert not rig.step(), "then it waits"
    assert rig.engine.idle_until() == 0.25
    rig.draft(session_id, answer[1:2], anchor=len(PROMPT) + 1, more=True)
    assert not rig.step(), "more is to come"
    rig.draft(session_id, answer[2:3])
    assert rig.step()
    assert rig.tokens(session_id) == list(answer[:4])
    assert not rig.step()
    rig.draft(session_id, [])
    assert rig.step(), "told that nothing will come"
    assert not rig.step(), "which holds for one commit"
    rig.now = 0.25
    assert rig.step(), "waited long enough"
    assert not rig.step(), "and the wait begins anew"


def test_an_idle_engine_sleeps_until_something_is_due(endless: LoadedModel):
    rig = Rig(endless, lease_s=30.0)
    assert not rig.step()
    assert rig.engine.idle_until() == float("inf")
    session_id = rig.open(PROMPT, 4)
    rig.now = 5.0
    rig.engine.park(session_id)
    assert not rig.step()
    assert rig.engine.idle_until() == 35.0


# ---- cancel, park, resume ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_a_cancelled_session_ends_at_once_and_frees_its_memory(endless: LoadedModel, steps: int):
    rig = Rig(endless)
    session_id = rig.open(PROMPT, 50)
    for _ in range(steps):
        rig.step()
    rig.engine.cancel(session_id)
    last = rig.events[session_id][-1]
    assert isinstance(last, Committed)
    assert (rig.finish(session_id), last.tokens, last.length) == ("cancelled", (), len(PROMPT) + steps)
    assert rig.engine.pool.used == 0
    assert not rig.engine.sessions
    assert not rig.step()


def test_a_parked_session_is_kept_for_its_lease_and_no_longer(endless: LoadedModel, tiny_folder: Path):
    answer = plain(tiny_folder, PROMPT, 9)
    rig = Rig(endless, lease_s=30.0)
    session_id = rig.open(PROMPT, 9)
    for _ in range(3):
        rig.step()
    rig.engine.park(session_id)
    seen = len(rig.events[session_id])
    assert not rig.step()
    assert rig.engine.pool.used > 0
    rig.now = 29.9
    rig.step()
    assert rig.resume(session_id, answer[:3])
    assert rig.opened(session_id) == Opened(session_id, len(PROMPT) + 3, len(PROMPT))
    rig.run()
    assert rig.tokens(session_id) == list(answer[3:])
    usage = rig.commits(session_id)[-1].usage
    assert usage is not None
    assert (usage.steps, usage.prefill_rows, seen) == (9, len(PROMPT) - 1, 4)


def test_a_session_whose_lease_ended_is_gone_and_its_tokens_are_made_again(endless: LoadedModel, tiny_folder: Path):
    answer = plain(tiny_folder, PROMPT, 9, WARM)
    rig = Rig(endless, lease_s=30.0)
    session_id = rig.open(PROMPT, 9, WARM)
    rig.step()
    rig.step()
    rig.engine.park(session_id)
    rig.now = 30.0
    assert not rig.step()
    assert not rig.engine.sessions
    assert rig.engine.pool.used == 0
    assert not rig.resume(session_id, answer[:2])
    rig.open(PROMPT, 9, WARM, name=session_id, committed=answer[:2])
    rig.run()
    assert rig.tokens(session_id) == list(answer[2:])


def test_a_device_that_missed_commits_gets_them_on_resume(endless: LoadedModel, tiny_folder: Path):
    answer = plain(tiny_folder, PROMPT, 6)
    rig = Rig(endless)
    session_id = rig.open(PROMPT, 6)
    for _ in range(4):
        rig.step()
    rig.engine.park(session_id)
    assert rig.resume(session_id, answer[:1])
    missed = rig.commits(session_id)[0]
    assert (missed.tokens, missed.length, missed.steps, missed.accepted) == (answer[1:4], len(PROMPT) + 4, 0, -1)
    rig.run()
    assert rig.tokens(session_id) == list(answer[1:])


def test_a_resume_that_disagrees_changes_nothing(endless: LoadedModel, tiny_folder: Path):
    answer = plain(tiny_folder, PROMPT, 6)
    rig = Rig(endless)
    session_id = rig.open(PROMPT, 6)
    rig.step()
    rig.engine.park(session_id)
    assert not rig.resume(session_id, [(answer[0] + 1) % TINY_VOCABULARY])
    assert not rig.resume(session_id, answer[:2]), "knows more than the engine"
    assert not rig.step(), "still parked"
    assert rig.resume(session_id, answer[:1])


def test_nodes_are_numbered_anew_after_a_resume(endless: LoadedModel, tiny_folder: Path):
    answer = plain(tiny_folder, PROMPT, 6)
    rig = Rig(endless)
    session_id = rig.open(PROMPT, 6)
    rig.step()
    rig.draft(session_id, [1, 2, 3], anchor=len(PROMPT) + 1)
    rig.engine.park(session_id)
    assert rig.resume(session_id, answer[:1])
    rig.draft(session_id, answer[1:3], anchor=len(PROMPT) + 1)
    rig.step()
    commit = rig.commits(session_id)[-1]
    assert (commit.tokens, commit.accepted) == (answer[1:4], 1)


def test_the_last_commit_can_be_fetched_again_within_the_lease(endless: LoadedModel, tiny_folder: Path):
    """The stream broke just when the answer was complete."""
    answer = plain(tiny_folder, PROMPT, 3)
    rig = Rig(endless, lease_s=30.0)
    session_id = rig.open(PROMPT, 3)
    rig.run()
    rig.engine.park(session_id)
    rig.now = 29.0
    rig.step()
    assert rig.resume(session_id, answer[:2])
    assert (rig.tokens(session_id), rig.finish(session_id)) == ([answer[2]], "length")
    assert not rig.engine.sessions


@pytest.mark.parametrize("known", range(6))
def test_a_session_goes_on_elsewhere_from_what_its_device_knows(endless: LoadedModel, tiny_folder: Path, known: int):
    answer = plain(tiny_folder, PROMPT, 6, WARM)
    rig = Rig(endless)
    session_id = rig.open(PROMPT, 6, WARM, committed=answer[:known])
    assert rig.opened(session_id).length == len(PROMPT) + known
    rig.run()
    assert rig.tokens(session_id) == list(answer[known:])


@pytest.mark.parametrize("why", ["length", "stop", "eos"])
def test_a_complete_answer_is_finished_when_it_is_opened(endless: LoadedModel, tiny_folder: Path, why: str):
    answer = plain(tiny_folder, PROMPT, 3)
    rig = Rig(dataclasses.replace(endless, eos=frozenset(answer[2:] if why == "eos" else ())))
    session_id = rig.open(
        PROMPT, 3 if why == "length" else 9, committed=answer, stop=frozenset(answer[2:] if why == "stop" else ())
    )
    assert (rig.tokens(session_id), rig.finish(session_id)) == ([], why)
    assert not rig.step()
    assert rig.engine.pool.used == 0


# ---- memory --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("exact", [False, True], ids=["natural", "exact"])
@pytest.mark.parametrize("kv_tokens", [60, 96, 160])
def test_sessions_that_do_not_fit_together_are_preempted_and_lose_nothing(
    endless: LoadedModel, tiny_folder: Path, kv_tokens: int, exact: bool
):
    rig = Rig(endless, kv_tokens=kv_tokens, block_size=4, exact=exact)
    ids = [rig.open(prompt, 30, WARM) for prompt in PROMPTS]
    for _ in range(5000):
        if not rig.step():
            rig.now = max(rig.now, rig.engine.idle_until())  # a draft that is nearly there is waited for
        for session_id, prompt in zip(ids, PROMPTS, strict=True):
            if not rig.ended(session_id) and session_id in rig.engine.sessions:
                log, answer = rig.engine.sessions[session_id].log, plain(tiny_folder, prompt, 30, WARM)
                made = len(log) - len(prompt)
                if rig.engine.stats.steps % 3 == 0 and not rig.engine.sessions[session_id].tree.pending:
                    rig.draft(session_id, answer[made : made + 3], anchor=len(log))
        if all(map(rig.ended, ids)):
            break
    for session_id, prompt in zip(ids, PROMPTS, strict=True):
        assert rig.tokens(session_id) == list(plain(tiny_folder, prompt, 30, WARM))
        check_usage(rig, session_id)
    assert rig.engine.stats.preemptions > 0
    assert rig.engine.pool.used == 0


def test_the_elder_session_keeps_its_memory(endless: LoadedModel):
    rig = Rig(endless, kv_tokens=60, block_size=4)
    elder, younger = rig.open(PROMPT, 50), rig.open(PROMPT[::-1], 50)
    rig.run()
    usages = [rig.commits(session_id)[-1].usage for session_id in (elder, younger)]
    assert [usage is not None and usage.preemptions > 0 for usage in usages] == [False, True]


def test_a_parked_session_gives_its_memory_to_running_ones_and_still_comes_back(
    endless: LoadedModel, tiny_folder: Path
):
    rig = Rig(endless, kv_tokens=60, block_size=4)
    parked = rig.open(PROMPT, 40, WARM)
    for _ in range(20):
        rig.step()
    rig.engine.park(parked)
    other = rig.open(PROMPT[::-1], 50)
    while not rig.ended(other):
        assert rig.step()
    answer = plain(tiny_folder, PROMPT, 40, WARM)
    assert rig.resume(parked, answer[:20])
    rig.run()
    assert rig.tokens(parked) == list(answer[20:])
    usage = rig.commits(parked)[-1].usage
    assert usage is not None
    assert usage.preemptions == 1
    assert usage.cached_tokens == 0


def test_what_a_preempted_session_finds_again_of_its_own_is_no_cached_prompt(endless: LoadedModel, tiny_folder: Path):
    """The blocks survive the preemption and are adopted again; the prompt was computed here all the same."""
    prompt = PROMPTS[5]
    rig = Rig(endless, block_size=4)
    rig.open(prompt[:9], 1)
    rig.run()
    session_id = rig.open(prompt, 8, WARM)
    for _ in range(3):
        rig.step()
    session = rig.engine.sessions[session_id]
    rig.engine.memory._preempt(session)
    rig.run()
    assert rig.tokens(session_id) == list(plain(tiny_folder, prompt, 8, WARM))
    assert (session.usage.preemptions, session.usage.cached_tokens) == (1, 8)


def test_a_known_prefix_is_not_computed_again_and_changes_no_token(endless: LoadedModel, tiny_folder: Path):
    prompt = PROMPTS[5]
    rig = Rig(endless, block_size=4)
    answers = []
    for expected in (0, (len(prompt) - 1) // 4 * 4):
        session_id = rig.open(prompt, 8, WARM)
        assert rig.opened(session_id).cached_tokens == expected
        rig.run()
        answers.append(rig.tokens(session_id))
        usage = rig.commits(session_id)[-1].usage
        assert usage is not None
        assert (usage.cached_tokens, usage.prefill_rows) == (expected, len(prompt) - 1 - expected)
    assert answers == [list(plain(tiny_folder, prompt, 8, WARM))] * 2


def test_sessions_share_the_blocks_of_a_prefix_while_they_run(endless: LoadedModel, tiny_folder: Path):
    prompt = PROMPTS[5]
    rig = Rig(endless, block_size=4)
    ids = [rig.open(prompt, 8, SamplingParams(1.0, seed=0))]
    rig.step()
    alone = rig.engine.pool.used
    ids += [rig.open(prompt, 8, SamplingParams(1.0, seed=seed)) for seed in (1, 2, 3)]
    rig.step()
    assert rig.engine.pool.used <= alone + 3 * 2
    rig.run()
    for seed, session_id in enumerate(ids):
        assert rig.tokens(session_id) == list(plain(tiny_folder, prompt, 8, SamplingParams(1.0, seed=seed)))


# ---- faults --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("exact", [False, True], ids=["natural", "exact"])
def test_a_session_whose_numbers_break_ends_alone(endless: LoadedModel, tiny_folder: Path, exact: bool):
    """One token's embedding is not a number; its session holds the pool's first blocks, and others come and go."""
    used = {token for p in PROMPTS[:5] for token in (*p, *plain(tiny_folder, p, 12, WARM))}
    broken = next(token for token in range(TINY_VOCABULARY) if token not in used)
    model = copy.deepcopy(endless.model)
    model.get_input_embeddings().weight[broken] = torch.nan
    rig = Rig(dataclasses.replace(endless, model=model), exact=exact, row_budget=8)
    bad = [rig.open((broken, 1, 2, 3, 4), 9, WARM)]
    good = [rig.open(prompt, 12, WARM) for prompt in PROMPTS[:3]]
    rig.step()
    bad.append(rig.open((*PROMPT, broken), 9))
    good += [rig.open(prompt, 12, WARM) for prompt in PROMPTS[3:5]]
    rig.run()
    for session_id in bad:
        assert isinstance(rig.error(session_id), InternalError)
        assert "not numbers" in str(rig.error(session_id))
        assert rig.tokens(session_id) == []
    for session_id, prompt in zip(good, PROMPTS, strict=False):
        assert rig.tokens(session_id) == list(plain(tiny_folder, prompt, 12, WARM))
    assert rig.engine.pool.used == 0


def test_a_model_that_fails_ends_the_sessions_of_that_step_and_no_others(
    endless: LoadedModel, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    rig = Rig(endless)
    running = [rig.open(PROMPT, 8), rig.open(PROMPTS[1], 8)]
    holding, parked = rig.open(PROMPTS[2], 8, pace=Pace.HOLD), rig.open(PROMPTS[3], 8)
    rig.step()
    rig.engine.park(parked)
    with monkeypatch.context() as broken:
        broken.setattr(rig.runner, "run", lambda _: 1 / 0)
        assert rig.step()
    for session_id in running:
        error = rig.error(session_id)
        assert isinstance(error, InternalError)
        assert error.retryable
        assert "division by zero" in str(error)
    assert set(rig.engine.sessions) == {holding, parked}
    assert rig.resume(parked, plain(tiny_folder, PROMPTS[3], 1))
    again = rig.open(PROMPT, 8, committed=plain(tiny_folder, PROMPT, 1))
    rig.run()
    assert rig.tokens(holding) == list(plain(tiny_folder, PROMPTS[2], 8))
    assert rig.tokens(parked) == list(plain(tiny_folder, PROMPTS[3], 8)[1:])
    assert rig.tokens(again) == list(plain(tiny_folder, PROMPT, 8)[1:])
    assert rig.engine.pool.used == 0


def test_a_fault_is_the_last_event_of_its_session(endless: LoadedModel, monkeypatch: pytest.MonkeyPatch):
    rig = Rig(endless)
    session_id = rig.open(PROMPT, 8)
    with monkeypatch.context() as broken:
        broken.setattr(rig.runner, "run", lambda _: 1 / 0)
        rig.step()
    rig.engine.cancel(session_id)
    rig.draft(session_id, [1], anchor=1)
    assert not rig.step()
    assert [type(event) for event in rig.events[session_id]] == [Opened, Failed]


# ---- what is told --------------------------------------------------------------------------------------------------


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


def test_drafts_that_keep_failing_are_trusted_less_and_right_ones_more(endless: LoadedModel, tiny_folder: Path):
    answer = plain(tiny_folder, PROMPT, 40)
    trust = []
    for shift in (0, 1):
        rig = Rig(endless)
        session_id = rig.open(PROMPT, 40)
        while not rig.ended(session_id):
            made = len(rig.engine.sessions[session_id].log) - len(PROMPT)
            tokens = [(token + shift) % TINY_VOCABULARY for token in answer[made : made + 2]]
            session = rig.engine.sessions[session_id]
            rig.draft(session_id, tokens, anchor=len(session.log))
            rig.step()
        trust.append(session.survival.overall)
        assert rig.tokens(session_id) == list(answer)
    assert trust[0] > 0.9
    assert trust[1] < 0.1
