"""Statements on storage commitments. One function a statement."""

from collections.abc import Sequence
from datetime import datetime

import sqlalchemy as sa

from clara_results.domain.tasks import Outcome, State
from clara_results.store.schema import commitments, files, tasks
from clara_results.store.statements import Row, Statement, given, literal, same

_awaited = tasks.c.state == literal(State.AWAITING_COMMITMENT)
_due = (
    sa.select(tasks)
    .where(
        *same(tasks, "agent"),
        _awaited,
        tasks.c.commit_at <= sa.bindparam("now"),
        tasks.c.commit_by > sa.bindparam("now"),
    )
    .order_by(tasks.c.commit_at)
    .limit(sa.bindparam("size", type_=sa.Integer))
)
_ANY_DUE = Statement(_due)
_DUE = Statement(_due.with_for_update(skip_locked=True))


def any_due(connection: sa.Connection, agent: str, now: datetime) -> bool:
    """Tell whether an agent has tasks whose receivers are to be asked now."""
    return _ANY_DUE.first(connection, at_agent=agent, now=now, size=1) is not None


def due(connection: sa.Connection, agent: str, now: datetime, size: int) -> Sequence[Row]:
    """Return an agent's tasks whose receivers are to be asked now, locked."""
    return _DUE.all(connection, at_agent=agent, now=now, size=size)


_OVERDUE = Statement(
    sa.select(tasks)
    .where(
        _awaited,
        # It is no later than commit_by, and an index begins with it.
        tasks.c.commit_at <= sa.bindparam("now"),
        tasks.c.commit_by <= sa.bindparam("now"),
    )
    .limit(sa.bindparam("size", type_=sa.Integer))
    .with_for_update(skip_locked=True)
)


def overdue(connection: sa.Connection, now: datetime, size: int) -> Sequence[Row]:
    """Return tasks whose receivers should have committed themselves by now, locked."""
    return _OVERDUE.all(connection, now=now, size=size)


_AWAITING = Statement(
    sa.select(files.c.uri, files.c.sop_class_uid, files.c.sop_instance_uid)
    .where(*same(files, "task"), files.c.outcome == literal(Outcome.AWAITING))
    .order_by(files.c.position)
)


def awaiting(connection: sa.Connection, task: int) -> Sequence[Row]:
    """Return a task's files that the receiver is to commit itself to keep."""
    return _AWAITING.all(connection, at_task=task)


_INSERT = Statement(
    commitments.insert().values(given(commitments, "transaction_uid", "task", "asked_at"))
)


def insert(connection: sa.Connection, transaction_uid: str, task: int, asked_at: datetime) -> None:
    """Note that a receiver is about to be asked."""
    _INSERT.run(connection, transaction_uid=transaction_uid, task=task, asked_at=asked_at)


_TASK_OF = Statement(
    sa.select(tasks)
    .join(commitments, commitments.c.task == tasks.c.id)
    .where(*same(commitments, "transaction_uid"))
    .with_for_update(of=tasks)
)


def task_of(connection: sa.Connection, transaction_uid: str) -> Row | None:
    """Return the task, locked, whose instances a transaction is about."""
    found: Row | None = _TASK_OF.first(connection, at_transaction_uid=transaction_uid)
    return found
