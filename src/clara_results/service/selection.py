"""Many tasks at once: which of them a filter chooses, how many an act concerns, and the act itself."""

import dataclasses
from collections.abc import Awaitable, Callable, Iterator
from datetime import datetime
from typing import Any, Protocol, TypeVar

import sqlalchemy as sa

from clara_results.domain import names
from clara_results.domain.clock import time_fault
from clara_results.domain.tasks import State
from clara_results.errors import FieldError, InvalidInput
from clara_results.service.queue import UNFINISHED, Batch, Queue
from clara_results.store import tasks as store
from clara_results.store.database import Transaction
from clara_results.store.tasks import Chosen
from clara_results.wire.tasks import Concerned, TaskFilter

T = TypeVar("T")


class Runner(Protocol):
    """How the service reads, or writes."""

    def __call__(self, operation: Callable[[Any], T], /) -> Awaitable[T]:
        """Run an operation on the database."""
        ...


class Selection:
    """What people do to many tasks.

    It is done some tasks at a time, so that neither agents nor other people wait meanwhile. Tasks that are registered after it
    has begun are left alone. If it breaks off, what was changed stays changed; to ask again does the rest.
    """

    def __init__(self, read: Runner, write: Runner, queue: Queue) -> None:
        """Make it.

        Args:
            read: Runs what reads.
            write: Runs what writes, each time in a transaction.
            queue: Whose tasks they are.
        """
        self._read = read
        self._write = write
        self._queue = queue

    async def concerned(self, which: TaskFilter) -> Concerned:
        """Count the tasks that an act would change.

        Raises:
            InvalidInput: The filter is wrong.
        """
        parts = list(_parts(chosen(which, patients=True), which.task_ids))

        def count(connection: sa.Connection) -> Concerned:
            return Concerned(
                retry=sum(
                    store.number(connection, part, (State.FAILED,), superseded=False)
                    for part in parts
                ),
                cancel=sum(
                    store.number(connection, part, UNFINISHED, superseded=True) for part in parts
                ),
            )

        return await self._read(count)

    async def retry(self, which: TaskFilter) -> int:
        """Put the Failed tasks of a filter back to Pending, except those whose files are no more; return how many.

        Raises:
            InvalidInput: The filter is wrong, or empty.
        """
        return await self._each(which, self._queue.retry_some)

    async def cancel(self, which: TaskFilter) -> int:
        """Cancel the unfinished tasks of a filter; return how many.

        Raises:
            InvalidInput: The filter is wrong, or empty.
        """
        return await self._each(which, self._queue.cancel_some)

    async def _each(
        self, which: TaskFilter, act: Callable[[Transaction, Chosen, int, int], Batch]
    ) -> int:
        if dataclasses.replace(which, q=which.q or None) == TaskFilter():
            raise InvalidInput(
                "an empty filter would mean every task: give state, agent, jobId, payloadId, "
                "destination, since, until, q or taskIds",
                code="empty-filter",
            )
        wanted = chosen(which, patients=True)
        up_to = await self._read(store.newest)
        changed = 0
        for part in _parts(wanted, which.task_ids):
            last: int | None = 0
            while last is not None:
                batch = await self._write(_of_transaction(act, part, last, up_to))
                changed += batch.changed
                last = batch.last
        return changed


def _of_transaction(
    act: Callable[[Transaction, Chosen, int, int], Batch], part: Chosen, after: int, up_to: int
) -> Callable[[Transaction], Batch]:
    return lambda transaction: act(transaction, part, after, up_to)


def _parts(wanted: Chosen, task_ids: list[str] | None) -> Iterator[Chosen]:
    """Yield a choice; where tasks are named, some of them at a time."""
    if task_ids is None:
        yield wanted
        return
    named = sorted({task_id.lower() for task_id in task_ids})
    for start in range(0, len(named), store.IDS_PER_QUERY):
        yield dataclasses.replace(wanted, task_ids=named[start : start + store.IDS_PER_QUERY])


def chosen(which: TaskFilter, *, patients: bool) -> Chosen:
    """Return what the store looks for by a filter, except for the tasks that it names.

    Args:
        which: The filter.
        patients: Whether its text may find tasks by patient data.

    Raises:
        InvalidInput: It names a time without saying where on earth, or out of range; or a text that nothing can hold.
    """
    if "\0" in (which.q or ""):  # SQLite would read the text up to there only, and find all
        raise InvalidInput("q: text without NUL", code="invalid-value")
    columns = {
        "state": which.state,
        "agent": which.agent and names.name_key(which.agent),
        "job_id": which.job_id,
        "payload_id": which.payload_id,
        "destination": which.destination and names.name_key(which.destination),
    }
    return Chosen(
        columns={name: value for name, value in columns.items() if value is not None},
        text=which.q,
        patients=patients,
        since=_moment("since", which.since),
        until=_moment("until", which.until),
    )


def _moment(field: str, moment: datetime | None) -> datetime | None:
    fault = None if moment is None else time_fault(moment)
    if fault is not None:
        raise InvalidInput(f"{field}: give {fault}", errors=[FieldError(field, fault)])
    return moment
