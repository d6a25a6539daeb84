"""Tool calls in answers: read or refused, and how many are right."""

from __future__ import annotations

from outrider_pair.calls import call_figures, parse_calls
from outrider_pair.texts import Text

ON = '<tool_call>{"name": "HassTurnOn", "arguments": {"name": "Lamp"}}</tool_call>'
OTHER = ON.replace("Lamp", "Moon")


def text(reference: str = "", *devices: str) -> Text:
    return Text("home", (1,), reference, devices)


def test_calls_are_read_or_refused():
    assert parse_calls(f"Sure.{ON}{ON}<|end|>") == [{"name": "HassTurnOn", "arguments": {"name": "Lamp"}}] * 2
    assert parse_calls("no call") == []
    assert parse_calls(ON[:-5]) is None
    assert parse_calls('<tool_call>{"name": 3, "arguments": {}}</tool_call>') is None


def test_each_share_is_of_what_it_names():
    """A right call, a call of a device that is not there, a missing call, a needless call, a right silence."""
    texts = [text(f"On it.{ON}", "Lamp")] * 3 + [text("It is off.", "Lamp")] * 2 + [text("Once upon a time")]
    answers = [f"Yes.{ON}", f"Yes.{OTHER}", "Done.", ON, "Off.", ON]
    assert call_figures(texts, answers) == {
        "answers": 5,
        "with_call": 3,
        "well_formed_share": 2 / 3,
        "compared": 5,
        "wanted": 3,
        "wanted_well_formed_share": 1 / 3,
        "same_share": 2 / 5,
    }


def test_answers_that_the_data_does_not_know_are_not_compared():
    figures = call_figures([text("", "Lamp")], [ON])
    assert figures is not None
    assert (figures["well_formed_share"], figures["compared"], figures["same_share"]) == (1.0, 0, None)
    assert call_figures([text("no house")], ["hello"]) is None
