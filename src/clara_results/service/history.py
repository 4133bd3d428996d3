"""A task's history: each entry is kept with the task, and counted once it is durable."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from clara_results.domain.happenings import TaskHappening
from clara_results.domain.tasks import State
from clara_results.store import tasks as store
from clara_results.store.database import Transaction


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What happened to a task.

    Attributes:
        task: The task's row.
        agent: Its agent.
        destination: Its destination's key.
        at: When.
        event: What: ``registered``, ``claimed``, ``succeeded``, …
        state: The task's state from then on.
        attempt: The attempt that it belongs to.
        message: More, for people; it is shown with the task only.
        delivered_after: Time from registration, if the task Succeeded by it.
    """

    task: int
    agent: str
    destination: str
    at: datetime
    event: str
    state: State
    attempt: int | None = None
    message: str | None = None
    delivered_after: timedelta | None = None


def note(transaction: Transaction, entry: Entry) -> None:
    """Write an entry."""
    store.insert_history(
        transaction.connection,
        {
            "task": entry.task,
            "at": entry.at,
            "event": entry.event,
            "state": entry.state,
            "attempt": entry.attempt,
            "message": entry.message,
        },
    )
    transaction.happened.append(
        TaskHappening(entry.agent, entry.destination, entry.event, entry.delivered_after)
    )
