"""Publishes a task's volumes as datasets for the viewer."""

import hashlib
import importlib.util
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO, Protocol, TypeVar

from clara_results.agents.exporter import Delivery, FileRejected
from clara_results.agents.render.converter import FAILED, FILES, MADE, Converter
from clara_results.agents.render.faults import Unshowable, incomplete
from clara_results.agents.render.source import Converted, Group, Kind, Plan, Verdict
from clara_results.domain import datasets as domain
from clara_results.domain.clock import Clock
from clara_results.domain.tasks import Outcome
from clara_results.errors import (
    ClaraResultsError,
    DestinationUnavailable,
    NotFound,
    Refused,
    ServiceUnavailable,
)
from clara_results.wire.datasets import Dataset, DatasetFile, Publication
from clara_results.wire.payloads import Payload, PayloadFile
from clara_results.wire.tasks import FileOutcome, ResultFile, Task

T = TypeVar("T")
NEEDED = ("SimpleITK", "PIL", "isal", "numpy", "pydicom")
"""Packages that the child process works with."""
UPLOADS = 4
"""Files of a dataset that go up side by side."""
PATIENCE = 60.0
"""Seconds for which a file is offered to a service that can't take it; then the task waits."""
PAUSES = (0.5, 5.0)
"""Seconds between such tries, at first and at most."""
CHUNK = 1 << 20
MISSING = "missing-file"


class Publisher(Protocol):
    """What of the Results Service's client is needed here."""

    def put_dataset_file(
        self, task_id: str, dataset_id: str, lease_token: str, file: DatasetFile, content: BinaryIO
    ) -> None:
        """Upload a file of a dataset."""
        ...

    def publish(self, task_id: str, dataset_id: str, body: Publication) -> Dataset:
        """Publish a dataset whose files are all uploaded."""
        ...

    def payload(self, payload_id: str) -> Payload:
        """List a payload's files."""
        ...


def check_installed() -> None:
    """Look whether all that the child process needs is there.

    Raises:
        ModuleNotFoundError: Something is not.
    """
    for name in NEEDED:
        if importlib.util.find_spec(name) is None:
            raise ModuleNotFoundError(f"there is no {name}", name=name)


class RenderExporter:
    """An Exporter (see ``agents.exporter``) whose receiver is the service itself, for the viewer.

    Args:
        publisher: Takes datasets.
        clock: The time.
        converter: Looks at files and converts them.
    """

    def __init__(
        self, publisher: Publisher, clock: Clock, converter: Converter | None = None
    ) -> None:
        self._publisher = publisher
        self._clock = clock
        self._converter = converter or Converter()

    @property
    def idle_seconds(self) -> float:
        """Return for how long connections stay open that no task uses: there are none."""
        return 0.0

    def idle(self, task: Task) -> int:  # noqa: ARG002  (the same for all)
        """Return how many connections are open that no task uses: none."""
        return 0

    def close(self) -> None:
        """End the process that converts."""
        self._converter.close()

    def deliver(self, delivery: Delivery) -> None:
        """Publish what is in a task's files; see ``Exporter.deliver``."""
        try:
            with TemporaryDirectory(
                prefix="clara-results-render-", ignore_cleanup_errors=True
            ) as scratch:
                _Publishing(
                    delivery, self._publisher, self._converter, self._clock, Path(scratch)
                ).run()
        except OSError as error:
            raise DestinationUnavailable(
                f"the agent's temporary folder (TMPDIR) can't hold the task's files: {error.strerror}"
            ) from error


@dataclass(frozen=True, slots=True)
class _Staged:
    """A file of the task as it was copied: its bytes and their SHA-256."""

    size: int
    sha256: str


class _Publishing:
    """One task's way through."""

    def __init__(
        self,
        delivery: Delivery,
        publisher: Publisher,
        converter: Converter,
        clock: Clock,
        scratch: Path,
    ) -> None:
        self._delivery = delivery
        self._publisher = publisher
        self._converter = converter
        self._clock = clock
        self._scratch = scratch
        self._files: dict[str, _Staged] = {}
        self._own: list[str] = []

    def run(self) -> None:
        if not self._stage(self._delivery.task.files or []):
            return
        uris = self._own = list(self._files)
        try:
            plan = self._plan([])
            if any(group.density.kind is Kind.SEGMENTATION for group in plan.groups):
                around = self._stage_around()
                plan = self._plan(around) if around else plan
        except Unshowable as fault:
            self._refuse(uris, fault)
            return
        for verdict in plan.verdicts:
            self._tell(verdict)
        for group in plan.groups:
            self._publish(group)

    def _plan(self, around: Sequence[str]) -> Plan:
        size = self._size(self._files)
        return self._converter.plan(
            self._scratch, self._own, around, size, self._delivery.checkpoint
        )

    def _stage_around(self) -> list[str]:
        """Copy the payload's other DICOM files: what a segmentation of the task segments may be among them."""
        payload_id = self._delivery.task.payload_id
        try:
            listed = self._insist(lambda: self._publisher.payload(payload_id)).files
        except (NotFound, Refused):
            return []  # it is shown by itself
        others = [file for file in listed if file.uri not in self._files]
        return [file.uri for file in others if self._copied_dicom(file)]

    def _copied_dicom(self, file: PayloadFile) -> bool:
        """Copy a file if it is DICOM (PS3.10 7.1); say whether it is."""
        self._delivery.checkpoint()
        registered = ResultFile(uri=file.uri, size=file.size)
        try:
            with self._delivery.open(registered) as source:
                found = source.read(132)[128:] == b"DICM"
            if found:
                self._copy(registered)
        except FileRejected:
            return False  # it has just been changed or removed
        return found

    def _stage(self, files: Iterable[ResultFile]) -> bool:
        """Copy the task's files, so that they stay as they are; say whether there is anything to be done.

        If one can't be had, nothing is done: what it belongs to can't be known, and without it another file could be taken
        for what it is not.
        """
        faults: dict[str, FileRejected] = {}
        for file in files:
            self._delivery.checkpoint()
            try:
                self._copy(file)
            except FileRejected as error:
                faults[file.uri] = error
        waits = any(fault.code == MISSING for fault in faults.values())
        for uri, fault in faults.items():
            self._told(uri, Outcome.RETRY if fault.code == MISSING else Outcome.REJECTED, fault)
        if faults:
            outcome = Outcome.RETRY if waits else Outcome.REJECTED
            why = Unshowable("another file of the task is missing", code=MISSING)
            for uri in self._files:
                self._told(uri, outcome, why if waits else incomplete())
        return bool(self._files) and not faults

    def _copy(self, file: ResultFile) -> None:
        path = self._path(file.uri)
        path.parent.mkdir(parents=True, exist_ok=True)
        digest, size = hashlib.sha256(), 0
        with self._delivery.open(file) as source, path.open("wb") as target:
            while piece := source.read(CHUNK):
                digest.update(piece)
                size += target.write(piece)
        self._files[file.uri] = _Staged(size, digest.hexdigest())

    def _path(self, uri: str) -> Path:
        return self._scratch / FILES / uri

    def _size(self, uris: Iterable[str]) -> int:
        return sum(self._files[uri].size for uri in uris)

    def _publish(self, group: Group) -> None:
        uris = self._of_task(group)
        try:
            size = self._size(group.uris)
            checkpoint = self._delivery.checkpoint
            converted = self._converter.convert(self._scratch, group, size, checkpoint)
            dataset_id = self._upload(group, converted)
        except Unshowable as fault:
            self._refuse(uris, fault)
        except (NotFound, Refused) as error:
            self._refuse(uris, Unshowable(str(error), code=error.code))
        else:
            for uri in uris:
                told = FileOutcome(
                    uri=uri, outcome=Outcome.DELIVERED, message=f"in dataset {dataset_id}"
                )
                self._delivery.told(told, self._files[uri].size)

    def _of_task(self, group: Group) -> list[str]:
        """Return the URIs of a group's files that are the task's."""
        own = set(self._own)
        return [uri for uri in group.uris if uri in own]

    def _upload(self, group: Group, converted: Converted) -> str:
        """Upload a dataset's files, publish it, and return its id."""
        task, uris = self._delivery.task, self._of_task(group)
        density = uris[0]  # of a segmentation over a series that is not the task's itself
        dataset_id = domain.dataset_id(task.task_id, density)
        originals = {
            file.uri: (file, self._path(uri)) for uri in uris for file in [self._original(uri)]
        }
        made = {one.file.uri: (one.file, self._scratch / MADE / one.path) for one in converted.made}
        everything = (made | originals).values()
        with ThreadPoolExecutor(UPLOADS) as pool:
            end = threading.Event()
            sent = [pool.submit(self._put, end, dataset_id, *one) for one in everything]
            try:
                for each in sent:
                    each.result()
            except BaseException:
                end.set()
                raise
        body = Publication(
            lease_token=task.lease_token or "",
            density=density,
            files=uris,
            originals=[file for file, _ in originals.values()],
            **{
                field.name: getattr(converted, field.name)
                for field in fields(Converted)
                if field.name != "made"
            },
        )
        self._insist(lambda: self._publisher.publish(task.task_id, dataset_id, body))
        return dataset_id

    def _original(self, uri: str) -> DatasetFile:
        staged = self._files[uri]
        place = domain.file_uri("original", staged.sha256, uri)
        return DatasetFile(uri=place, size=staged.size, sha256=staged.sha256)

    def _put(self, end: threading.Event, dataset_id: str, file: DatasetFile, path: Path) -> None:
        task = self._delivery.task

        def put() -> None:
            with path.open("rb") as content:
                self._publisher.put_dataset_file(
                    task.task_id, dataset_id, task.lease_token or "", file, content
                )

        if not end.is_set():
            self._insist(put, end)

    def _insist(self, call: Callable[[], T], end: threading.Event | None = None) -> T:
        """Make a call; while the service can't take it, again and again for a time.

        Args:
            call: The call.
            end: Set when it is of no more use.

        Raises:
            DestinationUnavailable: It could not for all that time.
        """
        end = end or threading.Event()
        deadline = self._clock.monotonic() + PATIENCE
        pause = PAUSES[0]
        while True:
            self._delivery.checkpoint()
            try:
                return call()
            except ServiceUnavailable as error:
                if self._clock.monotonic() > deadline or end.wait(pause):
                    raise DestinationUnavailable(str(error)) from error
            pause = min(pause * 2, PAUSES[1])

    # Outcomes

    def _tell(self, verdict: Verdict) -> None:
        outcome = Outcome.REJECTED if verdict.rejected else Outcome.SKIPPED
        self._told(verdict.uri, outcome, Unshowable(verdict.message, code=verdict.code))

    def _refuse(self, uris: Iterable[str], fault: Unshowable) -> None:
        """Tell why files are not published: one that is bad, and those that belong to it."""
        outcome = Outcome.RETRY if fault.code in {FAILED, MISSING} else Outcome.REJECTED
        for uri in uris:
            self._told(uri, outcome, fault if fault.uri in {None, uri} else incomplete())

    def _told(self, uri: str, outcome: Outcome, why: ClaraResultsError) -> None:
        told = FileOutcome(uri=uri, outcome=outcome, code=why.code, message=str(why))
        self._delivery.told(told)
