"""The `llm` command, as its users run it, against the real daemon, cloud and bundled pair."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support.daemon import HOUSE

LLM = shutil.which("llm", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
ASK = "turn off the kitchen light"
TOOL = 'def HassTurnOff(name: str) -> str:\n    "Turn a device off."\n    return f"{name} is off now"\n'

pytestmark = pytest.mark.skipif(LLM is None, reason="the llm command is not installed")


@pytest.fixture
def llm(device, tmp_path):
    """Runs the command with this device as one of its models; gives exit status, output and complaints."""
    model = {"model_id": "outrider", "model_name": "outrider", "api_base": f"{device.address}/v1"}
    can = {"supports_tools": True, "supports_schema": True}
    (tmp_path / "extra-openai-models.yaml").write_text(json.dumps([{**model, **can}]))  # JSON is YAML
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "LLM_USER_PATH": str(tmp_path)}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(LLM), "-m", "outrider", "-o", "temperature", "0", *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)

    return run


def _usage(ran: subprocess.CompletedProcess[str]) -> tuple[int, int]:
    """Tokens read and written, as the command tells them."""
    told = re.search(r"Token usage: (\d+) input, (\d+) output", ran.stderr)
    assert told, ran.stderr
    return int(told[1]), int(told[2])


def test_streamed_and_whole_answers_are_the_same(llm):
    """Text and usage, streamed or not."""
    runs = [llm("-u", "-s", HOUSE, *how, ASK) for how in ((), ("--no-stream",))]
    assert [run.returncode for run in runs] == [0, 0], runs
    assert runs[0].stdout == runs[1].stdout
    assert _usage(runs[0]) == _usage(runs[1])
    assert "light" in runs[0].stdout.lower()
    assert min(_usage(runs[0])) > 5


def test_tools_are_called_and_their_results_go_back(llm):
    """The command runs the function that the model calls and asks again with what it returned."""
    ran = llm("-s", HOUSE, "--functions", TOOL, "--tools-debug", ASK)
    assert ran.returncode == 0, ran.stderr
    assert "HassTurnOff({'name': 'Kitchen Light'})" in ran.stderr
    assert "Kitchen Light is off now" in ran.stderr
    assert "<tool_call>" not in ran.stdout
    assert ran.stdout.count(".") > 1, "a sentence before the call, and one after its result"


def test_schema_holds(llm):
    """What a schema asks for is what comes, whatever this small model would have said."""
    schema = {"type": "object", "properties": {"device": {"enum": ["light", "fan"]}, "on": {"type": "boolean"}},
              "required": ["device", "on"], "additionalProperties": False}  # fmt: skip
    ran = llm("-s", HOUSE, "--schema", json.dumps(schema), ASK)
    assert ran.returncode == 0, ran.stderr
    answer = json.loads(ran.stdout)
    assert answer.keys() == {"device", "on"}
    assert answer["device"] in {"light", "fan"}
    assert isinstance(answer["on"], bool)


def test_errors_are_told_in_a_sentence(llm):
    """A value that is refused ends the command with the device's own words, not with a traceback."""
    ran = llm("-o", "max_tokens", "0", ASK)
    assert ran.returncode == 1
    assert "max_tokens" in ran.stderr
    assert "greater than or equal to 1" in ran.stderr
    assert "Traceback" not in ran.stderr
