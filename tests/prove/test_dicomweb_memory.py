"""The DICOMweb agent's memory is the same for one file of 2 GB and for 10,000 small ones."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.web import Exchange, WebPeer, references

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import CtWriter

pytestmark = [pytest.mark.prove, pytest.mark.timeout(600)]

LIMIT = 150_000
"""Kilobytes of a process that delivers."""
ROOT = Path(__file__).parents[2]
UID = re.compile(rb"\x08\x00\x18\x00UI..([0-9.]+)")
DELIVER = """
import resource, sys
from pathlib import Path
from clara_results.agents.dicomweb.connection import WebSettings
from clara_results.agents.dicomweb.exporter import DicomWebExporter
from clara_results.agents.secrets import Secrets
from clara_results.domain.clock import SystemClock
from clara_results.wire.destinations import Destination
from tests.support.delivery import FolderDelivery

pacs = Destination(name="PACS", kind="dicomweb", url=sys.argv[1])
delivery = FolderDelivery(Path(sys.argv[2]), associations=4)
DicomWebExporter(lambda: [pacs], Secrets(None), WebSettings(), SystemClock()).deliver(delivery)
stored = sum(code == "stored" for code in delivery.codes().values())
print(stored, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def swallows(exchange: Exchange) -> None:
    """Say that all is stored, and keep nothing."""
    uids: list[str] = []
    for piece in exchange.pieces():
        uids += [uid.decode() for uid in UID.findall(piece)]
    exchange.answer(200, references(uids))


@pytest.fixture
def sink() -> Iterator[WebPeer]:
    peer = WebPeer(swallows)
    yield peer
    peer.stop()


def delivered(sink: WebPeer, folder: Path) -> tuple[int, int]:
    """Deliver a folder by a process of its own; return how many files it delivered, and its largest size in KB."""
    ended = subprocess.run(
        [sys.executable, "-c", DELIVER, sink.url, str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=500,
        check=True,
    )
    stored, size = map(int, ended.stdout.split())
    return stored, size


def test_one_file_of_2_gb(sink: WebPeer, tmp_path: Path, write_ct: CtWriter) -> None:
    path = tmp_path / "task" / "large.dcm"
    write_ct(path, size=16)
    content = path.read_bytes()
    at = content.rindex(b"\xe0\x7f\x10\x00OW\0\0") + 8
    length = 2_000_000_000
    with path.open("wb") as file:
        file.write(content[:at] + length.to_bytes(4, "little"))
        file.truncate(at + 4 + length)  # a hole: it takes no disk
    stored, size = delivered(sink, path.parent)
    assert stored == 1
    assert size < LIMIT


def test_10_000_files(sink: WebPeer, tmp_path: Path, write_ct: CtWriter) -> None:
    folder = tmp_path / "task"
    uid = str(write_ct(folder / "00000.dcm", size=16).SOPInstanceUID).encode()
    content = (folder / "00000.dcm").read_bytes()
    for number in range(10_000):
        other = uid[:-6] + b"1%05d" % number
        (folder / f"{number:05}.dcm").write_bytes(content.replace(uid, other))
    stored, size = delivered(sink, folder)
    assert stored == 10_000
    assert size < LIMIT
