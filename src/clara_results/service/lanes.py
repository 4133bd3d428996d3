"""Lanes: an agent's tasks for one destination, and whether the destination takes any now.

A lane is closed while its destination is paused by a person, has its limit of tasks in progress, or is *down*:
found unavailable. Of a lane that is down one task at a time goes out as a probe, at most a minute apart; once a file of
it was answered the destination is up again, and all that waited for it is due at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import sqlalchemy as sa

from clara_results.store import lanes as store
from clara_results.store.database import Transaction

PROBE_LIMIT = timedelta(seconds=60)
"""How long a probe may take before the next one goes out."""


@dataclass(frozen=True, slots=True)
class Lane:
    """One lane as it stands.

    Attributes:
        destination: Its destination's key; empty where tasks name none; None for all names together that are no
            destinations: there may be any number of them, and none has a limit.
        room: How many tasks may be claimed of it now; None: any number.
        opens_at: When it has room by itself; None: now, or not before something happens.
        down: Whether a task of it goes out as a probe.
    """

    destination: str | None
    room: int | None
    opens_at: datetime | None = None
    down: bool = False


def lanes(
    connection: sa.Connection, agent: str, now: datetime, *, lock: bool = False
) -> list[Lane]:
    """Return an agent's lanes; with ``lock`` nobody else claims for their destinations meanwhile."""
    rows = store.lanes_of(connection, agent)
    limited = sorted(row.destination for row in rows)
    if lock and limited:
        store.lock_lanes(connection, limited)
        rows = store.lanes_of(connection, agent)
    held = store.held(connection, limited) if limited else {}
    return [
        Lane("", None),
        Lane(None, None),
        *[_lane(row, held.get(row.destination, 0), now) for row in rows],
    ]


def _lane(row: store.Row, held: int, now: datetime) -> Lane:
    if row.paused_at is not None:
        return Lane(row.destination, 0)
    if row.down_since is not None:
        room = 1 if row.probe_at <= now else 0
        return Lane(row.destination, room, opens_at=row.probe_at, down=True)
    return Lane(row.destination, max(0, row.max_tasks - held))


def heads(
    connection: sa.Connection, agent: str, size: int, now: datetime
) -> tuple[Sequence[store.Row], set[str]]:
    """Return up to ``size`` due tasks that may be claimed, in the order of claims; and whose destinations are down."""
    found: list[store.Row] = []
    down: set[str] = set()
    for lane in lanes(connection, agent, now, lock=True):
        room = size if lane.room is None else min(size, lane.room)
        if room:
            found += store.head(connection, agent, lane.destination, now, room)
        if lane.down and lane.destination is not None:
            down.add(lane.destination)
    found.sort(key=lambda row: (-row.priority, row.turn, row.id))
    chosen = found[:size]
    return chosen, down & {row.destination for row in chosen}


def next_claim(connection: sa.Connection, agent: str, now: datetime) -> datetime | None:
    """Return when a task can be claimed at the earliest, as things stand."""
    moments = []
    for lane in lanes(connection, agent, now):
        if lane.room == 0 and lane.opens_at is None:
            continue
        due_at = store.next_due(connection, agent, lane.destination)
        if due_at is not None:
            moments.append(max(due_at, lane.opens_at or due_at))
    return min(moments, default=None)


def probing(connection: sa.Connection, destination: str, now: datetime) -> None:
    """Note that a task goes out to see whether a destination is up again; no other does meanwhile."""
    store.set_destination(connection, destination, {"probe_at": now + PROBE_LIMIT})


def found_down(
    connection: sa.Connection,
    destination: str,
    now: datetime,
    probe_at: datetime,
    reason: str | None,
) -> None:
    """Note that a destination could not be reached."""
    standing = store.standing(connection, destination)
    if standing is not None:
        values = {
            "down_since": standing.down_since or now,
            "down_reason": reason,
            "probe_at": probe_at,
        }
        store.set_destination(connection, destination, values)


def found_up(transaction: Transaction, destination: str, now: datetime) -> None:
    """Note that a destination has answered; what waited for it is due."""
    connection = transaction.connection
    standing = store.standing(connection, destination)
    if standing is None or standing.down_since is None:
        return
    up = {"down_since": None, "down_reason": None, "probe_at": None}
    store.set_destination(connection, destination, up)
    store.release_waiting(connection, destination, now)
    transaction.pending_for.update(store.agents_of(connection, destination))
