"""What an exporter is given, and what it owes.

The runner claims a task, wraps it in a Delivery and calls ``Exporter.deliver``. The exporter tells an outcome for
every file of ``delivery.task.files``; what becomes of the task is decided by the service alone.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import BinaryIO, Protocol

from clara_results.domain.receivers import Clearance
from clara_results.errors import ClaraResultsError
from clara_results.wire.instances import Announced
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

    @property
    def associations(self) -> int:
        """Return how many associations or connections may be open for the task at this moment, at least one.

        It changes as the service shares a destination's among tasks and agents: look before each file, and close
        what is too many.
        """
        ...

    def uses(self, associations: int) -> None:
        """Say how many are open for the task, each time that changes: before one is opened, after one is closed."""
        ...

    def announce(self, receiver: str, instances: Sequence[Announced]) -> Mapping[str, Clearance]:
        """Note with the service, before any of them goes out, which DICOM instances are to be sent.

        Args:
            receiver: To whom: the destination's ``address``.
            instances: What.

        Returns:
            For each one's URI whether it may go out.

        Raises:
            LeaseLost: Another agent may have the task: send nothing more.
            Stopping: The agent was asked to end: send nothing more.
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

    @property
    def idle_seconds(self) -> float:
        """Return for how long it keeps an association open that no task of its uses."""
        ...

    def idle(self, task: Task) -> int:
        """Return how many associations it keeps open to a task's destination, and no task of its uses."""
        ...

    def close(self) -> None:
        """End what is kept open; nothing is delivered any more."""
        ...

    def deliver(self, delivery: Delivery) -> None:
        """Deliver a task and tell an outcome for each of its files.

        Raises:
            TaskRejected: Nothing of it can be delivered, now or later.
            DestinationUnavailable: The receiver as a whole is not to be had now; what was told stays told.
            LeaseLost: As ``checkpoint`` raised it.
            Stopping: As ``checkpoint`` raised it.
        """
        ...
