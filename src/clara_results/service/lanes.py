"""Lanes: an agent's tasks for one destination, and whether the destination takes any now.

A lane is closed while its destination is paused by a person, has its limit of associations, or is *down*: found
unavailable. Each task in progress has one association or more: those that are free when it is claimed, as many as its
files can use; while others wait in line for the destination they share. Of a lane that is down one task at a time goes out as a probe, at most a minute apart; once a file of
it was answered the destination is up again, and all that waited for it is due at once.
"""

from collections import Counter
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
        room: How many associations are free, of which each task takes one at least; None: any number.
        opens_at: When it has room by itself; None: now, or not before something happens.
        down: Whether a task of it goes out as a probe.
    """

    room: int | None
    opens_at: datetime | None = None
    down: bool = False


def _opening(row: Row, now: datetime) -> Opening:
    if row.max_associations is None:
        return Opening(None)  # no destination of that name is set up: nothing is known of it
    if row.paused_at is not None:
        return Opening(0)
    if row.down_since is not None:
        return Opening(1 if row.probe_at <= now else 0, opens_at=row.probe_at, down=True)
    free = row.max_associations - row.held - row.idle
    return Opening(max(0, free), opens_at=row.idle_until if free <= 0 < free + row.idle else None)


@dataclass(frozen=True, slots=True)
class Heads:
    """Tasks that may be claimed.

    Attributes:
        tasks: In the order of claims.
        associations: How many each of them may have, in the same order.
        down: Those of their destinations that are down.
        idle: Those for which the claimer keeps associations open.
    """

    tasks: Sequence[Row]
    associations: Sequence[int]
    down: set[str]
    idle: set[str]


def heads(
    connection: sa.Connection,
    agent: str,
    size: int,
    now: datetime,
    instance: str = "",
    wanted: int = 1,
) -> Heads:
    """Return up to ``size`` due tasks that may be claimed.

    Nobody else claims for these destinations until this transaction ends.

    Args:
        connection: Within a transaction.
        agent: Whose.
        size: At most so many.
        now: The time.
        instance: The process that claims, if it says so.
        wanted: Associations that it can use for a task.
    """
    found: list[Row] = []
    down: set[str] = set()
    idle: set[str] = set()
    rooms: dict[str, int] = {}
    store.lock_lanes(connection, agent)
    store.put_in_line(connection, agent, now, PUT_IN_LINE)
    for lane in store.lanes_in_line(connection, agent, instance, now):
        if len(found) >= size and _claim_order(found[size - 1]) < _claim_order(lane):
            break  # neither this lane nor those behind it begin with anything sooner
        opening = _opening(lane, now)
        room = size if opening.room is None else min(size, opening.room)
        if room:
            found += store.head(connection, agent, lane.destination, room)
            found.sort(key=_claim_order)
            rooms[lane.destination] = wanted * size if opening.room is None else opening.room
        if opening.down:
            down.add(lane.destination)
        if lane.own_idle:
            idle.add(lane.destination)
    chosen = found[:size]
    of_chosen = Counter(row.destination for row in chosen)
    associations = []
    for row in chosen:
        of_chosen[row.destination] -= 1
        # One is left for each that is behind it.
        spare = rooms[row.destination] - of_chosen[row.destination]
        associations.append(_usable(row.files_pending + row.files_retry, min(wanted, spare)))
        rooms[row.destination] -= associations[-1]
    return Heads(chosen, associations, down & of_chosen.keys(), idle & of_chosen.keys())


def _claim_order(row: Row) -> tuple[int, int, int]:
    return (-row.priority, row.turn, row.id)


def share(connection: sa.Connection, row: Row, files: int, now: datetime) -> int:
    """Return how many associations a task in progress may have from now on.

    While others wait in line for its destination, one is left free, or given up by who has more than a fair share.

    Args:
        connection: Within a transaction; if it is more than before, claims for the destination wait until it ends.
        row: The task.
        files: How many of its files are still to be sent.
        now: The time.
    """
    allowed = _allowed(row, store.shared(connection, row.destination, now), files)
    if allowed > row.associations:
        store.lock_destination(connection, row.destination)
        allowed = _allowed(row, store.shared(connection, row.destination, now), files)
    return allowed


def _allowed(row: Row, standing: Row | None, files: int) -> int:
    if standing is None:
        return int(row.associations)
    free = max(0, standing.max_associations - standing.held - standing.idle)
    if not standing.in_line:
        return _usable(files, row.associations + free)
    fair = max(1, standing.max_associations // (standing.tasks + 1))
    if not free and row.associations > fair:
        return _usable(files, row.associations - 1)
    return _usable(files, row.associations + max(0, free - 1))


def _usable(files: int, associations: int) -> int:
    return max(1, min(associations, files))


def next_claim(
    connection: sa.Connection, agent: str, now: datetime, instance: str = ""
) -> datetime | None:
    """Return when a task can be claimed at the earliest, as things stand."""
    moments = []
    for lane in store.lanes_of(connection, agent, instance, now):
        opening = _opening(lane, now)
        due_at = min((at for at in (lane.in_line, lane.due_at) if at is not None), default=None)
        if due_at is not None and (opening.room != 0 or opening.opens_at is not None):
            moments.append(max(due_at, opening.opens_at or due_at))
    return min(moments, default=None)


def probing(connection: sa.Connection, destination: str, now: datetime) -> None:
    """Note that a task goes out to see whether a destination is up again; no other does meanwhile."""
    store.probe(connection, destination, now + PROBE_LIMIT)


def unprobed(connection: sa.Connection, destination: str, now: datetime) -> None:
    """Note that a task ended without a word on whether its destination is up: if it is down, the next one may try."""
    store.probe(connection, destination, now)


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
