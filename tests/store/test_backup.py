"""A copy of the database that is made while it works."""

import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa

from clara_results.errors import ClaraResultsError, InvalidInput, ServiceUnavailable
from clara_results.store.backup import PAGES, back_up, sqlite_file
from clara_results.store.database import Transaction, open_database
from clara_results.store.migrations import migrate
from clara_results.store.schema import turns
from clara_results.wire.tasks import Registration
from tests.conftest import eventually

if TYPE_CHECKING:
    from tests.conftest import ServiceStarter

PATIENCE = 20.0


def quiet(_done: int, _total: int) -> None:
    """Take progress."""


def add(agent: str, turn: int = 1) -> Callable[[Transaction], None]:
    def insert(transaction: Transaction) -> None:
        transaction.connection.execute(turns.insert().values(agent=agent, turn=turn))

    return insert


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Make a database of some thousand pages, closed."""
    path = tmp_path / "data" / "results.db"
    database = open_database(f"sqlite:///{path}")
    migrate(database.engine)
    for number in range(20):
        database.write(add(f"{number}-" + "x" * 500_000)).result(PATIENCE)
    database.close()
    return path


def rows(path: Path) -> int:
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as opened:
        assert opened.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return int(opened.execute("SELECT count(*) FROM turns").fetchone()[0])


def test_the_copy_holds_everything_in_one_file_that_only_its_owner_reads(
    source: Path, tmp_path: Path
) -> None:
    target = tmp_path / "copy.db"
    told: list[tuple[int, int]] = []
    size = back_up(
        source, target, replace=False, progress=lambda done, total: told.append((done, total))
    )
    assert size == target.stat().st_size > PAGES * 2 * 4096
    assert target.stat().st_mode & 0o777 == 0o600
    assert rows(target) == 20
    done = [each for each, _ in told]
    assert done == sorted(done)
    assert len(done) > 2
    assert told[-1][0] == told[-1][1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy.db", "data"]
    assert [path.name for path in source.parent.iterdir()] == [source.name]
    reopened = open_database(f"sqlite:///{target}")
    migrate(reopened.engine)  # the copy is a database to work on
    reopened.write(add("after")).result(PATIENCE)
    reopened.close()
    assert rows(target) == 21


def test_the_copy_is_of_one_moment_although_others_write(source: Path, tmp_path: Path) -> None:
    """Every transaction adds two rows; a copy with an odd number of them would be torn."""
    database = open_database(f"sqlite:///{source}")
    stop = threading.Event()
    written = 0

    def pair(number: int) -> Callable[[Transaction], None]:
        def insert(transaction: Transaction) -> None:
            for half in "ab":
                add(f"pair-{number}-{half}", number)(transaction)

        return insert

    def write() -> None:
        nonlocal written
        while not stop.is_set():
            database.write(pair(written)).result(PATIENCE)
            written += 1

    thread = threading.Thread(target=write)
    thread.start()
    seen = []
    try:
        eventually(lambda: written > 5, "the writer works")
        for number in range(5):
            before = written
            target = tmp_path / f"copy-{number}.db"
            back_up(source, target, replace=False, progress=quiet)
            seen.append(rows(target))
            assert before * 2 <= seen[-1] - 20 <= (written + 1) * 2
    finally:
        stop.set()
        thread.join(PATIENCE)
        database.close()
    assert all(number % 2 == 0 for number in seen)
    assert seen == sorted(seen)


def test_writers_go_on_while_a_copy_is_made(source: Path, tmp_path: Path) -> None:
    database = open_database(f"sqlite:///{source}")

    def progress(done: int, _total: int) -> None:
        # In the very middle of the copy, and in its thread: were the writer kept out, this would not return.
        database.write(add(f"meanwhile-{done}")).result(PATIENCE)

    try:
        back_up(source, tmp_path / "copy.db", replace=False, progress=progress)
    finally:
        database.close()
    assert rows(tmp_path / "copy.db") == 20
    assert rows(source) > 22


def test_what_is_there_stays_unless_told_otherwise(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "copy.db"
    target.write_bytes(b"precious")
    with pytest.raises(InvalidInput, match="--force") as raised:
        back_up(source, target, replace=False, progress=quiet)
    assert raised.value.code == "target-exists"
    assert target.read_bytes() == b"precious"
    back_up(source, target, replace=True, progress=quiet)
    assert rows(target) == 20


def test_the_database_itself_is_never_the_target(source: Path, tmp_path: Path) -> None:
    other_name = tmp_path / "other"
    other_name.hardlink_to(source)
    for target in (source, other_name, tmp_path, tmp_path / "not" / "there.db"):
        with pytest.raises(InvalidInput):
            back_up(source, target, replace=True, progress=quiet)
    assert rows(source) == 20


def test_a_damaged_database_makes_no_copy(source: Path, tmp_path: Path) -> None:
    with source.open("r+b") as file:
        for page in range(500, 1500, 50):
            file.seek(page * 4096)
            file.write(os.urandom(4096))
    with pytest.raises(ClaraResultsError) as raised:
        back_up(source, tmp_path / "copy.db", replace=False, progress=quiet)
    assert raised.value.code in {"database-damaged", "backup-failed"}
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_copy_that_is_interrupted_leaves_what_was_there(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "copy.db"
    target.write_bytes(b"the last good one")

    def interrupt(_done: int, _total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        back_up(source, target, replace=True, progress=interrupt)
    assert target.read_bytes() == b"the last good one"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy.db", "data"]


def test_a_file_that_is_no_database_is_said_to_be_none(tmp_path: Path) -> None:
    (tmp_path / "notes").write_bytes(b"nothing of the kind" * 1000)
    with pytest.raises(ServiceUnavailable, match="notes"):
        back_up(tmp_path / "notes", tmp_path / "copy.db", replace=False, progress=quiet)
    assert [path.name for path in tmp_path.iterdir()] == ["notes"]


def test_postgresql_has_a_tool_of_its_own_and_the_password_is_not_shown(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput) as raised:
        sqlite_file("postgresql://me:secret@db.example:5433/clara", Path("my copy"))
    assert raised.value.code == "use-pg-dump"
    command = (
        "pg_dump --format=custom '--file=my copy' --dbname=postgresql://me@db.example:5433/clara"
    )
    assert command in str(raised.value)
    assert "secret" not in str(raised.value)


def test_a_database_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"gone\.db"):
        sqlite_file(f"sqlite:///{tmp_path}/gone.db", tmp_path / "copy.db")


# As a command, beside a service


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "clara_results", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_the_command_copies_what_a_running_service_has_and_a_service_starts_from_it(
    service: "ServiceStarter", tmp_path: Path
) -> None:
    running = service()
    body = Registration(
        agent="a", job_id="job", pipeline_id="pipe", payload_id="pay", uris=["one", "two"]
    )
    (task,) = running.client.register(body).tasks
    target = tmp_path / "copy.db"
    done = run("backup", target, "--data", running.data)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # no bar where nobody looks
    assert str(target) in done.stdout
    again = run("backup", target, "--data", running.data)
    assert (again.returncode, again.stdout) == (2, "")
    assert "--force" in again.stderr
    (after,) = running.client.register(body).tasks

    restored = service(database=f"sqlite:///{target}")
    assert restored.client.task(task.task_id).job_id == "job"
    assert [each.task_id for each in restored.client.tasks().items] == [task.task_id]
    assert running.client.task(after.task_id).state == "Pending"


def test_a_second_service_on_the_file_is_refused_and_other_commands_are_not(
    service: "ServiceStarter", free_port: Callable[[], int]
) -> None:
    running = service()
    arguments = ["--data", running.data, "--port", free_port()]
    second = run("serve", *arguments)
    assert (second.returncode, second.stdout) == (2, "")
    assert "clara-results.db is in use" in second.stderr
    assert "[database-in-use]" in second.stderr
    assert "Traceback" not in second.stderr
    assert "Traceback" not in running.log()
    assert run("tokens", "list", "--data", running.data).returncode == 0
    running.client.ready()
    running.kill()
    running.start()  # the kernel has freed what the killed process held
    running.client.ready()


def test_one_process_has_the_file_until_it_closes_it(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/test.db"
    first, second = open_database(url), open_database(url)
    try:
        first.start(lambda _agent: None, lambda _happened: None)
        with pytest.raises(InvalidInput, match=f"process {os.getpid()}") as raised:
            second.start(lambda _agent: None, lambda _happened: None)
        assert raised.value.code == "database-in-use"
        migrate(first.engine)
        assert second.read(lambda c: c.execute(sa.select(turns)).all()).result(PATIENCE) == []
        first.close()
        second.start(lambda _agent: None, lambda _happened: None)
    finally:
        first.close()
        second.close()
