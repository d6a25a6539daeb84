"""The small parts of the agent: usage by depth, the outbox, configuration."""

from __future__ import annotations

import dataclasses

import pytest

from outrider_edge.agent.config import AgentConfig
from outrider_edge.agent.disk import Disk
from outrider_edge.agent.outbox import Outbox
from outrider_edge.agent.usage import UsageMeter, quantile
from outrider_edge.session.events import Offline, Online, Origin, Reconnecting, Token, Tokens, Totals
from outrider_shared.errors import ConfigError
from outrider_shared.fleet.messages import LATENCY_EDGES_MS

A, C, B, X = Origin.ACCEPTED, Origin.CORRECTION, Origin.BONUS, Origin.CLOUD


@pytest.mark.parametrize(
    ("origins", "tried", "taken"),
    [
        ([A, A, C], (1, 1, 1), (1, 1, 0)),
        ([A, A, B], (1, 1), (1, 1)),
        ([C, C, X], (2,), (0,)),
        ([A, B, A, C], (2, 1), (2, 0)),
        ([X, X], (), ()),
    ],
)
def test_acceptance_is_counted_by_depth_below_the_targets_own_tokens(origins, tried, taken):
    meter = UsageMeter()
    listen = meter.follow()
    for origin in origins:
        listen(Tokens((Token(1, origin),)))
    window = meter.read()
    assert (window["tried"], window["taken"]) == (tried, taken)


def test_a_window_is_read_once_and_a_burst_over_its_edge_is_counted_on():
    meter = UsageMeter()
    listen = meter.follow()
    listen(Tokens((Token(1, A),)))
    assert meter.read()["taken"] == (1,)
    listen(Tokens((Token(1, A), Token(1, C))))
    assert (meter.read()["tried"], meter.read()["tried"]) == ((0, 1, 1), ())


def test_time_without_the_cloud_is_counted_while_an_answer_waits_for_it():
    """From a break to the next token or word of it, over the edge of a window, and not while nobody asks."""
    now = [100.0]
    meter = UsageMeter(lambda: now[0])
    first, second = meter.follow(), meter.follow()
    first(Reconnecting("cut", 0.1))
    now[0] += 2
    second(Offline("silent", 1.0))
    now[0] += 1
    assert meter.read()["offline_s"] == pytest.approx(3.0)
    now[0] += 0.5
    first(Tokens((Token(1, C),)))
    assert meter.read()["offline_s"] == pytest.approx(0.5)
    now[0] += 5
    second(Offline("silent", 4.0))
    now[0] += 1
    second(Online())
    assert meter.read()["offline_s"] == pytest.approx(5.0)
    second(Reconnecting("cut", 0.1))
    first.close()
    now[0] += 1
    second.close()
    now[0] += 60
    assert meter.read()["offline_s"] == pytest.approx(1.0)


def test_latencies_fall_into_their_buckets_and_quantiles_are_exact():
    meter = UsageMeter()
    for ms in range(1, 101):
        meter.answered(10, ms / 100, 0.001, Totals(uplink_bytes=3))
    window = meter.read()
    assert (window["p50_ms"], window["p95_ms"]) == pytest.approx((50.0, 95.0))
    assert sum(window["token_ms"]) == window["requests"] == 100
    assert window["bytes_up"] == 300
    assert len(window["token_ms"]) == len(LATENCY_EDGES_MS) + 1 <= 64
    assert quantile([], 0.5) is None
    assert quantile([7.0], 0.95) == 7.0


def test_an_outbox_keeps_the_newest_in_order_over_a_restart(tmp_path):
    box = Outbox(Disk(), tmp_path / "box", most=3)
    for number in range(5):
        box.put(number, bytes([number]))
    assert box.dropped == 2
    box = Outbox(Disk(), tmp_path / "box", most=3)
    assert [box.get(number) for number in box.waiting()] == [b"\2", b"\3", b"\4"]
    box.done(2)
    assert box.waiting() == [3, 4]


def test_an_agents_file_is_read_and_a_bad_one_refused(tmp_path):
    good = {
        "device": "d1", "tenant": "main", "broker": "h:8883", "artifacts": "https://h/a/", "device_class": "int8",
    }  # fmt: skip
    file = tmp_path / "agent.toml"

    def write(**changes) -> None:
        file.write_text("".join(f'{key} = "{value}"\n' for key, value in {**good, **changes}.items() if value))

    write()
    config = AgentConfig.load(tmp_path)
    assert (config.device, config.artifacts, config.mqtt.port) == ("d1", "https://h/a", 8883)
    assert dataclasses.replace(config, broker="h").broker == "h"
    for changes in ({"device": "D 1"}, {"tenant": "a/b"}, {"broker": None}, {"stranger": "x"}):
        write(**changes)
        with pytest.raises(ConfigError):
            AgentConfig.load(file)
