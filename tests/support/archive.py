"""A real archive in trouble: many instances go to an Orthanc that is restarted, and whose storage fills, by a killed agent.

What is counted at the end is what Orthanc itself says that it holds, and the bytes that it gives back.
"""

import errno
import hashlib
import os
import re
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
import urllib3
from pydicom import dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian

from clara_results.domain.tasks import State
from clara_results.payloads import FolderStore
from clara_results.wire.destinations import Destination
from clara_results.wire.tasks import Attempt, Registration, ResultFile, Task
from tests.conftest import Orthanc, ct_instance, eventually

if TYPE_CHECKING:
    from tests.conftest import AgentStarter, ServerProcess, Service, ServiceStarter

NAME = "Archive"
AGENT = "ClaraSCU"
ROWS = 48
"""Rows and columns. Above 4,096 bytes an instance: Orthanc 1.10.1 answers success to a smaller one when its storage is
full, and keeps an empty file."""
LEASE = 5
"""Seconds of the agent's leases: what a killed one held is soon back."""
LOOK = 0.02
"""Seconds between two looks."""

_NUMBER = b"+98765"
"""An Instance Number that stands in the pattern once: no UID holds a plus sign."""
_ENDING = "Orthanc is stopping"
_MARK = "received by the archive: "
_RECEIVED = f"""function ReceivedInstanceFilter(dicom, origin, info)
  print('{_MARK}' .. dicom.SOPInstanceUID)
  return true
end
"""
"""Has Orthanc say of each instance that it receives it, before it stores it."""


class LimitedStorage:
    """A file system of its own for an archive, of limited size, that can be filled to the last byte.

    It is a tmpfs in a mount namespace of its own (no privilege is needed for that); whoever is to see it runs by
    ``launcher``.

    Attributes:
        launcher: The command that runs a program where the file system is.
    """

    def __init__(self, require_tool: Callable[[str], str], folder: Path, size: int) -> None:
        """Make it.

        Args:
            require_tool: The fixture.
            folder: Where it is mounted; an empty folder.
            size: Its size in bytes.
        """
        holder = [require_tool("unshare"), "--user", "--map-root-user", "--mount", "sh", "-c"]
        mount = f"mount -t tmpfs -o size={size} archive '{folder}' && echo ready && exec cat"
        self._holder = subprocess.Popen(
            [*holder, mount],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        assert self._holder.stdout is not None
        if self._holder.stdout.readline() != b"ready\n":
            said = self._holder.communicate()[1].decode(errors="replace").strip()
            message = f"a file system can't be mounted here: {said}"
            if os.environ.get("CLARA_RESULTS_REQUIRE_TOOLS") == "1":
                pytest.fail(message)
            pytest.skip(message)
        self._root = Path(f"/proc/{self._holder.pid}/root{folder}")
        self.launcher = [
            require_tool("nsenter"), "--target", str(self._holder.pid), "--user", "--mount",
            "--preserve-credentials",
        ]  # fmt: skip

    @property
    def _ballast(self) -> Path:
        return self._root / "ballast"

    def fill(self) -> None:
        """Take all the room that there is."""
        with self._ballast.open("wb", buffering=0) as ballast:
            for size in (1 << 20, 4096):
                refused = 0
                while refused < 100:  # others may give up a page at the same moment
                    try:
                        ballast.write(bytes(size))
                    except OSError as error:
                        assert error.errno == errno.ENOSPC, error  # noqa: PT017
                        refused += 1

    def free(self) -> None:
        """Give the room back."""
        self._ballast.unlink()

    def close(self) -> None:
        """Take it away, with all that is in it; nothing may run in it any more."""
        self._holder.kill()
        self._holder.communicate()


@dataclass
class Instances:
    """Small CT instances, all different, made fast: one data set, in which the bytes that differ are replaced."""

    rows: int = ROWS
    """Rows and columns."""
    digests: dict[str, str] = field(default_factory=dict)
    """SHA-256 of the data set of each that was made, by SOP Instance UID."""

    def __post_init__(self) -> None:
        study, series, frame, sop = (_uid() for _ in range(4))
        image = ct_instance(study, series, frame, 1, self.rows)
        image.SOPInstanceUID = UID(sop)
        image.InstanceNumber = _NUMBER.decode()
        image.PixelData = b"\xa5\x5a" * self.rows**2
        image.file_meta = FileMetaDataset()
        image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID
        image.file_meta.MediaStorageSOPInstanceUID = UID(sop)
        image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        written = BytesIO()
        image.save_as(written, enforce_file_format=True)
        self._pattern = written.getvalue()
        assert self._pattern.count(_NUMBER) == 1
        self._study, self._series = study.encode(), series.encode()
        self._sop, self._pixels = sop.encode(), image.PixelData

    def write(self, folder: Path, count: int) -> None:
        """Write a series of its own study into a folder that is made."""
        folder.mkdir(parents=True)
        series = self._pattern.replace(self._study, _uid().encode())
        series = series.replace(self._series, _uid().encode())
        for number in range(count):
            uid = _uid()
            file = series.replace(self._sop, uid.encode())
            file = file.replace(_NUMBER, b"%6d" % number)
            pixels = number.to_bytes(4, "little") * (len(self._pixels) // 4)
            file = file.replace(self._pixels, pixels)
            (folder / f"{number:05}.dcm").write_bytes(file)
            self.digests[uid] = data_set_digest(file)
        sample = dcmread(folder / "00000.dcm")
        assert sample.file_meta.MediaStorageSOPInstanceUID == sample.SOPInstanceUID
        assert sample.SOPInstanceUID in self.digests


def _uid() -> str:
    return f"2.25.{uuid4().int | 1 << 127}"  # always 44 characters


def data_set_digest(file: bytes) -> str:
    """Return the SHA-256 of a Part 10 file's data set, of what follows the file meta information (PS3.10 7.1)."""
    assert file[128:132] == b"DICM"
    return hashlib.sha256(file[144 + int.from_bytes(file[140:144], "little") :]).hexdigest()


def task_sizes(count: int) -> list[int]:
    """Return how many files each task has: of some one, of some hundreds, of eight thousands (of 20,000)."""
    small = [1] * 20 + [max(1, count // 200)] * 10
    each, rest = divmod(count - sum(small), 8)
    large = [each + (number < rest) for number in range(8)]
    mixed = [*large[:4], *small[:15], *large[4:], *small[15:]]
    assert sum(mixed) == count
    return mixed


class Run:
    """Instances on their way to an archive, and all that is done to both.

    Attributes:
        archive: The Orthanc.
        storage: What it stores to.
        service: The service.
        agent: The agent that sends.
        count: How many instances are registered.
        kills: How often the agent was killed.
        facts: What happened, for people.
    """

    def __init__(
        self, archive: Orthanc, storage: LimitedStorage, service: "Service", agent: "ServerProcess", count: int, within: float
    ) -> None:  # fmt: skip
        self.archive = archive
        self.storage = storage
        self.service = service
        self.agent = agent
        self.count = count
        self.kills = 0
        self.facts: list[str] = []
        self._begun = time.monotonic()
        self._deadline = self._begun + within

    def wait(self, check: Callable[[], bool], what: str) -> None:
        """Wait for a condition, within the time that the whole run may take."""
        eventually(check, what, max(0.0, self._deadline - time.monotonic()), LOOK)

    def wait_under_way(self, check: Callable[[], bool], what: str) -> None:
        """Wait for a condition that must come while tasks are still to end."""
        ended = False

        def look() -> bool:
            nonlocal ended
            ended = self._all_ended()
            return ended or check()

        self.wait(look, what)
        assert not ended, f"{what}: every task ended before that; it needs more instances"

    def reach(self, share: float) -> None:
        """Wait until a share of all is reported to be delivered, and others are still to be."""
        least = int(share * self.count)
        self.wait_under_way(lambda: self._delivered() >= least, f"{least} are delivered")

    def _delivered(self) -> int:  # Orthanc's own count can take it seconds while it stores
        page = self.service.client.tasks(limit=1000)
        assert page.next_cursor is None
        return sum(task.counts.delivered for task in page.items)

    def note(self, what: str) -> None:
        """Note a fact, with the time and how many are reported to be delivered."""
        seconds = time.monotonic() - self._begun
        self.facts.append(f"{seconds:6.1f} s, {self._delivered():6} delivered: {what}")

    def kill_agent(self) -> None:
        """Kill the agent in the middle of a task, and start it again."""
        self.wait_under_way(self._caught, "the agent is in the middle of a task")
        self.agent.kill()
        self.kills += 1
        self.note("agent killed (SIGKILL) and started again")
        self.agent.start(lambda: True)

    def _caught(self) -> bool:
        """Have the agent stand still; go on unless it holds a task."""
        os.kill(self.agent.pid, signal.SIGSTOP)
        delivered = [-1]

        def still() -> bool:  # what it had said before has come in
            delivered.append(self._delivered())
            return delivered[-1] == delivered[-2]

        eventually(still, "nothing more comes in", every=0.1)
        if self.service.client.destination(NAME).in_progress:
            return True
        os.kill(self.agent.pid, signal.SIGCONT)
        return False

    def restart_archive(self, how: int) -> None:
        """End the archive in the middle of its work; start it again once that was noticed."""
        if how == signal.SIGKILL:
            self.archive.kill()
        else:
            self._end_archive()
        reason = self._find_down("")
        self.archive.start()
        self.note(f"Orthanc ended ({signal.Signals(how).name}) and started again; meanwhile: {reason}")  # fmt: skip

    def _end_archive(self) -> None:
        """Ask the archive to end; the agent goes on only once it does: it would not begin to while it is busy."""
        said = self.archive.log().count(_ENDING)
        os.kill(self.agent.pid, signal.SIGSTOP)
        os.kill(self.archive.pid, signal.SIGTERM)
        self.wait(lambda: self.archive.log().count(_ENDING) > said, "Orthanc begins to end")
        os.kill(self.agent.pid, signal.SIGCONT)
        self.archive.stop()

    def fill_storage(self, probes: int) -> None:
        """Fill the archive's storage; make room once it has refused instances in so many attempts."""
        self.storage.fill()
        reason = self._find_down("A700")
        held = self.archive.count()
        begun = self._refusals()
        self.wait(
            lambda: self._refusals() >= begun + probes, f"it has refused instances {probes} times more"
        )  # fmt: skip
        assert (
            self.archive.count() == held
        )  # full is full: nothing that it counts came in meanwhile
        self.storage.free()
        self.note(f"storage full, {self._refusals()} instances refused, and room again; meanwhile: {reason}")  # fmt: skip

    def _find_down(self, word: str) -> str:
        """Wait until the destination is found to be down, for a reason with a word in it; return the reason."""
        reasons = [""]

        def down() -> bool:
            shown = self.service.client.destination(NAME)
            if shown.down_since and word in (shown.down_reason or ""):
                reasons.append(shown.down_reason or "")
            return len(reasons) > 1

        self.wait_under_way(down, "the destination is found to be down")
        return reasons[-1]

    def _refusals(self) -> int:
        return self.archive.log().count("Exception while storing DICOM")

    def finish(self, digests: dict[str, str]) -> None:
        """Wait for the end of all tasks, and compare what the archive holds with what was registered.

        Args:
            digests: SHA-256 of each instance's data set, by SOP Instance UID.
        """
        self.wait(self._all_ended, "every task ends")
        self.note("every task ended")
        tasks = self._tasks()
        assert Counter(task.state for task in tasks) == {State.SUCCEEDED: len(task_sizes(self.count))}  # fmt: skip
        assert sum(task.counts.delivered for task in tasks) == self.count
        self._count_attempts(tasks)
        self._count_received()
        assert self.archive.count() == self.count
        # What it has just taken it would give back from its memory.
        self.archive.kill()
        self.archive.start()
        assert self.archive.count() == self.count
        assert held_digests(self.archive) == sorted(digests.items())
        self.note("Orthanc, started afresh, holds every instance once, and gives back each data set, byte for byte")  # fmt: skip

    def _all_ended(self) -> bool:
        shown = self.service.client.destination(NAME)
        return shown.pending + shown.in_progress == 0

    def _tasks(self) -> list[Task]:
        client = self.service.client
        page = client.tasks(limit=1000)
        assert page.next_cursor is None
        return [client.task(task.task_id) for task in page.items]

    def _count_attempts(self, tasks: list[Task]) -> None:
        attempts = [attempt for task in tasks for attempt in task.attempts or ()]
        ends = Counter(map(_end, attempts))
        listing = ", ".join(f"{count} {end}" for end, count in sorted(ends.items()))
        self.facts.append(f"{len(tasks)} tasks, {len(attempts)} attempts: {listing}")
        self.facts.append(f"retries used: {sum(task.retries for task in tasks)}")
        assert ends["lease-expired"] >= self.kills
        assert ends["succeeded"] == len(tasks)

    def _count_received(self) -> None:
        received = Counter(re.findall(re.escape(_MARK) + r"([0-9.]+)", self.archive.log()))
        again = sum(number > 1 for number in received.values())
        refused = self._refusals()
        self.facts.append(
            f"Orthanc received {received.total()} instances, {len(received)} different ones, {again} of them more "
            f"than once; of what it received it refused {refused} (its storage was full)"
        )
        assert received.total() >= self.count + refused


def _end(attempt: Attempt) -> str:
    return " ".join(dict.fromkeys(filter(None, (attempt.result, attempt.code))))


def held_digests(archive: Orthanc) -> list[tuple[str, str]]:
    """Return SOP Instance UID and SHA-256 of the data set of each instance that an archive gives out, in order."""
    found = []
    with urllib3.PoolManager(retries=False, timeout=60) as http:
        for item in archive.get("/instances?expand"):
            file = http.request("GET", f"{archive.http_url}/instances/{item['ID']}/file").data
            found.append((item["MainDicomTags"]["SOPInstanceUID"], data_set_digest(file)))
    return sorted(found)


@contextmanager
def limited_archive(
    require_tool: Callable[[str], str], folder: Path, count: int, **settings: Any
) -> Iterator[tuple[Orthanc, LimitedStorage]]:
    """Run an Orthanc whose storage (and index, if not set otherwise) is on a file system with room for so many instances."""
    folder.mkdir()
    mounted = folder / "storage"
    mounted.mkdir()
    script = folder / "received.lua"
    script.write_text(_RECEIVED)
    storage = LimitedStorage(require_tool, mounted, (64 << 20) + count * (16 << 10))
    archive = Orthanc(
        require_tool("Orthanc"), folder, storage.launcher, LuaScripts=[str(script)], **settings
    )  # fmt: skip
    try:
        archive.start()
        yield archive, storage
    finally:
        archive.kill()
        storage.close()


def register_all(service: "Service", archive: Orthanc, instances: Instances, count: int) -> None:
    """Set the archive up as a destination of four associations, and register instances for it, task by task."""
    service.client.add_destination(
        Destination(
            name=NAME, ae_title=archive.ae_title, host="127.0.0.1", port=archive.dicom_port, max_associations=4
        )
    )  # fmt: skip
    payloads = FolderStore(service.payloads)
    for number, size in enumerate(task_sizes(count)):
        payload = f"payload-{number:02}"
        instances.write(Path(service.payloads) / payload / "operator", size)
        files = [
            ResultFile(uri=file.uri, size=file.size, modified=file.modified)
            for file in payloads.files(payload)
        ]
        body = Registration(
            agent=AGENT, job_id=f"job-{number:02}", pipeline_id="pipeline", payload_id=payload,
            data=[NAME], files=files,
        )  # fmt: skip
        service.client.register(body)


@contextmanager
def started_run(
    require_tool: Callable[[str], str], tmp_path: Path, service: "ServiceStarter", agent: "AgentStarter",
    count: int, within: float, **settings: Any,
) -> Iterator[tuple[Run, Instances]]:  # fmt: skip
    """Begin a run: all is registered, and the agent begins to send.

    Args:
        require_tool: The fixture.
        tmp_path: The fixture.
        service: The fixture.
        agent: The fixture.
        count: How many instances.
        within: Seconds for the whole run.
        **settings: Settings of the service.
    """
    instances = Instances()
    with limited_archive(require_tool, tmp_path / "orthanc", count) as (archive, storage):
        served = service(**settings)
        register_all(served, archive, instances, count)
        sender = agent(served, lease=LEASE, parallel=4)
        yield Run(archive, storage, served, sender, count, within), instances
