"""Rows in the format of the data files."""

import json
from pathlib import Path
from typing import Any

import zstandard

from outrider_cloud.train.home import asides
from outrider_cloud.train.home.rows import FILE

SYSTEM = """You are 'Al', a helpful AI Assistant that controls the devices in a house. Complete the following task.
The current time and date is 7:40 AM on Sunday, April 28 2024
Devices:
light.kitchen 'Kitchen Lights' = on;saddlebrown (114, 71, 52);69%
cover.kitchen 'Kitchen Blinds' = open
timer.oven 'Oven timer' = active
fan.attic 'Attic Fan' = off
lock.den 'Den Lock' = locked
climate.zen 'Zen Thermostat' = cool;Auto Low;25C;61%
climate.lux 'Lux Thermostat' = heat;On Low;20C;40%
vacuum.hall 'Hall cleaner' = docked
User instruction:"""


def home_row(
    request: str, answer: str, call: tuple[str, dict[str, Any]] | None = None, final: str = "done"
) -> dict[str, Any]:
    """One row as the file has it."""
    messages: list[dict[str, Any]] = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": request}]
    messages.append({"role": "assistant", "content": answer})
    if call is not None:
        messages[-1]["tool_calls"] = [{"name": call[0], "arguments": json.dumps(call[1])}]
        messages.append({"role": "tool", "content": '{"tool_result": "Success"}'})
        messages.append({"role": "assistant", "content": final})
    return {"messages": messages, "tools": []}


def write_rows(path: Path, rows: list[Any]) -> None:
    """Write rows (text as it is, others as JSON) to a compressed file."""
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_bytes(zstandard.compress("\n".join(lines).encode()))


def write_home_data(folder: Path, requests: int = 400) -> Path:
    """The whole data folder: rows of two tools, some asked twice in other letters; dialogues and pages."""
    on, opened = ("HassTurnOn", {"name": "Kitchen Lights"}), ("HassTurnOn", {"name": "Kitchen Blinds"})
    asked = [f"turn on the kitchen lights, number {n}" for n in range(requests)]
    asked += [text.upper() for text in asked]
    rows = [home_row(text, "Sure.", on) for text in asked]
    rows += [home_row(f"open the kitchen blinds, number {n}", "Sure.", opened) for n in range(requests // 2)]
    write_rows(folder / FILE, rows)
    turns = [[{"role": "user", "text": f"{n} lattes"}, {"role": "agent", "text": "Sure."}] for n in range(300)]
    write_rows(folder / asides.TASKMASTER_FILE, [{"set": "coffee", "turns": each} for each in turns])
    pages = [{"page": f"c/{n}", "text": f"# tool{n}\n\n> Do {n}.\n"} for n in range(300)]
    write_rows(folder / asides.TLDR_FILE, pages)
    return folder
