"""Statements on lanes: an agent's tasks for one destination. One function a statement."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from clara_results.domain.tasks import State
from clara_results.store.schema import destinations, idle_associations, lanes, tasks
from clara_results.store.statements import Row, Statement, given, literal, same, upsert

_LANE = Statement(
    sa.select(lanes.c.agent).where(*same(lanes, "agent", "destination")).with_for_update(read=True)
)
_INSERT_LANE = Statement(lanes.insert().values(given(lanes, "agent", "destination")))


def add_lane(connection: sa.Connection, agent: str, destination: str) -> None:
    """Make a lane known, if it is not yet; until this transaction ends nobody removes it."""
    if _LANE.first(connection, at_agent=agent, at_destination=destination) is None:
        _INSERT_LANE.run(connection, agent=agent, destination=destination)


def _unfinished(*of_lane: sa.ColumnElement[bool]) -> list[sa.ColumnElement[bool]]:
    """Return for each unfinished state the condition that a lane has a task in it: each is found by one partial index."""
    return [
        sa.select(tasks.c.id).where(*of_lane, tasks.c.state == literal(state)).exists()
        for state in (State.PENDING, State.IN_PROGRESS)
    ]


_set_up = sa.select(destinations.c.name_key).where(destinations.c.name_key == lanes.c.destination)
_of_lane = (tasks.c.agent == lanes.c.agent, tasks.c.destination == lanes.c.destination)
_STRAY_LANES = Statement(
    sa.select(lanes)
    .where(
        lanes.c.destination != literal(""),
        ~_set_up.exists(),
        *[~condition for condition in _unfinished(*_of_lane)],
    )
    .limit(sa.bindparam("size", type_=sa.Integer))
    .with_for_update(skip_locked=True)
)


def stray_lanes(connection: sa.Connection, size: int) -> Sequence[Row]:
    """Return lanes, locked, of destinations that are not set up, with no unfinished task as it seems."""
    return _STRAY_LANES.all(connection, size=size)


_DELETE_STRAY_LANE = Statement(
    lanes.delete().where(
        *same(lanes, "agent", "destination"),
        *[~condition for condition in _unfinished(*same(tasks, "agent", "destination"))],
    )
)


def delete_stray_lane(connection: sa.Connection, agent: str, destination: str) -> None:
    """Forget a locked lane, if it still has no unfinished task now that nobody can add one."""
    _DELETE_STRAY_LANE.run(connection, at_agent=agent, at_destination=destination)


_LOCK_LANES = Statement(
    sa.select(destinations.c.name_key)
    .where(destinations.c.name_key.in_(sa.select(lanes.c.destination).where(*same(lanes, "agent"))))
    .order_by(destinations.c.name_key)
    .with_for_update(of=destinations)
)


def lock_lanes(connection: sa.Connection, agent: str) -> None:
    """Have other claims for an agent's destinations wait until this transaction ends: their tasks are being counted."""
    _LOCK_LANES.all(connection, at_agent=agent)


_DUE_NOW = Statement(
    tasks.update()
    .where(
        tasks.c.id.in_(
            sa.select(tasks.c.id)
            .where(
                *same(tasks, "agent"),
                tasks.c.destination.in_(
                    sa.select(lanes.c.destination).where(*same(lanes, "agent"))
                ),
                tasks.c.state == literal(State.PENDING),
                tasks.c.waits,
                tasks.c.due_at <= sa.bindparam("now"),
            )
            .limit(sa.bindparam("size", type_=sa.Integer))
            .with_for_update(skip_locked=True)
        )
    )
    .values(waits=sa.false())
)


def put_in_line(connection: sa.Connection, agent: str, now: datetime, size: int) -> int:
    """Put up to ``size`` of an agent's tasks that waited until they are due in line; return how many."""
    return _DUE_NOW.run(connection, at_agent=agent, now=now, size=size)


_pending = (
    tasks.c.agent == lanes.c.agent,
    tasks.c.destination == lanes.c.destination,
    tasks.c.state == literal(State.PENDING),
)
"""Conditions for a lane's Pending tasks. The state as a literal: only so does each database use the partial index."""
_CLAIM_ORDER = (tasks.c.priority.desc(), tasks.c.turn, tasks.c.id)


def _total(column: sa.ColumnElement[int]) -> sa.ColumnElement[int]:
    return sa.func.coalesce(sa.func.sum(column), sa.literal_column("0"))


_held = sa.select(_total(tasks.c.associations)).where(
    tasks.c.destination == destinations.c.name_key,
    tasks.c.state == literal(State.IN_PROGRESS),
)
_idle_here = (
    idle_associations.c.destination == destinations.c.name_key,
    idle_associations.c.until > sa.bindparam("now"),
)


def _kept_idle(*of_whom: sa.ColumnElement[bool]) -> sa.ScalarSelect[int]:
    """Return how many associations to a destination agent processes keep open, as a column."""
    kept = _total(idle_associations.c.associations)
    return sa.select(kept).where(*_idle_here, *of_whom).scalar_subquery()


_of_others = idle_associations.c.instance != sa.bindparam("instance", type_=sa.Text)
_STANDING = (
    lanes.c.destination,
    destinations.c.max_associations,
    destinations.c.paused_at,
    destinations.c.down_since,
    destinations.c.probe_at,
    _held.scalar_subquery().label("held"),
    _kept_idle(_of_others).label("idle"),
    sa.select(sa.func.min(idle_associations.c.until))
    .where(*_idle_here, _of_others)
    .scalar_subquery()
    .label("idle_until"),
    _kept_idle(~_of_others).label("own_idle"),
)
"""Of each lane what its destination allows, where that is set up, how many associations tasks have to it, and how many
agent processes keep open: those that ask (own) and others."""
_with_destination = lanes.outerjoin(destinations, destinations.c.name_key == lanes.c.destination)

_first = tasks.alias("first")
_first_in_line = (
    sa.select(tasks.c.id)
    .where(*_pending, ~tasks.c.waits)
    .order_by(*_CLAIM_ORDER)
    .limit(sa.literal_column("1"))
    .scalar_subquery()
    .correlate(lanes)
)
_LANES_IN_LINE = Statement(
    sa.select(*_STANDING, _first.c.priority, _first.c.turn, _first.c.id)
    .select_from(_with_destination.join(_first, _first.c.id == _first_in_line))
    .where(*same(lanes, "agent"))
    .order_by(_first.c.priority.desc(), _first.c.turn, _first.c.id)
)


def lanes_in_line(
    connection: sa.Connection, agent: str, instance: str, now: datetime
) -> Sequence[Row]:
    """Return an agent's lanes that have tasks in line, each with how it stands, in the claim order of their first ones."""
    return _LANES_IN_LINE.all(connection, at_agent=agent, instance=instance, now=now)


def first_due(waits: sa.ColumnElement[bool]) -> sa.ScalarSelect[Any]:
    """Return when a lane's first Pending task is due, of those that wait or of those that don't, as a column."""
    return sa.select(sa.func.min(tasks.c.due_at)).where(*_pending, waits).scalar_subquery()


_LANES = Statement(
    sa.select(
        *_STANDING,
        first_due(~tasks.c.waits).label("in_line"),
        first_due(tasks.c.waits).label("due_at"),
    )
    .select_from(_with_destination)
    .where(*same(lanes, "agent"))
)


def lanes_of(connection: sa.Connection, agent: str, instance: str, now: datetime) -> Sequence[Row]:
    """Return an agent's lanes, each with how it stands, when its first task came in line, and when the first is due that waits."""
    return _LANES.all(connection, at_agent=agent, instance=instance, now=now)


_SHARED = Statement(
    sa.select(
        destinations.c.max_associations,
        _held.scalar_subquery().label("held"),
        sa.select(sa.func.count())
        .select_from(tasks)
        .where(
            tasks.c.destination == destinations.c.name_key,
            tasks.c.state == literal(State.IN_PROGRESS),
        )
        .scalar_subquery()
        .label("tasks"),
        _kept_idle().label("idle"),
        sa.select(lanes.c.agent)
        .where(
            lanes.c.destination == destinations.c.name_key,
            sa.select(tasks.c.id).where(*_pending, ~tasks.c.waits).exists(),
        )
        .exists()
        .label("in_line"),
    ).where(*same(destinations, "name_key"))
)
_LOCK_DESTINATION = Statement(
    sa.select(destinations.c.name_key).where(*same(destinations, "name_key")).with_for_update()
)


def lock_destination(connection: sa.Connection, destination: str) -> None:
    """Have claims for a destination wait until this transaction ends: its associations are being counted."""
    _LOCK_DESTINATION.first(connection, at_name_key=destination)


def shared(connection: sa.Connection, destination: str, now: datetime) -> Row | None:
    """Return how a destination's associations are shared among tasks and agents; None: it is not set up."""
    found: Row | None = _SHARED.first(connection, at_name_key=destination, now=now)
    return found


_keep = upsert(idle_associations)
_KEEP_IDLE = Statement(
    _keep.values(
        given(idle_associations, "destination", "instance", "associations", "until")
    ).on_conflict_do_update(
        index_elements=["destination", "instance"],
        set_={name: _keep.excluded[name] for name in ("associations", "until")},
    )
)


def keep_idle(
    connection: sa.Connection, destination: str, instance: str, associations: int, until: datetime
) -> None:
    """Note that an agent process keeps associations open that no task uses."""
    _KEEP_IDLE.run(
        connection,
        destination=destination,
        instance=instance,
        associations=associations,
        until=until,
    )


_IDLE_OF = Statement(
    sa.select(idle_associations.c.associations).where(
        *same(idle_associations, "destination", "instance"),
        idle_associations.c.until > sa.bindparam("now"),
    )
)


def idle_of(connection: sa.Connection, destination: str, instance: str, now: datetime) -> int:
    """Return how many associations an agent process keeps open that no task uses."""
    return _IDLE_OF.scalar(connection, at_destination=destination, at_instance=instance, now=now) or 0  # fmt: skip


_of_process = same(idle_associations, "destination", "instance")
_USE_IDLE = Statement(
    idle_associations.update()
    .where(*_of_process)
    .values(associations=idle_associations.c.associations - sa.bindparam("used", type_=sa.Integer))
)
_FORGET_IDLE = Statement(
    idle_associations.delete().where(
        *_of_process, idle_associations.c.associations <= sa.literal_column("0")
    )
)


def use_idle(connection: sa.Connection, destination: str, instance: str, used: int) -> None:
    """Note that so many associations of those that an agent process kept open are a task's now."""
    _USE_IDLE.run(connection, at_destination=destination, at_instance=instance, used=used)
    _FORGET_IDLE.run(connection, at_destination=destination, at_instance=instance)


_HEAD = Statement(
    sa.select(tasks)
    .where(
        *same(tasks, "agent", "destination"),
        tasks.c.state == literal(State.PENDING),
        ~tasks.c.waits,
    )
    .order_by(*_CLAIM_ORDER)
    .limit(sa.bindparam("size", type_=sa.Integer))
    .with_for_update(skip_locked=True)
)


def head(connection: sa.Connection, agent: str, destination: str, size: int) -> Sequence[Row]:
    """Return the tasks at the head of a lane, locked; those that another claim has are passed over."""
    return _HEAD.all(connection, at_agent=agent, at_destination=destination, size=size)


def set_destination(connection: sa.Connection, destination: str, values: Mapping[str, Any]) -> bool:
    """Change how a destination stands; say whether it is there."""
    changed = connection.execute(
        destinations.update().where(destinations.c.name_key == destination).values(**values)
    )
    return changed.rowcount == 1


_SET_UP = Statement(
    destinations.update()
    .where(*same(destinations, "name_key"), destinations.c.down_since.is_not(None))
    .values(down_since=sa.null(), down_reason=sa.null(), probe_at=sa.null())
)


def set_up(connection: sa.Connection, destination: str) -> bool:
    """Note that a destination is up; say whether it was down."""
    return bool(_SET_UP.run(connection, at_name_key=destination))


_PROBE = Statement(
    destinations.update()
    .where(*same(destinations, "name_key"), destinations.c.down_since.is_not(None))
    .values(given(destinations, "probe_at"))
)


def probe(connection: sa.Connection, destination: str, at: datetime) -> None:
    """Have a destination tried at a moment, if it is down."""
    _PROBE.run(connection, at_name_key=destination, probe_at=at)


def standing(connection: sa.Connection, destination: str) -> Row | None:
    """Return how a destination stands."""
    found = sa.select(destinations).where(destinations.c.name_key == destination)
    return connection.execute(found).one_or_none()


_RELEASE_WAITING = Statement(
    tasks.update()
    .where(
        *same(tasks, "destination"),
        tasks.c.agent.in_(sa.select(lanes.c.agent).where(*same(lanes, "destination"))),
        tasks.c.state == literal(State.PENDING),
        tasks.c.unavailable_since.is_not(None),
        tasks.c.waits,
    )
    .values(given(tasks, "due_at") | {"waits": sa.false()})
)


def release_waiting(connection: sa.Connection, destination: str, now: datetime) -> None:
    """Make those tasks due that wait because a destination was unavailable."""
    _RELEASE_WAITING.run(connection, at_destination=destination, due_at=now)


_AGENTS_OF = Statement(sa.select(lanes.c.agent).where(*same(lanes, "destination")))


def agents_of(connection: sa.Connection, destination: str) -> Sequence[str]:
    """Return the agents that have had tasks for a destination."""
    return _AGENTS_OF.scalars(connection, at_destination=destination)


_DOWN_SINCE = Statement(
    sa.select(destinations.c.name_key).where(destinations.c.down_since <= sa.bindparam("before"))
)
_WAITED_TOO_LONG = Statement(
    sa.select(tasks)
    .where(
        *same(tasks, "destination"),
        tasks.c.agent.in_(sa.select(lanes.c.agent).where(*same(lanes, "destination"))),
        tasks.c.state == literal(State.PENDING),
        sa.func.coalesce(tasks.c.unavailable_since, tasks.c.due_at) <= sa.bindparam("before"),
    )
    .limit(sa.bindparam("size", type_=sa.Integer))
    .with_for_update(skip_locked=True)
)


def waited_too_long(connection: sa.Connection, before: datetime, size: int) -> Sequence[Row]:
    """Return Pending tasks whose destination has been down, and who have waited for it, since before a moment."""
    found: list[Row] = []
    for destination in _DOWN_SINCE.scalars(connection, before=before):
        found += _WAITED_TOO_LONG.all(
            connection, at_destination=destination, before=before, size=size
        )
    return found
