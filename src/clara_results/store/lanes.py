"""Statements on lanes: an agent's tasks for one destination. One function a statement."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from clara_results.domain.tasks import State
from clara_results.store.schema import destinations, lanes, tasks

Row = sa.Row[*tuple[Any, ...]]
UNFINISHED = (State.PENDING, State.IN_PROGRESS)


def add_lane(connection: sa.Connection, agent: str, destination: str) -> None:
    """Make a lane known, if it is not yet; until this transaction ends nobody removes it."""
    found = sa.select(lanes.c.agent).where(
        lanes.c.agent == agent, lanes.c.destination == destination
    )
    if connection.execute(found.with_for_update(read=True)).one_or_none() is None:
        connection.execute(lanes.insert().values(agent=agent, destination=destination))


def stray_lanes(connection: sa.Connection, size: int) -> Sequence[Row]:
    """Return lanes, locked, of destinations that are not set up, with no unfinished task as it seems."""
    unfinished = sa.select(tasks.c.id).where(
        tasks.c.agent == lanes.c.agent,
        tasks.c.destination == lanes.c.destination,
        tasks.c.state.in_(UNFINISHED),
    )
    set_up = sa.select(destinations.c.name_key).where(
        destinations.c.name_key == lanes.c.destination
    )
    found = sa.select(lanes).where(
        lanes.c.destination != "", ~unfinished.exists(), ~set_up.exists()
    )
    return connection.execute(found.limit(size).with_for_update(skip_locked=True)).all()


def delete_stray_lane(connection: sa.Connection, agent: str, destination: str) -> None:
    """Forget a locked lane, if it still has no unfinished task now that nobody can add one."""
    unfinished = sa.select(tasks.c.id).where(
        tasks.c.agent == agent,
        tasks.c.destination == destination,
        tasks.c.state.in_(UNFINISHED),
    )
    connection.execute(
        lanes.delete().where(
            lanes.c.agent == agent, lanes.c.destination == destination, ~unfinished.exists()
        )
    )


def lanes_of(connection: sa.Connection, agent: str) -> Sequence[Row]:
    """Return an agent's lanes to destinations that are set up, each with what its destination allows."""
    columns = ("max_tasks", "paused_at", "down_since", "probe_at")
    found = (
        sa.select(lanes.c.destination, *[destinations.c[name] for name in columns])
        .join(destinations, destinations.c.name_key == lanes.c.destination)
        .where(lanes.c.agent == agent)
    )
    return connection.execute(found).all()


def _of_lane(agent: str, destination: str | None) -> sa.ColumnElement[bool]:
    """Return the condition for an agent's tasks of one lane; None: of all lanes to names that are not set up."""
    if destination is not None:
        return sa.and_(tasks.c.agent == agent, tasks.c.destination == destination)
    set_up = sa.select(destinations.c.name_key).where(
        destinations.c.name_key == lanes.c.destination
    )
    strays = sa.select(lanes.c.destination).where(
        lanes.c.agent == agent, lanes.c.destination != "", ~set_up.exists()
    )
    return sa.and_(tasks.c.agent == agent, tasks.c.destination.in_(strays))


def lock_lanes(connection: sa.Connection, names: Sequence[str]) -> None:
    """Have other claims for these destinations wait until this transaction ends: their tasks are being counted."""
    found = sa.select(destinations.c.name_key).where(destinations.c.name_key.in_(names))
    connection.execute(found.order_by(destinations.c.name_key).with_for_update()).all()


def held(connection: sa.Connection, names: Sequence[str]) -> dict[str, int]:
    """Count the tasks in progress to each of some destinations."""
    found = sa.select(tasks.c.destination, sa.func.count()).where(
        tasks.c.state == State.IN_PROGRESS, tasks.c.destination.in_(names)
    )
    return dict(connection.execute(found.group_by(tasks.c.destination)).all())


def head(
    connection: sa.Connection, agent: str, destination: str | None, now: datetime, size: int
) -> Sequence[Row]:
    """Return the tasks at the head of a lane that are due, locked; those that another claim has are passed over."""
    found = (
        sa.select(tasks)
        .where(
            _of_lane(agent, destination),
            tasks.c.state == State.PENDING,
            tasks.c.due_at <= now,
        )
        .order_by(tasks.c.priority.desc(), tasks.c.turn, tasks.c.id)
        .limit(size)
        .with_for_update(skip_locked=True)
    )
    return connection.execute(found).all()


def next_due(connection: sa.Connection, agent: str, destination: str | None) -> datetime | None:
    """Return when the first Pending task of a lane is due."""
    found = sa.select(sa.func.min(tasks.c.due_at)).where(
        _of_lane(agent, destination), tasks.c.state == State.PENDING
    )
    moment: datetime | None = connection.scalar(found)
    return moment


def set_destination(connection: sa.Connection, destination: str, values: Mapping[str, Any]) -> bool:
    """Change how a destination stands; say whether it is there."""
    changed = connection.execute(
        destinations.update().where(destinations.c.name_key == destination).values(**values)
    )
    return changed.rowcount == 1


def standing(connection: sa.Connection, destination: str) -> Row | None:
    """Return how a destination stands."""
    found = sa.select(destinations).where(destinations.c.name_key == destination)
    return connection.execute(found).one_or_none()


def release_waiting(connection: sa.Connection, destination: str, now: datetime) -> None:
    """Make those tasks due that wait because a destination was unavailable."""
    connection.execute(
        tasks.update()
        .where(
            tasks.c.destination == destination,
            tasks.c.state == State.PENDING,
            tasks.c.unavailable_since.is_not(None),
            tasks.c.due_at > now,
        )
        .values(due_at=now)
    )


def agents_of(connection: sa.Connection, destination: str) -> Sequence[str]:
    """Return the agents that have had tasks for a destination."""
    found = sa.select(lanes.c.agent).where(lanes.c.destination == destination)
    return connection.scalars(found).all()


def waited_too_long(connection: sa.Connection, before: datetime, size: int) -> Sequence[Row]:
    """Return Pending tasks whose destination has been down, and who have waited for it, since before a moment."""
    found = (
        sa.select(tasks)
        .join(destinations, destinations.c.name_key == tasks.c.destination)
        .where(
            tasks.c.state == State.PENDING,
            destinations.c.down_since <= before,
            sa.func.coalesce(tasks.c.unavailable_since, tasks.c.due_at) <= before,
        )
        .limit(size)
        .with_for_update(of=tasks, skip_locked=True)
    )
    return connection.execute(found).all()
