"""PostgreSQL: any number of service processes on one database.

Each write is a transaction of its own on one of a few threads. Rows that are to be changed are locked when they are
read, so processes wait for each other instead of overwriting. Who waits for tasks in other processes is woken by
NOTIFY, sent after commit (within the transaction it would put all commits in one line) and coalesced.
"""

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import psycopg
import sqlalchemy as sa

from clara_results.errors import ServiceUnavailable
from clara_results.store.database import (
    READERS,
    OnHappened,
    OnPending,
    Transaction,
    away,
    closing,
    failed,
    keeping,
    read_in,
)

T = TypeVar("T")
WRITERS = 8
CHANNEL = "clara_results"
TRIES = 3
"""Runs of an operation that other transactions get in the way of, or whose connection was lost before its commit."""
CONNECT_SECONDS = 5
STATEMENT_SECONDS = 60
LISTEN_PAUSE = 1.0
"""Seconds before another connection is tried."""
LISTEN_SLICE = 0.2
"""Seconds between looks whether the process is to end."""
ASK_AFTER = 1.0
"""Seconds without an answer after which the server is asked for one."""
SILENCE = 3.0
"""Seconds without an answer after which nobody waits for one."""
_CONCURRENT = frozenset({"23505", "40001", "40P01"})
"""SQLSTATEs of unique violation, serialization failure and deadlock."""
_log = logging.getLogger(__name__)


class PostgresDatabase:
    """A PostgreSQL database, shared with other processes; see ``Database``."""

    def __init__(self, url: sa.URL) -> None:
        """Take a database; connections are made when they are needed."""
        self._engine = sa.create_engine(
            url.set(drivername="postgresql+psycopg"),
            pool_size=WRITERS + READERS,
            max_overflow=0,
            pool_timeout=CONNECT_SECONDS,
            hide_parameters=True,  # an error goes into the log; a patient's name must not
            connect_args={
                "connect_timeout": CONNECT_SECONDS,
                # A process that vanished holds its locks, and others up, no longer than that; to compile queries
                # takes longer than ours run.
                "options": f"-c statement_timeout={STATEMENT_SECONDS}s -c jit=off"
                f" -c idle_in_transaction_session_timeout={STATEMENT_SECONDS}s",
                "application_name": "clara-results",
            },
        )
        self._snapshots = self._engine.execution_options(
            isolation_level="REPEATABLE READ", postgresql_readonly=True
        )
        self._address = url.set(drivername="postgresql").render_as_string(hide_password=False)
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="read")
        self._writers = ThreadPoolExecutor(WRITERS, thread_name_prefix="write")
        self._on_pending: OnPending = lambda _agent: None
        self._on_happened: OnHappened = lambda _happened: None
        self._answered_at = time.monotonic()
        self._closing = threading.Event()
        self._closed = False
        self._door = threading.Lock()
        """Held while something is put in line, so that nothing gets in behind the end."""
        self._to_notify: set[str] = set()
        self._notify = threading.Condition()
        self._threads = [
            threading.Thread(target=self._send_notifications, name="notify", daemon=True),
            threading.Thread(target=self._listen, name="listen", daemon=True),
        ]

    @property
    def engine(self) -> sa.Engine:
        """The engine that writes."""
        return self._engine

    def start(self, on_pending: OnPending, on_happened: OnHappened) -> None:
        """Begin to call ``on_pending``, for this process's transactions and all others' on the database."""
        self._on_pending = on_pending
        self._on_happened = on_happened
        for thread in self._threads:
            thread.start()

    def read(self, operation: Callable[[sa.Connection], T]) -> Future[T]:
        """Run an operation on a snapshot of the database."""
        with self._door:
            if self._closed:
                return failed(closing())
            return self._readers.submit(self._read, operation)

    def write(self, operation: Callable[[Transaction], T]) -> Future[T]:
        """Run an operation in a transaction."""
        with self._door:
            if self._closed:
                return failed(closing())
            return self._writers.submit(self._write, operation)

    @property
    def answers(self) -> bool:
        """Whether the server has answered anything within the last seconds."""
        return time.monotonic() - self._answered_at < SILENCE

    def close(self) -> None:
        """End all threads, after what already waits has been done."""
        with self._door:
            self._closed = True
        self._writers.shutdown()
        self._readers.shutdown()
        self._closing.set()
        with self._notify:
            self._notify.notify_all()
        for thread in self._threads:
            if thread.is_alive():
                thread.join()
        self._engine.dispose()

    def _read(self, operation: Callable[[sa.Connection], T]) -> T:
        result = read_in(self._snapshots, operation)
        self._answered_at = time.monotonic()
        return result

    def _write(self, operation: Callable[[Transaction], T]) -> T:
        for left in reversed(range(TRIES)):
            try:
                return self._once(operation)
            except sa.exc.DBAPIError as error:
                concurrent = getattr(error.orig, "sqlstate", None) in _CONCURRENT
                if left and (concurrent or error.connection_invalidated):
                    continue
                if isinstance(error, sa.exc.OperationalError | sa.exc.InterfaceError):
                    raise away(error) from error
                raise
            except sa.exc.TimeoutError as error:
                raise away(error) from error
        raise closing()

    def _once(self, operation: Callable[[Transaction], T]) -> T:
        with self._engine.connect() as connection:
            committing = connection.begin()
            transaction = Transaction(connection)
            with keeping():
                result = operation(transaction)
            try:
                committing.commit()
            except sa.exc.DBAPIError as error:
                raise away(error) from error  # it may be durable or not: it must not be run again
        self._answered_at = time.monotonic()
        self._on_happened(transaction.happened)
        if transaction.pending_for:
            for agent in transaction.pending_for:
                self._on_pending(agent)
            with self._notify:
                self._to_notify |= transaction.pending_for
                self._notify.notify_all()
        return result

    def _send_notifications(self) -> None:
        while not self._closing.is_set():
            with self._notify:
                while not self._to_notify and not self._closing.is_set():
                    self._notify.wait()
                agents, self._to_notify = self._to_notify, set()
            try:
                read_in(self._engine, partial(_notify_all, agents=agents))
            except ServiceUnavailable as error:
                # Who waits elsewhere looks by itself within seconds.
                _log.warning("other processes were not woken: %s", error)

    def _listen(self) -> None:
        while not self._closing.is_set():
            try:
                with psycopg.connect(
                    self._address, autocommit=True, connect_timeout=CONNECT_SECONDS
                ) as connection:
                    connection.execute(f"LISTEN {CHANNEL}")
                    while not self._closing.is_set():
                        for notification in connection.notifies(timeout=LISTEN_SLICE):
                            self._on_pending(notification.payload)
                        if time.monotonic() - self._answered_at > ASK_AFTER:
                            # Nobody else has heard of the server: it may hang, or they may be busy for long.
                            connection.execute("SELECT 1")
                            self._answered_at = time.monotonic()
            except psycopg.Error as error:
                _log.warning("wake-ups from other processes are away: %s", error)
                self._closing.wait(LISTEN_PAUSE)


def _notify_all(connection: sa.Connection, agents: set[str]) -> None:
    for agent in sorted(agents):
        connection.execute(
            sa.text("SELECT pg_notify(:channel, :agent)"), {"channel": CHANNEL, "agent": agent}
        )
