"""Several clouds behind one connector: who is asked, when, and when streams return."""

from __future__ import annotations

import asyncio

import pytest

from outrider_edge.link.backoff import Backoff
from outrider_edge.link.failover import FailoverConnector
from outrider_shared.errors import ConfigError, UnavailableError
from support.virtual.clock import virtual_time


class Cloud:
    """A cloud that answers after `delay_s`, or not."""

    def __init__(self, peer: str, delay_s: float = 0.01) -> None:
        self.peer, self.delay_s, self.up = peer, delay_s, True
        self.asked: list[float] = []
        self.closed = 0

    async def close(self):
        self.closed += 1

    where = "scripted"

    def note(self, peer, *, alive):
        pass

    async def connect(self):
        self.asked.append(asyncio.get_running_loop().time())
        await asyncio.sleep(self.delay_s)
        if not self.up:
            raise UnavailableError(f"{self.peer} is down")
        return self

    probe = connect


def play(scenario):
    """Run `scenario(connector, clouds)` in virtual time with clouds a, b, c."""

    async def run():
        clouds = {name: Cloud(name) for name in "abc"}
        async with FailoverConnector(clouds, Backoff(0.5, 4.0), hedge_s=0.3, return_s=2.0) as connector:
            return await scenario(connector, clouds)

    with virtual_time() as loop:
        return loop.run_until_complete(run())


def test_the_preferred_cloud_is_used_while_it_is_well():
    async def scenario(connector, clouds):
        assert [(await connector.connect()).peer for _ in range(3)] == ["a"] * 3
        assert not clouds["b"].asked

    play(scenario)


def test_a_cloud_that_refuses_is_replaced_at_once_and_left_alone():
    """The next takes its place in the same call; the failed one is not tried by the next streams."""

    async def scenario(connector, clouds):
        clouds["a"].up = False
        assert (await connector.connect()).peer == "b"
        assert (await connector.connect()).peer == "b"
        assert len(clouds["a"].asked) == 1
        assert connector.health["a"].last_error == "a is down"

    play(scenario)


def test_a_cloud_that_does_not_answer_costs_the_hedge_and_no_more():
    async def scenario(connector, clouds):
        clouds["a"].delay_s = 60.0
        started = asyncio.get_running_loop().time()
        assert (await connector.connect()).peer == "b"
        assert asyncio.get_running_loop().time() - started == pytest.approx(0.31)

    play(scenario)


def test_a_stream_that_nobody_waits_for_any_more_is_given_back():
    """Whoever asked was stopped in the very moment in which it was there; or another cloud was as quick."""

    async def scenario(connector, clouds):
        asking = asyncio.ensure_future(connector.connect())
        await asyncio.sleep(clouds["a"].delay_s)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        assert (asking.cancelled(), clouds["a"].closed) == (True, 1)
        clouds["a"].delay_s = clouds["b"].delay_s + 0.3
        assert (await connector.connect()).peer in {"a", "b"}
        assert clouds["a"].closed + clouds["b"].closed == 2

    play(scenario)


def test_new_streams_return_to_the_preferred_cloud_when_it_answers_again():
    """It is asked in the background, less and less often, and used from its first answer on."""

    async def scenario(connector, clouds):
        clouds["a"].up = False
        await connector.connect()
        await asyncio.sleep(20.0)
        asked = len(clouds["a"].asked)
        assert 3 <= asked <= 12
        assert connector.current == "b"
        clouds["a"].up = True
        await asyncio.sleep(8.0)
        assert connector.current == "a"
        assert (await connector.connect()).peer == "a"

    play(scenario)


def test_they_return_step_by_step_where_the_most_preferred_cloud_stays_away():
    """From the third to the second, and to the first when that answers, too."""

    async def scenario(connector, clouds):
        clouds["a"].up = clouds["b"].up = False
        assert (await connector.connect()).peer == "c"
        clouds["b"].up = True
        await asyncio.sleep(8.0)
        assert connector.current == "b"
        clouds["a"].up = True
        await asyncio.sleep(8.0)
        assert connector.current == "a"

    play(scenario)


def test_a_stream_that_broke_moves_the_next_one():
    """What sessions tell counts like a failed connection: half-open connections look well from here."""

    async def scenario(connector, clouds):
        assert (await connector.connect()).peer == "a"
        connector.note("a", alive=False)
        assert (await connector.connect()).peer == "b"

    play(scenario)


def test_when_all_are_down_the_error_names_each():
    async def scenario(connector, clouds):
        for cloud in clouds.values():
            cloud.up = False
        with pytest.raises(UnavailableError, match=r"a is down; b is down; c is down"):
            await connector.connect()

    play(scenario)


def test_without_an_address_there_is_no_connector():
    with pytest.raises(ConfigError):
        FailoverConnector({})
