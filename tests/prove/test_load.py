"""The service's process under load: its memory over 200,000 tasks, its threads while 500 agents wait."""

import asyncio
import json
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from benchmarks.queue.clients import Connection, ResultsService, new_mark
from tests.conftest import eventually
from tests.support.event_reader import EventReader

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import Service, ServiceStarter

pytestmark = [pytest.mark.prove, pytest.mark.timeout(1800)]

TASKS = 200_000
STEP = 20_000
"""Tasks between two looks at the memory; the first of them fill caches and buffers."""
GROWTH = 1.05
"""40 bytes kept of every task would be more, on the 120 MiB that a service takes."""
CLIENTS = 4
"""That register, and as many that claim and report."""
EVENTS_EACH = 3
"""Of a task: registered, claimed, succeeded."""
AGENTS = 500
SEVERAL = 50
WATCHED = 6.0
"""Seconds within which each waiting claim looks by itself once more."""


def status(service: "Service", name: str) -> int:
    """Return a number of the service's process: ``VmRSS`` in kB, ``Threads``."""
    text = Path(f"/proc/{service.pid}/status").read_text()
    (line,) = [line for line in text.splitlines() if line.startswith(f"{name}:")]
    return int(line.split()[1])


class Counted:
    """Counts tasks that were reported (a ``Stop``)."""

    def __init__(self, enough: int) -> None:
        self._left = enough

    def done(self, number: int) -> None:
        self._left -= number

    @property
    def reached(self) -> bool:
        return self._left <= 0


async def go_through(service: "Service", tasks: int) -> None:
    client = ResultsService((service.url,), None)
    stop = Counted(tasks)
    await asyncio.gather(
        client.produce(CLIENTS, tasks, new_mark),
        client.consume(CLIENTS, 10, True, stop, lambda _mark: None),
    )


@pytest.fixture
def running(service: "ServiceStarter", database_url: str) -> "Iterator[Service]":
    """Run a service, and end it as it should be."""
    started = service(database=database_url)
    yield started
    started.stop()


def test_memory_stays_flat_over_200_000_tasks(running: "Service") -> None:
    with closing(EventReader(running.url)) as reader:
        sizes: list[int] = []
        begin = time.monotonic()
        for _ in range(TASKS // STEP):
            asyncio.run(go_through(running, STEP))
            sizes.append(status(running, "VmRSS"))
        seconds = time.monotonic() - begin
        told = ", ".join(f"{size / 1024:.1f}" for size in sizes)
        print(f"{TASKS} tasks in {seconds:.0f} s; MiB after each {STEP}: {told}")  # noqa: T201
        eventually(
            lambda: reader.count >= EVENTS_EACH * TASKS, "every event reaches the stream", 300
        )
        assert reader.count == EVENTS_EACH * TASKS
        running.stop()
    assert max(sizes) <= GROWTH * sizes[0]


async def waiting(service: "Service", agents: int) -> list[asyncio.Task[list[str]]]:
    """Have agents wait for a task each."""

    async def wait() -> list[str]:
        path = "/api/tasks/waiting/pending?size=1&wait=60"
        async with Connection.open(service.url) as connection:
            claimed = json.loads(await connection.expect(200, "GET", path))
        return [task["taskId"] for task in claimed]

    return [asyncio.create_task(wait()) for _ in range(agents)]


async def register(service: "Service", tasks: int) -> set[str]:
    told = {
        "agent": "waiting", "jobId": str(uuid4()), "pipelineId": "p", "payloadId": "y",
        "data": [{}] * tasks, "uris": ["result.dcm"],
    }  # fmt: skip
    body = json.dumps(told).encode()
    async with Connection.open(service.url) as connection:
        answer = json.loads(await connection.expect(201, "POST", "/api/tasks", body))
    return {task["taskId"] for task in answer["tasks"]}


async def most_threads(service: "Service", seconds: float) -> int:
    """Return the largest number of threads that was seen within some seconds."""
    most, deadline = 0, time.monotonic() + seconds
    while time.monotonic() < deadline:
        most = max(most, status(service, "Threads"))
        await asyncio.sleep(0.05)
    return most


def test_500_waiting_agents_cost_no_thread_and_each_gets_its_task(running: "Service") -> None:
    async def prove() -> None:
        before = 0
        for _ in range(2):  # threads are made when they are first needed
            several = await waiting(running, SEVERAL)
            before = await most_threads(running, WATCHED)
            await register(running, SEVERAL)
            await asyncio.gather(*several)

        many = await waiting(running, AGENTS)
        during = await most_threads(running, WATCHED)
        assert not any(agent.done() for agent in many)
        begin = time.monotonic()
        registered = await register(running, AGENTS)
        claimed = await asyncio.wait_for(asyncio.gather(*many), 60)
        print(  # noqa: T201
            f"threads: {before} with {SEVERAL} agents waiting, {during} with {AGENTS};"
            f" all had their task after {time.monotonic() - begin:.2f} s"
        )
        assert during <= before
        assert sorted(task for tasks in claimed for task in tasks) == sorted(registered)

    asyncio.run(prove())
