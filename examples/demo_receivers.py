"""The demo's receivers: Orthanc, DCMTK's dcmqrscp, and our own; each can be asked which instances it holds."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol, Self

import urllib3
from pydicom import Dataset, dcmread

from tools.ports import free_port, listens

PAUSE = 0.05
"""Seconds between two looks at something that is waited for."""


class DemoFailed(Exception):
    """The demo can't go on; the message says why."""


class Deadline:
    """The moment by which all must be done."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._end = time.monotonic() + seconds

    def wait_for(self, check: Callable[[], bool], what: str) -> None:
        """Wait until something is so.

        Raises:
            DemoFailed: It was not so in time.
        """
        while not check():
            self.pause(PAUSE, what)

    def pause(self, seconds: float, what: str) -> None:
        """Wait for a while.

        Raises:
            DemoFailed: Time is up; the message says ``what`` was waited for.
        """
        if time.monotonic() + seconds > self._end:
            raise DemoFailed(f"{what}: not within the demo's {self._seconds:g} s")
        time.sleep(seconds)


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold signals that end the demo back until the end of the block.

    A program that is started while one of them comes would otherwise be left behind: nobody has its process id yet.
    """
    came: list[int] = []
    handlers = {
        number: signal.signal(number, lambda number, _frame: came.append(number))
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0])


class Child:
    """A program that runs beside the demo, in a session of its own so that Ctrl-C reaches the demo alone."""

    def __init__(self, command: list[str], log: Path, environment: Mapping[str, str]) -> None:
        self._name = Path(command[0]).name
        self._log = log
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
                start_new_session=True,
            )

    @classmethod
    def start(
        cls, command: list[str], log: Path, environment: Mapping[str, str], running: ExitStack
    ) -> Self:
        """Start a program.

        Args:
            command: How.
            log: Gets its output.
            environment: All of its variables.
            running: Ends it.
        """
        with uninterrupted():
            child = cls(command, log, environment)
            running.push(child)
        return child

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End it: by request, and after 15 s by force, with all that it started in its session."""
        self._process.terminate()
        try:
            self._process.wait(15)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        with contextlib.suppress(ProcessLookupError):  # most often nothing of it is left
            os.killpg(self._process.pid, signal.SIGKILL)

    def check(self) -> None:
        """Do nothing while it runs.

        Raises:
            DemoFailed: It has ended.
        """
        if self._process.poll() is not None:
            raise DemoFailed(f"{self._name} ended with exit code {self._process.returncode}")

    def when_ready(self, ready: Callable[[], bool], deadline: Deadline) -> None:
        """Wait until it is ready.

        Raises:
            DemoFailed: It ended, or time is up; the message holds its last words.
        """

        def check() -> bool:
            self.check()
            return ready()

        with self.last_words():
            deadline.wait_for(check, f"{self._name} is ready")

    @contextlib.contextmanager
    def last_words(self) -> Iterator[None]:
        """Add what it printed last to the message of a DemoFailed."""
        try:
            yield
        except DemoFailed as failure:
            said = self._log.read_text(errors="replace")[-2000:].strip()
            raise DemoFailed(f"{failure}\n{self._name} said last:\n{said}") from failure


class Receiver(Protocol):
    """A DICOM receiver that can be run.

    Attributes:
        program: What it is, for people.
        ae_title: Its AE title.
        port: Where it takes associations on this machine.
        command: How it is started.
        associations: How many it can have at the same time without harm.
    """

    program: str
    associations: int
    ae_title: str
    port: int
    command: list[str]

    def ready(self) -> bool:
        """Tell whether it has started."""
        ...

    def instances(self) -> set[str]:
        """Return the SOP Instance UIDs that it holds, by its own account.

        Raises:
            DemoFailed: It does not answer.
        """
        ...


class Orthanc:
    """Orthanc, asked by its REST API."""

    program = "Orthanc"
    associations = 4

    def __init__(self, path: str, folder: Path, ae_title: str) -> None:
        self.ae_title = ae_title
        self.port = free_port()
        http_port = free_port()
        configuration = folder / "orthanc.json"
        self.command = [path, str(configuration)]
        self._url = f"http://127.0.0.1:{http_port}"
        self._http = urllib3.PoolManager(retries=False, timeout=5)
        settings = {
            "StorageDirectory": str(folder),
            "IndexDirectory": str(folder),
            "HttpPort": http_port,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
            "DicomAet": ae_title,
            "DicomPort": self.port,
            "DicomAlwaysAllowEcho": True,
            "DicomAlwaysAllowStore": True,
            "Plugins": [],
        }
        configuration.write_text(json.dumps(settings))

    def ready(self) -> bool:
        """Tell whether it answers on both its ports."""
        try:
            answer = self._http.request("GET", f"{self._url}/system")
        except urllib3.exceptions.HTTPError:
            return False
        return answer.status == 200 and listens(self.port)

    def instances(self) -> set[str]:
        """Return the SOP Instance UIDs that it holds."""
        try:
            answer = self._http.request("GET", f"{self._url}/instances?expand")
        except urllib3.exceptions.HTTPError as error:
            raise DemoFailed(f"Orthanc does not answer: {error}") from error
        return {each["MainDicomTags"]["SOPInstanceUID"] for each in answer.json()}


class Dcmqrscp:
    """DCMTK's image archive, asked by C-FIND for the instances of one study."""

    program = "DCMTK dcmqrscp"
    associations = 1  # over two it loses instances: measured with 3.6.7, some 5 of 200 a run

    def __init__(self, path: str, folder: Path, ae_title: str, study_instance_uid: str) -> None:
        self.ae_title = ae_title
        self.port = free_port()
        self._study = f"StudyInstanceUID={study_instance_uid}"
        archive = folder / "archive"
        archive.mkdir()
        configuration = folder / "dcmqrscp.cfg"
        self.command = [path, "--config", str(configuration)]
        # pynetdicom brings a findscu of its own; DCMTK's lies beside dcmqrscp.
        self._findscu = Path(path).with_name("findscu")
        configuration.write_text(
            f"NetworkTCPPort = {self.port}\n"
            "MaxPDUSize = 131072\n"
            "MaxAssociations = 16\n"
            "HostTable BEGIN\nHostTable END\n"
            "VendorTable BEGIN\nVendorTable END\n"
            f"AETable BEGIN\n{ae_title} {archive} RW (10, 1024mb) ANY\nAETable END\n"
        )

    def ready(self) -> bool:
        """Tell whether it listens."""
        return listens(self.port)

    def instances(self) -> set[str]:
        """Return the SOP Instance UIDs of the study's instances that it holds."""
        return {
            str(instance.SOPInstanceUID)
            for series in self._find("SERIES", "SeriesInstanceUID")
            for instance in self._find(
                "IMAGE", f"SeriesInstanceUID={series.SeriesInstanceUID}", "SOPInstanceUID"
            )
        }

    def _find(self, level: str, *keys: str) -> list[Dataset]:
        """Return the answers to a C-FIND in the study."""
        with tempfile.TemporaryDirectory() as answers:
            command = [str(self._findscu), "--study", "--call", self.ae_title]
            for key in (f"QueryRetrieveLevel={level}", self._study, *keys):
                command += ["--key", key]
            command += ["--extract", "--output-directory", answers, "127.0.0.1", str(self.port)]
            try:
                subprocess.run(command, check=True, timeout=20)
            except subprocess.SubprocessError as error:
                raise DemoFailed(f"dcmqrscp does not answer: {error}") from error
            return [dcmread(path, force=True) for path in Path(answers).iterdir()]


class OwnReceiver:
    """The receiver of ``examples.receiver``; what its folder holds is what it holds."""

    program = "our own receiver"
    associations = 2

    def __init__(self, folder: Path, ae_title: str) -> None:
        self.ae_title = ae_title
        self.port = free_port()
        self._instances = folder / "instances"
        self.command = [sys.executable, "-m", "examples.receiver", "--ae-title", ae_title]
        self.command += ["--port", str(self.port), "--folder", str(self._instances)]

    def ready(self) -> bool:
        """Tell whether it listens."""
        return listens(self.port)

    def instances(self) -> set[str]:
        """Return the SOP Instance UIDs that it holds: its files' names."""
        return {path.stem for path in self._instances.glob("*.dcm")}
