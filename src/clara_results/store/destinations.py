"""Statements on destinations and agent processes. One function a statement."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from clara_results.store.schema import agents, destinations
from clara_results.store.statements import Row


def all_destinations(connection: sa.Connection) -> Sequence[Row]:
    """Return all destinations, by name."""
    return connection.execute(sa.select(destinations).order_by(destinations.c.name_key)).all()


def destination(connection: sa.Connection, name_key: str) -> Row | None:
    """Return one destination."""
    found = sa.select(destinations).where(destinations.c.name_key == name_key)
    return connection.execute(found).one_or_none()


def insert_destination(connection: sa.Connection, values: Mapping[str, Any]) -> None:
    """Add a destination."""
    connection.execute(destinations.insert().values(**values))


def update_destination(connection: sa.Connection, name_key: str, values: Mapping[str, Any]) -> bool:
    """Change a destination; say whether it was there."""
    changed = connection.execute(
        destinations.update().where(destinations.c.name_key == name_key).values(**values)
    )
    return changed.rowcount == 1


def delete_destination(connection: sa.Connection, name_key: str) -> bool:
    """Remove a destination; say whether it was there."""
    found = destinations.delete().where(destinations.c.name_key == name_key)
    return connection.execute(found).rowcount == 1


def see_agent(
    connection: sa.Connection, agent: str, instance: str, version: str | None, at: datetime
) -> None:
    """Note that an agent process has asked for tasks."""
    seen = connection.execute(
        agents.update()
        .where(agents.c.agent == agent, agents.c.instance == instance)
        .values(version=version, last_seen_at=at)
    )
    if not seen.rowcount:
        connection.execute(
            agents.insert().values(agent=agent, instance=instance, version=version, last_seen_at=at)
        )


def agents_since(connection: sa.Connection, since: datetime) -> Sequence[Row]:
    """Return the agent processes seen since a moment, by name."""
    found = sa.select(agents).where(agents.c.last_seen_at >= since)
    return connection.execute(found.order_by(agents.c.agent, agents.c.instance)).all()
