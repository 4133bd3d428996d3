"""Which files got in the way of a task's others, remembered from one attempt to the next."""

import threading
from collections import Counter

REMEMBERED_TASKS = 1000


class Troubles:
    """What went wrong at which files of which tasks, for as long as the agent runs. Thread-safe.

    A receiver that a file brings down ends the attempt too, and must not meet that file first, time and again, in each
    attempt that follows.
    """

    def __init__(self) -> None:
        self._of_tasks: dict[str, Counter[str]] = {}
        self._lock = threading.Lock()

    def of(self, task_id: str) -> Counter[str]:
        """Return how often which files of a task, by URI, broke a connection, or ended an attempt (0)."""
        with self._lock:
            found = self._of_tasks.setdefault(task_id, Counter())
            if len(self._of_tasks) > REMEMBERED_TASKS:
                del self._of_tasks[next(iter(self._of_tasks))]
            return found

    def forget(self, task_id: str) -> None:
        """Forget a task whose files are all accounted for."""
        with self._lock:
            self._of_tasks.pop(task_id, None)
