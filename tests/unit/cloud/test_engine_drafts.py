"""Drafts in the engine: what is committed of them, what bad ones do, and how long a session waits for them."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outrider_cloud.engine.events import Committed, Pace
from outrider_shared.errors import DraftError, OutriderError, ProtocolError
from outrider_shared.ids import SessionId
from outrider_shared.sampling import SamplingParams
from support.models import TINY_VOCABULARY
from support.rig import GREEDY, Rig, check_usage, plain

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from outrider_cloud.model.loading import LoadedModel

PROMPT = (11, 42, 7, 93, 60)
WARM = SamplingParams(1.0, top_k=40, top_p=0.95, seed=77)
PROMPTS = [tuple((7 * i + j * j) % TINY_VOCABULARY for j in range(3 + 5 * i)) for i in range(6)]


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
