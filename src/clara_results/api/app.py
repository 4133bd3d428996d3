"""The service's ASGI application."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse
from fastapi.staticfiles import StaticFiles
from starlette.types import Receive, Scope, Send

from clara_results import __version__
from clara_results.api import access, problems
from clara_results.api.access import GuardedRoute
from clara_results.api.calls import Calls
from clara_results.api.console import agents, overview, signin, thumbnails, viewer
from clara_results.api.console import destinations as destination_pages
from clara_results.api.console import tasks as task_pages
from clara_results.api.console.pages import STATIC, Assets
from clara_results.api.routes import (
    commitments,
    datasets,
    destinations,
    events,
    health,
    metrics,
    payloads,
    tasks,
)
from clara_results.service.engine import Engine
from clara_results.wire.destinations import Destination, TestResult

DOCS_ASSETS = "/docs/assets"
_PARTS = (tasks, commitments, payloads, datasets, destinations, events, metrics, health)
_PAGES = (signin, overview, destination_pages, agents, task_pages, thumbnails, viewer)


class _App(FastAPI):
    """FastAPI, with our own way from calls to routes before its own."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.router.route_class = GuardedRoute
        routes = []
        for part in (*_PARTS, *_PAGES):
            self.include_router(part.router)
            routes += [route for route in part.router.routes if isinstance(route, GuardedRoute)]
        calls = Calls(self, routes, super().__call__)
        self._calls = metrics.Measured(calls)  # outermost: what others refuse counts as well

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Take a request, or what a server asks at its start and end."""
        if scope["type"] == "http":
            scope["app"] = self
            await self._calls(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


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

    app = _App(
        title="Clara Results",
        summary="The Results Service's HTTP contract",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        strict_content_type=False,  # the original's clients may leave it out
    )
    app.state.test_destination = test_destination
    problems.install(app)
    access.install(app)
    assets = StaticFiles(packages=[("fastapi_swagger", "resources")])
    app.mount(DOCS_ASSETS, assets, name="docs-assets")
    app.mount(STATIC, Assets(), name="static")

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
