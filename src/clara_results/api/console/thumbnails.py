"""``/thumbnails``: small pictures of payloads' files, for lists."""

import asyncio
import os
from functools import partial

from fastapi import APIRouter, Response

from clara_results.api.access import GuardedRoute
from clara_results.api.dependencies import EngineDep
from clara_results.errors import NotFound

router = APIRouter(include_in_schema=False, route_class=GuardedRoute)
_HEADERS = {"Cache-Control": "private, max-age=3600", "X-Content-Type-Options": "nosniff"}


@router.get("/thumbnails/{payload_id}/{uri:path}")
async def thumbnail(engine: EngineDep, payload_id: str, uri: str) -> Response:
    """Return a picture of at most 128 pixels a side, as PNG; of what has none, or can't be decoded, 404."""
    with await asyncio.to_thread(engine.payloads.open, payload_id, uri) as file:
        status = os.fstat(file.fileno())
        tag = f"{payload_id}/{uri}-{status.st_size:x}-{status.st_mtime_ns:x}-{status.st_ino:x}"
        picture = await asyncio.to_thread(partial(engine.thumbnails.of, file, tag))
    if not picture:
        raise NotFound("that file has no picture", code="no-picture")
    return Response(picture, media_type="image/png", headers=_HEADERS)
