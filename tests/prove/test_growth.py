"""What has grown is as fast as what has not: a million tasks that wait, a task of 50,000 files."""

import json
import time
from collections import defaultdict
from contextlib import ExitStack, closing
from http.client import HTTPConnection
from statistics import median
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

from clara_results.wire.destinations import Destination
from clara_results.wire.tasks import Registration, ResultFile
from tests.support.backlog import multiply

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.conftest import Postgres, Service, ServiceStarter

pytestmark = [pytest.mark.prove, pytest.mark.timeout(1800)]

FEW, MANY = 1_000, 1_000_000
DESTINATIONS = 20
TURNS = 300
"""Claims of each size in each database."""
GROWTH = 1.3
FILES = 50_000
FILES_SECONDS = 2.0
FILES_TURNS = 5
"""Registrations of so many files; the fastest counts, as one is too long not to be disturbed by others' work."""
PAGE = 1000


class Agent:
    """An agent that times its calls: one connection, no library in between.

    Attributes:
        seconds: Of each call, by what it was.
    """

    def __init__(self, service: "Service") -> None:
        self._connection = HTTPConnection(urlsplit(service.url).netloc, timeout=60)
        self.seconds: dict[str, list[float]] = defaultdict(list)

    def call(self, what: str, method: str, path: str, body: Any = None) -> Any:
        """Call the service, and note how long it takes."""
        sent = None if body is None else json.dumps(body)
        begin = time.perf_counter()
        self._connection.request(method, path, sent, {"Content-Type": "application/json"})
        answer = self._connection.getresponse()
        said = answer.read()
        self.seconds[what].append(time.perf_counter() - begin)
        assert answer.status in {200, 201}, said
        return json.loads(said)

    def close(self) -> None:
        self._connection.close()

    def cycle(self, size: int) -> None:
        """Claim tasks, report them, and register as many: what waits stays as many."""
        claimed = self.call(f"claim {size}", "GET", f"/api/tasks/grown/pending?size={size}")
        assert len(claimed) == size
        for task in claimed:
            report = {"leaseToken": task["leaseToken"]}
            self.call("report", "PUT", f"/api/tasks/success/{task['taskId']}", report)
            self.call("register", "POST", "/api/tasks", registration(task["jobId"], task["parameters"]))  # fmt: skip


def registration(job_id: str, parameters: str) -> dict[str, Any]:
    return {
        "agent": "grown",
        "jobId": job_id,
        "pipelineId": "pipeline",
        "payloadId": "payload",
        "data": [json.loads(parameters)],
        "files": [{"uri": "result.dcm", "size": 500}],
    }


def grown(start: "ServiceStarter", url: str, tasks: int) -> "Service":
    """Start a service whose database holds so many tasks that wait, for 20 destinations."""
    service = start(database=url)
    for number in range(DESTINATIONS):
        name = f"destination-{number}"
        service.client.add_destination(
            Destination(
                name=name, ae_title="RECEIVER", host="127.0.0.1", port=104, max_associations=100
            )
        )
    names = [f"destination-{number}" for number in range(DESTINATIONS)]
    registered = service.client.register(
        Registration(
            agent="grown",
            job_id="job-0",
            pipeline_id="pipeline",
            payload_id="payload",
            data=names,
            files=[ResultFile(uri="result.dcm", size=500)],
        )
    )
    service.stop()
    multiply(url, registered.tasks[0].task_id, tasks - DESTINATIONS, tasks // 100, DESTINATIONS)
    service.start()
    return service


@pytest.fixture
def agent() -> "Iterator[Callable[[Service], Agent]]":
    """Give a function that makes an agent for a service."""
    with ExitStack() as opened:

        def make(service: "Service") -> Agent:
            return opened.enter_context(closing(Agent(service)))

        yield make


@pytest.fixture(params=["sqlite", "postgresql"])
def urls(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> "Callable[[], str]":
    """Give a function that makes empty databases of one kind."""
    if request.param == "sqlite":
        return lambda: f"sqlite:///{tmp_path_factory.mktemp('database')}/grown.db"
    server: Postgres = request.getfixturevalue("postgres")
    return server.new_database


def test_a_million_waiting_tasks_cost_a_claim_next_to_nothing(
    service: "ServiceStarter",
    urls: "Callable[[], str]",
    agent: "Callable[[Service], Agent]",
) -> None:
    few, many = (agent(grown(service, urls(), tasks)) for tasks in (FEW, MANY))
    for each in (few, many):
        each.cycle(10)  # connections, caches
        each.seconds.clear()
    for _ in range(TURNS):
        for size in (1, 10):
            for each in (few, many):  # side by side: what disturbs one disturbs the other
                each.cycle(size)
    medians = {
        what: (median(few.seconds[what]), median(many.seconds[what])) for what in few.seconds
    }
    told = ", ".join(
        f"{what}: {small * 1000:.2f} and {large * 1000:.2f} ms"
        for what, (small, large) in medians.items()
    )
    print(f"with {FEW:,} and with {MANY:,} tasks: {told}")  # noqa: T201  (shown by pytest -s, and if it fails)
    assert {what for what, (small, large) in medians.items() if large > GROWTH * small} == set()


def test_a_task_of_50_000_files_registers_and_is_listed(
    service: "ServiceStarter", database_url: str, agent: "Callable[[Service], Agent]"
) -> None:
    caller = agent(service(database=database_url))
    uris = [f"segmentation/series-{number // 500:03}/{number:06}.dcm" for number in range(FILES)]
    body = registration("job", '"PACS"') | {
        "files": [{"uri": uri, "size": 524_288} for uri in uris]
    }
    registered = [
        caller.call("register", "POST", "/api/tasks", body | {"jobId": f"job-{number}"})
        for number in range(FILES_TURNS)
    ]
    task_id = registered[-1]["tasks"][0]["taskId"]
    listed: list[str] = []
    cursor: str | None = "-1"
    while cursor is not None:
        path = f"/api/tasks/{task_id}/files?limit={PAGE}&cursor={cursor}"
        page = caller.call("page", "GET", path)
        listed += [item["uri"] for item in page["items"]]
        cursor = page["nextCursor"]
    assert listed == uris
    pages = caller.seconds["page"]
    print(  # noqa: T201
        f"{FILES} files: registered in {min(caller.seconds['register']):.2f} s (median {median(caller.seconds['register']):.2f}),"
        f" a page of {PAGE} in {median(pages[:5]) * 1000:.1f} ms first, {median(pages[-5:]) * 1000:.1f} ms last"
    )
    assert min(caller.seconds["register"]) < FILES_SECONDS
    assert median(pages[-5:]) < 2 * median(pages[:5])
