"""What Prometheus sees of the verifier, scraped over HTTP while it answers."""

from __future__ import annotations

import asyncio
import urllib.request
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from outrider_cloud.build import build_engine
from outrider_cloud.engine.config import EngineConfig
from outrider_cloud.service.config import ServiceConfig
from outrider_cloud.service.server import Server
from outrider_shared.errors import ConfigError
from support.service import open_message, raw_stream, read_all


def _server(model: Any, metrics: str) -> Server:
    return Server(build_engine(model, EngineConfig(kv_tokens=4096)), ServiceConfig(metrics=metrics, drain_s=5.0))


def _scrape(address: str) -> dict[tuple[str, ...], float]:
    """Samples by name and values of labels."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=5) as page:
        families = list(text_string_to_metric_families(page.read().decode()))
    return {
        (sample.name.removeprefix("outrider_cloud_"), *sample.labels.values()): sample.value
        for family in families
        for sample in family.samples
    }


async def _answer(address: str, message: Any) -> None:
    async with raw_stream(address) as call:
        await call.write(message)
        await read_all(call)


def test_tokens_steps_and_refusals_are_counted(tiny):
    """Answers and refusals show at the next scrape, tokens by who proposed them."""

    async def run():
        server = _server(tiny, "127.0.0.1:0")
        address = await server.start()
        try:
            before = await asyncio.to_thread(_scrape, server.metrics_address)
            await _answer(address, open_message(tiny, [1, 2, 3], max_tokens=8))
            await _answer(address, open_message(tiny, [1, 2, 3], vocabulary_size=3))
            return before, await asyncio.to_thread(_scrape, server.metrics_address)
        finally:
            await server.stop()

    before, after = asyncio.run(run())
    assert before["tokens_total",] == before["time_to_first_token_seconds_count",] == 0
    assert after["tokens_total",] == 8
    assert sum(after["answer_tokens_total", origin] for origin in ("edge", "lookup", "model", "target")) == 8
    assert after["answer_tokens_total", "target"] == after["steps_total",]
    assert after["step_seconds_total",] >= after["forward_seconds_total",] > 0
    assert after["time_to_first_token_seconds_count",] == after["answer_seconds_count",] == 1
    assert after["refused_total", "mismatch"] == 1
    assert after["sessions_ended_total", "finished"] == 1
    assert sum(after["kv_blocks", state] for state in ("used", "cached", "free")) == 4096 / EngineConfig().block_size
    assert after["streams",] == 0


def test_nothing_is_served_unless_asked(tiny):
    """Without an address there is no page."""

    async def run():
        server = _server(tiny, "")
        await server.start()
        await server.stop()
        return server.metrics_address

    assert not asyncio.run(run())


@pytest.mark.parametrize("address", ["9090", "localhost:", "localhost:http"])
def test_an_address_that_is_none_is_refused(address):
    with pytest.raises(ConfigError, match="metrics address"):
        ServiceConfig(metrics=address)


def test_a_port_that_is_taken_is_a_sentence(tiny):
    async def run():
        first = _server(tiny, "127.0.0.1:0")
        await first.start()
        try:
            second = _server(tiny, first.metrics_address)
            with pytest.raises(ConfigError, match=f"cannot serve metrics on {first.metrics_address}"):
                await second.start()
        finally:
            await first.stop()

    asyncio.run(run())
