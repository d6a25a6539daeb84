"""The official OpenAI client against the real daemon, cloud and bundled pair, over real sockets."""

from __future__ import annotations

import asyncio
import json
import math
import time
import urllib.request

import openai
import pytest

from support.daemon import CHAT, TOOLS


@pytest.fixture
def client(device):
    with openai.OpenAI(base_url=f"{device.address}/v1", api_key="any", max_retries=0, timeout=120) as made:
        yield made


def _figure(device, name: str) -> float:
    with urllib.request.urlopen(f"{device.address}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))


def _ask(client, **more):
    return client.chat.completions.create(**{"model": "outrider", "messages": CHAT, "temperature": 0, **more})


def test_streamed_and_whole_answers_are_the_same(client):
    """The same text, finish and usage, streamed or not; drafted or plain."""
    whole = _ask(client, extra_body={"outrider": {"pace": "hold"}})  # drafts must be waited for to be seen
    chunks = list(_ask(client, stream=True, stream_options={"include_usage": True}))
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert "Kitchen Light" in text
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == whole.choices[0].finish_reason == "stop"
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert all(c.usage is None for c in chunks[:-1])
    plain = _ask(client, extra_body={"outrider": {"drafter": "none", "pace": "ahead"}})
    assert plain.choices[0].message.content == text
    assert plain.timings["drafted"] == 0
    for answer in (whole, plain, next(c for c in reversed(chunks) if getattr(c, "timings", None))):
        spent = answer.timings  # each step commits what was drafted, by whom ever, and one token of the target's own
        committed = spent["cloud_steps"] + spent["accepted"] + spent["cloud_drafted"]
        assert committed == whole.usage.completion_tokens
        assert spent["saved_cloud_steps"] == committed - spent["cloud_steps"]
    assert plain.timings["accepted"] == 0
    assert whole.timings["accepted"] > 0
    assert whole.timings["bytes_up"] > 0
    assert whole.timings["bytes_down"] > 0


def test_second_answer_finds_its_prompt_in_the_cloud(client):
    _ask(client)
    assert _ask(client).usage.prompt_tokens_details.cached_tokens > 0


def test_tools_become_calls_streamed_or_not(client):
    """A call of the bundled model arrives parsed, in pieces that add up, and goes back into the conversation."""
    whole = _ask(client, tools=TOOLS).choices[0]
    (call,) = whole.message.tool_calls
    assert whole.finish_reason == "tool_calls"
    assert call.function.name == "HassTurnOff"
    assert json.loads(call.function.arguments) == {"name": "Kitchen Light"}
    assert "<tool_call>" not in whole.message.content
    name = arguments = ""
    for chunk in _ask(client, tools=TOOLS, stream=True):
        for part in chunk.choices[0].delta.tool_calls or ():
            name += part.function.name or ""
            arguments += part.function.arguments or ""
    assert (name, arguments) == (call.function.name, call.function.arguments)
    follow = [
        *CHAT,
        whole.message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": "Success"},
    ]
    done = client.chat.completions.create(model="x", messages=follow, temperature=0)
    assert done.choices[0].message.content
    assert done.choices[0].finish_reason == "stop"


def test_stop_strings_cut_text_tokens_and_usage(client):
    """A stop string inside a drafted run: text, log-probabilities and usage are those of plain decoding."""
    full = _ask(client, logprobs=True).choices[0]
    text = full.message.content
    stop = text[9:14]
    drafted = _ask(client, stop=[stop], logprobs=True)
    plain = _ask(client, stop=[stop], logprobs=True, extra_body={"outrider": {"drafter": "none"}})
    for answer in (drafted, plain):
        choice = answer.choices[0]
        assert choice.message.content == text[: text.index(stop)]
        assert choice.finish_reason == "stop"
        tokens = choice.logprobs.content
        assert "".join(t.token for t in tokens).startswith(choice.message.content)
        assert [t.token for t in tokens] == [t.token for t in full.logprobs.content[: len(tokens)]]
    assert drafted.usage == plain.usage or (
        drafted.usage.completion_tokens == plain.usage.completion_tokens < len(full.logprobs.content)
    )
    streamed = list(_ask(client, stop=[stop], stream=True))
    assert "".join(c.choices[0].delta.content or "" for c in streamed) == text[: text.index(stop)]


def test_logprobs_are_the_targets_with_alternatives(client):
    """Natural log-probabilities, the chosen token among the likeliest when greedy; in stream as in the whole answer."""
    whole = _ask(client, logprobs=True, top_logprobs=3, max_tokens=8).choices[0].logprobs.content
    assert len(whole) == 8
    for entry in whole:
        assert len(entry.top_logprobs) == 3
        assert entry.top_logprobs[0].logprob == max(t.logprob for t in entry.top_logprobs)
        assert entry.top_logprobs[0].token == entry.token
        assert 0 < sum(math.exp(t.logprob) for t in entry.top_logprobs) <= 1.01
        assert bytes(entry.bytes).decode() == entry.token
    streamed = []
    for chunk in _ask(client, logprobs=True, top_logprobs=3, max_tokens=8, stream=True):
        if chunk.choices[0].logprobs:
            streamed += chunk.choices[0].logprobs.content
    assert [t.token for t in streamed] == [t.token for t in whole]


def test_seeds_and_choices(client):
    """The same seed gives the same choices; the first of several is that of one alone; others differ."""
    options = {"temperature": 1.0, "seed": 7, "max_tokens": 24}
    one = _ask(client, **options).choices[0].message.content
    several = [_ask(client, n=3, **options) for _ in range(2)]
    texts = [[choice.message.content for choice in answer.choices] for answer in several]
    assert texts[0] == texts[1]
    assert texts[0][0] == one
    assert len(set(texts[0])) > 1
    assert several[0].usage.prompt_tokens == _ask(client, **options).usage.prompt_tokens
    streams = {0: "", 1: "", 2: ""}
    for chunk in _ask(client, n=3, stream=True, **options):
        streams[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert list(streams.values()) == texts[0]


def test_completions_take_texts_and_tokens(client):
    """The older endpoint: a text, several, token ids, echo and log-probabilities."""
    one = client.completions.create(model="x", prompt="turn on the", temperature=0, max_tokens=6, logprobs=2)
    assert len(one.choices[0].logprobs.tokens) == 6
    assert "".join(one.choices[0].logprobs.tokens) == one.choices[0].text
    two = client.completions.create(
        model="x", prompt=["turn on the", "open the"], temperature=0, max_tokens=6, echo=True
    )
    assert two.choices[0].text == "turn on the" + one.choices[0].text
    assert two.choices[1].text.startswith("open the")
    ids = client.completions.create(model="x", prompt=[300, 301, 302], temperature=0, max_tokens=4)
    assert ids.usage.prompt_tokens == 3
    same = client.completions.create(model="x", prompt=[[300, 301]] * 2, n=2, temperature=0, max_tokens=1, logprobs=0)
    assert (len(same.choices), same.usage.prompt_tokens) == (4, 4), "each prompt counts, its choices share it"
    told = same.choices[0].logprobs
    assert told.top_logprobs == [{told.tokens[0]: told.token_logprobs[0]}], "the chosen token is always told"


def test_errors_are_typed_and_say_what_to_do(client):
    """Each fault raises the client's own kind of error, with a message and a code."""
    for bad in ({"temperature": -1}, {"top_p": 0}, {"n": 99}, {"messages": []}, {"logit_bias": {"the": 1}},
                {"top_logprobs": 3}, {"messages": [{"role": "king", "content": "x"}]}):  # fmt: skip
        with pytest.raises(openai.BadRequestError) as caught:
            _ask(client, **bad)
        assert caught.value.body["message"]
    with pytest.raises(openai.BadRequestError, match="context"):
        _ask(client, messages=[{"role": "user", "content": "long " * 3000}])
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("no-such-model")
    assert [model.id for model in client.models.list()][-1] == "outrider-local"


def test_client_that_vanishes_frees_its_session(client, device):
    """Leaving a stream, or timing out on a whole answer, cancels in the cloud."""
    stream = _ask(client, stream=True, max_tokens=400, extra_body={"ignore_eos": True})
    next(iter(stream))
    stream.close()
    with pytest.raises(openai.APITimeoutError):
        _ask(client.with_options(timeout=0.05), max_tokens=400, extra_body={"ignore_eos": True})
    end = time.monotonic() + 30
    while _figure(device, "outrider_edge_sessions") and time.monotonic() < end:
        time.sleep(0.1)
    assert _figure(device, "outrider_edge_sessions") == 0


def test_thirty_two_streams_at_once_have_their_own_texts(device):
    """Each of 32 concurrent streams gives the text that it gives alone."""

    async def run():
        async with openai.AsyncOpenAI(
            base_url=f"{device.address}/v1", api_key="any", max_retries=0, timeout=240
        ) as many:

            async def one(seed: int) -> str:
                stream = await many.chat.completions.create(
                    model="x", messages=CHAT, temperature=1.0, seed=seed, max_tokens=16, stream=True
                )
                return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

            together = await asyncio.gather(*(one(seed) for seed in range(32)))
            assert [await one(seed) for seed in (0, 13, 31)] == [together[seed] for seed in (0, 13, 31)]
            assert len(set(together)) > 8

    asyncio.run(run())


def test_bias_and_penalties_are_the_targets(client):
    """A banned token is never chosen, drafted or not, and the text is that of plain decoding."""
    first = _ask(client, logprobs=True, max_tokens=1).choices[0].logprobs.content[0]
    tokens = [t["id"] for c in _ask(client, stream=True, max_tokens=1, extra_body={"outrider": {"details": True}})
              for t in (getattr(c, "outrider", None) or {}).get("tokens", [])]  # fmt: skip
    options = {"logit_bias": {str(tokens[0]): -100}, "frequency_penalty": 0.5, "max_tokens": 24, "logprobs": True}
    drafted = _ask(client, **options).choices[0]
    plain = _ask(client, **options, extra_body={"outrider": {"drafter": "none"}}).choices[0]
    assert drafted.logprobs.content[0].token != first.token
    assert drafted.message.content == plain.message.content


def test_local_only_answers_are_the_drafts_and_are_marked(client, device):
    """Nothing goes to the cloud; the answer says that no target saw it."""
    before = _figure(device, "outrider_edge_uplink_bytes_total")
    answer = _ask(client, extra_headers={"X-Outrider-Local-Only": "1"}, max_tokens=16)
    assert answer.unverified is True
    assert answer.model == "outrider-local"
    assert answer.choices[0].message.content
    assert answer.timings["bytes_up"] == 0
    assert _figure(device, "outrider_edge_uplink_bytes_total") == before


def test_details_tell_origins_and_drafts(client):
    """With details: every token with its origin, every node that went up, and totals that grow."""
    tokens, nodes, totals = [], [], []
    for chunk in _ask(
        client, stream=True, logprobs=True, top_logprobs=2, extra_body={"outrider": {"details": True, "pace": "hold"}}
    ):
        detail = getattr(chunk, "outrider", None) or {}
        tokens += detail.get("tokens", [])
        nodes += detail.get("drafted", [])
        totals += [detail["totals"]] if "totals" in detail else []
    assert {token["origin"] for token in tokens} <= {
        "accepted",
        "correction",
        "bonus",
        "cloud",
        "cloud-lookup",
        "cloud-draft",
    }
    assert sum(token["origin"] == "accepted" for token in tokens) > 5
    assert nodes
    assert all(node[1] is None or node[1] < node[0] for node in nodes)
    assert totals[-1]["bytes_up"] > totals[0]["bytes_up"]
