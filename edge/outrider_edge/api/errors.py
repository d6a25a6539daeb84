"""Errors as clients of OpenAI's API expect them: a status, and a body with message, type, param and code."""

from __future__ import annotations

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
    from collections.abc import Mapping, Sequence

_STATUS: tuple[tuple[type[OutriderError], HTTPStatus], ...] = (
    (UnknownModelError, HTTPStatus.NOT_FOUND),
    (InputError, HTTPStatus.BAD_REQUEST),
    (LimitError, HTTPStatus.TOO_MANY_REQUESTS),
    (UnavailableError, HTTPStatus.SERVICE_UNAVAILABLE),
    (DeadlineError, HTTPStatus.GATEWAY_TIMEOUT),
)
_TYPES = {
    HTTPStatus.UNAUTHORIZED: "authentication_error",
    HTTPStatus.FORBIDDEN: "permission_error",
    HTTPStatus.NOT_FOUND: "not_found_error",
    HTTPStatus.TOO_MANY_REQUESTS: "rate_limit_error",
    HTTPStatus.NOT_IMPLEMENTED: "not_implemented_error",
    HTTPStatus.SERVICE_UNAVAILABLE: "unavailable_error",
    HTTPStatus.GATEWAY_TIMEOUT: "timeout_error",
}
RETRY_AFTER_S = 1


def status_of(error: OutriderError) -> HTTPStatus:
    """The HTTP status of an error; a fault of ours or of the cloud is a 500."""
    return next((status for kind, status in _STATUS if isinstance(error, kind)), HTTPStatus.INTERNAL_SERVER_ERROR)


def error_body(status: int, message: str, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    """The body of an error."""
    fallback = "server_error" if status >= HTTPStatus.INTERNAL_SERVER_ERROR else "invalid_request_error"
    kind = _TYPES.get(HTTPStatus(status), fallback)
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def body_of(error: OutriderError) -> dict[str, Any]:
    """The body of one of our errors."""
    return error_body(status_of(error), str(error), error.code)


def error_response(
    status: int,
    message: str,
    code: str | None = None,
    param: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """An error as an answer."""
    return JSONResponse(error_body(status, message, code, param), status, headers)


def response_of(error: OutriderError) -> JSONResponse:
    """One of our errors as an answer; says when to come back where that helps."""
    status = status_of(error)
    headers = {"retry-after": str(RETRY_AFTER_S)} if error.retryable and status != HTTPStatus.BAD_REQUEST else None
    return JSONResponse(body_of(error), status, headers)


def validation_response(problems: Sequence[Mapping[str, Any]]) -> JSONResponse:
    """The first of a list of problems with a body, as pydantic tells them."""
    first = problems[0] if problems else {"loc": ("body",), "msg": "the request cannot be read"}
    path = [str(part) for part in first["loc"] if part != "body"]
    where = ".".join(path) or None
    message = f"{where}: {first['msg']}" if where else str(first["msg"])
    return error_response(HTTPStatus.BAD_REQUEST, message, "invalid_parameter", path[0] if path else None)
