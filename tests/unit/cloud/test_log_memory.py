"""Logs that devices need not send again: who finds them, and what bounds them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from outrider_cloud.service.memory import LogMemory
from outrider_shared.prefix import prefix_digest

KEY, LOG = b"a" * 16, list(range(40))


def test_only_the_device_that_has_the_key_finds_its_log():
    memory = LogMemory(1000)
    memory.keep(KEY, "mine", LOG)
    digest = prefix_digest(KEY, LOG[:30])
    assert memory.find(KEY, "mine", 30, digest) == tuple(LOG[:30])
    assert memory.find(KEY, "other", 30, digest) is None
    assert memory.find(b"b" * 16, "mine", 30, digest) is None
    assert memory.find(KEY, "mine", 29, digest) is None
    assert memory.find(KEY, "mine", 41, prefix_digest(KEY, LOG)) is None


def test_a_memory_of_no_tokens_keeps_nothing():
    memory = LogMemory(0)
    memory.keep(KEY, "mine", LOG)
    assert not len(memory)


@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from("abc"), st.integers(0, 60)), max_size=60))
def test_bounds_hold_whatever_is_kept(calls):
    """Never more tokens than allowed, in all and of one device; sums are right."""
    memory = LogMemory(400)
    for key, device, length in calls:
        memory.keep(bytes([key]) * 16, device, range(length))
        assert memory.tokens <= 400
        assert memory.tokens == sum(len(log.tokens) for log in memory._logs.values())
        assert all(held <= 50 for held in memory._held.values())
