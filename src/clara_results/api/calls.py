"""From a request to its route, and back with an answer."""

import re
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable

from fastapi import FastAPI, Request
from fastapi.responses import Response
from fastapi.routing import APIRoute
from starlette.types import ASGIApp, Receive, Scope, Send

Handler = Callable[[Request], Awaitable[Response]]
_Entry = tuple[re.Pattern[str], APIRoute, Handler]


class Calls:
    """Takes each call to its route; what is none (the document, its page, what is not there) goes to FastAPI.

    FastAPI's own way there, through layers that these routes have no use for, costs more than all the rest of a call.
    """

    def __init__(self, app: FastAPI, routes: Iterable[APIRoute], otherwise: ASGIApp) -> None:
        """Look at the routes: of two that fit, the first takes the call.

        Args:
            app: Whose error handlers answer what routes raise.
            routes: Where calls may go to.
            otherwise: Takes what fits none of them.
        """
        self._app = app
        self._otherwise = otherwise
        self._routes: dict[str, list[_Entry]] = defaultdict(list)
        for route in routes:
            # A path may hold line feeds too: what is wrong with them is the route's to say.
            pattern = re.compile(route.path_regex.pattern, re.DOTALL)
            entry = (pattern, route, route.get_route_handler())
            for method in route.methods or ():
                self._routes[method].append(entry)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a call."""
        path = scope["path"]
        for pattern, route, handle in self._routes.get(scope["method"], ()):
            if match := pattern.match(path):
                scope["route"] = route
                scope["path_params"] = match.groupdict()
                response = await self._response(Request(scope, receive), handle)
                await response(scope, receive, send)
                return
        await self._otherwise(scope, receive, send)

    async def _response(self, request: Request, handle: Handler) -> Response:
        try:
            return await handle(request)
        except Exception as error:  # noqa: BLE001  (outermost: whatever it is, the caller has an answer)
            handlers = self._app.exception_handlers
            answer = next(handlers[kind] for kind in type(error).__mro__ if kind in handlers)
            response: Response = answer(request, error)  # type: ignore[assignment]
            return response
