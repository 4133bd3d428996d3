"""Rows of the store as the wire shows them."""

from collections.abc import Sequence

from clara_results.domain.tasks import Counts, Outcome, State
from clara_results.store.statements import Row
from clara_results.wire.tasks import (
    Attempt,
    FileCounts,
    HistoryEntry,
    Progress,
    ResultFile,
    Task,
    TaskError,
    TaskFile,
)

MESSAGE_LIMIT = 2000
"""Characters of what an agent says in words that are kept."""


def cut(text: str | None, limit: int = MESSAGE_LIMIT) -> str | None:
    """Return what an agent said as every database holds it: cut, and without NUL or half a surrogate pair."""
    if text is None:
        return None
    return text[:limit].replace("\0", "?").encode(errors="replace").decode()


def counts(row: Row) -> Counts:
    """Return a task's files by outcome."""
    return Counts(**_by_outcome(row))


def _by_outcome(row: Row) -> dict[str, int]:
    return {outcome: getattr(row, f"files_{outcome}") for outcome in Outcome}


def task(
    row: Row,
    *,
    attempts: Sequence[Row] | None = None,
    history: Sequence[Row] | None = None,
    open_files: Sequence[Row] | None = None,
) -> Task:
    """Return a task; with ``open_files`` as its claimer sees it, lease and all."""
    claimed = open_files is not None
    return Task(
        task_id=row.task_id,
        job_id=row.job_id,
        pipeline_id=row.pipeline_id,
        payload_id=row.payload_id,
        operator=row.operator,
        parameters=row.parameters,
        state=State(row.state),
        agent=row.agent,
        destination=row.destination or None,
        retries=row.retries,
        uris=[file.uri for file in open_files] if open_files is not None else None,
        priority=row.priority,
        created_at=row.created_at,
        updated_at=row.updated_at,
        due_at=row.due_at,
        max_retries=row.max_retries,
        attempt=row.attempt,
        counts=FileCounts(**_by_outcome(row)),
        progress=None
        if row.progress_files is None
        else Progress(files_delivered=row.progress_files, bytes_delivered=row.progress_bytes),
        last_error=None
        if row.error_code is None
        else TaskError(code=row.error_code, message=row.error_message or ""),
        supersedes=row.supersedes,
        superseded_by=row.superseded_by,
        redelivery_of=row.redelivery_of,
        attempts=None if attempts is None else [_attempt(entry) for entry in attempts],
        history=None if history is None else [_history(entry) for entry in history],
        lease_token=row.lease_token if claimed else None,
        lease_expires_at=row.lease_expires_at if claimed else None,
        files=None if open_files is None else [result_file(file) for file in open_files],
        associations=row.associations if claimed else None,
    )


def result_file(row: Row) -> ResultFile:
    """Return a file as it was registered."""
    return ResultFile(
        uri=row.uri,
        size=row.size,
        modified=row.modified,
        sha256=row.sha256,
        media_type=row.media_type,
    )


def task_file(row: Row, *, patients: bool) -> TaskFile:
    """Return a file and what became of it; patient data only with ``patients``."""
    return TaskFile(
        uri=row.uri,
        size=row.size,
        modified=row.modified,
        sha256=row.sha256,
        media_type=row.media_type,
        outcome=Outcome(row.outcome),
        code=row.code,
        message=row.message,
        sop_instance_uid=row.sop_instance_uid,
        sop_class_uid=row.sop_class_uid,
        study_instance_uid=row.study_instance_uid or None,
        series_instance_uid=row.series_instance_uid or None,
        accession_number=row.accession_number or None if patients else None,
        patient_id=row.patient_id or None if patients else None,
        issuer_of_patient_id=row.issuer_of_patient_id or None if patients else None,
        attempt=row.attempt,
        updated_at=row.updated_at,
    )


def _attempt(row: Row) -> Attempt:
    return Attempt(
        attempt=row.attempt,
        instance=row.instance,
        claimed_at=row.claimed_at,
        ended_at=row.ended_at,
        result=row.result,
        code=row.code,
        message=row.message,
    )


def _history(row: Row) -> HistoryEntry:
    return HistoryEntry(at=row.at, event=row.event, attempt=row.attempt, message=row.message)
