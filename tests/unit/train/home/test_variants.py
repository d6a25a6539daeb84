"""Training variants: invented names, second requests, courtesies; the right answer stays right."""

from random import Random

import pytest

from outrider_cloud.train.home.manners import courtesy
from outrider_cloud.train.home.rows import HomeRow, clean, shorten, split
from outrider_cloud.train.home.variants import (
    Words,
    can_share_a_house,
    name_words,
    together,
    training_chats,
    variant,
    vary,
)
from outrider_cloud.train.texts.corpus import Chat, Message, is_held_out
from unit.train.rows import home_row

WORDS = Words(["Blue", "Tower", "Garden"], ["Cinema", "Ticket"])
LIGHTS = {"name": "Kitchen Lights"}
PERSONAS = ("Al", "Blackbeard", "Robo")


def cleaned(*parts) -> HomeRow:
    return clean(home_row(*parts), frozenset({"red"}))


@pytest.fixture
def lights() -> HomeRow:
    return cleaned("turn off the kitchen lights", "kitchen lights off", ("HassTurnOff", LIGHTS))


@pytest.fixture
def lock() -> HomeRow:
    return cleaned("is the den lock locked", "the den lock is locked")


@pytest.fixture
def thermostat() -> HomeRow:
    return cleaned(
        "make it 20 degrees", "ok", ("HassClimateSetTemperature", {"name": "Zen Thermostat", "temperature": 20})
    )


def test_an_invented_name_stands_everywhere(lights):
    variants = [vary(lights, WORDS, salt) for salt in range(60)]
    renamed = [row for row in variants if row.named != lights.named]
    assert 10 < len(renamed) < 45
    for row in renamed:
        name = row.named[0].name
        assert row.turns[1].calls[0].arguments["name"] == name
        assert name.lower() in row.request.lower()
        assert name.lower() in row.turns[1].content.lower()
        assert name in shorten(row, 0).devices


def test_names_are_made_of_known_words_foreign_words_and_syllables(lights):
    names = {vary(lights, WORDS, salt).named[0].name.removesuffix(" Lights") for salt in range(200)}
    assert any(set(name.split()) & set(WORDS.known) for name in names)
    assert any(set(name.split()) & set(WORDS.foreign) for name in names)
    assert any(not set(name.split()) & {*WORDS.known, *WORDS.foreign, "Kitchen"} for name in names)


def test_foreign_words_come_from_the_chats_elsewhere(lights):
    words = name_words([lights], [Chat((Message("user", "two tickets, kitchen please"),), "taskmaster")])
    assert words.foreign == ["Please", "Tickets"]
    assert "Kitchen" in words.known


def test_a_second_request_is_about_the_same_house(lights, lock):
    row = together(lights, lock)
    chat = shorten(row, salt=1)
    assert [m.content for m in chat.messages if m.role == "user"] == [lights.request, lock.request]
    assert {"Kitchen Lights", "Den Lock"} <= set(chat.devices)


def test_requests_that_disturb_each_other_do_not_share_a_house(lights, lock, thermostat):
    other = cleaned("turn lux thermostat off", "off", ("HassTurnOff", {"name": "Lux Thermostat"}))
    assert can_share_a_house(lights, lock)
    assert can_share_a_house(lights, thermostat)
    assert not can_share_a_house(thermostat, other), "a request that names no thermostat needs a house with one"
    assert not can_share_a_house(lights, lights), "the state that the prompt shows is not true any more"


def test_a_chat_is_the_same_for_the_same_salt_and_some_have_two_requests(lights, lock):
    chats = [variant(lights, WORDS, [lock], salt) for salt in range(60)]
    assert chats == [variant(lights, WORDS, [lock], salt) for salt in range(60)]
    requests = [sum(message.role == "user" for message in chat.messages) for chat in chats]
    assert 5 < requests.count(2) < 40


@pytest.mark.parametrize("persona", PERSONAS)
def test_a_courtesy_is_answered_in_the_persona_and_leaves_the_request_alone(persona, lights):
    chat = shorten(lights, 0)
    for seed in range(20):
        polite = courtesy(chat, f"You are '{persona}', an assistant.", Random(seed))
        assert len(polite.messages) == len(chat.messages) + 2
        assert [m for m in polite.messages if m in chat.messages] == list(chat.messages)
        assert polite.messages[-1].role == "assistant"
        assert persona != "Robo" or sum("Beep-Boop" in m.content for m in polite.messages) == 1


def test_no_held_out_request_is_trained_on():
    rows = [cleaned(f"turn on kitchen lights {n}", "ok", ("HassTurnOn", LIGHTS)) for n in range(400)]
    training, held_out = split(rows)
    assert len(training) + len(held_out) == 400
    assert held_out
    held = {row.request.lower() for row in held_out}
    assert not any(is_held_out(row.request) for row in training)
    for epoch in range(3):
        for chat in training_chats(training, epoch):
            assert not {m.content.lower() for m in chat.messages if m.role == "user"} & held


def test_rare_kinds_come_again_in_other_houses():
    rows = [cleaned(f"turn on kitchen lights {n}", "ok", ("HassTurnOn", LIGHTS)) for n in range(60)]
    rows.append(cleaned("is the den lock locked", "the den lock is locked"))
    chats = list(training_chats(rows, epoch=0))
    rare = [chat.messages[0].content for chat in chats if "lock is " in chat.messages[2].content.lower()]
    assert len(chats) == 60 + 3
    assert len(set(rare)) > 1
