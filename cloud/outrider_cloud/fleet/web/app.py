"""The fleet service's web application: API, page, metrics, artifacts."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from fastapi import FastAPI
from starlette.staticfiles import StaticFiles

from outrider_cloud.fleet.artifacts.server import artifact_app
from outrider_cloud.fleet.web import admin, fleet, guard, live, metrics, rollouts

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from fastapi import Request
    from starlette.responses import Response

    from outrider_cloud.fleet.web.state import Services

PAGE = Path(__file__).parent / "page"
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def fleet_app(services: Services) -> FastAPI:
    """Everything that the operator's browser and the devices' downloads need."""
    app = FastAPI(title="Outrider fleet", version=_version(), docs_url=None, redoc_url=None)
    app.state.services = services
    guard.install(app)
    for part in (fleet, rollouts, admin, live, metrics):
        app.include_router(part.router)

    @app.middleware("http")
    async def safe(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        response = await call_next(request)
        response.headers["content-security-policy"] = _POLICY
        response.headers["x-content-type-options"] = "nosniff"
        response.headers["referrer-policy"] = "no-referrer"
        # Asked for anew each time: a page of an older version beside a newer API would be half right.
        response.headers.setdefault("cache-control", "no-store" if request.url.path.startswith("/api") else "no-cache")
        return response

    if services.repository is not None:
        app.mount("/artifacts", artifact_app(services.repository))
    app.mount("/", StaticFiles(directory=PAGE, html=True))
    return app


def _version() -> str:
    try:
        return version("outrider")
    except PackageNotFoundError:
        return "0"
