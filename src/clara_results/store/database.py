"""A database: transactions, on threads of its own, that other threads and coroutines wait for.

Writes on SQLite go through one thread that runs all waiting operations in one transaction, each in a savepoint,
and answers them after its commit (group commit): one fsync serves many. Reads have their own connections and,
under WAL, never wait for the writer.
"""

import logging
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa

from clara_results.errors import ClaraResultsError, ServiceUnavailable

T = TypeVar("T")
READERS = 4
GROUP_LIMIT = 200
"""Operations that share one commit at most, so that none waits for long."""
BUSY_MILLISECONDS = 5000
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Transaction:
    """A write transaction.

    Attributes:
        connection: Where statements run.
        after_commit: Called in order once what was written is durable, and only then.
    """

    connection: sa.Connection
    after_commit: list[Callable[[], None]] = field(default_factory=list)


@dataclass(slots=True)
class _Write:
    operation: Callable[[Transaction], Any]
    future: "Future[Any]"


class Database:
    """The SQLite database of one service process."""

    def __init__(self, url: str) -> None:
        """Open a database, making the file and its folder if need be.

        Args:
            url: ``sqlite:///PATH``.

        Raises:
            ServiceUnavailable: It can't be opened.
        """
        self.url = sa.make_url(url)
        path = Path(self.url.database or "")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ServiceUnavailable(
                f"the database's folder {path.parent} can't be made: {error}"
            ) from error
        self._writer = _engine(self.url, "BEGIN IMMEDIATE", pool_size=1)
        self._reader = _engine(self.url, "BEGIN", pool_size=READERS)
        self._threads = ThreadPoolExecutor(READERS, thread_name_prefix="read")
        self._waiting: queue.SimpleQueue[_Write | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._write_all, name="write", daemon=True)
        self._closed = False
        self._thread.start()

    @property
    def engine(self) -> sa.Engine:
        """The engine that writes, for migrations before work begins."""
        return self._writer

    def read(self, operation: Callable[[sa.Connection], T]) -> "Future[T]":
        """Run an operation on a snapshot of the database; its result is the future's."""
        return self._threads.submit(self._read, operation)

    def write(self, operation: Callable[[Transaction], T]) -> "Future[T]":
        """Run an operation in a transaction; the future is done when that is durable.

        An operation that raises leaves nothing behind, and does not touch others of its group.
        """
        future: Future[T] = Future()
        if self._closed:
            future.set_exception(ServiceUnavailable("the service is shutting down"))
        else:
            self._waiting.put(_Write(operation, future))
        return future

    def close(self) -> None:
        """End all threads, after what already waits has been done."""
        self._closed = True
        self._waiting.put(None)
        self._thread.join()
        self._threads.shutdown()
        self._writer.dispose()
        self._reader.dispose()

    def _read(self, operation: Callable[[sa.Connection], T]) -> T:
        try:
            with self._reader.begin() as connection:
                return operation(connection)
        except sa.exc.OperationalError as error:
            raise _away(error) from error

    def _write_all(self) -> None:
        while (first := self._waiting.get()) is not None:
            group = [first]
            ending = False
            while len(group) < GROUP_LIMIT and not self._waiting.empty():
                following = self._waiting.get()
                if following is None:
                    ending = True
                    break
                group.append(following)
            self._write_group(group)
            if ending:
                return

    def _write_group(self, group: list[_Write]) -> None:
        done: list[tuple[_Write, Any, Exception | None]] = []
        after_commit: list[Callable[[], None]] = []
        group = [write for write in group if write.future.set_running_or_notify_cancel()]
        try:
            with self._writer.begin() as connection:
                for write in group:
                    result, fault, hooks = _in_savepoint(connection, write.operation)
                    done.append((write, result, fault))
                    after_commit += hooks
        except sa.exc.OperationalError as error:
            away = _away(error)
            for write in group:
                write.future.set_exception(away)
            return
        except Exception as error:  # noqa: BLE001  (outermost loop of the thread: who waits is told)
            for write in group:
                write.future.set_exception(error)
            return
        for write, result, fault in done:
            if fault is None:
                write.future.set_result(result)
            else:
                write.future.set_exception(fault)
        for hook in after_commit:
            hook()


def _in_savepoint(
    connection: sa.Connection, operation: Callable[[Transaction], Any]
) -> tuple[Any, Exception | None, list[Callable[[], None]]]:
    transaction = Transaction(connection)
    try:
        with connection.begin_nested():
            return operation(transaction), None, transaction.after_commit
    except ClaraResultsError as error:
        return None, error, []
    except sa.exc.OperationalError:
        raise  # the database itself is in trouble: so is the group
    except Exception as error:  # noqa: BLE001  (a fault in one operation must not fail its neighbours)
        return None, error, []


def _engine(url: sa.URL, begin: str, pool_size: int) -> sa.Engine:
    engine = sa.create_engine(
        url, pool_size=pool_size, max_overflow=0, connect_args={"check_same_thread": False}
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
        ):
            connection.execute(f"PRAGMA {pragma}").close()

    @sa.event.listens_for(engine, "begin")
    def _begun(connection: sa.Connection) -> None:
        connection.exec_driver_sql(begin)

    return engine


def _away(error: sa.exc.OperationalError) -> ServiceUnavailable:
    _log.error("database unavailable: %s", error.orig)
    return ServiceUnavailable(
        "the database can't serve just now; try again shortly", code="database-unavailable"
    )
