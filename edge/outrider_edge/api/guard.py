"""Who may ask at all, before a request is looked at.

Rules:
    * The `Host` header names this machine, or a host that was allowed: a page of the web that points its own name
      here (DNS rebinding) gets nothing.
    * A request that a browser sends for another origin is refused, unless that origin was allowed (CORS is off by
      default).
    * Where a key is set, everything but health and the page itself needs it.
    * A body over the bound is refused before it is read, or as soon as it is over.

Each request has an id, its own or that of its header `X-Request-Id`: in the answer's header, and in every line that is
logged about it.

HEAD is answered as GET, without the body, which the server leaves out.
"""

from __future__ import annotations

import hmac
import re
import secrets
from http import HTTPStatus
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException

from outrider_edge.api.errors import error_response

if TYPE_CHECKING:
    from starlette.responses import Response
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from outrider_edge.api.config import Serve

TOO_LARGE = "request_too_large"
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:+/=-]{1,128}")
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_OPEN = frozenset({"/", "/health", "/v1/health"})
_SECURITY = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}


class Guard:
    """ASGI middleware with the rules above.

    Args:
        app: What is guarded.
        serve: Hosts, origins.
        api_key: Empty asks for none.
        body_bytes: Largest body.
    """

    def __init__(self, app: ASGIApp, serve: Serve, api_key: str, body_bytes: int) -> None:
        self._app, self._key, self._body_bytes = app, api_key.encode(), body_bytes
        host = serve.address[0]
        every = {"0.0.0.0", "::"}  # noqa: S104 - these are the names of "all", not a binding
        self._hosts = _LOOPBACK | {name.lower() for name in serve.hosts} | ({host} - every)
        self._origins = frozenset(serve.origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, or refuse; see ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        origin = headers.get("origin", "")
        allowed = bool(origin) and (origin in self._origins or "*" in self._origins)
        refusal = self._refuse(scope, headers, origin, allowed=allowed)
        request_id = headers.get("x-request-id", "")
        if not _REQUEST_ID.fullmatch(request_id):
            request_id = f"req_{secrets.token_hex(12)}"
        structlog.contextvars.bind_contextvars(request_id=request_id)  # of this request's task
        reply = _Sender(send, origin if allowed else "", {**_SECURITY, "x-request-id": request_id})
        if refusal is None and allowed and scope["method"] == "OPTIONS":
            refusal = _preflight(headers)
        if refusal is not None:
            await refusal(scope, receive, reply)
            return
        inner = {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope
        await self._app(inner, _Bounded(receive, self._body_bytes), reply)

    def _refuse(self, scope: Scope, headers: Headers, origin: str, *, allowed: bool) -> Response | None:
        if not self._host_is_ours(headers.get("host", "")):
            message = f"Host {headers.get('host', '')!r} is not this device; allow it with serve.hosts"
            return error_response(HTTPStatus.FORBIDDEN, message, "host_not_allowed")
        if origin and not allowed and not self._same_origin(origin, headers):
            message = f"pages of {origin} may not call this device; allow them with serve.origins"
            return error_response(HTTPStatus.FORBIDDEN, message, "origin_not_allowed")
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > self._body_bytes:
            return self._too_large()
        if self._key and not self._public(scope) and not self._has_key(headers):
            message = "this device asks for an API key: Authorization: Bearer KEY"
            return error_response(
                HTTPStatus.UNAUTHORIZED, message, "invalid_api_key", headers={"www-authenticate": "Bearer"}
            )
        return None

    @staticmethod
    def _public(scope: Scope) -> bool:
        return scope["method"] == "OPTIONS" or scope["path"] in _OPEN or scope["path"].startswith("/playground/")

    def _has_key(self, headers: Headers) -> bool:
        scheme, _, key = headers.get("authorization", "").partition(" ")
        return scheme.lower() == "bearer" and hmac.compare_digest(key.strip().encode(), self._key)

    def _host_is_ours(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        return name.lower() in self._hosts or "*" in self._hosts

    @staticmethod
    def _same_origin(origin: str, headers: Headers) -> bool:
        return urlsplit(origin).netloc == headers.get("host", "")

    def _too_large(self) -> Response:
        message = f"the request is larger than {self._body_bytes} bytes"
        return error_response(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, message, TOO_LARGE)


def _preflight(headers: Headers) -> Response:
    """What an allowed page may send; clients add headers of their own, so those that it names are allowed."""
    response = error_response(HTTPStatus.NO_CONTENT, "")
    response.body = b""
    response.headers["content-length"] = "0"
    response.headers["access-control-allow-methods"] = "GET, POST"
    wanted = headers.get("access-control-request-headers", "authorization, content-type, x-outrider-local-only")
    response.headers["access-control-allow-headers"] = wanted
    if headers.get("access-control-request-private-network") == "true":  # of a public page, about this machine
        response.headers["access-control-allow-private-network"] = "true"
    response.headers["access-control-max-age"] = "600"
    return response


class _Bounded:
    """Counts a body as it is read."""

    def __init__(self, receive: Receive, most: int) -> None:
        self._receive, self._left, self._most = receive, most, most

    async def __call__(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request":
            self._left -= len(message.get("body", b""))
            if self._left < 0:
                # Of the one kind that FastAPI does not take for a fault of its own while it reads.
                raise HTTPException(
                    HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the request is larger than {self._most} bytes"
                )
        return message


class _Sender:
    """Adds headers to the answer."""

    def __init__(self, send: Send, origin: str, headers: dict[str, str]) -> None:
        self._send, self._origin, self._headers = send, origin, headers

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in self._headers.items():
                headers.setdefault(name, value)
            if self._origin:
                headers["access-control-allow-origin"] = self._origin
                headers["access-control-expose-headers"] = "x-request-id"
                headers["cross-origin-resource-policy"] = "cross-origin"
                headers.add_vary_header("origin")
        await self._send(message)
