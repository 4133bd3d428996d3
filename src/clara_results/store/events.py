"""Statements on history as a stream of events. One function a statement."""

from collections.abc import Sequence

import sqlalchemy as sa

from clara_results.store.schema import history, tasks
from clara_results.store.statements import Row

_WRITERS = sa.text(
    "SELECT virtualtransaction FROM pg_locks WHERE relation = CAST('history' AS regclass)"
    " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    " AND mode = 'RowExclusiveLock'"
)


def newest(connection: sa.Connection) -> int:
    """Return the largest id of an entry; 0: there is none."""
    return connection.scalar(sa.select(sa.func.max(history.c.id))) or 0


def after(connection: sa.Connection, entry: int, limit: int) -> Sequence[Row]:
    """Return the entries that follow one, in the order of their ids, each with what its task is."""
    found = (
        sa.select(
            *[history.c[name] for name in ("id", "at", "event", "state", "attempt")],
            *[tasks.c[name] for name in ("task_id", "agent", "job_id", "destination")],
        )
        .join(tasks, tasks.c.id == history.c.task)
        .where(history.c.id > entry)
    )
    return connection.execute(found.order_by(history.c.id).limit(limit)).all()


def writers(connection: sa.Connection) -> frozenset[str]:
    """Return names of the transactions that have written, or begin to write, entries not yet to be seen.

    PostgreSQL: who inserts locks the table in ROW EXCLUSIVE mode before it takes an id, and keeps the lock until after its
    rows can be seen (PostgreSQL manual, Explicit Locking). SQLite has one writer, whose rows are seen at once: none.
    """
    if connection.dialect.name == "sqlite":
        return frozenset()
    return frozenset(connection.scalars(_WRITERS))
