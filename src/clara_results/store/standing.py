"""Statements on how the work stands, for metrics. One function a statement.

They must stay cheap however many tasks there are: finished tasks are never counted, except Failed ones, and each
count reads one partial index alone.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from clara_results.domain.tasks import State
from clara_results.store.lanes import first_due
from clara_results.store.schema import destinations, lanes, tasks
from clara_results.store.statements import Row


def lanes_standing(connection: sa.Connection) -> Sequence[Row]:
    """Return for each lane its Pending and Failed tasks, and when the first Pending one was due or is."""

    def of_lane(what: sa.ColumnElement[Any], state: State) -> sa.ScalarSelect[Any]:
        # The state as a literal: only so does each database see that the partial index holds all of it.
        return (
            sa.select(what)
            .select_from(tasks)
            .where(
                tasks.c.agent == lanes.c.agent,
                tasks.c.destination == lanes.c.destination,
                tasks.c.state == sa.literal_column(f"'{state}'"),
            )
            .scalar_subquery()
        )

    found = sa.select(
        lanes.c.agent,
        lanes.c.destination,
        of_lane(sa.func.count(), State.PENDING).label("pending"),
        first_due(~tasks.c.waits).label("in_line"),
        first_due(tasks.c.waits).label("due_at"),
        of_lane(sa.func.count(), State.FAILED).label("failed"),
    )
    return connection.execute(found).all()


def in_state(connection: sa.Connection, state: State) -> Mapping[tuple[str, str], int]:
    """Return the number of tasks of a state by agent and destination: of a state that few are in."""
    found = (
        sa.select(tasks.c.agent, tasks.c.destination, sa.func.count().label("tasks"))
        .where(tasks.c.state == sa.literal_column(f"'{state}'"))
        .group_by(tasks.c.agent, tasks.c.destination)
    )
    return {(row.agent, row.destination): row.tasks for row in connection.execute(found)}


def destinations_standing(connection: sa.Connection) -> Sequence[Row]:
    """Return each destination's key and name, and whether it is paused or down."""
    found = sa.select(
        destinations.c.name_key,
        destinations.c.name,
        destinations.c.paused_at.is_not(None).label("paused"),
        destinations.c.down_since.is_not(None).label("down"),
    )
    return connection.execute(found.order_by(destinations.c.name_key)).all()
