"""Who asks, what they may, and how a refusal looks: `{"error": {"code", "message", "hint"}}`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse

from outrider_cloud.fleet.registry import access
from outrider_cloud.fleet.registry.access import Role
from outrider_cloud.fleet.web.state import Services
from outrider_shared.errors import (
    ConfigError,
    ConflictError,
    DeadlineError,
    InputError,
    OutriderError,
    ProtocolError,
    RefusedError,
    StorageError,
    TokenError,
    UnavailableError,
)

if TYPE_CHECKING:
    from collections.abc import Callable

_STATUS: tuple[tuple[type[OutriderError], int], ...] = (
    (RefusedError, 403), (ConflictError, 409), (ConfigError, 400), (InputError, 400), (ProtocolError, 400),
    (UnavailableError, 503), (DeadlineError, 504), (StorageError, 503),
)  # fmt: skip


def services(request: Request) -> Services:
    """What the app was made with."""
    found: Services = request.app.state.services
    return found


def bearer(request: Request) -> str:
    """The token that a request carries.

    Raises:
        TokenError: if it carries none.
    """
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise TokenError("this needs a token", hint="send `Authorization: Bearer TOKEN`")
    return token.strip()


def _caller(role: Role) -> Callable[[Request, Services], str]:
    def check(request: Request, found: Annotated[Services, Depends(services)]) -> str:
        token, database = bearer(request), found.controller.database
        with database.reading() as connection:
            known = access.who(connection, token)
        if known is None:
            if found.strangers.allow():
                with database.transaction() as connection:
                    told = {"code": TokenError.code, "reason": "unknown token"}
                    access.note(connection, "unknown", "access.refused", request.url.path, **told)
            raise TokenError("nobody has this token, or it is past its date", hint="ask an approver for one")
        name, has = known
        if not has.allows(role):
            with database.transaction() as connection:
                told = {"code": RefusedError.code, "has": has.value, "needs": role.value}
                access.note(connection, name, "access.refused", request.url.path, **told)
            raise RefusedError(f"{name} is {has}; this needs {role}", hint="ask an approver")
        return name

    return check


Viewer = Annotated[str, Depends(_caller(Role.VIEWER))]
Operator = Annotated[str, Depends(_caller(Role.OPERATOR))]
Approver = Annotated[str, Depends(_caller(Role.APPROVER))]
Found = Annotated[Services, Depends(services)]


def install(app: FastAPI) -> None:
    """Turn our errors and bad requests into answers."""

    def refused(_request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, OutriderError), "registered for those"
        status = 401 if isinstance(error, TokenError) else _status(error)
        return _answer(status, error.code, error.message, error.hint)

    def malformed(_request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError), "registered for those"
        told = "; ".join(f"{'.'.join(map(str, found['loc']))}: {found['msg']}" for found in error.errors()[:5])
        return _answer(422, InputError.code, told, "/openapi.json says what there is")

    app.add_exception_handler(OutriderError, refused)
    app.add_exception_handler(RequestValidationError, malformed)


def _status(error: OutriderError) -> int:
    return next((status for kind, status in _STATUS if isinstance(error, kind)), 500)


def _answer(status: int, code: str, message: str, hint: str) -> JSONResponse:
    body: dict[str, Any] = {"error": {"code": code, "message": message, "hint": hint}}
    headers = {"www-authenticate": "Bearer"} if status == 401 else None
    return JSONResponse(body, status, headers)
