"""A task in its agent's hands: its lease, its files, and what is told of them."""

import hashlib
import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from clara_results.agents.exporter import FileRejected
from clara_results.client import ResultsClient
from clara_results.domain.clock import Clock
from clara_results.domain.receivers import Clearance
from clara_results.errors import (
    ClaraResultsError,
    LeaseLost,
    NotFound,
    ServiceUnavailable,
    Stopping,
)
from clara_results.payloads import FolderStore
from clara_results.payloads.folder import stored_file
from clara_results.wire.instances import Announced, Announcement
from clara_results.wire.tasks import FileOutcome, Progress, Renewal, ResultFile, Task

REPORT_EVERY = 0.5
"""Seconds for which outcomes gather before they are reported."""
REPORT_AT = 250
"""Outcomes that are reported at once, so that few are left for the end of a large task."""
UNREPORTED_LIMIT = 1.0
"""Age in seconds of an outcome not yet reported, past which nothing more is sent: what may come twice after a
crash is bounded by it."""
PAUSE_AFTER_FAILURE = 0.5
CHUNK = 1 << 20
_log = logging.getLogger(__name__)


class HeldTask:
    """A Delivery (see ``exporter``) that renews its lease and reports outcomes on a thread of its own."""

    def __init__(
        self,
        task: Task,
        client: ResultsClient,
        lease: int,
        stop: threading.Event,
        clock: Clock,
        payloads: FolderStore | None,
        scratch: Path,
    ) -> None:
        """Take a claimed task.

        Args:
            task: As claimed.
            client: To the service.
            lease: Seconds of the lease that was asked for.
            stop: Set when the agent is asked to end.
            clock: The time.
            payloads: Where files lie; None: they are fetched from the service.
            scratch: Folder for what is fetched; it is the caller's to remove.
        """
        self._task = task
        self._token = task.lease_token or ""
        self._client = client
        self._lease = lease
        self._stop = stop
        self._clock = clock
        self._payloads = payloads
        self._scratch = scratch
        self._changed = threading.Condition()
        self._unreported: dict[str, FileOutcome] = {}
        self._oldest: float | None = None
        self._held_until = clock.monotonic() + lease
        self._lost = False
        self._ended = False
        self._told: dict[str, FileOutcome] = {}
        self._bytes = 0
        self._allowed = task.associations or 1
        self._open = self._reported = self._allowed
        self._checked: set[str] = set()
        self._fetching = threading.Lock()
        self._fetched: dict[str, Path] = {}
        self._keeper = threading.Thread(
            target=self._keep, name=f"lease {task.task_id}", daemon=True
        )
        self._keeper.start()

    # The Delivery that an exporter sees

    @property
    def task(self) -> Task:
        """Return the task as claimed."""
        return self._task

    @contextmanager
    def open(self, file: ResultFile) -> Iterator[BinaryIO]:
        """Open a file of the task, checked to be what was registered; see ``Delivery``."""
        with self._opened(file) as opened:
            there = stored_file(file.uri, opened)
            if file.size is not None and there.size != file.size:
                raise FileRejected(f"it has {there.size} bytes; {file.size} were registered")
            if self._payloads and file.modified is not None and there.modified != file.modified:
                raise FileRejected("it was changed after it was registered")
            if file.sha256 is not None and file.uri not in self._checked:
                if _sha256(opened) != file.sha256:
                    raise FileRejected("its SHA-256 is not the one that was registered")
                self._checked.add(file.uri)
            yield opened

    @property
    def associations(self) -> int:
        """Return how many associations may be open for the task at this moment."""
        return self._allowed

    def uses(self, associations: int) -> None:
        """Say how many associations are open for the task; it is told with the next renewal."""
        with self._changed:
            self._open = associations
            self._changed.notify_all()

    def announce(self, receiver: str, instances: Sequence[Announced]) -> Mapping[str, Clearance]:
        """Note with the service which instances are to be sent; see ``Delivery``."""
        body = Announcement(lease_token=self._token, receiver=receiver, instances=list(instances))
        while True:
            self.checkpoint()
            try:
                answer = self._client.announce(self._task.task_id, body)
            except ServiceUnavailable as error:
                _log.warning("task %s: instances can't be announced: %s", self._task.task_id, error)
                self._stop.wait(PAUSE_AFTER_FAILURE)
            except LeaseLost:
                self._lose()
                raise
            else:
                return {item.uri: item.clearance for item in answer.items}

    def told(self, outcome: FileOutcome, size: int = 0) -> None:
        """Note what became of a file; it is reported within a second."""
        with self._changed:
            self._told[outcome.uri] = outcome
            self._unreported[outcome.uri] = outcome
            self._bytes += size
            if self._oldest is None:
                self._oldest = self._clock.monotonic()
                self._changed.notify_all()
            elif len(self._unreported) == REPORT_AT:
                self._changed.notify_all()

    def checkpoint(self) -> None:
        """Return if the next file may go out; wait while outcomes can't be reported.

        Raises:
            LeaseLost: Another agent may have the task.
            Stopping: The agent was asked to end.
        """
        with self._changed:
            while True:
                if self._lost:
                    raise LeaseLost(f"the lease on task {self._task.task_id} is lost")
                if self._stop.is_set():
                    raise Stopping("the agent was asked to end")
                now = self._clock.monotonic()
                fresh = self._oldest is None or now - self._oldest < UNREPORTED_LIMIT
                if fresh and now < self._held_until:
                    return
                self._changed.wait(0.1)

    # What the runner needs

    @property
    def outcomes(self) -> dict[str, FileOutcome]:
        """Return all outcomes told in this attempt, by URI."""
        with self._changed:
            return dict(self._told)

    def end(self) -> list[FileOutcome]:
        """Stop renewing; return the outcomes that are not reported yet.

        Raises:
            LeaseLost: The lease is gone; nothing may be reported.
        """
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        self._keeper.join()
        if self._lost:
            raise LeaseLost(f"the lease on task {self._task.task_id} is lost")
        return list(self._unreported.values())

    # Lease

    def _keep(self) -> None:
        try:
            self._go_on_renewing()
        except Exception:  # noqa: BLE001  (outermost loop of the thread: who sends must hear of it)
            _log.exception("task %s: the lease is not renewed any more", self._task.task_id)
            self._lose()

    def _go_on_renewing(self) -> None:
        renew_at = self._clock.monotonic() + self._lease / 3
        while True:
            with self._changed:
                while not self._ended and self._wait_for(renew_at) > 0:
                    self._changed.wait(min(self._wait_for(renew_at), 1.0))
                if self._ended:
                    return
                outcomes = dict(self._unreported)
                progress = Progress(files_delivered=len(self._told), bytes_delivered=self._bytes)
                using = self._open
                asked = self._clock.monotonic()
            if self._renew(outcomes, progress, using, asked):
                renew_at = asked + self._lease / 3
            elif not self._lost:
                with self._changed:
                    self._changed.wait_for(lambda: self._ended, PAUSE_AFTER_FAILURE)

    def _wait_for(self, renew_at: float) -> float:
        """Return the seconds until the next renewal has to go out."""
        at = renew_at if self._oldest is None else min(renew_at, self._oldest + REPORT_EVERY)
        if len(self._unreported) >= REPORT_AT or self._open <= self._allowed < self._reported:
            return 0.0  # others wait for what was closed
        return at - self._clock.monotonic()

    def _lose(self) -> None:
        with self._changed:
            self._lost = self._ended = True
            self._changed.notify_all()

    def _renew(
        self, outcomes: dict[str, FileOutcome], progress: Progress, using: int, asked: float
    ) -> bool:
        renewal = Renewal(
            lease_token=self._token,
            seconds=self._lease,
            files=list(outcomes.values()) or None,
            progress=progress,
            associations=using,
        )
        try:
            renewed = self._client.renew(self._task.task_id, renewal)
        except ServiceUnavailable as error:
            _log.warning("task %s: the lease can't be renewed: %s", self._task.task_id, error)
            return False
        except ClaraResultsError as error:
            # Lost, or refused in a way that no second try would change: the task is not ours any more.
            _log.warning("task %s: %s", self._task.task_id, error)
            self._lose()
            return False
        with self._changed:
            self._held_until = asked + self._lease
            self._allowed = renewed.associations
            self._reported = using
            for uri, outcome in outcomes.items():
                if self._unreported.get(uri) is outcome:
                    del self._unreported[uri]
            self._oldest = asked if self._unreported else None
            self._changed.notify_all()
        return True

    # Files

    @contextmanager
    def _opened(self, file: ResultFile) -> Iterator[BinaryIO]:
        try:
            if self._payloads is not None:
                opened = self._payloads.open(self._task.payload_id, file.uri)
            else:
                opened = self._fetch(file).open("rb")
        except NotFound as error:
            raise FileRejected(str(error), code="missing-file") from error
        with opened:
            yield opened

    def _fetch(self, file: ResultFile) -> Path:
        with self._fetching:
            known = self._fetched.get(file.uri)
            if known is not None:
                return known
            path = self._scratch / str(len(self._fetched))
            with (
                self._client.get_file(self._task.payload_id, file.uri) as download,
                path.open("wb") as out,
            ):
                wanted = file.modified
                if wanted is not None and download.modified != wanted.replace(microsecond=0):
                    raise FileRejected("it was changed after it was registered")
                for piece in download.pieces:
                    out.write(piece)
            self._fetched[file.uri] = path
            return path


def _sha256(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    while piece := file.read(CHUNK):
        digest.update(piece)
    file.seek(0)
    return digest.hexdigest()
