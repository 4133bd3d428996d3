"""A DICOMweb service as an archive: store (PS3.18 10.5), and look up what it has (10.6, 10.4)."""

import json
import tempfile
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, BinaryIO
from urllib.parse import quote

from clara_results.agents.dicomweb.connection import (
    Answer,
    AnswerMissing,
    WebConnection,
    WebSettings,
)
from clara_results.agents.dicomweb.credentials import CODE as NOT_AUTHORIZED
from clara_results.agents.dicomweb.credentials import Credentials
from clara_results.agents.dicomweb.multipart import InstancesMessage, only_part
from clara_results.agents.secrets import Secrets
from clara_results.domain.clock import Clock
from clara_results.errors import DestinationUnavailable
from clara_results.wire.destinations import Destination

JSON = "application/dicom+json"
PAGE = 500
"""Instances that are asked for at a time."""
_INSTANCE_UID = "00080018"
_ABSENT = frozenset({204, 404, 410})

_WORDS = {
    401: "it does not take our credentials: look at the destination's auth and at its secret",
    403: "we may not do that there: have it allowed for the destination's auth",
    404: "there is no such resource: the destination's url must be that below which /studies is",
    405: "it does not do that there: the destination's url must be that below which /studies is",
    408: "the request took it too long",
    410: "there is no such resource any more: look at the destination's url",
    421: "it is not the server of that name: look at the destination's url",
    429: "too many requests",
    500: "it failed",
    501: "it does not offer that service",
    502: "what is behind its gateway fails",
    503: "it can't serve just now",
    504: "what is behind its gateway does not answer",
    507: "it has no room left",
}


class WebService:
    """The DICOMweb service of a destination.

    Args:
        destination: Which.
        credentials: Who we say we are.
        secrets: Where certificates lie.
        settings: Time limits.
        clock: The time.
    """

    def __init__(
        self,
        destination: Destination,
        credentials: Credentials,
        secrets: Secrets,
        settings: WebSettings,
        clock: Clock,
    ) -> None:
        self._destination = destination
        self._credentials = credentials
        self._secrets = secrets
        self._settings = settings
        self._clock = clock

    def connection(self) -> WebConnection:
        """Return a connection to it, which is opened by its first request.

        Raises:
            DestinationUnavailable: The URL, or a secret that it takes, can't be used.
        """
        found = self._destination
        return WebConnection(found.url or "", found.tls, self._secrets, self._settings, self._clock)

    def store(self, connection: WebConnection, message: InstancesMessage) -> Answer:
        """Send instances and return the answer, whatever it is.

        Raises:
            AnswerMissing: There is none: what the service has of them is not known.
            DestinationUnavailable: It can't be reached, or there is no token for it; nothing was sent.
            PartUnreadable: A file can't be read to its end; what the service has of them is not known.
        """
        headers = {
            "Content-Type": message.content_type,
            "Content-Length": str(message.size),
            "Accept": JSON,
        }
        return self._call(connection, "POST", "/studies", headers, message.pieces, message.size)

    def search(
        self, connection: WebConnection, path: str, nothing: frozenset[int] = _ABSENT
    ) -> list[Any] | None:
        """Return what a QIDO-RS query finds; None if it can't be asked, or says what can't be read.

        Args:
            connection: To it.
            path: The resource, with its query.
            nothing: Statuses that say that there is none.

        Raises:
            DestinationUnavailable: The service can't be reached, does not answer, does not let us, or fails.
        """
        answer = self._get(connection, path, JSON)
        if answer.status in nothing:
            return []
        return _listed(answer)

    def instances(self, connection: WebConnection, study: str, series: str) -> set[str] | None:
        """Return the SOP Instance UIDs that it has of a series; None if it can't be asked.

        Raises:
            DestinationUnavailable: As ``search``.
        """
        found: set[str] = set()
        if not study or not series:
            return None
        base = f"/studies/{quote(study)}/series/{quote(series)}/instances"
        while True:
            # By how many there are, not how many came: who pages may give less than was asked for.
            page = self.search(connection, f"{base}?limit={PAGE}&offset={len(found)}")
            if page is None:
                return None
            known = len(found)
            found.update(uid for item in page if (uid := _uid(item)))
            if len(found) == known:
                return found

    def metadata(self, connection: WebConnection, instance: str) -> dict[str, Any] | None:
        """Return an instance's attributes as it has them (PS3.18 10.4.1.1.2), without bulk data.

        Args:
            connection: To it.
            instance: Path of the instance, from ``instance_path``.

        Returns:
            A DICOM JSON data set; None if it can't be had; an empty one if there is no such instance.

        Raises:
            DestinationUnavailable: As ``search``.
        """
        answer = self._get(connection, f"{instance}/metadata", JSON)
        if answer.status in _ABSENT:
            return {}
        listed = _listed(answer)
        return listed[0] if listed and isinstance(listed[0], dict) else None

    def retrieve(
        self, connection: WebConnection, instance: str, size: int, out: BinaryIO
    ) -> bool | None:
        """Write an instance to a file as it gives it (WADO-RS): a Part 10 file, in the transfer syntax that it has.

        Args:
            connection: To it.
            instance: Path of the instance, from ``instance_path``.
            size: Bytes that are to be expected.
            out: Where it goes.

        Returns:
            Whether there is such an instance; None if it can't be had.

        Raises:
            DestinationUnavailable: As ``search``.
        """
        accept = 'multipart/related; type="application/dicom"; transfer-syntax=*'
        with tempfile.TemporaryFile() as message:
            answer = self._get(connection, instance, accept, size, message)
            if answer.status in _ABSENT:
                return False
            content_type = answer.headers.get("Content-Type", "")
            whole = answer.status == 200 and only_part(content_type, message, out)
            return True if whole else None

    def unavailable(self, status: int) -> DestinationUnavailable:
        """Return the error that says in words what a status is that concerns the service as a whole."""
        if 300 <= status < 400:
            words = "it wants to be called elsewhere, which is not done: set the destination's url to where it is"
        else:
            words = _WORDS.get(status, "it fails" if status >= 500 else "it refuses")
        code = NOT_AUTHORIZED if status in {401, 403} else f"http-{status}"
        return DestinationUnavailable(
            f"{self._destination.name} answered {status}: {words}", code=code
        )

    def _get(
        self,
        connection: WebConnection,
        path: str,
        accept: str,
        size: int = 0,
        into: BinaryIO | None = None,
    ) -> Answer:
        try:
            answer = self._call(connection, "GET", path, {"Accept": accept}, None, size, into)
        except AnswerMissing as cause:
            raise DestinationUnavailable(str(cause), code=cause.code) from cause
        if answer.status in {401, 403, 408, 429} or (answer.status >= 500 and answer.status != 501):
            raise self.unavailable(answer.status)
        return answer

    def _call(
        self,
        connection: WebConnection,
        method: str,
        path: str,
        headers: dict[str, str],
        body: Callable[[], Iterable[bytes]] | None = None,
        size: int = 0,
        into: BinaryIO | None = None,
    ) -> Answer:
        """Make a call; once more, with another token, if ours is not good any more."""
        last = False
        while True:
            who = self._credentials.headers()
            pieces = body() if body is not None else None
            answer = connection.exchange(method, path, headers | who, pieces, size=size, into=into)
            if answer.status != 401 or last or not self._credentials.refused(who):
                return answer
            last = True


def instance_path(study: str, series: str, instance: str) -> str:
    """Return an instance's resource below the service's URL (PS3.18 10.1.2)."""
    return f"/studies/{quote(study)}/series/{quote(series)}/instances/{quote(instance)}"


def retry_after(answer: Answer, now: datetime) -> float | None:
    """Return the seconds for which a service asks to be left alone (RFC 9110 10.2.3); None if it does not say."""
    value = answer.headers.get("Retry-After", "").strip()
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        until = parsedate_to_datetime(value)
    except ValueError:
        return None
    if until.tzinfo is None:
        until = until.replace(tzinfo=UTC)
    return max(0.0, (until - now).total_seconds())


def _listed(answer: Answer) -> list[Any] | None:
    if answer.status != 200:
        return None
    try:
        listed = json.loads(answer.data)
    except (ValueError, RecursionError):
        return None
    return listed if isinstance(listed, list) else None


def _uid(item: Any) -> str | None:
    try:
        uid = item[_INSTANCE_UID]["Value"][0]
    except (KeyError, IndexError, TypeError):
        return None
    return uid if isinstance(uid, str) else None
