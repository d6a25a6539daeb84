"""Whose prompts show: what the prefix cache tells one device of another."""

from __future__ import annotations

import pytest

from outrider_cloud.engine.blocks import BlockPool
from outrider_cloud.engine.config import EngineConfig
from outrider_cloud.engine.engine import Engine
from outrider_cloud.service.config import ServiceConfig
from outrider_cloud.service.directory import Directory
from outrider_cloud.service.handler import Service
from outrider_edge.bench import methods
from outrider_shared.emulator.profile import LinkProfile
from support.virtual import Scenario, StepCost, world
from support.virtual.clock import virtual_time
from support.virtual.cloud import EngineTask, ScriptedRunner
from support.virtual.link import Network
from support.virtual.pair import recorded


def cached_tokens(*, share: bool) -> list[int]:
    """Prompt tokens found in the cache: by the device that asked first, by it again, by another device."""
    scenario = Scenario(methods.method("plain"), max_tokens=4)

    async def play(loop):
        runner = ScriptedRunner(recorded(), StepCost(0.01), loop)
        engine = Engine(runner, EngineConfig(), loop.clock)
        task = EngineTask(engine, loop)
        config = ServiceConfig(share_prefixes=share)
        service = Service(task, runner.loaded, config, Directory(10), 64)
        asker, prober = (world._client(scenario, Network(service, LinkProfile()), runner) for _ in range(2))
        task.start()
        seen = [await world._answer(scenario, client, 0, loop) for client in (asker, asker, prober)]
        task.stop()
        return [answer.totals.cached_tokens for answer in seen]

    with virtual_time() as loop:
        return loop.run_until_complete(play(loop))


def test_a_device_learns_nothing_of_anothers_prompts():
    """The same prompt is found by the device that sent it, and by no other."""
    first, again, other = cached_tokens(share=False)
    assert (first, other) == (0, 0)
    assert again > 0


def test_devices_of_one_owner_share_where_the_operator_says_so():
    first, again, other = cached_tokens(share=True)
    assert first == 0
    assert other == again > 0


@pytest.mark.parametrize("scope", [b"", bytes(16), b"\x01" * 16])
def test_a_sealed_block_is_found_in_its_own_scope_alone(scope):
    pool = BlockPool(4, 2)
    (block,) = pool.allocate(1)
    pool.seal(block, pool.chain(scope, [1, 2]))
    pool.release([block])
    assert pool.match([1, 2, 3], b"\x02" * 16) == ([], [])
    assert pool.match([1, 2, 3], scope)[0] == [block]
    pool.check()
