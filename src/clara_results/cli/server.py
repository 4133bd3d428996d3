"""The service's process: uvicorn around the application."""

import asyncio
import functools
import logging
import socket
from types import FrameType
from typing import Any

import typer
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from clara_results import __version__
from clara_results.api.app import create_app
from clara_results.cli.probe import probe
from clara_results.errors import ClaraResultsError, InvalidInput
from clara_results.service import access
from clara_results.service.engine import Engine
from clara_results.settings import Settings

SHUTDOWN = 10
"""Seconds that requests under way have once the service is asked to end."""
READY_LINE = "Clara Results listens on "
"""Begins the one line on stdout; the URL follows."""
_log = logging.getLogger(__name__)


def run(settings: Settings) -> bool:
    """Serve until asked to end; say whether the service ever was ready.

    Raises:
        InvalidInput: The address can't be listened on, or not by everyone who reaches it; or another service has
            the database.
        ServiceUnavailable: The database can't be used.
    """
    _check_access(settings)
    listening = _bind(settings)
    host, port = listening.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    server = _Server(settings, f"{READY_LINE}http://{shown}:{port} (version {__version__})")
    server.run(sockets=[listening])
    if server.fault is not None:
        raise server.fault
    return server.started


class _Server(uvicorn.Server):
    """uvicorn, that says on stdout when it is ready, and lets waiting claims go when it is to end."""

    def __init__(self, settings: Settings, ready_line: str) -> None:
        self._settings = settings
        self._ready_line = ready_line
        self._engine: Engine | None = None
        self.fault: ClaraResultsError | None = None
        app = create_app(self._opened, functools.partial(probe, settings))
        super().__init__(
            uvicorn.Config(
                app,
                http=_Protocol,
                access_log=False,
                log_config=None,
                timeout_graceful_shutdown=SHUTDOWN,
                server_header=False,
                proxy_headers=False,  # else who calls could say what its address is
            )
        )

    def _opened(self) -> Engine:
        if self._engine is None:
            raise RuntimeError("the application starts before its server")
        return self._engine

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to serve; if that can't be, ``fault`` says why."""
        try:
            # Not by the application, whose failure uvicorn would tell by a traceback.
            self._engine = Engine(self._settings)
        except ClaraResultsError as error:
            self.fault = error
            self.should_exit = True
            return
        await super().startup(sockets)
        if self.started:
            typer.echo(self._ready_line)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to end."""
        if self._engine is not None:
            self._engine.end_waiting()
        super().handle_exit(sig, frame)


class _Protocol(HttpToolsProtocol):
    """uvicorn's HTTP, that hands an answer's head and body to the kernel together."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to serve a connection."""
        super().connection_made(_Gathering(transport, self.loop))


class _Gathering(asyncio.Transport):
    """A transport that sends at the end of the event loop's turn what was written in it.

    uvicorn writes the head of an answer, then its body; each on its own would be a call of the kernel and wake who
    reads: together a quarter of what uvicorn costs.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._transport = transport
        self._loop = loop
        self._parts: list[bytes | bytearray | memoryview] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send data, soon."""
        if not self._parts:
            self._loop.call_soon(self._send)
        self._parts.append(data)

    def close(self) -> None:
        """Close the connection once everything is sent."""
        self._send()
        self._transport.close()

    def _send(self) -> None:
        if self._parts:
            data = b"".join(self._parts)
            self._parts.clear()
            self._transport.write(data)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._transport.get_extra_info(name, default)

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def pause_reading(self) -> None:
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        self._transport.resume_reading()


def _check_access(settings: Settings) -> None:
    """Refuse to let everyone who reaches the address do everything, unless told to."""
    if settings.loopback or settings.anonymous:
        return
    with access.opened(settings.database_url) as database:
        if database.read(access.any_token).result():
            return
    if not settings.insecure:
        raise InvalidInput(
            f"host {settings.host}: whoever reaches that address could do anything. Make a token first "
            "(clara-results tokens create NAME --scope admin --scope 'agent:*'), or say what callers without "
            "one may do (--anonymous), or listen on 127.0.0.1; --insecure starts all the same",
            code="insecure",
        )
    _log.warning(
        "insecure: whoever reaches %s port %d may do anything, until a token is made",
        settings.host, settings.port,
    )  # fmt: skip


def _bind(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # Named TCP outright: else asyncio, where uvloop is not, leaves Nagle's algorithm on.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((settings.host, settings.port))
    except OSError as error:
        listening.close()
        raise InvalidInput(
            f"can't listen on {settings.host} port {settings.port}: {error.strerror or error}; "
            "is another service running there? choose another --port",
            code="cannot-listen",
        ) from error
    return listening
