"""SQLite: one file, one service process.

Writes go through one thread that runs all waiting operations in one transaction, each in a savepoint, and answers
them after its commit (group commit): one fsync serves many. Reads have their own connections and, under WAL,
never wait for the writer.
"""

import fcntl
import os
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa

from clara_results.errors import InvalidInput, ServiceUnavailable
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
GROUP_LIMIT = 200
"""Operations that share one commit at most, so that none waits for long."""
GATHER = 0.0005
"""Seconds to wait for the rest of a group where the last one was larger: without it, of callers that come back together
the first would have a commit of its own."""
BUSY_MILLISECONDS = 5000
CACHE_KIB = 16 << 10
"""Memory for pages, of each connection: those at the tops of all indexes stay there."""
CHECKPOINT_PAGES = 8000
"""Pages that the log takes (32 MB) before they go into the file: one that changed often goes there once."""


@dataclass(slots=True)
class _Write:
    operation: Callable[[Transaction], Any]
    future: Future[Any]


class SqliteDatabase:
    """The SQLite database of one service process; see ``Database``."""

    def __init__(self, url: sa.URL) -> None:
        """Open a database, making the file and its folder if need be.

        Raises:
            ServiceUnavailable: It can't be opened.
        """
        path = Path(url.database or "")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ServiceUnavailable(
                f"the database's folder {path.parent} can't be made: {error}"
            ) from error
        self._path = path
        self._lock: int | None = None
        self._writer = _engine(url, "BEGIN IMMEDIATE", pool_size=2)  # one is the writer's for good
        self._connection: sa.Connection | None = None
        self._reader = _engine(url, "BEGIN", pool_size=READERS)
        self._threads = ThreadPoolExecutor(READERS, thread_name_prefix="read")
        self._waiting: queue.SimpleQueue[_Write | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._write_all, name="write", daemon=True)
        self._closed = False
        self._door = threading.Lock()
        """Held while something is put in line, so that nothing gets in behind the end."""
        self._on_pending: OnPending = lambda _agent: None
        self._on_happened: OnHappened = lambda _happened: None
        self._thread.start()

    @property
    def engine(self) -> sa.Engine:
        """The engine that writes."""
        return self._writer

    def start(self, on_pending: OnPending, on_happened: OnHappened) -> None:
        """Take the file for this service process, and begin to call ``on_pending`` and ``on_happened``."""
        self._lock = _lock(self._path)
        self._on_pending = on_pending
        self._on_happened = on_happened

    def read(self, operation: Callable[[sa.Connection], T]) -> Future[T]:
        """Run an operation on a snapshot of the database."""
        with self._door:
            if self._closed:
                return failed(closing())
            return self._threads.submit(read_in, self._reader, operation)

    def write(self, operation: Callable[[Transaction], T]) -> Future[T]:
        """Run an operation in a transaction; one that raises does not touch others of its group."""
        future: Future[T] = Future()
        with self._door:
            if self._closed:
                return failed(closing())
            self._waiting.put(_Write(operation, future))
        return future

    @property
    def answers(self) -> bool:
        """True: there is no server that could hang."""
        return True

    def close(self) -> None:
        """End all threads, after what already waits has been done."""
        with self._door:
            self._closed = True
            self._waiting.put(None)
        self._thread.join()
        self._threads.shutdown()
        self._writer.dispose()
        self._reader.dispose()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _write_all(self) -> None:
        last = 0
        while (first := self._waiting.get()) is not None:
            if self._waiting.qsize() + 1 < last:
                time.sleep(GATHER)
            group = [first]
            ending = False
            while len(group) < GROUP_LIMIT and not self._waiting.empty():
                following = self._waiting.get()
                if following is None:
                    ending = True
                    break
                group.append(following)
            last = len(group)
            self._write_group(group)
            if ending:
                break
        self._disconnect()

    def _disconnect(self) -> None:
        """Close the writer's connection; the next group of writes has a new one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _write_group(self, group: list[_Write]) -> None:
        done: list[tuple[_Write, Any, Exception | None]] = []
        gathered: list[Transaction] = []
        group = [write for write in group if write.future.set_running_or_notify_cancel()]
        try:
            connection = self._connection = self._connection or self._writer.connect()
            with connection.begin():
                for write in group:
                    transaction = Transaction(connection)
                    result, fault = _in_savepoint(transaction, write.operation)
                    done.append((write, result, fault))
                    if fault is None:
                        gathered.append(transaction)
        except sa.exc.OperationalError as error:
            self._disconnect()
            unavailable = away(error)
            for write in group:
                write.future.set_exception(unavailable)
            return
        except Exception as error:  # noqa: BLE001  (outermost loop of the thread: who waits is told)
            self._disconnect()
            for write in group:
                write.future.set_exception(error)
            return
        self._on_happened([one for transaction in gathered for one in transaction.happened])
        for write, result, fault in done:
            if fault is None:
                write.future.set_result(result)
            else:
                write.future.set_exception(fault)
        for agent in set[str]().union(*(transaction.pending_for for transaction in gathered)):
            self._on_pending(agent)


def _in_savepoint(
    transaction: Transaction, operation: Callable[[Transaction], Any]
) -> tuple[Any, Exception | None]:
    # The driver's own savepoints: SQLAlchemy compiles each anew, which takes longer than most operations.
    driver = transaction.connection.connection
    driver.cursor().execute("SAVEPOINT operation")
    result: Any = None
    fault: Exception | None = None
    try:
        with keeping():
            result = operation(transaction)
    except sa.exc.OperationalError:
        raise  # the database itself is in trouble: so is the group
    except Exception as error:  # noqa: BLE001  (a fault in one operation must not fail its neighbours)
        driver.cursor().execute("ROLLBACK TO operation")
        fault = error
    driver.cursor().execute("RELEASE operation")
    return result, fault


def _lock(path: Path) -> int:
    """Lock a file beside the database; the kernel frees it when the process ends, however that comes about.

    Raises:
        InvalidInput: Another service process has it.
        ServiceUnavailable: The file can't be made.
    """
    beside = path.with_name(f"{path.name}.lock")
    try:
        lock = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ServiceUnavailable(f"{beside} can't be opened: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.pread(lock, 20, 0).decode(errors="replace") or "of unknown id"
        os.close(lock)
        raise InvalidInput(
            f"{path} is in use: another Results Service (process {holder}) works on it. A SQLite file serves "
            "one at a time: end the other, choose another --data, or use PostgreSQL for several",
            code="database-in-use",
        ) from error
    os.ftruncate(lock, 0)
    os.pwrite(lock, str(os.getpid()).encode(), 0)
    return lock


def _engine(url: sa.URL, begin: str, pool_size: int) -> sa.Engine:
    engine = sa.create_engine(
        url,
        pool_size=pool_size,
        max_overflow=0,
        hide_parameters=True,  # an error goes into the log; a patient's name must not
        connect_args={"check_same_thread": False},
    )

    @sa.event.listens_for(engine, "connect")
    def _connected(connection: Any, _record: Any) -> None:
        # Left to itself, the driver would commit each savepoint on its own.
        connection.isolation_level = None
        for pragma in (
            f"busy_timeout = {BUSY_MILLISECONDS}",
            "journal_mode = WAL",
            "synchronous = FULL",
            "foreign_keys = ON",
            f"cache_size = -{CACHE_KIB}",
            f"wal_autocheckpoint = {CHECKPOINT_PAGES}",
            "temp_store = MEMORY",  # what a savepoint needs for its rollback would be a file each time
        ):
            connection.execute(f"PRAGMA {pragma}").close()

    @sa.event.listens_for(engine, "begin")
    def _begun(connection: sa.Connection) -> None:
        connection.exec_driver_sql(begin)

    return engine
