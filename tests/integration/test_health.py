"""Health, and what becomes of calls while the database is away."""

import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

from clara_results.domain.tasks import State
from clara_results.errors import ClaraResultsError, ServiceUnavailable
from clara_results.wire.tasks import FailureReport, Registration, SuccessReport
from tests.conftest import eventually
from tests.integration.test_events import Listener, listening

if TYPE_CHECKING:
    from tests.conftest import PostgresServer, Service, ServiceStarter
    from tests.integration.conftest import LocalService

LIVE, READY, STATUS = "/health/live", "/health/ready", "/health/status"


def test_a_service_that_can_serve_says_so(local: "LocalService") -> None:
    assert local.call("GET", LIVE).json == {"status": "ok"}
    assert local.call("GET", READY).json == {"status": "ok"}


def test_a_service_that_is_to_end_is_alive_but_not_ready(local: "LocalService") -> None:
    local.engine.end_waiting()
    assert local.call("GET", LIVE).status == 200
    answer = local.call("GET", READY)
    answer.problem(503, "shutting-down")
    assert int(answer.headers["Retry-After"]) > 0


def test_status_says_how_the_service_stands(local: "LocalService") -> None:
    local.register("a", job_id="1")
    local.register("a", job_id="2", max_retries=0)
    held = local.claim(size=1)
    local.client.fail(held.task_id, FailureReport(retry_later=False))
    eventually(lambda: "rescuedSecondsAgo" in local.call("GET", STATUS).json, "leases are watched")
    found = local.call("GET", STATUS).json
    assert found["status"] == "ok"
    assert found["version"]
    assert found["tasks"] == {
        "Pending": 1, "InProgress": 0, "AwaitingCommitment": 0, "Succeeded": 0, "Failed": 1, "Canceled": 0,
    }  # fmt: skip
    assert found["database"]["kind"] in {"sqlite", "postgresql"}
    assert 0 < found["database"]["milliseconds"] < 2000
    disks = {disk["folder"]: disk for disk in found["disks"]}
    database = {"database"} if found["database"]["kind"] == "sqlite" else set()
    assert set(disks) == {"payloads", "datasets"} | database
    assert all(0 < disk["freeBytes"] < disk["sizeBytes"] for disk in disks.values())


# A database that is away


class Call:
    """A request on a connection of its own, and how long its answer took.

    Attributes:
        status: What was answered.
        code: The problem's code, if it is one.
        seconds: Until then.
        retry_after: The header of that name.
        body: All of it.
    """

    def __init__(self, url: str, method: str, path: str, body: Any = None, limit: float = 30) -> None:  # fmt: skip
        connection = http.client.HTTPConnection("127.0.0.1", urlsplit(url).port, timeout=limit)
        begun = time.monotonic()
        headers = {"Content-Type": "application/json"}
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        answer = connection.getresponse()
        self.body = answer.read()
        self.status = answer.status
        self.retry_after = answer.headers.get("Retry-After")
        is_problem = answer.headers.get_content_type() == "application/problem+json"
        self.code = json.loads(self.body)["code"] if is_problem else None
        self.seconds = time.monotonic() - begun
        connection.close()


BODY = {"agent": "a", "jobId": "j", "pipelineId": "p", "payloadId": "pay", "uris": ["x"]}
CALLS: list[tuple[str, str, Any]] = [
    ("GET", "/api/tasks", None),
    ("POST", "/api/tasks", BODY),
    ("GET", "/api/tasks/a/pending", None),
    ("GET", "/api/tasks/a/pending?wait=30", None),
    ("PUT", "/api/tasks/success/00000000-0000-0000-0000-000000000000", {}),
    ("GET", "/api/destinations", None),
    ("GET", "/api/events", None),
    ("GET", STATUS, None),
]


def all_are_refused(url: str, within: float) -> None:
    """Check that every call at once is answered 503 within some seconds."""
    found: dict[str, Call] = {}

    def make(method: str, path: str, body: Any) -> None:
        found[f"{method} {path}"] = Call(url, method, path, body)

    threads = [threading.Thread(target=make, args=call) for call in CALLS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(40)
    assert len(found) == len(CALLS)
    for name, call in found.items():
        assert (call.status, call.code) == (503, "database-unavailable"), (name, call.body)
        assert int(call.retry_after or 0) > 0, name
        assert call.seconds < within, (name, call.seconds)


def not_ready(url: str) -> bool:
    call = Call(url, "GET", READY, limit=10)
    assert call.seconds < 3.5, "a probe would not wait so long"
    return call.status == 503 and call.retry_after is not None


def is_ready(url: str) -> bool:
    return Call(url, "GET", READY, limit=10).status == 200


class Work:
    """A pipeline and an agent that go on whatever happens, as theirs do: what fails is tried again."""

    def __init__(self, service: "Service") -> None:
        self._service = service
        self._ending = threading.Event()
        self.registered: set[str] = set()
        self.delivered: set[str] = set()
        self.faults: list[ClaraResultsError] = []
        self._threads = [
            threading.Thread(target=self._loop, args=(step,)) for step in (self._register, self._deliver)
        ]  # fmt: skip

    def __enter__(self) -> "Work":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join(30)
            assert not thread.is_alive()

    def _loop(self, step: Callable[[int], None]) -> None:
        number = 0
        while not self._ending.is_set():
            try:
                step(number)
                number += 1
            except ServiceUnavailable:
                self._ending.wait(0.1)
            except ClaraResultsError as error:
                self.faults.append(error)
                self._ending.wait(0.1)

    def _register(self, number: int) -> None:
        body = Registration(agent="a", job_id=f"j{number}", pipeline_id="p", payload_id="pay", uris=["x"])  # fmt: skip
        made = self._service.client.register(body, f"key-{number}")
        self.registered.update(task.task_id for task in made.tasks)
        self._ending.wait(0.01)

    def _deliver(self, _number: int) -> None:
        for task in self._service.client.claim("a", size=5, lease=5, wait=0.2):
            self.delivered.add(task.task_id)
            report = SuccessReport(lease_token=task.lease_token)
            while not self._ending.is_set():
                try:
                    self._service.client.succeed(task.task_id, report)
                    break
                except ServiceUnavailable:
                    self._ending.wait(0.1)


def all_succeed(service: "Service") -> bool:
    tasks = service.client.tasks(limit=1000).items
    return bool(tasks) and all(task.state == State.SUCCEEDED for task in tasks)


@contextmanager
def _at_work(service: "ServiceStarter", postgres: "PostgresServer") -> Iterator["Service"]:
    """Give a service at work, to whose server something happens; afterwards it goes on, and nothing was lost."""
    made = service(database=postgres.url, retry_delay=0.1)
    with listening(made.url, "?lastEventId=0") as listener:
        with Work(made) as work:
            eventually(lambda: len(work.delivered) >= 5, "work goes on", 30)
            yield made
            _goes_on(made, work)
        _nothing_was_lost(made, work, listener)


def test_a_server_that_hangs_and_goes_on(
    service: "ServiceStarter", own_postgres: "PostgresServer"
) -> None:
    with _at_work(service, own_postgres) as made:
        own_postgres.freeze()
        try:
            assert not_ready(made.url)
            all_are_refused(made.url, within=8)
            # By now it is known to hang.
            eventually(lambda: Call(made.url, "GET", READY).seconds < 0.5, "it is known")
            all_are_refused(made.url, within=2)
            assert not_ready(made.url)
            assert Call(made.url, "GET", LIVE).status == 200
            assert b"clara_results_ready 0.0" in Call(made.url, "GET", "/metrics").body
        finally:
            own_postgres.thaw()


def test_a_server_that_is_killed_and_started_again(
    service: "ServiceStarter", own_postgres: "PostgresServer"
) -> None:
    with _at_work(service, own_postgres) as made:
        own_postgres.kill()
        eventually(lambda: not_ready(made.url), "it is not ready")
        all_are_refused(made.url, within=8)
        assert Call(made.url, "GET", LIVE).status == 200
        own_postgres.start()


def _goes_on(service: "Service", work: Work) -> None:
    eventually(lambda: is_ready(service.url), "it is ready again")
    before = len(work.delivered)
    eventually(lambda: len(work.delivered) >= before + 5, "work goes on again", 30)


def _nothing_was_lost(service: "Service", work: Work, listener: Listener) -> None:
    """Deliver what is left; then all that was registered is there, and the one stream has told of all of it."""
    for _ in range(200):
        left = service.client.claim("a", size=100, wait=0)
        if not left and all_succeed(service):
            break
        for task in left:
            service.client.succeed(task.task_id, SuccessReport(lease_token=task.lease_token))
        begun = time.monotonic()
        eventually(lambda begun=begun: time.monotonic() - begun > 0.1, "a moment")  # type: ignore[misc]
    tasks = service.client.tasks(limit=1000).items
    assert {task.state for task in tasks} == {State.SUCCEEDED}
    assert work.registered <= {task.task_id for task in tasks}
    assert not [fault for fault in work.faults if fault.code != "lease-lost"]

    def told(event: str) -> set[str]:
        return {each["taskId"] for each in listener.events if each["event"] == event}

    everyone = {task.task_id for task in tasks}
    eventually(lambda: told("succeeded") == told("registered") == everyone, "the stream has it all")
    assert listener.ids() == sorted(set(listener.ids()))
    assert not listener.ended.is_set()


def test_a_database_that_is_away_at_the_start_ends_it_with_a_message(
    service: "ServiceStarter", own_postgres: "PostgresServer"
) -> None:
    own_postgres.kill()
    with pytest.raises(AssertionError, match="database"):
        service(database=own_postgres.url)
