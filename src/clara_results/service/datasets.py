"""Datasets: what an agent makes of a task's files for the viewer.

Whoever holds a task uploads a dataset's files and then publishes it, each time under its lease; till then nobody sees
anything of it. All that changes a dataset locks its row first, and a file is noted before it is in place: so what was
uploaded and never published is found and removed, and nothing is removed that is just being published.
"""

import contextlib
import dataclasses
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from clara_results.domain import datasets as domain
from clara_results.domain import names
from clara_results.domain.clock import Clock
from clara_results.domain.tasks import Outcome
from clara_results.errors import Conflict, FieldError, InvalidInput, MissingFiles, NotFound
from clara_results.payloads import FolderStore
from clara_results.service.queue import Queue
from clara_results.service.retention import ago
from clara_results.store import datasets as store
from clara_results.store.database import Database, Transaction
from clara_results.store.statements import Row
from clara_results.wire.codec import from_json, to_json
from clara_results.wire.datasets import (
    Dataset,
    DatasetFile,
    DatasetPage,
    LabelMap,
    Publication,
    Volume,
)
from clara_results.wire.tasks import FileOutcome, Renewal

UNPUBLISHED = timedelta(days=1)
"""After which what was uploaded and never published is removed: no agent takes so long between two files."""
LABEL_LIMIT = 1000
"""Values of a label map, and label maps of a dataset."""
NAME_LIMIT = 255
VIEW_LIMIT = 64 << 10
"""Bytes of the JSON of a view."""
_COLOR = re.compile(r"#[0-9a-f]{6}", re.ASCII)
_OF_TASK = ("job_id", "task_id", "payload_id", "operator")


class Datasets:
    """The datasets of one database and the folder with their files."""

    def __init__(
        self, queue: Queue, clock: Clock, files: FolderStore, keep: timedelta | None
    ) -> None:
        """Make one.

        Args:
            queue: Whose tasks they are made for.
            clock: The time.
            files: Where their files are; a dataset's id is there what a payload's is elsewhere.
            keep: How long one is kept after it was published or its view was saved; None: for ever.
        """
        self.files = files
        self._queue = queue
        self._clock = clock
        self._keep = keep

    # Agents

    def note_file(
        self, transaction: Transaction, task_id: str, dataset_id: str, token: str, file: DatasetFile
    ) -> None:
        """Note a file that is about to come into a dataset.

        Raises:
            InvalidInput: Its URI does not bear its digest (``digest-mismatch``).
            NotFound: There is no such task.
            LeaseLost: The caller does not hold it.
            Conflict: The dataset is another task's.
        """
        if not domain.bears(file.uri, file.sha256):
            raise InvalidInput(
                "a dataset's file goes to KIND/DIGEST/NAME, where DIGEST is the first "
                f"{domain.DIGEST_PART} digits of its SHA-256; send it again if these are",
                code="digest-mismatch",
            )
        task = self._queue.held(transaction, task_id, token)
        row = self._touch(transaction, task, dataset_id)
        values = dataclasses.asdict(file) | {"dataset": row.id}
        store.note_file(transaction.connection, values)

    def publish(
        self, transaction: Transaction, task_id: str, dataset_id: str, body: Publication
    ) -> tuple[Dataset, bool, list[str]]:
        """Let a dataset be seen whose files are all there; one that was published before is replaced.

        The task's files that it was made of are delivered in the same moment.

        Returns:
            The dataset, whether it is new, and the URIs of files that are not part of it: they are to be removed.

        Raises:
            InvalidInput: ``errors`` has each fault.
            MissingFiles: Files of it were not uploaded, or are not there any more.
            NotFound: There is no such task.
            LeaseLost: The caller does not hold it.
            Conflict: The dataset is another task's.
        """
        check(body)
        if domain.dataset_id(task_id, body.density) != dataset_id:
            raise InvalidInput(
                "a dataset's id follows from the task's and the density's URI; that is another",
                code="invalid-dataset",
            )
        connection = transaction.connection
        task = self._queue.held(transaction, task_id, body.lease_token)
        row = self._touch(transaction, task, dataset_id)
        there = {known.uri: known for known in store.files_of(connection, row.id)}
        listed = set(uris(body))
        self._check_files(dataset_id, body, listed, there)
        strays = sorted(set(there) - listed)
        store.forget_files(connection, row.id, strays)
        made = _dataset(body, row, row.published_at or self._clock.now())
        values = {"published_at": made.created_at, "body": to_json(made).decode()}
        store.set_dataset(connection, row.id, values)
        delivered = [
            FileOutcome(uri=uri, outcome=Outcome.DELIVERED, message=f"in dataset {row.dataset_id}")
            for uri in body.files
        ]
        renewal = Renewal(lease_token=body.lease_token, files=delivered)
        self._queue.renew(transaction, task_id, renewal)
        return dataclasses.replace(made, view=_view(row)), row.published_at is None, strays

    def _touch(self, transaction: Transaction, task: Row, dataset_id: str) -> Row:
        """Return the row, locked, of a dataset that the holder of a task works on."""
        values = {name: getattr(task, name) for name in _OF_TASK}
        values |= {"dataset_id": names.payload_id(dataset_id), "touched_at": self._clock.now()}
        row = store.touch(transaction.connection, values)
        if row.task_id != task.task_id:
            raise Conflict("that dataset is another task's", code="dataset-exists")
        return row

    def _check_files(
        self, dataset_id: str, body: Publication, listed: set[str], there: Mapping[str, Row]
    ) -> None:
        """Look whether a dataset's files are there as they are listed, on the disk too."""
        missing = sorted(listed - set(there))
        for file in _described(body):
            known = there.get(file.uri)
            if known is not None and (known.size, known.sha256) != (file.size, file.sha256):
                missing.append(file.uri)
        for uri in sorted(listed & set(there)):
            try:
                size = self.files.stat(dataset_id, uri).size
            except NotFound:
                size = -1
            if size != there[uri].size:
                missing.append(uri)
        if missing:
            raise MissingFiles(
                f"{len(missing)} of {len(listed)} files of the dataset are not there as they are listed: upload them "
                "first"
            )

    # People

    def find(self, connection: sa.Connection, dataset_id: str) -> Dataset:
        """Return a published dataset.

        Raises:
            NotFound: There is none.
        """
        return _shown(self._found(store.published(connection, dataset_id)))

    def page(
        self,
        connection: sa.Connection,
        where: Mapping[str, str | None],
        cursor: int | None,
        limit: int,
    ) -> DatasetPage:
        """Return published datasets, newest first.

        Args:
            connection: Within a transaction.
            where: ``job_id``, ``task_id``, ``payload_id`` and what they must be; None: anything.
            cursor: A page's ``next_cursor``; None: the first page.
            limit: At most so many.
        """
        rows = store.page(connection, where, cursor, limit + 1)
        more = str(rows[limit - 1].id) if len(rows) > limit else None
        return DatasetPage(items=[_shown(row) for row in rows[:limit]], next_cursor=more)

    def file(self, connection: sa.Connection, dataset_id: str, uri: str) -> DatasetFile:
        """Return a file of a published dataset.

        Raises:
            NotFound: There is no such dataset, or it has no such file.
        """
        found = store.published_file(connection, dataset_id, uri)
        if found is None:
            self._found(store.published(connection, dataset_id))
            raise file_missing(dataset_id)
        return DatasetFile(uri=found.uri, size=found.size, sha256=found.sha256)

    def save_view(
        self, transaction: Transaction, dataset_id: str, view: Mapping[str, Any]
    ) -> Dataset:
        """Save the viewer's settings with a dataset.

        Raises:
            NotFound: There is no such dataset.
            InvalidInput: They are too large, or can't be kept as JSON.
        """
        text = _view_text(view)
        connection = transaction.connection
        row = self._found(store.lock(connection, dataset_id))
        values = {"view": text, "touched_at": self._clock.now()}
        store.set_dataset(connection, row.id, values)
        return self.find(connection, dataset_id)

    def remove(self, transaction: Transaction, dataset_id: str) -> Path | None:
        """Forget a dataset and take its files away; the folder returned is to be cleared.

        Raises:
            NotFound: There is none.
            ServiceUnavailable: The disk refuses.
        """
        return self._take(transaction, self._found(store.lock(transaction.connection, dataset_id)))

    # Retention

    def due(self, connection: sa.Connection, limit: int) -> list[str]:
        """Return ids of datasets whose time is over, those not touched for longest first."""
        return list(store.due(connection, *self._moments(), limit))

    def remove_due(self, database: Database, dataset_id: str) -> bool:
        """Remove a dataset if its time is over; say whether it is gone.

        Raises:
            ServiceUnavailable: The database or the disk fails; a later call goes on.
        """

        def take(transaction: Transaction) -> tuple[Path | None] | None:
            row = store.lock(transaction.connection, dataset_id)
            published, unpublished = self._moments()
            moment = unpublished if row is None or row.published_at is None else published
            if row is None or moment is None or row.touched_at > moment:
                return None
            return (self._take(transaction, row),)

        taken = database.write(take).result()
        if taken is not None and taken[0] is not None:
            self.files.clear(taken[0])
        return taken is not None

    def _moments(self) -> tuple[datetime | None, datetime]:
        now = self._clock.now()
        return ago(now, self._keep), now - UNPUBLISHED

    def _take(self, transaction: Transaction, row: Row) -> Path | None:
        store.delete(transaction.connection, row.id)
        with contextlib.suppress(NotFound):  # its first file never came into place
            return self.files.set_aside(row.dataset_id)
        return None

    def _found(self, row: Row | None) -> Row:
        if row is None or row.published_at is None:
            raise NotFound("there is no such dataset", code="dataset-not-found")
        return row


def file_missing(dataset_id: str) -> NotFound:
    """Return what is raised where a dataset has no such file."""
    return NotFound(f"dataset {dataset_id} has no file at that URI", code="file-not-found")


def uris(body: Publication) -> Iterator[str]:
    """Yield the URIs of all files of a dataset."""
    yield from (file.uri for file in _described(body))
    yield from (body.previews.axial, body.previews.coronal, body.previews.sagittal)
    yield from (label.first_look_uri for label in body.labels if label.first_look_uri is not None)


def _described(body: Publication) -> Iterator[Volume | LabelMap | DatasetFile]:
    yield body.volume
    if body.first_look is not None:
        yield body.first_look
    yield from body.labels
    yield from body.originals


def check(body: Publication) -> None:
    """Check what can be checked of a dataset without its files.

    Raises:
        InvalidInput: ``errors`` has each fault (``invalid-dataset``).
    """
    faults = [
        *_name_faults("name", body.name),
        *_volume_faults("volume", body.volume),
        *([] if body.first_look is None else _volume_faults("firstLook", body.first_look)),
        *_label_faults(body),
    ]
    if body.density not in body.files:
        faults.append(FieldError("files", "the density is not among them"))
    for uri in uris(body):
        names.file_uri(uri)
    if faults:
        raise InvalidInput(
            "; ".join(f"{f.field}: {f.message}" for f in faults[:5]),
            code="invalid-dataset",
            errors=faults,
        )


def _name_faults(place: str, name: str) -> list[FieldError]:
    good = 1 <= len(name) <= NAME_LIMIT and name.isprintable()
    return [] if good else [FieldError(place, f"not 1 to {NAME_LIMIT} printable characters")]


def _volume_faults(place: str, volume: Volume) -> list[FieldError]:
    faults = []
    if len(volume.dims) != 3 or any(size < 1 for size in volume.dims):
        faults.append(FieldError(f"{place}.dims", "not three numbers of at least 1"))
    if len(volume.spacing) != 3 or not all(0 < size < math.inf for size in volume.spacing):
        faults.append(FieldError(f"{place}.spacing", "not three lengths in millimetres"))
    if len(volume.value_range) != 2 or not _finite(volume.value_range):
        faults.append(FieldError(f"{place}.valueRange", "not a least and a greatest value"))
    return faults


def _label_faults(body: Publication) -> list[FieldError]:
    faults = []
    if max([len(body.labels), *[len(label.values) for label in body.labels]]) > LABEL_LIMIT:
        faults.append(FieldError("labels", f"more than {LABEL_LIMIT}"))
    for number, label in enumerate(body.labels):
        faults += _name_faults(f"labels[{number}].name", label.name)
        for place, value in enumerate(label.values):
            where = f"labels[{number}].values[{place}]"
            faults += _name_faults(f"{where}.name", value.name)
            if not _COLOR.fullmatch(value.color):
                faults.append(FieldError(f"{where}.color", "not #rrggbb"))
            if len(value.centre) != 3 or not _finite([*value.centre, value.volume_ml]):
                faults.append(FieldError(f"{where}.centre", "not three finite numbers"))
    largest = body.largest_label
    if largest is not None and (largest.label, largest.value) not in [
        (number, value.value) for number, label in enumerate(body.labels) for value in label.values
    ]:
        faults.append(FieldError("largestLabel", "not one of the labels"))
    return faults


def _finite(numbers: Iterable[float]) -> bool:
    return all(math.isfinite(number) for number in numbers)


def _dataset(body: Publication, row: Row, created_at: datetime) -> Dataset:
    shared = {
        field.name: getattr(body, field.name)
        for field in dataclasses.fields(Publication)
        if field.name not in {"lease_token", "density", "files"}
    }
    return Dataset(
        dataset_id=row.dataset_id,
        **{name: getattr(row, name) for name in _OF_TASK},
        created_at=created_at,
        **shared,
    )


def _shown(row: Row) -> Dataset:
    return dataclasses.replace(from_json(Dataset, json.loads(row.body)), view=_view(row))


def _view(row: Row) -> dict[str, Any] | None:
    return None if row.view is None else json.loads(row.view)


def _view_text(view: Mapping[str, Any]) -> str:
    try:
        text = json.dumps(view, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        size = len(text.encode())
    except ValueError as error:
        raise InvalidInput(
            "a view is a JSON object of plain text and finite numbers", code="invalid-view"
        ) from error
    if size > VIEW_LIMIT:
        raise InvalidInput(
            f"a view has at most {VIEW_LIMIT} bytes; this one has {size}", code="invalid-view"
        )
    return text
