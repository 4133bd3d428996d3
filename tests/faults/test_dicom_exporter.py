"""What becomes of a task when its receiver misbehaves."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import pytest
from pydicom import dcmread

from clara_results.agents.dicom.association import AssociationSettings
from clara_results.agents.dicom.exporter import DicomExporter
from clara_results.agents.exporter import TaskRejected
from clara_results.agents.secrets import Secrets
from clara_results.domain.clock import SystemClock
from clara_results.domain.tasks import Outcome
from clara_results.errors import DestinationUnavailable, LeaseLost, Stopping
from clara_results.wire.destinations import Destination
from tests.support.delivery import FolderDelivery
from tests.support.instances import series, takes_all

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.conftest import CtWriter
    from tests.faults.conftest import (
        Conversation,
        ReceiverStarter,
        Script,
        ScriptedReceiver,
    )

SHORT = AssociationSettings(connect=2, association=0.5, dimse=0.5, release=0.5, pause=0.01, idle=0)


def exporter(
    receiver: ScriptedReceiver | int, calling_ae_title: str | None = None
) -> DicomExporter:
    """An exporter with one destination, PACS."""
    port = receiver if isinstance(receiver, int) else receiver.port
    pacs = Destination(
        name="Pacs",
        ae_title="ARCHIVE",
        host="127.0.0.1",
        port=port,
        calling_ae_title=calling_ae_title,
    )
    return DicomExporter(lambda: [pacs], "ClaraSCU", SHORT, SystemClock(), Secrets(None))


def aborts(talk: Conversation) -> None:
    talk.abort()


def breaks_at(*uids: str, how: Callable[[Conversation], None] = aborts) -> Script:
    """Take instances, but break the association at these."""

    def script(talk: Conversation) -> None:
        talk.accept()
        while True:
            context, command = talk.read_store()
            if command.AffectedSOPInstanceUID in uids:
                talk.stored.pop()
                how(talk)
                return
            talk.respond(context, command)

    return script


NO_ASKING_BACK = {"1.2.840.10008.5.1.4.1.2.2.1": 3, "1.2.840.10008.5.1.4.1.2.2.3": 3}
"""Refusals of C-FIND and C-GET; after 0111 the receiver is asked for what it has."""


def answers(status: int, *uids: str) -> Script:
    """Answer these instances with a status, and all others with success."""

    def script(talk: Conversation) -> None:
        talk.accept(refuse=NO_ASKING_BACK)
        while True:
            context, command = talk.read_store()
            told = command.AffectedSOPInstanceUID in uids
            talk.respond(context, command, status if told else 0)

    return script


# What goes well


def test_all_arrive_in_order_byte_by_byte(
    receiver: ReceiverStarter, tmp_path: Path, write_ct: CtWriter
) -> None:
    uids = series(tmp_path, write_ct, 5)
    peer = receiver(takes_all)
    delivery = FolderDelivery(tmp_path)
    exporter(peer).deliver(delivery)
    assert peer.stored_uids() == uids
    assert peer.connections == 1
    for number, (_, data) in enumerate(peer.stored):
        assert (tmp_path / f"{number:03}.dcm").read_bytes().endswith(data)
    assert delivery.codes(Outcome.DELIVERED) == {f"{n:03}.dcm": "0000" for n in range(5)}
    assert [told.sop_instance_uid for told in delivery.outcomes.values()] == uids
    assert delivery.bytes_told == sum(len(data) for _, data in peer.stored)


def test_nothing_to_send_opens_no_association(receiver: ReceiverStarter, tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("hello")
    peer = receiver(takes_all)
    delivery = FolderDelivery(tmp_path)
    exporter(peer).deliver(delivery)
    assert delivery.uris(Outcome.SKIPPED) == ["note.txt"]
    assert peer.connections == 0


@pytest.mark.parametrize(("own", "expected"), [(None, "ClaraSCU"), ("MODALITY", "MODALITY")])
def test_the_calling_ae_title(
    receiver: ReceiverStarter,
    tmp_path: Path,
    write_ct: CtWriter,
    own: str | None,
    expected: str,
) -> None:
    asked = []

    def script(talk: Conversation) -> None:
        asked.append(talk.accept())
        talk.store_all()

    series(tmp_path, write_ct, 1)
    exporter(receiver(script), own).deliver(FolderDelivery(tmp_path))
    assert [(one.calling_ae_title, one.called_ae_title) for one in asked] == [(expected, "ARCHIVE")]


def test_more_contexts_than_one_association_can_have(
    receiver: ReceiverStarter, tmp_path: Path, write_ct: CtWriter
) -> None:
    asked = []

    def script(talk: Conversation) -> None:
        asked.append(len(talk.accept().presentation_context_definition_list))
        talk.store_all()

    for number in range(300):
        write_ct(tmp_path / f"{number:03}.dcm", number=number, SOPClassUID=f"1.2.3.{number}")
    peer = receiver(script)
    delivery = FolderDelivery(tmp_path)
    exporter(peer).deliver(delivery)
    assert asked == [128, 128, 44]
    assert len(set(peer.stored_uids())) == 300
    assert len(delivery.uris(Outcome.DELIVERED)) == 300


# The destination


@pytest.mark.parametrize("parameters", ['"pacs"', '"PACS"', '"Pacs"'])
def test_names_compare_without_case(
    receiver: ReceiverStarter, tmp_path: Path, write_ct: CtWriter, parameters: str
) -> None:
    series(tmp_path, write_ct, 1)
    delivery = FolderDelivery(tmp_path, parameters)
    exporter(receiver(takes_all)).deliver(delivery)
    assert delivery.uris(Outcome.DELIVERED) == ["000.dcm"]


@pytest.mark.parametrize(
    ("parameters", "code", "words"),
    [
        (
            '"Elsewhere"',
            "unknown-destination",
            "no DICOM destination of the name .*; there are: Pacs",
        ),
        (None, "unusable-parameters", "no parameters; .* There are: Pacs"),
        ("", "unusable-parameters", "no JSON string"),
        ("Pacs", "unusable-parameters", "parameters are no JSON string"),
        ('{"name": "Pacs"}', "unusable-parameters", "no JSON string"),
        ('["Pacs"]', "unusable-parameters", "a whole array, as an older release"),
        ("7" * 5000, "unusable-parameters", "no JSON string"),
    ],
)
def test_parameters_that_name_no_destination(
    tmp_path: Path, parameters: str | None, code: str, words: str
) -> None:
    with pytest.raises(TaskRejected, match=words) as caught:
        exporter(1).deliver(FolderDelivery(tmp_path, parameters))
    assert caught.value.code == code
    shown = str(caught.value).replace("here are: Pacs", "")
    assert not parameters or parameters not in shown  # they may be anything


def test_only_dicom_destinations_count(tmp_path: Path) -> None:
    other = Destination(name="Pacs", kind="dicomweb", ae_title="X", host="h", port=1)
    with pytest.raises(TaskRejected, match="there are: none"):
        DicomExporter(lambda: [other], "ClaraSCU", SHORT, SystemClock(), Secrets(None)).deliver(
            FolderDelivery(tmp_path)
        )


# The receiver as a whole is not to be had


def test_nobody_listens(free_port: Callable[[], int], tmp_path: Path, write_ct: CtWriter) -> None:
    series(tmp_path, write_ct, 1)
    delivery = FolderDelivery(tmp_path)
    with pytest.raises(DestinationUnavailable, match="connection refused"):
        exporter(free_port()).deliver(delivery)
    assert delivery.outcomes == {}


def test_the_association_is_rejected(
    receiver: ReceiverStarter, tmp_path: Path, write_ct: CtWriter
) -> None:
    series(tmp_path, write_ct, 1)
    with pytest.raises(DestinationUnavailable, match="calling AE title not recognized"):
        exporter(receiver(lambda talk: talk.reject(1, 1, 3))).deliver(FolderDelivery(tmp_path))


@pytest.mark.parametrize("status", [0xA700, 0xA7FE, 0x0213])
def test_no_room_ends_the_attempt_and_what_was_answered_stays(
    receiver: ReceiverStarter, tmp_path: Path, write_ct: CtWriter, status: int
) -> None:
    uids = series(tmp_path, write_ct, 5)
    peer = receiver(answers(status, uids[2]))
    delivery = FolderDelivery(tmp_path)
    with pytest.raises(DestinationUnavailable, match=f"{status:04X}"):
        exporter(peer).deliver(delivery)
    assert delivery.codes() == {"000.dcm": "0000", "001.dcm": "0000"}
    assert peer.stored_uids() == uids[:3]


def test_silence_ends_the_attempt_and_that_instance_comes_last_in_the_next(
    receiver: ReceiverStarter, tmp_path: Path, write_ct: CtWriter
) -> None:
    uids = series(tmp_path, write_ct, 3)

    def hangs_at_first(talk: Conversation) -> None:
        talk.accept()
        talk.read_store()
        talk.wait_for_end()

    peer = receiver(hangs_at_first, takes_all)
    sender = exporter(peer)
    first, second = FolderDelivery(tmp_path), FolderDelivery(tmp_path)
    begun = time.monotonic()
    with pytest.raises(DestinationUnavailable, match="did not answer"):
        sender.deliver(first)
    assert time.monotonic() - begun < 5
    assert first.outcomes == {}
    sender.deliver(second)
    assert peer.stored_uids() == [uids[0], uids[1], uids[2], uids[0]]
    assert second.uris(Outcome.DELIVERED) == ["000.dcm", "001.dcm", "002.dcm"]


# Single instances


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        (0xB007, Outcome.DELIVERED),
        (0x0107, Outcome.DELIVERED),
        (0x0110, Outcome.RETRY),
        (0x0111, Outcome.REJECTED),
        (0x0122, Outcome.REJECTED),
        (0xA900, Outcome.REJECTED),
        (0xC000, Outcome.REJECTED),
        (0xFF00, Outcome.REJECTED),
    ],
)
def test_an_answer_is_for_its_own_instance(
    receiver: ReceiverStarter,
    tmp_path: Path,
    write_ct: CtWriter,
    status: int,
    outcome: Outcome,
) -> None:
    uids = series(tmp_path, write_ct, 3)
    delivery = FolderDelivery(tmp_path)
    peer = receiver(answers(status, uids[1]))
    exporter(peer).deliver(delivery)
    told = delivery.outcomes["001.dcm"]
    assert (told.outcome, told.code) == (outcome, f"{status:04X}")
    assert told.message
    assert (
        delivery.codes(Outcome.DELIVERED).items() >= {"000.dcm": "0000", "002.dcm": "0000"}.items()
    )
    assert peer.stored_uids() == uids


def test_a_refused_context_holds_back_its_files_only(
    receiver: ReceiverStarter, tmp_path: Path, write_ct: CtWriter
) -> None:
    segmentation = "1.2.840.10008.5.1.4.1.1.66.4"
    series(tmp_path, write_ct, 2)
    write_ct(tmp_path / "seg.dcm", SOPClassUID=segmentation)

    def script(talk: Conversation) -> None:
        talk.accept(refuse={segmentation: 3})
        talk.store_all()

    delivery = FolderDelivery(tmp_path)
    exporter(receiver(script)).deliver(delivery)
    assert delivery.uris(Outcome.DELIVERED) == ["000.dcm", "001.dcm"]
    assert delivery.codes(Outcome.REJECTED) == {"seg.dcm": "no-presentation-context"}
    message = str(delivery.outcomes["seg.dcm"].message)
    for part in (segmentation, "Segmentation Storage", "Explicit VR Little Endian"):
        assert part in message


def test_a_file_that_changes_while_others_go_is_rejected(
    receiver: ReceiverStarter, tmp_path: Path, write_ct: CtWriter
) -> None:
    for number in range(3):  # small files are held from their reading on
        write_ct(tmp_path / f"{number:03}.dcm", number=number, size=256)

    def change(count: int) -> None:
        if count == 4:  # three were read, one association is open, the first goes out
            os.utime(tmp_path / "001.dcm", ns=(1, 1))
            (tmp_path / "002.dcm").unlink()

    delivery = FolderDelivery(tmp_path, at_checkpoint=change)
    exporter(receiver(takes_all)).deliver(delivery)
    assert delivery.codes(Outcome.DELIVERED) == {"000.dcm": "0000"}
    assert delivery.codes(Outcome.REJECTED) == {"001.dcm": "file-changed"}
    assert delivery.codes(Outcome.RETRY) == {"002.dcm": "missing-file"}


# Associations that break


def violates(talk: Conversation) -> None:
    talk.send_pdu(2, b"")


@pytest.mark.parametrize(
    "how",
    [
        lambda talk: talk.abort(),
        lambda talk: talk.reset(),
        lambda talk: None,
        lambda talk: talk.send_pdu(5),
        violates,
    ],
    ids=["abort", "reset", "close", "release", "violation"],
)
def test_one_instance_that_breaks_the_association_each_time_is_rejected(
    receiver: ReceiverStarter,
    tmp_path: Path,
    write_ct: CtWriter,
    how: Callable[[Conversation], None],
) -> None:
    uids = series(tmp_path, write_ct, 4)
    peer = receiver(breaks_at(uids[1], how=how))
    delivery = FolderDelivery(tmp_path)
    exporter(peer).deliver(delivery)
    assert delivery.codes(Outcome.REJECTED) == {"001.dcm": "aborts-association"}
    assert delivery.uris(Outcome.DELIVERED) == ["000.dcm", "002.dcm", "003.dcm"]
    assert peer.stored_uids() == [uids[0], uids[2], uids[3]]
    assert peer.connections == 3


def test_one_that_breaks_it_once_arrives(
    receiver: ReceiverStarter, tmp_path: Path, write_ct: CtWriter
) -> None:
    uids = series(tmp_path, write_ct, 3)
    peer = receiver(breaks_at(uids[0]), takes_all)
    delivery = FolderDelivery(tmp_path)
    exporter(peer).deliver(delivery)
    assert peer.stored_uids() == [uids[1], uids[2], uids[0]]
    assert delivery.uris(Outcome.DELIVERED) == ["000.dcm", "001.dcm", "002.dcm"]


def test_a_receiver_that_breaks_at_every_instance_is_unavailable(
    receiver: ReceiverStarter, tmp_path: Path, write_ct: CtWriter
) -> None:
    uids = series(tmp_path, write_ct, 5)
    peer = receiver(breaks_at(*uids))
    delivery = FolderDelivery(tmp_path)
    with pytest.raises(DestinationUnavailable, match="3 different instances in a row"):
        exporter(peer).deliver(delivery)
    assert delivery.outcomes == {}
    assert peer.connections == 3


def test_a_receiver_that_closes_after_every_few_instances_gets_all(
    receiver: ReceiverStarter, tmp_path: Path, write_ct: CtWriter
) -> None:
    def takes_two(talk: Conversation) -> None:
        talk.accept()
        for _ in range(2):
            talk.respond(*talk.read_store())

    uids = series(tmp_path, write_ct, 9)
    peer = receiver(takes_two)
    delivery = FolderDelivery(tmp_path)
    exporter(peer).deliver(delivery)
    assert sorted(peer.stored_uids()) == sorted(uids)
    assert len(delivery.uris(Outcome.DELIVERED)) == 9


def test_an_instance_that_brings_the_receiver_down_does_not_hold_up_the_rest(
    receiver: ReceiverStarter, tmp_path: Path, write_ct: CtWriter
) -> None:
    """Each break ends the attempt, as no new association can be had; still the third is the last."""
    uids = series(tmp_path, write_ct, 3)
    bad = breaks_at(uids[0])

    def is_down(talk: Conversation) -> None:
        talk.reject(2, 3, 1)

    peer = receiver(bad, is_down, bad, is_down, bad)
    sender = exporter(peer)
    with pytest.raises(DestinationUnavailable, match="temporary congestion"):
        sender.deliver(FolderDelivery(tmp_path))
    second = FolderDelivery(tmp_path)
    with pytest.raises(DestinationUnavailable, match="temporary congestion"):
        sender.deliver(second)
    assert second.codes() == {"001.dcm": "0000", "002.dcm": "0000"}
    for name in ("001.dcm", "002.dcm"):  # what is delivered is not in the next claim
        (tmp_path / name).unlink()
    delivery = FolderDelivery(tmp_path)
    sender.deliver(delivery)
    assert delivery.codes(Outcome.REJECTED) == {"000.dcm": "aborts-association"}
    assert peer.stored_uids() == uids[1:]


# Stopping


@pytest.mark.parametrize("error", [Stopping, LeaseLost])
def test_a_checkpoint_ends_the_task_and_releases_the_association(
    receiver: ReceiverStarter,
    tmp_path: Path,
    write_ct: CtWriter,
    error: type[Exception],
) -> None:
    released = []

    def script(talk: Conversation) -> None:
        talk.accept()
        for _ in range(2):
            talk.respond(*talk.read_store())
        released.append(talk.read_pdu()[0])
        talk.wait_for_end()  # without a word

    def stop(count: int) -> None:
        if len(delivery.outcomes) == 2:
            raise error("now")

    uids = series(tmp_path, write_ct, 6)
    peer = receiver(script)
    delivery = FolderDelivery(tmp_path, at_checkpoint=stop)
    begun = time.monotonic()
    with pytest.raises(error):
        exporter(peer).deliver(delivery)
    assert time.monotonic() - begun < 5
    peer.stop()
    assert released == [5]
    assert peer.stored_uids() == uids[:2]
    assert delivery.uris(Outcome.DELIVERED) == ["000.dcm", "001.dcm"]


def test_a_stop_is_heard_in_a_pause(
    receiver: ReceiverStarter, tmp_path: Path, write_ct: CtWriter
) -> None:
    (uid,) = series(tmp_path, write_ct, 1)

    def stop(count: int) -> None:
        if count == 5:
            raise Stopping("now")

    patient = AssociationSettings(dimse=0.5, release=0.5, pause=60, idle=0)
    peer = receiver(breaks_at(uid))
    pacs = Destination(name="Pacs", ae_title="ARCHIVE", host="127.0.0.1", port=peer.port)
    begun = time.monotonic()
    with pytest.raises(Stopping):
        DicomExporter(lambda: [pacs], "ClaraSCU", patient, SystemClock(), Secrets(None)).deliver(
            FolderDelivery(tmp_path, at_checkpoint=stop)
        )
    assert time.monotonic() - begun < 10


# No patient data in what is told


def test_no_patient_is_named_in_any_message(
    receiver: ReceiverStarter, tmp_path: Path, write_ct: CtWriter
) -> None:
    statuses = [0x0110, 0x0111, 0xA900, 0xB000]
    for number in range(len(statuses)):
        image = write_ct(tmp_path / f"{number:03}.dcm", number=number, PatientID="SECRET-ID")
        image.PatientName = "SECRET^NAME"
        image.save_as(tmp_path / f"{number:03}.dcm", enforce_file_format=True)
        assert dcmread(tmp_path / f"{number:03}.dcm").PatientName == "SECRET^NAME"

    def script(talk: Conversation) -> None:
        talk.accept(refuse=NO_ASKING_BACK)
        talk.store_all(lambda count: statuses[len(talk.stored) - 1])

    delivery = FolderDelivery(tmp_path)
    exporter(receiver(script)).deliver(delivery)
    assert len(delivery.outcomes) == 4
    assert "SECRET" not in str(delivery.outcomes)
