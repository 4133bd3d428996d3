"""Transactions: durable when told so, apart from each other, and readers that never wait."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from clara_results.errors import Conflict, InvalidInput, ServiceUnavailable
from clara_results.store.database import Database, Transaction, open_database
from clara_results.store.migrations import migrate
from clara_results.store.schema import turns
from tests.conftest import eventually

PATIENCE = 20.0


def put(agent: str, turn: int = 1) -> Callable[[Transaction], str]:
    """Return an operation that inserts a row and returns its key."""

    def operation(transaction: Transaction) -> str:
        transaction.connection.execute(turns.insert().values(agent=agent, turn=turn))
        transaction.pending_for.add(agent)
        return agent

    return operation


def put_and_raise(agent: str, error: Exception) -> Callable[[Transaction], str]:
    def operation(transaction: Transaction) -> str:
        put(agent)(transaction)
        raise error

    return operation


def agents(connection: sa.Connection) -> set[str]:
    return set(connection.scalars(sa.select(turns.c.agent)))


def there(database: Database) -> set[str]:
    return database.read(agents).result(PATIENCE)


class Gate:
    """An operation that waits in its transaction until it is let go."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.go = threading.Event()

    def __call__(self, transaction: Transaction) -> None:
        put("gate")(transaction)
        self.entered.set()
        assert self.go.wait(PATIENCE)


def test_a_write_returns_its_result_and_is_read_back(database: Database) -> None:
    assert database.write(put("a")).result(PATIENCE) == "a"
    assert there(database) == {"a"}


def test_a_write_is_durable_when_its_future_is_done(database: Database) -> None:
    database.write(put("a", 7)).result(PATIENCE)
    # Another connection altogether, as if the process had died here.
    other = sa.create_engine(database.engine.url)
    with other.connect() as connection:
        assert connection.execute(sa.select(turns.c.turn)).scalar_one() == 7
    other.dispose()


def test_a_failing_operation_leaves_nothing_and_touches_no_neighbour(database: Database) -> None:
    gate = Gate()
    held = database.write(gate)
    assert gate.entered.wait(PATIENCE)
    # All of these wait behind the gate, so that on SQLite they share one commit.
    futures: list[Future[str]] = []
    for number in range(10):
        futures.append(database.write(put(f"good-{number}")))
        futures.append(database.write(put_and_raise(f"bad-{number}", Conflict("no"))))
        futures.append(database.write(put_and_raise(f"worse-{number}", ZeroDivisionError())))
    gate.go.set()
    held.result(PATIENCE)
    wait_for(futures, PATIENCE)
    for good, bad, worse in zip(*[iter(futures)] * 3, strict=True):
        assert good.result(0).startswith("good")
        assert isinstance(bad.exception(0), Conflict)
        assert isinstance(worse.exception(0), ZeroDivisionError)
    assert there(database) == {"gate"} | {f"good-{number}" for number in range(10)}


def test_a_statement_that_the_database_refuses_touches_no_neighbour(database: Database) -> None:
    database.write(put("a")).result(PATIENCE)
    gate = Gate()
    held = database.write(gate)
    assert gate.entered.wait(PATIENCE)
    futures = [database.write(put("b")), database.write(put("a")), database.write(put("c"))]
    gate.go.set()
    held.result(PATIENCE)
    assert futures[0].result(PATIENCE) == "b"
    assert isinstance(futures[1].exception(PATIENCE), sa.exc.IntegrityError)
    assert futures[2].result(PATIENCE) == "c"
    assert there(database) == {"gate", "a", "b", "c"}


def test_an_operation_that_swallows_its_error_does_not_spoil_the_group(database: Database) -> None:
    database.write(put("a")).result(PATIENCE)

    def careful(transaction: Transaction) -> str:
        with pytest.raises(sa.exc.IntegrityError), transaction.connection.begin_nested():
            put("a")(transaction)
        return put("b")(transaction)

    assert database.write(careful).result(PATIENCE) == "b"


def test_futures_that_are_cancelled_do_not_stop_the_writers(database: Database) -> None:
    gate = Gate()
    held = database.write(gate)
    assert gate.entered.wait(PATIENCE)
    # PostgreSQL's writers take them at once; there only what waits for a thread can be cancelled.
    futures = [database.write(put(f"a-{number}")) for number in range(50)]
    cancelled = [future for future in futures[::2] if future.cancel()]
    assert not held.cancel()  # it runs already
    gate.go.set()
    held.result(PATIENCE)
    assert database.write(put("after")).result(PATIENCE) == "after"
    kept = [future for future in futures if future not in cancelled]
    assert {future.result(PATIENCE) for future in kept} | {"gate", "after"} == there(database)
    if database.engine.dialect.name == "sqlite":
        assert len(cancelled) == 25


def test_readers_do_not_wait_for_a_writer_nor_see_its_half(database: Database) -> None:
    database.write(put("before")).result(PATIENCE)
    gate = Gate()
    held = database.write(gate)
    assert gate.entered.wait(PATIENCE)
    assert there(database) == {"before"}
    gate.go.set()
    held.result(PATIENCE)
    assert there(database) == {"before", "gate"}


def test_a_read_sees_one_moment_from_its_beginning_to_its_end(database: Database) -> None:
    looked, go = threading.Event(), threading.Event()

    def twice(connection: sa.Connection) -> tuple[set[str], set[str]]:
        first = agents(connection)
        looked.set()
        assert go.wait(PATIENCE)
        return first, agents(connection)

    reading = database.read(twice)
    assert looked.wait(PATIENCE)
    database.write(put("meanwhile")).result(PATIENCE)
    go.set()
    assert reading.result(PATIENCE) == (set(), set())


def test_who_waits_is_woken_after_the_commit_only(database: Database) -> None:
    seen: list[tuple[str, bool]] = []
    database.start(lambda agent: seen.append((agent, agent in there(database))), lambda _: None)
    bad = database.write(put_and_raise("bad", Conflict("no")))
    good = database.write(put("good"))
    good.result(PATIENCE)
    assert isinstance(bad.exception(PATIENCE), Conflict)
    # On PostgreSQL this process hears its own notification as well.
    times = 1 if database.engine.dialect.name == "sqlite" else 2
    eventually(lambda: len(seen) == times, "the waiting are woken")
    assert set(seen) == {("good", True)}


def test_many_threads_write_at_once_and_nothing_is_lost(database: Database) -> None:
    def add(transaction: Transaction) -> None:
        connection = transaction.connection
        found = sa.select(turns.c.turn).where(turns.c.agent == "sum").with_for_update()
        connection.execute(turns.update().values(turn=connection.execute(found).scalar_one() + 1))

    database.write(put("sum", 0)).result(PATIENCE)
    futures: list[Future[None]] = []
    lock = threading.Lock()

    def submit() -> None:
        for _ in range(50):
            future = database.write(add)
            with lock:
                futures.append(future)

    threads = [threading.Thread(target=submit) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    for future in futures:
        future.result(PATIENCE)
    total = database.read(lambda c: c.execute(sa.select(turns.c.turn)).scalar_one())
    assert total.result(PATIENCE) == 200


def test_what_waits_is_done_before_the_end_and_nothing_is_taken_after(database_url: str) -> None:
    database = open_database(database_url)
    migrate(database.engine)
    futures = [database.write(put(f"a-{number}")) for number in range(300)]
    database.close()
    assert {future.result(0) for future in futures} == {f"a-{number}" for number in range(300)}
    late: list[Future[Any]] = [database.write(put("late")), database.read(agents)]
    for future in late:
        with pytest.raises(ServiceUnavailable) as raised:
            future.result(PATIENCE)
        assert raised.value.code == "shutting-down"


def test_writers_that_come_while_it_closes_are_answered_one_way_or_the_other(
    database_url: str,
) -> None:
    database = open_database(database_url)
    migrate(database.engine)
    futures: list[Future[str]] = []
    begun = threading.Event()

    def submit() -> None:
        for number in range(2000):
            futures.append(database.write(put(f"a-{number}")))
            begun.set()

    thread = threading.Thread(target=submit)
    thread.start()
    assert begun.wait(PATIENCE)
    database.close()
    thread.join(PATIENCE)
    assert not thread.is_alive()
    for future in futures:
        error = future.exception(PATIENCE)  # none waits for ever
        assert error is None or isinstance(error, ServiceUnavailable)


def test_a_locked_file_is_told_as_the_database_being_away(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/test.db?timeout=0.05"
    database = open_database(url)
    migrate(database.engine)
    with database.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA busy_timeout = 50")
        connection.rollback()
    other = sa.create_engine(f"sqlite:///{tmp_path}/test.db")
    with other.connect() as connection:
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        with pytest.raises(ServiceUnavailable) as raised:
            database.write(put("a")).result(PATIENCE)
        assert raised.value.code == "database-unavailable"
        connection.rollback()
    other.dispose()
    assert database.write(put("b")).result(PATIENCE) == "b"
    assert there(database) == {"b"}
    database.close()


def test_a_database_that_is_gone_is_told_as_away(tmp_path: Path) -> None:
    database = open_database(f"sqlite:///{tmp_path}/test.db")
    with pytest.raises(ServiceUnavailable) as raised:
        database.read(agents).result(PATIENCE)  # no such table: nobody migrated it
    assert raised.value.code == "database-unavailable"
    database.close()


@pytest.mark.parametrize(
    ("agent", "turn"), [("half a pair \ud800", 1), ("large", 1 << 63), ("large", 10**40)]
)
def test_a_value_that_no_column_holds_is_the_callers_fault(
    database: Database, agent: str, turn: int
) -> None:
    neighbour = database.write(put("neighbour"))
    refused: list[Future[Any]] = [database.write(put(agent, turn))]
    refused.append(database.read(lambda c: c.execute(sa.select(turns).where(turns.c.agent == agent, turns.c.turn == turn)).one()))  # fmt: skip
    for future in refused:
        with pytest.raises(InvalidInput) as raised:
            future.result(PATIENCE)
        assert raised.value.code == "invalid-value"
    assert neighbour.result(PATIENCE) == "neighbour"
