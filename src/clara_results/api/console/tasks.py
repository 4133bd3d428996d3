"""The console's pages of tasks: the list, one task, one job."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any
from urllib.parse import quote, urlencode
from uuid import UUID

import sqlalchemy as sa
from fastapi import APIRouter, Request, Response

from clara_results.api.access import allows
from clara_results.api.console.pages import PageRoute, render
from clara_results.api.dependencies import EngineDep
from clara_results.domain import names, status_words
from clara_results.domain.tasks import Outcome, State
from clara_results.errors import InvalidInput
from clara_results.service import selection, views
from clara_results.store import destinations as destination_store
from clara_results.store import tasks as store
from clara_results.store.schema import EPOCH
from clara_results.store.statements import Row
from clara_results.wire.codec import to_json
from clara_results.wire.tasks import Attempt, HistoryEntry, Task, TaskFile, TaskFilter

router = APIRouter(include_in_schema=False, route_class=PageRoute)
PAGE = 50
"""Tasks, or files, a page."""
JOB_LIMIT = 100
"""Tasks of a job that its page shows."""
STEP_LIMIT = 100
"""Entries of a task's history that its page shows: where a receiver is away for days there are thousands."""
AGES = {
    "1h": ("last hour", timedelta(hours=1)),
    "24h": ("last 24 hours", timedelta(hours=24)),
    "7d": ("last 7 days", timedelta(days=7)),
    "30d": ("last 30 days", timedelta(days=30)),
}
"""Times of registration to choose from: key → words and how long ago."""
_FIELDS = {
    "q": "q", "state": "state", "agent": "agent", "destination": "destination", "jobId": "job_id", "payloadId": "payload_id",
}  # fmt: skip
"""The list's query parameters, and the filter's fields that they are."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a list's address asks for.

    Attributes:
        which: The filter.
        given: Its parameters as they came, without the empty ones.
        before: Only tasks older than the one of this id; ``after``: newer.
        faults: What is wrong with the address, in words.
    """

    which: TaskFilter
    given: Mapping[str, str]
    before: int | None
    after: int | None
    faults: Sequence[str]

    def address(self, **changed: str | int | None) -> str:
        """Return the list's address with some parameters changed (None: left out), on its first page."""
        query = {k: v for k, v in {**self.given, **changed}.items() if v is not None}
        return "/tasks" + (f"?{urlencode(query)}" if query else "")


@dataclass(frozen=True, slots=True)
class Listed:
    """A page of tasks.

    Attributes:
        tasks: Newest first.
        newer: Address of the page before; None: there is none.
        older: Of the page after.
    """

    tasks: Sequence[Task]
    newer: str | None
    older: str | None


@dataclass(frozen=True, slots=True)
class Step:
    """Something that happened to a task, for its timeline.

    Attributes:
        entry: What the history says.
        words: The same for people.
        tone: ``good``, ``bad``, ``busy`` or ``plain``.
        attempt: Of a claim: how it went.
        took: Of a claim that has ended: how long.
        other: Another task that it tells of.
    """

    entry: HistoryEntry
    words: str
    tone: str
    attempt: Attempt | None = None
    took: timedelta | None = None
    other: str | None = None


_HAPPENED = {
    "registered": ("Registered", "plain"),
    "claimed": ("Taken up", "busy"),
    "sent": ("Sent; the receiver is to commit itself to keep it", "busy"),
    "partly-committed": ("The receiver committed itself to keep a part of it", "bad"),
    "succeeded": ("Delivered: the receiver has every file", "good"),
    "failed": ("Failed", "bad"),
    "retry": ("Not delivered this time; tried again", "bad"),
    "unavailable": ("The destination could not be reached; tried again", "bad"),
    "released": ("Given back by an agent that shuts down", "plain"),
    "lease-expired": ("Its agent fell silent; given to another", "bad"),
    "retried": ("Retried by a person", "plain"),
    "canceled": ("Canceled", "plain"),
    "superseded": ("Superseded by a newer registration", "plain"),
    "redelivered": ("Sent once more, as a new task", "plain"),
}


_TASK_ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)
_PICTURES = (".dcm", ".png", ".jpg", ".jpeg")


@router.get("/tasks")
async def tasks(request: Request, engine: EngineDep) -> Response:
    """Show a list of tasks."""
    asked = _asked(request.query_params, engine.clock.now())
    operates = await allows(request, "operate")

    def look(connection: sa.Connection) -> dict[str, Any]:
        return {
            "listed": _listed(connection, asked, patients=operates),
            "counts": store.state_counts(connection),
            "destinations": [row.name for row in destination_store.all_destinations(connection)],
            "agents": sorted(
                {row.agent for row in destination_store.agents_since(connection, EPOCH)}
            ),
        }

    return await _render(
        request,
        "tasks.html",
        asked=asked,
        ages=AGES,
        states=list(State),
        filter_json=to_json(asked.which).decode(),
        **await engine.read(look),
    )


@router.get("/tasks/{task_id}")
async def task(request: Request, engine: EngineDep, task_id: UUID) -> Response:
    """Show one task."""
    operates = await allows(request, "operate")
    outcome, after = _files_asked(request.query_params)

    def look(connection: sa.Connection) -> dict[str, Any]:
        shown = engine.queue.show(connection, str(task_id))
        row = store.by_id(connection, shown.task_id)
        files = store.files_page(connection, row.id, outcome, after, PAGE + 1) if row else ()
        more = files[PAGE - 1].position if len(files) > PAGE else None
        return {
            "task": shown,
            "files": [views.task_file(file, patients=operates) for file in files[:PAGE]],
            "more": more,
            "destinations": [row.name for row in destination_store.all_destinations(connection)],
            "datasets": engine.datasets.page(
                connection, where={"task_id": shown.task_id}, cursor=None, limit=100
            ).items,
        }

    found = await engine.read(look)
    return await _render(
        request,
        "task.html",
        **found,
        steps=_steps(found["task"])[:STEP_LIMIT],
        earlier=max(0, len(found["task"].history) - STEP_LIMIT),
        outcome=outcome,
        outcomes=list(Outcome),
        after=after,
        explained=status_words.explained,
    )


@router.get("/jobs/{job_id:path}")
async def job(request: Request, engine: EngineDep, job_id: str) -> Response:
    """Show a job's tasks, and whether its results are delivered."""

    def look(connection: sa.Connection) -> dict[str, Any]:
        found = engine.queue.job(connection, job_id)
        datasets = engine.datasets.page(
            connection, where={"job_id": job_id}, cursor=None, limit=100
        )
        return {"job": found, "datasets": datasets.items}

    found = await engine.read(look)
    all_tasks: list[Task] = found["job"].tasks
    done = {State.SUCCEEDED, State.CANCELED}
    in_order = sorted(all_tasks, key=lambda task: task.state in done)  # what is missing first
    return await _render(
        request,
        "job.html",
        **found,
        shown=in_order[:JOB_LIMIT],
        counts={s: n for s in State if (n := sum(task.state == s for task in all_tasks))},
        failed=sum(t.state == State.FAILED and t.superseded_by is None for t in all_tasks),
        unfinished=sum(not task.state.finished for task in all_tasks),
        filter_json=to_json(TaskFilter(job_id=job_id)).decode(),
        payloads=sorted({task.payload_id for task in all_tasks}),
    )


async def _render(request: Request, template: str, **context: Any) -> Response:
    """Return a page of tasks, with what its template asks of them."""
    url = request.url
    here = url.path + (f"?{url.query}" if url.query else "")
    return await render(
        request,
        template,
        here=here,
        total=_total,
        goes_to=_goes_to,
        pictured=_pictured,
        quoted=quote,
        **context,
    )


def _total(shown: Task) -> int:
    """Return the number of a task's files."""
    return sum(getattr(shown.counts, outcome) for outcome in Outcome)


def _goes_to(shown: Task) -> str:
    """Return where a task is to go, as it was registered; else its parameters, or its agent."""
    named = None if shown.parameters is None else json.loads(shown.parameters)
    if not isinstance(named, str) or not named:
        return shown.destination or shown.parameters or shown.agent
    as_given = shown.destination is None or names.name_key(named) == shown.destination
    return named if as_given else str(shown.destination)


def _pictured(file: TaskFile) -> bool:
    """Tell whether a file may well have a picture: an instance, or an image by its name."""
    return file.sop_class_uid is not None or file.uri.lower().endswith(_PICTURES)


def _asked(query: Mapping[str, str], now: datetime) -> Asked:
    """Read a list's address; what is wrong in it is said and left out."""
    given = {name: value.strip() for name, value in query.items() if value.strip()}
    faults: list[str] = []
    fields: dict[str, Any] = {
        field: given[name] for name, field in _FIELDS.items() if name in given
    }
    if "state" in fields and fields["state"] not in set(State):
        faults.append(f"there is no state of that name; there are: {', '.join(State)}")
        del fields["state"]
    elif "state" in fields:
        fields["state"] = State(fields["state"])
    if given.get("within") in AGES:
        fields["since"] = now - AGES[given["within"]][1]
    for name in ("since", "until"):
        if name in given:
            fields[name] = _moment(name, given[name], faults)
    cursors = {name: given.pop(name, "") for name in ("before", "after")}
    before, after = (
        int(text) if text.isdecimal() and len(text) < 19 else None for text in cursors.values()
    )
    which = TaskFilter(**fields)
    try:
        selection.chosen(which, patients=False)
    except InvalidInput as error:
        faults.append(str(error))
        which = replace(which, since=None, until=None, q=None)
    kept = {name: given[name] for name in (*_FIELDS, "within", "since", "until") if name in given}
    return Asked(which, kept, before, after, faults)


def _moment(name: str, text: str, faults: list[str]) -> datetime | None:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        faults.append(f"{name}: that is not a time such as 2026-11-22T08:30:00Z")
        return None


def _listed(connection: sa.Connection, asked: Asked, *, patients: bool) -> Listed:
    wanted = selection.chosen(asked.which, patients=patients)
    look = partial(store.tasks_page, connection, wanted, PAGE + 1)
    if asked.after is None:
        rows = look(before=asked.before)
        more_newer, more_older = asked.before is not None, len(rows) > PAGE
        rows = rows[:PAGE]
    else:
        rows = look(after=asked.after)
        more_newer, more_older = len(rows) > PAGE, True
        rows = rows[-PAGE:]
    return Listed(
        tasks=[views.task(row) for row in rows],
        newer=_page_address(asked, "after", rows, 0) if more_newer else None,
        older=_page_address(asked, "before", rows, -1) if more_older else None,
    )


def _page_address(asked: Asked, cursor: str, rows: Sequence[Row], place: int) -> str:
    """Return the address of the page that lies past a row of this one; of the first if there is none."""
    return asked.address(**{cursor: rows[place].id}) if rows else asked.address()


def _files_asked(query: Mapping[str, str]) -> tuple[Outcome | None, int]:
    """Read which files of a task are asked for: of which outcome, and past which position."""
    outcome, after = query.get("outcome"), query.get("after", "")
    return (
        Outcome(outcome) if outcome in set(Outcome) else None,
        int(after) if after.isdecimal() and len(after) < 10 else -1,
    )


def _steps(shown: Task) -> list[Step]:
    """Return a task's history, newest first, with how each claim went."""
    attempts = {attempt.attempt: attempt for attempt in shown.attempts or ()}
    steps = []
    for entry in shown.history or ():
        words, tone = _HAPPENED.get(entry.event, (entry.event, "plain"))
        attempt = attempts.get(entry.attempt or 0) if entry.event == "claimed" else None
        ended = attempt.ended_at if attempt is not None else None
        took = ended - attempt.claimed_at if attempt is not None and ended is not None else None
        other = _TASK_ID.search(entry.message or "")
        steps.append(Step(entry, words, tone, attempt, took, other and other[0]))
    return steps[::-1]
