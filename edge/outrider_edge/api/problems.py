"""What is wrong with a request that does not fit its schema: a sentence, the field, and a code, as OpenAI has them.

Pydantic tells a problem for each way that a field could have been read (`stop` is a text or a list of texts). Told on
is the one that came farthest, because that is the way that was meant.
"""

from __future__ import annotations

from http import HTTPStatus
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from outrider_edge.api.errors import error_response

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from starlette.responses import JSONResponse

    Problem = Mapping[str, Any]

_CODES = {
    "missing": "missing_required_parameter",
    "too_long": "array_above_max_length",
    "too_short": "empty_array",
    "string_too_long": "string_above_max_length",
    "string_too_short": "empty_string",
}
_BOUNDS = {"greater_than": "below_min_value", "less_than": "above_max_value"}
_SHOWN = 60


def validation_response(problems: Sequence[Problem], body: Any) -> JSONResponse:
    """The first of a list of problems with a request, as pydantic tells them.

    Args:
        problems: Each with `loc`, `type`, `msg` and `input`.
        body: What they are about.
    """
    if not problems:
        return error_response(HTTPStatus.BAD_REQUEST, "the request cannot be read", "invalid_request")
    first = problems[0]
    if first["type"] == "json_invalid":
        message = f"the body is no JSON: {first['ctx']['error']} at {first['loc'][-1]}"
        return error_response(HTTPStatus.BAD_REQUEST, message, "invalid_json")
    source, *_ = first["loc"]
    if source != "body":
        message = f"the {source} {first['loc'][-1]} is {_brief(first['input'])}: {first['msg']}"
        return error_response(HTTPStatus.BAD_REQUEST, message, code_of(first), str(first["loc"][-1]))
    same = list(takewhile(lambda one: one["loc"][:2] == first["loc"][:2], problems))
    told = min(same, key=lambda one: _how_far(one, same, body))
    where = field_of(told, body)
    if not where:
        return error_response(HTTPStatus.BAD_REQUEST, f"the body is no JSON object: {told['msg']}", code_of(told))
    alike = _how_far(told, same, body), where
    # Ways that failed alike: the field may be any of them.
    ways = [str(one["msg"]) for one in same if (_how_far(one, same, body), field_of(one, body)) == alike]
    wanted = " or ".join(dict.fromkeys([ways[0], *(way.removeprefix("Input should be ") for way in ways[1:])]))
    value = "" if told["type"] == "missing" or ", not " in wanted else f", not {_brief(told['input'])}"
    return error_response(HTTPStatus.BAD_REQUEST, f"{where}: {wanted}{value}", code_of(told), where)


def _how_far(one: Problem, all_: Sequence[Problem], body: Any) -> tuple[int, bool, int]:
    """How far the reading behind a problem is from what was sent: by place, by kind, by how much else is wrong."""
    way = one["loc"][1:3]
    mistaken = code_of(one) == "invalid_type"
    return -len(_steps(one, body)), mistaken, sum(other["loc"][1:3] == way for other in all_)


def field_of(problem: Problem, body: Any) -> str:
    """The place of a problem in a body, such as `messages[0].role`; empty for the body itself."""
    steps = _steps(problem, body)
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps).lstrip(".")


def _steps(problem: Problem, body: Any) -> list[str | int]:
    """The place of a problem, without the names of pydantic's types in it."""
    steps: list[str | int] = []
    for step in problem["loc"][1:]:
        index = isinstance(body, list) and isinstance(step, int) and step < len(body)
        if index or (isinstance(body, dict) and step in body):
            steps.append(step)
            body = body[step]
    missing = problem["type"] == "missing" and isinstance(body, dict)
    return [*steps, problem["loc"][-1]] if missing else steps


def code_of(problem: Problem) -> str:
    """OpenAI's code of a problem."""
    kind = problem["type"]
    if kind in _CODES:
        return _CODES[kind]
    for start, bound in _BOUNDS.items():
        if kind.startswith(start):
            whole = all(isinstance(value, int) for value in problem.get("ctx", {}).values())
            return f"{'integer' if whole else 'decimal'}_{bound}"
    typed = kind.endswith(("_type", "_parsing", "_from_float", "_parsing_size"))
    return "invalid_type" if typed else "invalid_value"


def _brief(value: Any) -> str:
    if isinstance(value, dict | list):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
