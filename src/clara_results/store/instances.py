"""Statements on DICOM instances: what was sent to which receiver, and what people find it by. One function a statement."""

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from clara_results.store.schema import files, instances, receivers, series, tasks
from clara_results.store.statements import Row, Statement, given, same, upsert

UIDS_PER_QUERY = 500
SUBJECT = ("study_instance_uid", "series_instance_uid", "accession_number", "patient_id", "issuer_of_patient_id")  # fmt: skip
"""What of an instance's series people find it by."""
PATIENT = SUBJECT[2:]
"""Those of them that are patient data."""

_RECEIVER = Statement(sa.select(receivers.c.id).where(*same(receivers, "address")))
_INSERT_RECEIVER = Statement(
    upsert(receivers).values(given(receivers, "address")).on_conflict_do_nothing()
)


def receiver_made(connection: sa.Connection, address: str) -> int:
    """Return the receiver at an address, and have one if there is none."""
    found: int | None = _RECEIVER.scalar(connection, at_address=address)
    if found is None:
        _INSERT_RECEIVER.run(connection, address=address)
        found = _RECEIVER.scalar(connection, at_address=address)
    assert found is not None  # noqa: S101  (it was there, or is now)
    return found


def known(connection: sa.Connection, receiver: int, uids: Sequence[str]) -> dict[str, Row]:
    """Return what is known of instances at a receiver by their UIDs, locked."""
    found: dict[str, Row] = {}
    in_order = sorted(uids)  # all lock in one order, lest two wait for each other
    column = instances.c.sop_instance_uid
    by_bytes = column.collate("C") if connection.dialect.name == "postgresql" else column
    for start in range(0, len(in_order), UIDS_PER_QUERY):
        some = in_order[start : start + UIDS_PER_QUERY]
        query = (
            sa.select(instances)
            .where(instances.c.receiver == receiver, instances.c.sop_instance_uid.in_(some))
            .order_by(by_bytes)
            .with_for_update()
        )
        found |= {row.sop_instance_uid: row for row in connection.execute(query)}
    return found


_ANNOUNCED = ("sha256", "task_id", "attempt", "doubtful", "updated_at")
_insert = upsert(instances)
_ANNOUNCE = Statement(
    _insert.values(
        given(instances, "receiver", "sop_instance_uid", *_ANNOUNCED) | {"delivered": sa.false()}
    ).on_conflict_do_update(
        index_elements=["receiver", "sop_instance_uid"],
        set_={name: _insert.excluded[name] for name in (*_ANNOUNCED, "delivered")},
    )
)


def announce(connection: sa.Connection, rows: Sequence[Mapping[str, Any]]) -> None:
    """Note under which digest instances are about to be sent; in the order of their UIDs, lest two wait for each other."""
    _ANNOUNCE.run_many(connection, sorted(rows, key=lambda row: row["sop_instance_uid"]))


_DELIVERED = Statement(
    instances.update()
    .where(*same(instances, "receiver", "sop_instance_uid", "task_id"))
    .values(given(instances, "updated_at") | {"delivered": sa.true()})
)


def note_delivered(connection: sa.Connection, rows: Sequence[Mapping[str, Any]]) -> None:
    """Note that a receiver has what a task announced; ``at_receiver``, ``at_sop_instance_uid``, ``at_task_id`` say which."""
    _DELIVERED.run_many(connection, rows)


_FORGET = Statement(
    instances.delete().where(
        *same(instances, "receiver", "sop_instance_uid", "task_id"),
        ~instances.c.delivered,
        ~instances.c.doubtful,
    )
)


def forget(connection: sa.Connection, rows: Sequence[Mapping[str, Any]]) -> None:
    """Forget what a task announced and the receiver refused, unless something may have come to it before."""
    _FORGET.run_many(connection, rows)


_SERIES = Statement(sa.select(series.c.id).where(*same(series, "task", *SUBJECT)))
_INSERT_SERIES = Statement(
    series.insert().values(given(series, "task", *SUBJECT)).returning(series.c.id)
)


def series_made(connection: sa.Connection, task: int, subject: Sequence[str]) -> int:
    """Return a task's series of a SUBJECT, and have it if it is not there."""
    values = {"task": task, **dict(zip(SUBJECT, subject, strict=True))}
    wanted = {f"at_{name}": value for name, value in values.items()}
    found: int | None = _SERIES.scalar(connection, **wanted)
    made: int = _INSERT_SERIES.scalar(connection, **values) if found is None else found
    return made


_DESCRIBE = Statement(
    files.update()
    .where(*same(files, "task", "uri"))
    .values(given(files, "sop_instance_uid", "sop_class_uid", "series"))
)


def describe(connection: sa.Connection, rows: Sequence[Mapping[str, Any]]) -> int:
    """Note what instances files hold; return how many files there were. ``at_task`` and ``at_uri`` say which."""
    return _DESCRIBE.run_many(connection, rows)


def found_by(text: str, *, patients: bool) -> sa.Select[tuple[int]]:
    """Return what selects the tasks that an identifier names: a UID, with ``patients`` an accession number or patient id too."""
    columns = SUBJECT[:4] if patients else SUBJECT[:2]
    parts: list[sa.Select[tuple[int]]] = [
        sa.select(series.c.task).where(series.c[name] == text, series.c[name] != sa.text("''"))
        for name in columns
    ]
    parts.append(
        sa.select(files.c.task).where(
            files.c.sop_instance_uid == text, files.c.sop_instance_uid.is_not(None)
        )
    )
    return sa.select(sa.union(*parts).subquery().c.task)


def forget_patients(connection: sa.Connection, payload_id: str) -> None:
    """Forget the patient data of a payload's instances."""
    of_payload = sa.select(tasks.c.id).where(tasks.c.payload_id == payload_id)
    connection.execute(
        series.update().where(series.c.task.in_(of_payload)).values(dict.fromkeys(PATIENT, ""))
    )
