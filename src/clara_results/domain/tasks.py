"""What a task and its files can be."""

import secrets
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from uuid import UUID


class State(StrEnum):
    """Where a task stands. The names are the original's, except Canceled."""

    PENDING = "Pending"
    IN_PROGRESS = "InProgress"
    AWAITING_COMMITMENT = "AwaitingCommitment"
    """All of it was sent; the receiver has yet to commit itself to keep it. No agent holds it."""
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
    AWAITING = "awaiting"
    """The receiver took it and is to commit itself to keep it."""
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
    awaiting: int = 0
    delivered: int = 0
    skipped: int = 0
    retry: int = 0
    rejected: int = 0

    @property
    def total(self) -> int:
        """Return the number of files."""
        return sum(getattr(self, outcome) for outcome in Outcome)


def new_task_id(now: datetime) -> str:
    """Return a fresh task id: a UUID of version 7 (RFC 9562 5.7).

    It begins with the time, to the millisecond, so that the ids of new tasks are next to each other in an index; 74 random
    bits follow, so that it can't be guessed.
    """
    milliseconds = int(now.timestamp() * 1000)
    random = secrets.randbits(74)
    high, low = random >> 62, random & (1 << 62) - 1
    return str(UUID(int=milliseconds << 80 | 0x7 << 76 | high << 64 | 0b10 << 62 | low))
