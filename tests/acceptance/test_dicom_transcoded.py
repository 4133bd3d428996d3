"""What a receiver does not take as it is, and what it holds under a UID of ours: the exporter with real receivers."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pydicom import DataElement, dcmread
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from clara_results.agents.dicom.association import AssociationSettings
from clara_results.agents.dicom.exporter import DicomExporter
from clara_results.agents.secrets import Secrets
from clara_results.domain.clock import SystemClock
from clara_results.domain.receivers import Verify
from clara_results.domain.tasks import Outcome
from clara_results.wire.destinations import Destination
from tests.conftest import Orthanc
from tests.support.delivery import FolderDelivery

if TYPE_CHECKING:
    from tests.conftest import CtWriter, StoreScpStarter

NAMES = {
    "iso-2022-ir-87": (
        ["", "ISO 2022 IR 87"],
        b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B",
        "Yamada^Tarou=山田^太郎",
    ),
    "gb18030": ("GB18030", "Wang^XiaoDong=王^小东".encode("gb18030"), "Wang^XiaoDong=王^小东"),
    "utf-8": ("ISO_IR 192", "Müller^Jörg=王^小东".encode(), "Müller^Jörg=王^小东"),
}


@pytest.fixture
def deliver() -> Iterator[Callable[..., FolderDelivery]]:
    """Give a function that delivers a folder's files to a port of this machine."""
    running = []

    def run(folder: Path, port: int, **settings: Any) -> FolderDelivery:
        to = Destination(name="PACS", ae_title="PACS", host="127.0.0.1", port=port, **settings)
        exporter = DicomExporter(
            lambda: [to], "ClaraSCU", AssociationSettings(), SystemClock(), Secrets(None)
        )
        running.append(exporter)
        delivery = FolderDelivery(folder)
        exporter.deliver(delivery)
        return delivery

    yield run
    for exporter in running:
        exporter.close()


@pytest.mark.parametrize(
    ("option", "syntax"),
    [("+xe", ExplicitVRLittleEndian), ("+xi", ImplicitVRLittleEndian)],
)
def test_what_is_compressed_arrives_native_and_every_character_as_it_was(
    option: str,
    syntax: str,
    deliver: Callable[..., FolderDelivery],
    storescp: "StoreScpStarter",
    require_tool: Callable[[str], str],
    write_ct: "CtWriter",
    tmp_path: Path,
) -> None:
    native, folder = tmp_path / "native.dcm", tmp_path / "series"
    folder.mkdir()
    pixels = {}
    for number, (charset, (declared, encoded, _)) in enumerate(NAMES.items()):
        made = write_ct(native, number=number, SpecificCharacterSet=declared)
        made["InstitutionName"] = DataElement("InstitutionName", "LO", encoded)
        made.save_as(native, enforce_file_format=True)
        packed = folder / f"{charset}.dcm"
        subprocess.run([require_tool("dcmcrle"), native, packed], check=True)
        pixels[str(made.SOPInstanceUID)] = charset, made.PixelData
    scp = storescp(option)

    delivery = deliver(folder, scp.port)

    assert set(delivery.codes(Outcome.DELIVERED)) == {f"{charset}.dcm" for charset in NAMES}
    for told in delivery.outcomes.values():
        assert told.message == f"sent as {syntax.name}; it was RLE Lossless"  # type: ignore[attr-defined]
    assert len(scp.files()) == len(NAMES)
    for path in scp.files():
        stored = dcmread(path)
        charset, expected = pixels[str(stored.SOPInstanceUID)]
        _, encoded, text = NAMES[charset]
        assert encoded in path.read_bytes()
        assert str(stored.InstitutionName) == text
        assert stored.PixelData == expected
        assert stored.file_meta.TransferSyntaxUID == syntax


@pytest.mark.parametrize(
    ("verify", "change", "outcome"),
    [
        (Verify.FULL, "pixels", Outcome.REJECTED),
        (Verify.METADATA, "number", Outcome.REJECTED),
        (Verify.OFF, "pixels", Outcome.DELIVERED),  # which is why one asks back
        (Verify.FULL, None, Outcome.DELIVERED),
    ],
)
def test_the_first_of_two_objects_under_one_uid_is_not_taken_for_ours(
    verify: Verify,
    change: str | None,
    outcome: Outcome,
    deliver: Callable[..., FolderDelivery],
    require_tool: Callable[[str], str],
    write_ct: "CtWriter",
    tmp_path: Path,
) -> None:
    ours, theirs, home = tmp_path / "ours", tmp_path / "theirs", tmp_path / "orthanc"
    home.mkdir()
    made = write_ct(ours / "1.dcm")
    if change == "pixels":
        made.PixelData = bytes(len(made.PixelData))
    elif change == "number":
        made.InstanceNumber = 99
    theirs.mkdir()
    made.save_as(theirs / "1.dcm", enforce_file_format=True)
    archive = Orthanc(
        require_tool("Orthanc"), home, DicomAlwaysAllowFind=True, DicomAlwaysAllowGet=True
    )
    try:
        archive.start()
        assert deliver(theirs, archive.dicom_port).codes() == {"1.dcm": "0000"}
        delivery = deliver(ours, archive.dicom_port, verify=verify)
    finally:
        archive.kill()
    told = delivery.outcomes["1.dcm"]
    assert told.outcome is outcome, told.message
    if outcome is Outcome.REJECTED:
        assert told.code == "verify-mismatch"
