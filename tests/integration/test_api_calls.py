"""From the bytes of a request to a route's arguments, and from what a route returns or raises to an answer."""

import asyncio
import json
import logging
import socket
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

import pytest
from fastapi import APIRouter, Cookie, FastAPI, Header, Query, Request
from fastapi.responses import JSONResponse, Response
from fastapi.routing import APIRoute

from clara_results.api import problems
from clara_results.api.access import GuardedRoute
from clara_results.api.arguments import BODY_LIMIT
from clara_results.api.calls import Calls
from clara_results.wire.tasks import SuccessReport

if TYPE_CHECKING:
    from starlette.types import Message, Receive, Scope, Send

    from tests.conftest import ServiceStarter

OPEN = "/health/status"
"""A path that everyone may call."""
JSON = (b"content-type", b"application/json")


class App:
    """Calls to routes of the test's own, without a server."""

    def __init__(self) -> None:
        self.router = APIRouter(route_class=GuardedRoute)

    def call(
        self,
        query: str = "",
        headers: Iterable[tuple[bytes, bytes]] = (),
        body: Iterable[bytes] | None = None,
    ) -> tuple[int, Any]:
        """Send a request, its body in parts; without a body, the client leaves. Return the status and the JSON."""
        app = FastAPI()
        problems.install(app)
        routes = [route for route in self.router.routes if isinstance(route, APIRoute)]
        calls = Calls(app, routes, self._otherwise)
        parts = None if body is None else [*body]
        sent: list[Message] = []

        async def receive() -> "Message":
            if parts is None:
                return {"type": "http.disconnect"}
            part = parts.pop(0)
            return {"type": "http.request", "body": part, "more_body": bool(parts)}

        async def send(message: "Message") -> None:
            sent.append(message)

        scope = {
            "type": "http", "method": "GET", "path": OPEN, "query_string": query.encode(),
            "headers": [*headers], "app": app, "client": None,
        }  # fmt: skip
        asyncio.run(calls(scope, receive, send))
        return sent[0]["status"], json.loads(sent[1]["body"])

    @staticmethod
    async def _otherwise(_scope: "Scope", _receive: "Receive", _send: "Send") -> None:
        raise AssertionError("the path is a route's")


@pytest.fixture
def app() -> App:
    return App()


@pytest.fixture
def echo(app: App) -> App:
    """An app whose route tells its arguments."""

    @app.router.get(OPEN)
    async def tell(
        request: Request,
        needed: Annotated[int, Query(ge=1)],
        other: Annotated[str, Query(alias="otherOne")] = "default",
        key: Annotated[str | None, Header(alias="Some-Key", max_length=5)] = None,
    ) -> Response:
        return JSONResponse([needed, other, key, request.url.path])

    return app


@pytest.fixture
def report(app: App) -> App:
    """An app whose route has a body, which may be left out."""

    @app.router.get(OPEN)
    async def tell(body: SuccessReport | None = None) -> Response:
        return JSONResponse(None if body is None else body.lease_token)

    return app


# Arguments


def test_arguments_come_by_query_and_header(echo: App) -> None:
    headers = [(b"some-key", "é".encode("latin-1")), (b"some-key", b"second")]
    status, told = echo.call("needed=1&otherOne=a%20b&needed=2&more=x", headers)
    assert (status, told) == (200, [2, "a b", "é", OPEN])
    assert echo.call("needed=3") == (200, [3, "default", None, OPEN])
    assert echo.call("needed=3&otherOne=") == (200, [3, "", None, OPEN])


@pytest.mark.parametrize(
    ("query", "key", "fields"),
    [
        ("", b"x", ["needed"]),
        ("needed=", b"x", ["needed"]),
        ("needed=0", b"123456", ["needed", "Some-Key"]),
    ],
)
def test_what_is_missing_or_wrong_is_named(
    echo: App, query: str, key: bytes, fields: list[str]
) -> None:
    status, problem = echo.call(query, [(b"some-key", key)])
    assert (status, problem["code"]) == (422, "invalid-request")
    assert [fault["field"] for fault in problem["errors"]] == fields


@pytest.mark.parametrize(
    "media_type", ["application/json", "application/json; charset=utf-8", "application/x+json", None]
)  # fmt: skip
def test_a_body_comes_in_any_number_of_parts(report: App, media_type: str | None) -> None:
    headers = [(b"content-type", media_type.encode())] if media_type else []
    for parts in ([b'{"leaseToken": "x"}'], [b'{"lease', b"", b'Token": ', b'"x"}']):
        assert report.call(headers=headers, body=parts) == (200, "x")
    for parts in ([b""], [b"", b""], [b"null"]):
        assert report.call(headers=headers, body=parts) == (200, None)


def test_a_body_of_another_type_is_not_read(report: App) -> None:
    for media_type in (b"text/plain", b"application/octet-stream", b"json"):
        status, problem = report.call(headers=[(b"content-type", media_type)], body=[b"{}"])
        assert (status, problem["code"]) == (422, "invalid-request")


def test_a_body_ends_at_its_limit(report: App) -> None:
    half = b" " * (BODY_LIMIT // 2)
    assert report.call(headers=[JSON], body=[half, half[:-4], b"null"]) == (200, None)
    status, problem = report.call(headers=[JSON], body=[half, half[:-4], b" null"])
    assert (status, problem["code"]) == (413, "too-large")


def test_a_client_that_leaves_in_its_body_is_no_fault_of_ours(
    report: App, caplog: pytest.LogCaptureFixture
) -> None:
    assert report.call(headers=[JSON])[0] == 422
    assert caplog.records == []


def test_a_parameter_of_another_kind_can_not_be_declared(app: App) -> None:
    with pytest.raises(TypeError, match="path, query, header"):

        @app.router.get(OPEN)
        async def tell(biscuit: Annotated[str, Cookie()]) -> Response:
            return JSONResponse(biscuit)


# Answers


def test_a_fault_of_our_own_is_told_without_its_reason_and_logged_once(
    app: App, caplog: pytest.LogCaptureFixture
) -> None:
    @app.router.get(OPEN)
    async def broken() -> Response:
        raise RuntimeError("of the inside")

    with caplog.at_level(logging.ERROR):
        status, problem = app.call()
    assert (status, problem["code"]) == (500, "internal-error")
    assert "inside" not in json.dumps(problem)
    (record,) = caplog.records
    assert record.getMessage() == f"GET {OPEN} failed"
    assert record.exc_info is not None


def test_an_answer_arrives_as_one(service: "ServiceStarter") -> None:
    address = urlsplit(service().url)
    request = b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"
    with socket.create_connection((address.hostname or "", address.port or 0), timeout=20) as peer:
        for _ in range(50):
            peer.sendall(request)
            assert peer.recv(65536).endswith(b'\r\n\r\n{"status":"ok"}')
        peer.sendall(request[:-2] + b"Connection: close\r\n\r\n")
        assert peer.recv(65536).endswith(b'\r\n\r\n{"status":"ok"}')
        assert peer.recv(1) == b""
