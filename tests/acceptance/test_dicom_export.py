"""The DICOM exporter with real receivers: Orthanc, and DCMTK's storescp as it is shipped."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from pydicom import dcmread
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
)

from clara_results.agents.dicom.association import AssociationSettings
from clara_results.agents.dicom.echo import echo_destination
from clara_results.agents.dicom.exporter import DicomExporter
from clara_results.agents.secrets import Secrets
from clara_results.domain.clock import SystemClock
from clara_results.domain.receivers import Commit, Verify
from clara_results.domain.tasks import Outcome
from clara_results.errors import DestinationUnavailable
from clara_results.wire.destinations import Destination
from tests.conftest import Orthanc
from tests.support.delivery import FolderDelivery

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pydicom import Dataset

    from tests.conftest import CtWriter, StoreScpStarter

UNCOMPRESSED = [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian]
SEVERAL_PDUS = 512
"""Rows and columns of an image that takes many PDUs of 16 KiB."""


def destination(port: int, *, transcode: bool = True) -> Destination:
    return Destination(
        name="PACS", ae_title="PACS", host="127.0.0.1", port=port, transcode=transcode
    )


def deliver(port: int, folder: Path, *, transcode: bool = True) -> FolderDelivery:
    delivery = FolderDelivery(folder)
    pacs = destination(port, transcode=transcode)
    exporter = DicomExporter(
        lambda: [pacs], "ClaraSCU", AssociationSettings(), SystemClock(), Secrets(None)
    )
    try:
        exporter.deliver(delivery)
    finally:
        exporter.close()
    return delivery


def compress(path: Path) -> None:
    """Make an instance in a transfer syntax of its own: what counts here is the negotiation."""
    image = dcmread(path)
    image.PixelData = encapsulate([b"\xff\x4f\xff\x51 not a picture \xff\xd9"])
    image["PixelData"].VR = "OB"
    image["PixelData"].is_undefined_length = True
    image.file_meta.TransferSyntaxUID = JPEG2000Lossless
    image.save_as(path, enforce_file_format=True)


def test_storescp_gets_what_it_takes_bit_by_bit(
    storescp: StoreScpStarter, tmp_path: Path, write_ct: CtWriter
) -> None:
    folder = tmp_path / "series"
    sent: dict[str, Dataset] = {}
    for number, syntax in enumerate(UNCOMPRESSED):
        image = write_ct(
            folder / f"{number}.dcm", number=number, size=SEVERAL_PDUS, transfer_syntax=syntax
        )
        sent[str(image.SOPInstanceUID)] = image
    write_ct(folder / "compressed.dcm")
    compress(folder / "compressed.dcm")
    scp = storescp()
    delivery = deliver(scp.port, folder, transcode=False)
    assert delivery.codes(Outcome.DELIVERED) == {f"{n}.dcm": "0000" for n in range(3)}
    assert delivery.codes(Outcome.REJECTED) == {"compressed.dcm": "no-presentation-context"}
    assert "JPEG 2000" in str(delivery.outcomes["compressed.dcm"].message)
    assert scp.sop_instance_uids() == set(sent)
    for path in scp.files():
        stored = dcmread(path)
        image = sent[str(stored.SOPInstanceUID)]
        assert stored.file_meta.TransferSyntaxUID == image.file_meta.TransferSyntaxUID
        assert stored == image


def test_orthanc_gets_every_encoding(orthanc: Orthanc, tmp_path: Path, write_ct: CtWriter) -> None:
    folder = tmp_path / "series"
    sent: dict[str, str] = {}
    for number, syntax in enumerate([*UNCOMPRESSED, DeflatedExplicitVRLittleEndian]):
        image = write_ct(folder / f"{number}.dcm", number=number, transfer_syntax=str(syntax))
        sent[str(image.SOPInstanceUID)] = str(syntax)
    image = write_ct(folder / "compressed.dcm")
    compress(folder / "compressed.dcm")
    sent[str(image.SOPInstanceUID)] = str(JPEG2000Lossless)
    delivery = deliver(orthanc.dicom_port, folder)
    assert set(delivery.codes(Outcome.DELIVERED).values()) == {"0000"}
    assert orthanc.sop_instance_uids() == set(sent)
    for uid, expected in sent.items():
        stored = dcmread(io.BytesIO(orthanc.dicom_file(uid)))
        assert stored.SOPInstanceUID == uid
        assert stored.file_meta.TransferSyntaxUID == expected


def test_orthanc_gets_more_sop_classes_than_one_association_holds(
    orthanc: Orthanc, tmp_path: Path, write_ct: CtWriter
) -> None:
    folder = tmp_path / "many"
    uids = {
        str(
            write_ct(
                folder / f"{number}.dcm", number=number, SOPClassUID=f"1.2.826.0.1.9.{number}"
            ).SOPInstanceUID
        )
        for number in range(130)
    }
    delivery = deliver(orthanc.dicom_port, folder)
    assert len(delivery.codes(Outcome.DELIVERED)) == 130
    assert orthanc.sop_instance_uids() == uids


def test_storescp_that_aborts_is_unavailable_and_one_that_is_gone_too(
    storescp: StoreScpStarter, tmp_path: Path, write_ct: CtWriter
) -> None:
    folder = tmp_path / "series"
    for number in range(4):
        write_ct(folder / f"{number}.dcm", number=number)
    scp = storescp("--abort-during")
    with pytest.raises(DestinationUnavailable, match="3 different instances in a row"):
        deliver(scp.port, folder)
    scp.stop()
    with pytest.raises(DestinationUnavailable, match="connection refused"):
        deliver(scp.port, folder)


def test_storescp_that_refuses_says_so(
    storescp: StoreScpStarter, tmp_path: Path, write_ct: CtWriter
) -> None:
    write_ct(tmp_path / "series" / "1.dcm")
    scp = storescp("--refuse")
    with pytest.raises(DestinationUnavailable, match="rejected the association of ClaraSCU"):
        deliver(scp.port, tmp_path / "series")


def test_both_answer_an_echo(orthanc: Orthanc, storescp: StoreScpStarter) -> None:
    for port in (orthanc.dicom_port, storescp().port):
        result = echo_destination(destination(port), Secrets(None))
        assert result.ok, result
        assert [step.name for step in result.steps] == [
            "connect",
            "association",
            "echo",
            "contexts",
        ]


def steps_of(port: int, **settings: Any) -> dict[str, tuple[bool, str]]:
    """Test a destination; return for each step whether it went well, and what was said."""
    pacs = replace(destination(port), **settings)
    result = echo_destination(pacs, Secrets(None))
    return {step.name: (step.ok, step.message) for step in result.steps}


def test_a_test_says_whether_orthanc_can_be_asked_back(
    require_tool: Callable[[str], str], orthanc: Orthanc, tmp_path: Path
) -> None:
    port = orthanc.dicom_port
    assert "query" not in steps_of(port)
    ok, message = steps_of(port, verify=Verify.METADATA)["query"]
    assert not ok
    assert "make ClaraSCU known to it" in message
    (tmp_path / "open").mkdir()
    allows = Orthanc(
        require_tool("Orthanc"),
        tmp_path / "open",
        DicomAlwaysAllowFind=True,
        DicomAlwaysAllowGet=True,
    )
    try:
        allows.start()
        steps = steps_of(allows.dicom_port, verify=Verify.FULL, commitment=Commit.REQUIRE)
    finally:
        allows.kill()
    assert steps["query"] == (
        True,
        "it offers queries (C-FIND) and retrieval (C-GET), and answers a query",
    )
    assert steps["commitment"][0]
    assert "offers storage commitment" in steps["commitment"][1]


def test_a_test_says_what_storescp_does_not_offer(storescp: StoreScpStarter) -> None:
    port = storescp().port
    ok, message = steps_of(port, verify=Verify.FULL)["query"]
    assert not ok
    assert "does not offer" in message or "offers nothing" in message
    assert steps_of(port, commitment=Commit.REQUIRE)["commitment"] == (
        False,
        "it does not offer storage commitment",
    )
    ok, message = steps_of(port, commitment=Commit.ASK)["commitment"]
    assert ok
    assert "counts as delivered all the same" in message
