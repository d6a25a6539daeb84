"""What clients of OpenAI-compatible servers count on, and what an operator sets: each asked for over real sockets."""

from __future__ import annotations

import os

import pytest

from support.daemon import CHAT, ENVIRONMENT, TOOLS, call, daemon, send

ASK = {"messages": CHAT, "temperature": 0, "max_tokens": 4}
NULLS = dict.fromkeys((
    "stream", "stop", "seed", "n", "tools", "tool_choice", "response_format", "logit_bias", "top_p", "user",
    "stream_options", "logprobs", "top_logprobs", "presence_penalty", "outrider", "ignore_eos", "functions",
))  # fmt: skip


@pytest.mark.parametrize(
    "more",
    [NULLS, {"user": "u", "store": True, "metadata": {"a": "b"}, "service_tier": "auto", "reasoning_effort": "low"},
     {"stop": []}, {"stop": [""]}, {"tools": []}, {"tool_choice": "auto"}, {"stream_options": {"include_usage": True}},
     {"functions": []}, {"modalities": ["text"]}, {"logit_bias": {}}, {"response_format": {"type": "text"}}],
    ids=lambda more: next(iter(more)),
)  # fmt: skip
def test_fields_that_change_nothing_are_taken(device, more):
    """Nulls, empty lists and what is meant for other services: the answer is the one without them."""
    status, answer = call(device, body={**ASK, **more})
    assert status == 200, answer
    assert answer["choices"] == call(device, body=ASK)[1]["choices"]


@pytest.mark.parametrize(
    ("more", "said"),
    [({"functions": [{"name": "f"}]}, "use tools"), ({"tool_choice": "required"}, "there are no tools"),
     ({"grammar": "root ::= x"}, "response_format"), ({"modalities": ["text", "audio"]}, "text only"),
     ({"max_tokens": 0}, "max_tokens"), ({"max_completion_tokens": 0}, "max_completion_tokens"),
     ({"tools": [{"type": "web_search"}]}, "tools[0].type"), ({"messages": None}, "messages: Field required"),
     ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "reads text only")],
)  # fmt: skip
def test_fields_that_cannot_be_honoured_are_refused_by_name(device, more, said):
    status, answer = call(device, body={**ASK, **more})
    assert status == 400
    assert said in answer["error"]["message"]


def test_roles_and_parts_are_those_of_the_api(device):
    """`developer` is the system's voice, and a text in parts is that text."""
    words = [{"type": "text", "text": word} for word in ("turn off ", "the kitchen light")]
    voice = {"role": "developer", "content": [{"type": "text", "text": CHAT[0]["content"]}]}
    parts = [voice, {"role": "user", "content": words}]
    assert call(device, body={**ASK, "messages": parts})[1]["choices"] == call(device, body=ASK)[1]["choices"]


def test_what_is_not_here_says_so(device):
    """Other services of the API, other paths, other methods, other kinds of body; a probe of health by HEAD."""
    for path in ("/v1/embeddings", "/v1/responses", "/v1/audio/speech"):
        status, answer = call(device, path=path, body={"input": "x"})
        assert (status, answer["error"]["code"]) == (501, "not_implemented")
    status, answer = call(device, "GET", "/v1/nothing")
    assert (status, answer["error"]["type"]) == (404, "invalid_request_error")
    assert "/v1/nothing" in answer["error"]["message"]
    assert call(device, "GET")[0] == 405
    status, answer = call(device, body=b"a=b", **{"content-type": "application/x-www-form-urlencoded"})
    assert (status, answer["error"]["code"]) == (400, "invalid_content_type")
    assert call(device, "HEAD", "/health")[0] == call(device, "GET", "/v1/health")[0] == 200
    assert call(device, "GET", "/v1/models/outrider-local")[1]["id"] == "outrider-local"


def test_a_prompt_that_is_too_long_has_the_code_that_clients_look_for(device):
    """Agents shorten their history when they see it; alike for both endpoints, and without the cloud."""
    long = "long " * 3000
    for path, body in (
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": long}]}),
        ("/v1/completions", {"prompt": long}),
        ("/v1/completions", {"prompt": long, "outrider": {"local_only": True}}),
    ):
        status, answer = call(device, path=path, body=body)
        assert (status, answer["error"]["code"]) == (400, "context_length_exceeded")


def test_settings_of_file_environment_and_flags_work_together(tmp_path, device, verifier):
    """A web page that is allowed, a hook that changes what goes out, a bound on answers: each set in another place."""
    (tmp_path / "hooks.py").write_text('def office(text):\n    return text.replace("kitchen", "office")\n')
    config = tmp_path / "edge.toml"
    config.write_text(
        '[serve]\norigins = ["https://app.example"]\n[privacy]\nredact = "none.such:hook"\n[limits]\nconcurrent = 9\n'
    )
    environment = {
        "OUTRIDER_EDGE_PRIVACY_REDACT": "hooks:office", "OUTRIDER_EDGE_LIMITS_CONCURRENT": "8",
        "PYTHONPATH": os.pathsep.join([str(tmp_path), ENVIRONMENT["PYTHONPATH"]]),
    }  # fmt: skip
    with daemon(tmp_path, verifier.address, "--config", str(config), "--concurrent", "2", **environment) as changed:
        page = {"Origin": "https://app.example"}
        asks = {
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,x-stainless-lang",
        }
        status, headers = call(changed, "OPTIONS", **page, **asks)
        assert status == 204
        assert headers["access-control-allow-origin"] == page["Origin"]
        assert "x-stainless-lang" in headers["access-control-allow-headers"]
        assert call(changed, "OPTIONS", **asks, Origin="https://other.example")[0] == 403
        texts = [CHAT, [CHAT[0], {"role": "user", "content": "turn off the office light"}]]
        kitchen, office = ({**ASK, "messages": messages, "max_tokens": 24} for messages in texts)
        office["messages"][0] = {**CHAT[0], "content": CHAT[0]["content"].replace("kitchen", "office")}
        assert call(changed, body=kitchen, **page)[1]["choices"] == call(device, body=office)[1]["choices"]
        assert call(changed, path="/v1/completions", body={"prompt": [300, 301]})[0] == 400, "the hook cannot see ids"
        local = {**kitchen, "outrider": {"local_only": True}}
        assert call(changed, body=local)[1]["choices"] == call(device, body=local)[1]["choices"], "nothing goes out"
        status, answer = call(changed, body={**ASK, "n": 3})
        assert (status, answer["error"]["type"]) == (400, "invalid_request_error"), (
            "the flag stands over the environment"
        )


def test_without_a_cloud_the_answer_is_the_drafts_or_an_error(tmp_path, device):
    """Nobody listens there: `draft` answers alone and says so, streamed or whole; `error` is a 503 with the address."""
    soon = {"OUTRIDER_EDGE_CLOUD_OFFLINE_AFTER_S": "0.2", "OUTRIDER_EDGE_CLOUD_SETTLE_S": "0"}
    with daemon(tmp_path, "127.0.0.1:1", "--offline", "draft", **soon) as alone:
        assert call(alone, "GET", "/health")[0] == 200
        assert call(alone, "GET", "/outrider/status")[1]["cloud_reachable"] is False
        assert call(alone, "GET", "/v1/models")[0] == 200
        # A first word that the draft is sure of: what shares a pass changes its logits by a little.
        sure = {**ASK, "messages": [CHAT[0], {"role": "user", "content": "hello"}]}
        status, answer = call(alone, body=sure)
        assert (status, answer["unverified"]) == (200, True)
        local = call(device, body={**sure, "outrider": {"local_only": True}})[1]
        assert answer["choices"] == local["choices"], "the same draft, alone by order or by need"
        streamed = send(alone, body={**ASK, "stream": True}).read()
        assert streamed.count(b'"unverified":true') == 1
        assert streamed.endswith(b"data: [DONE]\n\n")
        status, answer = call(alone, body={**ASK, "outrider": {"offline": "error"}})
        assert (status, answer["error"]["type"]) == (503, "server_error")
        assert "127.0.0.1:1" in answer["error"]["message"]


def test_tools_and_strict_need_no_more_white_space_than_people_write(device):
    """A forced call whose parameters this model never saw is complete, whatever the model would fill it with."""
    parameters = {"type": "object", "properties": {"light": {"enum": ["on", "off"]}, "level": {"enum": [1, 2]}},
                  "required": ["light", "level"], "additionalProperties": False}  # fmt: skip
    tools = [*TOOLS, {"type": "function", "function": {"name": "Dim", "parameters": parameters}}]
    named = {"type": "function", "function": {"name": "Dim"}}
    status, answer = call(device, body={**ASK, "max_tokens": 60, "tools": tools, "tool_choice": named})
    assert status == 200
    assert answer["choices"][0]["finish_reason"] == "tool_calls"
