"""What a DICOM agent takes of memory: the same for thousands of small files as for one that is larger than its memory."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from clara_results.domain.tasks import State
from clara_results.wire.destinations import Destination
from clara_results.wire.tasks import Registration, Task
from tests.conftest import ServerProcess, eventually
from tools import ports

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import AgentStarter, CtWriter, Service, ServiceStarter

pytestmark = [pytest.mark.prove, pytest.mark.timeout(900)]

LIMIT = 150 << 10
"""kB of memory that an agent may take at the most."""
FILES = 10_000
DISTINCT = 100
LARGE = 2_000_000_000
SINK = Path(__file__).parents[2] / "benchmarks" / "dicom" / "sink.py"


@pytest.fixture
def sink(tmp_path: Path) -> "Iterator[int]":
    """Run a receiver that only answers, and return its port."""
    port = ports.free_port()
    server = ServerProcess([sys.executable, str(SINK), str(port)], tmp_path / "sink.log")
    server.start(lambda: ports.listens(port))
    yield port
    server.kill()


def peak(agent: ServerProcess) -> int:
    """Return the most memory that a process has had, in kB."""
    text = Path(f"/proc/{agent.pid}/status").read_text()
    (line,) = [line for line in text.splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1])


def delivered(service: "Service", port: int, uris: list[str]) -> Task:
    """Have files of payload ``p`` delivered over four associations, and return the task."""
    service.client.add_destination(
        Destination(name="PACS", ae_title="SINK", host="127.0.0.1", port=port, max_associations=4)
    )
    registered = service.client.register(
        Registration(
            agent="ClaraSCU",
            job_id="j",
            pipeline_id="l",
            payload_id="p",
            data=["PACS"],
            uris=uris,
        )
    )
    task_id = registered.tasks[0].task_id
    eventually(
        lambda: service.client.task(task_id).state is State.SUCCEEDED, "its delivery", timeout=300
    )
    return service.client.task(task_id)


def test_thousands_of_small_files(
    service: "ServiceStarter", agent: "AgentStarter", sink: int, write_ct: "CtWriter"
) -> None:
    running = service()
    folder = running.payloads / "p"
    uris = [f"{number:05}.dcm" for number in range(FILES)]
    for number, uri in enumerate(uris[:DISTINCT]):
        made = write_ct(folder / uri, number=number, size=64)
        data, uid = (folder / uri).read_bytes(), str(made.SOPInstanceUID).encode()
        for copy in range(number + DISTINCT, FILES, DISTINCT):
            other = uid[:-5] + f"{copy:05}".encode()  # as long, and no other's
            (folder / uris[copy]).write_bytes(data.replace(uid, other))
    sender = agent(running)
    task = delivered(running, sink, uris)
    assert task.counts.delivered == FILES
    assert peak(sender) < LIMIT


def test_one_of_two_gigabytes(
    service: "ServiceStarter", agent: "AgentStarter", sink: int, write_ct: "CtWriter"
) -> None:
    running = service()
    path = running.payloads / "p" / "large.dcm"
    made = write_ct(path, size=16)
    made.NumberOfFrames = LARGE // (512 * 512 * 2)
    made.Rows = made.Columns = 512
    size = made.NumberOfFrames * 512 * 512 * 2
    made.PixelData = b"\0\0"
    made.save_as(path, enforce_file_format=True)
    with path.open("r+b") as file:  # all zeros: its disk is not written to
        end = file.seek(0, 2)
        file.seek(end - 6)
        file.write(size.to_bytes(4, "little"))
        file.truncate(end - 2 + size)
    sender = agent(running)
    task = delivered(running, sink, ["large.dcm"])
    assert task.counts.delivered == 1
    assert path.stat().st_size > LARGE * 0.99
    assert peak(sender) < LIMIT
