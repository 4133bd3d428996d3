"""Disks that are full: of the payloads, and of the database. They are small real ones (tmpfs in a namespace)."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import urllib3

from clara_results.client import ResultsClient
from clara_results.domain.tasks import State
from clara_results.errors import ServiceUnavailable
from clara_results.payloads import FolderStore
from clara_results.settings import variable
from clara_results.wire.tasks import Registration, ResultFile, SuccessReport
from tests.conftest import ServerProcess, eventually

if TYPE_CHECKING:
    from tests.integration.conftest import LocalService

MIB = 1 << 20
SMALL = 16 * MIB
MOUNT = 'size=$0 folder=$1; shift; mount -t tmpfs -o size="$size" none "$folder" && exec "$@"'


class ServiceOnSmallDisk:
    """A Results Service, and a disk of 16 MiB that only it sees by its name.

    Attributes:
        client: A client of it.
        disk: The disk, as this process sees it.
    """

    def __init__(self, unshare: str, folder: Path, port: int, settings: dict[str, Any]) -> None:
        self._mounted = folder / "disk"
        self._mounted.mkdir()
        self._log = folder / "service.log"
        self.url = f"http://127.0.0.1:{port}"
        self.client = ResultsClient(self.url)
        self._http = urllib3.PoolManager(retries=False, timeout=20)
        given = {"data": folder / "data", "port": port} | settings
        self._server = ServerProcess(
            [unshare, "-rm", "sh", "-c", MOUNT, str(SMALL), str(self._mounted), sys.executable,
             "-m", "clara_results", "serve"],
            self._log,
            {variable(name): str(value).replace("DISK", str(self._mounted)) for name, value in given.items()},
        )  # fmt: skip

    def start(self) -> None:
        self._server.start(self._is_ready)

    def kill(self) -> None:
        self._http.clear()
        self._server.kill()

    @property
    def disk(self) -> Path:
        return Path(f"/proc/{self._server.pid}/root{self._mounted}")

    def free(self) -> int:
        disk = os.statvfs(self.disk)
        return disk.f_bavail * disk.f_frsize

    def fill(self, leave: int = 0) -> None:
        """Write a file that leaves so many bytes free."""
        with (self.disk / "filler").open("wb") as filler:
            left = self.free() - leave
            while left > 0:
                try:
                    left -= filler.write(b"x" * min(left, MIB))
                    filler.flush()
                except OSError:
                    return

    def make_room(self) -> None:
        (self.disk / "filler").unlink()

    def put(
        self, uri: str, content: bytes | Iterator[bytes], payload: str = "pay"
    ) -> urllib3.BaseHTTPResponse:
        """Upload; an iterator goes without its length said before."""
        url = f"{self.url}/api/payloads/{payload}/files/{uri}"
        return self._http.request("PUT", url, body=content, redirect=False)

    def get(self, path: str) -> urllib3.BaseHTTPResponse:
        return self._http.request("GET", self.url + path)

    def register(self, job: str, *uris: str) -> str:
        """Register files of the payload; return the task's id."""
        (task,) = self.client.register(
            Registration(
                agent="a", job_id=job, pipeline_id="pipe", payload_id="pay",
                files=[ResultFile(uri=uri) for uri in uris],
            )
        ).tasks  # fmt: skip
        return task.task_id

    def log(self) -> str:
        return self._log.read_text()

    def _is_ready(self) -> bool:
        try:
            self.client.ready()
        except ServiceUnavailable:
            return False
        return True


Starter = Callable[..., ServiceOnSmallDisk]


@pytest.fixture
def small_disk(
    require_tool: Callable[[str], str], free_port: Callable[[], int], tmp_path: Path
) -> Iterator[Starter]:
    """Give a function that starts a service with a small disk; ``DISK`` in a setting is its folder."""
    unshare = require_tool("unshare")
    tried = [unshare, "-rm", "sh", "-c", MOUNT, "1m", str(tmp_path), "true"]
    result = subprocess.run(tried, capture_output=True, text=True, timeout=20, check=False)
    if result.returncode:
        message = f"no file system can be mounted in a namespace here: {result.stderr.strip()}"
        if os.environ.get("CLARA_RESULTS_REQUIRE_TOOLS") == "1":
            pytest.fail(message)
        pytest.skip(message)
    with ExitStack() as running:

        def start(**settings: Any) -> ServiceOnSmallDisk:
            made = ServiceOnSmallDisk(unshare, tmp_path, free_port(), settings)
            made.start()
            running.callback(made.kill)
            return made

        yield start


def pieces(total: int) -> Iterator[bytes]:
    for _ in range(total // (MIB // 4)):
        yield b"p" * (MIB // 4)


def is_full(answer: urllib3.BaseHTTPResponse) -> bool:
    """Check the refusal of an upload."""
    assert answer.status == 507, answer.data
    assert int(answer.headers["Retry-After"]) > 0
    problem = answer.json()
    assert problem["code"] == "storage-full"
    return True


def aside(service: ServiceOnSmallDisk) -> list[Path]:
    return list((service.disk / ".incoming").iterdir())


def test_below_the_mark_uploads_wait_and_all_else_goes_on(small_disk: Starter) -> None:
    service = small_disk(payloads="DISK", disk_low=8 * MIB)
    assert service.put("a", b"alpha").status == 201
    task = service.register("job", "a")
    service.fill(leave=6 * MIB)

    answer = service.put("b", b"beta")
    assert is_full(answer)
    assert "8,388,608" in answer.json()["detail"]
    assert service.free() > 5 * MIB  # nothing was written

    assert service.register("other", "a")
    claimed = service.client.claim("a", size=10)
    assert task in {each.task_id for each in claimed}
    assert service.get("/api/payloads/pay/files/a").data == b"alpha"
    service.client.succeed(task, SuccessReport())
    assert service.client.task(task).state == State.SUCCEEDED
    service.client.ready()

    service.make_room()
    assert service.put("b", b"beta").status == 201


def test_an_upload_that_would_not_fit_is_refused_before_it_is_taken(small_disk: Starter) -> None:
    service = small_disk(payloads="DISK", disk_low=8 * MIB)
    before = service.free()
    assert is_full(service.put("big", b"x" * (10 * MIB)))
    assert before - service.free() < MIB
    assert service.put("small", b"x" * (4 * MIB)).status == 201


def test_an_upload_of_unknown_length_ends_at_the_mark_and_leaves_nothing(
    small_disk: Starter,
) -> None:
    service = small_disk(payloads="DISK", disk_low=8 * MIB)
    assert service.put("first", b"1").status == 201
    before = service.free()
    assert is_full(service.put("op/deep/big", pieces(12 * MIB)))
    eventually(lambda: aside(service) == [], "what was written is removed")
    assert before - service.free() < MIB
    assert not (service.disk / "pay" / "op").exists()
    assert service.put("op/deep/big", pieces(4 * MIB)).status == 201


def test_a_full_disk_in_the_middle_of_an_upload_leaves_nothing(small_disk: Starter) -> None:
    service = small_disk(payloads="DISK", disk_low=0)
    assert service.put("first", b"1").status == 201
    service.fill(leave=3 * MIB)
    before = service.free()
    assert is_full(service.put("op/deep/big", pieces(6 * MIB)))
    eventually(lambda: aside(service) == [], "what was written is removed")
    assert service.free() == before
    assert not (service.disk / "pay" / "op").exists()
    assert service.get("/api/payloads/pay/files/op/deep/big").status == 404
    service.make_room()
    assert service.put("op/deep/big", pieces(6 * MIB)).status == 201
    assert len(service.get("/api/payloads/pay/files/op/deep/big").data) == 6 * MIB


def test_a_database_on_a_full_disk_says_so_and_goes_on_when_there_is_room(
    small_disk: Starter,
) -> None:
    service = small_disk(database="sqlite:///DISK/results.db", disk_low=0)
    first = service.register("first", "a")
    service.fill()

    def refused() -> bool:
        url = f"{service.url}/api/tasks"
        body = {"agent": "a", "jobId": "j", "pipelineId": "p", "payloadId": "pay", "uris": [f"f{n}" for n in range(2000)]}  # fmt: skip
        answer = urllib3.request("POST", url, json=body, retries=False)
        if answer.status == 201:
            return False  # there was still room in the pages that the file has
        assert answer.status == 503, answer.data
        assert answer.json()["code"] == "database-full"
        assert int(answer.headers["Retry-After"]) > 0
        return True

    eventually(refused, "the database's disk is full")
    assert service.client.task(first).state == State.PENDING  # it is still read
    assert "full" in service.log()

    service.make_room()
    second = service.register("second", "a")
    states = {service.client.task(task).state for task in (first, second)}
    assert states == {State.PENDING}
    claimed = service.client.claim("a", size=100)
    assert {first, second} <= {each.task_id for each in claimed}


FULL = """
import os, sys
from pathlib import Path
from clara_results.payloads import FolderStore

root = Path(sys.argv[1])
for payload in ("some", "whole"):
    folder = root / payload / "op"
    folder.mkdir(parents=True)
    for name in "ab":
        (folder / name).write_bytes(b"x")
count = 0
try:
    while True:
        (root / f"filler-{count}").touch()
        count += 1
except OSError as error:
    assert error.errno == 28, error
store = FolderStore(root)
store.clear(store.set_aside("some", ["op/a", "op/b", "op/not there"]))
(root / "filler").touch()  # there is room again
while True:
    try:
        (root / f"filler-{count}").touch()
    except OSError:
        break
    count += 1
store.clear(store.set_aside("whole"))
print(*sorted(path.name for path in root.iterdir() if "filler" not in path.name))
"""


def test_files_are_removed_from_a_disk_that_is_full(
    small_disk: Starter, require_tool: Callable[[str], str], tmp_path: Path
) -> None:
    """A disk without a free inode takes no new folder to set files aside."""
    mounted = tmp_path / "no-inode"
    mounted.mkdir()
    mount = 'mount -t tmpfs -o nr_inodes=20 none "$0" && exec "$@"'
    command = [require_tool("unshare"), "-rm", "sh", "-c", mount, str(mounted), sys.executable, "-c", FULL, str(mounted)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


def test_the_mark_is_looked_at_for_each_upload(local: "LocalService") -> None:
    path = "/api/payloads/pay/files/a"
    local.engine.payloads.low = 1 << 60
    answer = local.call("PUT", path, raw=b"alpha")
    answer.problem(507, "storage-full")
    assert int(answer.headers["Retry-After"]) > 0
    local.engine.payloads.low = 0
    assert local.call("PUT", path, raw=b"alpha").status == 201


def test_room_is_that_of_the_folder_that_there_is(tmp_path: Path) -> None:
    disk = os.statvfs(tmp_path)
    store = FolderStore(tmp_path / "not" / "yet", low=1)
    assert store.free() == pytest.approx(disk.f_bavail * disk.f_frsize, rel=0.1)
    store.require_room(0)
    with pytest.raises(ServiceUnavailable, match="disk_low") as raised:
        store.require_room(1 << 60)
    assert raised.value.code == "storage-full"
    assert not (tmp_path / "not").exists()
