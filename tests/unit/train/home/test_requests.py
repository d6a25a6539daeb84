"""Held-out requests as files: from what no training text has, one of a text, kinds in turn."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from outrider_cloud.train.cli import train
from outrider_cloud.train.home.requests import choose_requests, held_out_requests
from outrider_cloud.train.home.rows import read_home, split
from outrider_cloud.train.texts.corpus import is_held_out
from unit.train.rows import write_home_data

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Rows of two tools, some of them asked twice in other letters; dialogues and pages."""
    return write_home_data(tmp_path)


def asked(request: dict) -> str:
    return next(m["content"] for m in request["messages"] if m["role"] == "user")


def test_requests_of_every_domain_are_held_out_and_none_is_twice(data: Path):
    found = held_out_requests(data, 3)
    assert set(found) == {"smart-home", "dialogues", "help-pages"}
    for requests in found.values():
        texts = [asked(each).lower() for each in requests]
        assert len(texts) == len(set(texts)) == 3
    assert all(is_held_out(asked(each)) for name in ("dialogues", "help-pages") for each in found[name])
    _training, held = split(read_home(data)[0])
    assert {asked(each).lower() for each in found["smart-home"]} <= {row.request.lower() for row in held}


def test_a_smart_home_request_names_what_an_answer_may_name(data: Path):
    for request in held_out_requests(data, 8)["smart-home"]:
        system, user = request["messages"]
        assert (system["role"], user["role"]) == ("system", "user")
        assert all(name in system["content"] for name in request["devices"])
        assert {"Kitchen Lights", "Kitchen Blinds"} & set(request["devices"])
        assert request["answer"].startswith('Sure.<tool_call>{"name": "HassTurnOn"')


def test_more_are_not_made_than_there_are_and_the_order_stays(data: Path):
    _training, held = split(read_home(data)[0])
    every = choose_requests(held, 10_000)
    assert len(every) == len({row.request.lower() for row in held})
    assert choose_requests(held, 3) == every[:3]


def test_the_command_writes_a_file_a_domain(data: Path, tmp_path: Path):
    out = tmp_path / "held-out"
    told = CliRunner().invoke(train, ["requests", "--data", str(data), "--out", str(out), "--each", "3"])
    assert told.exit_code == 0, told.output
    for name, requests in held_out_requests(data, 3).items():
        assert [json.loads(line) for line in (out / f"{name}.jsonl").read_text().splitlines()] == requests
