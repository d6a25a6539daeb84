"""Tool calls in the target's greedy answers: do they parse, do they name a device of the house, are they the data's."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from outrider_pair.texts import Text

MARK = "<tool_call>"


def parse_calls(text: str) -> list[dict[str, Any]] | None:
    """The tool calls of an answer; None if one of them is no call."""
    calls = []
    for part in text.split(MARK)[1:]:
        body, closed, _ = part.partition("</tool_call>")
        try:
            call = json.loads(body)
            if not closed or not isinstance(call["name"], str) or not isinstance(call["arguments"], dict):
                return None
        except (json.JSONDecodeError, KeyError, TypeError):
            return None
        calls.append(call)
    return calls


def call_figures(texts: Sequence[Text], answers: Sequence[str]) -> dict[str, Any] | None:
    """Figures over the texts about a house (those with `devices`), None without any.

    Returns:
        `answers`: how many; `with_call`: of them, answers with a call; `well_formed_share`: of those, all calls parse
        and name a device of the house. With the data's own answers known (`compared` of them) also `wanted`: how many
        ask for a call; `wanted_well_formed_share`: of those, answers with well-formed calls; `same_share`: of all
        compared, answers whose calls, or absence of calls, are the data's.
    """
    asked = [(text, answer) for text, answer in zip(texts, answers, strict=True) if text.devices]
    if not asked:
        return None
    good = [_well_formed(text, answer) for text, answer in asked]
    called = [MARK in answer for _, answer in asked]
    known = [(i, parse_calls(text.reference)) for i, (text, _) in enumerate(asked) if text.reference]
    wanted = [i for i, calls in known if calls]
    same = [parse_calls(asked[i][1]) == calls for i, calls in known]
    return {
        "answers": len(asked),
        "with_call": sum(called),
        "well_formed_share": _share([good[i] for i, has in enumerate(called) if has]),
        "compared": len(known),
        "wanted": len(wanted),
        "wanted_well_formed_share": _share([good[i] for i in wanted]),
        "same_share": _share(same),
    }


def _well_formed(text: Text, answer: str) -> bool:
    calls = parse_calls(answer)
    return bool(calls) and all(call["arguments"].get("name") in text.devices for call in calls or [])


def _share(found: Sequence[bool]) -> float | None:
    return sum(found) / len(found) if found else None
