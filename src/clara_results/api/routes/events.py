"""``/api/events``: what happens to tasks, as server-sent events (HTML Living Standard, 9.2)."""

from collections.abc import AsyncIterator, Sequence
from typing import Annotated

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import Response, StreamingResponse

from clara_results.api.access import GuardedRoute, may_go_on
from clara_results.api.dependencies import EngineDep
from clara_results.api.problems import Responses, documented
from clara_results.service.engine import Engine
from clara_results.service.events import Entry, Wanted

router = APIRouter(tags=["Service"], route_class=GuardedRoute)
MEDIA_TYPE = "text/event-stream"
ASK_AGAIN = 2000
"""Milliseconds after which a reader whose stream ended is to come back."""
CHECK_EVERY = 2.0
"""Seconds after which a reader's token is looked at again before more events go out to it."""
_STREAM: Responses = {
    200: {
        "description": "Events named `task`; `data` is one JSON object, `id` the position to resume at",
        "content": {MEDIA_TYPE: {"schema": {"type": "string"}}},
    }
}
_HEADERS = {
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",  # nginx would gather events before it passes them on
}
EventId = Annotated[int | None, Query(alias="lastEventId", ge=0, lt=1 << 63)]


@router.get("/api/events", response_class=StreamingResponse, responses=_STREAM | documented())
async def events(
    request: Request,
    engine: EngineDep,
    agent: Annotated[str | None, Query(max_length=255)] = None,
    job_id: Annotated[str | None, Query(alias="jobId", max_length=255)] = None,
    destination: Annotated[str | None, Query(max_length=255)] = None,
    first: EventId = None,
    last: Annotated[int | None, Header(alias="Last-Event-ID", ge=0, lt=1 << 63)] = None,
) -> Response:
    """Tell what happens to tasks from now on, or from after the event that the reader has had last."""
    position = await engine.events.open(first if last is None else last)
    content = _stream(request, engine, position, Wanted(agent, job_id, destination))
    return StreamingResponse(content, media_type=MEDIA_TYPE, headers=_HEADERS)


async def _stream(
    request: Request, engine: Engine, position: int, wanted: Wanted
) -> AsyncIterator[bytes]:
    checked_at = engine.clock.monotonic()
    with engine.metrics.event_streams.track_inprogress():
        yield b"retry: %d\nid: %d\n\n" % (ASK_AGAIN, position)
        async for reached, entries in engine.events.stream(position, wanted):
            if engine.clock.monotonic() - checked_at >= CHECK_EVERY:
                if not await may_go_on(request):
                    return
                checked_at = engine.clock.monotonic()
            yield _text(reached, entries)


def _text(reached: int, entries: Sequence[Entry]) -> bytes:
    """Return events; or, as there are none, only the position: a reader keeps it, and tells nobody."""
    if not entries:
        return b": nothing new\nid: %d\n\n" % reached
    return b"".join(b"id: %d\nevent: task\ndata: %b\n\n" % (e.id, e.json) for e in entries)
