"""``GET /api/tasks/{agent}/pending`` over HTTP: its parameters, and waiting."""

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

from clara_results.wire.tasks import Release, SuccessReport
from tests.conftest import eventually

if TYPE_CHECKING:
    from tests.integration.conftest import Answer, LocalService

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


def get(
    local: "LocalService", query: str = "", agent: str = "ClaraSCU", **headers: str
) -> "Answer":
    return local.call("GET", f"/api/tasks/{agent}/pending{query}", headers=headers)


def test_the_answer_is_a_bare_array_that_nobody_keeps(local: "LocalService") -> None:
    answer = get(local)
    assert (answer.status, answer.data) == (200, b"[]")
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("?size=0", "size"), ("?size=101", "size"), ("?size=x", "size"), ("?size=-1", "size"),
        ("?wait=-1", "wait"), ("?wait=60.1", "wait"), ("?wait=nan", "wait"), ("?wait=inf", "wait"),
        ("?lease=0", "lease"), ("?lease=86401", "lease"), ("?lease=1.5", "lease"),
        ("?peek=perhaps", "peek"),
    ],
)  # fmt: skip
def test_a_parameter_out_of_range_is_named(local: "LocalService", query: str, field: str) -> None:
    problem = get(local, query).problem(422, "invalid-request")
    assert [fault["field"] for fault in problem["errors"]] == [field]


def test_what_is_no_agents_name_is_refused(local: "LocalService") -> None:
    get(local, agent="1x").problem(422, "invalid-agent-name")


def test_the_lease_is_an_hour_unless_asked_otherwise(local: "LocalService") -> None:
    for query, seconds in (("", 3600), ("?lease=5", 5), ("?lease=86400", 86400)):
        local.register()
        (task,) = get(local, query).json
        expires = local.clock.now() + timedelta(seconds=seconds)
        assert datetime.fromisoformat(task["leaseExpiresAt"]) == expires


def test_peek_shows_and_changes_nothing(local: "LocalService") -> None:
    (registered,) = local.register("a")
    for _ in range(2):
        (task,) = get(local, "?peek=true").json
        assert (task["state"], task["attempt"], task["leaseToken"]) == ("Pending", 0, None)
        assert task["uris"] == ["a"]
    assert local.claim().task_id == registered.task_id
    assert get(local, "?peek=true").json == []


def test_size_limits_what_is_claimed(local: "LocalService") -> None:
    local.register(data=[str(number) for number in range(25)])
    assert len(get(local).json) == 10
    assert len(get(local, "?size=3").json) == 3
    assert len(get(local, "?size=100").json) == 12


def test_one_agents_tasks_are_not_anothers(local: "LocalService") -> None:
    local.register(agent="DICOMweb")
    assert get(local).json == []
    assert len(get(local, agent="dicomWEB").json) == 1


def test_who_claims_is_shown_with_what_it_holds(local: "LocalService") -> None:
    local.register()
    get(local, **{"Clara-Results-Instance": "host:7", "User-Agent": "tester/1"})
    (agent,) = local.client.agents().items
    (task,) = local.client.tasks().items
    assert (agent.agent, agent.instance, agent.version) == ("clarascu", "host:7", "tester/1")
    assert agent.holds == [task.task_id]
    assert agent.last_seen_at == local.clock.now()
    attempts = local.client.task(task.task_id).attempts
    assert attempts is not None
    assert attempts[0].instance == "host:7"
    local.clock.advance(86_401)
    assert local.client.agents().items == []


# Waiting


class Waiter(threading.Thread):
    """A claim that waits, on a connection of its own."""

    def __init__(
        self, local: "LocalService", query: str = "?wait=20", agent: str = "clarascu"
    ) -> None:
        super().__init__(daemon=True)
        self.answer: Answer | None = None
        self.took = 0.0
        self._ask = partial(get, local, query, agent)
        self.start()

    def run(self) -> None:
        begun = time.monotonic()
        self.answer = self._ask()
        self.took = time.monotonic() - begun

    @property
    def tasks(self) -> list[str]:
        self.join(20)
        assert self.answer is not None
        return [task["taskId"] for task in self.answer.json]


def waiting(local: "LocalService", count: int, agent: str = "clarascu") -> None:
    """Wait until so many claims stand in line."""
    line = local.engine.wakeups._waiting
    eventually(lambda: len(line.get(agent, ())) == count, f"{count} claims wait")


def test_waiting_for_nothing_ends_in_time_with_an_empty_array(local: "LocalService") -> None:
    waiter = Waiter(local, "?wait=0.3")
    assert waiter.tasks == []
    assert 0.3 <= waiter.took < 5


def test_a_task_reaches_who_waits_at_once(local: "LocalService") -> None:
    waiter = Waiter(local)
    waiting(local, 1)
    (task,) = local.register()
    assert waiter.tasks == [task.task_id]
    assert waiter.took < 4  # by being woken: who is not looks after five seconds


def test_a_task_for_another_agent_wakes_nobody(local: "LocalService") -> None:
    waiter = Waiter(local, "?wait=0.5")
    waiting(local, 1)
    local.register(agent="other")
    assert waiter.tasks == []


def test_a_task_that_was_there_already_is_given_without_waiting(local: "LocalService") -> None:
    local.register()
    waiter = Waiter(local, "?wait=20")
    assert len(waiter.tasks) == 1
    assert waiter.took < 4


@pytest.mark.parametrize("how", ["release", "retry", "redeliver", "lease"])
def test_whatever_makes_a_task_due_wakes_who_waits(local: "LocalService", how: str) -> None:
    local.put_file("a", b"x")
    local.register("a", max_retries=3)
    held = local.claim(lease=60)
    if how == "retry":
        local.call("PUT", f"/api/tasks/failure/{held.task_id}", {"RetryLater": False})
    if how == "redeliver":
        local.client.succeed(held.task_id, SuccessReport())
    waiter = Waiter(local)
    waiting(local, 1)
    if how == "release":
        local.client.release(held.task_id, Release(lease_token=held.lease_token or ""))
    elif how == "lease":
        local.clock.advance(61)
    else:
        local.call("POST", f"/api/tasks/{held.task_id}/{how}")
    assert len(waiter.tasks) == 1
    assert waiter.took < 4.5


def test_many_tasks_of_one_registration_reach_many_who_wait(local: "LocalService") -> None:
    waiters = [Waiter(local, "?wait=20&size=1") for _ in range(10)]
    waiting(local, 10)
    tasks = local.register(data=[str(number) for number in range(10)])
    claimed = [task for waiter in waiters for task in waiter.tasks]
    assert sorted(claimed) == sorted(task.task_id for task in tasks)
    assert max(waiter.took for waiter in waiters) < 10


def test_who_hung_up_is_not_given_the_task(local: "LocalService") -> None:
    address = urlsplit(local.url)
    request = b"GET /api/tasks/clarascu/pending?wait=30 HTTP/1.1\r\nHost: r\r\n\r\n"
    gone = [socket.create_connection((address.hostname or "", address.port or 0)) for _ in range(3)]
    for connection in gone:
        connection.sendall(request)
    waiting(local, 3)
    for connection in gone:
        connection.close()
    waiter = Waiter(local)
    eventually(lambda: len(local.engine.wakeups._waiting.get("clarascu", ())) in {1, 4}, "in line")
    (task,) = local.register()
    assert waiter.tasks == [task.task_id]
    assert local.client.task(task.task_id).attempt == 1


def test_two_hundred_may_wait_and_the_service_still_answers(local: "LocalService") -> None:
    address = urlsplit(local.url)
    request = b"GET /api/tasks/clarascu/pending?wait=60&size=1 HTTP/1.1\r\nHost: r\r\n\r\n"
    line = [
        socket.create_connection((address.hostname or "", address.port or 0)) for _ in range(200)
    ]
    try:
        for connection in line:
            connection.sendall(request)
        waiting(local, 200)
        begun = time.monotonic()
        assert local.call("GET", "/health/ready").status == 200
        assert time.monotonic() - begun < 2
        local.register(data=list(range(200)))

        def answer(connection: socket.socket) -> bytes:
            connection.settimeout(20)
            said = b""
            while not said.endswith(b"]"):
                piece = connection.recv(65536)
                assert piece, said
                said += piece
            return said

        with ThreadPoolExecutor(20) as pool:
            answers = list(pool.map(answer, line))
        assert all(b'"taskId"' in answer for answer in answers)
        assert len(local.client.tasks(state="InProgress", limit=1000).items) == 200
    finally:
        for connection in line:
            connection.close()


def test_the_services_end_answers_who_waits(local: "LocalService") -> None:
    waiter = Waiter(local)
    waiting(local, 1)
    local.engine.end_waiting()
    assert waiter.tasks == []
    local.call("GET", "/health/ready").problem(503, "shutting-down")
