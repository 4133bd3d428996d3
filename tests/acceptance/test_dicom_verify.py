"""Asking a real archive back: Orthanc, with its defaults, answers success to a second object under one UID and keeps the first."""

import dataclasses
import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pydicom import dcmread
from pydicom.uid import JPEG2000Lossless, RLELossless
from pynetdicom import AE, evt

from clara_results.agents.dicom.association import Association, AssociationSettings, Peer
from clara_results.agents.dicom.frames import FrameDecoders
from clara_results.agents.dicom.part10 import Header, read_header
from clara_results.agents.dicom.verify import Verification, Verifier
from clara_results.domain.clock import SystemClock
from clara_results.domain.receivers import Verify
from clara_results.domain.tasks import Outcome
from tests.conftest import Orthanc, eventually

if TYPE_CHECKING:
    from tests.conftest import CtWriter

SETTINGS = AssociationSettings(connect=5, association=10, dimse=20)


@pytest.fixture
def archive(require_tool: Callable[[str], str], tmp_path: Path) -> Iterator[Orthanc]:
    """Run an Orthanc that answers queries and retrievals."""
    folder = tmp_path / "orthanc"
    folder.mkdir()
    server = Orthanc(
        require_tool("Orthanc"), folder, DicomAlwaysAllowFind=True, DicomAlwaysAllowGet=True
    )
    try:
        server.start()
        yield server
    finally:
        server.kill()


def header_of(path: Path) -> Header:
    with path.open("rb") as opened:
        return read_header(partial(os.pread, opened.fileno()), path.stat().st_size, path.name)


def peer_of(archive: Orthanc) -> Peer:
    return Peer("127.0.0.1", archive.dicom_port, archive.ae_title, "VERIFIER")


def store(archive: Orthanc, path: Path) -> int:
    header = header_of(path)
    context = header.sop_class_uid, header.transfer_syntax_uid
    with Association(peer_of(archive), [context], SETTINGS, SystemClock()) as association:
        association.open()
        data = memoryview(path.read_bytes())[header.data_offset :]
        status = association.store(header.sop_instance_uid, context, data)
        association.release()
    return status


Ask = Callable[[Path, Verify], Verification]


@pytest.fixture
def ask(archive: Orthanc, tmp_path: Path) -> Iterator[Ask]:
    """Give a function that asks the archive back for a file."""
    decoders = FrameDecoders()
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    verifier = Verifier(peer_of(archive), SETTINGS, decoders, scratch)

    def run(path: Path, how: Verify) -> Verification:
        with path.open("rb") as source:
            found = verifier.verify(source, header_of(path), how)
        assert list(scratch.iterdir()) == []
        return found

    yield run
    verifier.close()
    decoders.close()


@pytest.mark.parametrize("how", [Verify.METADATA, Verify.FULL])
def test_what_is_there_as_sent_is_found_to_be(
    how: Verify, archive: Orthanc, ask: Ask, write_ct: "CtWriter", tmp_path: Path
) -> None:
    for number in (1, 2):
        path = tmp_path / f"{number}.dcm"
        write_ct(path, number=number, ImageComments="Müller 王^小东")
        assert store(archive, path) == 0
        assert ask(path, how) == Verification(Outcome.DELIVERED)


@pytest.mark.parametrize(
    ("how", "change", "differing"),
    [
        (Verify.METADATA, {"InstanceNumber": 99}, "InstanceNumber (0020,0013)"),
        (Verify.FULL, {"InstanceNumber": 99}, "InstanceNumber (0020,0013)"),
        (Verify.FULL, {"PixelData": bytes(512)}, "PixelData (7FE0,0010)"),
        (Verify.FULL, {"ImageComments": "of somebody"}, "ImageComments (0020,4000)"),
    ],
)
def test_an_object_of_somebody_else_under_the_uid_is_found_out(
    how: Verify,
    change: dict[str, Any],
    differing: str,
    archive: Orthanc,
    ask: Ask,
    write_ct: "CtWriter",
    tmp_path: Path,
) -> None:
    ours, theirs = tmp_path / "ours.dcm", tmp_path / "theirs.dcm"
    made = write_ct(ours)
    for keyword, value in change.items():
        setattr(made, keyword, value)
    made.save_as(theirs, enforce_file_format=True)
    assert store(archive, theirs) == 0
    assert store(archive, ours) == 0  # and keeps the first
    found = ask(ours, how)
    assert (found.outcome, found.code) == (Outcome.REJECTED, "verify-mismatch")
    assert found.message is not None
    assert found.message.endswith(f"they differ in {differing}")
    assert "somebody" not in found.message


def test_what_an_archive_may_coerce_is_left_out_of_account(
    archive: Orthanc, ask: Ask, write_ct: "CtWriter", tmp_path: Path
) -> None:
    ours, theirs = tmp_path / "ours.dcm", tmp_path / "theirs.dcm"
    made = write_ct(ours)
    made.PatientName = "Right^Name"
    made.AccessionNumber = "A-2"
    made.save_as(theirs, enforce_file_format=True)
    assert store(archive, theirs) == 0
    assert ask(ours, Verify.FULL).outcome == Outcome.DELIVERED
    assert ask(ours, Verify.METADATA).outcome == Outcome.DELIVERED


@pytest.mark.parametrize("how", [Verify.METADATA, Verify.FULL])
def test_what_is_not_there_is_found_missing(
    how: Verify, ask: Ask, write_ct: "CtWriter", tmp_path: Path
) -> None:
    path = tmp_path / "1.dcm"
    write_ct(path)
    found = ask(path, how)
    assert (found.outcome, found.code) == (Outcome.RETRY, "verify-absent"), found.message


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless])
def test_what_was_transcoded_is_compared_decoded(
    syntax: str, archive: Orthanc, ask: Ask, write_ct: "CtWriter", tmp_path: Path
) -> None:
    native, packed = tmp_path / "native.dcm", tmp_path / "packed.dcm"
    write_ct(native, size=64)
    made = dcmread(native)
    made.compress(syntax, generate_instance_uid=False, encoding_plugin="pylibjpeg")
    made.save_as(packed, enforce_file_format=True)
    assert store(archive, native) == 0  # as a receiver that takes nothing compressed has it
    assert ask(packed, Verify.FULL) == Verification(Outcome.DELIVERED)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
# pynetdicom leaves a socket to the garbage collector where it can't connect.
def test_an_archive_that_does_not_answer_is_told_apart_from_one_that_has_it_not(
    archive: Orthanc, ask: Ask, write_ct: "CtWriter", tmp_path: Path
) -> None:
    path = tmp_path / "1.dcm"
    write_ct(path)
    assert store(archive, path) == 0
    assert ask(path, Verify.METADATA).outcome == Outcome.DELIVERED
    archive.kill()
    found = ask(path, Verify.METADATA)
    assert (found.outcome, found.code) == (Outcome.RETRY, "verify-unavailable")
    archive.start()
    assert ask(path, Verify.FULL).outcome == Outcome.DELIVERED


def test_an_archive_that_offers_no_queries_is_told_so(
    orthanc: Orthanc, write_ct: "CtWriter", tmp_path: Path
) -> None:
    path = tmp_path / "1.dcm"
    write_ct(path)
    decoders = FrameDecoders()
    verifier = Verifier(peer_of(orthanc), SETTINGS, decoders, tmp_path)
    with path.open("rb") as source:
        for how in (Verify.METADATA, Verify.FULL):
            found = verifier.verify(source, header_of(path), how)
            assert (found.outcome, found.code) == (Outcome.RETRY, "verify-unavailable")
    verifier.close()
    decoders.close()


def test_what_was_fetched_in_part_is_not_left_behind(
    write_ct: "CtWriter", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, scratch = tmp_path / "1.dcm", tmp_path / "scratch"
    scratch.mkdir()
    made = write_ct(path, size=512)
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    sent: list[int] = []

    def give(_: evt.Event) -> Iterator[object]:
        yield 1
        yield 0xFF00, made

    def break_off(event: evt.Event) -> None:
        sent.append(len(event.data))
        if sum(sent) > 200_000 and event.assoc.is_established:
            eventually(lambda: any(scratch.glob("*.dcm")), "a part of it")
            connection: socket.socket = event.assoc.dul.socket.socket  # type: ignore[union-attr, assignment]
            connection.shutdown(socket.SHUT_RDWR)

    entity = AE("ORTHANC")
    entity.add_supported_context("1.2.840.10008.5.1.4.1.2.2.3")
    entity.add_supported_context(made.SOPClassUID, scu_role=False, scp_role=True)
    server = entity.start_server(
        ("127.0.0.1", 0),
        block=False,
        evt_handlers=[(evt.EVT_C_GET, give), (evt.EVT_DATA_SENT, break_off)],
    )
    assert server is not None
    assert server.socket is not None
    peer = Peer("127.0.0.1", int(server.socket.getsockname()[1]), "ORTHANC", "VERIFIER")
    decoders = FrameDecoders()
    verifier = Verifier(peer, dataclasses.replace(SETTINGS, max_pdu=16_384), decoders, scratch)
    with path.open("rb") as source:
        found = verifier.verify(source, header_of(path), Verify.FULL)
    server.shutdown()
    decoders.close()
    assert (found.outcome, found.code) == (Outcome.RETRY, "verify-unavailable")
    assert sum(sent) < path.stat().st_size
    assert list(scratch.iterdir()) == []
