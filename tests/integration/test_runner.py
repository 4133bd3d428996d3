"""The runner of every agent, with a scripted exporter and a real service."""

import dataclasses
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from clara_results.agents.exporter import Delivery, FileRejected, TaskRejected
from clara_results.agents.runner import Runner
from clara_results.client import ResultsClient
from clara_results.domain.clock import SystemClock
from clara_results.domain.receivers import Clearance
from clara_results.domain.tasks import Outcome, State
from clara_results.errors import DestinationUnavailable, LeaseLost, Stopping
from clara_results.payloads import FolderStore
from clara_results.wire.destinations import Destination
from clara_results.wire.instances import Announced
from clara_results.wire.tasks import FileOutcome, Registration, ResultFile, Task
from tests.conftest import eventually

if TYPE_CHECKING:
    from tests.conftest import Service, ServiceStarter

Script = Callable[[Delivery], None]


class Scripted:
    """An exporter that does what a test says; it keeps what was raised in its face."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self.raised: list[BaseException] = []
        self.kept = 0

    idle_seconds: float = 0.0

    def idle(self, task: Task) -> int:
        return self.kept

    def close(self) -> None:
        pass

    def deliver(self, delivery: Delivery) -> None:
        try:
            self._script(delivery)
        except Exception as error:
            self.raised.append(error)
            raise


@contextmanager
def running(
    service: "Service", script: Script, *, payloads: bool = True, lease: int = 5, grace: float = 5.0
) -> Iterator[tuple[Scripted, Runner, threading.Thread]]:
    exporter = Scripted(script)
    runner = Runner(
        "tester",
        exporter,
        ResultsClient(service.url, instance="test:1", read_timeout=5),
        SystemClock(),
        lease=lease,
        parallel=2,
        payloads=FolderStore(service.payloads) if payloads else None,
        grace=grace,
    )
    thread = threading.Thread(target=runner.run)
    thread.start()
    try:
        yield exporter, runner, thread
    finally:
        runner.stop()
        thread.join(20)
        assert not thread.is_alive()


def register(service: "Service", count: int = 3) -> Task:
    folder = service.payloads / "pay"
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (folder / f"f{number}").write_bytes(b"x" * (number + 1))
    store = FolderStore(service.payloads)
    there = [store.stat("pay", f"f{number}") for number in range(count)]
    body = Registration(
        agent="Tester",
        job_id="job",
        pipeline_id="pipe",
        payload_id="pay",
        files=[ResultFile(uri=f.uri, size=f.size, modified=f.modified) for f in there],
    )
    return service.client.register(body).tasks[0]


def delivered(file: ResultFile) -> FileOutcome:
    return FileOutcome(uri=file.uri, outcome=Outcome.DELIVERED, code="0000")


def deliver_all(delivery: Delivery) -> None:
    for file in delivery.task.files or ():
        delivery.checkpoint()
        with delivery.open(file) as opened:
            size = len(opened.read())
        delivery.told(delivered(file), size)


def wait_for(service: "Service", task: Task, state: State, timeout: float = 15.0) -> Task:
    eventually(
        lambda: service.client.task(task.task_id).state == state, f"task is {state}", timeout
    )
    return service.client.task(task.task_id)


@pytest.fixture
def served(service: "ServiceStarter") -> "Service":
    return service(retry_delay=0.1)


def test_a_task_is_delivered_and_reported_file_by_file(served: "Service") -> None:
    task = register(served)
    with running(served, deliver_all):
        done = wait_for(served, task, State.SUCCEEDED)
    assert done.counts.delivered == 3
    assert done.attempts is not None
    assert [(a.instance, a.result) for a in done.attempts] == [("test:1", "succeeded")]
    files = served.client.files(task.task_id).items
    assert [(f.uri, f.outcome, f.code) for f in files] == [
        ("f0", Outcome.DELIVERED, "0000"),
        ("f1", Outcome.DELIVERED, "0000"),
        ("f2", Outcome.DELIVERED, "0000"),
    ]


def test_outcomes_are_reported_while_the_task_runs(served: "Service") -> None:
    task = register(served)
    go_on = threading.Event()

    def script(delivery: Delivery) -> None:
        files = delivery.task.files or []
        delivery.told(delivered(files[0]), 1)
        assert go_on.wait(10)
        for file in files[1:]:
            delivery.told(delivered(file))

    with running(served, script):
        eventually(
            lambda: served.client.task(task.task_id).counts.delivered == 1,
            "the first file is reported before the task ends",
        )
        assert served.client.task(task.task_id).state == State.IN_PROGRESS
        go_on.set()
        wait_for(served, task, State.SUCCEEDED)


def test_a_lease_is_renewed_for_as_long_as_the_work_takes(served: "Service") -> None:
    task = register(served, 1)
    go_on = threading.Event()

    def script(delivery: Delivery) -> None:
        assert go_on.wait(20)
        deliver_all(delivery)

    with running(served, script, lease=1):
        wait_for(served, task, State.IN_PROGRESS)
        claimed = served.client.task(task.task_id)
        # Three leases long: without renewals the rescuer would have taken it back.
        eventually(
            lambda: (
                (served.client.task(task.task_id).updated_at - claimed.updated_at).total_seconds()
                > 2.5
            ),
            "renewals go on",
        )
        go_on.set()
        done = wait_for(served, task, State.SUCCEEDED)
    assert done.attempt == 1


def test_a_lost_lease_ends_the_work_and_nothing_is_reported(served: "Service") -> None:
    task = register(served)
    started = threading.Event()

    def script(delivery: Delivery) -> None:
        started.set()
        while True:
            delivery.checkpoint()
            threading.Event().wait(0.02)

    with running(served, script, lease=1) as (exporter, _, _):
        assert started.wait(10)
        served.client.cancel(task.task_id)
        eventually(lambda: bool(exporter.raised), "the exporter is told")
        assert isinstance(exporter.raised[0], LeaseLost)
    after = served.client.task(task.task_id)
    assert after.state == State.CANCELED
    assert after.counts.pending == 3


def test_nothing_more_is_sent_while_outcomes_cannot_be_reported(served: "Service") -> None:
    task = register(served)
    first_told, told_while_away = threading.Event(), []

    def script(delivery: Delivery) -> None:
        for file in delivery.task.files or ():
            delivery.checkpoint()
            told_while_away.append(file.uri)
            delivery.told(delivered(file))
            if not first_told.is_set():
                served.kill()
                first_told.set()
                # Past the limit for unreported outcomes, the next checkpoint has to hold.
                threading.Event().wait(1.2)

    with running(served, script, lease=30):
        assert first_told.wait(10)
        threading.Event().wait(2.0)
        assert told_while_away == ["f0"]
        served.start()
        done = wait_for(served, task, State.SUCCEEDED)
    assert done.attempt == 1
    assert told_while_away == ["f0", "f1", "f2"]


def test_an_agent_that_is_stopped_gives_its_work_back(served: "Service") -> None:
    task = register(served)
    sent_one = threading.Event()

    def script(delivery: Delivery) -> None:
        files = iter(delivery.task.files or ())
        delivery.told(delivered(next(files)))
        sent_one.set()
        while True:
            delivery.checkpoint()
            threading.Event().wait(0.02)

    with running(served, script) as (exporter, runner, thread):
        assert sent_one.wait(10)
        runner.stop()
        thread.join(10)
        assert isinstance(exporter.raised[0], Stopping)
    after = served.client.task(task.task_id)
    assert (after.state, after.retries, after.counts.delivered) == (State.PENDING, 0, 1)
    with running(served, deliver_all):
        done = wait_for(served, task, State.SUCCEEDED)
    assert done.attempt == 2


def test_an_instance_without_answer_does_not_hold_up_the_end(served: "Service") -> None:
    task = register(served)
    stuck, never = threading.Event(), threading.Event()

    def script(delivery: Delivery) -> None:
        stuck.set()
        never.wait(30)

    with running(served, script, grace=0.5) as (_, runner, thread):
        assert stuck.wait(10)
        runner.stop()
        thread.join(10)
        assert not thread.is_alive()
        after = served.client.task(task.task_id)
        assert (after.state, after.retries) == (State.PENDING, 0)
        never.set()


def test_a_fault_in_the_exporter_is_a_retry_and_then_a_failure(served: "Service") -> None:
    task = register(served)

    def script(delivery: Delivery) -> None:
        raise ZeroDivisionError("Patient^Name")

    with running(served, script):
        done = wait_for(served, task, State.FAILED)
    assert (done.retries, done.attempt) == (3, 4)
    assert done.last_error is not None
    assert done.last_error.code == "agent-fault"
    assert "Patient" not in done.last_error.message


def test_a_file_left_without_outcome_is_never_a_success(served: "Service") -> None:
    task = register(served)

    def script(delivery: Delivery) -> None:
        delivery.told(delivered((delivery.task.files or [])[0]))

    with running(served, script):
        done = wait_for(served, task, State.SUCCEEDED)
    # One file an attempt: three attempts, each of which sent what was left.
    assert (done.attempt, done.retries, done.counts.delivered) == (3, 2, 3)


def test_a_task_that_can_not_be_delivered_fails_at_once(served: "Service") -> None:
    task = register(served)

    def script(delivery: Delivery) -> None:
        raise TaskRejected("no such destination", code="unknown-destination")

    with running(served, script):
        done = wait_for(served, task, State.FAILED)
    assert (done.attempt, done.retries, done.counts.rejected) == (1, 0, 3)
    assert done.last_error is not None
    assert done.last_error.code == "unknown-destination"


def test_an_unavailable_destination_costs_no_retry(served: "Service") -> None:
    task = register(served)
    back = threading.Event()

    def script(delivery: Delivery) -> None:
        if not back.is_set():
            raise DestinationUnavailable("nobody listens")
        deliver_all(delivery)

    with running(served, script):
        eventually(lambda: served.client.task(task.task_id).attempt >= 5, "it is tried on and on")
        back.set()
        done = wait_for(served, task, State.SUCCEEDED)
    assert done.retries == 0


def test_files_are_fetched_from_the_service_where_no_folder_is_shared(served: "Service") -> None:
    task = register(served)
    seen: dict[str, bytes] = {}

    def script(delivery: Delivery) -> None:
        for file in delivery.task.files or ():
            for _ in range(2):
                with delivery.open(file) as opened:
                    seen[file.uri] = opened.read()
            delivery.told(delivered(file))

    with running(served, script, payloads=False):
        wait_for(served, task, State.SUCCEEDED)
    assert seen == {"f0": b"x", "f1": b"xx", "f2": b"xxx"}


@pytest.mark.parametrize("payloads", [True, False])
def test_a_file_that_changed_since_it_was_registered_is_not_opened(
    served: "Service", payloads: bool
) -> None:
    task = register(served)
    (served.payloads / "pay" / "f1").write_bytes(b"longer than before")
    (served.payloads / "pay" / "f2").unlink()
    codes: dict[str, str] = {}

    def script(delivery: Delivery) -> None:
        for file in delivery.task.files or ():
            try:
                with delivery.open(file):
                    delivery.told(delivered(file))
            except FileRejected as error:
                codes[file.uri] = error.code
                delivery.told(FileOutcome(uri=file.uri, outcome=Outcome.REJECTED, code=error.code))

    with running(served, script, payloads=payloads):
        done = wait_for(served, task, State.FAILED)
    assert codes == {"f1": "file-changed", "f2": "missing-file"}
    assert done.counts.delivered == 1


def test_an_agent_waits_for_a_service_that_is_not_there_yet(
    service: "ServiceStarter", tmp_path: Path
) -> None:
    served = service()
    served.stop()
    with running(served, deliver_all):
        threading.Event().wait(0.3)
        served.start()
        task = register(served)
        wait_for(served, task, State.SUCCEEDED)


# Announcements and associations


def announced(file: ResultFile) -> Announced:
    return Announced(uri=file.uri, sop_instance_uid=f"1.2.{file.uri[1:]}", sha256="0" * 64)


def test_what_is_announced_is_known_before_it_goes_out_though_the_service_is_away(
    served: "Service",
) -> None:
    task = register(served)
    away = threading.Event()
    cleared: list[Mapping[str, Clearance]] = []

    def script(delivery: Delivery) -> None:
        served.kill()
        away.set()
        cleared.append(
            delivery.announce("dicom PACS", [announced(file) for file in delivery.task.files or ()])
        )
        deliver_all(delivery)

    with running(served, script, lease=30):
        assert away.wait(10)
        assert cleared == []
        served.start()
        wait_for(served, task, State.SUCCEEDED)
    assert cleared == [dict.fromkeys(("f0", "f1", "f2"), Clearance.SEND)]
    files = served.client.files(task.task_id).items
    assert [file.sop_instance_uid for file in files] == ["1.2.0", "1.2.1", "1.2.2"]


def test_who_has_lost_the_task_announces_nothing(served: "Service") -> None:
    task = register(served)

    def script(delivery: Delivery) -> None:
        served.client.cancel(task.task_id)
        delivery.announce("dicom PACS", [announced(file) for file in delivery.task.files or ()])

    with running(served, script) as (exporter, _, _):
        eventually(lambda: bool(exporter.raised), "the exporter is told")
        assert isinstance(exporter.raised[0], LeaseLost)


def test_a_task_makes_room_for_another_as_soon_as_it_has_closed_an_association(
    served: "Service",
) -> None:
    served.client.add_destination(
        Destination(name="Pacs", ae_title="PACS", host="127.0.0.1", port=104, max_associations=2)
    )
    register(served, 2)
    files = [ResultFile(uri="f0"), ResultFile(uri="f1")]

    def to_pacs(job: str) -> Task:
        body = Registration(
            agent="Tester", job_id=job, pipeline_id="pipe", payload_id="pay", data=["Pacs"], files=files
        )  # fmt: skip
        return served.client.register(body).tasks[0]

    first = to_pacs("first")
    at_first, later, end = threading.Event(), threading.Event(), threading.Event()

    def script(delivery: Delivery) -> None:
        if delivery.task.task_id == first.task_id:
            assert delivery.associations == 2
            delivery.uses(2)
            at_first.set()
            eventually(lambda: delivery.associations == 1, "it is asked to close one", 20)
            assert not later.is_set()
            delivery.uses(1)
            assert end.wait(20)
        elif delivery.task.job_id == "second":
            assert delivery.associations == 1
            later.set()
        deliver_all(delivery)

    with running(served, script, lease=5):
        assert at_first.wait(10)
        second = to_pacs("second")
        wait_for(served, second, State.SUCCEEDED)
        end.set()
        wait_for(served, first, State.SUCCEEDED)


def test_what_the_exporter_keeps_open_is_told_at_the_end(served: "Service") -> None:
    served.client.add_destination(
        Destination(name="Pacs", ae_title="PACS", host="127.0.0.1", port=104, max_associations=1)
    )
    register(served, 1)
    body = Registration(
        agent="Tester", job_id="kept", pipeline_id="pipe", payload_id="pay", data=["Pacs"],
        files=[ResultFile(uri="f0")],
    )  # fmt: skip
    task = served.client.register(body).tasks[0]
    with running(served, deliver_all) as (exporter, _, _):
        exporter.kept = 1
        exporter.idle_seconds = 60.0
        wait_for(served, task, State.SUCCEEDED)
    served.client.register(dataclasses.replace(body, job_id="next"))
    others = ResultsClient(served.url, instance="other:1")
    assert others.claim("tester") == []
    assert len(ResultsClient(served.url, instance="test:1").claim("tester")) == 1
