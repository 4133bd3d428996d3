"""``kill -9`` of the service amid registrations and reports: what was answered is there, nothing is half done."""

import threading
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from clara_results.client import ResultsClient
from clara_results.domain.tasks import Outcome, State
from clara_results.errors import ClaraResultsError, ServiceUnavailable
from clara_results.wire.tasks import FileOutcome, Registration, Renewal, ResultFile, SuccessReport
from tests.conftest import eventually

if TYPE_CHECKING:
    from tests.conftest import Service, ServiceStarter

FILES = 20
KILLS = 2


@dataclass
class Answered:
    """What the service has said yes to."""

    registered: dict[str, list[str]] = field(default_factory=dict)
    """Task ids by idempotency key."""
    told: set[tuple[str, str]] = field(default_factory=set)
    """Task id and URI of files that were told as delivered."""
    succeeded: set[str] = field(default_factory=set)
    faults: list[Exception] = field(default_factory=list)


def body(key: str) -> Registration:
    files = [ResultFile(uri=f"op/{number}") for number in range(FILES)]
    return Registration(
        agent="crash", job_id=key, pipeline_id="p", payload_id="y", data=[1, 2], files=files
    )


def register(client: ResultsClient, answered: Answered, stop: threading.Event) -> None:
    while not stop.is_set():
        key = uuid.uuid4().hex
        while not stop.is_set():  # until it is answered, as the operator does
            try:
                tasks = client.register(body(key), key).tasks
            except ServiceUnavailable:
                stop.wait(0.01)
                continue
            answered.registered[key] = [task.task_id for task in tasks]
            break


def work(client: ResultsClient, answered: Answered, stop: threading.Event) -> None:
    while not stop.is_set():
        try:
            for task in client.claim("crash", size=2, lease=86_400):
                token = task.lease_token or ""
                uris = task.uris or []
                files = [
                    FileOutcome(uri=uri, outcome=Outcome.DELIVERED) for uri in uris[: FILES // 2]
                ]
                client.renew(task.task_id, Renewal(lease_token=token, files=files))
                answered.told |= {(task.task_id, file.uri) for file in files}
                client.succeed(task.task_id, SuccessReport(lease_token=token))
                answered.succeeded.add(task.task_id)
        except ServiceUnavailable:
            stop.wait(0.01)
        except ClaraResultsError as error:
            answered.faults.append(error)
            return


def check(service: "Service", answered: Answered) -> None:
    client = service.client
    for key, task_ids in answered.registered.items():
        job = client.job(key)
        assert [task.task_id for task in job.tasks] == task_ids
        assert client.register(body(key), key).tasks[0].task_id == task_ids[0]
        for task in job.tasks:
            counts = task.counts
            assert counts.pending + counts.delivered == FILES  # all its files, or it is not there
            if task.task_id in answered.succeeded:
                assert task.state == State.SUCCEEDED
    for task_id, uris in _by_task(answered.told).items():
        delivered = client.files(task_id, outcome="delivered").items
        assert uris <= {file.uri for file in delivered}


def _by_task(told: set[tuple[str, str]]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for task_id, uri in told:
        found.setdefault(task_id, set()).add(uri)
    return found


def whole(service: "Service") -> None:
    """Check every task that there is, answered or not."""
    cursor = None
    while True:
        page = service.client.tasks(limit=1000, cursor=cursor)
        for task in page.items:
            counts = task.counts
            assert counts.pending + counts.delivered == FILES
            assert (task.state == State.SUCCEEDED) == (counts.delivered == FILES)
            assert len(service.client.job(task.job_id).tasks) == 2  # both, or neither
        cursor = page.next_cursor
        if cursor is None:
            return


def test_what_was_answered_outlives_the_service(service: "ServiceStarter") -> None:
    running = service()
    answered, stop = Answered(), threading.Event()
    clients = [ResultsClient(running.url, read_timeout=20) for _ in range(4)]
    threads = [
        threading.Thread(target=target, args=(client, answered, stop))
        for target, client in zip([register, register, work, work], clients, strict=True)
    ]
    for thread in threads:
        thread.start()
    try:
        for _ in range(KILLS):
            before = len(answered.registered), len(answered.succeeded)
            eventually(
                lambda: len(answered.registered) > before[0] + 5  # noqa: B023  (called within the turn)
                and len(answered.succeeded) > before[1] + 5,  # noqa: B023
                "work goes on", 60,
            )  # fmt: skip
            running.kill()
            running.start()
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert answered.faults == []
    check(running, answered)
    whole(running)
    assert "Traceback" not in running.log()
