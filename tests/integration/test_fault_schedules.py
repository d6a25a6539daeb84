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
    """Cuts, swallowed streams, stalls, restarts, clouds away and slow readers in any order: the same text."""
    for seed in range(group, COUNT, GROUPS):
        seen, expected = play(Schedule(seed))
        assert seen.verified == expected, f"seed {seed}"
        assert not seen.unverified, f"seed {seed}"
        assert seen.finished is not None, f"seed {seed}"


def test_the_courses_are_not_harmless():
    """What the faults are for does happen: streams break, clouds change, text is shown unverified and taken back."""
    played = [play(Schedule(seed))[0] for seed in range(60)]
    assert sum(seen.reconnects > 0 for seen in played) > 20
    assert sum(len(seen.clouds) > 1 for seen in played) > 10
    assert sum(seen.ever_unverified > 0 for seen in played) > 10
    assert sum(seen.retracted > 0 for seen in played) > 5
    assert sum(0 < seen.retracted < seen.ever_unverified for seen in played) > 1
