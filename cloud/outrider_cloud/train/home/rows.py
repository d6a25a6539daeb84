"""Cleaning of the smart-home chats (acon96/home-llm) and the shortening of their houses.

Rules, in order; a row that breaks one is dropped and counted by its reason:
1. Rows about a failed match (seven messages) are dropped.
2. Calls name a device of the house: by its friendly name, spelled as in the house.
3. `HassVacuumStart` on a timer is `HassStartTimer`; a light given a colour or brightness is `HassLightSet` with it.
4. Placeholders such as `<color>` become the value from the call, the request or the final answer.
5. An answer without a call is about a device of the house, or says that there is no such device.
What this does not do: correct grammar, or check that an answer about a state is true.
"""

import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from outrider_cloud.train.home.house import Device, House, correct_id, ids_in, parse_house
from outrider_cloud.train.texts.corpus import Call, Chat, CorpusError, Message, is_held_out, read_rows, stable_hash

FILE = "home_assistant.train.jsonl.zst"
_PERSONAS = {
    "Blackbeard": (
        "You are 'Blackbeard', a helpful AI Assistant that controls the devices in a house but sounds like a pirate."
    ),
    "Robo": "You are 'Robo', a helpful AI Robot that controls the devices in a house. Always begin with 'Beep-Boop'.",
    "Al": "You are 'Al', a helpful AI Assistant that controls the devices in a house.",
}
_PLACEHOLDER = re.compile(r"<([a-z_]+)>")
_COLOR = re.compile(r";([a-z]+) \(\d")
_DURATION = re.compile(r"\b(?:for|set a) (.+ (?:second|minute|hour)s?)\b")
_NOT_FOUND = re.compile(r"\b(?:locate|find|found|see|recogni[sz]e|detect|identify|spot|exist)\b")
_ARGUMENT_OF = {"temp_f": "temperature", "temp_c": "temperature", "todo": "item"}


@dataclass(frozen=True)
class HomeRow:
    """A cleaned row: the turns after the system prompt, the whole house, and the devices that the turns are about."""

    persona: str
    house: House
    named: tuple[Device, ...]
    turns: tuple[Message, ...]
    key: int

    @property
    def request(self) -> str:
        """What the user says."""
        return self.turns[0].content


class Unusable(Exception):  # noqa: N818 - a reason to drop a row, not a fault
    """Why a row is dropped; never leaves this module."""


def read_home(folder: Path) -> tuple[list[HomeRow], Counter[str]]:
    """All usable rows, and how many were dropped for which reason. Raises CorpusError."""
    raw = list(read_rows(folder / FILE))
    colors = frozenset(color for _, row in raw for color in _COLOR.findall(_system(row)))
    rows, dropped = [], Counter[str]()
    for place, row in raw:
        try:
            rows.append(clean(row, colors))
        except Unusable as reason:
            dropped[str(reason)] += 1
        except (KeyError, TypeError, IndexError, ValueError) as error:
            raise CorpusError(f"{place}: not a smart-home chat: {error!r}") from error
    return rows, dropped


def _system(row: dict[str, Any]) -> str:
    messages = row.get("messages") or [{}]
    return str(messages[0].get("content", ""))


def clean(row: dict[str, Any], colors: frozenset[str]) -> HomeRow:
    """Apply the rules above to one row; raises Unusable."""
    system, user, first, *rest = row["messages"]
    if len(rest) > 2:
        raise Unusable("failed match")
    house = parse_house(system["content"])
    persona = next(text for name, text in _PERSONAS.items() if f"'{name}'" in system["content"])
    request = " ".join(user["content"].split())
    for entity_id in ids_in(request):
        request = request.replace(entity_id, correct_id(entity_id))
    final = rest[1]["content"] if rest else ""
    calls = tuple(_call(call, house, request, first["content"], colors) for call in first.get("tool_calls") or ())
    named = _devices(calls, house, request, first["content"])
    values = _values(calls)
    answer = _tidy(_resolve(first["content"], values), house)
    turns = [Message("user", request), Message("assistant", answer, calls)]
    if calls:
        turns += [Message("tool", "Success") for _ in calls]
        turns.append(Message("assistant", _tidy(_resolve(final, values), house)))
    return HomeRow(persona, house, named, tuple(turns), stable_hash(system["content"], request))


def _call(raw: dict[str, str], house: House, request: str, answer: str, colors: frozenset[str]) -> Call:
    arguments = json.loads(raw["arguments"])
    device = house.find(arguments["name"])
    if device is None:
        raise Unusable("device is not in the house")
    name, arguments = raw["name"], arguments | {"name": device.name}
    slots = set(_PLACEHOLDER.findall(answer))
    if device.domain == "timer" and name == "HassVacuumStart":
        name = "HassStartTimer"
        arguments["duration"] = _value("duration", request, "", colors)
    elif name == "HassTurnOn" and slots & {"color", "brightness"}:
        name = "HassLightSet"
        arguments |= {slot: _value(slot, request, "", colors) for slot in sorted(slots & {"color", "brightness"})}
    return Call(name, arguments)


def _value(slot: str, request: str, final: str, colors: frozenset[str]) -> str | int:
    text = f"{request} {final}".lower()
    if slot == "color":
        found: list[str] = [word for word in re.findall(r"[a-z]+", text) if word in colors]
    elif slot == "duration":
        found = _DURATION.findall(request.lower())
    else:
        found = re.findall(r"\d+", text)
    if not found:
        raise Unusable(f"no value for <{slot}>")
    return found[-1] if slot in ("color", "duration") else int(found[-1])


def _values(calls: tuple[Call, ...]) -> dict[str, str]:
    values = {key: str(value) for call in calls for key, value in call.arguments.items()}
    for slot, argument in _ARGUMENT_OF.items():
        if argument in values:
            values[slot] = values[argument]
    if "item" in values:
        values["todo"] = values["item"].lower()
    return {key: value.lower() if key.endswith("mode") else value for key, value in values.items()}


def _resolve(text: str, values: dict[str, str]) -> str:
    missing = [slot for slot in _PLACEHOLDER.findall(text) if slot not in values]
    if missing:
        raise Unusable(f"no value for <{missing[0]}>")
    return _PLACEHOLDER.sub(lambda match: values[match[1]], text)


def _devices(calls: tuple[Call, ...], house: House, request: str, answer: str) -> tuple[Device, ...]:
    if calls:
        found = [house.find(call.arguments["name"]) for call in calls]
        return tuple(dict.fromkeys(device for device in found if device))
    if _NOT_FOUND.search(answer.lower()):
        if house.named_in(request):
            raise Unusable("said to be missing, but is there")
        return ()
    named = house.named_in(request)
    if not named:
        raise Unusable("answer without a device")
    if any(house.is_ambiguous(device) for device in named):
        raise Unusable("two devices of one name")
    return tuple(named)


def _tidy(text: str, house: House) -> str:
    for entity_id in ids_in(text):
        device = house.find(entity_id)
        if device is None:
            raise Unusable("device is not in the house")
        text = text.replace(entity_id, device.name)
    text = re.sub(r"\bi(?=['\s])", "I", " ".join(text.replace("\u2019", "'").split()))
    text = re.sub(r"^beep-boop", "Beep-Boop", text)
    return text[:1].upper() + text[1:]


def split(rows: list[HomeRow]) -> tuple[list[HomeRow], list[HomeRow]]:
    """(training, held-out), by a hash of the request's text."""
    held = [row for row in rows if is_held_out(row.request)]
    return [row for row in rows if not is_held_out(row.request)], held


def shorten(row: HomeRow, salt: int, most: int = 7) -> Chat:
    """The chat with a house of at most `most` devices: those it is about and some others, fixed by the salt."""
    rng = Random(stable_hash("house", row.key, salt))  # noqa: S311
    devices = [*row.named, *_distractors(row, rng, max(rng.randint(3, most) - len(row.named), 1))]
    rng.shuffle(devices)
    system = "\n".join([row.persona, "Devices:", *(device.line for device in devices)])
    names = tuple(name for device in devices for name in (device.name, device.id))
    return Chat((Message("system", system), *row.turns), "home", names)


def _distractors(row: HomeRow, rng: Random, count: int) -> list[Device]:
    """Devices that do not change the right answer: no second thermostat where the request names none."""
    request = row.request.lower()
    unspoken = {device.domain for device in row.named if device.name.lower() not in request}
    taken = {device.name.lower() for device in row.named}
    others = [d for d in row.house.devices if d.domain not in unspoken and d.name.lower() not in taken]
    if not row.named:
        others = [device for device in others if device.name.lower() not in request]
    unique = list({device.name.lower(): device for device in others}.values())
    return rng.sample(unique, min(count, len(unique)))


def kind(row: HomeRow) -> str:
    """What is asked for: a tool, `several` calls, the `status` of a device, or a `missing` device."""
    calls = row.turns[1].calls
    if len(calls) > 1:
        return "several"
    return calls[0].name if calls else "status" if row.named else "missing"
