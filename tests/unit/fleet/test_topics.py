"""Topics and access rules; the broker's file says what the functions say."""

from __future__ import annotations

import pytest

from outrider_cloud.fleet.broker import access_rules
from outrider_cloud.fleet.plane import CONTROLLER
from outrider_shared.errors import ConfigError, ProtocolError
from outrider_shared.fleet import topics
from outrider_shared.ids import parse_device_id

ALL = [topic.of("main", device) for topic in topics.DEVICE_TOPICS for device in ("d1", "d2")]
ALL += [
    topics.service_state("main"),
    "$SYS/x",
    *(f"outrider/v1/{rest}" for rest in ("main/d/d1/tele/x", "o/d/d1/tele")),
]


def file_allows(verb: str, topic: str, user: str) -> bool:
    """What Mosquitto does with the ACL file: patterns for everyone, with %u replaced by the user."""
    rules = [line.split(" ", 2) for line in access_rules("main", (CONTROLLER,)).splitlines() if "pattern" in line]
    return any(kind == verb and topics.matches(rule.replace("%u", user), topic) for _, kind, rule in rules)


@pytest.mark.parametrize("topic", ALL)
@pytest.mark.parametrize("device", ["d1", "d2"])
def test_the_brokers_file_and_the_rules_in_code_agree(topic, device):
    assert file_allows("write", topic, device) == topics.device_may_publish(topic, "main", device)
    assert file_allows("read", topic, device) == topics.device_may_read(topic, "main", device)


def test_a_device_writes_and_reads_nothing_of_another():
    for topic in topics.DEVICE_TOPICS:
        assert not topics.device_may_publish(topic.of("main", "d2"), "main", "d1")
        assert not topics.device_may_read(topic.of("main", "d2"), "main", "d1")


def test_no_topic_is_both_written_and_read_by_a_device():
    for topic in ALL:
        assert not (topics.device_may_publish(topic, "main", "d1") and topics.device_may_read(topic, "main", "d1"))


def test_a_topic_is_read_back_as_its_device_and_row():
    for topic in topics.DEVICE_TOPICS:
        assert topics.parse(topic.of("main", "d1"), "main") == ("d1", topic)


@pytest.mark.parametrize(
    "topic", ["outrider/v1/main/d/d1", "outrider/v1/main/d/D1/presence", "x", "outrider/v1/a/d/d1/tele"]
)
def test_other_topics_are_refused(topic):
    with pytest.raises(ProtocolError):
        topics.parse(topic, "main")


@pytest.mark.parametrize("name", ["", "a", "+", "#", "a/b", "A1", "svc-controller", "-a", "a" * 64, "a\n"])
def test_a_name_that_could_reach_other_topics_is_no_device(name):
    with pytest.raises(ProtocolError):
        parse_device_id(name)


def test_a_tenant_is_one_level():
    with pytest.raises(ConfigError):
        topics.check_tenant("a/b")


@pytest.mark.parametrize(
    ("pattern", "topic", "expected"),
    [
        ("a/+/c", "a/b/c", True), ("a/+/c", "a/b/d", False), ("a/#", "a/b/c", True), ("a/#", "a", True),
        ("a/+", "a/b/c", False), ("a/b", "a/b", True), ("a/b/c", "a/b", False), ("+/+", "a/b", True),
    ],
)  # fmt: skip
def test_filters_match_as_the_standard_says(pattern, topic, expected):
    assert topics.matches(pattern, topic) is expected
