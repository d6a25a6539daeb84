"""Server-sent events for the page: one line whenever something changed, at most five a second."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

from fastapi import APIRouter
from fastapi.responses import StreamingResponse

from outrider_cloud.fleet.web.guard import Found, Viewer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from outrider_cloud.fleet.web.state import Services

router = APIRouter(prefix="/api")
_LEAST_S, _MOST_S = 0.2, 5.0


@router.get("/live")
async def live(found: Found, _who: Viewer) -> StreamingResponse:
    """`data:` lines with the overview; what else changed is asked for by the page."""
    headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
    return StreamingResponse(_events(found), media_type="text/event-stream", headers=headers)


async def _events(found: Services) -> AsyncIterator[str]:
    while True:
        overview = await asyncio.to_thread(found.glance.overview)
        yield f"data: {json.dumps(overview)}\n\n"
        await asyncio.sleep(_LEAST_S)
        await found.controller.changed(_MOST_S)
