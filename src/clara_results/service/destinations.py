"""Destinations and agent processes: who results go to, and who carries them."""

from collections.abc import Mapping
from datetime import timedelta

import sqlalchemy as sa

from clara_results.domain import names
from clara_results.domain.clock import Clock
from clara_results.domain.tasks import State
from clara_results.errors import (
    Conflict,
    FieldError,
    InvalidInput,
    NotFound,
)
from clara_results.service import lanes
from clara_results.store import destinations as store
from clara_results.store import lanes as lane_store
from clara_results.store import tasks as task_store
from clara_results.store.database import Transaction
from clara_results.store.statements import Row
from clara_results.wire.destinations import (
    AgentInstance,
    AgentPage,
    Destination,
    DestinationPage,
    DestinationView,
)

SHOWN_FOR = timedelta(days=1)
KINDS = ("dicom",)


def checked(body: Destination) -> Destination:
    """Check a destination.

    Raises:
        InvalidInput: ``errors`` has each fault.
    """
    faults = []
    for field, check in (
        ("name", lambda: names.destination_name(body.name)),
        ("aeTitle", lambda: names.ae_title(body.ae_title)),
        ("host", lambda: names.host(body.host)),
        ("port", lambda: names.port(body.port)),
        (
            "callingAeTitle",
            lambda: body.calling_ae_title is None or names.ae_title(body.calling_ae_title),
        ),
    ):
        try:
            check()
        except InvalidInput as error:
            faults.append(FieldError(field, str(error)))
    if not 1 <= body.max_tasks <= 1000:
        faults.append(FieldError("maxTasks", f"{body.max_tasks} is not within 1 to 1000"))
    if body.kind not in KINDS:
        faults.append(FieldError("kind", f"that is not one of {', '.join(KINDS)}"))
    if faults:
        raise InvalidInput(
            "; ".join(f.message for f in faults), code="invalid-destination", errors=faults
        )
    return body


def all_destinations(connection: sa.Connection) -> DestinationPage:
    """Return all destinations, by name."""
    counts = task_store.unfinished_by_destination(connection)
    return DestinationPage(items=[_view(row, counts) for row in store.all_destinations(connection)])


def find(connection: sa.Connection, name: str) -> DestinationView:
    """Return a destination.

    Raises:
        NotFound: There is none of that name.
    """
    row = store.destination(connection, names.name_key(name))
    if row is None:
        raise _unknown()
    return _view(row, task_store.unfinished_by_destination(connection))


def add(transaction: Transaction, body: Destination, clock: Clock) -> DestinationView:
    """Add a checked destination.

    Raises:
        Conflict: The name is taken.
    """
    _free(transaction, body.name)
    store.insert_destination(transaction.connection, _columns(body, clock))
    return find(transaction.connection, body.name)


def replace(
    transaction: Transaction, name: str, body: Destination, clock: Clock
) -> DestinationView:
    """Change a destination to a checked one.

    Raises:
        NotFound: There is none of that name.
        Conflict: Its new name is taken.
    """
    key = names.name_key(name)
    if names.name_key(body.name) != key:
        _free(transaction, body.name)
    if not store.update_destination(transaction.connection, key, _columns(body, clock)):
        raise _unknown()
    lanes.found_up(
        transaction, names.name_key(body.name), clock.now()
    )  # what was wrong may be mended
    _wake(transaction, body.name)
    return find(transaction.connection, body.name)


def pause(transaction: Transaction, name: str, clock: Clock) -> DestinationView:
    """Let no more tasks for a destination be claimed; what is in progress goes on.

    Raises:
        NotFound: There is none of that name.
    """
    there = find(transaction.connection, name)
    if there.paused_at is None:
        key = names.name_key(name)
        lane_store.set_destination(transaction.connection, key, {"paused_at": clock.now()})
    return find(transaction.connection, name)


def resume(transaction: Transaction, name: str) -> DestinationView:
    """Let tasks for a destination be claimed again.

    Raises:
        NotFound: There is none of that name.
    """
    if not lane_store.set_destination(
        transaction.connection, names.name_key(name), {"paused_at": None}
    ):
        raise _unknown()
    _wake(transaction, name)
    return find(transaction.connection, name)


def remove(transaction: Transaction, name: str) -> DestinationView:
    """Remove a destination and return what it was.

    Raises:
        NotFound: There is none of that name.
    """
    gone = find(transaction.connection, name)
    store.delete_destination(transaction.connection, names.name_key(name))
    _wake(transaction, name)  # what waited for it must hear that it is gone
    return gone


def agents(connection: sa.Connection, clock: Clock) -> AgentPage:
    """Return the agent processes seen in the last day, and what each holds."""
    held: dict[tuple[str, str], list[str]] = {}
    for row in task_store.held_by(connection):
        held.setdefault((row.agent, row.instance), []).append(row.task_id)
    rows = store.agents_since(connection, clock.now() - SHOWN_FOR)
    return AgentPage(
        items=[
            AgentInstance(
                agent=row.agent,
                instance=row.instance,
                version=row.version,
                last_seen_at=row.last_seen_at,
                holds=held.get((row.agent, row.instance), []),
            )
            for row in rows
        ]
    )


def _wake(transaction: Transaction, name: str) -> None:
    agents = lane_store.agents_of(transaction.connection, names.name_key(name))
    transaction.pending_for.update(agents)


def _free(transaction: Transaction, name: str) -> None:
    if store.destination(transaction.connection, names.name_key(name)) is not None:
        raise Conflict(
            f"there is a destination {name!r} already; names compare without case",
            code="destination-exists",
        )


def _unknown() -> NotFound:
    return NotFound("there is no destination of that name", code="destination-not-found")


def _columns(body: Destination, clock: Clock) -> dict[str, object]:
    return {
        "name_key": names.name_key(body.name),
        "name": body.name,
        "kind": body.kind,
        "ae_title": body.ae_title,
        "host": body.host,
        "port": body.port,
        "calling_ae_title": body.calling_ae_title,
        "max_tasks": body.max_tasks,
        "updated_at": clock.now(),
    }


def _view(row: Row, counts: Mapping[tuple[str, str], int]) -> DestinationView:
    return DestinationView(
        name=row.name,
        kind=row.kind,
        ae_title=row.ae_title,
        host=row.host,
        port=row.port,
        calling_ae_title=row.calling_ae_title,
        max_tasks=row.max_tasks,
        paused_at=row.paused_at,
        down_since=row.down_since,
        down_reason=row.down_reason,
        probe_at=row.probe_at,
        pending=counts.get((row.name_key, State.PENDING), 0),
        in_progress=counts.get((row.name_key, State.IN_PROGRESS), 0),
    )
