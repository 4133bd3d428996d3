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
_ICON = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 48 48"><path d="M15 9h12l7 7v23H15z M27 9v7h7"
 fill="none" stroke="#8b98a5" stroke-width="2" stroke-linejoin="round"/></svg>"""


@router.get("/thumbnails/{payload_id}/{uri:path}")
async def thumbnail(engine: EngineDep, payload_id: str, uri: str) -> Response:
    """Return a picture of at most 128 pixels a side, as PNG; of what has none, is damaged, or is no more, an icon.

    No error, as a browser would ask for it again and again while it shows a list that changes.
    """
    try:
        file = await asyncio.to_thread(engine.payloads.open, payload_id, uri)
    except NotFound:
        return _icon()
    with file:
        status = os.fstat(file.fileno())
        tag = f"{payload_id}/{uri}-{status.st_size:x}-{status.st_mtime_ns:x}-{status.st_ino:x}"
        picture = await asyncio.to_thread(partial(engine.thumbnails.of, file, tag))
    return Response(picture, media_type="image/png", headers=_HEADERS) if picture else _icon()


def _icon() -> Response:
    return Response(_ICON, media_type="image/svg+xml", headers=_HEADERS)
