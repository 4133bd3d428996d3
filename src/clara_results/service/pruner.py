"""What runs beside the service to remove what is no longer needed: files, rows, and what crashes left behind."""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING

from clara_results.domain.clock import Clock
from clara_results.errors import ClaraResultsError, ServiceUnavailable
from clara_results.payloads import FolderStore
from clara_results.service.datasets import Datasets
from clara_results.service.retention import Retention, ago
from clara_results.store import lanes as lane_store
from clara_results.store import retention as store
from clara_results.store.database import Database, Transaction

if TYPE_CHECKING:
    from clara_results.store.statements import Row

EVERY = 60.0
"""Seconds between rounds."""
SWEEP_EVERY = timedelta(days=1)
"""Also the age from which what lies aside is a crash's leftover: no upload takes so long."""
PAYLOADS = 1000
"""Payloads, or datasets, of one round; the rest waits for the next."""
ROWS = 200
"""Tasks, or payloads, that one transaction removes."""
FILE_ROWS = 5000
"""Files with which tasks removed in one transaction are enough, however few they are."""
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Pruned:
    """What a round removed.

    Attributes:
        payloads: Payloads whose files are gone.
        datasets: Datasets that are gone.
        tasks: Tasks that are forgotten.
        faults: Steps that could not be done, for now.
    """

    payloads: int = 0
    datasets: int = 0
    tasks: int = 0
    faults: list[Exception] = field(default_factory=list)


class Pruner:
    """Removes what is no longer needed, once a minute, on a thread of its own.

    Any number of processes may do so on one database: each works under locks, and passes over what another has.
    """

    def __init__(
        self,
        database: Database,
        retention: Retention,
        datasets: Datasets,
        files: FolderStore,
        clock: Clock,
        keep_tasks: timedelta | None,
        closing: threading.Event,
    ) -> None:
        """Make a pruner.

        Args:
            database: Whose rows.
            retention: Removes payloads' files.
            datasets: Removes datasets.
            files: Where the files are.
            clock: The time.
            keep_tasks: How long finished tasks stay to be read; None: for ever.
            closing: Set when the service is about to end.
        """
        self._database = database
        self._retention = retention
        self._datasets = datasets
        self._files = files
        self._clock = clock
        self._keep_tasks = keep_tasks
        self._closing = closing
        self._swept_at: datetime | None = None
        self._low = False
        self._round = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="prune", daemon=True)

    def start(self) -> None:
        """Begin: at once, and then every minute until the service is about to end."""
        self._thread.start()

    def join(self) -> None:
        """Wait until the thread has ended."""
        self._thread.join()

    def round(self) -> Pruned:
        """Remove all whose time is over. A step that fails is told in the log, and does not keep back the others."""
        pruned = Pruned()
        steps = (
            self._sweep, self._look_at_disk, self._remove_files, self._remove_datasets,
            self._forget_tasks, self._forget_rest, self._forget_lanes,
        )  # fmt: skip
        with self._round:
            for step in steps:
                if not self._closing.is_set():
                    self._try(partial(step, pruned), pruned)
        if pruned.payloads or pruned.datasets or pruned.tasks:
            _log.info(
                "removed the files of %d payloads, %d datasets, and %d tasks",
                pruned.payloads, pruned.datasets, pruned.tasks,
            )  # fmt: skip
        return pruned

    def _run(self) -> None:
        while True:
            self.round()
            if self._closing.wait(EVERY):
                return

    def _try(self, step: Callable[[], None], pruned: Pruned) -> None:
        try:
            step()
        except ClaraResultsError as error:
            if not self._closing.is_set():
                _log.warning("pruning: %s", error)
            pruned.faults.append(error)
        except Exception as error:  # noqa: BLE001  (outermost loop of the thread: it must go on)
            _log.exception("pruning failed")
            pruned.faults.append(error)

    def _sweep(self, _pruned: Pruned) -> None:
        now = self._clock.now()
        if self._swept_at is None or now - self._swept_at >= SWEEP_EVERY:
            for files in (self._files, self._datasets.files):
                files.sweep(now - SWEEP_EVERY)
            self._swept_at = now

    def _look_at_disk(self, _pruned: Pruned) -> None:
        try:
            self._files.require_room(0)
        except ServiceUnavailable as error:
            if error.code != "storage-full":
                raise
            if not self._low:
                _log.warning("uploads wait: %s", error)
            self._low = True
        else:
            if self._low:
                _log.info("the payload store has room again: uploads go on")
            self._low = False

    def _remove_files(self, pruned: Pruned) -> None:
        for payload_id in self._database.read(
            partial(self._retention.due, limit=PAYLOADS)
        ).result():
            if self._closing.is_set():
                return
            self._try(partial(self._remove_payload, payload_id, pruned), pruned)

    def _remove_payload(self, payload_id: str, pruned: Pruned) -> None:
        if self._retention.remove(self._database, payload_id, self._closing.is_set):
            pruned.payloads += 1
            _log.info("payload %s: its time is over, its files are removed", payload_id)

    def _remove_datasets(self, pruned: Pruned) -> None:
        due = self._database.read(partial(self._datasets.due, limit=PAYLOADS)).result()
        for dataset_id in due:
            if self._closing.is_set():
                return
            self._try(partial(self._remove_dataset, dataset_id, pruned), pruned)

    def _remove_dataset(self, dataset_id: str, pruned: Pruned) -> None:
        if self._datasets.remove_due(self._database, dataset_id):
            pruned.datasets += 1
            _log.info("dataset %s: its time is over, it is removed", dataset_id)

    def _forget_tasks(self, pruned: Pruned) -> None:
        before = ago(self._clock.now(), self._keep_tasks)
        while before is not None and not self._closing.is_set():
            gone = self._database.write(partial(_forget_tasks, before=before)).result()
            pruned.tasks += gone
            if not gone:
                return

    def _forget_rest(self, _pruned: Pruned) -> None:
        before = ago(self._clock.now(), self._keep_tasks)
        while before is not None and not self._closing.is_set():
            if not self._database.write(partial(_forget_rest, before=before)).result():
                return

    def _forget_lanes(self, _pruned: Pruned) -> None:
        while not self._closing.is_set():
            if not self._database.write(_forget_lanes).result():
                return


def _forget_lanes(transaction: Transaction) -> int:
    """Forget lanes of names that were once registered for and are no destinations: claims walk every lane."""
    connection = transaction.connection
    found = lane_store.stray_lanes(connection, ROWS)
    for lane in found:
        lane_store.delete_stray_lane(connection, lane.agent, lane.destination)
    return len(found)


def _forget_tasks(transaction: Transaction, before: datetime) -> int:
    connection = transaction.connection
    chosen: list[Row] = []
    for row in store.ended_tasks(connection, before, ROWS):
        if chosen and sum(each.files for each in chosen) + row.files > FILE_ROWS:
            break
        chosen.append(row)
    if chosen:
        store.delete_tasks(connection, [row.id for row in chosen])
        store.delete_registrations(connection, sorted({row.registration_id for row in chosen}))
    return len(chosen)


def _forget_rest(transaction: Transaction, before: datetime) -> int:
    store.delete_agents(transaction.connection, before)
    found = store.forgettable_payloads(transaction.connection, before, ROWS)
    if found:
        store.delete_payloads(transaction.connection, found)
    return len(found)
