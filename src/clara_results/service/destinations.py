"""Destinations and agent processes: who results go to, and who carries them."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import fields
from dataclasses import replace as replace_fields
from datetime import timedelta
from functools import partial
from typing import Any

import sqlalchemy as sa

from clara_results.domain import names, statuses
from clara_results.domain.clock import Clock
from clara_results.domain.receivers import DICOM, DICOMWEB, KINDS, AuthKind, Commit
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
from clara_results.wire.codec import camel, from_json, to_json
from clara_results.wire.destinations import (
    AgentInstance,
    AgentPage,
    Destination,
    DestinationPage,
    DestinationView,
)

SHOWN_FOR = timedelta(days=1)
SECRET_RULE = (
    "not the name of a file in the agent's folder of secrets: letters, digits, '.', '_', '-'"  # noqa: S105
)
_SECRET = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,254}", re.ASCII)
_OF_KIND: dict[str, dict[str, Callable[[Any], object]]] = {
    DICOM: {
        "ae_title": names.ae_title,
        "host": names.host,
        "port": names.port,
        "calling_ae_title": names.ae_title,
    },
    DICOMWEB: {"url": names.http_url},
}
"""What only destinations of one kind have, with its rules; all but what is optional must be there."""
_OPTIONAL = {"calling_ae_title"}


def checked(body: Destination) -> Destination:
    """Check a destination, and return it with its statuses in their normal form.

    Raises:
        InvalidInput: ``errors`` has each fault.
    """
    faults: list[FieldError] = []
    normal: dict[str, str] = {}

    def check(field: str, rule: Callable[[], object]) -> None:
        try:
            rule()
        except InvalidInput as error:
            faults.append(FieldError(field, str(error)))

    check("name", lambda: names.destination_name(body.name))
    faults += _kind_faults(body)
    for field, rule in _OF_KIND.get(body.kind, {}).items():
        value = getattr(body, field)
        if value is not None:
            check(camel(field), partial(rule, value))
    if not 1 <= body.max_associations <= 1000:
        faults.append(
            FieldError("maxAssociations", f"{body.max_associations} is not within 1 to 1000")
        )
    check("statuses", lambda: normal.update(statuses.checked(body.statuses or {})))
    faults += _tls_faults(body) + _auth_faults(body)
    if faults:
        raise InvalidInput(
            "; ".join(f"{f.field}: {f.message}" for f in faults),
            code="invalid-destination",
            errors=faults,
        )
    return replace_fields(body, statuses=normal or None)


def _kind_faults(body: Destination) -> list[FieldError]:
    """Return what a destination has that its kind has not, or lacks."""
    if body.kind not in KINDS:
        return [FieldError("kind", f"that is not one of {', '.join(KINDS)}")]
    mine = _OF_KIND[body.kind]
    others = set().union(*_OF_KIND.values()) - set(mine)
    lacking = [name for name in mine if name not in _OPTIONAL and getattr(body, name) is None]
    strange = [name for name in sorted(others) if getattr(body, name) is not None]
    faults = [FieldError(camel(name), f"a {body.kind} destination needs it") for name in lacking]
    faults += [FieldError(camel(name), f"a {body.kind} destination has none") for name in strange]
    if body.kind == DICOMWEB and body.commitment is not Commit.OFF:
        faults.append(FieldError("commitment", "only dicom destinations can be asked to commit"))
    return faults


def _tls_faults(body: Destination) -> list[FieldError]:
    if body.tls is None:
        return []
    faults = [
        FieldError(f"tls.{field}", SECRET_RULE)
        for field in ("ca", "certificate", "key")
        if (name := getattr(body.tls, field)) is not None and not _SECRET.fullmatch(name)
    ]
    if body.tls.key is not None and body.tls.certificate is None:
        faults.append(FieldError("tls.certificate", "a key without its certificate"))
    if body.kind == DICOMWEB and not (body.url or "").lower().startswith("https:"):
        faults.append(FieldError("tls", "the URL is not https"))
    return faults


def _auth_faults(body: Destination) -> list[FieldError]:
    auth = body.auth
    if auth is None:
        return []
    needed = {
        AuthKind.BASIC: ("user_name", "secret") if body.kind == DICOMWEB else ("user_name",),
        AuthKind.BEARER: ("secret",),
        AuthKind.OAUTH2: ("token_url", "client_id", "secret"),
    }[auth.kind]
    faults = [
        FieldError(f"auth.{camel(field)}", f"{auth.kind} needs it")
        for field in needed
        if not getattr(auth, field)
    ]
    if auth.secret is not None and not _SECRET.fullmatch(auth.secret):
        faults.append(FieldError("auth.secret", SECRET_RULE))
    if auth.kind is AuthKind.OAUTH2:
        if body.kind != DICOMWEB:
            faults.append(FieldError("auth.kind", "DIMSE knows basic and bearer"))
        try:
            names.http_url(auth.token_url or "http://-")
        except InvalidInput as error:
            faults.append(FieldError("auth.tokenUrl", str(error)))
    return faults


def setting(connection: sa.Connection, name_key: str) -> Destination | None:
    """Return a destination as it was set up, found by its name's key."""
    row = store.destination(connection, name_key)
    return None if row is None else from_json(Destination, json.loads(row.settings))


def all_destinations(connection: sa.Connection) -> DestinationPage:
    """Return all destinations, by name."""
    work = task_store.unfinished_by_destination(connection)
    return DestinationPage(items=[_view(row, work) for row in store.all_destinations(connection)])


def find(connection: sa.Connection, name: str) -> DestinationView:
    """Return a destination.

    Raises:
        NotFound: There is none of that name.
    """
    row = store.destination(connection, names.name_key(name))
    if row is None:
        raise unknown()
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
        raise unknown()
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
        raise unknown()
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
        held.setdefault((row.agent, row.instance or ""), []).append(row.task_id)
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


def unknown() -> NotFound:
    """Return what is raised where there is no destination of a name."""
    return NotFound("there is no destination of that name", code="destination-not-found")


def _columns(body: Destination, clock: Clock) -> dict[str, object]:
    return {
        "name_key": names.name_key(body.name),
        "name": body.name,
        "kind": body.kind,
        "settings": to_json(body).decode(),
        "max_associations": body.max_associations,
        "updated_at": clock.now(),
    }


def _view(row: Row, work: Mapping[tuple[str, str], Row]) -> DestinationView:
    body = from_json(Destination, json.loads(row.settings))

    def of(state: State) -> Row | None:
        return work.get((row.name_key, state))

    pending, held, awaiting = map(of, (State.PENDING, State.IN_PROGRESS, State.AWAITING_COMMITMENT))
    return DestinationView(
        **{field.name: getattr(body, field.name) for field in fields(Destination)},
        paused_at=row.paused_at,
        down_since=row.down_since,
        down_reason=row.down_reason,
        probe_at=row.probe_at,
        pending=pending.tasks if pending else 0,
        in_progress=held.tasks if held else 0,
        awaiting_commitment=awaiting.tasks if awaiting else 0,
        associations=held.associations if held else 0,
    )
