"""Fixtures for all tests: free ports, real receivers, small valid DICOM instances.

``require_tool``
    ``require_tool("storescp")`` gives the tool's path. Where it is not installed the test is skipped and says so;
    with ``CLARA_RESULTS_REQUIRE_TOOLS=1`` in the environment it fails instead.
``free_port``
    ``free_port()`` gives a TCP port that was free a moment ago.
``orthanc``
    A running Orthanc of the test's own: an ``Orthanc``.
``storescp``
    ``storescp()`` starts a DCMTK storescp of the test's own and gives a ``StoreScp``; arguments are passed on to it.
``service``
    ``service(retry_delay=0.1)`` starts a Results Service of the test's own with these settings and gives a ``Service``.
``agent``
    ``agent(service, lease=2)`` starts a DICOM agent with these settings and gives its ``ServerProcess``; a
    DICOMweb agent with ``kind="dicomweb"``.
``database_url``
    URL of an empty database of the test's own; a test that takes it runs on SQLite and on PostgreSQL.
``own_postgres``
    A running PostgreSQL of the test's own, which it may kill, freeze and start again: a ``PostgresServer``.
``write_ct``
    ``write_ct(path, number=3)`` writes one small valid CT instance: see ``CtWriter``.

For annotations import the classes from ``tests.conftest`` below ``if TYPE_CHECKING:``.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import psycopg
import pytest
import urllib3
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, generate_uid

from clara_results.client import ResultsClient
from clara_results.errors import ServiceUnavailable
from clara_results.settings import variable
from tools import ports

_PLACES = ["/usr/sbin", "/usr/local/sbin", *map(str, Path("/usr/lib/postgresql").glob("*/bin"))]
"""Where servers lie that are not on everyone's PATH."""
START_LIMIT = 60.0
"""Seconds that a server may take to start on a busy machine."""


def eventually(
    check: Callable[[], bool], what: str, timeout: float = 10.0, every: float = 0.01
) -> None:
    """Wait until ``check`` is true; it is looked at ``every`` so many seconds.

    Raises:
        AssertionError: It was not within ``timeout`` seconds; the message says ``what`` was waited for.
    """
    deadline = time.monotonic() + timeout
    while not check():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {timeout} s")
        time.sleep(every)


@pytest.fixture(scope="session")
def free_port() -> Callable[[], int]:
    """Give a function that finds a free TCP port."""
    return ports.free_port


@pytest.fixture(scope="session")
def require_tool() -> Callable[[str], str]:
    """Give a function that finds a program's path, or skips the test (fails it, if tools are required)."""

    def find(name: str) -> str:
        path = shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), *_PLACES]))
        if path is None:
            message = f"{name} is not installed"
            if os.environ.get("CLARA_RESULTS_REQUIRE_TOOLS") == "1":
                pytest.fail(message)
            pytest.skip(message)
        return path

    return find


class ServerProcess:
    """A server that runs in a process of its own; its output goes to a file for the message when it fails."""

    def __init__(self, command: list[str], log: Path, environment: dict[str, str] | None = None):
        self._command = command
        self._log = log
        self._environment = dict(os.environ) | (environment or {})
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Return the running process' id."""
        assert self._process is not None, "the server is not running"
        return self._process.pid

    def start(self, ready: Callable[[], bool]) -> None:
        """Start the server and wait until it is ready.

        Raises:
            AssertionError: It ended, or was not ready in time; the message holds its last words.
        """
        assert self._process is None, "the server runs already"
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdout=log, stderr=log, env=self._environment
            )
        deadline = time.monotonic() + START_LIMIT
        while not ready():
            ended = self._process.poll() is not None
            if ended or time.monotonic() > deadline:
                self.stop()
                said = self._log.read_text(errors="replace")[-2000:]
                raise AssertionError(f"{self._command[0]} did not start; it said:\n{said}")
            time.sleep(0.02)

    def stop(self) -> None:
        """Ask the server to end if it runs, and wait for its end."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self.kill()
        self._process = None

    def kill(self) -> None:
        """End the server at once if it runs."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None


class Orthanc:
    """A running Orthanc server.

    Args:
        program: Its path.
        folder: Where all that is its own lies.
        launcher: What runs it: a command that its own is appended to.
        **settings: More of its configuration, such as ``DicomTlsEnabled=True``.

    Attributes:
        ae_title: Its AE title; it takes any called AE title all the same.
        dicom_port: Where it takes associations.
        http_url: Where its REST API is.
    """

    ae_title = "ORTHANC"

    def __init__(
        self, program: str, folder: Path, launcher: Sequence[str] = (), **settings: Any
    ) -> None:
        self._command = [*launcher, program]
        self._folder = folder
        self._settings = settings
        self._http = urllib3.PoolManager(retries=False, timeout=20)
        self._server: ServerProcess | None = None
        self.dicom_port = ports.free_port()
        self.http_port = ports.free_port()
        self.http_url = f"http://127.0.0.1:{self.http_port}"

    def _configure(self) -> Path:
        path = self._folder / "orthanc.json"
        storage = str(self._folder / "storage")
        settings = {
            "Name": "test",
            "StorageDirectory": storage,
            "IndexDirectory": storage,
            "HttpPort": self.http_port,
            "DicomPort": self.dicom_port,
            "DicomAet": self.ae_title,
            "DicomCheckCalledAet": False,
            "DicomAlwaysAllowEcho": True,
            "DicomAlwaysAllowStore": True,
            "UnknownSopClassAccepted": True,
            "AuthenticationEnabled": False,
            "RemoteAccessAllowed": False,
            "SynchronousCMove": True,
            "Plugins": [],
            **self._settings,
        }
        path.write_text(json.dumps(settings))
        return path

    def start(self) -> None:
        """Start it, with the same ports and storage as before."""
        self._server = ServerProcess(
            [*self._command, str(self._configure())], self._folder / "orthanc.log"
        )
        self._server.start(self._is_up)

    def stop(self) -> None:
        """End it; its storage stays."""
        if self._server is not None:
            self._server.stop()
        self._http.clear()

    def kill(self) -> None:
        """End it at once."""
        if self._server is not None:
            self._server.kill()
        self._http.clear()

    @property
    def pid(self) -> int:
        """Return the running process' id."""
        assert self._server is not None, "the server is not running"
        return self._server.pid

    def _is_up(self) -> bool:
        try:
            answer = self._http.request("GET", f"{self.http_url}/system")
        except urllib3.exceptions.HTTPError:
            return False
        return answer.status in {200, 401} and ports.listens(self.dicom_port)

    def get(self, path: str) -> Any:
        """Return the JSON answer to a GET of its REST API, such as ``/statistics``."""
        answer = self._http.request("GET", self.http_url + path)
        assert answer.status == 200, f"GET {path}: {answer.status}"
        return answer.json()

    def count(self) -> int:
        """Return how many instances it holds."""
        return int(self.get("/statistics")["CountInstances"])

    def sop_instance_uids(self) -> set[str]:
        """Return the SOP Instance UIDs of all that it holds."""
        return {item["MainDicomTags"]["SOPInstanceUID"] for item in self.get("/instances?expand")}

    def log(self) -> str:
        """Return all that it has printed."""
        return (self._folder / "orthanc.log").read_text(errors="replace")

    def dicom_file(self, sop_instance_uid: str) -> bytes:
        """Return the Part 10 file that it holds of an instance."""
        answer = self._http.request(
            "POST", f"{self.http_url}/tools/lookup", body=sop_instance_uid.encode()
        )
        found = [item["ID"] for item in answer.json() if item["Type"] == "Instance"]
        assert len(found) == 1, f"Orthanc holds {len(found)} instances {sop_instance_uid}"
        return self._http.request("GET", f"{self.http_url}/instances/{found[0]}/file").data


@pytest.fixture
def orthanc(require_tool: Callable[[str], str], tmp_path: Path) -> Iterator[Orthanc]:
    """Run an Orthanc for one test."""
    folder = tmp_path / "orthanc"
    folder.mkdir()
    server = Orthanc(require_tool("Orthanc"), folder)
    try:
        server.start()
        yield server
    finally:
        server.kill()  # it takes seconds to end by itself


class StoreScp:
    """A running DCMTK storescp, as it is shipped: uncompressed transfer syntaxes only, Nagle on.

    Attributes:
        port: Where it takes associations, under any called AE title.
        folder: Where it writes what it took.
    """

    def __init__(
        self, program: str, folder: Path, arguments: tuple[str, ...], environment: dict[str, str]
    ) -> None:
        self.port = ports.free_port()
        self.folder = folder / "stored"
        self.folder.mkdir(parents=True)
        self._server = ServerProcess(
            [program, *arguments, "--output-directory", str(self.folder), str(self.port)],
            folder / "storescp.log",
            environment,
        )

    def start(self) -> None:
        """Start it, on the same port as before."""
        self._server.start(lambda: ports.listens(self.port))

    def stop(self) -> None:
        """End it; what it wrote stays."""
        self._server.stop()

    def files(self) -> list[Path]:
        """Return the files that it wrote."""
        return sorted(path for path in self.folder.rglob("*") if path.is_file())

    def sop_instance_uids(self) -> set[str]:
        """Return the SOP Instance UIDs of all that it wrote."""
        return {
            str(dcmread(path, specific_tags=["SOPInstanceUID"]).SOPInstanceUID)
            for path in self.files()
        }


class StoreScpStarter(Protocol):
    """``storescp("--ignore", environment={"TCP_NODELAY": "1"})`` starts one with these arguments."""

    def __call__(self, *arguments: str, environment: dict[str, str] | None = None) -> StoreScp: ...


@pytest.fixture
def storescp(require_tool: Callable[[str], str], tmp_path: Path) -> Iterator[StoreScpStarter]:
    """Give a function that starts a storescp for the time of the test."""
    program = require_tool("storescp")
    with ExitStack() as running:
        count = 0

        def start(*arguments: str, environment: dict[str, str] | None = None) -> StoreScp:
            nonlocal count
            count += 1
            folder = tmp_path / f"storescp-{count}"
            server = StoreScp(program, folder, arguments, environment or {})
            server.start()
            running.callback(server.stop)
            return server

        yield start


class Service:
    """A Results Service in a process of its own.

    Attributes:
        url: Where it answers.
        data: Its data folder; ``payloads`` lies in it.
        client: A client of it.
    """

    def __init__(self, data: Path, settings: dict[str, Any]) -> None:
        self.data = data
        self.data.mkdir()
        self.payloads = data / "payloads"
        port = ports.free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.client = ResultsClient(self.url)
        self._log = data / "service.log"
        self._server = ServerProcess(
            [*_PROGRAM, "serve"],
            self._log,
            _variables({"data": data, "port": port, **settings}),
        )

    def start(self) -> None:
        """Start it, on the same port and data as before."""
        self._server.start(self._is_ready)

    def stop(self) -> None:
        """Ask it to end, and wait for that."""
        self._server.stop()

    def kill(self) -> None:
        """End it at once (SIGKILL)."""
        self._server.kill()

    @property
    def pid(self) -> int:
        """Return the running process' id."""
        return self._server.pid

    def log(self) -> str:
        """Return all that it has printed."""
        return self._log.read_text()

    def _is_ready(self) -> bool:
        try:
            self.client.ready()
        except ServiceUnavailable:
            return False
        return True


class ServiceStarter(Protocol):
    """Starts a Results Service; settings are those of ``clara_results.settings``."""

    def __call__(self, **settings: Any) -> Service: ...


_PROGRAM = [sys.executable, "-m", "clara_results"]


def _variables(settings: dict[str, Any]) -> dict[str, str]:
    return {variable(name): str(value) for name, value in settings.items()}


@pytest.fixture
def service(tmp_path: Path) -> Iterator[ServiceStarter]:
    """Give a function that starts a Results Service for the time of the test."""
    with ExitStack() as running:
        count = 0

        def start(**settings: Any) -> Service:
            nonlocal count
            count += 1
            made = Service(tmp_path / f"service-{count}", settings)
            made.start()
            running.callback(made.kill)
            return made

        yield start


def start_agent(service: Service, log: Path, kind: str, **settings: Any) -> ServerProcess:
    """Start an agent for a service, which its caller ends; ``log`` gets what it prints."""
    made = ServerProcess(
        [*_PROGRAM, "agent", kind],
        log,
        _variables({"service": service.url, "payloads": service.payloads, **settings}),
    )
    made.start(lambda: True)
    return made


class AgentStarter(Protocol):
    """Starts an agent for a service, of a kind: ``dicom`` or ``dicomweb``; it claims as soon as it is up."""

    def __call__(self, service: Service, kind: str = "dicom", **settings: Any) -> ServerProcess: ...


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[AgentStarter]:
    """Give a function that starts an agent for the time of the test."""
    with ExitStack() as running:
        count = 0

        def start(service: Service, kind: str = "dicom", **settings: Any) -> ServerProcess:
            nonlocal count
            count += 1
            made = start_agent(service, tmp_path / f"agent-{count}.log", kind, **settings)
            running.callback(made.kill)
            return made

        yield start


class PostgresServer:
    """A PostgreSQL server of the tests' own, made of the system's programs.

    Attributes:
        url: Its first database.
    """

    def __init__(self, require_tool: Callable[[str], str], folder: Path) -> None:
        """Make a server's data in a folder that other users may look into; ``start`` runs it."""
        # It refuses to run as root.
        unprivileged = ["setpriv", "--reuid=nobody", "--clear-groups"] if os.getuid() == 0 else []
        if unprivileged:
            shutil.chown(folder, "nobody")
        data = folder / "data"
        subprocess.run(
            [*unprivileged, require_tool("initdb"), "-D", str(data), "-U", "postgres", "-A", "trust",
             "-E", "UTF8", "--locale=C.UTF-8", "--no-sync"],
            check=True, capture_output=True, cwd="/",
        )  # fmt: skip
        port = ports.free_port()
        self.url = f"postgresql://postgres@127.0.0.1:{port}/postgres"
        self._server = ServerProcess(
            [*unprivileged, require_tool("postgres"), "-D", str(data), "-p", str(port), "-k", str(folder),
             "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off", "-c", "max_connections=200"],
            folder.parent / "postgres.log",
        )  # fmt: skip

    def start(self) -> None:
        """Run it, on the same port and data as before."""
        self._server.start(self._is_up)

    def kill(self) -> None:
        """End all its processes at once (SIGKILL); its data stay."""
        try:
            processes = self._processes()
        except AssertionError:
            return  # it does not run
        self._signal(processes, signal.SIGKILL)
        self._server.kill()
        eventually(lambda: not any(Path(f"/proc/{each}").exists() for each in processes), "its end")

    def freeze(self) -> None:
        """Have all its processes stand still (SIGSTOP): connections stay, and get no answer."""
        self._signal([self._server.pid], signal.SIGSTOP)  # so that it makes no more of them
        self._signal(self._processes(), signal.SIGSTOP)

    def thaw(self) -> None:
        """Have them go on."""
        self._signal(self._processes(), signal.SIGCONT)

    def _processes(self) -> list[int]:
        main = self._server.pid
        parents = {}
        for status in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                parents[int(status.parent.name)] = int(
                    status.read_text().rpartition(")")[2].split()[1]
                )
        return [main, *(process for process, parent in parents.items() if parent == main)]

    def _signal(self, processes: list[int], number: int) -> None:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, number)

    def _is_up(self) -> bool:
        try:
            psycopg.connect(self.url, connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True


class Postgres:
    """A PostgreSQL server that tests share, each with databases of its own."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._count = 0

    def new_database(self) -> str:
        """Make an empty database and return its URL."""
        self._count += 1
        name = f"test_{os.getpid()}_{self._count}"
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return self.url.rpartition("/")[0] + "/" + name


@pytest.fixture(scope="session")
def postgres_folder() -> Iterator[Path]:
    """Give a folder that PostgreSQL, which does not run as root, may look into."""
    # Not below pytest's own folder: every session that starts takes that away from other users again.
    with tempfile.TemporaryDirectory(prefix="clara-results-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


@pytest.fixture(scope="session")
def postgres(require_tool: Callable[[str], str], postgres_folder: Path) -> Iterator[Postgres]:
    """Run a PostgreSQL server for this process's tests, or take the one that ``DATABASE_URL`` names."""
    given = os.environ.get("DATABASE_URL")
    if given is not None:
        yield Postgres(given)
        return
    folder = postgres_folder / "server"
    folder.mkdir()
    server = PostgresServer(require_tool, folder)
    server.start()
    yield Postgres(server.url)
    server.kill()


@pytest.fixture
def own_postgres(
    require_tool: Callable[[str], str], postgres_folder: Path
) -> Iterator[PostgresServer]:
    """Run a PostgreSQL server for one test, which may do anything to it."""
    folder = Path(tempfile.mkdtemp(dir=postgres_folder))
    folder.chmod(0o755)
    inner = folder / "server"
    inner.mkdir()
    server = PostgresServer(require_tool, inner)
    server.start()
    yield server
    server.kill()


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Give the URL of an empty database; the test runs once on each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'database' / 'test.db'}"
    server: Postgres = request.getfixturevalue("postgres")
    return server.new_database()


class CtWriter(Protocol):
    """Writes one small valid CT instance as a Part 10 file and returns its data set.

    Instances of one writer (one test) are of one study, series and patient unless told otherwise.

    Args:
        path: Where to; missing folders are made.
        number: Instance Number; position and content follow from it.
        size: Rows and columns.
        transfer_syntax: An uncompressed one.
        **changes: Elements to set (or, with None, to leave out), by keyword: ``PatientID="P2"``.
    """

    def __call__(
        self,
        path: Path,
        *,
        number: int = 1,
        size: int = 16,
        transfer_syntax: str = ExplicitVRLittleEndian,
        **changes: Any,
    ) -> Dataset: ...


@pytest.fixture
def write_ct() -> CtWriter:
    """Give a function that writes CT instances of one series."""
    study, series, frame = generate_uid(), generate_uid(), generate_uid()

    def write(
        path: Path,
        *,
        number: int = 1,
        size: int = 16,
        transfer_syntax: str = ExplicitVRLittleEndian,
        **changes: Any,
    ) -> Dataset:
        image = ct_instance(study, series, frame, number, size)
        for keyword, value in changes.items():
            if value is None:
                delattr(image, keyword)
            else:
                setattr(image, keyword, value)
        image.file_meta = FileMetaDataset()
        image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID
        image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
        image.file_meta.TransferSyntaxUID = UID(transfer_syntax)
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save_as(path, enforce_file_format=True)
        return image

    return write


_CT = {
    "SpecificCharacterSet": "ISO_IR 192",
    "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
    "SOPClassUID": CTImageStorage,
    "StudyDate": "20260102",
    "StudyTime": "030405",
    "AccessionNumber": "",
    "Modality": "CT",
    "Manufacturer": "Phantoms",
    "ReferringPhysicianName": "",
    "PatientName": "Phantom^One",
    "PatientID": "PHANTOM-1",
    "PatientBirthDate": "",
    "PatientSex": "O",
    "KVP": "120",
    "PatientPosition": "HFS",
    "StudyID": "1",
    "SeriesNumber": 1,
    "AcquisitionNumber": 1,
    "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
    "PositionReferenceIndicator": "",
    "SliceThickness": 5,
    "SamplesPerPixel": 1,
    "PhotometricInterpretation": "MONOCHROME2",
    "PixelSpacing": [1, 1],
    "BitsAllocated": 16,
    "BitsStored": 16,
    "HighBit": 15,
    "PixelRepresentation": 1,
    "RescaleIntercept": 0,
    "RescaleSlope": 1,
}


def ct_instance(study: str, series: str, frame: str, number: int, size: int) -> Dataset:
    """Return a CT slice with all that the CT Image IOD (PS3.3 A.3) requires."""
    image = Dataset()
    for keyword, value in _CT.items():
        setattr(image, keyword, value)
    image.SOPInstanceUID = generate_uid()
    image.StudyInstanceUID = study
    image.SeriesInstanceUID = series
    image.FrameOfReferenceUID = frame
    image.InstanceNumber = number
    image.ImagePositionPatient = [0, 0, 5 * number]
    image.Rows = size
    image.Columns = size
    image.PixelData = number.to_bytes(2, "little") * (size * size)
    return image
