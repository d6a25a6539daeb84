"""The artifact server: metadata and packs over HTTP, with range requests. An ASGI application to be mounted.

It decides nothing: whom a file fits and whether it is genuine stands in the signed metadata. Ranges, conditional
requests and HEAD are Starlette's; what is added is that metadata that may change is never cached.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles

if TYPE_CHECKING:
    import os

    from starlette.responses import Response
    from starlette.types import Scope

    from outrider_cloud.fleet.artifacts.repository import Repository


class _Files(StaticFiles):
    """Static files; those with a version or hash in their name never change."""

    def file_response(
        self, full_path: str | os.PathLike[str], stat_result: os.stat_result, scope: Scope, status_code: int = 200
    ) -> Response:
        """Starlette's answer, with what may be cached."""
        response = super().file_response(full_path, stat_result, scope, status_code)
        changing = str(full_path).endswith("timestamp.json")
        response.headers["cache-control"] = "no-store" if changing else "public, max-age=31536000, immutable"
        return response


def artifact_app(repository: Repository) -> Starlette:
    """Serves /metadata and /targets of a repository."""
    return Starlette(
        routes=[
            Mount("/metadata", _Files(directory=repository.metadata)),
            Mount("/targets", _Files(directory=repository.targets)),
        ]
    )
