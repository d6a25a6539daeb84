"""Presence and loss: late Wills change nothing, every lost message is counted once."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from outrider_shared.fleet.messages import Presence
from outrider_shared.fleet.sequence import PresenceRule, SequenceRule


def test_a_late_will_of_an_older_connection_is_ignored():
    rule = PresenceRule()
    assert rule.judge(Presence(True, 7, 1.0))
    assert rule.judge(Presence(True, 8, 2.0))
    assert not rule.judge(Presence(False, 7, 3.0, "lost"))
    assert rule.online
    assert rule.judge(Presence(False, 8, 4.0, "lost"))
    assert not rule.online


@given(st.sets(st.integers(0, 40)), st.randoms(use_true_random=False))
def test_in_one_connection_exactly_the_missing_numbers_are_lost(missing, random):
    rule, kept = SequenceRule(), [n for n in range(60) if n not in missing]
    assert all(rule.judge(0, n) for n in kept)
    assert rule.lost == len([n for n in missing if n > kept[0]])
    repeats = random.sample(kept, 5)
    assert not any(rule.judge(0, n) for n in repeats)
    assert rule.repeated == 5
    assert rule.lost == len([n for n in missing if n > kept[0]])


def test_a_new_connection_counts_from_zero_and_the_old_one_is_over():
    rule = SequenceRule()
    assert rule.judge(3, 10)
    assert rule.judge(4, 2)
    assert rule.lost == 2
    assert not rule.judge(3, 11)
