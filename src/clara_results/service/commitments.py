"""Storage commitment (PS3.4 Annex J): receivers are asked to commit themselves to keep what they were sent.

A transaction is known here before the receiver hears of it, so that any agent may take what it says, at any time. Silence
leads to another question, never to another C-STORE; only an instance that the receiver says it does not have is sent again.
"""

from datetime import timedelta
from uuid import uuid4

from clara_results.domain.clock import Clock
from clara_results.domain.receivers import Commit
from clara_results.domain.tasks import Outcome, State
from clara_results.errors import NotFound
from clara_results.service import destinations
from clara_results.service.queue import Queue
from clara_results.store import commitments as store
from clara_results.store.database import Transaction
from clara_results.store.statements import Row
from clara_results.wire.instances import (
    CommitmentFailure,
    CommitmentRequest,
    CommitmentResult,
    InstanceReference,
)
from clara_results.wire.tasks import FileOutcome, Task

ASK_AGAIN = timedelta(seconds=60)
"""After a receiver could not be asked."""
NO_SUCH_INSTANCE = 0x0112
_REASONS = {
    0x0110: "processing failure",
    0x0112: "no such object instance: it is sent again",
    0x0119: "class / instance conflict",
    0x0122: "referenced SOP class not supported",
    0x0131: "duplicate transaction UID",
    0x0213: "resource limitation",
}
"""Failure Reason (0008,1197), PS3.3 C.14.1.1."""


class Commitments:
    """The commitments of one database."""

    def __init__(self, queue: Queue, clock: Clock, wait: timedelta) -> None:
        """Make one.

        Args:
            queue: Whose tasks await them.
            clock: The time.
            wait: How long a receiver may be silent before it is asked again.
        """
        self._queue = queue
        self._clock = clock
        self._wait = wait

    def due(self, transaction: Transaction, agent: str, size: int) -> list[CommitmentRequest]:
        """Return up to ``size`` commitments that an agent is to ask for now, each under a fresh transaction UID."""
        connection, now = transaction.connection, self._clock.now()
        requests = []
        for row in store.due(connection, agent, now, size):
            uid = f"2.25.{uuid4().int}"  # PS3.5 B.2
            store.insert(connection, uid, row.id, now)
            self._queue.ask_again(transaction, row, now + self._wait)
            requests.append(
                CommitmentRequest(
                    transaction_uid=uid,
                    task_id=row.task_id,
                    parameters=row.parameters,
                    instances=[
                        InstanceReference(
                            sop_class_uid=file.sop_class_uid or "",
                            sop_instance_uid=file.sop_instance_uid or "",
                        )
                        for file in store.awaiting(connection, row.id)
                    ],
                )
            )
        return requests

    def result(self, transaction: Transaction, uid: str, result: CommitmentResult) -> Task:
        """Take what a receiver said; of an instance that awaits nothing any more it says nothing new.

        Raises:
            NotFound: No transaction of that UID was ever begun.
        """
        row = self._task(transaction, uid)
        committed = set(result.committed)
        failed = {one.sop_instance_uid: one.reason for one in result.failed}
        outcomes = []
        for file in store.awaiting(transaction.connection, row.id):
            reason = failed.get(file.sop_instance_uid)
            if reason is not None:
                again = reason == NO_SUCH_INSTANCE
                outcomes.append(
                    FileOutcome(
                        uri=file.uri,
                        outcome=Outcome.RETRY if again else Outcome.REJECTED,
                        code=f"{reason:04X}",
                        message="the receiver does not commit itself to keep it: "
                        + _REASONS.get(reason, "a reason of its own"),
                        sop_instance_uid=file.sop_instance_uid,
                        doubt=not again,
                    )
                )
            elif file.sop_instance_uid in committed:
                outcomes.append(_delivered(file, "committed", "the receiver has committed itself to keep it"))  # fmt: skip
        return self._queue.committed(transaction, row, outcomes)

    def failure(self, transaction: Transaction, uid: str, failure: CommitmentFailure) -> Task:
        """Take word that a receiver could not be asked.

        One that does not offer to commit leaves what it took delivered where it was only to be asked, and rejected
        where its commitment is required.

        Raises:
            NotFound: No transaction of that UID was ever begun.
        """
        connection = transaction.connection
        row = self._task(transaction, uid)
        if not failure.unsupported:
            if row.state == State.AWAITING_COMMITMENT:
                self._queue.ask_again(transaction, row, self._clock.now() + ASK_AGAIN)
            return self._queue.show(connection, row.task_id)
        destination = destinations.setting(connection, row.destination)
        required = destination is None or destination.commitment is Commit.REQUIRE
        outcomes = [
            FileOutcome(
                uri=file.uri,
                outcome=Outcome.REJECTED,
                code="commitment-unsupported",
                message="the receiver took it, but does not offer the storage commitment that is required of it",
                sop_instance_uid=file.sop_instance_uid,
                doubt=True,
            )
            if required
            else _delivered(
                file,
                "commitment-unsupported",
                "stored; the receiver does not offer storage commitment",
            )
            for file in store.awaiting(connection, row.id)
        ]
        return self._queue.committed(transaction, row, outcomes)

    def give_up(self, transaction: Transaction, size: int) -> int:
        """Fail tasks whose receivers have not committed themselves in time; return how many."""
        rows = store.overdue(transaction.connection, self._clock.now(), size)
        for row in rows:
            self._queue.uncommitted(transaction, row)
        return len(rows)

    def _task(self, transaction: Transaction, uid: str) -> Row:
        row = store.task_of(transaction.connection, uid)
        if row is None:
            raise NotFound(
                "no storage commitment was asked for under that transaction UID",
                code="commitment-not-found",
            )
        return row


def _delivered(file: Row, code: str, message: str) -> FileOutcome:
    return FileOutcome(
        uri=file.uri,
        outcome=Outcome.DELIVERED,
        code=code,
        message=message,
        sop_instance_uid=file.sop_instance_uid,
    )
