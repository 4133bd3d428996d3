"""What an exporter is given, and what it owes.

The runner claims a task, wraps it in a Delivery and calls ``Exporter.deliver``. The exporter tells an outcome for
every file of ``delivery.task.files``; what becomes of the task is decided by the service alone.
"""

from contextlib import AbstractContextManager
from typing import BinaryIO, Protocol

from clara_results.errors import ClaraResultsError
from clara_results.wire.tasks import FileOutcome, ResultFile, Task


class TaskRejected(ClaraResultsError):
    """A task as a whole can't be delivered, now or later: its destination is unknown, its parameters unusable."""

    code = "task-rejected"


class FileRejected(ClaraResultsError):
    """A file can't be delivered as it is now: it is gone (``missing-file``: retry) or changed (``file-changed``)."""

    code = "file-changed"


class Delivery(Protocol):
    """One claimed task in its agent's hands. Its methods may be called from several threads."""

    @property
    def task(self) -> Task:
        """Return the task as claimed; ``files`` are those not yet delivered."""
        ...

    def open(self, file: ResultFile) -> AbstractContextManager[BinaryIO]:
        """Open a file of the task: a regular file on a local disk, checked to be what was registered.

        Opening a file again is cheap: one that had to be fetched is kept until the task ends.

        Raises:
            FileRejected: It is gone, or of other size, time or digest than registered.
            ServiceUnavailable: It has to be fetched from the service, which does not answer.
        """
        ...

    def told(self, outcome: FileOutcome, size: int = 0) -> None:
        """Note what became of a file; it is reported within a second.

        Args:
            outcome: What became of it.
            size: Bytes that the receiver took, for progress.
        """
        ...

    def checkpoint(self) -> None:
        """Call before each file goes out. Waits while outcomes can't be reported.

        Raises:
            LeaseLost: Another agent may have the task: send nothing more.
            Stopping: The agent was asked to end: send nothing more.
        """
        ...


class Exporter(Protocol):
    """Delivers tasks of one kind."""

    def deliver(self, delivery: Delivery) -> None:
        """Deliver a task and tell an outcome for each of its files.

        Raises:
            TaskRejected: Nothing of it can be delivered, now or later.
            DestinationUnavailable: The receiver as a whole is not to be had now; what was told stays told.
            LeaseLost: As ``checkpoint`` raised it.
            Stopping: As ``checkpoint`` raised it.
        """
        ...
