"""Statements for people who look how the work goes. One function a statement."""

from collections.abc import Sequence
from datetime import datetime

import sqlalchemy as sa

from clara_results.domain.tasks import State
from clara_results.store.schema import ENDED, attempts, tasks
from clara_results.store.statements import Row

MINUTE = 60_000_000
"""Microseconds, as instants are stored."""
_DECADES = (100_000, 1_000_000, 10_000_000, 100_000_000, 1_000_000_000)
"""Bounds of durations in microseconds; within each, steps of a twentieth of it are told apart."""


def ended_by_minute(connection: sa.Connection, since: datetime, until: datetime) -> Sequence[Row]:
    """Count tasks that ended within some time, by minute, destination, state, and how long they took.

    Returns:
        ``minute`` since 1970, ``destination`` (key), ``state``, ``took`` (microseconds from registration to the end,
        the middle of its step) and ``tasks``.
    """
    ended = sa.type_coerce(tasks.c.updated_at, sa.BigInteger)
    took = ended - sa.type_coerce(tasks.c.created_at, sa.BigInteger)
    step = sa.case(
        *[(took < bound, _whole(bound // 20)) for bound in _DECADES],
        else_=_whole(_DECADES[-1] // 2),
    )
    found = (
        sa.select(
            (ended // _whole(MINUTE)).label("minute"),
            tasks.c.destination,
            tasks.c.state,
            ((took // step) * step + step // _whole(2)).label("took"),
            sa.func.count().label("tasks"),
        )
        .where(ENDED, tasks.c.updated_at >= since, tasks.c.updated_at < until)
        .group_by(*[sa.text(str(place)) for place in (1, 2, 3, 4)])
    )
    return connection.execute(found).all()


def dead_letters(connection: sa.Connection, limit: int) -> Sequence[Row]:
    """Count Failed tasks that nothing supersedes, by agent, destination and cause, most first.

    Returns:
        ``agent``, ``destination`` (key), ``code``, ``tasks``, ``latest`` (when the last one failed) and ``message``: of
        the one that was registered last.
    """
    groups = (
        sa.select(
            tasks.c.agent,
            tasks.c.destination,
            tasks.c.error_code.label("code"),
            sa.func.count().label("tasks"),
            sa.func.max(tasks.c.updated_at).label("latest"),
            sa.func.max(tasks.c.id).label("example"),
        )
        .where(
            tasks.c.state == sa.literal_column(f"'{State.FAILED}'"), tasks.c.superseded_by.is_(None)
        )
        .group_by(tasks.c.agent, tasks.c.destination, tasks.c.error_code)
        .order_by(sa.desc("tasks"), tasks.c.destination, tasks.c.error_code)
        .limit(limit)
        .subquery()
    )
    example = tasks.alias()
    found = sa.select(groups, example.c.error_message.label("message")).join(
        example, example.c.id == groups.c.example
    )
    return connection.execute(found.order_by(groups.c.tasks.desc(), groups.c.destination)).all()


def held(connection: sa.Connection) -> Sequence[Row]:
    """Return the tasks that agents hold now: the task's columns, ``instance`` and ``claimed_at``, longest held first."""
    found = (
        sa.select(tasks, attempts.c.instance, attempts.c.claimed_at)
        .join(attempts, sa.and_(attempts.c.task == tasks.c.id, attempts.c.ended_at.is_(None)))
        .where(tasks.c.state == sa.literal_column(f"'{State.IN_PROGRESS}'"))
        .order_by(attempts.c.claimed_at)
    )
    return connection.execute(found).all()


def _whole(number: int) -> sa.ColumnClause[int]:
    """Return a whole number as a statement's text has it: grouped by and selected, it must be the same."""
    return sa.literal_column(str(number), sa.BigInteger)
