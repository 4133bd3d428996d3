"""Registrations, uploads and removals that come at the same moment, and faults in the middle of a removal."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pytest
import sqlalchemy as sa

from clara_results.domain.tasks import State
from clara_results.domain.transitions import RetryPolicy
from clara_results.errors import ClaraResultsError, Gone, NotFound, Refused, ServiceUnavailable
from clara_results.payloads import FolderStore
from clara_results.service.custody import Custody
from clara_results.service.datasets import Datasets
from clara_results.service.pruner import Pruner
from clara_results.service.queue import Queue
from clara_results.service.registration import Checked, Registrar
from clara_results.service.retention import Retention, Rules
from clara_results.store import retention as store
from clara_results.store.database import Database, Transaction, failed, open_database
from clara_results.store.migrations import migrate
from clara_results.store.schema import tasks, uploads
from clara_results.wire.tasks import Registration, SuccessReport
from tests.conftest import eventually
from tests.integration.conftest import FakeClock

if TYPE_CHECKING:
    from tests.conftest import ServiceStarter

T = TypeVar("T")
PATIENCE = 20.0
RULES = Rules(succeeded=timedelta(hours=8), failed=timedelta(days=7), own=False)


class Site:
    """A service's parts on one database and one payload folder; a replica is another of the same."""

    def __init__(self, url: str, root: Path, clock: FakeClock) -> None:
        self.clock = clock
        self.files = FolderStore(root)
        self.retention = Retention(clock, self.files, RULES)
        policy = RetryPolicy(
            timedelta(seconds=1),
            timedelta(seconds=1),
            timedelta(days=3),
            timedelta(days=1),
            lambda: 0.5,
        )
        self.queue = Queue(clock, policy, self.retention, Custody(clock, patient_columns=True))
        self.datasets = Datasets(self.queue, clock, FolderStore(root / "datasets"), None)
        self.registrar = Registrar(self.queue, self.retention, clock, 0)
        self.database = open_database(url)

    def write(self, operation: Callable[[Transaction], T]) -> T:
        return self.database.write(operation).result(PATIENCE)

    def read(self, operation: Callable[[sa.Connection], T]) -> T:
        return self.database.read(operation).result(PATIENCE)

    def upload(self, uri: str, content: bytes = b"x", payload: str = "pay") -> bool:
        """Do as the service does with an upload."""
        with self.files.receive(payload, uri) as upload:
            upload.write(content)
            self.write(
                lambda tx: self.retention.note_upload(
                    tx, payload, uri, upload.size, upload.sha256, in_place=False
                )
            )
            return upload.commit()

    def register(
        self, *uris: str, payload: str = "pay", registrar: Registrar | None = None
    ) -> None:
        body = Registration(
            agent="a", job_id="job", pipeline_id="pipe", payload_id=payload, uris=list(uris)
        )
        self.write(lambda tx: (registrar or self.registrar).register(tx, Checked.of(body), None))

    def finish(self) -> None:
        """Bring all tasks to a good end."""
        claimed = self.write(lambda tx: self.queue.claim(tx, "a", 100, None, None))
        for task in claimed:
            report = SuccessReport(lease_token=task.lease_token)
            self.write(lambda tx, t=task.task_id, r=report: self.queue.succeed(tx, t, r))  # type: ignore[misc]

    def remove(self, stop: Callable[[], bool] = lambda: False, payload: str = "pay") -> bool:
        return self.retention.remove(self.database, payload, stop)

    def noted(self) -> set[str]:
        return set(self.read(lambda c: c.scalars(sa.select(uploads.c.uri)).all()))

    def unfinished(self) -> int:
        found = sa.select(sa.func.count()).where(tasks.c.state == State.PENDING)
        return int(self.read(lambda c: c.execute(found.select_from(tasks)).scalar_one()))


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def replica(database_url: str, tmp_path: Path, clock: FakeClock) -> Iterator[Callable[[], Site]]:
    """Give a function that makes a service's parts, on the same data each time."""
    with ExitStack() as running:

        def make() -> Site:
            made = Site(database_url, tmp_path / "payloads", clock)
            running.callback(made.database.close)
            return made

        yield make


@pytest.fixture
def site(replica: Callable[[], Site]) -> Site:
    made = replica()
    migrate(made.database.engine)
    return made


def due(site: Site, *uris: str) -> None:
    """Have uploaded files whose tasks are Succeeded and whose time is over."""
    for uri in uris:
        site.upload(uri)
    site.register(*uris)
    site.finish()
    site.clock.advance(8 * 3600)


def then(action: Callable[[], object]) -> Callable[[], bool]:
    """Return a ``stop`` that does something once, after a removal was noted and before the first file goes."""
    left = [action]

    def stop() -> bool:
        if left:
            left.pop()()
        return False

    return stop


# In between


def test_a_registration_before_the_first_file_goes_keeps_them_all(site: Site) -> None:
    due(site, "op/a", "op/b")
    assert not site.remove(then(lambda: site.register("op/a")))
    assert site.files.holds("pay", "op/a")
    assert site.files.holds("pay", "op/b")
    site.finish()
    site.clock.advance(8 * 3600)
    assert site.remove()
    assert site.noted() == set()


def test_an_upload_before_the_first_file_goes_keeps_them_all(site: Site) -> None:
    due(site, "op/a")
    assert not site.remove(then(lambda: site.upload("op/b")))
    assert site.noted() == {"op/a", "op/b"}
    assert site.files.holds("pay", "op/a")


def test_a_registration_in_the_middle_gets_what_is_left_or_nothing(site: Site) -> None:
    names = [f"op/{number:03}" for number in range(250)]
    due(site, *names)
    outcomes = []

    def in_the_middle() -> bool:
        if not site.files.holds("pay", names[0]):
            with pytest.raises(Gone) as raised:
                site.register(names[0], names[-1])
            outcomes.append(raised.value.code)
            assert site.unfinished() == 0
            site.register(names[-1])  # this one is still there
        return False

    assert not site.remove(in_the_middle)
    assert outcomes == ["payload-gone"]
    assert site.files.holds("pay", names[-1])
    assert site.noted() == set(names[200:])


def test_an_upload_in_the_middle_stays(site: Site) -> None:
    names = [f"op/{number:03}" for number in range(250)]
    due(site, *names)

    def in_the_middle() -> bool:
        if not site.files.holds("pay", names[0]):
            assert site.upload(names[0], b"new")
        return False

    assert not site.remove(in_the_middle)
    with site.files.open("pay", names[0]) as file:
        assert file.read() == b"new"
    site.clock.advance(7 * 86_400)
    assert site.remove()
    with pytest.raises(NotFound):
        site.files.files("pay")


def test_a_removal_passes_over_a_payload_that_is_being_registered_on(
    site: Site, replica: Callable[[], Site], database_url: str
) -> None:
    """The registration has done all it does, but is not committed yet."""
    due(site, "op/a")
    done, release = threading.Event(), threading.Event()
    body = Registration(agent="a", job_id="job", pipeline_id="p", payload_id="pay", uris=["op/a"])

    def register(transaction: Transaction) -> None:
        site.registrar.register(transaction, Checked.of(body), None)
        done.set()
        assert release.wait(PATIENCE)

    registered = site.database.write(register)
    assert done.wait(PATIENCE)
    other = replica() if database_url.startswith("postgresql") else site
    with ThreadPoolExecutor(1) as threads:
        removed = threads.submit(other.remove)
        if other is not site:  # SQLite's writer is one: there the removal waits for its turn
            assert removed.result(PATIENCE) is False
        release.set()
        registered.result(PATIENCE)
        assert removed.result(PATIENCE) is False
    assert site.files.holds("pay", "op/a")
    assert site.unfinished() == 1


class Pausing(Retention):
    """Retention that waits before it looks at a payload."""

    def __init__(self, site: Site) -> None:
        super().__init__(site.clock, site.files, RULES)
        self.reached, self.release = threading.Event(), threading.Event()

    def keep(self, *arguments: Any, **more: Any) -> None:
        self.reached.set()
        assert self.release.wait(PATIENCE)
        super().keep(*arguments, **more)


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_registration_that_comes_to_its_files_too_late_is_refused(
    site: Site, replica: Callable[[], Site]
) -> None:
    """Its tasks are written, but nobody sees them yet: the removal goes through, and the registration finds that."""
    due(site, "op/a")
    pausing = Pausing(site)
    registrar = Registrar(site.queue, pausing, site.clock, 0)
    with ThreadPoolExecutor(1) as threads:
        registered = threads.submit(site.register, "op/a", registrar=registrar)
        assert pausing.reached.wait(PATIENCE)
        assert replica().remove()
        pausing.release.set()
        with pytest.raises(Gone):
            registered.result(PATIENCE)
    assert site.unfinished() == 0


# At random


def test_a_registration_at_the_same_moment_finds_its_file_or_is_refused(
    site: Site, replica: Callable[[], Site], database_url: str
) -> None:
    others = [replica(), replica()] if database_url.startswith("postgresql") else [site, site]
    kept = refused = 0
    with ThreadPoolExecutor(3) as threads:
        for number in range(30):
            payload, uri = f"pay-{number}", "op/a"
            site.upload(uri, payload=payload)
            site.clock.advance(7 * 86_400)
            together = threading.Barrier(3)

            def register(payload: str = payload, together: threading.Barrier = together) -> bool:
                together.wait(PATIENCE)
                try:
                    site.register("op/a", payload=payload)
                except Gone:
                    return False
                return True

            def remove(
                other: Site, payload: str = payload, together: threading.Barrier = together
            ) -> bool:
                together.wait(PATIENCE)
                return other.remove(payload=payload)

            registered = threads.submit(register)
            removals = [threads.submit(remove, other) for other in others]
            removed = [future.result(PATIENCE) for future in removals]
            if registered.result(PATIENCE):
                kept += 1
                assert site.files.holds(payload, uri)
                assert not any(removed)
            else:
                refused += 1
                assert not site.files.holds(payload, uri)
    assert kept + refused == 30
    assert site.unfinished() == kept


def test_an_upload_at_the_same_moment_is_there_afterwards(
    site: Site, replica: Callable[[], Site], database_url: str
) -> None:
    other = replica() if database_url.startswith("postgresql") else site
    with ThreadPoolExecutor(2) as threads:
        for number in range(30):
            site.upload("op/old", payload=f"pay-{number}")
            site.clock.advance(7 * 86_400)
            together = threading.Barrier(2)

            def upload(payload: str = f"pay-{number}", at: threading.Barrier = together) -> bool:
                at.wait(PATIENCE)
                return site.upload("op/new", payload=payload)

            def remove(payload: str = f"pay-{number}", at: threading.Barrier = together) -> bool:
                at.wait(PATIENCE)
                return other.remove(payload=payload)

            uploaded, removed = threads.submit(upload), threads.submit(remove)
            assert uploaded.result(PATIENCE)
            removed.result(PATIENCE)
            assert site.files.holds(f"pay-{number}", "op/new")


def test_two_removals_of_one_payload_do_not_disturb_each_other(
    site: Site, replica: Callable[[], Site], database_url: str
) -> None:
    names = [f"op/{number // 100}/{number:03}" for number in range(500)]
    due(site, *names)
    others = [replica(), replica()] if database_url.startswith("postgresql") else [site, site]
    with ThreadPoolExecutor(2) as threads:
        for future in [threads.submit(other.remove) for other in others]:
            future.result(PATIENCE)
    site.remove()
    assert site.noted() == set()
    assert not (site.files.root / "pay").exists()


def test_folders_that_come_and_go_lose_no_upload(tmp_path: Path) -> None:
    """Each removal empties the folder, and removes it, while another upload is on its way into it."""
    files = FolderStore(tmp_path / "payloads")

    def upload(number: int) -> bool:
        with files.receive("pay", f"op/deep/{number}") as incoming:
            incoming.write(b"x")
            return incoming.commit()

    def come_and_go(first: int) -> None:
        for number in range(first, 400, 2):
            assert upload(number)
            files.clear(files.set_aside("pay", [f"op/deep/{number}"]))

    with ThreadPoolExecutor(2) as threads:
        for future in [threads.submit(come_and_go, first) for first in range(2)]:
            future.result(PATIENCE * 2)
    assert sorted(path.name for path in files.root.iterdir()) == [".incoming"]
    assert list((files.root / ".incoming").iterdir()) == []


# Faults


class FailingDisk(FolderStore):
    """A disk that fails from the second time on, until it is mended."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.times = 0
        self.mended = False

    def set_aside(self, *arguments: Any) -> Path:
        self.times += 1
        if self.times > 1 and not self.mended:
            raise ServiceUnavailable("the payload store fails: no more", code="storage-unavailable")
        return super().set_aside(*arguments)


def test_a_disk_that_fails_in_the_middle_leaves_what_a_later_round_finishes(site: Site) -> None:
    names = [f"op/{number:03}" for number in range(250)]
    due(site, *names)
    disk = FailingDisk(site.files.root)
    retention = Retention(site.clock, disk, RULES)
    with pytest.raises(ServiceUnavailable):
        retention.remove(site.database, "pay", lambda: False)
    assert site.noted() == set(names[200:])
    with pytest.raises(Gone):
        site.register(names[0])
    disk.mended = True
    assert retention.remove(site.database, "pay", lambda: False)
    assert site.noted() == set()
    assert not (site.files.root / "pay").exists()


class FaultyDatabase:
    """A database whose first writes and reads fail as they are told to."""

    def __init__(self, database: Database, faults: list[Exception]) -> None:
        self._database = database
        self.faults = faults
        self.engine = database.engine
        self.answers = True

    def start(self, *_: Any) -> None:
        raise NotImplementedError

    def read(self, operation: Callable[[sa.Connection], T]) -> Future[T]:
        return failed(self.faults.pop()) if self.faults else self._database.read(operation)

    def write(self, operation: Callable[[Transaction], T]) -> Future[T]:
        return failed(self.faults.pop()) if self.faults else self._database.write(operation)

    def close(self) -> None:
        raise NotImplementedError


class Hurried(threading.Event):
    """An event for which nobody waits longer than a hundredth of a second."""

    def wait(self, timeout: float | None = None) -> bool:
        return super().wait(min(timeout or 0.01, 0.01))


@pytest.mark.parametrize(
    "fault",
    [
        ServiceUnavailable("the database is away", code="database-unavailable"),
        ClaraResultsError("something of ours"),
        RuntimeError("a fault that nobody foresaw"),
        OSError(5, "Input/output error"),
    ],
    ids=lambda fault: type(fault).__name__,
)
def test_the_pruner_goes_on_after_any_fault(
    site: Site, fault: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    due(site, "op/a")
    database = FaultyDatabase(site.database, [fault] * 10)
    closing = Hurried()
    pruner = Pruner(database, site.retention, site.datasets, site.files, site.clock, None, closing)
    pruner.start()
    try:
        eventually(lambda: not site.files.holds("pay", "op/a"), "the pruner went on")
        site.upload("op/b")
        site.clock.advance(7 * 86_400)
        eventually(lambda: not site.files.holds("pay", "op/b"), "and goes on")
    finally:
        closing.set()
        pruner.join()
    assert database.faults == []
    assert "pruning" in caplog.text
    assert str(fault) in caplog.text


def test_the_end_of_the_service_does_not_wait_for_a_long_removal(site: Site) -> None:
    names = [f"op/{number:03}" for number in range(250)]
    due(site, *names)
    closing = threading.Event()

    class Closing(Retention):
        def remove(self, database: Database, payload_id: str, stop: Callable[[], bool]) -> bool:
            answers = iter([False, True])

            def asked() -> bool:
                if next(answers):
                    closing.set()  # the service is asked to end after the first batch
                return stop()

            return super().remove(database, payload_id, asked)

    retention = Closing(site.clock, site.files, RULES)
    pruner = Pruner(site.database, retention, site.datasets, site.files, site.clock, None, closing)
    pruner.start()
    pruner.join()
    assert site.noted() == set(names[200:])  # the rest is for the next start
    assert site.remove()


def test_what_is_due_is_found_by_an_index(site: Site) -> None:
    """A round costs what there is to remove, not what there is."""
    due(site, "op/a")
    now = site.clock.now()
    plans = []

    def explain(transaction: Transaction) -> None:
        connection = transaction.connection
        if connection.dialect.name == "postgresql":
            for way in ("seqscan", "mergejoin", "hashjoin"):  # which are right for tables so small
                connection.execute(sa.text(f"SET LOCAL enable_{way} = off"))
        listed: list[str] = []

        @sa.event.listens_for(connection, "before_cursor_execute")
        def note(_connection: Any, cursor: Any, statement: str, values: Any, *_: Any) -> None:
            if statement.startswith("SELECT"):
                word = "EXPLAIN QUERY PLAN " if connection.dialect.name == "sqlite" else "EXPLAIN "
                cursor.execute(word + statement, values)
                listed.append("\n".join(str(row[-1]) for row in cursor.fetchall()))

        store.due(connection, now, now, 10)
        store.ended_tasks(connection, now, 10)
        store.forgettable_payloads(connection, now, 10)
        sa.event.remove(connection, "before_cursor_execute", note)
        plans.extend(listed)

    site.write(explain)
    removal, ended, forgotten = plans
    assert "ix_payloads_holds_files_touched_at" in removal
    assert "ix_tasks_payload_id" in removal
    assert "ix_tasks_ended" in ended
    assert "ix_payloads_holds_files_touched_at" in forgotten
    for plan in plans:
        assert "SCAN tasks" not in plan
        assert "Seq Scan" not in plan


# All together


def test_a_service_that_was_killed_removes_at_its_start_what_is_due(
    service: "ServiceStarter", tmp_path: Path
) -> None:
    running = service(retention=0.5)
    content = tmp_path / "a.dcm"
    content.write_bytes(b"alpha")
    with content.open("rb") as file:
        running.client.put_file("pay", "op/a.dcm", file, 5, "")
    body = Registration(
        agent="a", job_id="job", pipeline_id="pipe", payload_id="pay", uris=["op/a.dcm"]
    )
    running.client.register(body)
    (task,) = running.client.claim("a")
    running.client.succeed(task.task_id, SuccessReport(lease_token=task.lease_token))
    running.kill()
    assert (running.payloads / "pay" / "op" / "a.dcm").exists()
    running.start()
    eventually(lambda: not (running.payloads / "pay").exists(), "the payload is removed", 40)
    with pytest.raises(Refused) as raised, running.client.get_file("pay", "op/a.dcm"):
        pass
    assert (raised.value.status, raised.value.code) == (410, "payload-gone")
    eventually(lambda: "payload pay: its time is over" in running.log(), "the log says so")
