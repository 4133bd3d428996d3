"""Bodies of ``/api/tasks`` and ``/api/jobs``."""

from dataclasses import field
from datetime import datetime
from typing import Any

from clara_results.domain.tasks import Outcome, State
from clara_results.wire.codec import body


@body(strict=True)
class ResultFile:
    """A file as it was registered.

    Attributes:
        uri: Its path within the payload, ``/``-separated.
        size: Bytes.
        modified: Its time of last change, to the microsecond.
        sha256: Digest of its content, 64 lower-case hex digits.
        media_type: RFC 6838 media type.
    """

    uri: str
    size: int | None = None
    modified: datetime | None = None
    sha256: str | None = None
    media_type: str | None = None


@body(strict=True)
class Registration:
    """Body of ``POST /api/tasks``: result files, and for whom they are.

    Attributes:
        agent: Name of the agent that is to take them up.
        job_id: The platform's job.
        pipeline_id: The platform's pipeline.
        payload_id: The payload whose files they are.
        operator: The pipeline step that registers.
        data: One task for each element, its ``parameters`` that element as JSON; None: one task without.
        files: The files; or ``uris`` where only their names are known.
        uris: The files' URIs, sizes unknown.
        verify: Check now that each file is in the payload, with its size.
        priority: -100 to 100; higher goes first.
        not_before: Earliest time of delivery.
        max_retries: Retries allowed; None: the service's setting.
    """

    agent: str
    job_id: str
    pipeline_id: str
    payload_id: str
    operator: str | None = None
    data: list[Any] | None = None
    files: list[ResultFile] | None = None
    uris: list[str] | None = None
    verify: bool = False
    priority: int = 0
    not_before: datetime | None = None
    max_retries: int | None = None


@body()
class FileCounts:
    """Number of a task's files by outcome."""

    pending: int = 0
    awaiting: int = 0
    delivered: int = 0
    skipped: int = 0
    retry: int = 0
    rejected: int = 0


@body(strict=True)
class Progress:
    """How far the present attempt is.

    Attributes:
        files_delivered: Files that the receiver acknowledged in this attempt.
        bytes_delivered: Their bytes.
    """

    files_delivered: int = 0
    bytes_delivered: int = 0


@body()
class TaskError:
    """Why a task last failed, or was put back.

    Attributes:
        code: Stable code.
        message: For people; never patient data.
    """

    code: str
    message: str


@body()
class Attempt:
    """One claim of a task and how it ended.

    Attributes:
        attempt: Counts from 1.
        instance: The agent process that held it, as it called itself.
        claimed_at: When.
        ended_at: When it ended; None while it runs.
        result: ``succeeded``, ``sent`` (the receiver is to commit itself), ``failed``, ``retry``, ``unavailable``, ``released``, ``lease-expired``,
            ``canceled``; None while it runs.
        code: Stable code of the reason.
        message: The reason for people.
    """

    attempt: int
    instance: str | None = None
    claimed_at: datetime
    ended_at: datetime | None = None
    result: str | None = None
    code: str | None = None
    message: str | None = None


@body()
class HistoryEntry:
    """Something that happened to a task.

    Attributes:
        at: When.
        event: ``registered``, ``claimed``, ``sent``, ``partly-committed``, ``succeeded``, ``failed``, ``retry``, ``unavailable``, ``released``,
            ``lease-expired``, ``retried``, ``canceled``, ``superseded``, ``redelivered``.
        attempt: The attempt during which it happened, if any.
        message: More about it.
    """

    at: datetime
    event: str
    attempt: int | None = None
    message: str | None = None


@body()
class Task:
    """A task as the service shows it.

    Attributes:
        task_id: UUID.
        job_id: As registered; likewise pipeline, payload and operator.
        parameters: One element of the registration's ``data``, as a string that holds JSON; or None.
        state: Where it stands.
        agent: The agent's name in lower case.
        destination: Where to, in the form in which destinations' names are looked up; None: its parameters name none.
        retries: Retries used.
        uris: Its files' URIs; in a claim those not yet delivered, elsewhere None (they are paged).
        max_retries: Retries allowed.
        attempt: Number of the latest claim; 0 before the first.
        due_at: When it may next be claimed; None unless Pending.
        counts: Files by outcome.
        last_error: Why it last failed or was put back.
        supersedes: Task that this one replaced; ``superseded_by``: the one that replaced it.
        redelivery_of: Task whose files this one sends once more.
        attempts: Each claim; only when one task is asked for.
        history: What happened; only when one task is asked for.
        lease_token: Secret of the claim, to be shown with each report; only in a claim.
        lease_expires_at: When the claim runs out unless it is renewed; only in a claim.
        files: The files not yet delivered; only in a claim.
        associations: How many its holder may have open to the destination; only in a claim.
    """

    task_id: str
    job_id: str
    pipeline_id: str
    payload_id: str
    operator: str | None = None
    parameters: str | None = None
    state: State
    agent: str
    destination: str | None = None
    retries: int
    uris: list[str] | None = None
    priority: int = 0
    created_at: datetime
    updated_at: datetime
    due_at: datetime | None = None
    max_retries: int
    attempt: int = 0
    counts: FileCounts = field(default_factory=FileCounts)
    progress: Progress | None = None
    last_error: TaskError | None = None
    supersedes: str | None = None
    superseded_by: str | None = None
    redelivery_of: str | None = None
    attempts: list[Attempt] | None = None
    history: list[HistoryEntry] | None = None
    lease_token: str | None = None
    lease_expires_at: datetime | None = None
    files: list[ResultFile] | None = None
    associations: int | None = None


@body()
class Registered:
    """Answer to a registration: its tasks, one for each element of ``data``."""

    tasks: list[Task]


@body(strict=True)
class FileOutcome:
    """What became of one file.

    Attributes:
        uri: Which file.
        outcome: What became of it.
        code: The receiver's status (``0000``, ``B007``, …) or a stable code of ours.
        message: In words; never patient data.
        sop_instance_uid: Of a DICOM instance.
        doubt: The file is not delivered, but the receiver may have it all the same: it did not answer.
    """

    uri: str
    outcome: Outcome
    code: str | None = None
    message: str | None = None
    sop_instance_uid: str | None = None
    doubt: bool = False


@body()
class TaskFile:
    """A file of a task and what became of it.

    Attributes:
        uri: Its path within the payload; size, modified, sha256 and media type as registered.
        outcome: What became of it; code, message and SOP Instance UID as in FileOutcome.
        sop_class_uid: Of a DICOM instance; likewise its study and series.
        accession_number: Patient data, for callers of scope ``operate`` only; likewise patient id and its issuer.
        attempt: The attempt that told.
        updated_at: When it was told.
    """

    uri: str
    size: int | None = None
    modified: datetime | None = None
    sha256: str | None = None
    media_type: str | None = None
    outcome: Outcome
    code: str | None = None
    message: str | None = None
    sop_instance_uid: str | None = None
    sop_class_uid: str | None = None
    study_instance_uid: str | None = None
    series_instance_uid: str | None = None
    accession_number: str | None = None
    patient_id: str | None = None
    issuer_of_patient_id: str | None = None
    attempt: int | None = None
    updated_at: datetime | None = None


@body(strict=True)
class Idle:
    """Associations that an agent keeps open although no task of its uses them.

    Attributes:
        associations: How many.
        seconds: For how long at the most; up to a minute.
    """

    associations: int
    seconds: float


@body()
class SuccessReport:
    """Body of ``PUT /api/tasks/success/{taskId}``; the original's clients send none.

    Attributes:
        lease_token: The claim's.
        files: Outcomes; None: every file that is not told of yet was delivered.
        idle: Associations that the agent keeps open to the destination for its next task, while it is idle.
    """

    lease_token: str | None = None
    files: list[FileOutcome] | None = None
    idle: Idle | None = None


@body()
class FailureReport:
    """Body of ``PUT /api/tasks/failure/{taskId}``; the original's clients send ``{"RetryLater": bool}``.

    Attributes:
        retry_later: Whether files that have no outcome are to be sent again (else they are rejected).
        lease_token: The claim's.
        code: Stable code of the reason.
        message: The reason for people.
        files: Outcomes that are known.
        unavailable: The destination as a whole could not be reached: it is tried again, retries unchanged.
        idle: As in SuccessReport.
    """

    retry_later: bool
    lease_token: str | None = None
    code: str | None = None
    message: str | None = None
    files: list[FileOutcome] | None = None
    unavailable: bool = False
    idle: Idle | None = None


@body(strict=True)
class Renewal:
    """Body of ``PUT /api/tasks/{taskId}/lease``.

    Attributes:
        lease_token: The claim's.
        seconds: Length of the lease from now on; None: as at the claim.
        files: Outcomes so far, durable when this is answered.
        progress: How far the attempt is.
        associations: How many the caller has open to the destination; None: as many as it was granted.
    """

    lease_token: str
    seconds: int | None = None
    files: list[FileOutcome] | None = None
    progress: Progress | None = None
    associations: int | None = None


@body()
class Renewed:
    """Answer to a renewal.

    Attributes:
        lease_expires_at: Until when the lease holds.
        associations: How many the holder may have open from now on; it closes what is too many, and then says so.
    """

    lease_expires_at: datetime
    associations: int


@body(strict=True)
class Release:
    """Body of ``PUT /api/tasks/{taskId}/release``: an agent that shuts down gives a task back.

    Attributes:
        lease_token: The claim's.
        files: Outcomes so far.
    """

    lease_token: str
    files: list[FileOutcome] | None = None


@body(strict=True)
class Redelivery:
    """Body of ``POST /api/tasks/{taskId}/redeliver``.

    Attributes:
        destination: Another destination than the task's own; None: the same parameters again.
    """

    destination: str | None = None


@body(strict=True)
class TaskFilter:
    """Body of ``POST /api/tasks/retry`` and ``/cancel``: which tasks; at least one field, and all that are given hold.

    Attributes:
        state: Of this state; likewise agent, job, payload and destination.
        since: Registered then or later; ``until``: then or earlier.
        q: As ``GET /api/tasks`` finds them by it.
        task_ids: These tasks.
    """

    state: State | None = None
    agent: str | None = None
    job_id: str | None = None
    payload_id: str | None = None
    destination: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    q: str | None = None
    task_ids: list[str] | None = None


@body()
class Concerned:
    """Answer to ``POST /api/tasks/concerned``: how many of the chosen tasks an act would change.

    Attributes:
        retry: Failed ones that no newer registration has superseded; those whose files are no more among them.
        cancel: Unfinished ones.
    """

    retry: int
    cancel: int


@body()
class Changed:
    """Answer to a call that changes many tasks: how many it did change."""

    changed: int


@body()
class TaskPage:
    """A page of tasks, newest first, and the cursor of the next one."""

    items: list[Task]
    next_cursor: str | None = None


@body()
class FilePage:
    """A page of a task's files, in the order of registration, and the cursor of the next one."""

    items: list[TaskFile]
    next_cursor: str | None = None


@body()
class Job:
    """A job's tasks and whether its results are delivered.

    Attributes:
        job_id: The platform's job.
        delivered: Every task is Succeeded, and there is one; but for those that a newer registration superseded, or
            that were sent once more to where they were to go.
        summary: The same in one sentence.
        tasks: All its tasks, oldest first.
    """

    job_id: str
    delivered: bool
    summary: str
    tasks: list[Task]
