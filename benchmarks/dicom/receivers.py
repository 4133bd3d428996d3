"""The receivers: each a process of its own, its data in a folder of the run."""

import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import urllib3

from benchmarks.queue.errors import BenchmarkFailed
from benchmarks.queue.servers import Process, program
from tools.ports import free_port, listens

PDU = 131_072
KINDS = ("orthanc", "storescp", "orthanc-shipped", "storescp-shipped", "sink")
NAMES = {
    "orthanc": "Orthanc, tuned",
    "storescp": "storescp, tuned",
    "orthanc-shipped": "Orthanc as shipped",
    "storescp-shipped": "storescp as shipped",
    "sink": "a sink that only answers",
}


@dataclass(frozen=True, slots=True)
class Receiver:
    """A receiver that runs.

    Attributes:
        kind: One of KINDS.
        port: Where it takes associations.
        http: Orthanc's REST API; None for the others.
    """

    kind: str
    port: int
    http: str | None = None

    @property
    def tuned(self) -> bool:
        """Tell whether it, and DCMTK's senders with it, have TCP_NODELAY and large PDUs."""
        return not self.kind.endswith("-shipped")

    def check(self, count: int) -> None:
        """Check that it holds as many instances as were sent, where it can tell, and have it forget them.

        Raises:
            BenchmarkFailed: It does not.
        """
        if self.http is None:
            return
        http = urllib3.PoolManager(retries=False, timeout=60)
        holds = http.request("GET", f"{self.http}/statistics").json()["CountInstances"]
        if holds != count:
            raise BenchmarkFailed(f"Orthanc holds {holds} instances, {count} were sent")
        for patient in http.request("GET", f"{self.http}/patients").json():
            http.request("DELETE", f"{self.http}/patients/{patient}")


def start(kind: str, folder: Path, running: ExitStack, plugins: Sequence[str] = ()) -> Receiver:
    """Start a receiver of a kind, for as long as ``running`` is; Orthanc with these plugins, by their paths."""
    folder.mkdir(parents=True)
    tuned, port = not kind.endswith("-shipped"), free_port()
    if kind.startswith("orthanc"):
        return _orthanc(kind, port, folder, running, plugins)
    environment: dict[str, str] = {}
    if kind == "sink":
        command = [sys.executable, str(Path(__file__).with_name("sink.py")), str(port)]
    else:
        # A process for each association: without --fork it takes one at a time.
        command = [program("storescp"), "--ignore", "--fork", str(port)]
        if tuned:
            command[1:1] = ["--max-pdu", str(PDU)]
            environment = {"TCP_NODELAY": "1"}
    _run(command, folder, running, port, environment)
    return Receiver(kind, port)


def _orthanc(
    kind: str, port: int, folder: Path, running: ExitStack, plugins: Sequence[str]
) -> Receiver:
    http_port = free_port()
    settings = {
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "HttpPort": http_port,
        "DicomPort": port,
        "DicomCheckCalledAet": False,
        "DicomAlwaysAllowStore": True,
        "UnknownSopClassAccepted": True,
        "AuthenticationEnabled": False,
        "RemoteAccessAllowed": False,
        "Plugins": list(plugins),
    }
    environment = {}
    if not kind.endswith("-shipped"):
        settings |= {"TcpNoDelay": True, "MaximumPduLength": PDU}
        environment = {"TCP_NODELAY": "1"}  # its DICOM server is DCMTK's
    path = folder / "orthanc.json"
    path.write_text(json.dumps(settings))
    _run([program("Orthanc"), str(path)], folder, running, port, environment)
    return Receiver(kind, port, f"http://127.0.0.1:{http_port}")


def _run(
    command: list[str], folder: Path, running: ExitStack, port: int, environment: dict[str, str]
) -> None:
    process = Process(command, folder / "receiver.log", environment)
    running.callback(process.stop)
    process.wait_until(lambda: listens(port))
