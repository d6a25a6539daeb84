"""When a simulated device speaks."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from outrider_cloud.fleet.simulate.device import next_due

_LATE = st.floats(0.0, 0.9)


@given(st.lists(_LATE, min_size=1, max_size=50), st.floats(0.1, 10.0))
def test_being_late_each_time_does_not_lower_the_rate(late: list[float], length_s: float) -> None:
    """As many windows end as there is time for, however late each message leaves."""
    due = 0.0
    for share in late:
        due = next_due(due, length_s, due + share * length_s)
    assert abs(due - len(late) * length_s) < 1e-6 * len(late) * length_s


def test_a_device_that_stood_still_does_not_speak_for_all_that_time_at_once() -> None:
    """After 100 missed windows one is made up for."""
    assert next_due(0.0, 1.0, 100.0) == 99.0
    assert next_due(99.0, 1.0, 100.0) == 100.0
    assert next_due(100.0, 1.0, 100.0) == 101.0
