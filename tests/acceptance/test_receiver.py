"""The example receiver, fed by DCMTK: what it answered Success for, it has."""

import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
from pydicom import dcmread
from pydicom.config import IGNORE
from pydicom.uid import UID, JPEGLSLossless

from examples import receiver

if TYPE_CHECKING:
    from tests.conftest import CtWriter

ROOT = Path(__file__).parents[2]


class Running:
    """A receiver in a process of its own, and DCMTK's programs to speak to it."""

    def __init__(self, folder: Path, dcmtk: Path) -> None:
        self.folder = folder
        self._dcmtk = dcmtk
        self.process = subprocess.Popen(
            [sys.executable, "-m", "examples.receiver", "--port", "0", "--folder", str(folder)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.port = self.process.stdout.readline().strip().rpartition(":")[2]

    def files(self) -> list[Path]:
        return sorted(self.folder.iterdir())

    def tell(self, program: str, *files: Path, options: tuple[str, ...] = ()) -> str:
        ended = subprocess.run(
            [self._dcmtk / program, "-v", *options, "127.0.0.1", self.port, *files],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return ended.stdout + ended.stderr


@pytest.fixture
def running(tmp_path: Path, require_tool: Callable[[str], str]) -> Iterator[Running]:
    # pynetdicom brings a storescu of its own; DCMTK's lies beside dcmqrscp.
    started = Running(tmp_path / "received", Path(require_tool("dcmqrscp")).parent)
    yield started
    started.process.kill()
    started.process.communicate()


def test_it_writes_each_instance_as_it_was_sent(
    running: Running, tmp_path: Path, write_ct: "CtWriter"
) -> None:
    sent = [write_ct(tmp_path / f"{number}.dcm", number=number) for number in (1, 2, 3)]

    said = running.tell("storescu", *sorted(tmp_path.glob("*.dcm")))

    assert said.count("Received Store Response (Success)") == 3
    assert [path.name for path in running.files()] == sorted(
        f"{image.SOPInstanceUID}.dcm" for image in sent
    )
    for image in sent:
        kept = dcmread(running.folder / f"{image.SOPInstanceUID}.dcm")
        assert kept == image
        assert kept.file_meta.TransferSyntaxUID == image.file_meta.TransferSyntaxUID


def test_it_takes_compressed_instances_and_private_classes(
    running: Running, tmp_path: Path, write_ct: "CtWriter"
) -> None:
    compressed = write_ct(tmp_path / "1.dcm", PixelRepresentation=0)
    compressed.compress(JPEGLSLossless)
    compressed.save_as(tmp_path / "1.dcm")
    private = write_ct(tmp_path / "2.dcm", SOPClassUID="1.2.826.0.1.3680043.8.498.1.1")

    running.tell("storescu", tmp_path / "1.dcm", options=("--propose-jls-lossless", "--required"))
    running.tell("dcmsend", tmp_path / "2.dcm")

    kept = dcmread(running.folder / f"{compressed.SOPInstanceUID}.dcm")
    assert kept.file_meta.TransferSyntaxUID == JPEGLSLossless
    assert kept.PixelData == compressed.PixelData
    assert dcmread(running.folder / f"{private.SOPInstanceUID}.dcm") == private


def test_an_instance_that_comes_again_is_there_once(
    running: Running, tmp_path: Path, write_ct: "CtWriter"
) -> None:
    write_ct(tmp_path / "1.dcm")

    running.tell("storescu", tmp_path / "1.dcm", options=("--repeat", "2"))

    assert receiver.count(running.folder) == 1
    told = subprocess.run(
        [sys.executable, "-m", "examples.receiver", "--count", "--folder", running.folder],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout == "1\n"


def test_what_it_cannot_write_it_refuses(
    running: Running, tmp_path: Path, write_ct: "CtWriter"
) -> None:
    write_ct(tmp_path / "1.dcm")
    shutil.rmtree(running.folder)

    assert "OutOfResources" in running.tell("storescu", tmp_path / "1.dcm")

    running.folder.mkdir()
    assert "Received Store Response (Success)" in running.tell("storescu", tmp_path / "1.dcm")
    assert receiver.count(running.folder) == 1


def test_it_answers_an_echo(running: Running) -> None:
    assert "Received Echo Response (Success)" in running.tell("echoscu")


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_at_once_though_someone_is_connected(
    running: Running, sent: signal.Signals
) -> None:
    with socket.create_connection(("127.0.0.1", int(running.port)), timeout=5):
        running.process.send_signal(sent)
        assert running.process.wait(5) == -sent


def test_what_was_cut_off_is_gone_at_the_next_start(
    tmp_path: Path, require_tool: Callable[[str], str]
) -> None:
    kept, cut = tmp_path / "1.2.3.dcm", tmp_path / "tmpabc.part"
    kept.touch()
    cut.touch()
    again = Running(tmp_path, Path(require_tool("dcmqrscp")).parent)
    again.process.kill()
    again.process.communicate()
    assert again.files() == [kept]


@pytest.mark.parametrize("uid", ["../../outside", "", "1.2.3/4"])
def test_a_uid_that_is_none_never_becomes_a_path(tmp_path: Path, uid: str) -> None:
    event = SimpleNamespace(
        request=SimpleNamespace(AffectedSOPInstanceUID=UID(uid, IGNORE)),
        encoded_dataset=lambda: b"content",
    )
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)

    assert receiver.store(cast("Any", event), folder) == receiver.CANNOT_UNDERSTAND

    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
