"""``clara-results tasks``: watch the queue and mend what failed."""

import time
from collections.abc import Callable
from datetime import datetime
from typing import Annotated

import typer
from rich.console import Console
from rich.live import Live
from rich.text import Text

from clara_results.cli import options
from clara_results.cli.options import Config, Json, Service, TokenFile
from clara_results.cli.output import fitting, moment, show_json, show_table, state, table
from clara_results.domain.tasks import State
from clara_results.errors import InvalidInput
from clara_results.wire.codec import timestamp
from clara_results.wire.tasks import FilePage, Redelivery, Task, TaskFilter, TaskPage

app = typer.Typer(help="Watch the queue, and mend what failed.", no_args_is_help=True)
COLUMNS = ("task", "state", "agent", "parameters", "job", "files", "tries", "updated", "why")
NARROW = ("task", "state", "parameters", "files", "why")
"""Columns on a terminal that has no room for all."""
EMPTY = "No task here. A pipeline's last step registers results:\n  python register.py --agent ClaraSCU --data '[\"Orthanc\"]'"  # fmt: skip
FILES_SHOWN = 20

TaskId = Annotated[str, typer.Argument(help="The task's id.")]
SomeTasks = Annotated[list[str] | None, typer.Argument(help="Tasks' ids; or none, and a filter.")]
InState = Annotated[State | None, typer.Option("--state", help="Only tasks in this state.")]
OfAgent = Annotated[str | None, typer.Option("--agent", help="Only this agent's tasks.")]
OfJob = Annotated[str | None, typer.Option("--job", help="Only this job's tasks.")]
OfPayload = Annotated[str | None, typer.Option("--payload", help="Only tasks on this payload.")]
ToDestination = Annotated[
    str | None, typer.Option("--destination", help="Only tasks to this destination.")
]
_FORMATS = ["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M:%S%z"]
Since = Annotated[
    datetime | None,
    typer.Option(
        "--since",
        formats=_FORMATS,
        help="Only tasks registered then or later; this machine's time where no offset is given.",
    ),
]
Until = Annotated[
    datetime | None,
    typer.Option("--until", formats=_FORMATS, help="Only tasks registered then or earlier."),
]  # fmt: skip


@app.command("list")
def listing(
    state: InState = None,
    agent: OfAgent = None,
    job: OfJob = None,
    payload: OfPayload = None,
    destination: ToDestination = None,
    since: Since = None,
    until: Until = None,
    query: Annotated[
        str | None,
        typer.Option("--query", "-q", help="A whole Study, Series or SOP Instance UID, accession number, patient id or task id; or part of a job, pipeline, payload, operator or destination."),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="At most so many.")] = 100,
    as_json: Json = False,
    service: Service = None,
    token_file: TokenFile = None,
    config: Config = None,
) -> None:  # fmt: skip
    """List tasks, newest first."""
    client = options.client(config, service, token_file)
    found: list[Task] = []
    cursor: str | None = None
    while len(found) < limit:
        page = client.tasks(
            state=state, agent=agent, jobId=job, payloadId=payload, destination=destination,
            since=None if since is None else timestamp(since),
            until=None if until is None else timestamp(until), q=query, cursor=cursor, limit=min(1000, limit - len(found)),
        )  # fmt: skip
        found += page.items
        cursor = page.next_cursor
        if cursor is None:
            break
    if as_json:
        show_json(TaskPage(items=found, next_cursor=cursor))
        return
    show_table(COLUMNS, [_row(task) for task in found], EMPTY, NARROW)
    if cursor is not None:
        Console(stderr=True).print(
            Text(f"there are more; the first {limit} are shown (--limit)", "dim")
        )


@app.command("show")
def show(
    task_id: TaskId,
    as_json: Json = False,
    service: Service = None,
    token_file: TokenFile = None,
    config: Config = None,
) -> None:
    """Show one task: what happened to it, and what became of its files."""
    client = options.client(config, service, token_file)
    task = client.task(task_id)
    if as_json:
        show_json(task)
        return
    show_table(COLUMNS, [_row(task)], EMPTY, NARROW)
    console = Console()
    for link, other in (("supersedes", task.supersedes), ("superseded by", task.superseded_by), ("redelivery of", task.redelivery_of)):  # fmt: skip
        if other is not None:
            console.print(Text(f"{link} {other}"))
    console.print()
    entries = [
        (moment(e.at), e.event, "" if e.attempt is None else str(e.attempt), e.message or "")
        for e in task.history or ()
    ]
    show_table(("when", "what", "attempt", ""), entries, "")
    console.print()
    _show_files(client.files(task_id, limit=FILES_SHOWN))


@app.command("retry")
def retry(
    tasks: SomeTasks = None,
    agent: OfAgent = None,
    job: OfJob = None,
    payload: OfPayload = None,
    destination: ToDestination = None,
    since: Since = None,
    until: Until = None,
    as_json: Json = False,
    service: Service = None,
    token_file: TokenFile = None,
    config: Config = None,
) -> None:
    """Put Failed tasks back to Pending; files already delivered stay delivered."""
    client = options.client(config, service, token_file)
    if tasks:
        _each(tasks, client.retry, "retried", as_json)
    else:
        changed = client.retry_all(
            _filter(None, agent, job, payload, destination, since, until)
        ).changed
        typer.echo(f"{changed} tasks are Pending again")


@app.command("cancel")
def cancel(
    tasks: SomeTasks = None,
    state: InState = None,
    agent: OfAgent = None,
    job: OfJob = None,
    payload: OfPayload = None,
    destination: ToDestination = None,
    since: Since = None,
    until: Until = None,
    as_json: Json = False,
    service: Service = None,
    token_file: TokenFile = None,
    config: Config = None,
) -> None:
    """Cancel unfinished tasks; whoever holds one loses its lease."""
    client = options.client(config, service, token_file)
    if tasks:
        _each(tasks, client.cancel, "canceled", as_json)
    else:
        changed = client.cancel_all(
            _filter(state, agent, job, payload, destination, since, until)
        ).changed
        typer.echo(f"{changed} tasks are Canceled")


@app.command("redeliver")
def redeliver(
    task_id: TaskId,
    destination: Annotated[
        str | None,
        typer.Option("--destination", help="To another destination than the task's own."),
    ] = None,
    as_json: Json = False,
    service: Service = None,
    token_file: TokenFile = None,
    config: Config = None,
) -> None:
    """Send all files of a finished task once more, as a new task."""
    client = options.client(config, service, token_file)
    made = client.redeliver(task_id, Redelivery(destination=destination))
    if as_json:
        show_json(made)
    else:
        typer.echo(f"task {made.task_id} sends the files of {task_id} once more")


@app.command("watch")
def watch(
    job: OfJob = None,
    agent: OfAgent = None,
    destination: ToDestination = None,
    service: Service = None,
    token_file: TokenFile = None,
    config: Config = None,
) -> None:
    """Follow the queue until Ctrl-C; with --job until all tasks of the job are finished."""
    client = options.client(config, service, token_file)
    console = Console()
    seen: dict[str, str] = {}
    with Live(console=console, auto_refresh=False, transient=False) as live:
        while True:
            page = client.tasks(jobId=job, agent=agent, destination=destination, limit=20)
            if console.is_terminal:
                live.update(
                    table(COLUMNS, [_row(task) for task in page.items], fitting(console, NARROW)),
                    refresh=True,
                )
            else:
                for task in reversed(page.items):
                    line = "\t".join(str(cell) for cell in _row(task))
                    if seen.get(task.task_id) != line:
                        seen[task.task_id] = line
                        typer.echo(line)
            if job is not None and page.items and all(t.state.finished for t in page.items):
                return
            time.sleep(1.0)


def _filter(
    state: State | None,
    agent: str | None,
    job: str | None,
    payload: str | None,
    destination: str | None,
    since: datetime | None,
    until: datetime | None,
) -> TaskFilter:
    if not any((state, agent, job, payload, destination, since, until)):
        raise InvalidInput(
            "give tasks' ids, or say which: --agent, --job, --payload, --destination, --since, --until"
        )
    return TaskFilter(
        state=state,
        agent=agent,
        job_id=job,
        payload_id=payload,
        destination=destination,
        since=since and since.astimezone(),
        until=until and until.astimezone(),
    )


def _each(tasks: list[str], act: Callable[[str], Task], done: str, as_json: bool) -> None:
    changed = [act(task_id) for task_id in tasks]
    if as_json:
        show_json(TaskPage(items=changed))
    else:
        for task in changed:
            typer.echo(f"{done} {task.task_id}: {task.state}")


def _row(task: Task) -> tuple[str | Text, ...]:
    counts = task.counts
    total = counts.pending + counts.delivered + counts.skipped + counts.retry + counts.rejected
    return (
        task.task_id,
        state(task.state),
        task.agent,
        task.parameters or "",
        task.job_id,
        f"{counts.delivered}/{total}"
        + (f", {counts.rejected} rejected" if counts.rejected else ""),
        f"{task.attempt} ({task.retries}/{task.max_retries})",
        moment(task.updated_at),
        "" if task.last_error is None or task.state == State.SUCCEEDED else task.last_error.message,
    )


def _show_files(page: FilePage) -> None:
    rows = [
        (
            f.uri,
            f.outcome.value,
            f.code or "",
            f.message or "",
            "" if f.size is None else f"{f.size:,}",
        )
        for f in page.items
    ]
    show_table(("file", "outcome", "code", "message", "bytes"), rows, "")
    if page.next_cursor is not None:
        Console().print(Text(f"the first {len(rows)} files; --json and the API give all", "dim"))
