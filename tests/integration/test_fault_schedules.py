"""Random courses of faults in virtual time: the text of none, and nothing unverified is shown as verified.

200 seeds by default; OUTRIDER_FAULT_SCHEDULES=1000 plays as many.
"""

from __future__ import annotations

import os

import pytest

from support.virtual.faults import Schedule, play

COUNT = int(os.environ.get("OUTRIDER_FAULT_SCHEDULES", "200"))
GROUPS = 10


@pytest.mark.parametrize("group", range(GROUPS))
def test_any_course_of_faults_gives_the_text_of_none(group):
    """Cuts, half-dead streams, stalls, restarts, clouds away and slow readers in any order: the same text, twice.

    That nothing is shown as verified that is not the target's is checked at each event (`faults.show`).
    """
    for seed in range(group, COUNT, GROUPS):
        answers, expected = play(Schedule(seed))
        for seen in answers:
            assert seen.verified == expected, f"seed {seed}"
            assert not seen.unverified, f"seed {seed}"
            assert seen.finished is not None, f"seed {seed}"


def test_the_courses_are_not_harmless():
    """What the faults are for does happen: broken streams, other clouds, text taken back, prompts known and lost."""
    played = [seen for seed in range(60) for seen in play(Schedule(seed))[0]]
    assert sum(seen.reconnects > 0 for seen in played) > 20
    assert sum(len(seen.clouds) > 1 for seen in played) > 10
    assert sum(seen.ever_unverified > 0 for seen in played) > 10
    assert sum(seen.retracted > 0 for seen in played) > 5
    assert sum(0 < seen.retracted < seen.ever_unverified for seen in played) > 1
    # Of 60 second answers, most are opened by the key of a log, and some of these logs are lost.
    assert 40 < sum(seen.reused > 0 for seen in played) < 60
