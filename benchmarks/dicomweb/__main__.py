"""Measure how fast results reach a DICOMweb service, beside dicomweb-client and beside our own C-STORE, in one run.

It makes files, starts Orthanc with its DICOMweb plugin, has everyone send the same files, one sender after the other,
round after round, and prints medians. It ends all that it started.
"""

import argparse
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from benchmarks.dicom import files, receivers
from benchmarks.dicom.__main__ import measure, tabled, versions
from benchmarks.dicom.files import Series
from benchmarks.dicom.receivers import Receiver
from benchmarks.dicom.senders import LIMIT, OurDestination, Ours, Sender
from benchmarks.queue.conditions import conditions, report, working_folder
from benchmarks.queue.errors import BenchmarkFailed
from benchmarks.queue.servers import Process
from clara_results.agents.dicomweb.connection import WebSettings
from clara_results.wire.destinations import Destination

COUNTS = {"CT": 300, "SR": 1000}
CONNECTIONS = (1, 4)
PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
AGENT = "DICOMweb"
PEER = "dicomweb-client, 10 a request"


def web_url(receiver: Receiver) -> str:
    """Return the DICOMweb service of an Orthanc."""
    return f"{receiver.http}/dicom-web"


class OurWebDestination:
    """Our service and DICOMweb agent with a destination of so many connections."""

    def __init__(self, ours: Ours, receiver: Receiver, connections: int) -> None:
        """Set the destination up."""
        self.name = f"clara-results STOW-RS, {connections}"
        self._ours = ours
        self._destination = f"web-{connections}"
        ours.client.add_destination(
            Destination(
                name=self._destination,
                kind="dicomweb",
                url=web_url(receiver),
                max_associations=connections,
            )
        )

    def send(self, series: Series, receiver: Receiver) -> float:  # noqa: ARG002  (its destination is that receiver)
        """Have a task with the series delivered."""
        return self._ours.deliver(series, self._destination, AGENT)


class OurStore(OurDestination):
    """The same by C-STORE."""

    def __init__(self, ours: Ours, receiver: Receiver, associations: int) -> None:
        """Set the destination up."""
        super().__init__(ours, receiver, associations)
        self.name = f"clara-results C-STORE, {associations}"


class Client:
    """dicomweb-client over one connection; its time is without the start of its process."""

    def __init__(self, name: str, batch_files: int, batch_bytes: int) -> None:
        """Take how large its requests are at most."""
        self.name = name
        self._limits = [str(batch_files), str(batch_bytes)]

    def send(self, series: Series, receiver: Receiver) -> float:
        """Run it."""
        script = Path(__file__).with_name("client.py")
        command = [
            sys.executable,
            str(script),
            web_url(receiver),
            str(series.folder),
            *self._limits,
        ]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=False)
        if ended.returncode != 0:
            raise BenchmarkFailed(f"dicomweb-client failed: {ended.stderr[-500:]}")
        return float(ended.stdout)


def start_agent(ours: Ours, folder: Path, running: ExitStack) -> None:
    """Start the DICOMweb agent beside the other one."""
    values = {"SERVICE": ours.client.url, "PAYLOADS": str(ours.payloads), "LOG_LEVEL": "warning"}
    agent = Process(
        [sys.executable, "-m", "clara_results", "agent", "dicomweb"],
        folder / "web-agent.log",
        {f"CLARA_RESULTS_{name}": value for name, value in values.items()},
    )
    running.callback(agent.stop)


def run(arguments: argparse.Namespace, work: Path) -> list[str]:
    """Measure everyone; return the tables."""
    shown = []
    with ExitStack() as running:
        ours = Ours(work / "ours", running)
        start_agent(ours, work, running)
        receiver = receivers.start("orthanc", work / "orthanc", running, [str(PLUGIN)])
        ours_are = WebSettings()
        senders: list[Sender] = [
            Client(PEER, 10, sys.maxsize),
            Client("dicomweb-client, requests as ours", ours_are.batch_files, ours_are.batch_bytes),
        ]
        for number in CONNECTIONS:
            senders += [OurStore(ours, receiver, number), OurWebDestination(ours, receiver, number)]
        for kind in arguments.series:
            series = files.make(kind, COUNTS[kind], ours.payloads / kind.lower())
            found = measure(receiver, senders, series, arguments.rounds)
            shown.append(tabled(kind, len(series.paths), series.size, found, PEER))
            print(shown[-1], file=sys.stderr)
    return shown


def main() -> int:
    """Run the benchmark; return the process's exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dicomweb", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="rounds that count (default 5)")
    parser.add_argument("--series", nargs="+", choices=list(COUNTS), default=list(COUNTS), help="which files (default all)")  # fmt: skip
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="folder on the disk to measure (default the system's for temporary files)")  # fmt: skip
    arguments = parser.parse_args()
    try:
        with working_folder(arguments.folder) as folder:
            packages = ("clara-results", "urllib3", "dicomweb-client", "pydicom")
            told = conditions(folder, {"Orthanc": versions()["Orthanc"]}, packages)
            shown = run(arguments, folder)
    except BenchmarkFailed as failed:
        print(f"error: {failed}", file=sys.stderr)
        return 1
    rounds = f"{arguments.rounds}; medians (least to most)"
    report(told, rounds, shown)
    return 0


if __name__ == "__main__":
    sys.exit(main())
