"""Processes killed in the middle of a series: all arrives, and next to nothing twice."""

import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from pynetdicom import AE, AllStoragePresentationContexts, evt

from clara_results.domain.tasks import State
from clara_results.payloads import FolderStore
from clara_results.wire.destinations import Destination
from clara_results.wire.tasks import Registration, ResultFile, Task
from tests.conftest import eventually

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import AgentStarter, CtWriter, Service, ServiceStarter

COUNT = 60
EACH = 0.05
"""Seconds that the receiver takes for an instance: the series lasts long enough to be interrupted."""


class Receiver:
    """A storage SCP that counts what it takes, instance by instance."""

    def __init__(self, port: int) -> None:
        self.taken: Counter[str] = Counter()
        self._pace = threading.Event()
        entity = AE("RECEIVER")
        entity.supported_contexts = AllStoragePresentationContexts
        self._server = entity.start_server(
            ("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_STORE, self._store)]
        )

    def _store(self, event: evt.Event) -> int:
        self._pace.wait(EACH)
        self.taken[str(event.dataset.SOPInstanceUID)] += 1
        return 0x0000

    def stop(self) -> None:
        assert self._server is not None
        self._server.shutdown()


@pytest.fixture
def receiver(free_port: "Callable[[], int]") -> Iterator[tuple[Receiver, int]]:
    port = free_port()
    running = Receiver(port)
    yield running, port
    running.stop()


def registered(
    served: "Service", write_ct: "CtWriter", port: int, folder: str = "op"
) -> tuple[Task, set[str]]:
    served.client.add_destination(
        Destination(name="Receiver", ae_title="RECEIVER", host="127.0.0.1", port=port)
    )
    payload = Path(served.payloads) / "pay"
    uids = {
        str(write_ct(payload / folder / f"{n:03}.dcm", number=n).SOPInstanceUID)
        for n in range(COUNT)
    }
    files = [
        ResultFile(uri=file.uri, size=file.size, modified=file.modified)
        for file in FolderStore(served.payloads).files("pay")
    ]
    body = Registration(
        agent="ClaraSCU",
        job_id="job",
        pipeline_id="pipe",
        payload_id="pay",
        data=["Receiver"],
        files=files,
    )
    return served.client.register(body).tasks[0], uids


def test_the_agent_killed_in_the_middle_of_a_series(
    service: "ServiceStarter",
    agent: "AgentStarter",
    write_ct: "CtWriter",
    receiver: tuple[Receiver, int],
) -> None:
    scp, port = receiver
    served = service()
    task, uids = registered(served, write_ct, port)
    first = agent(served, lease=2)
    eventually(lambda: len(scp.taken) >= COUNT // 3, "a third has arrived", 60)
    first.kill()
    agent(served, lease=2)
    eventually(lambda: served.client.task(task.task_id).state.finished, "the task ends", 60)
    done = served.client.task(task.task_id)
    assert done.state == State.SUCCEEDED
    assert (done.attempt, done.retries) == (2, 1)
    assert set(scp.taken) == uids
    # Only what was answered since the last report, at most a second ago, may come again.
    assert sum(scp.taken.values()) - COUNT <= 1.5 / EACH


def test_the_service_killed_in_the_middle_of_a_series(
    service: "ServiceStarter",
    agent: "AgentStarter",
    write_ct: "CtWriter",
    receiver: tuple[Receiver, int],
) -> None:
    scp, port = receiver
    served = service()
    task, uids = registered(served, write_ct, port)
    agent(served, lease=60)
    eventually(lambda: len(scp.taken) >= COUNT // 3, "a third has arrived", 60)
    served.kill()
    served.start()
    eventually(lambda: served.client.task(task.task_id).state.finished, "the task ends", 60)
    done = served.client.task(task.task_id)
    assert done.state == State.SUCCEEDED
    assert (done.attempt, done.retries) == (1, 0)  # the lease outlasted it
    assert scp.taken == Counter(uids)  # and nothing came twice


def test_both_killed_at_once(
    service: "ServiceStarter",
    agent: "AgentStarter",
    write_ct: "CtWriter",
    receiver: tuple[Receiver, int],
) -> None:
    scp, port = receiver
    served = service()
    task, uids = registered(served, write_ct, port)
    running = agent(served, lease=2)
    eventually(lambda: len(scp.taken) >= COUNT // 3, "a third has arrived", 60)
    served.kill()
    running.kill()
    agent(served, lease=2)
    served.start()
    eventually(lambda: served.client.task(task.task_id).state.finished, "the task ends", 60)
    assert served.client.task(task.task_id).state == State.SUCCEEDED
    assert set(scp.taken) == uids
    assert sum(scp.taken.values()) - COUNT <= 1.5 / EACH


def test_sigterm_gives_the_rest_back_within_ten_seconds(
    service: "ServiceStarter",
    agent: "AgentStarter",
    write_ct: "CtWriter",
    receiver: tuple[Receiver, int],
) -> None:
    scp, port = receiver
    served = service()
    task, uids = registered(served, write_ct, port)
    first = agent(served, lease=60)
    eventually(lambda: len(scp.taken) >= COUNT // 3, "a third has arrived", 60)
    first.stop()  # it waits ten seconds for the process, and kills it then
    after = served.client.task(task.task_id)
    assert (after.state, after.retries) == (State.PENDING, 0)
    assert after.counts.delivered == len(scp.taken)
    assert after.attempts is not None
    assert after.attempts[-1].result == "released"
    agent(served, lease=60)
    eventually(lambda: served.client.task(task.task_id).state.finished, "the task ends", 60)
    assert scp.taken == Counter(uids)


@pytest.mark.prove
@pytest.mark.parametrize("turn", range(4))
def test_agent_and_service_killed_time_and_again(
    service: "ServiceStarter",
    agent: "AgentStarter",
    write_ct: "CtWriter",
    receiver: tuple[Receiver, int],
    turn: int,
) -> None:
    scp, port = receiver
    served = service(max_retries=10)
    task, uids = registered(served, write_ct, port)
    running = agent(served, lease=2)
    for share in (1, 2, 3, 4):
        eventually(lambda least=share: len(scp.taken) >= COUNT * least // 5, "more arrives", 60)  # type: ignore[misc]
        if (share + turn) % 2:
            running.kill()
            running = agent(served, lease=2)
        else:
            served.kill()
            served.start()
    eventually(lambda: served.client.task(task.task_id).state.finished, "the task ends", 90)
    assert served.client.task(task.task_id).state == State.SUCCEEDED
    assert set(scp.taken) == uids
    assert sum(scp.taken.values()) - COUNT <= 4 * 1.5 / EACH
