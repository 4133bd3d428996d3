"""The tables. ``migrations`` must lead to the same; a test compares them."""

from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa

from clara_results.domain.tasks import Outcome, State

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class Instant(sa.types.TypeDecorator[datetime]):
    """An aware time, stored as microseconds since 1970 UTC: exact, and sorted alike on every database."""

    impl = sa.BigInteger
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Any) -> int | None:  # noqa: ARG002
        """Turn a time into microseconds."""
        return None if value is None else (value - EPOCH) // _MICROSECOND

    def process_result_value(self, value: int | None, dialect: Any) -> datetime | None:  # noqa: ARG002
        """Turn microseconds into a time."""
        return None if value is None else EPOCH + timedelta(microseconds=value)


BigKey = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
"""A key that counts up by itself on both databases."""

metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def _among(column: str, values: type[State] | type[Outcome]) -> sa.CheckConstraint:
    allowed = ", ".join(f"'{value}'" for value in values)
    return sa.CheckConstraint(f"{column} IN ({allowed})", name=column)


ENDED = sa.text(
    f"state NOT IN ({', '.join(repr(state.value) for state in State if not state.finished)})"
)
"""A task that is finished; an index knows them by this very text. (SQLite would look up IN by another index.)"""

registrations = sa.Table(
    "registrations",
    metadata,
    sa.Column("id", BigKey, primary_key=True),
    sa.Column("idempotency_key", sa.Text),
    sa.Column("body_sha256", sa.Text, nullable=False),
    sa.Column("scope_sha256", sa.Text, nullable=False),
    sa.Column("created_at", Instant, nullable=False),
    sa.Index(
        "uq_registrations_idempotency_key", "idempotency_key", unique=True,
        sqlite_where=sa.text("idempotency_key IS NOT NULL"), postgresql_where=sa.text("idempotency_key IS NOT NULL"),
    ),
    sa.Index(
        None, "scope_sha256",
        sqlite_where=sa.text("idempotency_key IS NOT NULL"), postgresql_where=sa.text("idempotency_key IS NOT NULL"),
    ),
)  # fmt: skip
"""What was asked for: its key, a digest of its body, and of what a newer one of supersedes it."""

receivers = sa.Table(
    "receivers",
    metadata,
    sa.Column("id", BigKey, primary_key=True),
    sa.Column("address", sa.Text, nullable=False, unique=True),
)
"""Receivers that instances were sent to, by what they are called and where; a destination's name may move to another."""

tasks = sa.Table(
    "tasks",
    metadata,
    sa.Column("id", BigKey, primary_key=True),
    sa.Column("task_id", sa.Text, nullable=False, unique=True),
    sa.Column("registration_id", BigKey, sa.ForeignKey("registrations.id"), nullable=False),
    sa.Column("element", sa.Integer, nullable=False),
    sa.Column("agent", sa.Text, nullable=False),
    sa.Column("job_id", sa.Text, nullable=False),
    sa.Column("pipeline_id", sa.Text, nullable=False),
    sa.Column("payload_id", sa.Text, nullable=False),
    sa.Column("operator", sa.Text),
    sa.Column("parameters", sa.Text),
    sa.Column("destination", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("priority", sa.Integer, nullable=False),
    sa.Column("turn", sa.BigInteger, nullable=False),
    sa.Column("retries", sa.Integer, nullable=False),
    sa.Column("max_retries", sa.Integer, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("created_at", Instant, nullable=False),
    sa.Column("updated_at", Instant, nullable=False),
    sa.Column("due_at", Instant),
    sa.Column("waits", sa.Boolean, nullable=False),
    sa.Column("lease_token", sa.Text),
    sa.Column("lease_seconds", sa.Integer),
    sa.Column("lease_expires_at", Instant),
    sa.Column("associations", sa.Integer, nullable=False),
    sa.Column("receiver", BigKey, sa.ForeignKey("receivers.id")),
    sa.Column("commit_at", Instant),
    sa.Column("commit_by", Instant),
    sa.Column("unavailable_since", Instant),
    sa.Column("unavailable_times", sa.Integer, nullable=False),
    sa.Column("error_code", sa.Text),
    sa.Column("error_message", sa.Text),
    sa.Column("progress_files", sa.Integer),
    sa.Column("progress_bytes", sa.BigInteger),
    *[sa.Column(f"files_{outcome}", sa.Integer, nullable=False) for outcome in Outcome],
    sa.Column("supersedes", sa.Text),
    sa.Column("superseded_by", sa.Text),
    sa.Column("redelivery_of", sa.Text),
    _among("state", State),
    sa.CheckConstraint("priority BETWEEN -100 AND 100", name="priority"),
    sa.CheckConstraint("retries BETWEEN 0 AND max_retries", name="retries"),
    sa.CheckConstraint("(state = 'Pending') = (due_at IS NOT NULL)", name="due_while_pending"),
    sa.CheckConstraint("state = 'Pending' OR NOT waits", name="waits_while_pending"),
    sa.CheckConstraint(
        "(state = 'InProgress') = (lease_token IS NOT NULL)"
        " AND (lease_token IS NULL) = (lease_expires_at IS NULL)"
        " AND (lease_token IS NULL) = (lease_seconds IS NULL)"
        " AND (lease_token IS NOT NULL) = (associations > 0)",
        name="lease_while_in_progress",
    ),
    sa.CheckConstraint(
        "(state = 'AwaitingCommitment') = (commit_at IS NOT NULL)"
        " AND (commit_at IS NULL) = (commit_by IS NULL)",
        name="commitment_while_awaited",
    ),
    sa.CheckConstraint(
        "state <> 'Succeeded' OR (files_delivered > 0 AND files_pending = 0 AND files_awaiting = 0"
        " AND files_retry = 0 AND files_rejected = 0)",
        name="succeeded_is_delivered",
    ),
    sa.UniqueConstraint("registration_id", "element"),
    sa.Index(None, "payload_id"),
    sa.Index(
        "ix_tasks_head", "agent", "destination", "waits", sa.desc("priority"), "turn", "id",
        sqlite_where=sa.text("state = 'Pending'"), postgresql_where=sa.text("state = 'Pending'"),
    ),
    sa.Index(
        "ix_tasks_due", "agent", "destination", "waits", "due_at",
        sqlite_where=sa.text("state = 'Pending'"), postgresql_where=sa.text("state = 'Pending'"),
    ),
    sa.Index(
        "ix_tasks_failed", "agent", "destination",
        sqlite_where=sa.text("state = 'Failed'"), postgresql_where=sa.text("state = 'Failed'"),
    ),
    sa.Index(
        "ix_tasks_canceled", "id",
        sqlite_where=sa.text("state = 'Canceled'"), postgresql_where=sa.text("state = 'Canceled'"),
    ),
    sa.Index(
        "ix_tasks_held", "destination", "associations",
        sqlite_where=sa.text("state = 'InProgress'"), postgresql_where=sa.text("state = 'InProgress'"),
    ),
    sa.Index(
        "ix_tasks_lease", "lease_expires_at",
        sqlite_where=sa.text("state = 'InProgress'"), postgresql_where=sa.text("state = 'InProgress'"),
    ),
    sa.Index(
        "ix_tasks_commitment", "commit_at", "commit_by", "agent", "destination",
        sqlite_where=sa.text("state = 'AwaitingCommitment'"), postgresql_where=sa.text("state = 'AwaitingCommitment'"),
    ),
    sa.Index("ix_tasks_ended", "updated_at", sqlite_where=ENDED, postgresql_where=ENDED),
    sa.Index(None, "job_id", "agent", "turn"),
    sqlite_autoincrement=True,
)  # fmt: skip
"""One delivery of one registration's files to one destination.

A Pending task ``waits`` if it was not due when it became so, until a claim after its time finds it due. So a claim takes
the head of a lane's line at once, whatever number of tasks is there that is not due yet.
"""

files = sa.Table(
    "files",
    metadata,
    sa.Column("task", BigKey, sa.ForeignKey("tasks.id", ondelete="CASCADE"), nullable=False),
    sa.Column("position", sa.Integer, nullable=False),
    sa.Column("uri", sa.Text, nullable=False),
    sa.Column("size", sa.BigInteger),
    sa.Column("modified", Instant),
    sa.Column("sha256", sa.Text),
    sa.Column("media_type", sa.Text),
    sa.Column("outcome", sa.Text, nullable=False),
    sa.Column("code", sa.Text),
    sa.Column("message", sa.Text),
    sa.Column("sop_instance_uid", sa.Text),
    sa.Column("sop_class_uid", sa.Text),
    sa.Column("series", BigKey),
    sa.Column("attempt", sa.Integer),
    sa.Column("updated_at", Instant),
    sa.PrimaryKeyConstraint("task", "position"),
    sa.UniqueConstraint("task", "uri"),
    _among("outcome", Outcome),
    sa.Index(
        None, "sop_instance_uid",
        sqlite_where=sa.text("sop_instance_uid IS NOT NULL"), postgresql_where=sa.text("sop_instance_uid IS NOT NULL"),
    ),
    sqlite_with_rowid=False,
)  # fmt: skip
"""A task's files, each with what became of it; of an instance its series."""

_SUBJECT = (
    "study_instance_uid",
    "series_instance_uid",
    "accession_number",
    "patient_id",
    "issuer_of_patient_id",
)

series = sa.Table(
    "series",
    metadata,
    sa.Column("id", BigKey, primary_key=True),
    sa.Column("task", BigKey, sa.ForeignKey("tasks.id", ondelete="CASCADE"), nullable=False),
    *[sa.Column(name, sa.Text, nullable=False) for name in _SUBJECT],
    sa.Index("ix_series_task", "task", *_SUBJECT),
    *[
        sa.Index(None, name, sqlite_where=sa.text(f"{name} <> ''"), postgresql_where=sa.text(f"{name} <> ''"))
        for name in _SUBJECT[:4]
    ],
)  # fmt: skip
"""What a task's instances belong to, by which people find it again; what is not known is empty.

The accession number and the patient's id and its issuer are patient data: they go when the payload goes.
"""

instances = sa.Table(
    "instances",
    metadata,
    sa.Column("receiver", BigKey, sa.ForeignKey("receivers.id"), nullable=False),
    sa.Column("sop_instance_uid", sa.Text, nullable=False),
    sa.Column("sha256", sa.Text, nullable=False),
    sa.Column("delivered", sa.Boolean, nullable=False),
    sa.Column("task_id", sa.Text, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("doubtful", sa.Boolean, nullable=False),
    sa.Column("updated_at", Instant, nullable=False),
    sa.PrimaryKeyConstraint("receiver", "sop_instance_uid"),
    sqlite_with_rowid=False,
)
"""Under which digest an instance was, or may have been, sent to a receiver last, and whether the receiver has it.

``doubtful``: what was announced before, by another attempt, may have come to the receiver. So a refusal of this attempt
does not show that the receiver has nothing.
"""

commitments = sa.Table(
    "commitments",
    metadata,
    sa.Column("transaction_uid", sa.Text, primary_key=True),
    sa.Column("task", BigKey, sa.ForeignKey("tasks.id", ondelete="CASCADE"), nullable=False),
    sa.Column("asked_at", Instant, nullable=False),
    sa.Index(None, "task"),
    sqlite_with_rowid=False,
)
"""Storage commitments that receivers were, or are just being, asked for (PS3.4 Annex J)."""

idle_associations = sa.Table(
    "idle_associations",
    metadata,
    sa.Column("destination", sa.Text, nullable=False),
    sa.Column("instance", sa.Text, nullable=False),
    sa.Column("associations", sa.Integer, nullable=False),
    sa.Column("until", Instant, nullable=False),
    sa.PrimaryKeyConstraint("destination", "instance"),
    sqlite_with_rowid=False,
)
"""Associations that an agent process keeps open for its next task to a destination: they count for other processes."""

attempts = sa.Table(
    "attempts",
    metadata,
    sa.Column("task", BigKey, sa.ForeignKey("tasks.id", ondelete="CASCADE"), nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("lease_token", sa.Text, nullable=False),
    sa.Column("instance", sa.Text),
    sa.Column("claimed_at", Instant, nullable=False),
    sa.Column("ended_at", Instant),
    sa.Column("result", sa.Text),
    sa.Column("code", sa.Text),
    sa.Column("message", sa.Text),
    sa.Column("report", sa.Text),
    sa.PrimaryKeyConstraint("task", "attempt"),
    sa.CheckConstraint("(ended_at IS NULL) = (result IS NULL)", name="ended_with_result"),
    sa.Index(
        "uq_attempts_running", "task", unique=True,
        sqlite_where=sa.text("ended_at IS NULL"), postgresql_where=sa.text("ended_at IS NULL"),
    ),
    sqlite_with_rowid=False,
)  # fmt: skip
"""Each claim of a task, how it ended, and by which report of its holder's: that one may come again."""

history = sa.Table(
    "history",
    metadata,
    sa.Column("id", BigKey, primary_key=True),
    sa.Column("task", BigKey, sa.ForeignKey("tasks.id", ondelete="CASCADE"), nullable=False),
    sa.Column("at", Instant, nullable=False),
    sa.Column("event", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("attempt", sa.Integer),
    sa.Column("message", sa.Text),
    _among("state", State),
    sa.Index(None, "task"),
    sqlite_autoincrement=True,
)
"""What happened to a task and the state it was in then, oldest first. An id is never used again: events resume by it."""

turns = sa.Table(
    "turns",
    metadata,
    sa.Column("agent", sa.Text, primary_key=True),
    sa.Column("turn", sa.BigInteger, nullable=False),
)
"""The turn that each agent's queue has reached."""

uploads = sa.Table(
    "uploads",
    metadata,
    sa.Column("payload_id", sa.Text, nullable=False),
    sa.Column("uri", sa.Text, nullable=False),
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("sha256", sa.Text, nullable=False),
    sa.Column("created_at", Instant, nullable=False),
    sa.PrimaryKeyConstraint("payload_id", "uri"),
)
"""Files that came through the service, with their digests."""

destinations = sa.Table(
    "destinations",
    metadata,
    sa.Column("name_key", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("settings", sa.Text, nullable=False),
    sa.Column("max_associations", sa.Integer, nullable=False),
    sa.Column("paused_at", Instant),
    sa.Column("down_since", Instant),
    sa.Column("down_reason", sa.Text),
    sa.Column("probe_at", Instant),
    sa.Column("updated_at", Instant, nullable=False),
    sa.CheckConstraint("kind IN ('dicom', 'dicomweb')", name="kind"),
    sa.CheckConstraint("max_associations BETWEEN 1 AND 1000", name="max_associations"),
    sa.CheckConstraint("(down_since IS NULL) = (probe_at IS NULL)", name="down_is_probed"),
)
"""Receivers, found by their names' keys; paused by a person, or down since it could not be reached.

``settings`` is the wire's Destination as JSON: what agents make of it is none of the store's business.
"""

lanes = sa.Table(
    "lanes",
    metadata,
    sa.Column("agent", sa.Text, nullable=False),
    sa.Column("destination", sa.Text, nullable=False),
    sa.PrimaryKeyConstraint("agent", "destination"),
)
"""Which destinations an agent's queue has ever had tasks for (empty: none named); claims look at their heads."""

payloads = sa.Table(
    "payloads",
    metadata,
    sa.Column("payload_id", sa.Text, primary_key=True),
    sa.Column("touched_at", Instant, nullable=False),
    sa.Column("holds_files", sa.Boolean, nullable=False),
    sa.Column("removed_at", Instant),
    sa.Index(None, "holds_files", "touched_at"),
    sqlite_with_rowid=False,
)
"""When a payload was last registered on, written to or emptied, whether it has files that retention is to remove, and
when it last removed some."""

datasets = sa.Table(
    "datasets",
    metadata,
    sa.Column("id", BigKey, primary_key=True),
    sa.Column("dataset_id", sa.Text, nullable=False, unique=True),
    sa.Column("task_id", sa.Text, nullable=False),
    sa.Column("job_id", sa.Text, nullable=False),
    sa.Column("payload_id", sa.Text, nullable=False),
    sa.Column("operator", sa.Text),
    sa.Column("touched_at", Instant, nullable=False),
    sa.Column("published_at", Instant),
    sa.Column("body", sa.Text),
    sa.Column("view", sa.Text),
    sa.CheckConstraint("(published_at IS NULL) = (body IS NULL)", name="published_as_a_whole"),
    *[sa.Index(None, name) for name in ("task_id", "job_id", "payload_id", "touched_at")],
)  # fmt: skip
"""Datasets for the viewer, known from their first file's upload on; nobody sees one before it is published.

``body`` is the wire's Dataset as JSON, ``view`` what a person saved. One was touched when it was last uploaded
to, published, or looked at differently.
"""

dataset_files = sa.Table(
    "dataset_files",
    metadata,
    sa.Column("dataset", BigKey, sa.ForeignKey("datasets.id", ondelete="CASCADE"), nullable=False),
    sa.Column("uri", sa.Text, nullable=False),
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("sha256", sa.Text, nullable=False),
    sa.PrimaryKeyConstraint("dataset", "uri"),
    sqlite_with_rowid=False,
)
"""Files of datasets; noted before they are in place, so that none is there that is not known."""

agents = sa.Table(
    "agents",
    metadata,
    sa.Column("agent", sa.Text, nullable=False),
    sa.Column("instance", sa.Text, nullable=False),
    sa.Column("version", sa.Text),
    sa.Column("last_seen_at", Instant, nullable=False),
    sa.PrimaryKeyConstraint("agent", "instance"),
)
"""Agent processes that asked for tasks."""

tokens = sa.Table(
    "tokens",
    metadata,
    sa.Column("id", BigKey, primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("token_sha256", sa.Text, nullable=False, unique=True),
    sa.Column("scopes", sa.Text, nullable=False),
    sa.Column("created_at", Instant, nullable=False),
    sa.Column("expires_at", Instant),
    sa.Column("last_used_at", Instant),
    sa.Column("revoked_at", Instant),
    sa.Index("uq_tokens_live_name", "name", unique=True,
             sqlite_where=sa.text("revoked_at IS NULL"), postgresql_where=sa.text("revoked_at IS NULL")),
)  # fmt: skip
"""Who may call; of a token itself only a digest is kept."""
