"""Statements on registrations, tasks, files, attempts and history. One function a statement."""

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from clara_results.domain.tasks import Counts, Outcome, State
from clara_results.store.instances import SUBJECT, found_by
from clara_results.store.schema import (
    ENDED,
    attempts,
    files,
    history,
    registrations,
    series,
    tasks,
    turns,
)
from clara_results.store.statements import Row, Statement, among, given, literal, same, upsert

OPEN = (Outcome.PENDING, Outcome.RETRY)
IDS_PER_QUERY = 500
"""URIs or task ids in one IN list: well below every database's limit of parameters."""
_REGISTERED = ("uri", "size", "modified", "sha256", "media_type")
"""Columns of a file that stay as they were registered."""
_NEW_TASK = (
    "task_id", "registration_id", "element", "agent", "job_id", "pipeline_id", "payload_id", "operator", "parameters",
    "destination", "state", "priority", "turn", "retries", "max_retries", "attempt", "created_at", "updated_at", "due_at",
    "waits", "unavailable_times", "associations", "supersedes", "redelivery_of", *(f"files_{outcome}" for outcome in Outcome),
)  # fmt: skip
"""Columns that a new task can have."""


_REGISTRATION_BY_KEY = Statement(
    sa.select(registrations)
    .where(*same(registrations, "idempotency_key"))
    .with_for_update(read=True)
)


def registration_by_key(connection: sa.Connection, key: str) -> Row | None:
    """Return the registration that came with an idempotency key; its tasks stay until this transaction ends."""
    found: Row | None = _REGISTRATION_BY_KEY.first(connection, at_idempotency_key=key)
    return found


_INSERT_REGISTRATION = Statement(
    registrations.insert()
    .values(given(registrations, "idempotency_key", "body_sha256", "scope_sha256", "created_at"))
    .returning(registrations.c.id)
)


def insert_registration(
    connection: sa.Connection,
    key: str | None,
    body_sha256: str,
    scope_sha256: str,
    created_at: datetime,
) -> int:
    """Insert a registration; return its id."""
    registration: int = _INSERT_REGISTRATION.scalar(
        connection,
        idempotency_key=key,
        body_sha256=body_sha256,
        scope_sha256=scope_sha256,
        created_at=created_at,
    )
    return registration


_INSERT_TASK = Statement(tasks.insert().values(given(tasks, *_NEW_TASK)).returning(tasks))


def insert_task(connection: sa.Connection, values: Mapping[str, Any]) -> Row:
    """Insert a task; return it."""
    task: Row = _INSERT_TASK.first(connection, **values)
    return task


_INSERT_FILES = Statement(
    files.insert().values(
        given(files, "task", "position", *_REGISTERED) | {"outcome": literal(Outcome.PENDING)}
    )
)


def insert_files(connection: sa.Connection, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert files that nothing is told of yet."""
    _INSERT_FILES.run_many(connection, rows)


_COPY_FILES = Statement(
    files.insert().from_select(
        ["task", "position", *_REGISTERED, "outcome"],
        sa.select(
            sa.bindparam("to_task", type_=files.c.task.type),
            *[files.c[name] for name in ("position", *_REGISTERED)],
            literal(Outcome.PENDING),
        ).where(*same(files, "task")),
    )
)


def copy_files(connection: sa.Connection, from_task: int, to_task: int) -> None:
    """Give a task the files of another, none of them told of yet."""
    _COPY_FILES.run(connection, at_task=from_task, to_task=to_task)


_INSERT_HISTORY = Statement(
    history.insert().values(given(history, "task", "at", "event", "state", "attempt", "message"))
)


def insert_history(connection: sa.Connection, rows: Sequence[Mapping[str, Any]]) -> None:
    """Note what happened to tasks."""
    _INSERT_HISTORY.run_many(connection, rows)


_of_job = sa.select(sa.func.max(tasks.c.turn).label("turn")).where(*same(tasks, "agent", "job_id"))
_of_queue = sa.select(turns.c.turn).where(*same(turns, "agent"))
_LAST_TURN = Statement(sa.select(sa.func.max(sa.union_all(_of_job, _of_queue).subquery().c.turn)))


def last_turn(connection: sa.Connection, agent: str, job_id: str) -> int:
    """Return the larger of the queue's present turn and the last turn that a job was given."""
    return _LAST_TURN.scalar(connection, at_agent=agent, at_job_id=job_id) or 0


_ADVANCE_TURN = Statement(
    turns.update()
    .where(*same(turns, "agent"), turns.c.turn < sa.bindparam("turn"))
    .values(given(turns, "turn"))
)
_FIRST_TURN = Statement(
    upsert(turns).values(given(turns, "agent", "turn")).on_conflict_do_nothing()
)


def advance_turn(connection: sa.Connection, agent: str, turn: int) -> None:
    """Note the turn that an agent's queue has reached; where it has not moved nobody waits for another."""
    if not _ADVANCE_TURN.run(connection, at_agent=agent, turn=turn):
        _FIRST_TURN.run(connection, agent=agent, turn=turn)


_LOCK_SCOPE = Statement(
    sa.select(sa.func.pg_advisory_xact_lock(sa.bindparam("scope", type_=sa.BigInteger)))
)


def lock_scope(connection: sa.Connection, scope_sha256: str) -> None:
    """Have other registrations of a scope wait until this transaction ends: the later one is to find the earlier one."""
    if connection.dialect.name == "postgresql":  # SQLite's writer is alone as it is
        scope = int.from_bytes(bytes.fromhex(scope_sha256[:16]), signed=True)
        _LOCK_SCOPE.first(connection, scope=scope)


_OLDER_OF_SCOPE = Statement(
    sa.select(tasks)
    .join(registrations, registrations.c.id == tasks.c.registration_id)
    .where(
        *same(registrations, "scope_sha256"),
        registrations.c.id < sa.bindparam("before"),
        registrations.c.idempotency_key.is_not(None),
        tasks.c.superseded_by.is_(None),
        tasks.c.state != literal(State.SUCCEEDED),
    )
    .order_by(tasks.c.id)
    .with_for_update(of=tasks)
)


def older_of_scope(connection: sa.Connection, scope_sha256: str, before: int) -> Sequence[Row]:
    """Return the tasks, not yet superseded and not Succeeded, of older registrations of a scope."""
    return _OLDER_OF_SCOPE.all(connection, at_scope_sha256=scope_sha256, before=before)


_BY_REGISTRATION = Statement(
    sa.select(tasks).where(*same(tasks, "registration_id")).order_by(tasks.c.element)
)


def by_registration(connection: sa.Connection, registration: int) -> Sequence[Row]:
    """Return a registration's tasks in the order of its data."""
    return _BY_REGISTRATION.all(connection, at_registration_id=registration)


_by_id = sa.select(tasks).where(*same(tasks, "task_id"))
_BY_ID = Statement(_by_id)
_BY_ID_LOCKED = Statement(_by_id.with_for_update())


def by_id(connection: sa.Connection, task_id: str, *, lock: bool = False) -> Row | None:
    """Return a task; with ``lock`` nobody else changes it before this transaction ends."""
    statement = _BY_ID_LOCKED if lock else _BY_ID
    found: Row | None = statement.first(connection, at_task_id=task_id)
    return found


_BY_JOB = Statement(sa.select(tasks).where(*same(tasks, "job_id")).order_by(tasks.c.id))


def by_job(connection: sa.Connection, job_id: str) -> Sequence[Row]:
    """Return a job's tasks, oldest first."""
    return _BY_JOB.all(connection, at_job_id=job_id)


_EXPIRED = Statement(
    sa.select(tasks)
    .where(
        tasks.c.state == literal(State.IN_PROGRESS),
        tasks.c.lease_expires_at <= sa.bindparam("now"),
    )
    .order_by(tasks.c.lease_expires_at)
    .limit(sa.bindparam("size", type_=sa.Integer))
    .with_for_update(skip_locked=True)
)


def expired(connection: sa.Connection, now: datetime, size: int) -> Sequence[Row]:
    """Return tasks whose lease has run out, the oldest first."""
    return _EXPIRED.all(connection, now=now, size=size)


def _moving(columns: tuple[str, ...]) -> sa.Update:
    return (
        tasks.update().where(*same(tasks, "id", "state", "attempt")).values(given(tasks, *columns))
    )


@functools.cache
def _move(columns: tuple[str, ...]) -> Statement:
    return Statement(_moving(columns).returning(tasks))


@functools.cache
def _move_all(columns: tuple[str, ...]) -> Statement:
    return Statement(_moving(columns))


def _as_read(task: Row) -> dict[str, Any]:
    return {"at_id": task.id, "at_state": task.state, "at_attempt": task.attempt}


def move(connection: sa.Connection, task: Row, values: Mapping[str, Any]) -> Row | None:
    """Change a task, if it still has the state and the attempt that it was read with; return what it is then."""
    moved: Row | None = _move(tuple(values)).first(connection, **_as_read(task), **values)
    return moved


def move_all(
    connection: sa.Connection, rows: Sequence[Row], changes: Sequence[Mapping[str, Any]]
) -> int:
    """Change tasks, each as ``move`` does, all of them in the same columns; return how many were changed."""
    return _move_all(tuple(changes[0])).run_many(
        connection,
        [{**_as_read(row), **values} for row, values in zip(rows, changes, strict=True)],
    )


_LINK_SUPERSEDED = Statement(
    tasks.update().where(*same(tasks, "id")).values(given(tasks, "superseded_by"))
)


def link_superseded(connection: sa.Connection, task: int, superseded_by: str) -> None:
    """Note which task replaced one."""
    _LINK_SUPERSEDED.run(connection, at_id=task, superseded_by=superseded_by)


@functools.cache
def _reopen(outcomes: tuple[Outcome, ...]) -> Statement:
    return Statement(
        files.update()
        .where(*same(files, "task"), among(files.c.outcome, outcomes))
        .values(outcome=literal(Outcome.PENDING))
    )


def reopen_files(connection: sa.Connection, task: int, outcomes: Iterable[Outcome]) -> None:
    """Make files of some outcomes pending again; what was said of them last stays to be read."""
    _reopen(tuple(outcomes)).run(connection, at_task=task)


@functools.cache
def _open_files(count: int) -> Statement:
    of_tasks = [sa.bindparam(f"task_{number}", type_=files.c.task.type) for number in range(count)]
    return Statement(
        sa.select(files.c.task, *[files.c[name] for name in _REGISTERED])
        .where(files.c.task.in_(of_tasks), among(files.c.outcome, OPEN))
        .order_by(files.c.task, files.c.position)
    )


def open_files(connection: sa.Connection, ids: Sequence[int]) -> Mapping[int, Sequence[Row]]:
    """Return for each of some tasks its files that are still to be sent, in the order of registration."""
    found: dict[int, list[Row]] = {task: [] for task in ids}
    if ids:
        values = {f"task_{number}": task for number, task in enumerate(ids)}
        for row in _open_files(len(ids)).all(connection, **values):
            found[row.task].append(row)
    return found


_UNDELIVERED = Statement(
    sa.select(files.c.uri)
    .where(*same(files, "task"), files.c.outcome != literal(Outcome.DELIVERED))
    .order_by(files.c.position)
)


def undelivered(connection: sa.Connection, task: int) -> Sequence[str]:
    """Return the URIs of a task's files that the receiver does not have, in the order of registration."""
    return _UNDELIVERED.scalars(connection, at_task=task)


_URIS = Statement(sa.select(files.c.uri).where(*same(files, "task")).order_by(files.c.position))


def uris(connection: sa.Connection, task: int) -> Sequence[str]:
    """Return the URIs of a task's files in the order of registration."""
    return _URIS.scalars(connection, at_task=task)


_TELL_FILES = Statement(
    files.update()
    .where(*same(files, "task", "uri"), files.c.outcome != literal(Outcome.DELIVERED))
    .values(
        given(files, "outcome", "code", "message", "attempt", "updated_at")
        | {
            "sop_instance_uid": sa.func.coalesce(
                sa.bindparam("sop_instance_uid", type_=sa.Text), files.c.sop_instance_uid
            )
        }
    )
)


def tell_files(connection: sa.Connection, told: Sequence[Mapping[str, Any]]) -> int:
    """Write files' outcomes; one that is delivered stays so, and a SOP Instance UID that is known.

    Args:
        connection: Within a transaction.
        told: For each file ``at_task``, ``at_uri`` and the columns to set.

    Returns:
        How many were written: others are delivered already, or none of the task's.
    """
    return _TELL_FILES.run_many(connection, told)


def unknown_uris(connection: sa.Connection, task: int, uris: Sequence[str]) -> list[str]:
    """Return those URIs that are none of the task's."""
    known: set[str] = set()
    for start in range(0, len(uris), IDS_PER_QUERY):
        some = uris[start : start + IDS_PER_QUERY]
        found = sa.select(files.c.uri).where(files.c.task == task, files.c.uri.in_(some))
        known.update(connection.scalars(found))
    return [uri for uri in uris if uri not in known]


_TELL_OPEN_FILES = Statement(
    files.update()
    .where(*same(files, "task"), files.c.outcome == literal(Outcome.PENDING))
    .values(given(files, "outcome", "code", "message", "attempt", "updated_at"))
)


def tell_open_files(connection: sa.Connection, task: int, values: Mapping[str, Any]) -> None:
    """Give all files that have no outcome in this attempt one and the same."""
    _TELL_OPEN_FILES.run(connection, at_task=task, **values)


_COUNTS = Statement(
    sa.select(files.c.outcome, sa.func.count())
    .where(*same(files, "task"))
    .group_by(files.c.outcome)
)


def counts(connection: sa.Connection, task: int) -> Counts:
    """Count a task's files by outcome."""
    return Counts(**dict(_COUNTS.all(connection, at_task=task)))


_INSERT_ATTEMPTS = Statement(
    attempts.insert().values(
        given(attempts, "task", "attempt", "lease_token", "instance", "claimed_at")
    )
)


def insert_attempts(connection: sa.Connection, rows: Sequence[Mapping[str, Any]]) -> None:
    """Note that tasks were claimed."""
    _INSERT_ATTEMPTS.run_many(connection, rows)


_END_ATTEMPT = Statement(
    attempts.update()
    .where(*same(attempts, "task", "attempt"))
    .values(given(attempts, "ended_at", "result", "code", "message", "report"))
)


def end_attempt(
    connection: sa.Connection, task: int, attempt: int, values: Mapping[str, Any]
) -> None:
    """Note how a claim ended."""
    _END_ATTEMPT.run(connection, at_task=task, at_attempt=attempt, **values)


_ATTEMPTS_OF = Statement(
    sa.select(attempts).where(*same(attempts, "task")).order_by(attempts.c.attempt)
)


def attempts_of(connection: sa.Connection, task: int) -> Sequence[Row]:
    """Return a task's attempts, oldest first."""
    return _ATTEMPTS_OF.all(connection, at_task=task)


_HISTORY_OF = Statement(sa.select(history).where(*same(history, "task")).order_by(history.c.id))


def history_of(connection: sa.Connection, task: int) -> Sequence[Row]:
    """Return what happened to a task, oldest first."""
    return _HISTORY_OF.all(connection, at_task=task)


def files_page(
    connection: sa.Connection, task: int, outcome: Outcome | None, after: int, limit: int
) -> Sequence[Row]:
    """Return files of a task past a position, in the order of registration."""
    of_series = [sa.func.coalesce(series.c[name], "").label(name) for name in SUBJECT]
    found = (
        sa.select(files, *of_series)
        .outerjoin(series, sa.and_(series.c.id == files.c.series, series.c.task == task))
        .where(files.c.task == task, files.c.position > after)
    )
    if outcome is not None:
        found = found.where(files.c.outcome == outcome)
    return connection.execute(found.order_by(files.c.position).limit(limit)).all()


@dataclass(frozen=True, slots=True)
class Chosen:
    """Which tasks a list holds, or an act is for: those that all of this is true of.

    Attributes:
        columns: Column → value that it must have.
        text: A UID of one of its instances; or, if none has it, a task's id, or its job, pipeline, payload, operator or
            destination in part.
        patients: Look for an accession number or a patient's id as well.
        since: Registered then or later.
        until: Registered then or earlier.
        task_ids: One of these, at most ``IDS_PER_QUERY``; None: any.
    """

    columns: Mapping[str, Any]
    text: str | None = None
    patients: bool = False
    since: datetime | None = None
    until: datetime | None = None
    task_ids: Sequence[str] | None = None


def _conditions(connection: sa.Connection, chosen: Chosen) -> list[sa.ColumnElement[bool]]:
    where = [
        tasks.c[name] == (literal(value) if isinstance(value, State) else value)
        for name, value in chosen.columns.items()
    ]
    if chosen.since is not None:
        where.append(tasks.c.created_at >= chosen.since)
    if chosen.until is not None:
        where.append(tasks.c.created_at <= chosen.until)
    if chosen.task_ids is not None:
        where.append(tasks.c.task_id.in_([task_id.lower() for task_id in chosen.task_ids]))
    if chosen.text:
        where.append(_named(connection, chosen.text, patients=chosen.patients))
    return where


def _named(connection: sa.Connection, text: str, *, patients: bool) -> sa.ColumnElement[bool]:
    identified = found_by(text, patients=patients)
    if connection.execute(identified.limit(1)).first() is not None:
        return tasks.c.id.in_(identified)
    named = ["job_id", "pipeline_id", "payload_id", "operator", "destination"]
    return sa.or_(
        tasks.c.task_id == text.lower(),
        *[tasks.c[name].icontains(text, autoescape=True) for name in named],
    )


def tasks_page(
    connection: sa.Connection,
    chosen: Chosen,
    limit: int,
    *,
    before: int | None = None,
    after: int | None = None,
) -> Sequence[Row]:
    """Return tasks, newest first.

    Args:
        connection: Within a transaction.
        chosen: Which.
        limit: At most so many.
        before: The newest of those with a smaller id than this.
        after: The oldest of those with a larger id than this; not together with ``before``.
    """
    found = sa.select(tasks).where(*_conditions(connection, chosen)).limit(limit)
    if after is not None:
        later = found.where(tasks.c.id > after).order_by(tasks.c.id)
        return connection.execute(later).all()[::-1]
    if before is not None:
        found = found.where(tasks.c.id < before)
    return connection.execute(found.order_by(tasks.c.id.desc())).all()


def number(
    connection: sa.Connection, chosen: Chosen, states: Sequence[State], *, superseded: bool
) -> int:
    """Count the chosen tasks of some states; those that are superseded only if asked for."""
    counted = (
        sa.select(sa.func.count())
        .select_from(tasks)
        .where(among(tasks.c.state, states), *_conditions(connection, chosen))
    )
    if not superseded:
        counted = counted.where(tasks.c.superseded_by.is_(None))
    return connection.scalar(counted) or 0


_NEWEST = Statement(sa.select(sa.func.max(tasks.c.id)))


def newest(connection: sa.Connection) -> int:
    """Return the id of the newest task; 0: there is none."""
    return _NEWEST.scalar(connection) or 0


def matching(
    connection: sa.Connection,
    chosen: Chosen,
    states: Sequence[State],
    after: int,
    up_to: int,
    limit: int,
) -> Sequence[Row]:
    """Return chosen tasks of some states whose ids lie past ``after`` up to ``up_to``, oldest first, locked."""
    found = (
        sa.select(tasks)
        .where(
            among(tasks.c.state, states),
            tasks.c.id > after,
            tasks.c.id <= up_to,
            *_conditions(connection, chosen),
        )
        .order_by(tasks.c.id)
        .limit(limit)
        .with_for_update()
    )
    return connection.execute(found).all()


_HELD_BY = Statement(
    sa.select(tasks.c.agent, attempts.c.instance, tasks.c.task_id)
    .join(attempts, sa.and_(attempts.c.task == tasks.c.id, attempts.c.attempt == tasks.c.attempt))
    .where(tasks.c.state == literal(State.IN_PROGRESS))
)


def held_by(connection: sa.Connection) -> Sequence[Row]:
    """Return agent, instance and task id of every claim that runs."""
    return _HELD_BY.all(connection)


def _number(*where: sa.ColumnElement[bool] | sa.TextClause) -> sa.ScalarSelect[int]:
    return sa.select(sa.func.count()).select_from(tasks).where(*where).scalar_subquery()


_UNSUCCEEDED = tuple(state for state in State if state != State.SUCCEEDED)
_STATE_COUNTS = Statement(
    sa.select(
        _number(ENDED).label("ended"),
        *[_number(tasks.c.state == literal(state)).label(state) for state in _UNSUCCEEDED],
    )
)


def state_counts(connection: sa.Connection) -> dict[State, int]:
    """Count all tasks by state; each count reads one partial index alone."""
    row = _STATE_COUNTS.first(connection)
    counts = {state: getattr(row, state) for state in _UNSUCCEEDED}
    ended = sum(number for state, number in counts.items() if state.finished)
    return counts | {State.SUCCEEDED: row.ended - ended}


@functools.cache
def _by_destination(state: State) -> Statement:
    return Statement(
        sa.select(
            tasks.c.destination,
            sa.func.count().label("tasks"),
            sa.func.sum(tasks.c.associations).label("associations"),
        )
        .where(tasks.c.state == literal(state))
        .group_by(tasks.c.destination)
    )


def unfinished_by_destination(connection: sa.Connection) -> dict[tuple[str, str], Row]:
    """Count unfinished tasks, and the associations that they have, by destination and state."""
    return {
        (row.destination, state): row
        for state in State
        if not state.finished
        for row in _by_destination(state).all(connection)
    }
