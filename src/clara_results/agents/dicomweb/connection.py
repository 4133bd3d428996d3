"""One HTTP connection to a DICOMweb service: every wait has an end, and any of them can be ended from another thread."""

import contextlib
import errno
import logging
import socket
import ssl
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from http.client import HTTPException
from typing import BinaryIO

from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    LocationParseError,
    NameResolutionError,
    NewConnectionError,
)
from urllib3.response import HTTPResponse
from urllib3.util import parse_url

from clara_results import __version__
from clara_results.agents.secrets import Secrets
from clara_results.agents.tls import refusal, tls_context
from clara_results.domain.clock import Clock
from clara_results.errors import ClaraResultsError, DestinationUnavailable
from clara_results.wire.destinations import Tls

LEAST_RATE = 10_000
"""Bytes a second that a receiver must take or give on average, else it is taken for dead."""
ANSWER_LIMIT = 1 << 26
"""Bytes of an answer that is held in memory; one that is longer is none of DICOMweb's."""
CHUNK = 1 << 18

# It warns of answers' broken headers, and quotes them.
logging.getLogger("urllib3.connection").setLevel(logging.ERROR)


class AnswerMissing(ClaraResultsError):
    """The connection broke before the answer was there; whether the receiver did what was asked is not known."""

    code = "no-answer"


class Interrupted(ClaraResultsError):
    """The connection was ended by ``interrupt``."""

    code = "interrupted"


@dataclass(frozen=True, slots=True)
class WebSettings:
    """Time limits, in seconds, and sizes.

    Attributes:
        connect: For the TCP connection, and for TLS.
        answer: For an answer, and for a receiver that takes no more data.
        task: For all of a task; what is left then is sent in another attempt.
        batch_files: Instances of a request, at most.
        batch_bytes: Bytes of a request, at most; a single instance may have more.
        pause: Before an instance that broke a connection is sent again.
    """

    connect: float = 10
    answer: float = 60
    task: float = 21_600
    batch_files: int = 50
    batch_bytes: int = 4 << 20
    pause: float = 1


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer, read to its end.

    Attributes:
        status: HTTP status (RFC 9110 15).
        headers: By name, in any case.
        data: The body; empty if it was written to a file.
    """

    status: int
    headers: Mapping[str, str]
    data: bytes


class WebConnection:
    """A connection that is opened when it is needed, and again when the other side has closed it.

    Used by one thread at a time; but ``expire`` and ``interrupt`` are for others.

    Args:
        url: Of a DICOMweb service, or of an OAuth 2 server; paths are below it.
        tls: How it is secured if it is ``https``; None: by the system's authorities.
        secrets: Where certificates lie.
        settings: Time limits.
        clock: The time.

    Raises:
        DestinationUnavailable: The URL, or what it takes for TLS, can't be used.
    """

    def __init__(
        self, url: str, tls: Tls | None, secrets: Secrets, settings: WebSettings, clock: Clock
    ) -> None:
        try:
            parsed = parse_url(url)
        except LocationParseError as cause:
            raise DestinationUnavailable(f"{url!r} is not a URL") from cause
        if parsed.scheme not in {"http", "https"} or not parsed.host:
            raise DestinationUnavailable(f"{url!r} is not an http or https URL")
        self.place = (
            f"{parsed.host} port {parsed.port or (443 if parsed.scheme == 'https' else 80)}"
        )
        self.secured = parsed.scheme == "https"
        self._base = (parsed.path or "").rstrip("/")
        self._settings = settings
        self._clock = clock
        self._deadline: float | None = None
        self._interrupted = False
        self._connection: HTTPConnection
        if self.secured:
            secured = tls or Tls()
            self._connection = HTTPSConnection(
                parsed.host.strip("[]"),
                parsed.port,
                ssl_context=tls_context(secured, secrets),
                assert_hostname=None if secured.check_host else False,
            )
        else:
            self._connection = HTTPConnection(parsed.host.strip("[]"), parsed.port)

    def exchange(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: Iterable[bytes] | None = None,
        *,
        size: int = 0,
        into: BinaryIO | None = None,
    ) -> Answer:
        """Send a request and wait for its answer.

        Args:
            method: HTTP method.
            path: Below the URL, with its query.
            headers: Of the request; with a body its Content-Length among them.
            body: Pieces, each sent before the next is asked for.
            size: Bytes that are to be sent or got, which allow for more time.
            into: Where to write the body of an answer 200.

        Raises:
            DestinationUnavailable: No connection comes about: nothing was sent.
            AnswerMissing: It broke, or took too long.
            Interrupted: By ``interrupt``.
            ClaraResultsError: What ``body`` raised; the connection is closed, the request was not sent to its end.
        """
        self.connect()
        self._deadline = self._clock.monotonic() + self._settings.answer + size / LEAST_RATE
        try:
            return self._exchange(method, self._base + path, headers, body, into)
        except ClaraResultsError:
            self.close()
            raise
        except (OSError, HTTPException, HTTPError, ValueError) as cause:
            self.close()
            self._check()
            raise AnswerMissing(self._broken(cause)) from cause
        finally:
            self._deadline = None

    def connect(self) -> None:
        """Open the connection if it is not open, or not any more.

        Raises:
            DestinationUnavailable: That fails.
            Interrupted: By ``interrupt``.
        """
        self._check()
        connection = self._connection
        if connection.sock is not None:
            if connection.is_connected:
                return
            connection.close()
        connection.timeout = self._settings.connect
        try:
            connection.connect()
        except (OSError, HTTPError) as cause:
            self.close()
            self._check()
            raise DestinationUnavailable(
                f"no connection to {self.place}: {_why_not(cause, self._settings.connect)}"
            ) from cause
        connection.timeout = self._settings.answer

    def _exchange(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: Iterable[bytes] | None,
        into: BinaryIO | None,
    ) -> Answer:
        try:
            self._connection.request(
                method,
                path,
                body,
                {"User-Agent": f"clara-results/{__version__}", "Accept-Encoding": "identity"} | dict(headers),
                preload_content=False,
            )  # fmt: skip
        except OSError as cause:
            # Who refuses a request need not read it to its end; the refusal may be there all the same.
            if cause.errno not in {errno.EPIPE, errno.ECONNRESET}:
                raise
        answer = self._connection.getresponse()
        data = b""
        if into is not None and answer.status == 200:
            for piece in answer.stream(CHUNK):
                into.write(piece)
        else:
            data = self._read(answer)
        return Answer(answer.status, answer.headers, data)

    def _read(self, answer: HTTPResponse) -> bytes:
        data = bytearray()
        for piece in answer.stream(CHUNK):
            data += piece
            if len(data) > ANSWER_LIMIT:
                raise HTTPException(f"an answer of more than {ANSWER_LIMIT} bytes")
        return bytes(data)

    def _broken(self, cause: Exception) -> str:
        if self._overdue:
            return f"{self.place} took too long"
        if isinstance(cause, TimeoutError) or "timed out" in str(cause):
            return f"{self.place} did not answer within {self._settings.answer:g} s"
        if isinstance(cause, ssl.SSLError):
            return f"{self.place} broke the connection: {refusal(cause)}"
        return f"{self.place} broke the connection before it answered ({type(cause).__name__})"

    @property
    def _overdue(self) -> bool:
        return self._deadline is not None and self._clock.monotonic() > self._deadline

    def _check(self) -> None:
        if self._interrupted:
            raise Interrupted(f"the connection to {self.place} was given up")

    def expire(self) -> None:
        """End a request whose time is up: it raises AnswerMissing."""
        if self._overdue:
            self._shut()

    def interrupt(self) -> None:
        """End it for good: who waits for an answer gets Interrupted, and so does who asks for one later."""
        self._interrupted = True
        self._shut()

    def _shut(self) -> None:
        opened = self._connection.sock
        if opened is not None:
            with contextlib.suppress(OSError):  # it is closed already
                opened.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close it; the next request opens it again."""
        self._connection.close()


def _why_not(cause: Exception, seconds: float) -> str:
    """Return in words why a connection did not come about."""
    if isinstance(cause, ssl.SSLError):
        return refusal(cause)
    if isinstance(cause, NameResolutionError):
        return "there is no host of that name"
    if isinstance(cause, NewConnectionError) and isinstance(cause.__cause__, OSError):
        cause = cause.__cause__
    if isinstance(cause, ConnectTimeoutError | TimeoutError):
        return f"no answer within {seconds:g} s"
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror.lower()
    return type(cause).__name__
