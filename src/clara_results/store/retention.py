"""Statements on payloads, uploads, and what is removed when its time is over. One function a statement."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from clara_results.domain.tasks import State
from clara_results.store.schema import ENDED, agents, payloads, registrations, tasks, uploads
from clara_results.store.statements import Row, Statement, given, upsert

UNFINISHED = [state for state in State if not state.finished]
UNSUCCESSFUL = [state for state in State if state.finished and state != State.SUCCEEDED]


_new = upsert(payloads).values(given(payloads, "payload_id", "touched_at", "holds_files"))
_TOUCH = Statement(
    _new.on_conflict_do_update(
        index_elements=["payload_id"],
        set_={
            "touched_at": _new.excluded.touched_at,
            "holds_files": sa.or_(payloads.c.holds_files, _new.excluded.holds_files),
        },
    ).returning(payloads.c.removed_at)
)


def touch(
    connection: sa.Connection, payload_id: str, at: datetime, *, holds_files: bool
) -> datetime | None:
    """Note that a payload is registered on or written to, and keep all others from it until this transaction ends.

    Args:
        connection: Within a transaction.
        payload_id: Which payload.
        at: The time.
        holds_files: Whether it has files now that retention is to remove; what it had it keeps.

    Returns:
        When files of it were last removed, or None.
    """
    removed_at: datetime | None = _TOUCH.scalar(
        connection, payload_id=payload_id, touched_at=at, holds_files=holds_files
    )
    return removed_at


def removed_at(connection: sa.Connection, payload_id: str) -> datetime | None:
    """Return when files of a payload were last removed; None: never, or nothing is known of it any more."""
    found = sa.select(payloads.c.removed_at).where(payloads.c.payload_id == payload_id)
    moment: datetime | None = connection.scalar(found)
    return moment


def lock(connection: sa.Connection, payload_id: str) -> bool:
    """Keep all others from a payload until this transaction ends; False: another has it, or it is not known."""
    found = sa.select(payloads.c.payload_id).where(payloads.c.payload_id == payload_id)
    return connection.execute(found.with_for_update(skip_locked=True)).one_or_none() is not None


def set_payload(connection: sa.Connection, payload_id: str, values: Mapping[str, Any]) -> None:
    """Change what is noted of a payload."""
    connection.execute(
        payloads.update().where(payloads.c.payload_id == payload_id).values(**values)
    )


def in_use(connection: sa.Connection, payload_id: str) -> bool:
    """Tell whether an unfinished task needs a payload's files."""
    found = sa.select(tasks.c.id).where(
        tasks.c.payload_id == payload_id, tasks.c.state.in_(UNFINISHED)
    )
    return connection.execute(found.limit(1)).one_or_none() is not None


def due(
    connection: sa.Connection,
    succeeded: datetime | None,
    failed: datetime | None,
    limit: int,
    payload_id: str | None = None,
) -> Sequence[str]:
    """Return payloads whose files' time is over, those not touched for longest first.

    That is: no task of the payload is unfinished, and since a moment it was not touched and no task of it ended.

    Args:
        connection: Within a transaction.
        succeeded: The moment for payloads whose tasks are all Succeeded; None: they are kept.
        failed: The moment for payloads with a Failed or Canceled task; None: they are kept. A payload without tasks
            is kept for as long as either would be.
        limit: At most so many.
        payload_id: Look at this one only.
    """
    rules = []
    if succeeded is not None:
        late = sa.or_(tasks.c.state != State.SUCCEEDED, tasks.c.updated_at > succeeded)
        rules.append((succeeded, sa.and_(_with_task(), ~_with_task(late))))
    if failed is not None:
        late = sa.or_(tasks.c.state.in_(UNFINISHED), tasks.c.updated_at > failed)
        ended = _with_task(tasks.c.state.in_(UNSUCCESSFUL))
        rules.append((failed, sa.and_(ended, ~_with_task(late))))
    if succeeded is not None and failed is not None:
        rules.append((min(succeeded, failed), ~_with_task()))
    if not rules:
        return []
    found = (
        sa.select(payloads.c.payload_id)
        .where(
            payloads.c.holds_files,
            payloads.c.touched_at <= max(moment for moment, _ in rules),
            sa.or_(*[sa.and_(payloads.c.touched_at <= moment, rule) for moment, rule in rules]),
        )
        .order_by(payloads.c.touched_at)
        .limit(limit)
    )
    if payload_id is not None:
        found = found.where(payloads.c.payload_id == payload_id)
    return connection.scalars(found).all()


def _with_task(*where: sa.ColumnElement[bool]) -> sa.Exists:
    found = sa.select(tasks.c.id).where(tasks.c.payload_id == payloads.c.payload_id, *where)
    return found.correlate(payloads).exists()


def upload(connection: sa.Connection, payload_id: str, uri: str) -> Row | None:
    """Return what is known of an uploaded file."""
    found = sa.select(uploads).where(uploads.c.payload_id == payload_id, uploads.c.uri == uri)
    return connection.execute(found).one_or_none()


def add_upload(connection: sa.Connection, values: Mapping[str, Any]) -> None:
    """Note an uploaded file; one that is known already stays as it is."""
    connection.execute(upsert(uploads).values(**values).on_conflict_do_nothing())


def set_upload(connection: sa.Connection, values: Mapping[str, Any]) -> None:
    """Note an uploaded file in place of what was known of it."""
    new = upsert(uploads).values(**values)
    keys = ["payload_id", "uri"]
    changed = {name: new.excluded[name] for name in values if name not in keys}
    connection.execute(new.on_conflict_do_update(index_elements=keys, set_=changed))


def uploads_of(connection: sa.Connection, payload_id: str, limit: int) -> Sequence[str]:
    """Return URIs of a payload's uploaded files."""
    found = sa.select(uploads.c.uri).where(uploads.c.payload_id == payload_id)
    return connection.scalars(found.order_by(uploads.c.uri).limit(limit)).all()


def delete_uploads(
    connection: sa.Connection, payload_id: str, uris: Sequence[str] | None = None
) -> None:
    """Forget uploaded files of a payload: some, or all."""
    found = uploads.delete().where(uploads.c.payload_id == payload_id)
    connection.execute(found if uris is None else found.where(uploads.c.uri.in_(uris)))


def ended_tasks(connection: sa.Connection, before: datetime, limit: int) -> Sequence[Row]:
    """Return id, registration and number of files of tasks that ended before a moment, the oldest first, locked."""
    total = sum((column for column in tasks.c if column.name.startswith("files_")), sa.literal(0))
    found = (
        sa.select(tasks.c.id, tasks.c.registration_id, total.label("files"))
        .where(ENDED, tasks.c.updated_at <= before)
        .order_by(tasks.c.updated_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    return connection.execute(found).all()


def delete_tasks(connection: sa.Connection, ids: Sequence[int]) -> None:
    """Remove tasks with their files, attempts and history."""
    connection.execute(tasks.delete().where(tasks.c.id.in_(ids)))


def delete_registrations(connection: sa.Connection, ids: Sequence[int]) -> None:
    """Remove those of some registrations that have no task any more."""
    left = sa.select(tasks.c.id).where(tasks.c.registration_id == registrations.c.id)
    connection.execute(registrations.delete().where(registrations.c.id.in_(ids), ~left.exists()))


def forgettable_payloads(connection: sa.Connection, before: datetime, limit: int) -> Sequence[str]:
    """Return payloads not touched since a moment that have neither tasks nor files to be removed, locked."""
    found = (
        sa.select(payloads.c.payload_id)
        .where(~payloads.c.holds_files, payloads.c.touched_at <= before, ~_with_task())
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    return connection.scalars(found).all()


def delete_payloads(connection: sa.Connection, ids: Sequence[str]) -> None:
    """Forget payloads."""
    connection.execute(payloads.delete().where(payloads.c.payload_id.in_(ids)))


def delete_agents(connection: sa.Connection, before: datetime) -> int:
    """Forget agent processes not seen since a moment; return how many."""
    return connection.execute(agents.delete().where(agents.c.last_seen_at <= before)).rowcount
