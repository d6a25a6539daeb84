"""One pass over the smart-home rows as a model is to see them: other houses, other names, a second request.

The rows are few and their names fewer; a model that sees only them learns the names by heart. So a third of the devices
that a request names get another name, made of the data's words, of words from elsewhere, or of syllables that mean
nothing; so do some of the devices beside them. People also go on talking: a share of the chats has a second request
about the same house, or begins or ends with a courtesy.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from random import Random

from outrider_cloud.train.home.house import Device, House
from outrider_cloud.train.home.manners import courtesy
from outrider_cloud.train.home.rows import HomeRow, kind, shorten
from outrider_cloud.train.texts.corpus import Call, Chat, Message, stable_hash

_SYLLABLES = [
    first + vowel + last for first in "bdfgklmnprstvz" for vowel in "aeiou" for last in ("", "l", "n", "r", "x")
]
_FAIR_SHARE, _MOST_COPIES = 0.05, 4
_RENAMED, _SECOND_REQUEST, _COURTESY = 0.45, 0.3, 0.06
_MOST_IN_ONE_HOUSE = 6


@dataclass(frozen=True)
class Words:
    """What names are made of: the words of the data's own names, and words from elsewhere."""

    known: list[str]
    foreign: list[str]


def name_words(rows: Sequence[HomeRow], elsewhere: Sequence[Chat] = ()) -> Words:
    """The words that friendly names are made of, and capitalised words of other chats, each sorted."""
    known = {word for row in rows[:500] for device in row.house.devices for word in device.name.split()}
    texts = (message.content for chat in elsewhere for message in chat.messages)
    foreign = {word.capitalize() for text in texts for word in re.findall(r"[a-z]{4,9}", text)}
    return Words(sorted(known), sorted(foreign - known))


def training_chats(rows: Sequence[HomeRow], epoch: int, elsewhere: Sequence[Chat] = ()) -> Iterator[Chat]:
    """One pass over the training rows with this epoch's houses, names and second requests.

    Rows of a kind that has less than a twentieth of all rows come more than once, each time in another house.
    """
    words = name_words(rows, elsewhere)
    counts = Counter(kind(row) for row in rows)
    by_persona: dict[str, list[HomeRow]] = {}
    for row in rows:
        by_persona.setdefault(row.persona, []).append(row)
    for row in rows:
        copies = min(_MOST_COPIES, max(1, round(_FAIR_SHARE * len(rows) / counts[kind(row)])))
        for salt in range(epoch * _MOST_COPIES, epoch * _MOST_COPIES + copies):
            yield variant(row, words, by_persona[row.persona], salt)


def variant(row: HomeRow, words: Words, others: Sequence[HomeRow], salt: int) -> Chat:
    """One training chat of a row, fixed by the salt; `others` are rows of the same persona for a second request."""
    rng = Random(stable_hash("variant", row.key, salt))  # noqa: S311 - a choice, not a secret
    row = vary(row, words, salt)
    if rng.random() < _SECOND_REQUEST:
        second = vary(rng.choice(others), words, salt + 1)
        if second.persona == row.persona and can_share_a_house(row, second):
            row = together(row, second)
            return shorten(row, salt, most=_MOST_IN_ONE_HOUSE)
    chat = shorten(row, salt)
    return courtesy(chat, row.persona, rng) if rng.random() < _COURTESY else chat


def can_share_a_house(first: HomeRow, second: HomeRow) -> bool:
    """Whether both requests keep their right answers when the devices of both stand in one house."""
    return _is_clear(first, second.named) and _is_clear(second, first.named)


def _is_clear(row: HomeRow, added: tuple[Device, ...]) -> bool:
    request = row.request.lower()
    unspoken = {device.domain for device in row.named if device.name.lower() not in request}
    taken = {device.name.lower() for device in row.named} | {device.id for device in row.named}
    return not any(
        device.domain in unspoken or device.name.lower() in request or {device.name.lower(), device.id} & taken
        for device in added
    )


def together(first: HomeRow, second: HomeRow) -> HomeRow:
    """Both requests in one chat about one house."""
    house = House([*first.named, *second.named, *first.house.devices])
    turns = (*first.turns, *second.turns)
    return replace(first, house=house, named=(*first.named, *second.named), turns=turns)


def vary(row: HomeRow, words: Words, salt: int) -> HomeRow:
    """The row with a capital letter now and then, and with invented names (so that names are copied, not known)."""
    rng = Random(stable_hash("vary", row.key, salt))  # noqa: S311
    if row.named and rng.random() < _RENAMED:
        row = _rename(row, words, rng)
    if rng.random() < 0.5:
        request = row.request[:1].upper() + row.request[1:]
        row = replace(row, turns=(Message("user", request), *row.turns[1:]))
    return row


def _rename(row: HomeRow, words: Words, rng: Random) -> HomeRow:
    """Other names for the devices that the request names, and for some of those beside them."""
    for device in row.named:
        if device.name.lower() not in row.request.lower():
            continue
        name = invented_name(device, words, rng)
        if row.house.find(name) is not None:
            continue
        new = device.renamed(name)
        turns = tuple(_replace_name(turn, device.name, name) for turn in row.turns)
        row = replace(row, turns=turns, named=tuple(new if d == device else d for d in row.named))
    beside = [
        device.renamed(invented_name(device, words, rng)) if rng.random() < 0.4 else device
        for device in row.house.devices
    ]
    return replace(row, house=House(beside))


def invented_name(device: Device, words: Words, rng: Random) -> str:
    """A name that nobody had: data's words, foreign words, or syllables; mostly with the kind of device behind them."""
    draw = rng.random()
    if draw < 0.4 or not words.foreign:
        parts = rng.sample(words.known, min(len(words.known), rng.randint(1, 3)))
    elif draw < 0.75:
        parts = rng.sample(words.foreign, min(len(words.foreign), rng.randint(1, 2)))
    else:
        parts = ["".join(rng.choices(_SYLLABLES, k=rng.randint(2, 3))).capitalize()]
    return " ".join([*parts, device.name.split()[-1]] if rng.random() < 0.8 else parts)


def _replace_name(turn: Message, old: str, new: str) -> Message:
    content = re.sub(
        re.escape(old), lambda match: new if match[0] == old else new.lower(), turn.content, flags=re.IGNORECASE
    )
    if turn.content and turn.content[0].isupper():
        content = content[:1].upper() + content[1:]
    calls = tuple(_renamed_call(call, old, new) for call in turn.calls)
    return Message(turn.role, content, calls)


def _renamed_call(call: Call, old: str, new: str) -> Call:
    return replace(call, arguments=call.arguments | {"name": new}) if call.arguments["name"] == old else call
