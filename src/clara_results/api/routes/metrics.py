"""``/metrics`` for Prometheus, and what measures HTTP requests."""

import asyncio
import time

from fastapi import APIRouter
from fastapi.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from clara_results.api.access import GuardedRoute
from clara_results.api.dependencies import EngineDep
from clara_results.api.problems import documented
from clara_results.service.metrics import MEDIA_TYPE

router = APIRouter(tags=["Service"], route_class=GuardedRoute)
NO_ROUTE = "(none)"
"""Stands for every path that is no route of ours: a label must not take what callers make up."""


@router.get("/metrics", response_class=PlainTextResponse, responses=documented())
async def metrics(engine: EngineDep) -> Response:
    """Tell Prometheus how the service works and how the work stands."""
    census = await engine.enumerator.census()
    content = await asyncio.to_thread(
        engine.metrics.text, census.standing, census.disks, ready=engine.ready
    )
    return Response(content, media_type=MEDIA_TYPE)


class Measured:
    """Counts requests by route and status, and measures how long each answer takes to begin."""

    def __init__(self, app: ASGIApp) -> None:
        """Wrap an application."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on and measure it."""
        engine = scope["app"].state.engine
        begun = time.perf_counter()
        status = 0

        async def measured(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start" and not status:
                status = message["status"]
                note()
            await send(message)

        def note() -> None:
            route = getattr(scope.get("route"), "path", NO_ROUTE)
            engine.metrics.answered(scope["method"], route, status, time.perf_counter() - begun)

        try:
            await self._app(scope, receive, measured)
        except Exception:  # of any kind: it is counted, and goes on to who answers it
            if not status:
                status = 500
                note()
            raise
