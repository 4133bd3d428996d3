"""A database: transactions, on threads of its own, that other threads and coroutines wait for."""

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import sqlalchemy as sa

from clara_results.domain.happenings import Happening
from clara_results.errors import InvalidInput, ServiceUnavailable

T = TypeVar("T")
READERS = 4
_DISK_FULL = frozenset({"SQLITE_FULL", "53100"})
"""What SQLite and PostgreSQL (as SQLSTATE) say of a full disk."""
OnPending = Callable[[str], None]
"""Called from any thread with the name of an agent that has a task to claim."""
OnHappened = Callable[[Sequence[Happening]], None]
"""Called from any thread with what a transaction of this process did."""
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Transaction:
    """A write transaction.

    Attributes:
        connection: Where statements run.
        pending_for: Agents that have a task to claim once this is durable; those who wait are woken then.
        happened: What this does to tasks; told to who counts once it is durable.
    """

    connection: sa.Connection
    pending_for: set[str] = field(default_factory=set)
    happened: list[Happening] = field(default_factory=list)


class Database(Protocol):
    """What the service needs of a database."""

    @property
    def engine(self) -> sa.Engine:
        """The engine that writes, for migrations before work begins."""
        ...

    def start(self, on_pending: OnPending, on_happened: OnHappened) -> None:
        """Begin to call ``on_pending``, for this process's transactions and all others' on the database.

        ``on_happened`` is called for this process's transactions alone.
        """
        ...

    def read(self, operation: Callable[[sa.Connection], T]) -> Future[T]:
        """Run an operation on a snapshot of the database; its result is the future's."""
        ...

    def write(self, operation: Callable[[Transaction], T]) -> Future[T]:
        """Run an operation in a transaction; the future is done when that is durable.

        An operation that raises leaves nothing behind. It may be run again from its start if another transaction
        came in its way, so it must have no effect but on the database, or one that can be had twice.
        """
        ...

    @property
    def answers(self) -> bool:
        """Whether the database has answered anything within the last seconds.

        A server that hangs makes who waits for it wait as well: this tells them not to.
        """
        ...

    def close(self) -> None:
        """End all threads, after what already waits has been done."""
        ...


def open_database(url: str) -> Database:
    """Open the database that a URL names.

    Args:
        url: ``sqlite:///PATH`` or ``postgresql://…``.

    Raises:
        ServiceUnavailable: It can't be opened.
    """
    parsed = sa.make_url(url)
    if parsed.get_backend_name() == "postgresql":
        from clara_results.store.postgres import PostgresDatabase

        return PostgresDatabase(parsed)
    from clara_results.store.sqlite import SqliteDatabase

    return SqliteDatabase(parsed)


@contextmanager
def keeping() -> Iterator[None]:
    """Map what drivers raise for a value that no column can hold: NUL, half a surrogate pair, a number too large.

    Raises:
        InvalidInput: There is such a value (``invalid-value``).
    """
    try:
        yield
    except (sa.exc.DataError, OverflowError, UnicodeEncodeError) as error:
        raise InvalidInput(
            "a value is one that the database can't hold: text with NUL or half a surrogate pair, or a "
            "number or time too large",
            code="invalid-value",
        ) from error


def read_in(engine: sa.Engine, operation: Callable[[sa.Connection], T]) -> T:
    """Run an operation in a transaction of an engine; once more if its connection turns out to be lost.

    Raises:
        ServiceUnavailable: The database can't serve just now.
    """
    try:
        try:
            return _in_transaction(engine, operation)
        except sa.exc.DBAPIError as error:
            if not error.connection_invalidated:
                raise
            return _in_transaction(engine, operation)
    except (sa.exc.OperationalError, sa.exc.InterfaceError, sa.exc.TimeoutError) as error:
        raise away(error) from error


def _in_transaction(engine: sa.Engine, operation: Callable[[sa.Connection], T]) -> T:
    with engine.begin() as connection, keeping():
        return operation(connection)


def away(error: sa.exc.SQLAlchemyError) -> ServiceUnavailable:
    """Return what callers are told when the database itself is in trouble; the log has the cause."""
    cause = error.orig if isinstance(error, sa.exc.DBAPIError) else error
    _log.error("database unavailable: %s", cause)
    if {getattr(cause, "sqlite_errorname", None), getattr(cause, "sqlstate", None)} & _DISK_FULL:
        return ServiceUnavailable(
            "the disk of the database is full: nothing was changed; make room there, and work goes on by itself",
            code="database-full",
        )
    return ServiceUnavailable(
        "the database can't serve just now; try again shortly", code="database-unavailable"
    )


def silent() -> ServiceUnavailable:
    """Return what callers are told when the database has stopped to answer."""
    return ServiceUnavailable(
        "the database does not answer; try again shortly", code="database-unavailable"
    )


def closing() -> ServiceUnavailable:
    """Return what callers are told once the database is being closed."""
    return ServiceUnavailable("the service is shutting down", code="shutting-down")


def failed(error: Exception) -> Future[Any]:
    """Return a future that is done, with an error."""
    future: Future[Any] = Future()
    future.set_exception(error)
    return future
