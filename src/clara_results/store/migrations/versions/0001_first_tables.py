"""The first tables.

Revision ID: 0001
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "agents",
        sa.Column("agent", sa.Text(), nullable=False),
        sa.Column("instance", sa.Text(), nullable=False),
        sa.Column("version", sa.Text(), nullable=True),
        sa.Column("last_seen_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("agent", "instance", name=op.f("pk_agents")),
    )
    op.create_table(
        "destinations",
        sa.Column("name_key", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("settings", sa.Text(), nullable=False),
        sa.Column("max_associations", sa.Integer(), nullable=False),
        sa.Column("paused_at", sa.BigInteger(), nullable=True),
        sa.Column("down_since", sa.BigInteger(), nullable=True),
        sa.Column("down_reason", sa.Text(), nullable=True),
        sa.Column("probe_at", sa.BigInteger(), nullable=True),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("kind IN ('dicom', 'dicomweb')", name=op.f("ck_destinations_kind")),
        sa.CheckConstraint(
            "(down_since IS NULL) = (probe_at IS NULL)", name=op.f("ck_destinations_down_is_probed")
        ),
        sa.CheckConstraint(
            "max_associations BETWEEN 1 AND 1000", name=op.f("ck_destinations_max_associations")
        ),
        sa.PrimaryKeyConstraint("name_key", name=op.f("pk_destinations")),
    )
    op.create_table(
        "lanes",
        sa.Column("agent", sa.Text(), nullable=False),
        sa.Column("destination", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("agent", "destination", name=op.f("pk_lanes")),
    )
    op.create_table(
        "payloads",
        sa.Column("payload_id", sa.Text(), nullable=False),
        sa.Column("touched_at", sa.BigInteger(), nullable=False),
        sa.Column("holds_files", sa.Boolean(), nullable=False),
        sa.Column("removed_at", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("payload_id", name=op.f("pk_payloads")),
        sqlite_with_rowid=False,
    )
    op.create_index(
        op.f("ix_payloads_holds_files_touched_at"),
        "payloads",
        ["holds_files", "touched_at"],
        unique=False,
    )
    op.create_table(
        "registrations",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("idempotency_key", sa.Text(), nullable=True),
        sa.Column("body_sha256", sa.Text(), nullable=False),
        sa.Column("scope_sha256", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_registrations")),
    )
    op.create_index(
        "uq_registrations_idempotency_key",
        "registrations",
        ["idempotency_key"],
        unique=True,
        sqlite_where=sa.text("idempotency_key IS NOT NULL"),
        postgresql_where=sa.text("idempotency_key IS NOT NULL"),
    )
    op.create_index(
        op.f("ix_registrations_scope_sha256"),
        "registrations",
        ["scope_sha256"],
        unique=False,
        sqlite_where=sa.text("idempotency_key IS NOT NULL"),
        postgresql_where=sa.text("idempotency_key IS NOT NULL"),
    )
    op.create_table(
        "tokens",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("token_sha256", sa.Text(), nullable=False),
        sa.Column("scopes", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=True),
        sa.Column("last_used_at", sa.BigInteger(), nullable=True),
        sa.Column("revoked_at", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tokens")),
        sa.UniqueConstraint("token_sha256", name=op.f("uq_tokens_token_sha256")),
    )
    op.create_index(
        "uq_tokens_live_name",
        "tokens",
        ["name"],
        unique=True,
        sqlite_where=sa.text("revoked_at IS NULL"),
        postgresql_where=sa.text("revoked_at IS NULL"),
    )
    op.create_table(
        "turns",
        sa.Column("agent", sa.Text(), nullable=False),
        sa.Column("turn", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("agent", name=op.f("pk_turns")),
    )
    op.create_table(
        "uploads",
        sa.Column("payload_id", sa.Text(), nullable=False),
        sa.Column("uri", sa.Text(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("payload_id", "uri", name=op.f("pk_uploads")),
    )
    op.create_table(
        "receivers",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("address", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_receivers")),
        sa.UniqueConstraint("address", name=op.f("uq_receivers_address")),
    )
    op.create_table(
        "tasks",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("task_id", sa.Text(), nullable=False),
        sa.Column(
            "registration_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False
        ),
        sa.Column("element", sa.Integer(), nullable=False),
        sa.Column("agent", sa.Text(), nullable=False),
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("pipeline_id", sa.Text(), nullable=False),
        sa.Column("payload_id", sa.Text(), nullable=False),
        sa.Column("operator", sa.Text(), nullable=True),
        sa.Column("parameters", sa.Text(), nullable=True),
        sa.Column("destination", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("turn", sa.BigInteger(), nullable=False),
        sa.Column("retries", sa.Integer(), nullable=False),
        sa.Column("max_retries", sa.Integer(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.Column("due_at", sa.BigInteger(), nullable=True),
        sa.Column("waits", sa.Boolean(), nullable=False),
        sa.Column("lease_token", sa.Text(), nullable=True),
        sa.Column("lease_seconds", sa.Integer(), nullable=True),
        sa.Column("lease_expires_at", sa.BigInteger(), nullable=True),
        sa.Column("associations", sa.Integer(), nullable=False),
        sa.Column("receiver", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=True),
        sa.Column("commit_at", sa.BigInteger(), nullable=True),
        sa.Column("commit_by", sa.BigInteger(), nullable=True),
        sa.Column("unavailable_since", sa.BigInteger(), nullable=True),
        sa.Column("unavailable_times", sa.Integer(), nullable=False),
        sa.Column("error_code", sa.Text(), nullable=True),
        sa.Column("error_message", sa.Text(), nullable=True),
        sa.Column("progress_files", sa.Integer(), nullable=True),
        sa.Column("progress_bytes", sa.BigInteger(), nullable=True),
        sa.Column("files_pending", sa.Integer(), nullable=False),
        sa.Column("files_awaiting", sa.Integer(), nullable=False),
        sa.Column("files_delivered", sa.Integer(), nullable=False),
        sa.Column("files_skipped", sa.Integer(), nullable=False),
        sa.Column("files_retry", sa.Integer(), nullable=False),
        sa.Column("files_rejected", sa.Integer(), nullable=False),
        sa.Column("supersedes", sa.Text(), nullable=True),
        sa.Column("superseded_by", sa.Text(), nullable=True),
        sa.Column("redelivery_of", sa.Text(), nullable=True),
        sa.CheckConstraint(
            "(state = 'InProgress') = (lease_token IS NOT NULL) AND (lease_token IS NULL) = (lease_expires_at IS NULL) AND (lease_token IS NULL) = (lease_seconds IS NULL) AND (lease_token IS NOT NULL) = (associations > 0)",
            name=op.f("ck_tasks_lease_while_in_progress"),
        ),
        sa.CheckConstraint(
            "(state = 'AwaitingCommitment') = (commit_at IS NOT NULL) AND (commit_at IS NULL) = (commit_by IS NULL)",
            name=op.f("ck_tasks_commitment_while_awaited"),
        ),
        sa.CheckConstraint(
            "(state = 'Pending') = (due_at IS NOT NULL)", name=op.f("ck_tasks_due_while_pending")
        ),
        sa.CheckConstraint(
            "state = 'Pending' OR NOT waits", name=op.f("ck_tasks_waits_while_pending")
        ),
        sa.CheckConstraint(
            "state <> 'Succeeded' OR (files_delivered > 0 AND files_pending = 0 AND files_awaiting = 0 AND files_retry = 0 AND files_rejected = 0)",
            name=op.f("ck_tasks_succeeded_is_delivered"),
        ),
        sa.CheckConstraint(
            "state IN ('Pending', 'InProgress', 'AwaitingCommitment', 'Succeeded', 'Failed', 'Canceled')",
            name=op.f("ck_tasks_state"),
        ),
        sa.CheckConstraint("priority BETWEEN -100 AND 100", name=op.f("ck_tasks_priority")),
        sa.CheckConstraint("retries BETWEEN 0 AND max_retries", name=op.f("ck_tasks_retries")),
        sa.ForeignKeyConstraint(
            ["registration_id"], ["registrations.id"], name=op.f("fk_tasks_registration_id")
        ),
        sa.ForeignKeyConstraint(["receiver"], ["receivers.id"], name=op.f("fk_tasks_receiver")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tasks")),
        sa.UniqueConstraint(
            "registration_id", "element", name=op.f("uq_tasks_registration_id_element")
        ),
        sa.UniqueConstraint("task_id", name=op.f("uq_tasks_task_id")),
        sqlite_autoincrement=True,
    )
    op.create_index(
        op.f("ix_tasks_job_id_agent_turn"), "tasks", ["job_id", "agent", "turn"], unique=False
    )
    op.create_index(
        "ix_tasks_head",
        "tasks",
        ["agent", "destination", "waits", sa.text("priority DESC"), "turn", "id"],
        sqlite_where=sa.text("state = 'Pending'"),
        postgresql_where=sa.text("state = 'Pending'"),
    )
    op.create_index(
        "ix_tasks_due",
        "tasks",
        ["agent", "destination", "waits", "due_at"],
        unique=False,
        sqlite_where=sa.text("state = 'Pending'"),
        postgresql_where=sa.text("state = 'Pending'"),
    )
    op.create_index(
        "ix_tasks_failed",
        "tasks",
        ["agent", "destination"],
        unique=False,
        sqlite_where=sa.text("state = 'Failed'"),
        postgresql_where=sa.text("state = 'Failed'"),
    )
    op.create_index(
        "ix_tasks_canceled",
        "tasks",
        ["id"],
        unique=False,
        sqlite_where=sa.text("state = 'Canceled'"),
        postgresql_where=sa.text("state = 'Canceled'"),
    )
    op.create_index(
        "ix_tasks_held",
        "tasks",
        ["destination", "associations"],
        unique=False,
        sqlite_where=sa.text("state = 'InProgress'"),
        postgresql_where=sa.text("state = 'InProgress'"),
    )
    op.create_index(
        "ix_tasks_ended",
        "tasks",
        ["updated_at"],
        unique=False,
        sqlite_where=sa.text("state NOT IN ('Pending', 'InProgress', 'AwaitingCommitment')"),
        postgresql_where=sa.text("state NOT IN ('Pending', 'InProgress', 'AwaitingCommitment')"),
    )
    op.create_index(
        "ix_tasks_lease",
        "tasks",
        ["lease_expires_at"],
        unique=False,
        sqlite_where=sa.text("state = 'InProgress'"),
        postgresql_where=sa.text("state = 'InProgress'"),
    )
    op.create_index(op.f("ix_tasks_payload_id"), "tasks", ["payload_id"], unique=False)
    op.create_table(
        "attempts",
        sa.Column("task", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("lease_token", sa.Text(), nullable=False),
        sa.Column("instance", sa.Text(), nullable=True),
        sa.Column("claimed_at", sa.BigInteger(), nullable=False),
        sa.Column("ended_at", sa.BigInteger(), nullable=True),
        sa.Column("result", sa.Text(), nullable=True),
        sa.Column("code", sa.Text(), nullable=True),
        sa.Column("message", sa.Text(), nullable=True),
        sa.Column("report", sa.Text(), nullable=True),
        sa.CheckConstraint(
            "(ended_at IS NULL) = (result IS NULL)", name=op.f("ck_attempts_ended_with_result")
        ),
        sa.ForeignKeyConstraint(
            ["task"], ["tasks.id"], name=op.f("fk_attempts_task"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("task", "attempt", name=op.f("pk_attempts")),
        sqlite_with_rowid=False,
    )
    op.create_index(
        "uq_attempts_running",
        "attempts",
        ["task"],
        unique=True,
        sqlite_where=sa.text("ended_at IS NULL"),
        postgresql_where=sa.text("ended_at IS NULL"),
    )
    op.create_table(
        "files",
        sa.Column("task", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("uri", sa.Text(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=True),
        sa.Column("modified", sa.BigInteger(), nullable=True),
        sa.Column("sha256", sa.Text(), nullable=True),
        sa.Column("media_type", sa.Text(), nullable=True),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("code", sa.Text(), nullable=True),
        sa.Column("message", sa.Text(), nullable=True),
        sa.Column("sop_instance_uid", sa.Text(), nullable=True),
        sa.Column("sop_class_uid", sa.Text(), nullable=True),
        sa.Column("series", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=True),
        sa.Column("attempt", sa.Integer(), nullable=True),
        sa.Column("updated_at", sa.BigInteger(), nullable=True),
        sa.CheckConstraint(
            "outcome IN ('pending', 'awaiting', 'delivered', 'skipped', 'retry', 'rejected')",
            name=op.f("ck_files_outcome"),
        ),
        sa.ForeignKeyConstraint(
            ["task"], ["tasks.id"], name=op.f("fk_files_task"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("task", "position", name=op.f("pk_files")),
        sa.UniqueConstraint("task", "uri", name=op.f("uq_files_task_uri")),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "history",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("task", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("event", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=True),
        sa.Column("message", sa.Text(), nullable=True),
        sa.CheckConstraint(
            "state IN ('Pending', 'InProgress', 'AwaitingCommitment', 'Succeeded', 'Failed', 'Canceled')",
            name=op.f("ck_history_state"),
        ),
        sa.ForeignKeyConstraint(
            ["task"], ["tasks.id"], name=op.f("fk_history_task"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_history")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_history_task"), "history", ["task"], unique=False)
    op.create_index(
        "ix_tasks_commitment",
        "tasks",
        ["commit_at", "commit_by", "agent", "destination"],
        unique=False,
        sqlite_where=sa.text("state = 'AwaitingCommitment'"),
        postgresql_where=sa.text("state = 'AwaitingCommitment'"),
    )
    op.create_index(
        op.f("ix_files_sop_instance_uid"),
        "files",
        ["sop_instance_uid"],
        unique=False,
        sqlite_where=sa.text("sop_instance_uid IS NOT NULL"),
        postgresql_where=sa.text("sop_instance_uid IS NOT NULL"),
    )
    op.create_table(
        "series",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("task", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("study_instance_uid", sa.Text(), nullable=False),
        sa.Column("series_instance_uid", sa.Text(), nullable=False),
        sa.Column("accession_number", sa.Text(), nullable=False),
        sa.Column("patient_id", sa.Text(), nullable=False),
        sa.Column("issuer_of_patient_id", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["task"], ["tasks.id"], name=op.f("fk_series_task"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_series")),
    )
    op.create_index(
        "ix_series_task",
        "series",
        [
            "task",
            "study_instance_uid",
            "series_instance_uid",
            "accession_number",
            "patient_id",
            "issuer_of_patient_id",
        ],
        unique=False,
    )
    for name in ("study_instance_uid", "series_instance_uid", "accession_number", "patient_id"):
        op.create_index(
            op.f(f"ix_series_{name}"),
            "series",
            [name],
            unique=False,
            sqlite_where=sa.text(f"{name} <> ''"),
            postgresql_where=sa.text(f"{name} <> ''"),
        )
    op.create_table(
        "instances",
        sa.Column("receiver", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("sop_instance_uid", sa.Text(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("delivered", sa.Boolean(), nullable=False),
        sa.Column("task_id", sa.Text(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("doubtful", sa.Boolean(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["receiver"], ["receivers.id"], name=op.f("fk_instances_receiver")),
        sa.PrimaryKeyConstraint("receiver", "sop_instance_uid", name=op.f("pk_instances")),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "commitments",
        sa.Column("transaction_uid", sa.Text(), nullable=False),
        sa.Column("task", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("asked_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["task"], ["tasks.id"], name=op.f("fk_commitments_task"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("transaction_uid", name=op.f("pk_commitments")),
        sqlite_with_rowid=False,
    )
    op.create_index(op.f("ix_commitments_task"), "commitments", ["task"], unique=False)
    op.create_table(
        "idle_associations",
        sa.Column("destination", sa.Text(), nullable=False),
        sa.Column("instance", sa.Text(), nullable=False),
        sa.Column("associations", sa.Integer(), nullable=False),
        sa.Column("until", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("destination", "instance", name=op.f("pk_idle_associations")),
        sqlite_with_rowid=False,
    )
    _datasets()


def _datasets() -> None:
    op.create_table(
        "datasets",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("dataset_id", sa.Text(), nullable=False),
        sa.Column("task_id", sa.Text(), nullable=False),
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("payload_id", sa.Text(), nullable=False),
        sa.Column("operator", sa.Text(), nullable=True),
        sa.Column("touched_at", sa.BigInteger(), nullable=False),
        sa.Column("published_at", sa.BigInteger(), nullable=True),
        sa.Column("body", sa.Text(), nullable=True),
        sa.Column("view", sa.Text(), nullable=True),
        sa.CheckConstraint(
            "(published_at IS NULL) = (body IS NULL)",
            name=op.f("ck_datasets_published_as_a_whole"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_datasets")),
        sa.UniqueConstraint("dataset_id", name=op.f("uq_datasets_dataset_id")),
    )
    for name in ("task_id", "job_id", "payload_id", "touched_at"):
        op.create_index(op.f(f"ix_datasets_{name}"), "datasets", [name], unique=False)
    op.create_table(
        "dataset_files",
        sa.Column("dataset", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("uri", sa.Text(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["dataset"],
            ["datasets.id"],
            name=op.f("fk_dataset_files_dataset"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("dataset", "uri", name=op.f("pk_dataset_files")),
        sqlite_with_rowid=False,
    )
