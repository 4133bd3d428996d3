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
from clara_results.store.statements import Row

PUT_IN_LINE = 1000
"""Tasks whose time has come that one claim puts in line, so that none takes long where very many are due at once."""
PROBE_LIMIT = timedelta(seconds=60)
"""How long a probe may take before the next one goes out."""


@dataclass(frozen=True, slots=True)
class Opening:
    """What a lane takes now.

    Attributes:
        room: How many tasks may be claimed of it; None: any number.
        opens_at: When it has room by itself; None: now, or not before something happens.
        down: Whether a task of it goes out as a probe.
    """

    room: int | None
    opens_at: datetime | None = None
    down: bool = False


def _opening(row: Row, now: datetime) -> Opening:
    if row.max_tasks is None:
        return Opening(None)  # no destination of that name is set up: nothing is known of it
    if row.paused_at is not None:
        return Opening(0)
    if row.down_since is not None:
        return Opening(1 if row.probe_at <= now else 0, opens_at=row.probe_at, down=True)
    return Opening(max(0, row.max_tasks - row.held))


def heads(
    connection: sa.Connection, agent: str, size: int, now: datetime
) -> tuple[Sequence[Row], set[str]]:
    """Return up to ``size`` due tasks that may be claimed, in the order of claims; and whose destinations are down.

    Nobody else claims for these destinations until this transaction ends.
    """
    found: list[Row] = []
    down: set[str] = set()
    store.lock_lanes(connection, agent)
    store.put_in_line(connection, agent, now, PUT_IN_LINE)
    for lane in store.lanes_in_line(connection, agent):
        if len(found) >= size and _claim_order(found[size - 1]) < _claim_order(lane):
            break  # neither this lane nor those behind it begin with anything sooner
        opening = _opening(lane, now)
        room = size if opening.room is None else min(size, opening.room)
        if room:
            found += store.head(connection, agent, lane.destination, room)
            found.sort(key=_claim_order)
        if opening.down:
            down.add(lane.destination)
    chosen = found[:size]
    return chosen, down & {row.destination for row in chosen}


def _claim_order(row: Row) -> tuple[int, int, int]:
    return (-row.priority, row.turn, row.id)


def next_claim(connection: sa.Connection, agent: str, now: datetime) -> datetime | None:
    """Return when a task can be claimed at the earliest, as things stand."""
    moments = []
    for lane in store.lanes_of(connection, agent):
        opening = _opening(lane, now)
        due_at = min((at for at in (lane.in_line, lane.due_at) if at is not None), default=None)
        if due_at is not None and (opening.room != 0 or opening.opens_at is not None):
            moments.append(max(due_at, opening.opens_at or due_at))
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
    if destination and store.set_up(connection, destination):
        store.release_waiting(connection, destination, now)
        transaction.pending_for.update(store.agents_of(connection, destination))
