"""How long payloads' files are kept, and their removal.

Whoever makes a task of a payload, or writes to it, does so while no other transaction holds the payload's row
(``keep``, ``note_upload``); and so does the removal, which then looks again whether the files' time is over. What is
removed is first noted, durably, and then removed: a task that comes afterwards looks whether its files are there.
So a task is made of files that stay, or it is not made.
"""

import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

import sqlalchemy as sa

from clara_results.domain.clock import Clock
from clara_results.errors import Conflict, Gone, NotFound
from clara_results.payloads import FolderStore
from clara_results.settings import Settings
from clara_results.store import instances
from clara_results.store import retention as store
from clara_results.store.database import Database, Transaction

BATCH = 200
"""Files that one transaction takes out of a payload, so that others don't wait."""


@dataclass(frozen=True, slots=True)
class Rules:
    """How long files are kept; None: for ever.

    Attributes:
        succeeded: After a payload's last use, if its tasks are all Succeeded.
        failed: After its last use, if any of them is Failed or Canceled. Without tasks: the longer of both.
        own: Whether files that did not come through the service are removed too.
    """

    succeeded: timedelta | None
    failed: timedelta | None
    own: bool

    @classmethod
    def of(cls, settings: Settings) -> "Rules":
        """Return the rules that the settings ask for."""
        return cls(
            succeeded=period(settings.retention),
            failed=period(settings.retention_failed),
            own=settings.own_payloads,
        )


def period(seconds: float) -> timedelta | None:
    """Return a setting's time; 0 is for ever."""
    return timedelta(seconds=seconds) if seconds else None


def ago(now: datetime, time: timedelta | None) -> datetime | None:
    """Return the moment that is a time ago; None for ever."""
    return None if time is None else now - time


class Retention:
    """Keeps payloads' files while they are needed."""

    def __init__(self, clock: Clock, files: FolderStore, rules: Rules) -> None:
        """Make one.

        Args:
            clock: The time.
            files: Where the files are.
            rules: How long they are kept.
        """
        self._clock = clock
        self._files = files
        self._rules = rules

    def keep(self, connection: sa.Connection, payload_id: str, uris: Iterable[str]) -> None:
        """Keep a payload's files from being removed before this transaction, that makes a task of them, ends.

        Locks come in one order: call it after all that locks tasks.

        Args:
            connection: Within a transaction.
            payload_id: Which payload.
            uris: The files that are needed.

        Raises:
            Gone: Some of the payload's files were removed, and these are no more (``payload-gone``).
        """
        at = store.touch(connection, payload_id, self._clock.now(), holds_files=self._rules.own)
        if at is not None:
            self.check(payload_id, uris)

    def check(self, payload_id: str, uris: Iterable[str]) -> None:
        """Look whether files are there.

        Raises:
            Gone: Some of them are no more (``payload-gone``).
        """
        wanted = list(uris)
        gone = [uri for uri in wanted if not self._files.holds(payload_id, uri)]
        if gone:
            raise Gone(
                f"{len(gone)} of {len(wanted)} files of payload {payload_id} are no more; run the "
                "pipeline again",
                code="payload-gone",
            )

    def note_upload(
        self,
        transaction: Transaction,
        payload_id: str,
        uri: str,
        size: int,
        sha256: str,
        *,
        in_place: bool,
    ) -> None:
        """Note a file that is about to come into a payload through the service, or is in place.

        Noted before, it is removed in its time although a crash comes between; noted in place, what was said of a
        file that never came is put right.
        """
        now = self._clock.now()
        store.touch(transaction.connection, payload_id, now, holds_files=True)
        note = store.set_upload if in_place else store.add_upload
        values = {"payload_id": payload_id, "uri": uri, "size": size, "sha256": sha256}
        note(transaction.connection, values | {"created_at": now})

    def due(self, connection: sa.Connection, limit: int) -> Sequence[str]:
        """Return payloads whose files' time is over, those not used for longest first."""
        now = self._clock.now()
        succeeded, failed = ago(now, self._rules.succeeded), ago(now, self._rules.failed)
        return store.due(connection, succeeded, failed, limit)

    def remove(self, database: Database, payload_id: str, stop: Callable[[], bool]) -> bool:
        """Remove a payload's files if their time is over; say whether they are gone.

        Args:
            database: Where the payload is noted.
            payload_id: Which payload.
            stop: Tells that there is no time to finish; a later call goes on.

        Raises:
            ServiceUnavailable: The database or the disk fails; a later call goes on.
        """
        if not database.write(partial(self._mark_due, payload_id=payload_id)).result():
            return False
        while not stop():
            taken = database.write(partial(self._take_due, payload_id=payload_id)).result()
            if taken is None:
                return False
            self._clear(taken)
            if taken.last:
                return True
        return False

    def mark(self, transaction: Transaction, payload_id: str) -> None:
        """Note that a payload is about to be removed because a person asks for it: the first of two transactions.

        Raises:
            Conflict: Unfinished tasks need it (``payload-in-use``).
        """
        connection, now = transaction.connection, self._clock.now()
        store.touch(connection, payload_id, now, holds_files=False)
        self._check_unused(connection, payload_id)
        store.set_payload(connection, payload_id, {"removed_at": now})

    def take(self, transaction: Transaction, payload_id: str) -> Path:
        """Take a marked payload away as a whole: the second transaction; the folder returned is to be cleared.

        Raises:
            Conflict: Unfinished tasks need it (``payload-in-use``).
            NotFound: There is no such payload.
            ServiceUnavailable: The disk refuses.
        """
        connection = transaction.connection
        store.touch(connection, payload_id, self._clock.now(), holds_files=False)
        self._check_unused(connection, payload_id)
        store.delete_uploads(connection, payload_id)
        store.set_payload(connection, payload_id, {"holds_files": False})
        instances.forget_patients(connection, payload_id)
        return self._files.set_aside(payload_id)

    def _check_unused(self, connection: sa.Connection, payload_id: str) -> None:
        if store.in_use(connection, payload_id):
            raise Conflict(
                f"unfinished tasks need payload {payload_id}; cancel them first",
                code="payload-in-use",
            )

    def _hold_due(self, connection: sa.Connection, payload_id: str) -> bool:
        """Lock a payload, and look again whether its time is over."""
        now = self._clock.now()
        succeeded, failed = ago(now, self._rules.succeeded), ago(now, self._rules.failed)
        return store.lock(connection, payload_id) and bool(
            store.due(connection, succeeded, failed, 1, payload_id)
        )

    def _mark_due(self, transaction: Transaction, payload_id: str) -> bool:
        connection = transaction.connection
        if not self._hold_due(connection, payload_id):
            return False
        store.set_payload(connection, payload_id, {"removed_at": self._clock.now()})
        return True

    def _take_due(self, transaction: Transaction, payload_id: str) -> "_Taken | None":
        """Take some files away; None: the payload is in use again.

        What is taken stays so if the transaction must be run again: files that are gone are passed over.
        """
        connection = transaction.connection
        if not self._hold_due(connection, payload_id):
            return None
        folders = []
        if self._rules.own:
            with contextlib.suppress(NotFound):
                folders.append(self._files.set_aside(payload_id))
        uris = store.uploads_of(connection, payload_id, BATCH)
        if uris:
            folders.append(self._files.set_aside(payload_id, uris))
            store.delete_uploads(connection, payload_id, uris)
        last = len(uris) < BATCH
        if last:
            # Touched now, so that it is remembered for as long as any: who comes for the files is told.
            values = {"holds_files": False, "touched_at": self._clock.now()}
            store.set_payload(connection, payload_id, values)
            instances.forget_patients(connection, payload_id)
        return _Taken(folders, last)

    def _clear(self, taken: "_Taken") -> None:
        for folder in taken.folders:
            self._files.clear(folder)


@dataclass(frozen=True, slots=True)
class _Taken:
    """Folders that hold what was taken out of a payload, and whether that was the last of it."""

    folders: Sequence[Path]
    last: bool
