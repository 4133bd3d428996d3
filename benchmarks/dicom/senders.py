"""What is measured: each sends the files of a series to a receiver, and tells how long that took."""

import os
import subprocess
import sys
import time
import uuid
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

from benchmarks.dicom.files import Series
from benchmarks.dicom.receivers import PDU, Receiver
from benchmarks.queue.errors import BenchmarkFailed
from benchmarks.queue.servers import Process, Service, program
from clara_results.client import ResultsClient
from clara_results.domain.tasks import State
from clara_results.wire.destinations import Destination
from clara_results.wire.tasks import Registration

LIMIT = 300.0
"""Seconds for one run."""
PAUSE = 0.05
"""Seconds between looks at whether our task has ended; what is measured is the service's own record."""
AGENT = "ClaraSCU"


class Sender(Protocol):
    """Something that sends."""

    @property
    def name(self) -> str:
        """Return what it is called in the tables."""
        ...

    def send(self, series: Series, receiver: Receiver) -> float:
        """Send a series and return the seconds.

        Raises:
            BenchmarkFailed: Not all of it was taken.
        """
        ...


class Program:
    """A program that sends a folder and ends; its time is from its start to its end."""

    def __init__(self, name: str) -> None:
        """Take one of dcmsend, storescu, pynetdicom."""
        self.name = name

    def send(self, series: Series, receiver: Receiver) -> float:
        """Run it."""
        command = self._command(series, receiver)
        environment = dict(os.environ) | ({"TCP_NODELAY": "1"} if receiver.tuned else {})
        begin = time.perf_counter()
        ended = subprocess.run(
            command, capture_output=True, text=True, env=environment, timeout=LIMIT, check=False
        )
        seconds = time.perf_counter() - begin
        if ended.returncode != 0:
            said = (ended.stdout + ended.stderr)[-500:]
            raise BenchmarkFailed(f"{self.name} failed with {ended.returncode}: {said}")
        return seconds

    def _command(self, series: Series, receiver: Receiver) -> list[str]:
        host, port, folder = "127.0.0.1", str(receiver.port), str(series.folder)
        if self.name == "pynetdicom":
            size = ["--max-pdu", str(PDU)] if receiver.tuned else []
            return [sys.executable, "-m", "pynetdicom", "storescu", "-q", "-cx", *size, host, port, folder]  # fmt: skip
        size = ["--max-pdu", str(PDU)] if receiver.tuned else []
        return [program(self.name), "+sd", *size, host, port, folder]


class Bare:
    """The bare sender; its time is without the start of its process."""

    def __init__(self, associations: int) -> None:
        """Take how many associations it has."""
        self.name = f"bare sender, {associations}"
        self._associations = associations

    def send(self, series: Series, receiver: Receiver) -> float:
        """Run it."""
        script = Path(__file__).with_name("bare.py")
        command = [sys.executable, str(script), str(receiver.port), str(self._associations), str(series.folder)]  # fmt: skip
        ended = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=False)
        if ended.returncode != 0:
            raise BenchmarkFailed(f"the bare sender failed: {ended.stderr[-500:]}")
        return float(ended.stdout)


class Ours:
    """A service and an agent, as they are shipped, that wait for work.

    Attributes:
        payloads: Where files have to lie.
        agent: The agent's process.
        client: A client of the service.
    """

    def __init__(self, folder: Path, running: ExitStack) -> None:
        """Start them."""
        service = Service(folder, running)
        self.payloads = folder / "payloads"
        self.payloads.mkdir(exist_ok=True)
        self.client = ResultsClient(service.url)
        environment = {"SERVICE": service.url, "PAYLOADS": str(self.payloads), "LOG_LEVEL": "warning"}  # fmt: skip
        self.agent = Process(
            [sys.executable, "-m", "clara_results", "agent", "dicom"],
            folder / "agent.log",
            {f"CLARA_RESULTS_{name}": value for name, value in environment.items()},
        )
        running.callback(self.agent.stop)

    def destination(self, receiver: Receiver, associations: int) -> str:
        """Set a destination up, and return its name."""
        name = f"{receiver.kind}-{associations}"
        self.client.add_destination(
            Destination(
                name=name,
                ae_title="RECEIVER",
                host="127.0.0.1",
                port=receiver.port,
                max_associations=associations,
            )
        )
        return name

    def deliver(self, series: Series, destination: str, agent: str = AGENT) -> float:
        """Register a series for an agent, and return the seconds from the claim of its task to the last report of it.

        Raises:
            BenchmarkFailed: Not all of it was delivered.
        """
        payload = series.folder.relative_to(self.payloads).parts[0]
        root = self.payloads / payload
        uris = [str(path.relative_to(root)) for path in series.paths]
        registered = self.client.register(
            Registration(
                agent=agent, job_id=uuid.uuid4().hex, pipeline_id="benchmark", payload_id=payload,
                data=[destination], uris=uris,
            )
        )  # fmt: skip
        deadline = time.monotonic() + LIMIT
        while True:
            task = self.client.task(registered.tasks[0].task_id)
            if task.state in {State.SUCCEEDED, State.FAILED}:
                break
            if time.monotonic() > deadline:
                raise BenchmarkFailed(f"a task did not end: {task.state}, {task.last_error}")
            time.sleep(PAUSE)
        attempts = task.attempts or []
        if task.counts.delivered != len(uris) or len(attempts) != 1 or not attempts[0].ended_at:
            raise BenchmarkFailed(f"a task ended as {task.state}: {task.counts}, {task.last_error}")
        return (attempts[0].ended_at - attempts[0].claimed_at).total_seconds()


class OurDestination:
    """Our service and agent with a destination of so many associations."""

    def __init__(self, ours: Ours, receiver: Receiver, associations: int) -> None:
        """Set the destination up."""
        self.name = f"clara-results, {associations}"
        self._ours = ours
        self._destination = ours.destination(receiver, associations)

    def send(self, series: Series, receiver: Receiver) -> float:  # noqa: ARG002  (its destination is that receiver)
        """Have a task with the series delivered."""
        return self._ours.deliver(series, self._destination)
