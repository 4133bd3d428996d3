"""The queue: claims under leases, reports, renewals, and what people do to tasks.

Every method runs in one write transaction. A task's next state comes from ``domain.transitions.decide`` alone,
and is written under the state and attempt that were read.
"""

import contextlib
import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import sqlalchemy as sa

from clara_results.domain import names
from clara_results.domain.clock import Clock
from clara_results.domain.happenings import FileHappening, TaskHappening
from clara_results.domain.tasks import Counts, Outcome, State, new_task_id
from clara_results.domain.transitions import Decision, Event, RetryPolicy, Situation, decide
from clara_results.errors import (
    Gone,
    IllegalTransition,
    InvalidInput,
    LeaseLost,
    NotFound,
)
from clara_results.service import lanes, views
from clara_results.service.custody import Custody
from clara_results.service.retention import Retention
from clara_results.store import lanes as lane_store
from clara_results.store import tasks as store
from clara_results.store.database import Transaction
from clara_results.store.instances import receiver_made
from clara_results.store.statements import Row
from clara_results.store.tasks import Chosen
from clara_results.wire.instances import Announcement, Clearances
from clara_results.wire.tasks import (
    FailureReport,
    FileOutcome,
    Idle,
    Job,
    Redelivery,
    Release,
    Renewal,
    Renewed,
    SuccessReport,
    Task,
)

IDLE_LIMIT = timedelta(seconds=60)
"""The longest that associations of no task count."""
LEASE_RANGE = (1, 86_400)
DEFAULT_LEASE = 3600
"""Seconds of a claim that asks for none: the original's clients can't renew."""
CODE_LIMIT = 255
"""Characters of a code or UID; the rest is cut off."""
BATCH = 200
"""Tasks that a transaction changes at the most when many are to be changed: others write between."""
SUCCESS, FAILURE, RELEASE = "success", "failure", "release"
"""Reports that end an attempt."""
UNFINISHED = tuple(state for state in State if not state.finished)
_TOLD = {outcome: f"files_{outcome}" for outcome in Outcome if outcome != Outcome.PENDING}
"""Outcomes that agents tell, each with the task's column that counts them."""
_ANSWERED = {Outcome.DELIVERED, Outcome.AWAITING, Outcome.REJECTED}
_OPEN = [f"files_{outcome}" for outcome in Outcome if outcome.open]
_RESULTS = {
    Event.UNAVAILABLE: "unavailable",
    Event.LEASE_EXPIRED: "lease-expired",
    Event.RELEASED: "released",
    Event.CANCELED: "canceled",
}


@dataclass(frozen=True, slots=True)
class _Ending:
    """How an attempt ends: the event, the reason that is kept with the task, and by which report if by one."""

    event: Event
    code: str | None = None
    message: str | None = None
    report: str | None = None


@dataclass(frozen=True, slots=True)
class Batch:
    """Some of many tasks, that one transaction looked at.

    Attributes:
        changed: How many of them it changed.
        last: The id of the last; None: there are no more.
    """

    changed: int
    last: int | None


class Queue:
    """The tasks of one database."""

    def __init__(
        self, clock: Clock, policy: RetryPolicy, retention: Retention, custody: Custody
    ) -> None:
        """Make a queue.

        Args:
            clock: The time.
            policy: How failures are repeated.
            retention: Keeps the files of tasks that people send again.
            custody: Keeps account of what receivers were sent.
        """
        self._custody = custody
        self._clock = clock
        self._policy = policy
        self._retention = retention

    # Agents

    def claim(
        self,
        transaction: Transaction,
        agent: str,
        size: int,
        lease: int | None,
        instance: str | None,
        wanted: int = 1,
    ) -> list[Task]:
        """Give an agent up to ``size`` due tasks under a lease of ``lease`` seconds.

        Each comes with as many of its destination's associations as are free, up to what the agent can use.
        """
        connection, now = transaction.connection, self._clock.now()
        seconds = DEFAULT_LEASE if lease is None else lease
        heads = lanes.heads(connection, agent, size, now, instance or "", wanted)
        for destination in heads.down:
            lanes.probing(connection, destination, now)
        for row, associations in zip(heads.tasks, heads.associations, strict=True):
            if row.destination in heads.idle:
                lane_store.use_idle(connection, row.destination, instance or "", associations)
        return self._claim(transaction, heads, seconds, instance) if heads.tasks else []

    def peek(self, transaction: Transaction, agent: str, size: int) -> list[Task]:
        """Show what a claim would give, and change nothing that anyone sees."""
        connection = transaction.connection
        rows = lanes.heads(connection, agent, size, self._clock.now()).tasks
        files = store.open_files(connection, [row.id for row in rows])
        return [views.task(row, open_files=files[row.id]) for row in rows]

    def succeed(self, transaction: Transaction, task_id: str, report: SuccessReport) -> Task:
        """Take a report of success.

        Raises:
            NotFound: There is no such task.
            LeaseLost: The reporter does not hold it.
            FilesUnaccounted: Files are listed, but not all.
            InvalidInput: A file is listed as not delivered, or is none of the task's.
        """
        wrong = [
            f
            for f in report.files or ()
            if f.outcome not in {Outcome.DELIVERED, Outcome.AWAITING, Outcome.SKIPPED}
        ]
        if wrong:
            raise InvalidInput(
                f"a success report holds a file as {wrong[0].outcome}; report failure instead",
                code="contradictory-report",
            )
        row = self._held(transaction.connection, task_id, report.lease_token, SUCCESS)
        if row.state != State.IN_PROGRESS:
            return views.task(row)  # the same report came before
        told = self._tell(transaction.connection, row, report.files)
        if report.files is None:
            self._tell_rest(transaction.connection, row, Outcome.DELIVERED, None, None)
            told = True
        self._keep_idle(transaction.connection, row, report.idle)
        return self._end(transaction, row, _Ending(Event.SETTLED, report=SUCCESS), progressed=told)

    def _keep_idle(self, connection: sa.Connection, row: Row, idle: Idle | None) -> None:
        """Have associations that the holder of a task keeps open count for as long as it does, but no more than it had."""
        if idle is None or idle.associations < 1:
            return
        instance = store.attempts_of(connection, row.id)[-1].instance
        if instance is not None:
            now = self._clock.now()
            until = now + min(timedelta(seconds=idle.seconds), IDLE_LIMIT)
            before = lane_store.idle_of(connection, row.destination, instance, now)
            kept = min(idle.associations, row.associations + before)
            lane_store.keep_idle(connection, row.destination, instance, kept, until)

    def fail(self, transaction: Transaction, task_id: str, report: FailureReport) -> Task:
        """Take a report of failure, in whole or in part.

        Raises:
            NotFound: There is no such task.
            LeaseLost: The reporter does not hold it.
            InvalidInput: A file is listed that is none of the task's.
        """
        row = self._held(transaction.connection, task_id, report.lease_token, FAILURE)
        if row.state != State.IN_PROGRESS:
            return views.task(row)  # the same report came before
        told = self._tell(transaction.connection, row, report.files)
        self._keep_idle(transaction.connection, row, report.idle)
        code = views.cut(report.code, CODE_LIMIT)
        if report.unavailable:
            event = Event.UNAVAILABLE
        else:
            event = Event.SETTLED
            rest = Outcome.RETRY if report.retry_later else Outcome.REJECTED
            self._tell_rest(transaction.connection, row, rest, code, report.message)
        return self._end(
            transaction, row, _Ending(event, code, report.message, FAILURE), progressed=told
        )

    def renew(self, transaction: Transaction, task_id: str, renewal: Renewal) -> Renewed:
        """Extend a lease, and keep the outcomes told with it.

        Raises:
            NotFound: There is no such task.
            LeaseLost: The caller does not hold it.
            InvalidInput: A file is listed that is none of the task's.
        """
        connection, now = transaction.connection, self._clock.now()
        row = self._held(connection, task_id, renewal.lease_token)
        seconds = renewal.seconds or row.lease_seconds
        expires = now + timedelta(seconds=seconds)
        values: dict[str, Any] = {"lease_expires_at": expires, "updated_at": now}
        allowed = row.associations
        if self._tell(connection, row, renewal.files):
            lanes.found_up(transaction, row.destination, now)
            values |= {"unavailable_since": None, "unavailable_times": 0}
        if renewal.files:
            values |= self._count(connection, row.id)
        if renewal.progress is not None:
            values |= {
                "progress_files": renewal.progress.files_delivered,
                "progress_bytes": renewal.progress.bytes_delivered,
            }
        if renewal.associations is not None:
            allowed, values["associations"] = self._share(
                connection, row, values, renewal.associations
            )
            if values["associations"] < row.associations:
                transaction.pending_for.add(row.agent)
        self._move(transaction, row, values)
        return Renewed(lease_expires_at=expires, associations=allowed)

    def _share(
        self, connection: sa.Connection, row: Row, counted: Mapping[str, Any], used: int
    ) -> tuple[int, int]:
        """Return how many associations the holder of a task may have from now on, and how many count as its: it uses some."""
        files = sum(counted.get(name, getattr(row, name)) for name in _OPEN)
        allowed = lanes.share(connection, row, files, self._clock.now())
        still_open = min(used, row.associations)
        return allowed, max(allowed, still_open)

    def announce(self, transaction: Transaction, task_id: str, body: Announcement) -> Clearances:
        """Note what the holder of a task is about to send, and say what of it may go out.

        Raises:
            NotFound: There is no such task.
            LeaseLost: The caller does not hold it.
            InvalidInput: A file is none of the task's, or an announcement can't be right.
        """
        connection = transaction.connection
        row = self._held(connection, task_id, body.lease_token)
        receiver = receiver_made(connection, body.receiver)
        if receiver != row.receiver:
            row = self._move(transaction, row, {"receiver": receiver})
        items = self._custody.announce(connection, row, receiver, body.instances)
        return Clearances(items=items)

    def held(self, transaction: Transaction, task_id: str, token: str) -> Row:
        """Return a task, locked, if the caller holds it.

        Raises:
            NotFound: There is no such task.
            LeaseLost: The caller does not hold it.
        """
        return self._held(transaction.connection, task_id, token)

    def release(self, transaction: Transaction, task_id: str, release: Release) -> Task:
        """Take a task back from an agent that shuts down.

        Raises:
            NotFound: There is no such task.
            LeaseLost: The caller does not hold it.
            InvalidInput: A file is listed that is none of the task's.
        """
        row = self._held(transaction.connection, task_id, release.lease_token, RELEASE)
        if row.state != State.IN_PROGRESS:
            return views.task(row)
        told = self._tell(transaction.connection, row, release.files)
        return self._end(transaction, row, _Ending(Event.RELEASED, report=RELEASE), progressed=told)

    def rescue(self, transaction: Transaction, size: int) -> int:
        """Take back tasks whose lease has run out; return how many."""
        rows = store.expired(transaction.connection, self._clock.now(), size)
        for row in rows:
            self._end(transaction, row, _Ending(Event.LEASE_EXPIRED), progressed=False)
        return len(rows)

    def give_up(self, transaction: Transaction, size: int) -> int:
        """Fail tasks that have waited too long for a destination that is down; return how many."""
        before = self._clock.now() - self._policy.give_up
        rows = lane_store.waited_too_long(transaction.connection, before, size)
        for row in rows:
            self._end(transaction, row, _Ending(Event.GAVE_UP), progressed=False)
        return len(rows)

    # Storage commitment

    def ask_again(self, transaction: Transaction, row: Row, at: datetime) -> None:
        """Have a receiver asked to commit itself at a moment, unless it does before or its time is over."""
        self._move(transaction, row, {"commit_at": min(at, row.commit_by)})

    def committed(
        self, transaction: Transaction, row: Row, outcomes: Sequence[FileOutcome]
    ) -> Task:
        """Take what a receiver said of instances that it is to commit itself to keep."""
        connection = transaction.connection
        if not outcomes:
            return views.task(row)  # it said so before
        self._tell(connection, row, outcomes)
        if row.state != State.AWAITING_COMMITMENT:
            return views.task(self._move(transaction, row, self._count(connection, row.id)))
        lane_store.add_lane(connection, row.agent, row.destination)  # some may be sent again
        return self._end(transaction, row, _Ending(Event.COMMITTED), progressed=True)

    def uncommitted(self, transaction: Transaction, row: Row) -> None:
        """Fail a task whose receiver has not committed itself in time."""
        self._end(transaction, row, _Ending(Event.UNCOMMITTED), progressed=False)

    # People

    def retry(self, transaction: Transaction, task_id: str) -> Task:
        """Put a Failed task back to Pending; files already delivered stay delivered.

        Raises:
            NotFound: There is no such task.
            IllegalTransition: It is not Failed, or a newer registration has superseded it.
            Gone: Files that it is to send are no more (``payload-gone``).
        """
        return self._retry(transaction, self._found(transaction.connection, task_id, lock=True))

    def retry_some(self, transaction: Transaction, chosen: Chosen, after: int, up_to: int) -> Batch:
        """Put some of the chosen Failed tasks back to Pending, except those whose files are no more.

        Args:
            transaction: Where to write.
            chosen: Which tasks.
            after: Only those with a larger id; ``up_to``: with no larger one.
            up_to: See there.
        """
        rows = store.matching(transaction.connection, chosen, (State.FAILED,), after, up_to, BATCH)
        changed = 0
        for row in rows:
            if row.superseded_by is None:
                with contextlib.suppress(Gone):
                    self._retry(transaction, row)
                    changed += 1
        return _batch(rows, changed)

    def cancel(self, transaction: Transaction, task_id: str) -> Task:
        """Cancel an unfinished task; whoever holds it loses its lease.

        Raises:
            NotFound: There is no such task.
            IllegalTransition: It is finished.
        """
        row = self._found(transaction.connection, task_id, lock=True)
        if row.state == State.CANCELED:
            return views.task(row)
        return self._end(transaction, row, _Ending(Event.CANCELED), progressed=False)

    def cancel_some(
        self, transaction: Transaction, chosen: Chosen, after: int, up_to: int
    ) -> Batch:
        """Cancel some of the chosen unfinished tasks; arguments as for ``retry_some``."""
        rows = store.matching(transaction.connection, chosen, UNFINISHED, after, up_to, BATCH)
        for row in rows:
            self._end(transaction, row, _Ending(Event.CANCELED), progressed=False)
        return _batch(rows, len(rows))

    def check_redelivery(self, connection: sa.Connection, task_id: str) -> Callable[[], None]:
        """Return what looks whether all files of a finished task are there: it may take long, and needs no transaction.

        Raises:
            NotFound: There is no such task.
            IllegalTransition: It is not finished.
        """
        row, uris = self._redeliverable(connection, task_id)
        return partial(self._retention.check, row.payload_id, uris)

    def _redeliverable(self, connection: sa.Connection, task_id: str) -> tuple[Row, Sequence[str]]:
        row = self._found(connection, task_id)
        if not State(row.state).finished:
            raise IllegalTransition(
                f"task {task_id} is {row.state}; cancel it, or wait for its end"
            )
        return row, store.uris(connection, row.id)

    def redeliver(self, transaction: Transaction, task_id: str, body: Redelivery) -> Task:
        """Make a new task that sends all files of a finished one again.

        Args:
            transaction: Where to write.
            task_id: The finished task.
            body: Where to, if elsewhere.

        Raises:
            NotFound: There is no such task.
            IllegalTransition: It is not finished.
            Gone: Files of its payload were removed, and some of its own are no more (``payload-gone``).
        """
        connection, now = transaction.connection, self._clock.now()
        row, uris = self._redeliverable(connection, task_id)
        self._retention.keep(connection, row.payload_id, uris)
        registration = store.insert_registration(
            connection, None, "", f"redelivery of {row.task_id}", now
        )
        carried = ("agent", "job_id", "pipeline_id", "payload_id", "operator", "parameters", "destination", "priority", "max_retries")  # fmt: skip
        elsewhere = {}
        if body.destination is not None:
            elsewhere = {
                "parameters": json.dumps(body.destination, ensure_ascii=False),
                "destination": names.name_key(body.destination),
            }
        made = self.insert(
            transaction,
            {name: getattr(row, name) for name in carried}
            | {
                "registration_id": registration,
                "element": 0,
                "turn": store.last_turn(connection, row.agent, row.job_id) + 1,
                "due_at": now,
                "redelivery_of": row.task_id,
            }
            | elsewhere,
            files=len(uris),
            note=f"redelivery of {row.task_id}",
        )
        store.copy_files(connection, row.id, made.id)
        self._note(transaction, "redelivered", row, message=f"by {made.task_id}")
        return self.show(connection, made.task_id)

    # Reading

    def show(self, connection: sa.Connection, task_id: str) -> Task:
        """Return a task with its attempts and history.

        Raises:
            NotFound: There is no such task.
        """
        row = self._found(connection, task_id)
        return views.task(
            row,
            attempts=store.attempts_of(connection, row.id),
            history=store.history_of(connection, row.id),
        )

    def job(self, connection: sa.Connection, job_id: str) -> Job:
        """Return a job's tasks, and whether its results are delivered.

        A task that a newer registration superseded does not count, nor one that was sent once more to where it was to go.

        Raises:
            NotFound: No task was registered for it.
        """
        rows = store.by_job(connection, job_id)
        if not rows:
            raise NotFound("no results were registered for that job", code="job-not-found")
        redelivered = {(row.redelivery_of, row.destination or row.parameters) for row in rows}
        current = [
            row
            for row in rows
            if row.superseded_by is None
            and (row.task_id, row.destination or row.parameters) not in redelivered
        ]
        missing = [row for row in current if row.state != State.SUCCEEDED]
        states: dict[str, int] = {}
        for row in missing:
            states[row.state] = states.get(row.state, 0) + 1
        listing = ", ".join(f"{number} {state}" for state, number in sorted(states.items()))
        return Job(
            job_id=job_id,
            delivered=not missing,
            summary=f"all {len(current)} tasks are delivered"
            if not missing
            else f"{len(missing)} of {len(current)} tasks are not delivered: {listing}",
            tasks=[views.task(row) for row in rows],
        )

    # What registration needs

    def insert(
        self,
        transaction: Transaction,
        values: dict[str, Any],
        *,
        files: int,
        note: str | None = None,
    ) -> Row:
        """Insert a new task, Pending, and return it; its files are the caller's to insert.

        Args:
            transaction: Where to write.
            values: What is asked for: agent, job, pipeline, payload, operator, parameters, destination, priority,
                retries allowed, when it is due, its registration, element and turn; and what it supersedes, or
                whose redelivery it is.
            files: How many files it has.
            note: More about where it comes from, for its history.
        """
        now = self._clock.now()
        lane_store.add_lane(transaction.connection, values["agent"], values["destination"])
        new = {
            "task_id": new_task_id(now),
            "state": State.PENDING,
            "retries": 0,
            "attempt": 0,
            "created_at": now,
            "updated_at": now,
            "waits": values["due_at"] > now,
            "unavailable_times": 0,
            "associations": 0,
            "supersedes": None,
            "redelivery_of": None,
        }
        task = store.insert_task(
            transaction.connection, new | count_columns(Counts(pending=files)) | values
        )
        self._note(transaction, "registered", task, message=note)
        transaction.pending_for.add(task.agent)
        return task

    def supersede(self, transaction: Transaction, row: Row, by: str) -> None:
        """Link a task to the one that replaces it, and cancel it if it is unfinished."""
        connection = transaction.connection
        store.link_superseded(connection, row.id, by)
        self._note(transaction, "superseded", row, message=f"by {by}")
        if row.state in UNFINISHED:
            self._end(transaction, row, _Ending(Event.CANCELED), progressed=False)

    # Steps

    def _claim(
        self, transaction: Transaction, heads: lanes.Heads, seconds: int, instance: str | None
    ) -> list[Task]:
        """Give tasks, locked, to an agent: each statement once for all of them."""
        connection, now = transaction.connection, self._clock.now()
        rows = heads.tasks
        changes = [
            self._leased(connection, row, now, seconds) | {"associations": number}
            for row, number in zip(rows, heads.associations, strict=True)
        ]
        if store.move_all(connection, rows, changes) != len(rows):
            raise LeaseLost("tasks were changed at the same moment; look again")
        claimed = [row._replace(**values) for row, values in zip(rows, changes, strict=True)]
        store.advance_turn(connection, rows[0].agent, max(row.turn for row in rows))
        store.insert_attempts(
            connection,
            [
                {
                    "task": row.id,
                    "attempt": row.attempt,
                    "lease_token": row.lease_token,
                    "instance": instance,
                    "claimed_at": now,
                }
                for row in claimed
            ],
        )
        self._note(transaction, "claimed", *claimed, of_attempt=True, message=instance)
        files = store.open_files(connection, [row.id for row in claimed])
        return [views.task(row, open_files=files[row.id]) for row in claimed]

    def _leased(
        self, connection: sa.Connection, row: Row, now: datetime, seconds: int
    ) -> dict[str, Any]:
        """Return what a claim changes of a task; files to retry are open again."""
        counts = views.counts(row)
        decision = decide(_situation(row, counts), Event.CLAIMED, now, self._policy)
        if row.files_retry:
            store.reopen_files(connection, row.id, [Outcome.RETRY])
            counts = store.counts(connection, row.id)
        return (
            self._decided(decision, now)
            | count_columns(counts)
            | {
                "attempt": row.attempt + 1,
                "lease_token": secrets.token_urlsafe(24),
                "lease_seconds": seconds,
                "lease_expires_at": now + timedelta(seconds=seconds),
                "progress_files": None,
                "progress_bytes": None,
            }
        )

    def _end(
        self, transaction: Transaction, row: Row, ending: _Ending, *, progressed: bool
    ) -> Task:
        """End an attempt (or cancel): decide, write, and note it."""
        connection, now = transaction.connection, self._clock.now()
        counts = store.counts(connection, row.id)
        situation = _situation(
            row, counts, progressed=progressed or counts.delivered > row.files_delivered
        )
        decision = decide(situation, ending.event, now, self._policy)
        values = self._decided(decision, now) | count_columns(counts)
        failed = decision.why is not None
        code, message = (
            ending.code or decision.why,
            ending.message or _WORDS.get(decision.why or ""),
        )
        if failed:
            values |= {"error_code": code, "error_message": views.cut(message)}
        ended = self._move(transaction, row, values)
        if ending.event == Event.UNAVAILABLE and decision.why is not None:
            probe_at = decision.due_at or now + lanes.PROBE_LIMIT
            lanes.found_down(connection, row.destination, now, probe_at, views.cut(message))
        elif progressed:
            lanes.found_up(transaction, row.destination, now)
        elif row.state == State.IN_PROGRESS and ending.event != Event.SETTLED:
            lanes.unprobed(connection, row.destination, now)
        result = _result(ending.event, decision)
        note = views.cut(message) if failed else None
        if row.state == State.IN_PROGRESS:
            store.end_attempt(
                connection,
                row.id,
                row.attempt,
                {
                    "ended_at": now,
                    "result": result,
                    "code": code if failed else None,
                    "message": note,
                    "report": ending.report,
                },
            )
        self._note(transaction, result, ended, of_attempt=True, message=note)
        transaction.pending_for.add(row.agent)  # the task is due again, or its place is free
        return views.task(ended)

    def _retry(self, transaction: Transaction, row: Row) -> Task:
        connection, now = transaction.connection, self._clock.now()
        if row.superseded_by is not None:
            raise IllegalTransition(
                f"task {row.task_id} was superseded by {row.superseded_by}; redeliver it if the older "
                "results are wanted",
                code="superseded",
            )
        decision = decide(_situation(row, views.counts(row)), Event.RETRIED, now, self._policy)
        self._retention.keep(connection, row.payload_id, store.undelivered(connection, row.id))
        lane_store.add_lane(connection, row.agent, row.destination)  # it may have been forgotten
        store.reopen_files(connection, row.id, [Outcome.RETRY, Outcome.REJECTED, Outcome.SKIPPED])
        values = self._decided(decision, now) | count_columns(store.counts(connection, row.id))
        retried = self._move(transaction, row, values)
        self._note(transaction, "retried", retried)
        transaction.pending_for.add(row.agent)
        return views.task(retried)

    def _found(self, connection: sa.Connection, task_id: str, *, lock: bool = False) -> Row:
        row = store.by_id(connection, task_id, lock=lock)
        if row is None:
            raise NotFound(f"there is no task {task_id}", code="task-not-found")
        return row

    def _held(
        self,
        connection: sa.Connection,
        task_id: str,
        token: str | None,
        repeated: str | None = None,
    ) -> Row:
        """Return a task whose holder reports; or, not InProgress, one whose attempt ended by the same report.

        Args:
            connection: Within a transaction.
            task_id: Which task.
            token: The reporter's lease token; None: an original's client, whose word counts while it runs.
            repeated: Which report it is, if it may be the one that ended the attempt come again.
        """
        row = self._found(connection, task_id, lock=True)
        if row.state == State.IN_PROGRESS:
            if token in {None, row.lease_token}:
                return row
        elif row.attempt:
            last = store.attempts_of(connection, row.id)[-1]
            same = repeated is not None and last.report == repeated
            same |= repeated == SUCCESS and last.result == "succeeded"
            if token in {None, last.lease_token} and same:
                return row
        raise LeaseLost(
            f"the lease on task {task_id} is lost: the task is {row.state}, attempt {row.attempt}; "
            "stop, and report nothing more"
        )

    def _tell(
        self, connection: sa.Connection, row: Row, told: Sequence[FileOutcome] | None
    ) -> bool:
        """Write outcomes; say whether the receiver has answered for any file."""
        if not told:
            return False
        now = self._clock.now()
        written = store.tell_files(
            connection,
            [
                {
                    "at_task": row.id,
                    "at_uri": file.uri,
                    "outcome": file.outcome,
                    "code": views.cut(file.code, CODE_LIMIT),
                    "message": views.cut(file.message),
                    "sop_instance_uid": views.cut(file.sop_instance_uid, CODE_LIMIT),
                    "attempt": row.attempt,
                    "updated_at": now,
                }
                for file in told
            ],
        )
        if written < len(told):
            strangers = store.unknown_uris(connection, row.id, [file.uri for file in told])
            if strangers:
                raise InvalidInput(
                    f"{len(strangers)} of the files told of are none of task {row.task_id}",
                    code="unknown-file",
                )
        self._custody.told(connection, row, told)
        return any(file.outcome in _ANSWERED for file in told)

    def _tell_rest(
        self,
        connection: sa.Connection,
        row: Row,
        outcome: Outcome,
        code: str | None,
        message: str | None,
    ) -> None:
        store.tell_open_files(
            connection,
            row.id,
            {
                "outcome": outcome,
                "code": code,
                "message": views.cut(message),
                "attempt": row.attempt,
                "updated_at": self._clock.now(),
            },
        )

    def _count(self, connection: sa.Connection, task: int) -> dict[str, int]:
        return count_columns(store.counts(connection, task))

    def _decided(self, decision: Decision, now: datetime) -> dict[str, Any]:
        return {
            "state": decision.state,
            "retries": decision.retries,
            "due_at": decision.due_at,
            "waits": decision.due_at is not None and decision.due_at > now,
            "unavailable_since": decision.unavailable_since,
            "unavailable_times": decision.unavailable_times,
            "lease_token": None,
            "lease_seconds": None,
            "lease_expires_at": None,
            "associations": 0,
            "commit_at": decision.commit_at,
            "commit_by": decision.commit_by,
            "updated_at": now,
        }

    def _move(self, transaction: Transaction, row: Row, values: dict[str, Any]) -> Row:
        moved = store.move(transaction.connection, row, values)
        if moved is None:
            raise LeaseLost(f"task {row.task_id} was changed at the same moment; look again")
        for outcome, column in _TOLD.items():
            more = getattr(moved, column) - getattr(row, column)
            if more > 0:
                transaction.happened.append(
                    FileHappening(row.agent, row.destination, outcome, more)
                )
        return moved

    def _note(
        self,
        transaction: Transaction,
        event: str,
        *rows: Row,
        of_attempt: bool = False,
        message: str | None = None,
    ) -> None:
        """Note in tasks' histories what brought them to where ``rows`` has them, and have it counted once that is durable."""
        now = self._clock.now()
        store.insert_history(
            transaction.connection,
            [
                {
                    "task": row.id,
                    "at": now,
                    "event": event,
                    "state": row.state,
                    "attempt": row.attempt or None if of_attempt else None,
                    "message": message,
                }
                for row in rows
            ],
        )
        transaction.happened += [
            TaskHappening(
                row.agent,
                row.destination,
                event,
                now - row.created_at if event == "succeeded" else None,
            )
            for row in rows
        ]


_WORDS = {
    "files-to-retry": "some files could not be delivered this time",
    "files-rejected": "some files were rejected",
    "nothing-delivered": "no file was delivered: all were skipped",
    "destination-unavailable": "the destination could not be reached",
    "lease-expired": "the agent that held the task fell silent",
    "commitment-timeout": "the receiver has not committed itself to keep what it was sent",
}


def count_columns(counts: Counts) -> dict[str, int]:
    """Return counts as the columns of a task."""
    return {f"files_{outcome}": getattr(counts, outcome) for outcome in Outcome}


def _batch(rows: Sequence[Row], changed: int) -> Batch:
    return Batch(changed, rows[-1].id if len(rows) == BATCH else None)


def _situation(row: Row, counts: Counts, *, progressed: bool = False) -> Situation:
    return Situation(
        state=State(row.state),
        retries=row.retries,
        max_retries=row.max_retries,
        counts=counts,
        unavailable_since=None if progressed else row.unavailable_since,
        unavailable_times=0 if progressed else row.unavailable_times,
        commit_at=row.commit_at,
        commit_by=row.commit_by,
    )


def _result(event: Event, decision: Decision) -> str:
    if decision.state == State.SUCCEEDED:
        return "succeeded"
    if decision.state == State.AWAITING_COMMITMENT:
        return "partly-committed" if event == Event.COMMITTED else "sent"
    if decision.state == State.FAILED and event != Event.LEASE_EXPIRED:
        return "failed"
    if event in {Event.SETTLED, Event.COMMITTED}:
        return "retry"
    return _RESULTS[event]
