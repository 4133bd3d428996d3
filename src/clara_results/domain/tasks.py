"""What a task and its files can be."""

from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    """Where a task stands. The names are the original's, except Canceled."""

    PENDING = "Pending"
    IN_PROGRESS = "InProgress"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    CANCELED = "Canceled"

    @property
    def finished(self) -> bool:
        """Tell whether no agent will take the task up again by itself."""
        return self in {State.SUCCEEDED, State.FAILED, State.CANCELED}


class Outcome(StrEnum):
    """What became of one file of a task."""

    PENDING = "pending"
    """Not yet told."""
    DELIVERED = "delivered"
    """The receiver answered that it has it."""
    SKIPPED = "skipped"
    """Not for this agent; the message says why."""
    RETRY = "retry"
    """Not this time; to be sent again."""
    REJECTED = "rejected"
    """Refused for good."""

    @property
    def open(self) -> bool:
        """Tell whether the file is still to be sent."""
        return self in {Outcome.PENDING, Outcome.RETRY}


@dataclass(frozen=True, slots=True)
class Counts:
    """How many files of a task have which outcome."""

    pending: int = 0
    delivered: int = 0
    skipped: int = 0
    retry: int = 0
    rejected: int = 0

    @property
    def total(self) -> int:
        """Return the number of files."""
        return self.pending + self.delivered + self.skipped + self.retry + self.rejected
