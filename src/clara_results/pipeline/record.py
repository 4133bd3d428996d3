"""What became of a run: written at each change, and read again to go on after a failure."""

import fcntl
import json
import os
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path

from clara_results.errors import Conflict, NotFound, UnreadableInput
from clara_results.wire.codec import body, from_json, to_json


class StepState(StrEnum):
    """How a step of a run stands."""

    WAITING = "Waiting"
    RUNNING = "Running"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    STOPPED = "Stopped"
    """A person ended the run while this step ran."""


@body()
class StepRecord:
    """What became of one operator.

    Attributes:
        operator: Its name.
        state: How it stands.
        digest: SHA-256 of what was run, in hex: command, folder, variables, inputs, outputs.
        kept: Whether an earlier run of the same job did it.
        started_at: When it was started.
        seconds: How long it ran.
        exit_code: What it ended with; negative: the signal that ended it.
        reason: Why it failed, in words.
        note: What a person should know although it is no failure.
    """

    operator: str
    state: StepState = StepState.WAITING
    digest: str = ""
    kept: bool = False
    started_at: datetime | None = None
    seconds: float | None = None
    exit_code: int | None = None
    reason: str | None = None
    note: str | None = None


@body()
class RunRecord:
    """What became of a run.

    Attributes:
        job_id: The job, and the payload.
        pipeline: The pipeline's name.
        parameters: Values of its parameters.
        payload: The payload's folder.
        logs: The folder of the operators' logs.
        seconds: How long it took.
        platform_seconds: For how long of these no operator ran.
        steps: One for each operator, each after those that it reads from.
    """

    job_id: str
    pipeline: str
    parameters: dict[str, str]
    payload: str
    logs: str
    seconds: float = 0.0
    platform_seconds: float = 0.0
    steps: list[StepRecord]

    def those(self, state: StepState) -> list[StepRecord]:
        """Return the steps in a state."""
        return [step for step in self.steps if step.state is state]


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The folder in which a run keeps its record and the logs.

    Attributes:
        path: The folder.
        lock: Descriptor of the lock that this process holds. Operators inherit it: while any of them lives, also
            one that outlived its run, no other run of the job can begin.
    """

    path: Path
    lock: int

    @classmethod
    def make(cls, path: Path) -> "RunFolder":
        """Make the folder of a new run.

        Raises:
            Conflict: There is one of that job already.
        """
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            raise Conflict(
                f"there is a run of the job {path.name} already: --resume {path.name} goes on with it, or take "
                "another --job",
                code="job-exists",
            ) from None
        (path / "logs").mkdir()
        return cls(path, _locked(path))

    @classmethod
    def open(cls, path: Path) -> "RunFolder":
        """Open the folder of an earlier run.

        Raises:
            NotFound: There is none.
            Conflict: It is still going on.
        """
        if not (path / "run.json").is_file():
            raise NotFound(
                f"there is no run of a job {path.name} in {path.parent}", code="run-not-found"
            )
        return cls(path, _locked(path))

    def close(self) -> None:
        """Let others have the run."""
        os.close(self.lock)

    def log(self, operator: str) -> Path:
        """Return the path of an operator's log."""
        return self.path / "logs" / f"{operator}.log"

    def save(self, record: RunRecord) -> None:
        """Write the record, as a whole or not at all."""
        aside = self.path / "run.json.new"
        aside.write_bytes(to_json(record))
        aside.replace(self.path / "run.json")

    def load(self) -> RunRecord:
        """Read the record.

        Raises:
            UnreadableInput: It is damaged.
        """
        path = self.path / "run.json"
        try:
            return from_json(RunRecord, json.loads(path.read_bytes()))
        except (OSError, ValueError) as error:
            raise UnreadableInput(f"{path} can't be read: {error}; begin a new run") from error


def _locked(path: Path) -> int:
    lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise Conflict(
            f"a run of the job {path.name}, or an operator that it has started, is still going on: end it first",
            code="run-active",
        ) from None
    return lock
