"""The service's ASGI application."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from clara_results import __version__
from clara_results.api import access, problems
from clara_results.api.routes import destinations, events, health, metrics, payloads, tasks
from clara_results.service.engine import Engine
from clara_results.wire.destinations import Destination, TestResult

BODY_LIMIT = 16 << 20
"""Bytes of a request that is no upload."""
DOCS_ASSETS = "/docs/assets"


def create_app(
    make_engine: Callable[[], Engine], test_destination: Callable[[Destination], TestResult]
) -> FastAPI:
    """Return the application.

    Args:
        make_engine: Opens the engine, on the event loop that serves.
        test_destination: Connects to a destination and tells what it finds.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.engine = make_engine()
        try:
            yield
        finally:
            app.state.engine.close()

    app = FastAPI(
        title="Clara Results",
        summary="The Results Service's HTTP contract",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        strict_content_type=False,  # the original's clients may leave it out
    )
    app.state.test_destination = test_destination
    app.router.route_class = access.GuardedRoute
    for module in (tasks, payloads, destinations, events, metrics, health):
        app.include_router(module.router)
    problems.install(app)
    access.install(app)
    app.add_middleware(BodyLimit)
    app.add_middleware(metrics.Measured)  # outermost: what others refuse counts as well
    assets = StaticFiles(packages=[("fastapi_swagger", "resources")])
    app.mount(DOCS_ASSETS, assets, name="docs-assets")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return get_swagger_ui_html(
            openapi_url="/openapi.json",
            title="Clara Results: HTTP contract",
            swagger_js_url=f"{DOCS_ASSETS}/swagger-ui-bundle.js",
            swagger_css_url=f"{DOCS_ASSETS}/swagger-ui.css",
            swagger_favicon_url=f"{DOCS_ASSETS}/favicon-32x32.png",
        )

    return app


class BodyLimit:
    """Refuses JSON bodies over the limit with 413, before they are gathered in memory."""

    def __init__(self, app: ASGIApp) -> None:
        """Wrap an application."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on while it keeps to the limit."""
        taken = 0

        async def limited() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > BODY_LIMIT:
                raise HTTPException(
                    413, f"a body has at most {BODY_LIMIT} bytes; register in parts"
                )
            return message

        upload = scope["type"] == "http" and scope["path"].startswith("/api/payloads/")
        await self._app(scope, receive if upload else limited, send)
