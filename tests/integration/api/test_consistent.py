"""Where drafts could show through: each way to make an answer gives the same text, tokens, log-probabilities, usage."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from support.daemon import CHAT, call, send

ASK = {"messages": CHAT, "temperature": 0, "max_tokens": 60, "logprobs": True, "top_logprobs": 2}
SAMPLED = {**ASK, "temperature": 1.2, "seed": 11, "frequency_penalty": 0.4}
WORDS = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": ["é 温度 🙂🙃 ok"]}}}
CASES = {
    "its own end": ASK,
    "sampled": SAMPLED,
    "length": {**ASK, "max_tokens": 7},
    "stop over borders": {**ASK, "stop": ["tchen Light now", "never"]},
    "stop inside of a token": {**ASK, "stop": ["rgum"]},
    "stop that almost comes": {**ASK, "stop": ["Kitchen Lighthouse", "now?"]},
    "stop at once": {**ASK, "stop": ["T", "D"]},
    "split characters": {**ASK, "response_format": WORDS},
    "stop in split characters": {**ASK, "response_format": WORDS, "stop": ["度 🙂"]},
    "past the end": {**ASK, "ignore_eos": True, "max_tokens": 40},
}


def _whole(device, body):
    status, answer = call(device, body=body)
    assert status == 200, answer
    choice = answer["choices"][0]
    return (
        choice["message"]["content"],
        choice["logprobs"]["content"],
        choice["finish_reason"],
        _counts(answer["usage"]),
    )


def _streamed(device, body):
    text, tokens, reason, usage = "", [], None, None
    for line in send(device, body={**body, "stream": True, "stream_options": {"include_usage": True}}):
        if not line.startswith(b"data: {"):
            continue
        chunk = json.loads(line[6:])
        assert "error" not in chunk, chunk
        for choice in chunk["choices"]:
            text += choice["delta"].get("content", "")
            tokens += (choice["logprobs"] or {}).get("content", [])
            reason = choice["finish_reason"] or reason
        usage = chunk["usage"] or usage
    return text, tokens, reason, _counts(usage)


def _counts(usage):
    return {name: usage[name] for name in ("prompt_tokens", "completion_tokens", "total_tokens")}


WAYS = (
    (_whole, {"drafter": "none", "pace": "ahead"}),
    (_whole, {"pace": "hold"}),
    (_streamed, {"pace": "hold"}),
    (_whole, {"drafter": "lookup"}),
    (_streamed, {"pace": "ahead", "smooth": True}),
)


@pytest.mark.parametrize("case", CASES)
def test_drafts_do_not_show_through(device, case):
    """Plain decoding, drafts of each kind, streams as they come and smoothed: one and the same answer."""
    body = CASES[case]
    with ThreadPoolExecutor(len(WAYS)) as pool:
        plain, *others = pool.map(lambda way: way[0](device, {**body, "outrider": way[1]}), WAYS)
    text, tokens, reason, usage = plain
    for (_, way), got in zip(WAYS[1:], others, strict=True):
        assert (got[0], got[2:]) == (text, plain[2:]), way
        assert [(one["token"], one["bytes"]) for one in got[1]] == [(one["token"], one["bytes"]) for one in tokens]
        assert [one["logprob"] for one in got[1]] == pytest.approx([one["logprob"] for one in tokens], abs=0.02)
    assert reason == ("length" if case in {"length", "past the end"} else "stop")
    assert len(tokens) <= usage["completion_tokens"]


def test_the_end_is_reached_inside_of_an_accepted_run(device):
    """The model's end token may itself be a draft that was accepted: nothing of what was drafted behind it gets out."""
    asked = {**ASK, "outrider": {"pace": "hold", "details": True}, "stream": True}
    committed, ended = 0, None
    for line in send(device, body=asked):
        if line.startswith(b"data: {"):
            chunk = json.loads(line[6:])
            committed += len((chunk.get("outrider") or {}).get("tokens", []))
            ended = chunk.get("timings") or ended
    total = ended["cloud_steps"] + ended["accepted"] + ended["cloud_drafted"]
    assert total == committed + 1, "all that was committed was told, but for the end token"
    assert ended["drafted"] > ended["accepted"] > 5
