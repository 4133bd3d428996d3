"""``register``: from a command line to an exit code; the one place that prints results and errors."""

import json
import os
import signal
import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from types import FrameType
from typing import Any, NoReturn, TextIO

from clara_results.domain.clock import SystemClock
from clara_results.domain.tasks import State
from clara_results.errors import (
    ClaraResultsError,
    Conflict,
    FieldError,
    NoFilesFound,
    NotDelivered,
    Stopping,
)
from clara_results.operator import data
from clara_results.operator.arguments import parse
from clara_results.operator.plan import Plan, make_plan
from clara_results.operator.progress import Progress
from clara_results.operator.request import Request, resolve
from clara_results.operator.scan import scan
from clara_results.wire.codec import to_json
from clara_results.wire.tasks import Task

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_REMEDIES = {State.FAILED: "retry", State.CANCELED: "redeliver"}


@dataclass(slots=True)
class _Outcome:
    """What came of it so far.

    Attributes:
        stage: What a person must know if it ends here.
        tasks: The tasks, once they are registered.
        dry_run: What a dry run found.
        error: Why it ended early.
    """

    stage: str = "Nothing was sent."
    tasks: list[Task] | None = None
    dry_run: dict[str, Any] | None = None
    error: ClaraResultsError | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        return self.error.exit_code if self.error else 0


def main(argv: list[str] | None = None) -> int:
    """Register results as the command line says.

    Args:
        argv: Arguments without the program's name; None: the process's own.

    Returns:
        The exit code; ``--help`` lists them.
    """
    arguments = sys.argv[1:] if argv is None else argv
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a file's name may be no text at all
    with _signals():
        outcome = _Outcome()
        try:
            _register(arguments, outcome)
        except Stopping as error:
            outcome.error = Stopping(f"{error}. {outcome.stage}")
            outcome.error.exit_code = error.exit_code
        except ClaraResultsError as error:
            outcome.error = error
        except ModuleNotFoundError as error:
            outcome.error = ClaraResultsError(
                f"the Python package {error.name} is not installed here: pip install {error.name}",
                code="not-installed",
            )
        except Exception as error:  # noqa: BLE001  (outermost: people are told in one line, not by a traceback)
            outcome.error = ClaraResultsError(
                f"this is a fault of the program ({type(error).__name__}: {error}). {outcome.stage}"
            )
        _quietly_ended_by_signals()
        return _tell(outcome, as_json="--json" in arguments)


def _register(arguments: list[str], outcome: _Outcome) -> None:
    program = "register.py" if sys.argv[0].endswith("register.py") else "clara-results register"
    flags = parse(arguments, program)
    progress = Progress(sys.stderr, SystemClock(), quiet=flags.quiet)
    try:
        request = resolve(flags, os.environ)
        plan = _plan(request, flags, progress)
        if plan is None:
            outcome.tasks = []
            outcome.notes.append(f"no file in {_looked_at(request)}: nothing was registered")
        elif flags.dry_run:
            outcome.dry_run = _described(request, plan)
        else:
            _send(request, plan, flags, progress, outcome)
    finally:
        progress.close()


def _plan(request: Request, flags: Namespace, progress: Progress) -> Plan | None:
    """Return the plan; None where there are no files and that is allowed."""
    found = scan(request.inputs, progress.warn)
    if found:
        return make_plan(request, found, progress.step)
    if flags.allow_empty:
        return None
    raise NoFilesFound(
        f"no file in {_looked_at(request)}: there is nothing to register (--allow-empty makes this "
        "a success)"
    )


def _looked_at(request: Request) -> str:
    return ", ".join(f"{each.path} (input {each.name})" for each in request.inputs)


def _send(
    request: Request, plan: Plan, flags: Namespace, progress: Progress, outcome: _Outcome
) -> None:
    from clara_results.operator.submit import Persistence, connect, submit  # imports urllib3

    clock = SystemClock()
    client = connect(request)
    persistence = Persistence(request.timeout, progress, clock, time.sleep)
    outcome.stage = (
        "Whether the service has these results is not known; run again, it takes up where this "
        "ended and registers nothing twice."
    )
    outcome.tasks = submit(request, plan, client, persistence, progress)
    outcome.stage = "The tasks are registered and go on without this program."
    _raise_superseded(outcome.tasks)
    if flags.wait is None:
        outcome.notes += [
            f"task {task.task_id} was registered before and is {task.state}: "
            f"clara-results tasks {_REMEDIES[task.state]} {task.task_id} sends it again"
            for task in outcome.tasks
            if task.state in _REMEDIES
        ]
        return
    from clara_results.operator.follow import follow, shortfall

    follow(outcome.tasks, flags.wait, client, persistence, progress, clock, time.sleep)
    short = {task.task_id: text for task in outcome.tasks if (text := shortfall(task))}
    if short:
        late = any(not task.state.finished for task in outcome.tasks)
        listing = "\n".join(f"  {text}" for text in short.values())
        raise NotDelivered(
            f"not all is delivered{f' after {flags.wait:g} s' if late else ''}:\n{listing}",
            errors=[FieldError(task_id, text) for task_id, text in short.items()],
        )


def _raise_superseded(tasks: list[Task]) -> None:
    """Refuse to call it a success when the service knows newer results than these.

    Raises:
        Conflict: Code ``superseded``.
    """
    old = {task.task_id: task for task in tasks if task.superseded_by}
    if not old:
        return
    faults = [
        FieldError(
            task_id,
            f"task {task_id} is {task.state}; task {task.superseded_by} is the newer one. "
            f"To send the older results all the same: clara-results tasks redeliver {task_id}",
        )
        for task_id, task in old.items()
    ]
    listing = "\n".join(f"  {fault.message}" for fault in faults)
    raise Conflict(
        "nothing new is registered: these results were registered before, and then superseded by "
        f"other ones of the same job, operator, agent and data\n{listing}",
        code="superseded",
        errors=faults,
    )


def _described(request: Request, plan: Plan) -> dict[str, Any]:
    """Return what a dry run shows."""
    elements = [None] if request.data is None else request.data
    return {
        "dryRun": True,
        "service": request.service,
        "agent": request.agent,
        "jobId": request.job_id,
        "pipelineId": request.pipeline_id,
        "payloadId": request.payload_id,
        "operator": request.operator,
        "idempotencyKey": plan.key,
        "tasks": [
            {"parameters": None if request.data is None else data.canonical(element)}
            for element in elements
        ],
        "files": [
            {
                "uri": file.uri,
                "size": file.size,
                "how": "in place" if file.sha256 is None else "upload",
                "path": file.path,
            }
            for file in plan.files
        ],
    }


def _tell(outcome: _Outcome, *, as_json: bool) -> int:
    """Print results on stdout, and notes and the error on stderr; return the exit code."""
    error = outcome.error
    lines = [_as_json(outcome)] if as_json else list(_as_text(outcome))
    for line in [*outcome.notes, *([_in_full(error)] if error else [])]:
        _say(line)
    try:
        for line in lines:
            _print(sys.stdout, line)
    except OSError as fault:
        # What is left in the buffer goes nowhere: Python must not fail over it at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(fault, BrokenPipeError):  # who reads has seen enough
            return outcome.exit_code
        _say(f"stdout can't be written: {fault.strerror}. {outcome.stage}")
        return outcome.exit_code or 1
    return outcome.exit_code


def _as_json(outcome: _Outcome) -> str:
    found: dict[str, Any] = dict(outcome.dry_run or {})
    if outcome.tasks is not None:
        found["tasks"] = [json.loads(to_json(task)) for task in outcome.tasks]
    if outcome.error:
        found["error"] = {
            "code": outcome.error.code,
            "message": str(outcome.error),
            "errors": [asdict(fault) for fault in outcome.error.errors],
        }
    return json.dumps(found)


def _as_text(outcome: _Outcome) -> Iterator[str]:
    for task in outcome.tasks or []:
        counts = asdict(task.counts)
        files = sum(counts.values())
        parameters = _shown(data.destination(task.parameters) or "-")
        yield (
            f"{task.task_id}  {task.state}  {task.agent}  {parameters}  "
            f"{files} file{'' if files == 1 else 's'}"
        )
    if outcome.dry_run is not None:
        yield from _dry_run_lines(outcome.dry_run)


def _dry_run_lines(described: dict[str, Any]) -> Iterator[str]:
    files = described["files"]
    for name in ("agent", "service", "jobId", "pipelineId", "payloadId", "operator"):
        yield f"{name:<15} {_shown(described[name] or '-')}"
    yield f"idempotencyKey  {described['idempotencyKey']}"
    yield f"tasks           {len(described['tasks'])}"
    for task in described["tasks"]:
        yield f"  {_shown(task['parameters'] or '-')}"
    yield f"files           {len(files)}, {sum(file['size'] for file in files)} bytes"
    for file in files:
        source = f"  from {_shown(file['path'])}" if file["how"] == "upload" else ""
        yield f"  {file['how']:<8}  {file['size']:>12}  {_shown(file['uri'])}{source}"
    yield "nothing was sent (dry run)"


def _in_full(error: ClaraResultsError) -> str:
    """Return an error's message and those single faults that it does not hold."""
    message = str(error)
    rest = [f"\n  {f.field}: {f.message}" for f in error.errors if f.message not in message]
    return message + "".join(rest)


def _shown(text: str) -> str:
    """Return text in which nothing can steer a terminal."""
    return "".join(
        c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text
    )


def _say(text: str) -> None:
    with suppress(OSError):  # stderr is gone: there is nowhere left to say so
        _print(sys.stderr, f"register: {_shown(text)}")


def _print(stream: TextIO | None, line: str) -> None:
    if stream is not None:  # it is None where it was closed before the start
        stream.write(line + "\n")
        stream.flush()


@contextmanager
def _signals() -> Iterator[None]:
    """Turn the signals that end a process into Stopping, and put them back as they were."""
    before = {number: signal.signal(number, _stop) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(number: int, _frame: FrameType | None) -> NoReturn:
    _quietly_ended_by_signals()
    error = Stopping(f"ended by {signal.Signals(number).name}")
    error.exit_code = 128 + number
    raise error


def _quietly_ended_by_signals() -> None:
    """Let a further signal end the process at once: only its last words are left to say."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_DFL)
