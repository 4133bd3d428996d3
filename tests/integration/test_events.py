"""Events: every entry of the history reaches every stream once, in order, whatever happens in between."""

import asyncio
import http.client
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from statistics import median
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
import sqlalchemy as sa

from clara_results.domain.scopes import parse_scopes
from clara_results.domain.tasks import State
from clara_results.service import access
from clara_results.service.events import KEPT, PAGE, Feed, Wanted
from clara_results.store.database import Database, Transaction, open_database
from clara_results.store.migrations import migrate
from clara_results.store.schema import EPOCH, history, registrations, tasks
from clara_results.wire.tasks import FailureReport, SuccessReport
from tests.conftest import eventually

if TYPE_CHECKING:
    from tests.conftest import Postgres, ServiceStarter
    from tests.integration.conftest import FakeClock, LocalService

on_postgres = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
PATIENCE = 20.0


class Listener:
    """A stream of events over HTTP, read by a thread of its own.

    Attributes:
        events: What came: each with its ``id``, and ``received``, the moment by the steady counter.
        position: The last ``id`` that came, with an event or without.
        ended: Set once the stream has come to its end.
    """

    def __init__(self, url: str, query: str = "", **headers: str) -> None:
        parts = urlsplit(url)
        self._connection = http.client.HTTPConnection(
            parts.hostname or "", parts.port, timeout=PATIENCE
        )
        self._connection.request("GET", f"/api/events{query}", headers=headers)
        self.response = self._connection.getresponse()
        self.events: list[dict[str, Any]] = []
        self.position = -1
        self.ended = threading.Event()
        self._go = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)

    def start(self) -> "Listener":
        assert self.response.status == 200, self.response.read()
        assert self.response.headers["Content-Type"].startswith("text/event-stream")
        self._thread.start()
        return self

    def names(self) -> list[str]:
        return [event["event"] for event in self.events]

    def ids(self) -> list[int]:
        return [event["id"] for event in self.events]

    def wait_for(self, count: int) -> list[dict[str, Any]]:
        eventually(lambda: len(self.events) >= count, f"{count} events", PATIENCE)
        return self.events

    def leave(self) -> None:
        # The response holds the socket as well; only a shutdown tells the other side at once.
        if self._connection.sock is not None:
            self._connection.sock.shutdown(2)
        self._connection.close()

    def _read(self) -> None:
        fields: dict[str, str] = {}
        try:
            for line in self.response:
                text = line.decode().rstrip("\n")
                if text:
                    name, _, value = text.partition(":")
                    fields[name] = value.removeprefix(" ")
                    continue
                self.position = int(fields.get("id", self.position))
                if "data" in fields:
                    assert fields["event"] == "task"
                    event = json.loads(fields["data"])
                    self.events.append(event | {"id": self.position, "received": time.monotonic()})
                fields = {}
        except (OSError, ValueError, http.client.HTTPException, AttributeError):
            pass  # the test has left
        finally:
            self.ended.set()


@contextmanager
def listening(url: str, query: str = "", **headers: str) -> Iterator[Listener]:
    listener = Listener(url, query, **headers).start()
    try:
        yield listener
    finally:
        listener.leave()


def test_a_tasks_life_is_told_as_it_happens(local: "LocalService") -> None:
    local.register("before.dcm")
    with listening(local.url) as listener:
        (task,) = local.register("secret^name.dcm", agent="Mine", data=["Orthanc"], job_id="j1")
        claimed = local.claim("mine")
        failure = FailureReport(
            retry_later=False, lease_token=claimed.lease_token, code="x", message="Phantom^Patient"
        )
        local.client.fail(task.task_id, failure)
        local.client.retry(task.task_id)
        claimed = local.claim("mine")
        local.client.succeed(task.task_id, SuccessReport(lease_token=claimed.lease_token))
        events = listener.wait_for(6)
    assert [(e["event"], e["state"], e.get("attempt")) for e in events] == [
        ("registered", "Pending", None), ("claimed", "InProgress", 1), ("failed", "Failed", 1),
        ("retried", "Pending", None), ("claimed", "InProgress", 2), ("succeeded", "Succeeded", 2),
    ]  # fmt: skip
    for event in events:
        assert event["taskId"] == task.task_id
        assert (event["agent"], event["jobId"], event["destination"]) == ("mine", "j1", "orthanc")
        assert event["at"] == "2026-01-02T03:04:05.678901Z"
    everything = json.dumps(events)
    assert "secret" not in everything
    assert "Patient" not in everything


def test_a_lease_that_ran_out_for_the_last_time_is_told_as_failed(
    local: "LocalService", clock: "FakeClock"
) -> None:
    local.register(max_retries=0)
    with listening(local.url) as listener:
        local.claim()
        clock.advance(4000)
        events = listener.wait_for(2)
    assert [(e["event"], e["state"]) for e in events] == [
        ("claimed", "InProgress"), ("lease-expired", "Failed"),
    ]  # fmt: skip


@pytest.mark.parametrize("how", ["header", "query", "both"])
def test_a_reader_resumes_without_gap_or_repetition(local: "LocalService", how: str) -> None:
    with listening(local.url) as first:
        for number in range(3):
            local.register(f"{number}.dcm")
        first.wait_for(3)
    local.register("meanwhile.dcm")
    last = first.ids()[1]
    query = {"header": "", "query": f"?lastEventId={last}", "both": "?lastEventId=0"}[how]
    headers = {} if how == "query" else {"Last-Event-ID": str(last)}
    with listening(local.url, query, **headers) as second:
        second.wait_for(2)
        local.register("after.dcm")
        second.wait_for(3)
    assert second.ids() == [last + 1, last + 2, last + 3]


def test_a_reader_may_begin_at_the_very_first_event(local: "LocalService") -> None:
    local.register(data=["A", "B"])
    with listening(local.url, "?lastEventId=0") as listener:
        listener.wait_for(2)
    assert listener.ids() == sorted(listener.ids())
    assert listener.names() == ["registered"] * 2


def test_an_id_of_another_database_means_from_now_on(local: "LocalService") -> None:
    local.register()
    with listening(local.url, "?lastEventId=123456") as listener:
        local.register(job_id="new")
        assert listener.wait_for(1)[0]["jobId"] == "new"


@pytest.mark.parametrize("wrong", ["x", "-1", str(1 << 63)])
def test_an_id_that_is_none_is_refused(local: "LocalService", wrong: str) -> None:
    local.call("GET", f"/api/events?lastEventId={wrong}").problem(422, "invalid-request")
    headers = {"Last-Event-ID": wrong}
    local.call("GET", "/api/events", headers=headers).problem(422, "invalid-request")


@pytest.mark.parametrize(
    ("query", "jobs"),
    [
        ("?agent=MINE", ["a"]),
        ("?jobId=b", ["b"]),
        ("?destination=orthanc", ["a", "c"]),
        ("?destination=ORTHANC&agent=other", ["c"]),
        ("?destination=", ["b"]),
    ],
)
def test_filters(local: "LocalService", query: str, jobs: list[str]) -> None:
    with listening(local.url, query) as some, listening(local.url) as every:
        local.register(agent="Mine", data=["Orthanc"], job_id="a")
        local.register(agent="other", job_id="b")
        local.register(agent="other", data=["Orthanc"], job_id="c")
        every.wait_for(3)
        some.wait_for(len(jobs))
        assert [event["jobId"] for event in some.events] == jobs


def test_streams_end_when_the_service_is_to_end(local: "LocalService") -> None:
    with listening(local.url) as listener:
        local.engine.end_waiting()
        assert listener.ended.wait(5)


def test_a_reader_that_leaves_is_forgotten(local: "LocalService") -> None:
    def open_streams() -> bool:
        text = local.call("GET", "/metrics").data.decode()
        return "clara_results_event_streams 1.0" in text

    with listening(local.url):
        eventually(open_streams, "a stream is counted")
    eventually(lambda: not open_streams(), "it is no longer")


def test_a_stream_ends_when_its_token_does(
    local: "LocalService", clock: "FakeClock", database_url: str
) -> None:
    with access.opened(database_url) as database:

        def write(operation: Any) -> Any:
            return database.write(operation).result(PATIENCE)

        now = clock.now()
        kept = write(lambda tx: access.create(tx, "kept", parse_scopes("admin"), None, now))
        watch = write(lambda tx: access.create(tx, "watch", parse_scopes("read"), None, now))
        local.client = type(local.client)(local.url, token=kept.token)
        clock.advance(5)
        with listening(local.url, Authorization=f"Bearer {watch.token}") as listener:
            local.register()
            listener.wait_for(1)
            write(lambda tx: access.revoke(tx, "watch", now))
            clock.advance(60)
            local.register()
            assert listener.ended.wait(5)
    assert len(listener.events) == 1


# Order and loss


class Held:
    """An operation that writes a task's history and then waits, its transaction open, until it is told how to end."""

    def __init__(self) -> None:
        self.written = threading.Event()
        self.go = threading.Event()
        self.fails = False

    def __call__(self, transaction: Transaction) -> None:
        add_events(transaction.connection, 1, job="held")
        self.written.set()
        assert self.go.wait(PATIENCE)
        if self.fails:
            raise RuntimeError("told to")


def add_events(connection: sa.Connection, count: int, job: str = "j") -> None:
    """Write a task with some entries in its history."""
    moment = EPOCH + timedelta(days=20_000)
    registration = connection.execute(
        registrations.insert().values(body_sha256="", scope_sha256="", created_at=moment)
    ).inserted_primary_key
    assert registration is not None
    key = connection.execute(
        tasks.insert().values(
            task_id=f"{job}-{registration[0]}", registration_id=registration[0], element=0, agent="a",
            job_id=job, pipeline_id="p", payload_id="pay", destination="", state=State.PENDING, priority=0,
            turn=1, retries=0, max_retries=0, attempt=0, created_at=moment, updated_at=moment,
            due_at=moment + timedelta(days=40_000), waits=True, unavailable_times=0, associations=0, files_pending=1, files_awaiting=0, files_delivered=0, files_skipped=0,
            files_retry=0, files_rejected=0,
        )
    ).inserted_primary_key  # fmt: skip
    assert key is not None
    entry = {"task": key[0], "at": moment, "event": "registered", "state": State.PENDING}
    connection.execute(history.insert(), [entry] * count)


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """Open a migrated database, without a service."""
    database = open_database(database_url)
    try:
        database.start(lambda _: None, lambda _: None)
        migrate(database.engine)
        yield database
    finally:
        database.close()


def feed_of(database: Database, heartbeat: float = PATIENCE) -> Feed:
    return Feed(
        lambda operation: asyncio.wrap_future(database.read(operation)),
        asyncio.get_running_loop(),
        heartbeat,
    )


async def gather(feed: Feed, position: int, count: int) -> list[tuple[int, str]]:
    """Read so many events from a position on; return their ids and jobs."""
    found: list[tuple[int, str]] = []
    async with asyncio.timeout(PATIENCE):
        async for _, entries in feed.stream(position, Wanted()):
            found += [(entry.id, entry.event.job_id) for entry in entries]
            if len(found) >= count:
                break
    return found


@on_postgres
@pytest.mark.parametrize("fails", [False, True])
def test_an_entry_that_comes_to_be_seen_late_is_waited_for(database: Database, fails: bool) -> None:
    async def run() -> None:
        feed = feed_of(database)
        held = Held()
        held.fails = fails
        position = await feed.open(None)
        slow = asyncio.wrap_future(database.write(held))
        assert await asyncio.to_thread(held.written.wait, PATIENCE)
        # It has taken the smaller id; these are there before it.
        for _ in range(3):
            await asyncio.wrap_future(
                database.write(lambda tx: add_events(tx.connection, 1, job="quick"))
            )
        reading = asyncio.create_task(gather(feed, position, 3 if fails else 4))
        done, _ = await asyncio.wait([reading], timeout=1.0)
        assert not done, "an event was passed on although a smaller id could still turn up"
        held.go.set()
        await asyncio.gather(slow, return_exceptions=True)
        found = await reading
        assert [job for _, job in found] == ([] if fails else ["held"]) + ["quick"] * 3
        assert [entry for entry, _ in found] == sorted(entry for entry, _ in found)
        feed.end()

    asyncio.run(run())


@on_postgres
def test_a_stream_begins_only_once_no_smaller_id_can_turn_up(database: Database) -> None:
    async def run() -> None:
        feed = feed_of(database)
        held = Held()
        slow = asyncio.wrap_future(database.write(held))
        assert await asyncio.to_thread(held.written.wait, PATIENCE)
        await asyncio.wrap_future(
            database.write(lambda tx: add_events(tx.connection, 1, job="quick"))
        )
        opening = asyncio.create_task(feed.open(None))
        done, _ = await asyncio.wait([opening], timeout=0.5)
        assert not done
        held.go.set()
        await slow
        position = await opening
        reading = asyncio.create_task(gather(feed, position, 1))
        await asyncio.wrap_future(
            database.write(lambda tx: add_events(tx.connection, 1, job="after"))
        )
        assert [job for _, job in await reading] == ["after"]
        feed.end()

    asyncio.run(run())


def test_many_writers_at_once_lose_nothing(database: Database) -> None:
    """Some of them fail, so that ids are missing for ever."""
    writes, streams = 400, 3

    def add(number: int) -> Any:
        def operation(transaction: Transaction) -> None:
            add_events(transaction.connection, 1 + number % 3, job=f"j{number}")
            if number % 5 == 0:
                raise RuntimeError("told to")

        return operation

    async def run() -> None:
        feed = feed_of(database)
        position = await feed.open(None)
        kept = sum(1 + number % 3 for number in range(writes) if number % 5)
        reading = [asyncio.create_task(gather(feed, position, kept)) for _ in range(streams)]
        futures = [asyncio.wrap_future(database.write(add(number))) for number in range(writes)]
        await asyncio.gather(*futures, return_exceptions=True)
        every = await asyncio.wrap_future(
            database.read(lambda c: list(c.scalars(sa.select(history.c.id).order_by(history.c.id))))
        )
        assert len(every) == kept
        for task in reading:
            assert [entry for entry, _ in await task] == every
        feed.end()

    asyncio.run(run())


def test_a_reader_that_has_fallen_behind_catches_up_from_the_database(database: Database) -> None:
    """More happens than the feed keeps: whoever is behind reads the rest page by page, and the feed stays small."""
    count = 2 * KEPT + 3 * PAGE

    async def run() -> None:
        feed = feed_of(database)
        position = await feed.open(None)
        slow = feed.stream(position, Wanted())
        waiting = asyncio.ensure_future(anext(slow))
        quick = asyncio.create_task(gather(feed, position, count))
        for _ in range(count // PAGE):
            await asyncio.wrap_future(database.write(lambda tx: add_events(tx.connection, PAGE)))
        whole = await quick
        _, first = await waiting
        found = [entry.id for entry in first]
        async for _, entries in slow:
            found += [entry.id for entry in entries]
            if len(found) >= count:
                break
        assert found == [entry for entry, _ in whole]
        assert len(found) == count
        assert feed.kept <= 2 * KEPT + PAGE
        feed.end()

    asyncio.run(run())


def test_a_stream_with_nothing_to_tell_says_how_far_it_is(database: Database) -> None:
    async def run() -> None:
        feed = feed_of(database, heartbeat=0.3)
        position = await feed.open(None)
        stream = feed.stream(position, Wanted(job_id="other"))
        await asyncio.wrap_future(database.write(lambda tx: add_events(tx.connection, 2)))
        async with asyncio.timeout(PATIENCE):
            async for reached, entries in stream:
                assert entries == []
                if reached == position + 2:
                    break
        feed.end()

    asyncio.run(run())


def test_a_feed_sleeps_while_nobody_listens_and_wakes_for_who_comes(database: Database) -> None:
    async def run() -> None:
        feed = feed_of(database)
        first = await feed.open(None)
        feed.rest()  # as after some seconds without a listener
        await asyncio.wrap_future(database.write(lambda tx: add_events(tx.connection, 3)))
        second = await feed.open(None)
        assert second == first + 3
        assert [entry for entry, _ in await gather(feed, first, 3)] == [
            first + 1, first + 2, first + 3,
        ]  # fmt: skip
        feed.end()

    asyncio.run(run())


# Cost and speed


def test_fifty_streams_cost_neither_threads_nor_queries(local: "LocalService") -> None:
    def reads() -> float:
        text = local.call("GET", "/metrics").data.decode()
        name = 'clara_results_database_operation_seconds_count{operation="read"}'
        (line,) = [line for line in text.splitlines() if line.startswith(name)]
        return float(line.split()[-1])

    def of_the_service() -> int:
        return sum(thread.name != "listener" for thread in threading.enumerate())

    with listening(local.url) as first:
        threads = of_the_service()
        more = [Listener(local.url).start() for _ in range(49)]
        everyone = [first, *more]
        mine = len(more)  # each listener of the test has a thread of its own
        latencies = []
        for number in range(5):
            local.register(f"{number}.dcm")
            done = time.monotonic()
            latencies += [one.wait_for(number + 1)[number]["received"] - done for one in everyone]
        before, begun = reads(), time.monotonic()
        eventually(lambda: time.monotonic() - begun > 2, "two seconds")
        rate = (reads() - before) / (time.monotonic() - begun)
        assert (
            of_the_service() - mine <= threads + 8
        )  # executors grow to their bound, not with streams
        for listener in more:
            listener.leave()
    assert median(latencies) < 1.0
    assert rate < 12


def test_a_reader_that_does_not_read_holds_nobody_up_and_loses_nothing(
    local: "LocalService", database_url: str
) -> None:
    count, at_once = 40_000, 2000  # more than sockets hold
    stuck = Listener(local.url)
    with listening(local.url) as quick, access.opened(database_url) as database:
        for _ in range(count // at_once):
            database.write(lambda tx: add_events(tx.connection, at_once)).result(PATIENCE)
        quick.wait_for(count)
        assert local.engine.events.kept <= 2 * KEPT + PAGE
    stuck.start()
    try:
        stuck.wait_for(count)
        assert stuck.ids() == quick.ids()
    finally:
        stuck.leave()


def test_another_process_tells_what_this_one_did(
    service: "ServiceStarter", postgres: "Postgres"
) -> None:
    url = postgres.new_database()
    one, other = service(database=url), service(database=url)
    with listening(one.url) as here, listening(other.url) as there:
        body = {"agent": "a", "jobId": "j", "pipelineId": "p", "payloadId": "pay", "uris": ["x"]}
        connection = http.client.HTTPConnection("127.0.0.1", urlsplit(one.url).port, timeout=20)
        headers = {"Content-Type": "application/json"}
        latencies = []
        for number in range(10):
            connection.request("POST", "/api/tasks", json.dumps(body), headers)
            assert connection.getresponse().read()
            done = time.monotonic()
            latencies.append(there.wait_for(number + 1)[number]["received"] - done)
        here.wait_for(10)
        connection.close()
        last = there.ids()[4]
    # Resumed at the other process.
    with listening(one.url, **{"Last-Event-ID": str(last)}) as resumed:
        resumed.wait_for(5)
    assert resumed.ids() == here.ids()[5:] == there.ids()[5:]
    assert median(latencies) < 1.0
