"""Sessions that are cancelled, parked, resumed, or go on in another engine."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest

from outrider_cloud.engine.events import Committed, Opened
from outrider_shared.sampling import SamplingParams
from support.models import TINY_VOCABULARY
from support.rig import Rig, plain

if TYPE_CHECKING:
    from pathlib import Path

    from outrider_cloud.model.loading import LoadedModel

PROMPT = (11, 42, 7, 93, 60)
WARM = SamplingParams(1.0, top_k=40, top_p=0.95, seed=77)


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
