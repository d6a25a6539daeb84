"""Faults of a model end the sessions that they hit, with a typed error, and no others."""

from __future__ import annotations

import copy
import dataclasses
from typing import TYPE_CHECKING

import pytest
import torch

from outrider_cloud.engine.events import Failed, Opened, Pace
from outrider_shared.errors import InternalError
from outrider_shared.sampling import SamplingParams
from support.models import TINY_VOCABULARY
from support.rig import Rig, plain

if TYPE_CHECKING:
    from pathlib import Path

    from outrider_cloud.model.loading import LoadedModel

PROMPT = (11, 42, 7, 93, 60)
WARM = SamplingParams(1.0, top_k=40, top_p=0.95, seed=77)
PROMPTS = [tuple((7 * i + j * j) % TINY_VOCABULARY for j in range(3 + 5 * i)) for i in range(6)]


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
