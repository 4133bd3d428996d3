"""What ``GET /api/events`` tells."""

from datetime import datetime

from clara_results.domain.tasks import State
from clara_results.wire.codec import body


@body()
class TaskEvent:
    """One entry of a task's history. Never patient data: no message, no file's name.

    Attributes:
        task_id: The task.
        agent: Its agent.
        job_id: Its job.
        destination: The key of the destination that it names; None: it names none.
        event: What happened: ``registered``, ``claimed``, ``succeeded``, ``failed``, ``retry``, ``unavailable``,
            ``lease-expired``, ``released``, ``canceled``, ``retried``, ``superseded`` or ``redelivered``.
        state: The task's state from then on.
        attempt: The attempt that it belongs to; None: to none.
        at: When.
    """

    task_id: str
    agent: str
    job_id: str
    destination: str | None = None
    event: str
    state: State
    attempt: int | None = None
    at: datetime
