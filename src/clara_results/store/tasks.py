"""Statements on registrations, tasks, files, attempts and history. One function a statement."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from clara_results.domain.tasks import Counts, Outcome, State
from clara_results.store.schema import attempts, files, history, registrations, tasks, turns

Row = sa.Row[*tuple[Any, ...]]
OPEN = (Outcome.PENDING, Outcome.RETRY)
IDS_PER_QUERY = 500
"""URIs or task ids in one IN list: well below every database's limit of parameters."""


def registration_by_key(connection: sa.Connection, key: str) -> Row | None:
    """Return the registration that came with an idempotency key; its tasks stay until this transaction ends."""
    found = sa.select(registrations).where(registrations.c.idempotency_key == key)
    return connection.execute(found.with_for_update(read=True)).one_or_none()


def insert_registration(connection: sa.Connection, values: Mapping[str, Any]) -> int:
    """Insert a registration; return its id."""
    key = connection.execute(registrations.insert().values(**values)).inserted_primary_key
    assert key is not None  # noqa: S101  (every insert of one row has one)
    return int(key[0])


def insert_task(connection: sa.Connection, values: Mapping[str, Any]) -> int:
    """Insert a task; return its id."""
    key = connection.execute(tasks.insert().values(**values)).inserted_primary_key
    assert key is not None  # noqa: S101  (every insert of one row has one)
    return int(key[0])


def insert_files(connection: sa.Connection, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert files."""
    connection.execute(files.insert(), rows)


def copy_files(connection: sa.Connection, from_task: int, to_task: int) -> None:
    """Give a task the files of another, none of them told of yet."""
    carried = ["position", "uri", "size", "modified", "sha256", "media_type"]
    chosen = sa.select(
        sa.literal(to_task),
        *[files.c[name] for name in carried],
        sa.literal(Outcome.PENDING.value),
    ).where(files.c.task == from_task)
    connection.execute(files.insert().from_select(["task", *carried, "outcome"], chosen))


def insert_history(connection: sa.Connection, values: Mapping[str, Any]) -> None:
    """Note what happened to a task."""
    connection.execute(history.insert().values(**values))


def last_turn(connection: sa.Connection, agent: str, job_id: str) -> int:
    """Return the larger of the queue's present turn and the last turn that a job was given."""
    of_job = sa.select(sa.func.max(tasks.c.turn)).where(
        tasks.c.agent == agent, tasks.c.job_id == job_id
    )
    of_queue = sa.select(turns.c.turn).where(turns.c.agent == agent)
    return max(connection.scalar(of_job) or 0, connection.scalar(of_queue) or 0)


def advance_turn(connection: sa.Connection, agent: str, turn: int) -> None:
    """Note the turn that an agent's queue has reached."""
    moved = connection.execute(
        turns.update()
        .where(turns.c.agent == agent)
        .values(turn=sa.case((turns.c.turn < turn, turn), else_=turns.c.turn))
    )
    if not moved.rowcount:
        connection.execute(turns.insert().values(agent=agent, turn=turn))


def older_of_scope(connection: sa.Connection, scope_sha256: str, before: int) -> Sequence[Row]:
    """Return the tasks, not yet superseded and not Succeeded or Canceled, of older registrations of a scope."""
    found = (
        sa.select(tasks)
        .join(registrations, registrations.c.id == tasks.c.registration_id)
        .where(
            registrations.c.scope_sha256 == scope_sha256,
            registrations.c.id < before,
            registrations.c.idempotency_key.is_not(None),
            tasks.c.superseded_by.is_(None),
            tasks.c.state.not_in([State.SUCCEEDED, State.CANCELED]),
        )
        .order_by(tasks.c.id)
        .with_for_update(of=tasks)
    )
    return connection.execute(found).all()


def by_registration(connection: sa.Connection, registration: int) -> Sequence[Row]:
    """Return a registration's tasks in the order of its data."""
    found = sa.select(tasks).where(tasks.c.registration_id == registration)
    return connection.execute(found.order_by(tasks.c.element)).all()


def by_id(connection: sa.Connection, task_id: str, *, lock: bool = False) -> Row | None:
    """Return a task; with ``lock`` nobody else changes it before this transaction ends."""
    found = sa.select(tasks).where(tasks.c.task_id == task_id)
    return connection.execute(found.with_for_update() if lock else found).one_or_none()


def by_job(connection: sa.Connection, job_id: str) -> Sequence[Row]:
    """Return a job's tasks, oldest first."""
    found = sa.select(tasks).where(tasks.c.job_id == job_id).order_by(tasks.c.id)
    return connection.execute(found).all()


def expired(connection: sa.Connection, now: datetime, size: int) -> Sequence[Row]:
    """Return tasks whose lease has run out, the oldest first."""
    found = (
        sa.select(tasks)
        .where(tasks.c.state == State.IN_PROGRESS, tasks.c.lease_expires_at <= now)
        .order_by(tasks.c.lease_expires_at)
        .limit(size)
        .with_for_update(skip_locked=True)
    )
    return connection.execute(found).all()


def move(connection: sa.Connection, task: Row, values: Mapping[str, Any]) -> bool:
    """Change a task, if it still has the state and the attempt that it was read with."""
    changed = connection.execute(
        tasks.update()
        .where(tasks.c.id == task.id, tasks.c.state == task.state, tasks.c.attempt == task.attempt)
        .values(**values)
    )
    return changed.rowcount == 1


def link_superseded(connection: sa.Connection, task: int, superseded_by: str) -> None:
    """Note which task replaced one."""
    connection.execute(tasks.update().where(tasks.c.id == task).values(superseded_by=superseded_by))


def reopen_files(connection: sa.Connection, task: int, outcomes: Iterable[Outcome]) -> None:
    """Make files of some outcomes pending again; what was said of them last stays to be read."""
    connection.execute(
        files.update()
        .where(files.c.task == task, files.c.outcome.in_(list(outcomes)))
        .values(outcome=Outcome.PENDING)
    )


def open_files(connection: sa.Connection, task: int) -> Sequence[Row]:
    """Return the files of a task that are still to be sent, in the order of registration."""
    found = sa.select(
        files.c.uri, files.c.size, files.c.modified, files.c.sha256, files.c.media_type
    ).where(files.c.task == task, files.c.outcome.in_(OPEN))
    return connection.execute(found.order_by(files.c.position)).all()


def undelivered(connection: sa.Connection, task: int) -> Sequence[str]:
    """Return the URIs of a task's files that the receiver does not have, in the order of registration."""
    found = sa.select(files.c.uri).where(files.c.task == task, files.c.outcome != Outcome.DELIVERED)
    return connection.scalars(found.order_by(files.c.position)).all()


def unknown_uris(connection: sa.Connection, task: int, uris: Sequence[str]) -> list[str]:
    """Return those URIs that are none of the task's."""
    known: set[str] = set()
    for start in range(0, len(uris), IDS_PER_QUERY):
        some = uris[start : start + IDS_PER_QUERY]
        found = sa.select(files.c.uri).where(files.c.task == task, files.c.uri.in_(some))
        known.update(connection.scalars(found))
    return [uri for uri in uris if uri not in known]


def tell_files(connection: sa.Connection, task: int, told: Sequence[Mapping[str, Any]]) -> None:
    """Write files' outcomes; one that is delivered stays so.

    Args:
        connection: Within a transaction.
        task: Whose files.
        told: For each file ``at_uri`` and the columns to set.
    """
    connection.execute(
        files.update().where(
            files.c.task == task,
            files.c.uri == sa.bindparam("at_uri"),
            files.c.outcome != Outcome.DELIVERED,
        ),
        told,
    )


def tell_open_files(connection: sa.Connection, task: int, values: Mapping[str, Any]) -> None:
    """Give all files that have no outcome in this attempt one and the same."""
    connection.execute(
        files.update()
        .where(files.c.task == task, files.c.outcome == Outcome.PENDING)
        .values(**values)
    )


def counts(connection: sa.Connection, task: int) -> Counts:
    """Count a task's files by outcome."""
    found = sa.select(files.c.outcome, sa.func.count()).where(files.c.task == task)
    rows = connection.execute(found.group_by(files.c.outcome)).all()
    return Counts(**dict(rows))


def insert_attempt(connection: sa.Connection, values: Mapping[str, Any]) -> None:
    """Note that a task was claimed."""
    connection.execute(attempts.insert().values(**values))


def end_attempt(
    connection: sa.Connection, task: int, attempt: int, values: Mapping[str, Any]
) -> None:
    """Note how a claim ended."""
    connection.execute(
        attempts.update()
        .where(attempts.c.task == task, attempts.c.attempt == attempt)
        .values(**values)
    )


def attempts_of(connection: sa.Connection, task: int) -> Sequence[Row]:
    """Return a task's attempts, oldest first."""
    found = sa.select(attempts).where(attempts.c.task == task).order_by(attempts.c.attempt)
    return connection.execute(found).all()


def history_of(connection: sa.Connection, task: int) -> Sequence[Row]:
    """Return what happened to a task, oldest first."""
    found = sa.select(history).where(history.c.task == task).order_by(history.c.id)
    return connection.execute(found).all()


def files_page(
    connection: sa.Connection, task: int, outcome: Outcome | None, after: int, limit: int
) -> Sequence[Row]:
    """Return files of a task past a position, in the order of registration."""
    found = sa.select(files).where(files.c.task == task, files.c.position > after)
    if outcome is not None:
        found = found.where(files.c.outcome == outcome)
    return connection.execute(found.order_by(files.c.position).limit(limit)).all()


def tasks_page(
    connection: sa.Connection,
    where: Mapping[str, Any],
    text: str | None,
    before: int | None,
    limit: int,
) -> Sequence[Row]:
    """Return tasks, newest first.

    Args:
        connection: Within a transaction.
        where: Column → value that it must have.
        text: A task's id, or its job, pipeline, payload, operator or destination in part, or a SOP Instance UID of
            one of its files.
        before: Only tasks with a smaller id.
        limit: At most so many.
    """
    found = sa.select(tasks).where(*[tasks.c[name] == value for name, value in where.items()])
    if before is not None:
        found = found.where(tasks.c.id < before)
    if text:
        named = ["job_id", "pipeline_id", "payload_id", "operator", "destination"]
        of_file = sa.select(files.c.task).where(
            files.c.task == tasks.c.id, files.c.sop_instance_uid == text
        )
        found = found.where(
            sa.or_(
                tasks.c.task_id == text.lower(),
                *[tasks.c[name].icontains(text, autoescape=True) for name in named],
                of_file.exists(),
            )
        )
    return connection.execute(found.order_by(tasks.c.id.desc()).limit(limit)).all()


def matching(
    connection: sa.Connection,
    where: Mapping[str, Any],
    task_ids: Sequence[str] | None,
    states: Sequence[State],
) -> Sequence[Row]:
    """Return all tasks of some states that a filter names, oldest first, locked."""
    found = sa.select(tasks).where(
        tasks.c.state.in_(states), *[tasks.c[name] == value for name, value in where.items()]
    )
    found = found.order_by(tasks.c.id).with_for_update()
    if task_ids is None:
        return connection.execute(found).all()
    named = sorted({task_id.lower() for task_id in task_ids})
    rows: list[Row] = []
    for start in range(0, len(named), IDS_PER_QUERY):
        some = tasks.c.task_id.in_(named[start : start + IDS_PER_QUERY])
        rows += connection.execute(found.where(some)).all()
    return sorted(rows, key=lambda row: row.id)


def held_by(connection: sa.Connection) -> Sequence[Row]:
    """Return agent, instance and task id of every claim that runs."""
    found = sa.select(tasks.c.agent, attempts.c.instance, tasks.c.task_id).join(
        attempts, sa.and_(attempts.c.task == tasks.c.id, attempts.c.attempt == tasks.c.attempt)
    )
    return connection.execute(found.where(tasks.c.state == State.IN_PROGRESS)).all()


def state_counts(connection: sa.Connection) -> dict[str, int]:
    """Count all tasks by state."""
    found = sa.select(tasks.c.state, sa.func.count()).group_by(tasks.c.state)
    return dict(connection.execute(found).all())


def unfinished_by_destination(connection: sa.Connection) -> dict[tuple[str, str], int]:
    """Count Pending and InProgress tasks by destination and state."""
    found = sa.select(tasks.c.destination, tasks.c.state, sa.func.count()).where(
        tasks.c.state.in_([State.PENDING, State.IN_PROGRESS])
    )
    rows = connection.execute(found.group_by(tasks.c.destination, tasks.c.state)).all()
    return {(destination, state): number for destination, state, number in rows}
