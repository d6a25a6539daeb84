"""Server-sent events for the page: one line whenever something changed, at most five a second."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse

from outrider_cloud.fleet.registry import access
from outrider_cloud.fleet.web.guard import Found, Viewer, bearer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from outrider_cloud.fleet.web.state import Services

router = APIRouter(prefix="/api")
_LEAST_S, _MOST_S = 0.2, 5.0


@router.get("/live")
async def live(request: Request, found: Found, _who: Viewer) -> StreamingResponse:
    """`data:` lines with the overview; what else changed is asked for by the page. Ends when the token is revoked."""
    headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
    return StreamingResponse(_events(found, bearer(request)), media_type="text/event-stream", headers=headers)


async def _events(found: Services, token: str) -> AsyncIterator[str]:
    while (overview := await asyncio.to_thread(_seen, found, token)) is not None:
        yield f"data: {json.dumps(overview)}\n\n"
        await asyncio.sleep(_LEAST_S)
        await found.controller.changed(_MOST_S)


def _seen(found: Services, token: str) -> dict[str, Any] | None:
    """The overview, for whom it is still meant."""
    with found.controller.database.reading() as connection:
        known = access.who(connection, token)
    return found.glance.overview() if known is not None else None
