"""Registering results: one request, one transaction, however many tasks and files."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from clara_results.domain import names
from clara_results.domain.clock import Clock, time_fault
from clara_results.errors import (
    ClaraResultsError,
    Conflict,
    FieldError,
    InvalidInput,
    MissingFiles,
    NotFound,
)
from clara_results.payloads import StoredFile
from clara_results.service import views
from clara_results.service.queue import Queue
from clara_results.service.retention import Retention
from clara_results.store import tasks as store
from clara_results.store.database import Transaction
from clara_results.store.statements import Row
from clara_results.wire.tasks import Registered, Registration, ResultFile

FILE_LIMIT = 100_000
DATA_LIMIT = 1 << 20
"""Bytes of ``data`` as JSON."""
DEPTH_LIMIT = 100
"""Arrays and objects within each other in ``data``."""
ELEMENT_LIMIT = 1000
ROW_LIMIT = 1_000_000
"""Elements times files: what one transaction may write."""
ID_LIMIT = 255
KEY_LIMIT = 255
_SHA256 = frozenset("0123456789abcdef")


@dataclass(frozen=True, slots=True)
class Accepted:
    """A registration that was taken.

    Attributes:
        answer: Its tasks.
        created: False if the same had come before.
    """

    answer: Registered
    created: bool


class Registrar:
    """Takes registrations."""

    def __init__(self, queue: Queue, retention: Retention, clock: Clock, max_retries: int) -> None:
        """Make a registrar.

        Args:
            queue: Where tasks go.
            retention: Keeps their files.
            clock: The time.
            max_retries: Retries of a task whose registration does not say.
        """
        self._queue = queue
        self._retention = retention
        self._clock = clock
        self._max_retries = max_retries

    def checked(self, body: Registration, stat: Callable[[str, str], StoredFile]) -> "Checked":
        """Check a registration before any transaction, and the files themselves if it asks for that.

        Args:
            body: The registration.
            stat: Tells a file's size and time by payload id and URI.

        Raises:
            InvalidInput: It can't be taken; ``errors`` has each fault.
            MissingFiles: ``verify`` was asked for, and files are not there with their size.
        """
        faults = list(_faults(body))
        if faults:
            more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
            code = "unsafe-uri" if all(f.field.startswith(("files[", "uris[")) and "safe URI" in f.message for f in faults) else None  # fmt: skip
            raise InvalidInput(
                f"{faults[0].field}: {faults[0].message}{more}", code=code, errors=faults
            )
        if body.verify:
            _verify(body, stat)
        return Checked.of(body)

    def register(self, transaction: Transaction, checked: "Checked", key: str | None) -> Accepted:
        """Write a checked registration's tasks, or find those that the same one made before.

        Raises:
            InvalidInput: The key is too long.
            Conflict: The key came before with another body (``key-reused``).
            Gone: Retention has removed some of the files (``payload-gone``).
        """
        connection = transaction.connection
        if key is not None and not 1 <= len(key) <= KEY_LIMIT:
            raise InvalidInput(
                f"Idempotency-Key has 1 to {KEY_LIMIT} characters", code="invalid-key"
            )
        known = store.registration_by_key(connection, key) if key is not None else None
        if known is not None:
            if known.body_sha256 != checked.body_sha256:
                raise Conflict(
                    "this Idempotency-Key came before with another body; use a new key for other results",
                    code="key-reused",
                )
            rows = store.by_registration(connection, known.id)
            return Accepted(Registered(tasks=[views.task(row) for row in rows]), created=False)
        if key is not None:
            store.lock_scope(connection, checked.scope_sha256)
        registration = store.insert_registration(
            connection, key, checked.body_sha256, checked.scope_sha256, self._clock.now()
        )
        older: Sequence[Row] = ()
        if key is not None:
            older = store.older_of_scope(connection, checked.scope_sha256, registration)
        rows = self._insert_tasks(transaction, registration, checked, older)
        self._retention.keep(
            connection, checked.body.payload_id, (file["uri"] for file in checked.files)
        )
        return Accepted(Registered(tasks=[views.task(row) for row in rows]), created=True)

    def _insert_tasks(
        self,
        transaction: Transaction,
        registration: int,
        checked: "Checked",
        older: Sequence[Row],
    ) -> list[Row]:
        connection, body = transaction.connection, checked.body
        now = self._clock.now()
        turn = store.last_turn(connection, checked.agent, body.job_id)
        common = {
            "registration_id": registration,
            "agent": checked.agent,
            "job_id": body.job_id,
            "pipeline_id": body.pipeline_id,
            "payload_id": body.payload_id,
            "operator": body.operator,
            "priority": body.priority,
            "max_retries": self._max_retries if body.max_retries is None else body.max_retries,
            "due_at": max(now, body.not_before or now),
        }
        made = []
        for element, value in enumerate([None] if body.data is None else body.data):
            replaced = [row for row in older if row.element == element]
            task = self._queue.insert(
                transaction,
                common
                | {
                    "element": element,
                    "turn": turn + 1 + element,
                    "parameters": None
                    if body.data is None
                    else json.dumps(value, ensure_ascii=False),
                    "destination": _destination(value),
                    "supersedes": replaced[-1].task_id if replaced else None,
                },
                files=len(checked.files),
            )
            store.insert_files(connection, [file | {"task": task.id} for file in checked.files])
            for row in replaced:
                self._queue.supersede(transaction, row, task.task_id)
            made.append(task)
        return made


@dataclass(frozen=True, slots=True)
class Checked:
    """A registration that can be taken, with all that can be said of it before the transaction.

    Attributes:
        body: What was asked for.
        agent: The agent's name as it is stored.
        body_sha256: Digest of all of it: the same key may come again with the same only.
        scope_sha256: Digest of job, operator, agent and data: a newer one of these supersedes it.
        files: Its files' columns.
    """

    body: Registration
    agent: str
    body_sha256: str
    scope_sha256: str
    files: Sequence[dict[str, Any]]

    @classmethod
    def of(cls, body: Registration) -> "Checked":
        """Return what can be said of a registration without faults."""
        agent = names.agent_name(body.agent)
        files = [_columns(file, position) for position, file in enumerate(_files(body))]
        data = _canonical(body.data)
        rest = [getattr(body, name) for name in _REST] + [list(file.values()) for file in files]
        return cls(
            body,
            agent,
            hashlib.sha256(data + repr(rest).encode()).hexdigest(),
            hashlib.sha256(data + repr([body.job_id, body.operator, agent]).encode()).hexdigest(),
            files,
        )


_REST = [name for name in Registration.__slots__ if name not in {"data", "files", "uris"}]  # type: ignore[attr-defined]
"""What, but for its data and files, makes one registration another."""


def _columns(file: ResultFile, position: int) -> dict[str, Any]:
    return {
        "position": position,
        "uri": file.uri,
        "size": file.size,
        "modified": file.modified,
        "sha256": file.sha256,
        "media_type": file.media_type,
    }


def _destination(element: Any) -> str:
    """Return the key of the destination that an element names; empty where none can have such a name."""
    try:
        return names.name_key(names.destination_name(element)) if isinstance(element, str) else ""
    except InvalidInput:
        return ""


def _files(body: Registration) -> list[ResultFile]:
    return body.files or [ResultFile(uri=uri) for uri in body.uris or ()]


def _canonical(data: list[Any] | None) -> bytes:
    """Return ``data`` as JSON that is the same for equal data.

    Raises:
        ValueError: It holds a number that is none, or a lone surrogate.
    """
    return json.dumps(data, ensure_ascii=False, allow_nan=False, sort_keys=True).encode()


def _faults(body: Registration) -> Iterator[FieldError]:
    yield from _fault("agent", names.agent_name, body.agent)
    yield from _fault("payloadId", names.payload_id, body.payload_id)
    for field, value in (("jobId", body.job_id), ("pipelineId", body.pipeline_id), ("operator", body.operator)):  # fmt: skip
        if value is not None and not _plain(value):
            yield FieldError(field, _PLAIN)
    if not -100 <= body.priority <= 100:
        yield FieldError("priority", f"{body.priority} is not within -100 to 100")
    if body.max_retries is not None and not 0 <= body.max_retries <= 1000:
        yield FieldError("maxRetries", f"{body.max_retries} is not within 0 to 1000")
    yield from _time_fault("notBefore", body.not_before)
    yield from _data_faults(body)
    yield from _file_faults(body)


def _plain(value: str) -> bool:
    return 1 <= len(value) <= ID_LIMIT and value.isprintable()


_PLAIN = f"has 1 to {ID_LIMIT} printable characters"


def _data_faults(body: Registration) -> Iterator[FieldError]:
    if body.data is None:
        return
    if not 1 <= len(body.data) <= ELEMENT_LIMIT:
        yield FieldError(
            "data", f"an array of 1 to {ELEMENT_LIMIT} elements, or left out: one task without"
        )
    if _deep(body.data):
        yield FieldError("data", f"more than {DEPTH_LIMIT} arrays and objects within each other")
        return
    try:
        text = _canonical(body.data)
    except ValueError:
        yield FieldError(
            "data", "a number that is none (NaN, Infinity), or a lone surrogate in text"
        )
        return
    if len(text) > DATA_LIMIT:
        yield FieldError("data", f"more than {DATA_LIMIT} bytes of JSON")


def _deep(value: Any) -> bool:
    layer = [value]
    for _ in range(DEPTH_LIMIT):
        if not layer:
            return False
        layer = [
            inner
            for outer in layer
            if isinstance(outer, list | dict)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
    return any(isinstance(value, list | dict) for value in layer)


def _time_fault(field: str, moment: datetime | None) -> Iterator[FieldError]:
    fault = None if moment is None else time_fault(moment)
    if fault is not None:
        yield FieldError(field, fault)


def _file_faults(body: Registration) -> Iterator[FieldError]:
    files = _files(body)
    listed = "files" if body.files is not None else "uris"
    if (body.files is None) == (body.uris is None):
        yield FieldError("files", "give files, or uris where nothing but their names is known")
    elif not 1 <= len(files) <= FILE_LIMIT:
        yield FieldError(listed, f"1 to {FILE_LIMIT} files; there are {len(files)}")
        return
    if len(files) * len(body.data or [None]) > ROW_LIMIT:
        yield FieldError(
            "data", f"more than {ROW_LIMIT} files over all its tasks: register in parts"
        )
    seen: set[str] = set()
    for index, file in enumerate(files):
        where = f"{listed}[{index}]" + (".uri" if listed == "files" else "")
        yield from _fault(where, names.file_uri, file.uri)
        if file.uri in seen:
            yield FieldError(where, "the same URI is there twice")
        seen.add(file.uri)
        if file.size is not None and not 0 <= file.size < 1 << 63:
            yield FieldError(f"{listed}[{index}].size", f"{file.size} is not a number of bytes")
        if file.sha256 is not None and (len(file.sha256) != 64 or set(file.sha256) - _SHA256):
            yield FieldError(f"{listed}[{index}].sha256", "64 lower-case hex digits")
        yield from _time_fault(f"{listed}[{index}].modified", file.modified)
        if file.media_type is not None and not _plain(file.media_type):
            yield FieldError(f"{listed}[{index}].mediaType", _PLAIN)


def _fault(field: str, check: Callable[[str], str], value: str) -> Iterator[FieldError]:
    try:
        check(value)
    except ClaraResultsError as error:
        yield FieldError(field, str(error))


def _verify(body: Registration, stat: Callable[[str, str], StoredFile]) -> None:
    faults = []
    where = "files[{}].uri" if body.files is not None else "uris[{}]"
    for index, file in enumerate(_files(body)):
        try:
            there = stat(body.payload_id, file.uri)
        except NotFound as error:
            faults.append(FieldError(where.format(index), str(error)))
            continue
        if file.size is not None and there.size != file.size:
            faults.append(FieldError(f"files[{index}].size", f"it has {there.size} bytes there, not {file.size}"))  # fmt: skip
    if faults:
        raise MissingFiles(
            f"{len(faults)} of {len(_files(body))} files are not in payload {body.payload_id} as "
            f"registered; the first: {faults[0].message}. Check that the service sees the same folder",
            errors=faults[:100],
        )
