"""The engine's KV memory: who gives way, who comes back, and what is shared."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from outrider_shared.sampling import SamplingParams
from support.models import TINY_VOCABULARY
from support.rig import Rig, check_usage, plain

if TYPE_CHECKING:
    from pathlib import Path

    from outrider_cloud.model.loading import LoadedModel

PROMPT = (11, 42, 7, 93, 60)
WARM = SamplingParams(1.0, top_k=40, top_p=0.95, seed=77)
PROMPTS = [tuple((7 * i + j * j) % TINY_VOCABULARY for j in range(3 + 5 * i)) for i in range(6)]


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
