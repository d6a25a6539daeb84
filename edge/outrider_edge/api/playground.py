"""The page at /: everything it needs comes from this package, so it works without any other network."""

from __future__ import annotations

from importlib.resources import files
from typing import TYPE_CHECKING

from starlette.responses import Response

if TYPE_CHECKING:
    from fastapi import FastAPI

_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/playground/style.css": ("style.css", "text/css; charset=utf-8"),
    "/playground/app.js": ("app.js", "text/javascript; charset=utf-8"),
    "/playground/replay.js": ("replay.js", "text/javascript; charset=utf-8"),
}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def add_playground(app: FastAPI) -> None:
    """Serve the page."""
    folder = files("outrider_edge.api") / "page"
    for path, (name, kind) in _FILES.items():
        headers = {"content-security-policy": _POLICY, "cache-control": "no-cache"}
        content = (folder / name).read_bytes()
        _serve(app, path, content, kind, headers)


def _serve(app: FastAPI, path: str, content: bytes, kind: str, headers: dict[str, str]) -> None:
    async def page() -> Response:
        return Response(content, media_type=kind, headers=headers)

    app.add_api_route(path, page, methods=["GET"], include_in_schema=False)
