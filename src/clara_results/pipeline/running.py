"""A pipeline run on this machine: each operator a process, in the order of what it reads from whom."""

import asyncio
import contextlib
import hashlib
import json
import os
import re
import signal
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from clara_results import settings
from clara_results.domain.clock import Clock
from clara_results.errors import ClaraResultsError
from clara_results.pipeline.definition import Definition, Input, Operator, Output
from clara_results.pipeline.environment import platform_variables
from clara_results.pipeline.images import LocalImage, program, search_path
from clara_results.pipeline.payload import empty, is_empty
from clara_results.pipeline.record import RunFolder, RunRecord, StepRecord, StepState

GRACE = 10.0
"""Seconds between the signal that asks an operator to end (SIGTERM) and the one that ends it (SIGKILL)."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPlan:
    """What is to be run, and how.

    Attributes:
        definition: The pipeline.
        images: What stands for each image.
        job_id: The job's id, and the payload's.
        payloads: The folder of the payloads.
        service: URL of the Results Service.
        jobs: Operators that run side by side, at most.
        timeout: Seconds for which an operator may run, unless its image says otherwise.
        upload: Whether register steps upload files, as the service does not see the payloads' folder.
        environment: What operators inherit.
    """

    definition: Definition
    images: Mapping[str, LocalImage]
    job_id: str
    payloads: Path
    service: str
    jobs: int
    timeout: float
    upload: bool
    environment: Mapping[str, str]

    @property
    def payload(self) -> Path:
        """The payload's folder."""
        return self.payloads / self.job_id


@dataclass(frozen=True, slots=True)
class Process:
    """What is run for an operator.

    Attributes:
        command: Program and arguments.
        folder: Working folder.
        environment: All its variables.
        outputs: The folders that it writes.
        timeout: Seconds for which it may run.
        digest: Of all that is the operator's own in this, SHA-256 in hex.
    """

    command: tuple[str, ...]
    folder: Path
    environment: Mapping[str, str]
    outputs: tuple[Path, ...]
    timeout: float
    digest: str


def process_of(operator: Operator, plan: RunPlan) -> Process:
    """Return what is run for an operator.

    An argument, or a variable's value, that is a path where something is mounted, or lies below one, becomes the path
    of the payload's folder; so does what follows a ``=``.
    """
    image = plan.images[operator.container.image]
    mounts: list[Input | Output] = [*operator.inputs, *operator.outputs]
    folders = {str(each.path): str(plan.payload / each.folder) for each in mounts}
    words = operator.container.command or image.command or ()
    first = program(words[0], image.folder) or words[0]
    command = (first, *(_placed(word, folders) for word in words[1:]))
    own = platform_variables(
        plan.definition, operator, job_id=plan.job_id, payload_id=plan.job_id, service=plan.service,
        place=lambda mount: folders[mount.path],
    )  # fmt: skip
    variables = {name: _placed(value, folders) for name, value in operator.variables.items()}
    whole = [command, str(image.folder), sorted(variables.items()), sorted(folders.items())]
    own |= {} if plan.upload else {settings.variable("payloads"): str(plan.payloads)}
    inherited = {
        name: value for name, value in plan.environment.items()
        if not name.startswith("NVIDIA_CLARA_")
        and name not in {settings.INPUT_URIS, settings.variable("payloads")}
    }  # fmt: skip
    return Process(
        command=command,
        folder=image.folder,
        environment=inherited | {"PATH": search_path(), "PYTHONUNBUFFERED": "1"} | own | variables,
        outputs=tuple(plan.payload / each.folder for each in operator.outputs),
        timeout=image.timeout or plan.timeout,
        digest=hashlib.sha256(json.dumps(whole).encode()).hexdigest(),
    )


def _placed(word: str, folders: Mapping[str, str]) -> str:
    if not folders:
        return word
    paths = "|".join(re.escape(path) for path in sorted(folders, key=len, reverse=True))
    return re.sub(rf"(^|=)({paths})(?=/|$)", lambda found: found[1] + folders[found[2]], word)


class Run:
    """One run of a pipeline.

    Attributes:
        record: How it stands; replaced at each change.
        stopped_by: The signal that ended it early.
    """

    def __init__(
        self,
        plan: RunPlan,
        folder: RunFolder,
        clock: Clock,
        changed: Callable[[StepRecord], None],
        earlier: RunRecord | None = None,
    ) -> None:
        """Make one; nothing is started yet.

        Args:
            plan: What is run, and how.
            folder: Where its record and logs are.
            clock: Tells the time.
            changed: Told of every change of a step.
            earlier: The record of the run that this goes on with; what succeeded there, and is still the same, is kept.
        """
        self._plan = plan
        self._folder = folder
        self._clock = clock
        self._changed = changed
        self._processes = {str(o.name): process_of(o, plan) for o in plan.definition.operators}
        self._steps = _kept(plan.definition.operators, self._processes, earlier)
        self._running: set[int] = set()
        self._busy_since = 0.0
        self._busy = 0.0
        self.stopped_by: signal.Signals | None = None

    @property
    def record(self) -> RunRecord:
        """How the run stands."""
        return RunRecord(
            job_id=self._plan.job_id,
            pipeline=str(self._plan.definition.name),
            parameters=dict(self._plan.definition.parameters),
            payload=str(self._plan.payload),
            logs=str(self._folder.path / "logs"),
            steps=list(self._steps.values()),
        )

    def execute(self) -> RunRecord:
        """Run all operators that are not done, in the main thread, until they have ended or a signal ends them.

        After a failure nothing more is started; what runs then goes on to its end.

        Raises:
            ClaraResultsError: The record or a log can't be written; the operators are ended.
        """
        began = self._clock.monotonic()
        try:
            asyncio.run(self._execute())
            seconds = self._clock.monotonic() - began
            record = replace(self.record, seconds=seconds, platform_seconds=seconds - self._busy)
            self._folder.save(record)
        except* OSError as errors:
            first = errors.exceptions[0]
            raise ClaraResultsError(
                f"what becomes of the run can't be written to {self._folder.path}: {first}",
                code="record-unwritable",
            ) from first
        return record

    async def _execute(self) -> None:
        loop = asyncio.get_running_loop()
        self._stop: asyncio.Future[None] = loop.create_future()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self._asked_to_stop, number)
        self._folder.save(self.record)
        places = asyncio.Semaphore(self._plan.jobs)
        ended = {name: asyncio.Event() for name in self._steps}
        async with asyncio.TaskGroup() as group:
            for operator in self._plan.definition.operators:
                group.create_task(self._step(operator, places, ended))

    def _asked_to_stop(self, number: signal.Signals) -> None:
        if not self._stop.done():
            self.stopped_by = signal.Signals(number)
            self._stop.set_result(None)
            return
        for process in self._running:  # asked a second time: at once
            _signal(process, signal.SIGKILL)

    async def _step(
        self, operator: Operator, places: asyncio.Semaphore, ended: Mapping[str, asyncio.Event]
    ) -> None:
        name = str(operator.name)
        if self._steps[name].state is not StepState.SUCCEEDED:
            for source in operator.sources:
                await ended[source].wait()
            async with places:
                if self._goes_on(operator.sources):
                    await self._run(name, self._processes[name])
        ended[name].set()

    def _goes_on(self, sources: Iterable[str]) -> bool:
        failed = any(step.state is StepState.FAILED for step in self._steps.values())
        ready = all(self._steps[source].state is StepState.SUCCEEDED for source in sources)
        return ready and not failed and not self._stop.done()

    async def _run(self, name: str, process: Process) -> None:
        began = self._clock.monotonic()
        self._set(name, state=StepState.RUNNING, started_at=self._clock.now(), digest=process.digest, kept=False)  # fmt: skip
        try:
            for folder in process.outputs:
                empty(folder)
            with self._folder.log(name).open("wb") as log:
                child = await asyncio.create_subprocess_exec(
                    *process.command,
                    cwd=process.folder,
                    env=process.environment,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    pass_fds=(self._folder.lock,),
                )
        except OSError as error:
            self._set(name, state=StepState.FAILED, seconds=0.0, reason=f"{process.command[0]} can't be started: {error}")  # fmt: skip
            return
        self._counts_as_busy(child.pid)
        why = await self._wait(name, child, process.timeout)
        self._counts_as_busy(child.pid, ended=True)
        self._set(
            name,
            seconds=self._clock.monotonic() - began,
            exit_code=child.returncode,
            **_outcome(child.returncode or 0, why, process),
        )

    async def _wait(
        self, name: str, child: asyncio.subprocess.Process, timeout: float
    ) -> StepState | None:
        """Wait for a process and end all that it leaves behind.

        Returns:
            None where it ended by itself; STOPPED or FAILED where it was ended: a person asked, or its time was over.
        """
        end = asyncio.ensure_future(child.wait())
        either: set[asyncio.Future[Any]] = {end, self._stop}
        why = None
        try:
            await asyncio.wait(either, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            if not end.done():
                why = StepState.STOPPED if self._stop.done() else StepState.FAILED
                _signal(child.pid, signal.SIGTERM)
                self._set(name, note=f"asked to end; killed if it does not within {GRACE:g} s")
                await asyncio.wait({end}, timeout=GRACE)
        finally:
            _signal(child.pid, signal.SIGKILL)
            await end
        return why

    def _counts_as_busy(self, process: int, *, ended: bool = False) -> None:
        """Measure for how long any operator ran."""
        now = self._clock.monotonic()
        if not self._running:
            self._busy_since = now
        if ended:
            self._running.discard(process)
        else:
            self._running.add(process)
        if not self._running:
            self._busy += now - self._busy_since

    def _set(self, name: str, **changes: Any) -> None:
        step = self._steps[name] = replace(self._steps[name], **changes)
        self._folder.save(self.record)
        self._changed(step)


def _kept(
    operators: Sequence[Operator], processes: Mapping[str, Process], earlier: RunRecord | None
) -> dict[str, StepRecord]:
    """Return how the steps stand at first: what an earlier run did, is the same, and reads nothing new, is done."""
    before = {step.operator: step for step in earlier.steps} if earlier else {}
    steps: dict[str, StepRecord] = {}
    for operator in operators:
        name = str(operator.name)
        step = before.get(name)
        process = processes[name]
        same = step is not None and step.digest == process.digest
        there = all(folder.is_dir() for folder in process.outputs)
        kept = there and all(steps[source].kept for source in operator.sources)
        if step is not None and same and kept and step.state is StepState.SUCCEEDED:
            steps[name] = replace(step, kept=True)
        else:
            steps[name] = StepRecord(operator=name)
    return steps


def _outcome(code: int, why: StepState | None, process: Process) -> dict[str, Any]:
    """Return the state, reason and note of an operator that has ended."""
    if why is StepState.STOPPED:
        return {"state": StepState.STOPPED, "note": None, "reason": "ended with the run"}
    if why is StepState.FAILED:
        late = f"did not end within {process.timeout:g} s"
        return {"state": StepState.FAILED, "note": None, "reason": late}
    if code != 0:
        by = (
            f"by signal {-code} ({signal.strsignal(-code)})"
            if code < 0
            else f"with exit code {code}"
        )
        return {"state": StepState.FAILED, "reason": f"ended {by}"}
    bare = [folder.name for folder in process.outputs if is_empty(folder)]
    note = f"wrote nothing into {', '.join(bare)}" if bare else None
    return {"state": StepState.SUCCEEDED, "note": note, "reason": None}


def _signal(process: int, number: signal.Signals) -> None:
    """Send a signal to all processes of an operator, which is the leader of its group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process, number)
