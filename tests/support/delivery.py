"""A Delivery without a service: files of a folder go in, outcomes are kept."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from clara_results.agents.exporter import FileRejected
from clara_results.domain.receivers import Clearance
from clara_results.domain.tasks import Outcome, State
from clara_results.wire.instances import Announced
from clara_results.wire.tasks import FileOutcome, ResultFile, Task


class FolderDelivery:
    """One task in an agent's hands (see ``agents.exporter.Delivery``).

    Args:
        folder: Its files are the task's, by name.
        parameters: The task's.
        at_checkpoint: Called at each checkpoint with the number of those before; may raise.
        associations: How many may be open for the task; a test may change it meanwhile.
        clearances: What is answered when instances are announced, by URI; those not in it may be sent.

    Attributes:
        task: The task.
        outcomes: What was told, by URI, in the order in which it was told.
        bytes_told: What the receiver took, in bytes, as it was told.
        announced: What was announced, in order.
        used: How many associations it said to use, each time it said so.
    """

    def __init__(
        self,
        folder: Path,
        parameters: str | None = '"PACS"',
        at_checkpoint: Callable[[int], None] = lambda _: None,
        associations: int = 1,
        clearances: Mapping[str, Clearance] | None = None,
    ) -> None:
        self._folder = folder
        self._at_checkpoint = at_checkpoint
        self._checkpoints = 0
        self._clearances = clearances or {}
        self._lock = threading.Lock()
        self.associations = associations
        self.announced: list[Announced] = []
        self.used: list[int] = []
        self.outcomes: dict[str, FileOutcome] = {}
        self.bytes_told = 0
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        moment = datetime(2026, 1, 2, tzinfo=UTC)
        self.task = Task(
            task_id="task-1",
            job_id="job-1",
            pipeline_id="pipeline-1",
            payload_id="payload-1",
            parameters=parameters,
            state=State.IN_PROGRESS,
            agent="clarascu",
            retries=0,
            max_retries=3,
            created_at=moment,
            updated_at=moment,
            files=[
                ResultFile(uri=path.relative_to(folder).as_posix(), size=path.stat().st_size)
                for path in files
            ],
        )

    def uris(self, outcome: Outcome) -> list[str]:
        """Return the URIs of files of which an outcome was told, sorted."""
        return sorted(told.uri for told in self.outcomes.values() if told.outcome == outcome)

    @contextmanager
    def open(self, file: ResultFile) -> Iterator[BinaryIO]:
        try:
            opened = (self._folder / file.uri).open("rb")
        except FileNotFoundError as cause:
            raise FileRejected(f"{file.uri!r} is gone", code="missing-file") from cause
        with opened:
            size = opened.seek(0, 2)
            opened.seek(0)
            if size != file.size:
                raise FileRejected(f"{file.uri!r} has {size} bytes, {file.size} were registered")
            yield opened

    def uses(self, associations: int) -> None:
        self.used.append(associations)

    def announce(self, receiver: str, instances: Sequence[Announced]) -> Mapping[str, Clearance]:
        self.checkpoint()
        self.announced += instances
        return {one.uri: self._clearances.get(one.uri, Clearance.SEND) for one in instances}

    def told(self, outcome: FileOutcome, size: int = 0) -> None:
        with self._lock:
            assert outcome.uri not in self.outcomes, f"{outcome.uri} was told twice"
            self.outcomes[outcome.uri] = outcome
            self.bytes_told += size

    def checkpoint(self) -> None:
        with self._lock:
            count = self._checkpoints
            self._checkpoints += 1
        self._at_checkpoint(count)

    def codes(self, outcome: Outcome | None = None) -> dict[str, str | None]:
        """Return the codes that were told, by URI; of one outcome only, if it is given."""
        return {
            told.uri: told.code
            for told in self.outcomes.values()
            if outcome is None or told.outcome == outcome
        }
