"""Slots and pacing: nobody gets more than there is, nothing leaks, order is kept."""

from __future__ import annotations

import asyncio
import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider_edge.api.choices import Delta, End
from outrider_edge.api.redaction import load_redactor
from outrider_edge.api.slots import Slots
from outrider_edge.api.smoothing import Pacer
from outrider_edge.api.streaming import smoothed
from outrider_edge.session.events import Online, Totals
from outrider_shared.errors import ConfigError, InternalError, LimitError
from support.virtual.clock import VirtualLoop


@given(seed=st.integers(0, 1000))
def test_slots_are_never_exceeded_and_all_come_back(seed):
    """Takers that come, wait, give up and are cancelled at any time: at the end every slot is free."""

    async def run():
        rng, slots = random.Random(seed), Slots(4, 6, 0.003)

        async def taker(count):
            async with slots.take(count):
                assert 0 < slots.used <= 4
                await asyncio.sleep(rng.random() * 0.004)

        tasks = [asyncio.create_task(taker(rng.randint(1, 4))) for _ in range(16)]
        for task in rng.sample(tasks, 6):
            await asyncio.sleep(rng.random() * 0.001)
            task.cancel()
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            assert outcome is None or isinstance(outcome, (LimitError, asyncio.CancelledError))
        assert (slots.used, slots.queued) == (0, 0)
        await asyncio.wait_for(slots.idle(), 1)

    asyncio.run(run())


@given(bursts=st.lists(st.tuples(st.floats(0.001, 0.5), st.integers(1, 12)), min_size=1, max_size=20))
def test_pacing_keeps_order_and_bounds_every_wait(bursts):
    """Tokens leave in order, none before it came, and none later than an interval after it came."""
    pacer, now, last = Pacer(0.25), 0.0, 0.0
    for gap, count in bursts:
        now += gap
        times = pacer.burst(now, count)
        assert len(times) == count
        assert times == sorted(times)
        assert all(now <= at <= now + 0.25 + 1e-9 for at in times)
        last = max(last, times[-1])


def test_steady_bursts_are_spread_over_their_interval():
    """Four tokens every 100 ms come out about 25 ms apart."""
    pacer = Pacer()
    times = [at for i in range(20) for at in pacer.burst(i * 0.1, 4)][40:]
    gaps = [b - a for a, b in itertools.pairwise(times)]
    assert max(gaps) < 0.06


def test_smoothed_stream_is_even_whatever_is_told_beside_its_tokens():
    """Bursts of four each 100 ms, with drafts told in between: shown about 25 ms apart, in order, none lost."""

    async def steps():
        for burst in range(20):
            for _ in range(4):
                yield Delta(0, (str(burst),))
            for _ in range(5 if burst < 19 else 0):
                await asyncio.sleep(0.02)
                yield Delta(0, event=Online())
        yield End(0, "stop", 80, unverified=False, totals=Totals())

    async def run():
        clock, got = asyncio.get_running_loop().time, []
        async for step in smoothed(steps()):
            got += [(clock(), step.parts[0])] if isinstance(step, Delta) and step.parts else []
        return got

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        got = runner.run(run())
    assert [text for _, text in got] == [str(burst) for burst in range(20) for _ in range(4)]
    gaps = [b - a for (a, _), (b, _) in itertools.pairwise(got[16:])]
    assert max(gaps) < 0.06
    assert min(gaps) > 0.01


def test_redaction_that_fails_lets_nothing_out():
    with pytest.raises(ConfigError):
        load_redactor("no.such:thing")
    assert load_redactor("") is None
    assert load_redactor("json:dumps")("a") == '"a"'
    with pytest.raises(InternalError) as caught:
        load_redactor("builtins:int")("secret words")
    assert "secret" not in str(caught.value)
