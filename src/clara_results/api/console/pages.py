"""What pages of the console are made with: templates, assets, forms, and how errors look to a person."""

import functools
import hashlib
from collections.abc import Callable, Coroutine, Mapping
from datetime import datetime
from importlib import resources
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, quote, urlsplit

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from fastapi.staticfiles import StaticFiles
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from starlette.middleware.gzip import GZipMiddleware
from starlette.types import Receive, Scope, Send

from clara_results import __version__
from clara_results.api.access import COOKIE, GuardedRoute, caller_of
from clara_results.api.problems import status_of
from clara_results.errors import AccessDenied, ClaraResultsError, InvalidInput, Unauthenticated

if TYPE_CHECKING:
    from clara_results.service.engine import Engine

STATIC = "/static"
FORM_LIMIT = 1 << 20
"""Bytes of a form."""
POLICY = {
    "default-src": "'self'",
    "img-src": "'self' data: blob:",
    "object-src": "'none'",
    "base-uri": "'none'",
    "form-action": "'self'",
    "frame-ancestors": "'none'",
}
"""What a page may load and do (Content Security Policy, W3C): what is ours, and nothing of another host."""
_FOR_EVER = "public, max-age=31536000, immutable"
_STATIC_FILES = resources.files("clara_results.api.console") / "static"


class PageRoute(GuardedRoute):
    """A route that answers people: an error is a page, or where a part of a page was asked for, a line in it."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the route's handler."""
        handle = super().get_route_handler()

        async def answered(request: Request) -> Response:
            try:
                return await handle(request)
            except Unauthenticated as error:
                return _to_sign_in(request, error)
            except RequestValidationError as error:
                places = ", ".join(str(fault["loc"][-1]) for fault in error.errors())
                return await failed(request, InvalidInput(f"that can't be read: {places}"))
            except ClaraResultsError as error:
                return await failed(request, error)

        return answered


class Assets:
    """Serves ``static``, compressed; what is asked for by its digest may be kept for ever."""

    def __init__(self) -> None:
        self._files = GZipMiddleware(
            StaticFiles(packages=[("clara_results.api.console", "static")]), minimum_size=1000
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send a file."""

        async def with_age(message: Any) -> None:
            if message["type"] == "http.response.start" and message["status"] == 200:
                known = scope["query_string"].startswith(b"v=")
                age = _FOR_EVER if known else "no-cache"
                message["headers"] += [(b"cache-control", age.encode())]
            await send(message)

        await self._files(scope, receive, with_age)


@functools.cache
def asset(path: str) -> str:
    """Return the URL of a file in ``static``; it bears the content's digest.

    Raises:
        FileNotFoundError: There is none.
    """
    digest = hashlib.sha256(_STATIC_FILES.joinpath(path).read_bytes()).hexdigest()
    return f"{STATIC}/{path}?v={digest[:16]}"


async def render(
    request: Request,
    template: str,
    status: int = 200,
    *,
    policy: Mapping[str, str] | None = None,
    **context: Any,
) -> Response:
    """Return a page, or a part of one.

    Args:
        request: Who asks.
        template: In ``templates``.
        status: HTTP status.
        policy: Directives beside, or instead of, POLICY's.
        context: What the template shows.
    """
    engine: Engine = request.app.state.engine
    try:
        allow: Callable[[str], bool] = (await caller_of(request)).scopes.allow
    except AccessDenied:
        allow = _nothing
    text = _environment().get_template(template).render(
        path=request.url.path,
        may=allow,
        signed_in=COOKIE in request.cookies,
        now=engine.clock.now(),
        **context,
    )  # fmt: skip
    directives = POLICY | dict(policy or {})
    headers = {
        "Content-Security-Policy": "; ".join(
            f"{name} {value}" for name, value in directives.items()
        ),
        "Cache-Control": "no-store",
        "Referrer-Policy": "same-origin",
        "X-Content-Type-Options": "nosniff",
    }
    return HTMLResponse(text, status, headers)


async def failed(request: Request, error: ClaraResultsError) -> Response:
    """Return what a person sees of an error: a page, or a line where a part of a page was asked for."""
    status = 403 if isinstance(error, AccessDenied) else status_of(error)
    template = "notice.html" if is_part(request) else "error.html"
    return await render(request, template, status, error=error, http_status=status)


def is_part(request: Request) -> bool:
    """Tell whether a part of a page is asked for, by htmx."""
    return "hx-request" in request.headers


def go_to(request: Request, place: str) -> Response:
    """Have the browser go to another page, after something was done."""
    if is_part(request):
        return Response(status_code=204, headers={"HX-Redirect": place})
    return RedirectResponse(place, 303)


async def form(request: Request) -> dict[str, list[str]]:
    """Return a form's values by name, in the order in which they came.

    Raises:
        InvalidInput: It is too large, or not text.
    """
    content = b""
    async for part in request.stream():
        content += part
        if len(content) > FORM_LIMIT:
            raise InvalidInput(
                f"a form has at most {FORM_LIMIT} bytes; choose fewer", code="invalid-request"
            )
    try:
        pairs = parse_qsl(content.decode("ascii"), keep_blank_values=True, errors="strict")
    except ValueError:
        raise InvalidInput("the form is not text", code="invalid-request") from None
    found: dict[str, list[str]] = {}
    for name, value in pairs:
        found.setdefault(name, []).append(value)
    return found


def local(place: str | None) -> str:
    """Return a page of this console that somebody wanted to see; the first one, if that is none."""
    if not place or not place.startswith("/") or place.startswith(("//", "/\\")):
        return "/"
    try:
        parts = urlsplit(place)
    except ValueError:
        return "/"
    return "/" if parts.netloc or parts.scheme else place


def _to_sign_in(request: Request, error: Unauthenticated) -> Response:
    url = request.url
    place = url.path + (f"?{url.query}" if url.query else "")
    if is_part(request) or request.method != "GET":
        place = _path(request.headers.get("hx-current-url", "/"))
    why = "" if error.code == Unauthenticated.code else f"&why={error.code}"
    return go_to(request, f"/login?next={quote(place, safe='')}{why}")


def _path(url: str) -> str:
    try:
        return urlsplit(url).path
    except ValueError:
        return "/"


def _nothing(_scope: str) -> bool:
    return False


# What templates know


@functools.cache
def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("clara_results.api.console", "templates"),
        autoescape=select_autoescape(default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals |= {"asset": asset, "version": __version__}
    made.filters |= {
        "ago": ago,
        "exact": exact,
        "size": size,
        "number": number,
        "seconds": seconds,
        "path": functools.partial(quote, safe=""),
    }
    return made


_STEPS = ((60.0, 1.0, "s"), (3600.0, 60.0, "min"), (86_400.0, 3600.0, "h"))


def ago(moment: datetime, now: datetime) -> str:
    """Return how long ago a moment was, or in how long it will be: ``5 min ago``, ``in 20 s``, ``3 days ago``."""
    passed = (now - moment).total_seconds()
    whole = seconds(abs(passed))
    if abs(passed) < 1:
        return "just now"
    return f"{whole} ago" if passed > 0 else f"in {whole}"


def seconds(value: float) -> str:
    """Return a duration in one unit: ``40 ms``, ``12 s``, ``5 min``, ``3 days``."""
    if value < 1:
        return f"{value * 1000:.0f} ms"
    for limit, unit, name in _STEPS:
        if value < limit:
            return f"{value / unit:.0f} {name}"
    days = round(value / 86_400)
    return "1 day" if days == 1 else f"{days} days"


def exact(moment: datetime) -> str:
    """Return a moment to the second, in UTC."""
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"


def size(value: int | None) -> str:
    """Return a number of bytes for people, in decimal units (IEC 80000-13): ``12.3 MB``."""
    if value is None:
        return "unknown"
    if value < 1000:
        return f"{value} B"
    shown = float(value)
    for unit in ("kB", "MB", "GB"):
        shown /= 1000
        if shown < 999.5:
            return f"{shown:.3g} {unit}"
    return f"{shown / 1000:.3g} TB"


def number(value: int) -> str:
    """Return a number with a thin space between thousands."""
    return f"{value:,}".replace(",", "\u202f")
