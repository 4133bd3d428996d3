"""The migrations lead to the tables that ``schema`` declares, and the tables refuse what must not be."""

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from clara_results.domain.tasks import Outcome, State
from clara_results.errors import ServiceUnavailable
from clara_results.store import schema
from clara_results.store.database import Database, open_database
from clara_results.store.migrations import migrate

NOW = datetime(2026, 1, 2, 3, 4, 5, 678_901, tzinfo=UTC)
VERSIONS = "alembic_version"


def _parts(body: str) -> list[str]:
    """Split a CREATE TABLE's body at its outermost commas; their order means nothing."""
    depth, parts = 0, [""]
    for char in body:
        depth += (char == "(") - (char == ")")
        if char == "," and not depth:
            parts.append("")
        else:
            parts[-1] += char
    return sorted(" ".join(part.split()) for part in parts)


def _sqlite(connection: sa.Connection) -> dict[str, Any]:
    rows = connection.execute(
        sa.text("SELECT name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite_%'")
    )
    described: dict[str, Any] = {}
    for name, sql in rows:
        head, body, tail = re.fullmatch(r"([^(]*)\((.*)\)([^)]*)", sql, re.DOTALL).groups()  # type: ignore[union-attr]
        if "INDEX" in head:
            described[name] = " ".join(sql.split())
        else:
            described[name] = (" ".join(head.split()), _parts(body), tail.strip())
    return described


_POSTGRESQL = {
    "columns": "SELECT table_name, column_name, data_type, is_nullable, column_default, is_identity"
    " FROM information_schema.columns WHERE table_schema = 'public'",
    "constraints": "SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid)"
    " FROM pg_constraint WHERE connamespace = 'public'::regnamespace",
    "indexes": "SELECT tablename, indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'",
}


def _described(engine: sa.Engine) -> dict[str, Any]:
    """Return the tables in the database's own words."""
    with engine.begin() as connection:
        if engine.dialect.name == "sqlite":
            described = _sqlite(connection)
            del described[VERSIONS]
            return described
        return {
            kind: sorted(
                tuple(map(str, row)) for row in connection.execute(sa.text(query)) if row[0] != VERSIONS
            )
            for kind, query in _POSTGRESQL.items()
        }  # fmt: skip


def test_the_migrations_lead_to_the_declared_tables(database: Database) -> None:
    migrated = _described(database.engine)
    with database.engine.begin() as connection:
        schema.metadata.drop_all(connection)
        schema.metadata.create_all(connection)
    declared = _described(database.engine)
    assert migrated == declared
    assert migrated


def test_migrating_again_changes_nothing(database: Database) -> None:
    before = _described(database.engine)
    migrate(database.engine)
    assert _described(database.engine) == before


def test_a_newer_versions_database_is_refused(database: Database) -> None:
    with database.engine.begin() as connection:
        connection.execute(sa.text(f"UPDATE {VERSIONS} SET version_num = '9999'"))  # noqa: S608
    with pytest.raises(ServiceUnavailable, match="step 9999") as raised:
        migrate(database.engine)
    assert raised.value.code == "database-newer"


def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(b"not a database, but long enough to look at" * 100)
    database = open_database(f"sqlite:///{path}")
    try:
        with pytest.raises(ServiceUnavailable, match=r"notes\.txt"):
            migrate(database.engine)
    finally:
        database.close()
    assert path.read_bytes().startswith(b"not a database")


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ServiceUnavailable, match="file"):
        open_database(f"sqlite:///{tmp_path}/file/test.db")


@given(
    st.datetimes(datetime(1, 1, 1), datetime(9999, 12, 31), timezones=st.just(UTC))  # noqa: DTZ001
)
def test_a_time_is_kept_to_the_microsecond_in_the_order_of_time(moment: datetime) -> None:
    kind = schema.Instant()
    stored = kind.process_bind_param(moment, None)
    assert isinstance(stored, int)
    assert kind.process_result_value(stored, None) == moment
    later = kind.process_bind_param(moment + timedelta(microseconds=1), None)
    assert later == stored + 1
    assert kind.process_bind_param(None, None) is None
    assert kind.process_result_value(None, None) is None


# Legal rows, one of each table that has rules; what is below changes one thing at a time.

REGISTRATION = {"id": 1, "body_sha256": "b", "scope_sha256": "s", "created_at": NOW}
TASK: dict[str, Any] = {
    "id": 1, "task_id": "t", "registration_id": 1, "element": 0, "agent": "a", "job_id": "j",
    "pipeline_id": "p", "payload_id": "y", "destination": "", "state": State.PENDING, "priority": 0,
    "turn": 1, "retries": 0, "max_retries": 3, "attempt": 0, "created_at": NOW, "updated_at": NOW,
    "due_at": NOW, "waits": False, "unavailable_times": 0, "associations": 0,
    **{f"files_{outcome}": 0 for outcome in Outcome},
}  # fmt: skip
RUNNING = {
    "state": State.IN_PROGRESS, "due_at": None, "lease_token": "x", "lease_seconds": 60,
    "lease_expires_at": NOW, "attempt": 1, "associations": 1,
}  # fmt: skip
ROWS: dict[str, dict[str, Any]] = {
    "registrations": REGISTRATION,
    "tasks": TASK,
    "files": {"task": 1, "position": 0, "uri": "a", "outcome": Outcome.PENDING},
    "attempts": {"task": 1, "attempt": 1, "lease_token": "x", "claimed_at": NOW},
    "history": {"task": 1, "at": NOW, "event": "registered", "state": State.PENDING},
    "destinations": {
        "name_key": "d", "name": "D", "kind": "dicom", "settings": "{}",
        "max_associations": 2, "updated_at": NOW,
    },
    "datasets": {"dataset_id": "d", "task_id": "t", "job_id": "j", "payload_id": "y", "touched_at": NOW},
}  # fmt: skip
FINISHED: dict[str, Any] = {"due_at": None, "files_delivered": 1}
ILLEGAL: list[tuple[str, str, dict[str, Any]]] = [
    ("tasks", "ck_tasks_state", {"state": "Lost", "due_at": None}),
    ("tasks", "ck_tasks_priority", {"priority": 101}),
    ("tasks", "ck_tasks_priority", {"priority": -101}),
    ("tasks", "ck_tasks_retries", {"retries": 4}),
    ("tasks", "ck_tasks_retries", {"retries": -1}),
    ("tasks", "ck_tasks_due_while_pending", {"due_at": None}),
    ("tasks", "ck_tasks_due_while_pending", RUNNING | {"due_at": NOW}),
    ("tasks", "ck_tasks_waits_while_pending", RUNNING | {"waits": True}),
    ("tasks", "ck_tasks_lease_while_in_progress", RUNNING | {"lease_token": None}),
    ("tasks", "ck_tasks_lease_while_in_progress", RUNNING | {"lease_seconds": None}),
    ("tasks", "ck_tasks_lease_while_in_progress", RUNNING | {"lease_expires_at": None}),
    ("tasks", "ck_tasks_lease_while_in_progress", RUNNING | {"associations": 0}),
    ("tasks", "ck_tasks_lease_while_in_progress", {"associations": 1}),
    ("tasks", "ck_tasks_commitment_while_awaited", {"commit_at": NOW, "commit_by": NOW}),
    ("tasks", "ck_tasks_commitment_while_awaited", {"state": State.AWAITING_COMMITMENT, "due_at": None}),
    ("tasks", "ck_tasks_lease_while_in_progress", {"lease_token": "x"}),
    ("tasks", "ck_tasks_lease_while_in_progress", {"lease_expires_at": NOW}),
    ("tasks", "ck_tasks_lease_while_in_progress", RUNNING | {"state": State.FAILED}),
    *[
        ("tasks", "ck_tasks_succeeded_is_delivered", {"state": State.SUCCEEDED} | FINISHED | wrong)
        for wrong in (
            {"files_delivered": 0}, {"files_pending": 1}, {"files_awaiting": 1}, {"files_retry": 1},
            {"files_rejected": 1},
        )
    ],
    ("files", "ck_files_outcome", {"outcome": "lost"}),
    ("attempts", "ck_attempts_ended_with_result", {"ended_at": NOW}),
    ("attempts", "ck_attempts_ended_with_result", {"result": "failed"}),
    ("history", "ck_history_state", {"state": "Lost"}),
    ("destinations", "ck_destinations_kind", {"kind": "carrier-pigeon"}),
    ("destinations", "ck_destinations_max_associations", {"max_associations": 0}),
    ("destinations", "ck_destinations_max_associations", {"max_associations": 1001}),
    ("destinations", "ck_destinations_down_is_probed", {"down_since": NOW}),
    ("destinations", "ck_destinations_down_is_probed", {"probe_at": NOW}),
    ("datasets", "ck_datasets_published_as_a_whole", {"published_at": NOW}),
    ("datasets", "ck_datasets_published_as_a_whole", {"body": "{}"}),
]  # fmt: skip
LEGAL: list[tuple[str, dict[str, Any]]] = [
    *[(table, {}) for table in ROWS],
    ("tasks", RUNNING),
    ("tasks", {"state": State.SUCCEEDED, "files_skipped": 3} | FINISHED),
    ("tasks", {"state": State.FAILED, "due_at": None, "retries": 3, "files_rejected": 1}),
    ("tasks", {"state": State.CANCELED, "due_at": None, "files_pending": 1}),
    ("tasks", {"priority": -100, "max_retries": 0}),
    ("tasks", {"waits": True}),
    ("attempts", {"ended_at": NOW, "result": "failed"}),
    ("destinations", {"down_since": NOW, "probe_at": NOW, "paused_at": NOW}),
    ("datasets", {"published_at": NOW, "body": "{}"}),
]


def _insert(connection: sa.Connection, table: str, changes: dict[str, Any]) -> None:
    of_task = ["registrations", "tasks"]
    parents = {"files": of_task, "attempts": of_task, "history": of_task}
    for name in parents.get(table, ["registrations"] if table == "tasks" else []):
        connection.execute(schema.metadata.tables[name].insert().values(**ROWS[name]))
    target = schema.metadata.tables[table]
    connection.execute(target.insert().values(**ROWS[table] | changes))


def _refusal(database: Database, table: str, changes: dict[str, Any]) -> str:
    """Try a row, leave nothing behind, and return why it was refused."""
    with database.engine.connect() as connection:
        try:
            _insert(connection, table, changes)
        except sa.exc.IntegrityError as error:
            return str(error)
        finally:
            connection.rollback()
    return ""


def test_legal_rows_are_taken(database: Database) -> None:
    assert [_refusal(database, *row) for row in LEGAL] == [""] * len(LEGAL)


def test_a_row_that_breaks_a_rule_is_refused(database: Database) -> None:
    refusals = [(rule, _refusal(database, table, changes)) for table, rule, changes in ILLEGAL]
    assert [(rule, why) for rule, why in refusals if rule not in why] == []


def _checks() -> Iterator[str]:
    for table in schema.metadata.tables.values():
        for constraint in table.constraints:
            if isinstance(constraint, sa.CheckConstraint):
                yield str(constraint.name)


def test_every_rule_is_tried_above() -> None:
    assert {rule for _, rule, _ in ILLEGAL} == set(_checks())


@pytest.mark.parametrize("table", ["tasks", "files", "attempts", "history"])
def test_a_row_without_its_parent_is_refused(database: Database, table: str) -> None:
    assert _refusal(database, table, {"registration_id" if table == "tasks" else "task": 99})


@pytest.mark.parametrize("table", ["files", "attempts", "history"])
def test_what_belongs_to_a_task_goes_with_it(database: Database, table: str) -> None:
    target = schema.metadata.tables[table]
    with database.engine.begin() as connection:
        _insert(connection, table, {})
        connection.execute(schema.tasks.delete())
        assert connection.execute(sa.select(sa.func.count()).select_from(target)).scalar_one() == 0


def test_what_must_be_unique_is(database: Database) -> None:
    second: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
        ("registrations", {"idempotency_key": "k"}, {"id": 2, "idempotency_key": "k"}),
        ("tasks", {}, {"id": 2, "task_id": "u"}),
        ("tasks", {}, {"id": 2, "element": 1}),
        ("files", {}, {"position": 1}),
        ("files", {}, {"uri": "b"}),
        ("attempts", {}, {}),
        ("attempts", {}, {"attempt": 2}),  # the first one still runs
        ("destinations", {}, {"name": "d"}),
    ]
    for table, first, again in second:
        target = schema.metadata.tables[table]
        with database.engine.connect() as connection:
            _insert(connection, table, first)
            with pytest.raises(sa.exc.IntegrityError):
                connection.execute(target.insert().values(**ROWS[table] | again))
            connection.rollback()


def test_an_error_of_the_database_shows_no_values(database: Database) -> None:
    with pytest.raises(sa.exc.IntegrityError) as raised, database.engine.begin() as connection:
        _insert(connection, "tasks", {"parameters": '"DOE^JANE"', "priority": 101})
    assert "DOE^JANE" not in str(raised.value).replace(str(raised.value.orig), "")
