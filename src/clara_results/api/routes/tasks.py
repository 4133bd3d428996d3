"""``/api/tasks`` and ``/api/jobs``."""

import asyncio
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Header, Query, Request, Response
from pydantic import AliasChoices, Field

from clara_results.api.access import GuardedRoute, allows, may_go_on
from clara_results.api.dependencies import EngineDep, InstanceHeader, UserAgentHeader, answer
from clara_results.api.problems import Responses, documented
from clara_results.domain import names
from clara_results.domain.tasks import Outcome, State
from clara_results.errors import FieldError, InvalidInput, NotFound
from clara_results.service import selection, views
from clara_results.service.queue import LEASE_RANGE
from clara_results.service.registration import FILE_LIMIT
from clara_results.store import tasks as store
from clara_results.wire.instances import Announcement, Clearances
from clara_results.wire.tasks import (
    Changed,
    Concerned,
    FailureReport,
    FilePage,
    Job,
    Progress,
    Redelivery,
    Registered,
    Registration,
    Release,
    Renewal,
    Renewed,
    SuccessReport,
    Task,
    TaskFilter,
    TaskPage,
)

router = APIRouter(tags=["Tasks"], route_class=GuardedRoute)
PAGE_LIMIT = 1000
IN_LINE = 100
"""Files that are checked on the event loop, within a millisecond: for so few, a thread costs more than it spares."""
_AGAIN: Responses = {200: {"model": Registered, "description": "The same registration came before"}}
Lease = Annotated[int | None, Query(ge=LEASE_RANGE[0], le=LEASE_RANGE[1])]


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureBody(FailureReport):
    """A failure report; the original writes ``RetryLater``."""

    retry_later: Annotated[bool, Field(validation_alias=AliasChoices("RetryLater", "retryLater"))]


@router.post("/api/tasks", status_code=201, response_model=Registered, responses=_AGAIN | documented(409, 410, 413))  # fmt: skip
async def register(
    engine: EngineDep,
    body: Registration,
    idempotency_key: Annotated[str | None, Header(max_length=255)] = None,
) -> Response:
    """Register results: one task for each element of ``data``.

    Up to 100,000 files, 1,000 elements, and 1,000,000 of files times elements.
    """
    key = idempotency_key.strip('"') if idempotency_key is not None else None
    check = partial(engine.registrar.checked, body, engine.payloads.stat)
    if body.verify or len(body.files or body.uris or ()) > IN_LINE:
        checked = await asyncio.to_thread(check)
    else:
        checked = check()
    accepted = await engine.write(lambda tx: engine.registrar.register(tx, checked, key))
    return answer(Registered, accepted.answer, 201 if accepted.created else 200)


@router.get("/api/tasks/{agent}/pending", response_model=list[Task], responses=documented())
async def pending(
    request: Request,
    engine: EngineDep,
    agent: str,
    size: Annotated[int, Query(ge=1, le=100)] = 10,
    wait: Annotated[float, Query(ge=0, le=60)] = 0.0,
    lease: Lease = None,
    associations: Annotated[int, Query(ge=1, le=1000)] = 1,
    peek: bool = False,
    instance: InstanceHeader = None,
    user_agent: UserAgentHeader = None,
) -> Response:
    """Claim due tasks: they become InProgress under a lease. ``peek`` shows them and changes nothing."""
    name = names.agent_name(agent)
    if peek:
        claimed = await engine.write(lambda tx: engine.queue.peek(tx, name, size))
    else:
        await engine.see(name, instance or "", user_agent)

        async def caller_left() -> bool:
            return await request.is_disconnected() or not await may_go_on(request)

        claimed = await engine.claim(name, size, lease, instance, associations, wait, caller_left)
    return answer(list[Task], claimed, headers={"Cache-Control": "no-store"})


@router.put("/api/tasks/success/{task_id}", response_model=Task, responses=documented(404, 409))
async def succeed(engine: EngineDep, task_id: UUID, body: SuccessReport | None = None) -> Response:
    """Report success; without a body every file counts as delivered."""
    report = body or SuccessReport()
    return answer(
        Task, await engine.write(lambda tx: engine.queue.succeed(tx, str(task_id), report))
    )


@router.put("/api/tasks/failure/{task_id}", response_model=Task, responses=documented(404, 409))
async def fail(engine: EngineDep, task_id: UUID, body: FailureBody) -> Response:
    """Report failure, in whole or in part."""
    return answer(Task, await engine.write(lambda tx: engine.queue.fail(tx, str(task_id), body)))


@router.put("/api/tasks/{task_id}/lease", response_model=Renewed, responses=documented(404, 409))
async def renew(engine: EngineDep, task_id: UUID, body: Renewal) -> Response:
    """Renew a lease; outcomes told with it are durable when this is answered."""
    _check_renewal(body)
    renewed = await engine.write(lambda tx: engine.queue.renew(tx, str(task_id), body))
    return answer(Renewed, renewed)


def _check_renewal(body: Renewal) -> None:
    progress = body.progress or Progress()
    faults = [
        FieldError(field, f"not within {least} to {most}")
        for field, value, (least, most) in (
            ("seconds", body.seconds, LEASE_RANGE),
            ("progress.filesDelivered", progress.files_delivered, (0, FILE_LIMIT)),
            ("progress.bytesDelivered", progress.bytes_delivered, (0, (1 << 63) - 1)),
        )
        if value is not None and not least <= value <= most
    ]
    if faults:
        raise InvalidInput(f"{faults[0].field}: {faults[0].message}", errors=faults)


@router.put("/api/tasks/{task_id}/instances", response_model=Clearances, responses=documented(404, 409))  # fmt: skip
async def announce(engine: EngineDep, task_id: UUID, body: Announcement) -> Response:
    """Note which DICOM instances are about to be sent, and say which of them may go out."""
    cleared = await engine.write(lambda tx: engine.queue.announce(tx, str(task_id), body))
    return answer(Clearances, cleared)


@router.put("/api/tasks/{task_id}/release", response_model=Task, responses=documented(404, 409))
async def release(engine: EngineDep, task_id: UUID, body: Release) -> Response:
    """Give a claimed task back."""
    return answer(Task, await engine.write(lambda tx: engine.queue.release(tx, str(task_id), body)))


@router.get("/api/tasks", response_model=TaskPage, responses=documented())
async def tasks(
    request: Request,
    engine: EngineDep,
    state: State | None = None,
    agent: str | None = None,
    job_id: Annotated[str | None, Query(alias="jobId")] = None,
    payload_id: Annotated[str | None, Query(alias="payloadId")] = None,
    destination: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    q: Annotated[str | None, Query(max_length=255)] = None,
    cursor: Annotated[int | None, Query(ge=0, lt=1 << 63)] = None,
    limit: Annotated[int, Query(ge=1, le=PAGE_LIMIT)] = 100,
) -> Response:
    """List tasks, newest first.

    ``q`` finds them by a Study, Series or SOP Instance UID, and for callers of scope ``operate`` by an accession number
    or a patient's id, whole; else by a task's id, or a part of a job, pipeline, payload, operator or destination.
    ``since`` and ``until`` bound the time of registration.
    """
    which = TaskFilter(
        state=state,
        agent=agent,
        job_id=job_id,
        payload_id=payload_id,
        destination=destination,
        since=since,
        until=until,
        q=q,
    )
    patients = q is not None and await allows(request, "operate")
    wanted = selection.chosen(which, patients=patients)
    rows = await engine.read(
        lambda connection: store.tasks_page(connection, wanted, limit + 1, before=cursor)
    )
    more = str(rows[limit - 1].id) if len(rows) > limit else None
    page = TaskPage(items=[views.task(row) for row in rows[:limit]], next_cursor=more)
    return answer(TaskPage, page)


@router.get("/api/tasks/{task_id}", response_model=Task, responses=documented(404))
async def task(engine: EngineDep, task_id: UUID) -> Response:
    """Show one task with its attempts and history."""
    shown = await engine.read(lambda connection: engine.queue.show(connection, str(task_id)))
    return answer(Task, shown)


@router.get("/api/tasks/{task_id}/files", response_model=FilePage, responses=documented(404))
async def files(
    request: Request,
    engine: EngineDep,
    task_id: UUID,
    outcome: Outcome | None = None,
    cursor: Annotated[int, Query(ge=-1, lt=1 << 31)] = -1,
    limit: Annotated[int, Query(ge=1, le=PAGE_LIMIT)] = 100,
) -> Response:
    """List a task's files in the order of registration; patient data only to callers of scope ``operate``."""
    patients = await allows(request, "operate")
    rows = await engine.read(
        lambda connection: (
            store.files_page(connection, found.id, outcome, cursor, limit + 1)
            if (found := store.by_id(connection, str(task_id))) is not None
            else None
        )
    )
    if rows is None:
        raise NotFound(f"there is no task {task_id}", code="task-not-found")
    more = str(rows[limit - 1].position) if len(rows) > limit else None
    page = FilePage(
        items=[views.task_file(row, patients=patients) for row in rows[:limit]], next_cursor=more
    )
    return answer(FilePage, page)


@router.post("/api/tasks/retry", response_model=Changed, responses=documented())
async def retry_all(engine: EngineDep, body: TaskFilter) -> Response:
    """Put the Failed tasks of a filter back to Pending."""
    return answer(Changed, Changed(changed=await engine.selection.retry(body)))


@router.post("/api/tasks/cancel", response_model=Changed, responses=documented())
async def cancel_all(engine: EngineDep, body: TaskFilter) -> Response:
    """Cancel the unfinished tasks of a filter."""
    return answer(Changed, Changed(changed=await engine.selection.cancel(body)))


@router.post("/api/tasks/concerned", response_model=Concerned, responses=documented())
async def concerned(engine: EngineDep, body: TaskFilter) -> Response:
    """Tell how many tasks of a filter could be retried, and how many canceled. Nothing is changed."""
    return answer(Concerned, await engine.selection.concerned(body))


@router.post("/api/tasks/{task_id}/retry", response_model=Task, responses=documented(404, 409, 410))
async def retry(engine: EngineDep, task_id: UUID) -> Response:
    """Put a Failed task back to Pending; files already delivered stay delivered."""
    return answer(Task, await engine.write(lambda tx: engine.queue.retry(tx, str(task_id))))


@router.post("/api/tasks/{task_id}/cancel", response_model=Task, responses=documented(404, 409))
async def cancel(engine: EngineDep, task_id: UUID) -> Response:
    """Cancel an unfinished task; whoever holds it loses its lease."""
    return answer(Task, await engine.write(lambda tx: engine.queue.cancel(tx, str(task_id))))


@router.post("/api/tasks/{task_id}/redeliver", status_code=201, response_model=Task, responses=documented(404, 409, 410))  # fmt: skip
async def redeliver(engine: EngineDep, task_id: UUID, body: Redelivery | None = None) -> Response:
    """Send all files of a finished task once more, as a new task."""
    wanted = body or Redelivery()
    check = await engine.read(lambda c: engine.queue.check_redelivery(c, str(task_id)))
    await asyncio.to_thread(check)
    made = await engine.write(lambda tx: engine.queue.redeliver(tx, str(task_id), wanted))
    return answer(Task, made, 201)


@router.get("/api/jobs/{job_id:path}", response_model=Job, responses=documented(404))
async def job(engine: EngineDep, job_id: str) -> Response:
    """Show a job's tasks and whether its results are delivered."""
    shown = await engine.read(lambda connection: engine.queue.job(connection, job_id))
    return answer(Job, shown)
