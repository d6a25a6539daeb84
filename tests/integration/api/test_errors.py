"""Error bodies, as OpenAI's API has them: every refusal of a field names it, with a type and a code of theirs."""

from __future__ import annotations

import json

import pytest

from support.daemon import TOOLS, call, daemon

USER = [{"role": "user", "content": "hi"}]
NAMED = {"type": "function", "function": {"name": "Nothing"}}
UNIQUE = {"type": "array", "uniqueItems": True}
STRICT = {"type": "function", "function": {"name": "f", "strict": True, "parameters": UNIQUE}}


def _schema(schema) -> dict:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}}


@pytest.fixture(scope="module")
def narrow(tmp_path_factory, verifier):
    """A daemon that gives few answers at once."""
    with daemon(tmp_path_factory.mktemp("narrow"), verifier.address, "--concurrent", "2") as running:
        yield running


def _messages(**message) -> dict:
    return {"messages": [*USER, message]}


@pytest.mark.parametrize(
    ("more", "param", "code"),
    [({"temperature": -1}, "temperature", "decimal_below_min_value"),
     ({"temperature": "hot"}, "temperature", "invalid_type"),
     ({"top_p": 1e-60}, "top_p", "invalid_parameter"),
     ({"n": 99}, "n", "integer_above_max_value"),
     ({"max_tokens": 0}, "max_tokens", "integer_below_min_value"),
     ({"max_tokens": 2, "min_tokens": 5}, "min_tokens", "invalid_parameter"),
     ({"stop": 5}, "stop", "invalid_type"),
     ({"stop": {"a": 1}}, "stop", "invalid_type"),
     ({"stop": ["a"] * 17}, "stop", "array_above_max_length"),
     ({"stop": ["a", "x" * 600]}, "stop[1]", "string_above_max_length"),
     ({"logit_bias": {"the": 1}}, "logit_bias", "invalid_parameter"),
     ({"logit_bias": {"1_0": 1}}, "logit_bias", "invalid_parameter"),
     ({"logit_bias": {"4096": 1}}, "logit_bias", "invalid_parameter"),
     ({"logit_bias": {"5": 500}}, "logit_bias.5", "decimal_above_max_value"),
     ({"top_logprobs": 3}, "top_logprobs", "invalid_parameter"),
     ({"messages": []}, "messages", "empty_array"),
     ({"messages": None}, "messages", "missing_required_parameter"),
     (_messages(role="king", content="x"), "messages[1].role", "invalid_value"),
     (_messages(role="user", content=5), "messages[1].content", "invalid_type"),
     (_messages(role="user", content=[{"type": "image_url"}]), "messages[1].content[0].type", "unsupported_parameter"),
     (_messages(role="user", content="half \ud83d"), "messages", "invalid_prompt"),
     (_messages(role="user", content="long " * 3000), "messages", "context_length_exceeded"),
     ({"tools": [{"type": "web_search"}]}, "tools[0].type", "invalid_value"),
     ({"tools": [STRICT]}, "tools", "invalid_grammar"),
     ({"tool_choice": "required"}, "tool_choice", "invalid_parameter"),
     ({"tool_choice": {"type": "function"}}, "tool_choice.function", "missing_required_parameter"),
     ({"tool_choice": NAMED, "tools": TOOLS}, "tool_choice", "invalid_parameter"),
     ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "invalid_parameter"),
     (_schema(UNIQUE), "response_format", "invalid_grammar"),
     ({**_schema({}), "ignore_eos": True}, "ignore_eos", "invalid_parameter"),
     ({**_schema({}), "tools": TOOLS, "tool_choice": "required"}, "response_format", "invalid_parameter"),
     ({"functions": [{"name": "f"}]}, "functions", "unsupported_parameter"),
     ({"modalities": ["audio"]}, "modalities", "unsupported_parameter"),
     ({"chat_template_kwargs": {"tools": []}}, "chat_template_kwargs", "invalid_parameter"),
     ({"outrider": {"pace": "x"}}, "outrider.pace", "invalid_value")],
    ids=lambda value: json.dumps(value)[:50] if isinstance(value, dict) else "",
)  # fmt: skip
def test_a_refused_field_of_a_chat_is_named(device, more, param, code):
    status, answer = call(device, body={"messages": USER, "max_tokens": 2, "temperature": 0, **more})
    error = answer["error"]
    assert (status, error["type"], error["param"], error["code"]) == (400, "invalid_request_error", param, code)
    assert error["message"]


@pytest.mark.parametrize(
    ("more", "param", "code"),
    [({"prompt": None}, "prompt", "missing_required_parameter"),
     ({"prompt": 5}, "prompt", "invalid_type"),
     ({"prompt": ""}, "prompt", "invalid_prompt"),
     ({"prompt": []}, "prompt", "invalid_prompt"),
     ({"prompt": [1, -5]}, "prompt[1]", "integer_below_min_value"),
     ({"prompt": [4096]}, "prompt", "invalid_prompt"),
     ({"prompt": "half \ud83d"}, "prompt", "invalid_prompt"),
     ({"prompt": "long " * 3000}, "prompt", "context_length_exceeded"),
     ({"prompt": ["a", "b"], "n": 9}, "n", "invalid_parameter"),
     ({"suffix": "x"}, "suffix", "unsupported_parameter"),
     ({"best_of": 3}, "best_of", "unsupported_parameter"),
     ({"echo": True, "logprobs": 1}, "echo", "unsupported_parameter")],
    ids=lambda value: json.dumps(value)[:50] if isinstance(value, dict) else "",
)  # fmt: skip
def test_a_refused_field_of_a_completion_is_named(device, more, param, code):
    status, answer = call(device, path="/v1/completions", body={"prompt": "a", "max_tokens": 2, **more})
    error = answer["error"]
    assert (status, error["type"], error["param"], error["code"]) == (400, "invalid_request_error", param, code)


@pytest.mark.parametrize(
    ("asked", "status", "param", "code"),
    [({"body": b"{"}, 400, None, "invalid_json"), ({"body": b"[" * 100_000}, 400, None, "invalid_json"),
     ({"body": b"[]"}, 400, None, "invalid_type"), ({"body": b""}, 400, None, "missing_required_parameter"),
     ({"body": b"{}", "X-Outrider-Local-Only": "perhaps"}, 400, "X-Outrider-Local-Only", "invalid_type"),
     ({"method": "GET", "path": "/v1/models/nobody"}, 404, "model", "model_not_found"),
     ({"method": "GET", "path": "/v1/models/some%2Fbody"}, 404, "model", "model_not_found"),
     ({"path": "/v1/nothing"}, 404, None, "unknown_url"), ({"method": "GET"}, 405, None, "method_not_supported"),
     ({"body": {"messages": USER, "n": 16}}, 400, "n", "invalid_parameter")],
    ids=lambda value: json.dumps(value, default=repr)[:40] if isinstance(value, dict) else "",
)  # fmt: skip
def test_what_is_no_fields_fault_says_so_with_a_code(narrow, asked, status, param, code):
    got, answer = call(narrow, **asked)
    error = answer["error"]
    assert (got, error["type"], error["param"], error["code"]) == (status, "invalid_request_error", param, code)


def test_the_description_tells_no_other_errors(device):
    """Every route describes the error body that is given, and none that another framework would give."""
    described = call(device, "GET", "/openapi.json")[1]
    assert "HTTPValidationError" not in described["components"]["schemas"]
    answers = described["paths"]["/v1/chat/completions"]["post"]["responses"]
    assert set(answers["200"]["content"]) == {"application/json", "text/event-stream"}
    assert answers["400"]["content"]["application/json"]["schema"]["$ref"].endswith("/ErrorReply")
    told = call(device, body=b"{")[1]["error"]
    assert set(told) == set(described["components"]["schemas"]["ErrorTold"]["required"])


def test_clients_are_told_whether_to_come_back(device):
    """OpenAI's client tries again after a 5xx: not where that is of no use. HEAD is GET without its body."""
    assert call(device, "HEAD", "/v1/embeddings")[1]["x-should-retry"] == "false"
    for path in ("/", "/v1/models", "/health"):
        status, headers = call(device, "HEAD", path)
        assert status == 200
        assert int(headers["content-length"]) > 0
