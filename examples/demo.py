"""A pipeline's results on their way to three receivers, all on this machine: ``make demo``.

In a temporary folder it starts the product (``clara-results up``) and three DICOM receivers, makes a CT series and a
segmentation, registers them as a pipeline step does (``python register.py``), and shows how the three tasks go to
Succeeded and how many instances each receiver holds, asked of the receiver itself. It ends by itself; exit 0 only if
every receiver holds everything.
"""

import argparse
import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from pydicom import dcmread
from rich.console import Console
from rich.live import Live
from rich.table import Table

from clara_results.client import ResultsClient
from clara_results.domain.tasks import State
from clara_results.errors import ClaraResultsError, ServiceUnavailable
from clara_results.wire.tasks import Task
from examples.demo_receivers import (
    Child,
    Dcmqrscp,
    Deadline,
    DemoFailed,
    Orthanc,
    OwnReceiver,
    Receiver,
)
from examples.make_dicom import make_study
from tools.ports import free_port

ROOT = Path(__file__).resolve().parent.parent
CLARA_RESULTS = Path(sys.executable).with_name("clara-results")
JOB, PIPELINE, PAYLOAD = "demo-job", "demo-pipeline", "demo-payload"
LOOK = 0.25
"""Seconds between two looks at tasks and receivers."""


@dataclass(frozen=True, slots=True)
class Row:
    """What is known of one destination at one moment.

    Attributes:
        destination: Its name.
        program: What receives there.
        state: Its task's state.
        delivered: Files that the service counts as delivered.
        held: How many of the wanted instances the receiver says it holds.
        error: Why the task last failed or was put back, or nothing.
    """

    destination: str
    program: str
    state: State
    delivered: int
    held: int
    error: str


def show(line: str) -> None:
    """Print a line at once."""
    print(line, flush=True)


def run(command: list[str], environment: dict[str, str], *, silent: bool = False) -> None:
    """Show a command and run it, its output (unless it is to be silent) and errors as they come.

    Raises:
        DemoFailed: It ended with another code than 0.
    """
    show(f"$ {shlex.join([Path(command[0]).name, *command[1:]])}")
    output = subprocess.DEVNULL if silent else None
    ended = subprocess.run(command, cwd=ROOT, env=environment, stdout=output, check=False)
    if ended.returncode != 0:
        raise DemoFailed(f"{Path(command[0]).name} ended with exit code {ended.returncode}")


def choose_receivers(folder: Path, study_instance_uid: str) -> dict[str, Receiver]:
    """Return the three destinations' receivers for a study; our own stands in where a program is not installed."""

    def place(name: str) -> Path:
        path = folder / name
        path.mkdir()
        return path

    receivers: dict[str, Receiver] = {}
    for name, program in {"Orthanc": "Orthanc", "DCM4CHEE": "dcmqrscp"}.items():
        path = shutil.which(program)
        if path is None:
            show(f"{program} is not installed: our own receiver stands in as {name}")
            receivers[name] = OwnReceiver(place(name), name.upper())
        elif program == "Orthanc":
            receivers[name] = Orthanc(path, place(name), name.upper())
        else:
            receivers[name] = Dcmqrscp(path, place(name), name, study_instance_uid)
    receivers["ImageViewer1"] = OwnReceiver(place("ImageViewer1"), "VIEWER1")
    return receivers


def start_receivers(
    receivers: dict[str, Receiver], folder: Path, running: ExitStack, deadline: Deadline
) -> None:
    """Start all receivers and wait until each is ready.

    Raises:
        DemoFailed: One of them did not start.
    """
    # Without TCP_NODELAY dcmqrscp's answers to a C-FIND wait 44 ms each for the acknowledgement of the one before.
    environment = {**os.environ, "TCP_NODELAY": "1"}
    children = {
        name: Child.start(receiver.command, folder / name / "log", environment, running)
        for name, receiver in receivers.items()
    }
    for name, child in children.items():
        child.when_ready(receivers[name].ready, deadline)
        show(
            f"  {name:14}{receivers[name].program}, AE title {receivers[name].ae_title}, port {receivers[name].port}"
        )


@dataclass(frozen=True, slots=True)
class Product:
    """The product, running.

    Attributes:
        up: Its process.
        url: The Results Service's.
        client: Speaks to it.
        payloads: Folder of the payloads.
        environment: For programs that are to find it; no setting of the person's own is in it.
    """

    up: Child
    url: str
    client: ResultsClient
    payloads: Path
    environment: dict[str, str]


def start_product(
    folder: Path, receivers: dict[str, Receiver], running: ExitStack, deadline: Deadline
) -> Product:
    """Start the service and its agents, and make the receivers its destinations.

    Args:
        folder: Where its data and its log go.
        receivers: By the destinations' names.
        running: Gets what has to be ended.
        deadline: By when it must be ready.

    Raises:
        DemoFailed: It did not start, or refused a destination.
    """
    data, port = folder / "data", free_port()
    own = {key: value for key, value in os.environ.items() if not key.startswith("CLARA_RESULTS")}
    environment = own | {
        "CLARA_RESULTSSERVICE_SERVICE_HOST": "127.0.0.1",
        "CLARA_RESULTSSERVICE_SERVICE_PORT": str(port),
        "CLARA_RESULTS_PAYLOADS": str(data / "payloads"),
    }
    command = [str(CLARA_RESULTS), "up", "--data", str(data), "--port", str(port)]
    up = Child.start(command, folder / "up.log", environment, running)
    url = f"http://127.0.0.1:{port}"
    product = Product(up, url, ResultsClient(url), data / "payloads", environment)
    up.when_ready(lambda: _answers(product.client), deadline)
    with up.last_words():
        for name, receiver in receivers.items():
            command = [str(CLARA_RESULTS), "destinations", "add", name]
            command += ["--ae-title", receiver.ae_title, "--host", "127.0.0.1"]
            command += ["--port", str(receiver.port)]
            command += ["--max-associations", str(receiver.associations)]
            run(command, environment, silent=True)
    return product


def sop_instance_uids(files: Iterable[Path]) -> set[str]:
    """Return the SOP Instance UIDs of DICOM files."""
    return {
        str(dcmread(path, specific_tags=["SOPInstanceUID"], stop_before_pixels=True).SOPInstanceUID)
        for path in files
    }


def look(
    client: ResultsClient, job: str, receivers: dict[str, Receiver], wanted: set[str]
) -> list[Row]:
    """Ask the service for a job's tasks, and each receiver for which of the wanted instances it holds."""
    tasks = {task.parameters: task for task in client.job(job).tasks}
    return [
        _row(name, receiver, tasks[f'"{name}"'], wanted) for name, receiver in receivers.items()
    ]


def _row(name: str, receiver: Receiver, task: Task, wanted: set[str]) -> Row:
    return Row(
        destination=name,
        program=receiver.program,
        state=task.state,
        delivered=task.counts.delivered,
        held=len(receiver.instances() & wanted),
        error=task.last_error.message if task.last_error else "",
    )


def table(rows: list[Row], wanted: int) -> Table:
    """Return the rows as a table for a terminal."""
    made = Table("destination", "receiver", "task", "delivered", "receiver holds", "last error")
    for row in rows:
        made.add_row(
            row.destination,
            row.program,
            row.state.value,
            f"{row.delivered} of {wanted}",
            str(row.held),
            row.error,
        )
    return made


@contextlib.contextmanager
def view(wanted: int) -> Iterator["View"]:
    """Open what shows the rows: a live table on a terminal, else a line for each change."""
    console = Console()
    if console.is_terminal:
        with Live(console=console, auto_refresh=False) as live:
            yield View(live, wanted)
    else:
        yield View(None, wanted)


class View:
    """Shows rows as they change."""

    def __init__(self, live: Live | None, wanted: int) -> None:
        self._live = live
        self._wanted = wanted
        self._shown: list[Row] = []

    def update(self, rows: list[Row]) -> None:
        """Show the present rows."""
        if self._live is not None:
            self._live.update(table(rows, self._wanted), refresh=True)
            return
        for row in rows:
            if row not in self._shown:
                error = f" ({row.error})" if row.error else ""
                show(
                    f"  {row.destination:14}{row.state.value:12}{row.delivered:3} of {self._wanted} delivered, "
                    f"receiver holds {row.held}{error}"
                )
        self._shown = rows


def watch(
    product: Product,
    job: str,
    receivers: dict[str, Receiver],
    wanted: set[str],
    deadline: Deadline,
) -> None:
    """Show tasks and receivers until every receiver holds everything.

    Args:
        product: The product.
        job: Whose tasks.
        receivers: By the destinations' names.
        wanted: SOP Instance UIDs that each receiver is to hold.
        deadline: By when.

    Raises:
        DemoFailed: A task came to a bad end, the product ended, or time is up.
    """
    with view(len(wanted)) as shown:
        while True:
            product.up.check()
            rows = look(product.client, job, receivers, wanted)
            shown.update(rows)
            ended = [row for row in rows if row.state in {State.FAILED, State.CANCELED}]
            if ended:
                raise DemoFailed(
                    "\n".join(f"{row.destination} {row.state.value}: {row.error}" for row in ended)
                )
            if all(row.state is State.SUCCEEDED for row in rows):
                break
            deadline.pause(LOOK, "all tasks Succeeded")
    missing = [
        f"{row.destination} holds {row.held} of {len(wanted)}"
        for row in rows
        if row.held != len(wanted)
    ]
    if missing:
        raise DemoFailed("Succeeded, but " + "; ".join(missing))


def demo(deadline: Deadline, running: ExitStack) -> None:
    """Run the demo.

    Args:
        deadline: By when it must be done.
        running: Gets all that has to be ended and removed afterwards.

    Raises:
        DemoFailed: Something did not go as it must.
    """
    began = time.monotonic()
    folder = Path(running.enter_context(tempfile.TemporaryDirectory(prefix="clara-results-demo-")))
    results = folder / "data" / "payloads" / PAYLOAD / "dicom-writer"
    study = make_study(results)
    wanted = sop_instance_uids(study.files)
    show(f"made a CT series of {len(wanted) - 1} slices and a segmentation")

    show("starting the receivers")
    receivers = choose_receivers(folder, study.study_instance_uid)
    start_receivers(receivers, folder, running, deadline)

    show("starting the Results Service and the DICOM agent")
    product = start_product(folder, receivers, running, deadline)
    with product.up.last_words():
        data = json.dumps(list(receivers), separators=(",", ":"))
        step = {
            "NVIDIA_CLARA_JOBID": JOB,
            "NVIDIA_CLARA_PIPELINEID": PIPELINE,
            "NVIDIA_CLARA_PAYLOADID": PAYLOAD,
            "NVIDIA_CLARA_OPERATORNAME": "register-dicom-output",
            "NVIDIA_CLARA_INPUTPATHS": f"dicom:{results}",
        }
        run(
            [sys.executable, "register.py", "--agent", "ClaraSCU", "--data", data],
            product.environment | step,
        )
        watch(product, JOB, receivers, wanted, deadline)
    seconds = time.monotonic() - began
    show(f"Every receiver holds all {len(wanted)} instances, by its own account ({seconds:.1f} s).")


def _answers(client: ResultsClient) -> bool:
    try:
        client.ready()
    except ServiceUnavailable:
        return False
    return True


def _interrupt(_signum: int, _frame: FrameType | None) -> None:
    """End the demo as Ctrl-C does, and let nothing disturb it while it cleans up."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def main(
    description: str, demo: Callable[[Deadline, ExitStack], None], timeout: float = 120.0
) -> int:
    """Run a demo, clean up whatever comes, and return the exit code.

    Args:
        description: What ``--help`` says of it.
        demo: Runs it.
        timeout: Seconds that it may take, unless the command line says otherwise.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--timeout", type=float, default=timeout, help="seconds it may take (%(default)s)"
    )
    deadline = Deadline(parser.parse_args().timeout)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        with ExitStack() as running:
            demo(deadline, running)
    except (DemoFailed, ClaraResultsError) as failure:
        print(f"The demo failed: {failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("The demo was interrupted.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main("Deliver results to three receivers, and watch.", demo))
