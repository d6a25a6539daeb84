"""The state of a house as the system prompt shows it."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

_LINE = re.compile(r"^([a-z_]+)\.(\S+) '(.+)' = (.*)$")
_RGB = re.compile(r" \(\d+, \d+, \d+\)")
_ID = re.compile(
    r"\b(?:light|switch|fan|lock|cover|blinds|garage_door|media_player|climate|vacuum|timer|todo)\.[a-z0-9_]+"
)
_WRONG_DOMAIN = re.compile(r"^(?:blinds|garage_door)\.")


@dataclass(frozen=True)
class Device:
    """One line of the house: `light.kitchen 'Kitchen Lights' = on;80%`."""

    id: str
    name: str
    state: str

    @property
    def domain(self) -> str:
        """What kind of device it is: `light`, `cover`, ..."""
        return self.id.partition(".")[0]

    @property
    def line(self) -> str:
        """As the system prompt has it."""
        return f"{self.id} '{self.name}' = {self.state}"

    def renamed(self, name: str) -> "Device":
        """The same device under another friendly name, with an id made from it."""
        slug = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
        return replace(self, id=f"{self.domain}.{slug}", name=name)


class House:
    """All devices of one row, found by friendly name (any case) or id."""

    def __init__(self, devices: Iterable[Device]) -> None:
        self.devices = tuple(devices)
        self._by_name = {device.name.lower(): device for device in reversed(self.devices)}
        self._by_id = {device.id: device for device in self.devices}

    def find(self, name_or_id: str) -> Device | None:
        """The device of this name or id; `blinds.x` and `garage_door.x` stand for `cover.x`."""
        key = name_or_id.strip().lower()
        return self._by_name.get(key) or self._by_id.get(correct_id(key))

    def named_in(self, text: str) -> list[Device]:
        """Devices whose friendly name stands in the text; a name inside a longer found name does not count."""
        left, found = text.lower(), []
        for name in sorted(self._by_name, key=len, reverse=True):
            if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", left):
                found.append(self._by_name[name])
                left = left.replace(name, "\n")
        return found

    def is_ambiguous(self, device: Device) -> bool:
        """Whether another device has the same friendly name."""
        return sum(other.name.lower() == device.name.lower() for other in self.devices) > 1


def parse_house(system: str) -> House:
    """Read the device lines of a system prompt; the RGB triple behind a colour's name is dropped."""
    body = system.partition("Devices:")[2].partition("User instruction:")[0]
    matches = (_LINE.match(line.strip()) for line in body.splitlines())
    return House(Device(f"{m[1]}.{m[2]}", m[3], _RGB.sub("", m[4])) for m in matches if m)


def correct_id(entity_id: str) -> str:
    """Covers are sometimes called by a domain that does not exist."""
    return _WRONG_DOMAIN.sub("cover.", entity_id)


def ids_in(text: str) -> list[str]:
    """Everything in the text that looks like an entity id."""
    return _ID.findall(text)
