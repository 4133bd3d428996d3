"""A plan becomes a registration: uploads first, then one request; the service being away is waited out."""

import base64
import hashlib
import io
import random
import re
from collections.abc import Callable
from datetime import timedelta
from typing import Protocol, TypeVar

from clara_results.client import ResultsClient
from clara_results.domain.backoff import backoff
from clara_results.domain.clock import Clock
from clara_results.errors import ClaraResultsError, Refused, ServiceUnavailable, UnreadableInput
from clara_results.operator.parallel import WORKERS, in_parallel
from clara_results.operator.plan import Plan, PlannedFile, changed
from clara_results.operator.progress import Progress
from clara_results.operator.request import Request
from clara_results.wire.tasks import Task

T = TypeVar("T")

FIRST_DELAY = timedelta(seconds=0.5)
LONGEST_DELAY = timedelta(seconds=10)
ANSWER_TIMEOUT = (5.0, 60.0)
"""Least and most seconds of silence after which an answer is no longer waited for; in between it is --timeout."""
SHOWN_ERRORS = 20

_FIELD = re.compile(r"files\[(\d+)\]|files\.(\d+)")


class Sleep(Protocol):
    """Waits for so many seconds."""

    def __call__(self, seconds: float, /) -> object:
        """Wait."""
        ...


def connect(request: Request) -> ResultsClient:
    """Return a client of the request's service."""
    assert request.service is not None, "resolve() requires it unless nothing is sent"  # noqa: S101
    least, most = ANSWER_TIMEOUT
    return ResultsClient(
        request.service,
        token=request.token,
        connections=WORKERS,
        read_timeout=min(most, max(least, request.timeout)),
    )


class Persistence:
    """Repeats a call while the service is away: exponential back-off with jitter, up to a limit."""

    def __init__(self, timeout: float, progress: Progress, clock: Clock, sleep: Sleep) -> None:
        """Make one.

        Args:
            timeout: Seconds for which a call is tried.
            progress: Told of every try that failed.
            clock: Measures the time.
            sleep: Waits between tries.
        """
        self._timeout = timeout
        self._progress = progress
        self._clock = clock
        self._sleep = sleep

    def call(self, action: Callable[[], T], *, upload: bool = False) -> T:
        """Make a call until it is answered.

        Args:
            action: The call.
            upload: Don't count the time of the first try: sending a large file takes its time.

        Raises:
            ServiceUnavailable: The service was away all the time.
        """
        began = self._clock.monotonic()
        tries = 0
        while True:
            try:
                return action()
            except ServiceUnavailable as error:
                now = self._clock.monotonic()
                if upload and tries == 0:
                    began = now
                delay = backoff(tries, FIRST_DELAY, LONGEST_DELAY, random.random).total_seconds()
                tries += 1
                left = began + self._timeout - now
                if left <= 0:
                    raise ServiceUnavailable(
                        f"{error}\nTried {_count(tries, 'time')} in {now - began:.0f} s. Is the service "
                        "running, and is its address right? The same command again goes on from "
                        "here; it registers nothing twice (--timeout gives it longer)."
                    ) from error
                self._progress.note(f"{error}; trying again in {min(delay, left):.1f} s")
                self._sleep(min(delay, left))


def submit(
    request: Request,
    plan: Plan,
    client: ResultsClient,
    persistence: Persistence,
    progress: Progress,
) -> list[Task]:
    """Upload what is not in the payload, then register everything in one request.

    Returns:
        The tasks, in the order of the data. If these very results were registered before: those tasks.

    Raises:
        ServiceUnavailable: The service was away for too long.
        UnreadableInput: A file can't be read, or is not any more what was digested.
        ClaraResultsError: The service refused.
    """
    uploads = plan.uploads

    def put(file: PlannedFile) -> None:
        _upload(request.payload_id, file, client, persistence)

    body = plan.registration(request)
    try:
        if uploads:
            for done, _ in enumerate(in_parallel(put, uploads), start=1):
                progress.step(f"uploading: {done} of {len(uploads)} files")
        progress.step(f"registering {_count(len(plan.files), 'file')}")
        return persistence.call(lambda: client.register(body, plan.key)).tasks
    except Refused as error:
        raise _explained(error, request, plan) from error


def _upload(
    payload_id: str, file: PlannedFile, client: ResultsClient, persistence: Persistence
) -> None:
    sha256 = file.sha256 or ""
    if persistence.call(lambda: client.has_file(payload_id, file.uri, file.size, sha256)):
        return
    digest = f"sha-256=:{base64.b64encode(bytes.fromhex(sha256)).decode()}:"

    def put() -> None:
        with DigestedFile(file.path, file.size, sha256) as content:
            client.put_file(payload_id, file.uri, content, file.size, digest)

    persistence.call(put, upload=True)


class DigestedFile(io.BufferedReader):
    """A file that is read as long as it is what was digested.

    ``read`` never gives the last bytes of a file that has another content, or another size, than it should have;
    so no other content can be taken for it.
    """

    def __init__(self, path: str, size: int, sha256: str) -> None:
        """Open the file.

        Args:
            path: Where it is.
            size: Bytes that it should have.
            sha256: Digest that it should have, in hex.

        Raises:
            UnreadableInput: It can't be opened.
        """
        try:
            super().__init__(io.FileIO(path))
        except OSError as error:
            raise UnreadableInput(f"{path!r} can't be read: {error.strerror or error}") from error
        self._path = path
        self._left = size
        self._sha256 = sha256
        self._digest = hashlib.sha256()

    def read(self, size: int | None = -1, /) -> bytes:
        """Return the next bytes.

        Raises:
            UnreadableInput: The file can't be read, or changed.
        """
        wanted = self._left if size is None or size < 0 else min(size, self._left)
        try:
            piece = super().read(wanted)
            self._digest.update(piece)
            self._left -= len(piece)
            if len(piece) < wanted or (self._left == 0 and not self._as_digested()):
                raise changed(self._path)
        except OSError as error:
            raise UnreadableInput(
                f"{self._path!r} can't be read: {error.strerror or error}"
            ) from error
        return piece

    def _as_digested(self) -> bool:
        return not self.peek(1) and self._digest.hexdigest() == self._sha256


def _explained(error: Refused, request: Request, plan: Plan) -> ClaraResultsError:
    """Add to a refusal what the service can't know: the files' paths here, and the mapping."""
    lines = [str(error)]
    for fault in error.errors[:SHOWN_ERRORS]:
        match = _FIELD.search(fault.field)
        index = int(match[1] or match[2]) if match else len(plan.files)
        path = f" (here {plan.files[index].path!r})" if index < len(plan.files) else ""
        lines.append(f"  {fault.field}: {fault.message}{path}")
    if len(error.errors) > SHOWN_ERRORS:
        lines.append(f"  and {len(error.errors) - SHOWN_ERRORS} more")
    if error.code == "missing-file":
        lines.append("Check where the inputs are said to be (--input-uri, --payloads):")
        lines += [
            f"  {each.name}: {each.path} is {each.prefix or 'all'!r} of payload {request.payload_id}"
            for each in request.inputs
            if each.prefix is not None
        ]
    return Refused("\n".join(lines), code=error.code, status=error.status, errors=error.errors)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
