"""The Results Service without its HTTP: the database, the queue, and what runs beside them."""

import asyncio
import logging
import random
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa

from clara_results.domain.clock import Clock, SystemClock
from clara_results.domain.transitions import RetryPolicy
from clara_results.errors import ClaraResultsError, ServiceUnavailable
from clara_results.payloads import FolderStore
from clara_results.service import lanes
from clara_results.service.access import Access
from clara_results.service.census import Enumerator
from clara_results.service.commitments import Commitments
from clara_results.service.custody import Custody
from clara_results.service.datasets import Datasets
from clara_results.service.events import Feed
from clara_results.service.metrics import Metrics, disks, receivers
from clara_results.service.overview import Overseer
from clara_results.service.pruner import Pruner
from clara_results.service.queue import Queue
from clara_results.service.registration import Registrar
from clara_results.service.retention import Retention, Rules, period
from clara_results.service.selection import Selection
from clara_results.service.thumbnails import Thumbnails
from clara_results.service.wakeups import Wakeups
from clara_results.settings import Settings
from clara_results.store import destinations as agent_store
from clara_results.store.commitments import any_due
from clara_results.store.database import Transaction, open_database, silent
from clara_results.store.migrations import migrate
from clara_results.wire.instances import CommitmentRequest
from clara_results.wire.tasks import Task

S = TypeVar("S")
T = TypeVar("T")
RESCUE_EVERY = 0.5
"""Seconds between looks for leases that ran out; they are to be noticed within one."""
RESCUE_SIZE = 200
RECHECK = 5.0
"""Seconds after which a waiting claim looks by itself, whether woken or not."""
WATCH_EVERY = 1.0
"""Seconds between looks whether the database answers."""
SEEN_EVERY = timedelta(seconds=10)
_log = logging.getLogger(__name__)


class Engine:
    """One service process: open it on the event loop that it serves, close it at the end."""

    def __init__(self, settings: Settings, clock: Clock | None = None) -> None:
        """Open the database, bring its tables up to date, and begin to watch leases.

        Args:
            settings: Where things are, and how failures are repeated.
            clock: The time; None: the machine's.

        Raises:
            InvalidInput: Another service process works on the database, and it can't be shared.
            ServiceUnavailable: The database can't be used.
        """
        self.clock = clock or SystemClock()
        self.payloads = FolderStore(settings.payload_folder, settings.disk_low)
        self.retention = Retention(self.clock, self.payloads, Rules.of(settings))
        self.wakeups = Wakeups(asyncio.get_running_loop())
        policy = RetryPolicy(
            first_delay=timedelta(seconds=settings.retry_delay),
            max_delay=timedelta(seconds=max(settings.retry_delay_max, settings.retry_delay)),
            give_up=timedelta(seconds=settings.give_up),
            commitment=timedelta(seconds=settings.commitment_deadline),
            random=random.random,
        )
        custody = Custody(self.clock, patient_columns=settings.patient_columns)
        self.queue = Queue(self.clock, policy, self.retention, custody)
        self.thumbnails = Thumbnails()
        self.selection = Selection(self.read, self.write, self.queue)
        wait = timedelta(seconds=settings.commitment_wait)
        self.commitments = Commitments(self.queue, self.clock, wait)
        self.datasets = Datasets(
            self.queue,
            self.clock,
            FolderStore(settings.dataset_folder, settings.disk_low),
            period(settings.keep_datasets),
        )
        self.registrar = Registrar(self.queue, self.retention, self.clock, settings.max_retries)
        self._database = open_database(settings.database_url)
        self._running: set[asyncio.Future[Any]] = set()
        self.metrics = Metrics(self.database_kind)
        self._loop = asyncio.get_running_loop()
        self.events = Feed(self.read, self._loop)
        self.disks = partial(disks, self._folders(settings))
        self.enumerator = Enumerator(self.read, self.clock, self.disks)
        self.overseer = Overseer(self.read, self.clock, self.enumerator.census)
        try:
            self._database.start(self.wakeups.wake, self.metrics.happened)
            migrate(self._database.engine)
        except ClaraResultsError:
            self._database.close()
            raise
        self.access = Access(
            self.read,
            self.write,
            self.clock,
            settings.grants,
            open_at_first=settings.loopback or settings.insecure,
        )
        self._seen: dict[tuple[str, str], datetime] = {}
        self._busy: set[str] = set()
        """Agents whose last claim found tasks: the next one need not look first whether there are any."""
        self.closing = threading.Event()
        self.rescued_at: float | None = None
        self._watch()
        self._rescuer = threading.Thread(target=self._rescue, name="rescue", daemon=True)
        self._rescuer.start()
        self.pruner = Pruner(
            self._database,
            self.retention,
            self.datasets,
            self.payloads,
            self.clock,
            period(settings.keep_tasks),
            self.closing,
        )
        self.pruner.start()

    def _folders(self, settings: Settings) -> dict[str, Path]:
        """Return the folders whose disks may get full, by what is in them."""
        folders = {"payloads": settings.payload_folder, "datasets": settings.dataset_folder}
        if self.database_kind == "sqlite":
            folders["database"] = Path(self._database.engine.url.database or "").parent
        return folders

    @property
    def database_kind(self) -> str:
        """What kind of database it is: ``sqlite`` or ``postgresql``."""
        return self._database.engine.dialect.name

    @property
    def ready(self) -> bool:
        """Whether the database answers and the service is not about to end."""
        return self._database.answers and not self.closing.is_set()

    async def read(self, operation: Callable[[sa.Connection], T]) -> T:
        """Run an operation on a snapshot of the database.

        Raises:
            ServiceUnavailable: The database can't serve, or has not answered for seconds.
        """
        with self.metrics.reads.time():
            return await self._answer(self._database.read, operation)

    async def write(self, operation: Callable[[Transaction], T]) -> T:
        """Run an operation in a transaction; it is durable when this returns.

        Raises:
            ServiceUnavailable: The database can't serve, or has not answered for seconds. Then it is almost certain
                that nothing was done, or ever will be; not where it fell silent in the midst of the commit.
        """
        waited_for = True

        def unless_given_up(transaction: Transaction) -> T:
            result = operation(transaction)
            if not waited_for:
                raise silent()
            return result

        with self.metrics.writes.time():
            try:
                return await self._answer(self._database.write, unless_given_up)
            except ServiceUnavailable:
                waited_for = False
                raise

    async def _answer(
        self, run: Callable[[Callable[[S], T]], Future[T]], operation: Callable[[S], T]
    ) -> T:
        if not self._database.answers:
            raise silent()
        future = run(operation)
        answer: asyncio.Future[T] = self._loop.create_future()
        # As asyncio.wrap_future, in half the time.
        future.add_done_callback(
            lambda done: self._loop.call_soon_threadsafe(_pass_on, done, answer)
        )
        self._running.add(answer)
        try:
            return await answer
        except asyncio.CancelledError:
            future.cancel()
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise  # who asked is to end
            raise silent() from None
        finally:
            self._running.discard(answer)

    def _watch(self) -> None:
        """Once a second, let nobody wait any longer for a database that does not answer."""
        if self.closing.is_set():
            return
        if not self._database.answers:
            for future in self._running:
                future.cancel()
        self._loop.call_later(WATCH_EVERY, self._watch)

    async def claim(
        self,
        agent: str,
        size: int,
        lease: int | None,
        instance: str | None,
        associations: int,
        wait: float,
        caller_left: Callable[[], Awaitable[bool]],
    ) -> list[Task]:
        """Claim due tasks; wait up to ``wait`` seconds for the first.

        Args:
            agent: Whose tasks, as ``names.agent_name`` returns it.
            size: At most so many.
            lease: Seconds; None: the default.
            instance: What the claimer calls itself.
            associations: How many it can use for a task.
            wait: Seconds.
            caller_left: Tells whether anyone still waits for the answer; a task is never given to nobody.
        """

        def claim(transaction: Transaction) -> list[Task]:
            return self.queue.claim(transaction, agent, size, lease, instance, associations)

        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait
        while True:
            # In line first, then look: what comes in between wakes us.
            ticket = self.wakeups.ticket(agent)
            try:
                claimed, until_due = await self._claim_now(agent, instance or "", claim)
                left = deadline - loop.time()
                if claimed or left <= 0 or self.closing.is_set():
                    if ticket.done() or len(claimed) == size:
                        self.wakeups.wake(agent)  # there may be more for the next in line
                    return claimed
                await asyncio.wait([ticket], timeout=max(0.0, min(left, until_due)))
                if await caller_left():
                    if ticket.done():
                        self.wakeups.wake(agent)
                    return []
            finally:
                self.wakeups.drop(agent, ticket)

    async def _claim_now(
        self, agent: str, instance: str, claim: Callable[[Transaction], list[Task]]
    ) -> tuple[list[Task], float]:
        """Claim what can be claimed; return it, and for how many seconds it is no use to look again unless woken."""
        claimed = await self.write(claim) if agent in self._busy else []
        wait = RECHECK
        if not claimed:
            self._busy.discard(agent)
            now = self.clock.now()
            due_at = await self.read(
                partial(lanes.next_claim, agent=agent, now=now, instance=instance)
            )
            if due_at is not None and due_at <= now:
                claimed = await self.write(claim)
            elif due_at is not None:
                wait = min(wait, (due_at - now).total_seconds())
        if claimed:
            self._busy.add(agent)
        return claimed, wait

    async def commitments_due(self, agent: str, size: int) -> list[CommitmentRequest]:
        """Return up to ``size`` storage commitments that an agent is to ask for now."""
        now = self.clock.now()
        if not await self.read(lambda connection: any_due(connection, agent, now)):
            return []
        return await self.write(lambda tx: self.commitments.due(tx, agent, size))

    async def see(self, agent: str, instance: str, version: str | None) -> None:
        """Note that an agent process is alive; at most every ten seconds it is written down."""
        now = self.clock.now()
        last = self._seen.get((agent, instance))
        if last is None or now - last >= SEEN_EVERY:
            self._seen[agent, instance] = now
            await self.write(
                lambda transaction: agent_store.see_agent(
                    transaction.connection, agent, instance, version, now
                )
            )

    def end_waiting(self) -> None:
        """Let every waiting claim answer: the service is about to end."""
        self.closing.set()
        self.wakeups.wake_all()
        self.events.end()

    def close(self) -> None:
        """End all threads, after what was begun has been done."""
        self.end_waiting()
        self._rescuer.join()
        self.pruner.join()
        self.thumbnails.close()
        self._database.close()

    def _all_of(self, some: Callable[[Transaction, int], int]) -> int:
        """Do what is done to so many tasks at a time until it is done to all; return to how many."""
        done = 0
        while not self.closing.is_set():
            number = self._database.write(lambda tx: some(tx, RESCUE_SIZE)).result()
            done += number
            if number < RESCUE_SIZE:
                break
        return done

    def _rescue(self) -> None:
        while not self.closing.wait(RESCUE_EVERY):
            try:
                rescued = self._all_of(self.queue.rescue)
                given_up = self._all_of(self.queue.give_up)
                uncommitted = self._all_of(self.commitments.give_up)
                self.metrics.know(self._database.read(receivers).result())
                self.rescued_at = self.clock.monotonic()
            except ServiceUnavailable as error:
                _log.warning("leases can't be looked at: %s", error)
                continue
            except Exception:  # noqa: BLE001  (outermost loop of the thread: leases must go on being watched)
                _log.exception("looking for expired leases failed")
                continue
            if rescued:
                _log.info("leases ran out: %d tasks taken back", rescued)
            if given_up:
                _log.info("destinations stayed unavailable: %d tasks failed", given_up)
            if uncommitted:
                _log.info("receivers did not commit themselves: %d tasks failed", uncommitted)


def _pass_on(done: Future[T], answer: asyncio.Future[T]) -> None:
    """Give what came of an operation to who waits for it, unless nobody does any more."""
    if answer.done():
        return
    error = done.exception()
    if error is None:
        answer.set_result(done.result())
    else:
        answer.set_exception(error)
