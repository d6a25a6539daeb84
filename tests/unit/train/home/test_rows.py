"""Cleaning of smart-home rows, and the shortening of houses."""

from pathlib import Path
from typing import Any

import pytest

from outrider_cloud.train.home.rows import FILE, HomeRow, Unusable, clean, read_home, shorten
from outrider_cloud.train.texts.corpus import Call, CorpusError
from unit.train.rows import home_row, write_rows

COLORS = frozenset({"saddlebrown", "red"})


def cleaned(row: dict[str, Any]) -> HomeRow:
    return clean(row, COLORS)


def test_a_colour_becomes_an_argument_and_fills_its_placeholder():
    request = "turn kitchen lights red"
    row = cleaned(
        home_row(request, "making it <color>", ("HassTurnOn", {"name": "kitchen lights"}), "it's <color> now")
    )
    assert row.turns[1].content == "Making it red"
    assert row.turns[1].calls == (Call("HassLightSet", {"name": "Kitchen Lights", "color": "red"}),)
    assert [turn.content for turn in row.turns[2:]] == ["Success", "It's red now"]


def test_the_number_in_the_request_fills_brightness():
    row = cleaned(home_row("dim kitchen lights to 40", "<brightness>%", ("HassTurnOn", {"name": "Kitchen Lights"})))
    assert row.turns[1].content == "40%"
    assert row.turns[1].calls[0].arguments == {"name": "Kitchen Lights", "brightness": 40}


@pytest.mark.parametrize("name", ["blinds.kitchen", "garage_door.kitchen", "cover.kitchen", "kitchen blinds"])
def test_a_cover_under_any_domain_becomes_its_friendly_name(name: str):
    row = cleaned(home_row(f"open {name}", f"opening {name} now", ("HassTurnOn", {"name": name})))
    assert row.turns[1].calls[0].arguments["name"] == "Kitchen Blinds"
    assert "kitchen blinds" in row.turns[1].content.lower()


@pytest.mark.parametrize(
    "duration", ["five minutes", "half an hour", "one minute and thirty seconds", "two and a half hours"]
)
@pytest.mark.parametrize("request_text", ["set the oven timer for {}.", "set a {} oven timer."])
def test_a_vacuum_start_on_a_timer_starts_the_timer(duration: str, request_text: str):
    request = request_text.format(duration)
    row = cleaned(home_row(request, "set for <duration>", ("HassVacuumStart", {"name": "Oven timer"})))
    assert row.turns[1].calls[0] == Call("HassStartTimer", {"name": "Oven timer", "duration": duration})
    assert row.turns[1].content == f"Set for {duration}"


def test_a_device_outside_of_the_house_drops_the_row():
    with pytest.raises(Unusable, match="not in the house"):
        cleaned(home_row("turn on the spa", "on it", ("HassTurnOn", {"name": "Spa"})))


def test_a_placeholder_without_a_value_drops_the_row():
    with pytest.raises(Unusable, match="<color>"):
        cleaned(home_row("turn kitchen lights nice", "<color>", ("HassTurnOn", {"name": "Kitchen Lights"})))


def test_rows_are_dropped_by_reason_and_broken_rows_are_named(tmp_path: Path):
    good = home_row("is the den lock locked", "the den lock is locked")
    failed = home_row("turn on the spa", "on it", ("HassTurnOn", {"name": "Spa"}))
    write_rows(tmp_path / FILE, [good, failed])
    rows, dropped = read_home(tmp_path)
    assert len(rows) == 1
    assert dropped == {"device is not in the house": 1}
    write_rows(tmp_path / FILE, [good, {"messages": [{"role": "system", "content": ""}]}])
    with pytest.raises(CorpusError, match=r"zst:2: not a smart-home chat"):
        read_home(tmp_path)


def test_a_short_house_holds_what_the_chat_is_about_and_is_the_same_for_the_same_salt():
    row = cleaned(home_row("is the den lock locked", "the den lock is locked"))
    houses = {shorten(row, salt) for salt in range(20)}
    assert len(houses) > 5
    assert all("Den Lock" in chat.devices and len(chat.devices) <= 14 for chat in houses)
    assert shorten(row, 3) == shorten(row, 3)


def test_no_second_device_of_the_kind_where_the_request_names_none():
    row = cleaned(
        home_row(
            "make it 20 degrees", "ok", ("HassClimateSetTemperature", {"name": "Zen Thermostat", "temperature": 20})
        )
    )
    for salt in range(20):
        assert "Lux Thermostat" not in shorten(row, salt).devices
