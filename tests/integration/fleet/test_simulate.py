"""The command that simulates a fleet, against a real broker."""

from __future__ import annotations

import asyncio
import time

from outrider_cloud.fleet.simulate.behaviour import Behaviour, Draft
from outrider_cloud.fleet.simulate.run import Plan, simulate
from outrider_shared.fleet.desired import Assignment, Config, Desired
from outrider_shared.fleet.messages import Presence, Reported, Telemetry, UpdateState
from outrider_shared.fleet.mqtt import MqttBroker
from support.mosquitto import new_fleet, running
from support.plane import plane_of


def test_simulated_devices_speak_as_real_ones_and_their_drafts_behave_as_told(tmp_path):
    home = new_fleet(tmp_path / "f")
    plan = Plan(6, seconds=None, telemetry_s=0.2, seed=1)
    behaviour = Behaviour({"bad": Draft(0.3)}, Draft(0.8), requests_s=20.0, step_s=0.01)

    async def run():
        async with plane_of(home, MqttBroker(home.mqtt())) as (plane, seen):
            task = asyncio.create_task(simulate(home, plan, behaviour))
            for name in plan.names():
                await seen.until(Presence, lambda m: m.online)
                bad = Assignment("r", 1, "draft/int8/bad-1.tar", "a" * 64)
                half = bad if name < "sim-00003" else None
                await plane.publish_desired(Desired(name, 1, 1, time.time(), Config(), half))
            async with asyncio.timeout(30):
                done: set[str] = set()
                while len(done) < 6:
                    done = {a.device for a in seen.all if getattr(a.message, "version", 0) == 1}
                    await asyncio.sleep(0.05)
            await seen.until(Reported, lambda m: m.state is UpdateState.COMMITTED)
            await asyncio.sleep(2.0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await asyncio.sleep(0.3)
            rates = {}
            for target in ("bundled", "draft/int8/bad-1.tar"):
                told = [
                    a.message
                    for a in seen.all
                    if isinstance(a.message, Telemetry) and a.message.active.target == target
                ]
                rates[target] = sum(m.taken[0] for m in told) / sum(m.tried[0] for m in told)
            assert abs(rates["bundled"] - 0.8) < 0.05
            assert abs(rates["draft/int8/bad-1.tar"] - 0.3) < 0.05
            last = {a.device: a.message for a in seen.all if isinstance(a.message, Presence)}
            assert {m.reason for m in last.values()} == {"goodbye"}
            assert all(a.lost == 0 for a in seen.all)
            assert seen.refusals == []

    with running(home):
        asyncio.run(run())
