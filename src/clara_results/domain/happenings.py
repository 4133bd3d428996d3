"""What happens to tasks, for whoever counts it. Told once it is durable, by the process that wrote it."""

from dataclasses import dataclass
from datetime import timedelta

from clara_results.domain.tasks import Outcome


@dataclass(frozen=True, slots=True)
class TaskHappening:
    """One entry of a task's history.

    Attributes:
        agent: Whose task.
        destination: Its destination's key; empty where it names none. May be any text at all.
        event: As in the history: ``registered``, ``claimed``, ``succeeded``, …
        delivered_after: Time from registration to Succeeded; None: it did not become so.
    """

    agent: str
    destination: str
    event: str
    delivered_after: timedelta | None = None


@dataclass(frozen=True, slots=True)
class FileHappening:
    """Some files of a task got an outcome.

    Attributes:
        agent: Whose task.
        destination: As above.
        outcome: Which.
        count: How many files.
    """

    agent: str
    destination: str
    outcome: Outcome
    count: int


Happening = TaskHappening | FileHappening
