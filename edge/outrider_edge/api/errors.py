"""Errors as clients of OpenAI's API expect them: a status, and a body with message, type, param and code.

Rules:
    * `type` is OpenAI's: by the status alone.
    * `code` is the name of the error kind (`outrider_shared.errors`), but where clients look for one of OpenAI's.
    * `param` names the field that the error is about, as OpenAI writes it: `messages[0].role`.
    * Where trying again helps, the answer says when; where it does not, it says so to clients that try by the status.
"""

from __future__ import annotations

import contextlib
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from starlette.responses import JSONResponse

from outrider_shared.errors import (
    DeadlineError,
    InputError,
    LimitError,
    OutriderError,
    UnavailableError,
    UnknownModelError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_STATUS: tuple[tuple[type[OutriderError], HTTPStatus], ...] = (
    (UnknownModelError, HTTPStatus.NOT_FOUND),
    (InputError, HTTPStatus.BAD_REQUEST),
    (LimitError, HTTPStatus.TOO_MANY_REQUESTS),
    (UnavailableError, HTTPStatus.SERVICE_UNAVAILABLE),
    (DeadlineError, HTTPStatus.GATEWAY_TIMEOUT),
)
_CODES: tuple[tuple[type[OutriderError], str], ...] = (
    (UnknownModelError, "model_not_found"),
    (LimitError, "rate_limit_exceeded"),
)
RETRY_AFTER_S = 1
_NO_RETRY = {"x-should-retry": "false"}  # OpenAI's clients try again after 408, 409, 429 and 5xx, unless told not to


def status_of(error: OutriderError) -> HTTPStatus:
    """The HTTP status of an error; a fault of ours or of the cloud is a 500."""
    return next((status for kind, status in _STATUS if isinstance(error, kind)), HTTPStatus.INTERNAL_SERVER_ERROR)


def error_body(status: int, message: str, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    """The body of an error."""
    kind = "server_error" if status >= HTTPStatus.INTERNAL_SERVER_ERROR else "invalid_request_error"
    kind = "rate_limit_error" if status == HTTPStatus.TOO_MANY_REQUESTS else kind
    return {"error": {"message": message, "type": kind, "param": param or None, "code": code}}


def body_of(error: OutriderError) -> dict[str, Any]:
    """The body of one of our errors."""
    code = next((code for kind, code in _CODES if isinstance(error, kind)), error.code)
    return error_body(status_of(error), str(error), code, error.param)


def error_response(
    status: int,
    message: str,
    code: str | None = None,
    param: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """An error as an answer."""
    more = _NO_RETRY if status == HTTPStatus.NOT_IMPLEMENTED else {}
    return JSONResponse(error_body(status, message, code, param), status, {**more, **(headers or {})})


def response_of(error: OutriderError) -> JSONResponse:
    """One of our errors as an answer; says when to come back where that helps."""
    status = status_of(error)
    headers = {"retry-after": str(RETRY_AFTER_S)} if error.retryable else _NO_RETRY
    return JSONResponse(body_of(error), status, headers)


@contextlib.contextmanager
def about(param: str) -> Iterator[None]:
    """Refusals from inside are about that field, if they do not name one themselves."""
    try:
        yield
    except InputError as error:
        error.param = error.param or param
        raise
