"""Services and agents killed at random while tasks flow: all is delivered, and nobody's late word is taken.

Real processes: one service on SQLite, two replicas on PostgreSQL, three DICOM agents, and a receiver that counts. What is
random comes from one number, which is printed; ``PROVE_SEED`` repeats a run as far as processes can be repeated.
"""

import os
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import urllib3
from pynetdicom import AE, AllStoragePresentationContexts, evt

from clara_results.client import ResultsClient
from clara_results.domain.tasks import State
from clara_results.errors import LeaseLost, ServiceUnavailable
from clara_results.wire.destinations import Destination
from clara_results.wire.tasks import (
    FailureReport,
    Registration,
    Release,
    Renewal,
    ResultFile,
    SuccessReport,
    Task,
)
from tests.conftest import eventually
from tests.support.queue_model import check_history

if TYPE_CHECKING:
    from tests.conftest import AgentStarter, CtWriter, ServerProcess, Service, ServiceStarter

AGENTS = 3
LEASE = 3
"""Seconds of the agents' leases: what a killed one held is soon back."""
PAYLOAD = "pay"
SILENT = "silent"
"""Who claims and says nothing until it is too late."""


class Receiver:
    """A storage SCP that counts what it takes, instance by instance."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.taken: Counter[str] = Counter()
        entity = AE("RECEIVER")
        entity.maximum_associations = 100
        entity.supported_contexts = AllStoragePresentationContexts
        self._server = entity.start_server(
            ("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_STORE, self._store)]
        )

    def _store(self, event: evt.Event) -> int:
        self.taken[str(event.file_meta.MediaStorageSOPInstanceUID)] += 1
        return 0x0000

    def stop(self) -> None:
        assert self._server is not None
        self._server.shutdown()


@dataclass
class Flow:
    """What goes on while processes are killed.

    Attributes:
        services: All replicas.
        files: SOP Instance UIDs by URI; each is one task's.
        registered: Task ids by idempotency key, as they were answered.
        late: Answers to what was told after its lease had run out.
        faults: What must not have happened.
        stop: Set when all is to end.
    """

    services: list["Service"]
    files: dict[str, str]
    registered: dict[str, str] = field(default_factory=dict)
    late: Counter[str] = field(default_factory=Counter)
    faults: list[BaseException] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def clients(self) -> list[ResultsClient]:
        """Return a client of each replica, for one thread."""
        return [
            ResultsClient(service.url, read_timeout=10, instance=SILENT)
            for service in self.services
        ]

    def insist(self, dice: random.Random, clients: list[ResultsClient], call: Callable[[ResultsClient], Any]) -> Any:  # fmt: skip
        """Make a call, of any replica, until one answers; None: all is to end."""
        while not self.stop.is_set():
            try:
                return call(dice.choice(clients))
            except ServiceUnavailable:
                self.stop.wait(0.05)
        return None

    def guard(self, work: Callable[..., None], *arguments: Any) -> threading.Thread:
        """Run work on a thread; what it raises is a fault."""

        def run() -> None:
            try:
                work(self, *arguments)
            except Exception as fault:  # noqa: BLE001  (told by the test, in its own thread)
                self.faults.append(fault)

        thread = threading.Thread(target=run)
        thread.start()
        return thread


def register(flow: Flow, uris: list[str], number: int) -> None:
    """Register a task for each file; repeat each call until it is answered, as the operator does."""
    dice, clients = random.Random(number), flow.clients()  # noqa: S311  (to be repeatable)
    for uri in uris:
        body = Registration(
            agent="ClaraSCU",
            job_id=f"job-{dice.randrange(10)}",
            pipeline_id="pipe",
            payload_id=PAYLOAD,
            operator=uri,
            data=["Receiver"],
            files=[ResultFile(uri=uri)],
        )
        call = partial(ResultsClient.register, body=body, idempotency_key=f"key {uri}")
        answer = flow.insist(dice, clients, call)
        if answer is None:
            return
        flow.registered[uri] = answer.tasks[0].task_id


def speak_late(flow: Flow, seed: int) -> None:
    """Claim now and then, fall silent until the lease has run out, and then report all the same."""
    dice, clients = random.Random(seed), flow.clients()  # noqa: S311  (to be repeatable)
    held: list[tuple[Task, float]] = []
    while not flow.stop.wait(0.2):
        claimed = flow.insist(
            dice, clients, lambda client: client.claim("ClaraSCU", size=1, lease=1)
        )
        held += [(task, time.monotonic()) for task in claimed or ()]
        due = [entry for entry in held if time.monotonic() - entry[1] > dice.uniform(1, 8)]
        for task, since in due:
            now_is = flow.insist(dice, clients, partial(ResultsClient.task, task_id=task.task_id))
            if now_is is not None and (now_is.state, now_is.attempt) != (
                State.IN_PROGRESS,
                task.attempt,
            ):
                held.remove((task, since))
                tell_late(flow, dice, clients, task)


def tell_late(flow: Flow, dice: random.Random, clients: list[ResultsClient], task: Task) -> None:
    token, task_id = task.lease_token or "", task.task_id
    calls: list[Callable[[ResultsClient], Any]] = [
        lambda client: client.succeed(task_id, SuccessReport(lease_token=token)),
        lambda client: client.fail(task_id, FailureReport(retry_later=False, lease_token=token)),
        lambda client: client.renew(task_id, Renewal(lease_token=token)),
        lambda client: client.release(task_id, Release(lease_token=token)),
    ]
    try:
        if flow.insist(dice, clients, dice.choice(calls)) is not None:
            flow.late["taken"] += 1
    except LeaseLost:
        flow.late["lease-lost"] += 1


def kill_at_random(
    flow: Flow, dice: random.Random, agents: list["ServerProcess"], receiver: Receiver, kills: int
) -> list[str]:
    """Kill one process after the other, spread over the whole flow, and start each anew at once."""
    killed = []
    whole = 2 * len(flow.files)
    for number in range(kills):
        at = whole * (number + dice.random()) / (kills + 1)
        eventually(
            lambda at=at: len(flow.registered) + len(receiver.taken) >= at or bool(flow.faults),  # type: ignore[misc]
            f"the flow goes on to {at:.0f} of {whole}", 120,
        )  # fmt: skip
        victim = dice.randrange(len(flow.services) + len(agents))
        if victim < len(flow.services):
            killed.append(f"service {victim}")
            flow.services[victim].kill()
            flow.services[victim].start()
        else:
            victim -= len(flow.services)
            killed.append(f"agent {victim}")
            agents[victim].kill()
            agents[victim].start(lambda: True)
    return killed


def all_tasks(service: "Service") -> list[dict[str, Any]]:
    """Return every task with its attempts and history, as it is on the wire."""
    pool = urllib3.PoolManager(retries=False, timeout=20)
    tasks: list[dict[str, Any]] = []
    cursor = ""
    while True:
        page = pool.request("GET", f"{service.url}/api/tasks?limit=1000{cursor}").json()
        ids = [item["taskId"] for item in page["items"]]
        tasks += [pool.request("GET", f"{service.url}/api/tasks/{one}").json() for one in ids]
        if page["nextCursor"] is None:
            return tasks
        cursor = f"&cursor={page['nextCursor']}"


def check_end(flow: Flow, receiver: Receiver) -> list[dict[str, Any]]:
    """Check that all was delivered, and each attempt ended once, by its holder."""
    tasks = all_tasks(flow.services[0])
    assert {task["operator"]: task["taskId"] for task in tasks} == flow.registered
    assert len(tasks) == len(flow.files)  # no registration that was repeated made a second task
    assert {task["state"] for task in tasks} == {"Succeeded"}
    assert set(receiver.taken) == set(flow.files.values())
    for task in tasks:
        check_history(task)
        last = task["attempts"][-1]
        assert last["result"] == "succeeded"
        assert task["retries"] == len(ended(task, "lease-expired", "retry"))
        assert last["instance"] != SILENT
        for attempt in task["attempts"]:
            assert attempt["instance"] != SILENT or attempt["result"] == "lease-expired"
    return tasks


def ended(task: dict[str, Any], *results: str) -> list[dict[str, Any]]:
    """Return the attempts that ended so."""
    return [attempt for attempt in task["attempts"] if attempt["result"] in results]


@pytest.fixture
def receiver(free_port: Callable[[], int]) -> Iterator[Receiver]:
    """Run a receiver."""
    running = Receiver(free_port())
    yield running
    running.stop()


def run(
    tmp_path: Path, url: str, receiver: Receiver, service: "ServiceStarter", agent: "AgentStarter",
    write_ct: "CtWriter", *, count: int, kills: int, within: float, seed: int,
) -> str:  # fmt: skip
    """Let tasks flow while processes are killed, check the end, and return what happened in a line."""
    dice = random.Random(seed)  # noqa: S311  (to be repeatable)
    payloads = tmp_path / "payloads"
    files = {
        f"op/{n:04}.dcm": str(write_ct(payloads / PAYLOAD / f"op/{n:04}.dcm", number=n).SOPInstanceUID)
        for n in range(count)
    }  # fmt: skip
    replicas = 2 if url.startswith("postgresql") else 1
    settings = {"database": url, "payloads": payloads, "max_retries": 1000, "retry_delay": 0.2, "retry_delay_max": 1}  # fmt: skip
    flow = Flow([service(**settings) for _ in range(replicas)], files)
    flow.services[0].client.add_destination(
        Destination(name="Receiver", ae_title="RECEIVER", host="127.0.0.1", port=receiver.port, max_associations=20)
    )  # fmt: skip
    agents = [
        agent(flow.services[n % replicas], payloads=payloads, lease=LEASE) for n in range(AGENTS)
    ]
    begun = time.monotonic()
    uris = list(files)
    with ExitStack() as ending:
        threads = [flow.guard(register, uris[n::2], n) for n in range(2)]
        threads.append(flow.guard(speak_late, seed))
        for thread in threads:
            ending.callback(thread.join, 30)
        ending.callback(flow.stop.set)
        killed = kill_at_random(flow, dice, agents, receiver, kills)
        eventually(lambda: not_ended(flow) == 0 or bool(flow.faults), "every task ends", within)
    assert flow.faults == []
    assert not any(thread.is_alive() for thread in threads)
    tasks = check_end(flow, receiver)
    assert flow.late["taken"] == 0
    assert not any("Traceback" in service.log() for service in flow.services)
    return (
        f"{len(tasks)} tasks in {time.monotonic() - begun:.0f} s; killed: {len(killed)} "
        f"({sum(name.startswith('service') for name in killed)} services); leases run out: "
        f"{sum(len(ended(task, 'lease-expired')) for task in tasks)}; late reports refused: {flow.late['lease-lost']}; "
        f"instances sent more than once: {sum(n > 1 for n in receiver.taken.values())}"
    )


def not_ended(flow: Flow) -> int:
    """Return how many tasks are still to end, those not yet registered among them."""
    left = len(flow.files) - len(flow.registered)
    if left:
        return left
    shown = flow.services[0].client.destination("Receiver")
    return shown.pending + shown.in_progress


@pytest.mark.timeout(240)
def test_processes_killed_while_tasks_flow(
    tmp_path: Path, database_url: str, receiver: Receiver, service: "ServiceStarter",
    agent: "AgentStarter", write_ct: "CtWriter",
) -> None:  # fmt: skip
    seed = random.getrandbits(32)
    sys.stdout.write(f"seed {seed}\n")  # to be seen if it fails
    run(
        tmp_path, database_url, receiver, service, agent, write_ct, count=120, kills=4, within=60, seed=seed
    )  # fmt: skip


@pytest.mark.prove
@pytest.mark.timeout(1200)
def test_two_thousand_tasks_while_processes_are_killed(
    tmp_path: Path, database_url: str, receiver: Receiver, service: "ServiceStarter",
    agent: "AgentStarter", write_ct: "CtWriter", capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    seed = int(os.environ.get("PROVE_SEED") or random.SystemRandom().getrandbits(32))
    with capsys.disabled():
        sys.stdout.write(f"\nPROVE_SEED={seed}\n")
        found = run(
            tmp_path, database_url, receiver, service, agent, write_ct, count=2000, kills=40, within=300, seed=seed
        )  # fmt: skip
        sys.stdout.write(found + "\n")
