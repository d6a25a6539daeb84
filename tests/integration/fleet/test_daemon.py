"""The endpoint with an agent in it: its draft is replaced while it answers, and nobody who asks can tell."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.request

from outrider_cloud.fleet.artifacts.publish import publish
from outrider_edge.agent.update.selftest import make_golden
from outrider_shared.fleet.desired import Assignment, Config, Desired
from outrider_shared.fleet.messages import Command, CommandName, Reported, Telemetry, UpdateState
from outrider_shared.fleet.mqtt import MqttBroker
from outrider_shared.packs import bundled_pack
from support.artifacts import artifact_server
from support.daemon import CHAT, cloud, daemon
from support.mosquitto import new_fleet, running
from support.plane import plane_of
from support.updates import variant


def ask(url: str) -> str:
    body = json.dumps({"model": "outrider", "messages": CHAT, "temperature": 0, "max_tokens": 24}).encode()
    request = urllib.request.Request(f"{url}/v1/chat/completions", body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)["choices"][0]["message"]["content"]


def test_a_device_that_answers_gets_a_new_draft_and_no_request_is_lost_or_changed(tmp_path):
    home = new_fleet(tmp_path / "f", "d1")
    pack = variant(bundled_pack(), tmp_path / "next", "next")
    path = publish(home.repository, pack, version="1", golden=make_golden(pack))
    sha256 = home.repository.listed()[path].hashes["sha256"]

    async def run(url: str):
        async with plane_of(home, MqttBroker(home.mqtt())) as (plane, seen):
            await plane.publish_desired(Desired("d1", 1, 1, time.time(), Config(telemetry_s=0.3)))
            await seen.until(Reported, lambda m: m.version == 1)
            texts = [await asyncio.to_thread(ask, url)]
            told = await seen.until(Telemetry, lambda m: m.requests)
            assert told.tokens > 0
            assert sum(told.taken) <= sum(told.tried) > 0
            assert told.bytes_up > 0
            assert told.p95_ms > 0

            config = Config(telemetry_s=0.3, probation_requests=2, probation_s=1e6)
            await plane.publish_desired(Desired("d1", 1, 2, time.time(), config, Assignment("roll", 1, path, sha256)))
            async with asyncio.timeout(300):
                while "committed" not in seen.states("roll"):
                    texts.append(await asyncio.to_thread(ask, url))
                    await asyncio.sleep(0.05)  # as people do; what the update does is done in between
            assert len(texts) > 2
            assert set(texts) == {texts[0]}
            reported = await seen.until(Reported, lambda m: m.state is UpdateState.COMMITTED)
            assert reported.active.target == path
            await asyncio.to_thread(ask, url)
            await seen.until(Telemetry, lambda m: m.requests and m.active.target == path)

            now = time.time()
            logs = await plane.command(Command("c1", "d1", CommandName.COLLECT_LOGS, now, now + 60), 30)
            assert "pack swapped" in logs.output["log"]
            assert "kitchen" not in logs.output["log"]

    device = str(home.device_folder("d1"))
    with (
        running(home),
        artifact_server(home),
        cloud(tmp_path) as target,
        daemon(tmp_path, target.address, "--fleet", device) as endpoint,
    ):
        asyncio.run(run(endpoint.address))
