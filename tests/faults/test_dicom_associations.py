"""A task over several associations: order, limits, reuse, and what happens when some of them fail."""

from __future__ import annotations

import hashlib
import io
import struct
import threading
import time
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from pydicom import dcmread
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from clara_results.agents.dicom.association import AssociationSettings
from clara_results.agents.dicom.exporter import DicomExporter
from clara_results.agents.secrets import Secrets
from clara_results.domain.clock import SystemClock
from clara_results.domain.receivers import Clearance, Commit
from clara_results.domain.tasks import Outcome
from clara_results.errors import DestinationUnavailable, LeaseLost, Stopping
from clara_results.wire.destinations import Destination
from tests.conftest import eventually
from tests.faults.conftest import LIMIT
from tests.support.delivery import FolderDelivery
from tests.support.instances import series, takes_all

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from typing import Any

    from pydicom import Dataset

    from tests.conftest import CtWriter
    from tests.faults.conftest import Conversation, ReceiverStarter, Script, ScriptedReceiver

STORAGE = "1.2.840.10008.5.1.4.1.1."
SEGMENTATION, REPORT, KEY_OBJECTS = STORAGE + "66.4", STORAGE + "88.11", STORAGE + "88.59"
SHORT = AssociationSettings(
    connect=2, association=2, dimse=2, release=0.5, pause=0.01, idle=0, task=60
)


class Sender:
    """An exporter with one destination, PACS."""

    def __init__(self, receiver: ScriptedReceiver, settings: AssociationSettings, **changes: Any):
        self.destination = Destination(
            name="Pacs", ae_title="ARCHIVE", host="127.0.0.1", port=receiver.port, **changes
        )
        self.exporter = DicomExporter(
            lambda: [self.destination], "ClaraSCU", settings, SystemClock(), Secrets(None)
        )

    def deliver(self, delivery: FolderDelivery) -> FolderDelivery:
        self.exporter.deliver(delivery)
        return delivery


class SenderMaker:
    def __init__(self) -> None:
        self.made: list[Sender] = []

    def __call__(
        self, receiver: ScriptedReceiver, settings: AssociationSettings = SHORT, **changes: Any
    ) -> Sender:
        self.made.append(Sender(receiver, settings, **changes))
        return self.made[-1]


@pytest.fixture
def sender() -> Iterator[SenderMaker]:
    """Give a function that makes senders, which are closed after the test."""
    maker = SenderMaker()
    yield maker
    for each in maker.made:
        each.exporter.close()


class Gate:
    """Takes instances, and answers none before ``parties`` are there at the same time."""

    def __init__(self, parties: int) -> None:
        self.barrier = threading.Barrier(parties)

    def __call__(self, talk: Conversation) -> None:
        talk.accept()
        first = True
        while True:
            found = talk.read_store()
            if first:
                self.barrier.wait(LIMIT)
                first = False
            talk.respond(*found)


# How many, and in which order


def test_files_are_spread_over_as_many_associations_as_the_task_may_have(
    receiver: ReceiverStarter, sender: SenderMaker, tmp_path: Path, write_ct: CtWriter
) -> None:
    sent = series(tmp_path, write_ct, 12)
    peer = receiver(Gate(4))
    delivery = sender(peer).deliver(FolderDelivery(tmp_path, associations=4))
    assert peer.connections == 4
    assert sorted(peer.stored_uids()) == sorted(sent)
    assert len(delivery.uris(Outcome.DELIVERED)) == 12
    assert max(delivery.used) == 4
    assert delivery.bytes_told == sum(len(data) for _, data in peer.stored)


def test_no_more_associations_than_files(
    receiver: ReceiverStarter, sender: SenderMaker, tmp_path: Path, write_ct: CtWriter
) -> None:
    series(tmp_path, write_ct, 2)
    peer = receiver(Gate(2))
    sender(peer).deliver(FolderDelivery(tmp_path, associations=8))
    assert peer.connections == 2


def test_a_stage_begins_only_when_the_one_before_it_is_answered(
    receiver: ReceiverStarter, sender: SenderMaker, tmp_path: Path, write_ct: CtWriter
) -> None:
    kinds: dict[str, int] = {}
    for stage, sop_class in enumerate((None, SEGMENTATION, REPORT, KEY_OBJECTS)):
        changes: dict[str, Any] = {"SOPClassUID": sop_class} if sop_class else {}
        for number in range(4):
            made = write_ct(tmp_path / f"{9 - stage}-{number}.dcm", number=number, **changes)
            kinds[str(made.SOPInstanceUID)] = stage
    lock, open_stages, seen = threading.Lock(), Counter[int](), list[int]()

    def script(talk: Conversation) -> None:
        talk.accept()
        while True:
            context, command = talk.read_store()
            stage = kinds[str(command.AffectedSOPInstanceUID)]
            with lock:
                open_stages[stage] += 1
                seen.append(stage)
                assert not [each for each, count in open_stages.items() if count and each != stage]
            time.sleep(0.005)  # for the others to do what they must not
            with lock:
                open_stages[stage] -= 1
            talk.respond(context, command)

    peer = receiver(script)
    sender(peer).deliver(FolderDelivery(tmp_path, associations=4))
    assert seen == sorted(seen)
    assert len(seen) == 16


def test_a_task_gives_associations_back_and_takes_up_more_while_it_runs(
    receiver: ReceiverStarter, sender: SenderMaker, tmp_path: Path, write_ct: CtWriter
) -> None:
    series(tmp_path, write_ct, 60)
    delivery = FolderDelivery(tmp_path, associations=4)
    lock, now_open, counts = threading.Lock(), 0, list[tuple[int, int]]()

    def script(talk: Conversation) -> None:
        nonlocal now_open
        talk.accept()
        with lock:
            now_open += 1
        try:
            while True:
                found = talk.read_store()
                with lock:
                    counts.append((len(counts), now_open))
                    if len(counts) == 15:
                        delivery.associations = 1
                    if len(counts) == 35:
                        delivery.associations = 3
                time.sleep(0.01)
                talk.respond(*found)
        finally:
            with lock:
                now_open -= 1

    peer = receiver(script)
    sender(peer).deliver(delivery)
    assert len(delivery.uris(Outcome.DELIVERED)) == 60
    by_number = dict(counts)
    assert max(by_number.values()) == 4
    assert by_number[30] == 1
    assert max(open_ for number, open_ in counts if number > 35) == 3
    assert 1 in delivery.used


# Reuse


def test_an_association_is_reused_by_the_next_task(
    receiver: ReceiverStarter, sender: SenderMaker, tmp_path: Path, write_ct: CtWriter
) -> None:
    for task in "ab":
        series(tmp_path / task, write_ct, 3)
    peer = receiver(takes_all)
    agent = sender(peer, replace(SHORT, idle=30))
    first = agent.deliver(FolderDelivery(tmp_path / "a"))
    assert agent.exporter.idle(first.task) == 1
    agent.deliver(FolderDelivery(tmp_path / "b"))
    assert peer.connections == 1
    assert len(peer.stored) == 6
    agent.exporter.close()
    assert agent.exporter.idle(first.task) == 0


def test_an_association_that_does_not_fit_is_released_for_the_one_that_does(
    receiver: ReceiverStarter, sender: SenderMaker, tmp_path: Path, write_ct: CtWriter
) -> None:
    series(tmp_path / "a", write_ct, 1)
    series(tmp_path / "b", write_ct, 1, SOPClassUID=REPORT)
    peer = receiver(takes_all)
    agent = sender(peer, replace(SHORT, idle=30))
    agent.deliver(FolderDelivery(tmp_path / "a"))
    last = agent.deliver(FolderDelivery(tmp_path / "b"))
    assert peer.connections == 2
    assert agent.exporter.idle(last.task) == 1


def test_an_idle_association_is_released_after_its_time(
    receiver: ReceiverStarter, sender: SenderMaker, tmp_path: Path, write_ct: CtWriter
) -> None:
    released = threading.Event()

    def script(talk: Conversation) -> None:
        try:
            takes_all(talk)
        finally:
            released.set()

    series(tmp_path, write_ct, 1)
    agent = sender(receiver(script), replace(SHORT, idle=0.2))
    done = agent.deliver(FolderDelivery(tmp_path))
    assert not released.is_set()
    assert released.wait(LIMIT)
    eventually(lambda: agent.exporter.idle(done.task) == 0, "no idle association")


def leaves_after(count: int, how: Callable[[Conversation], None]) -> Script:
    """Take so many instances, then end the association while nothing is under way."""

    def script(talk: Conversation) -> None:
        talk.accept()
        for _ in range(count):
            talk.respond(*talk.read_store())
        how(talk)

    return script


@pytest.mark.parametrize("how", ["close", "abort", "reset"])
def test_an_idle_association_that_the_receiver_ended_does_not_count_against_the_instance(
    receiver: ReceiverStarter,
    sender: SenderMaker,
    tmp_path: Path,
    write_ct: CtWriter,
    how: str,
) -> None:
    ends = {
        "close": lambda talk: None,
        "abort": lambda talk: talk.abort(),
        "reset": lambda talk: talk.reset(),
    }
    for task in "abc":
        series(tmp_path / task, write_ct, 1)
    peer = receiver(leaves_after(1, ends[how]))
    agent = sender(peer, replace(SHORT, idle=30))
    for task in "abc":
        done = agent.deliver(FolderDelivery(tmp_path / task))
        assert done.codes() == {"000.dcm": "0000"}
    assert peer.connections == 3


def test_one_that_breaks_at_its_first_instance_after_a_rest_does_not_either(
    receiver: ReceiverStarter, sender: SenderMaker, tmp_path: Path, write_ct: CtWriter
) -> None:
    """The receiver seems to be there, and breaks the association only when it is given something."""

    def script(talk: Conversation) -> None:
        talk.accept()
        talk.respond(*talk.read_store())
        talk.read_pdu()
        talk.reset()

    for task in "abcd":
        series(tmp_path / task, write_ct, 1)
    peer = receiver(script)
    agent = sender(peer, replace(SHORT, idle=30))
    for task in "abcd":
        done = agent.deliver(FolderDelivery(tmp_path / task))
        assert done.codes() == {"000.dcm": "0000"}
    assert peer.connections == 4


# When one fails


def test_an_instance_that_brings_all_down_costs_its_neighbours_nothing(
    receiver: ReceiverStarter, sender: SenderMaker, tmp_path: Path, write_ct: CtWriter
) -> None:
    """As a receiver that is one process: it dies at one instance, with all associations, and is there again."""
    sent = series(tmp_path, write_ct, 12)
    lock, talks = threading.Lock(), set()

    def script(talk: Conversation) -> None:
        talk.accept()
        with lock:
            talks.add(talk)
        while True:
            context, command = talk.read_store()
            if command.AffectedSOPInstanceUID == sent[1]:
                talk.stored.remove((sent[1], talk.stored[-1][1]))
                with lock:
                    for each in talks:
                        each.abort()
                    talks.clear()
                return
            time.sleep(0.01)
            talk.respond(context, command)

    peer = receiver(script)
    delivery = sender(peer).deliver(FolderDelivery(tmp_path, associations=4))
    assert delivery.codes(Outcome.REJECTED) == {"001.dcm": "aborts-association"}
    assert delivery.outcomes["001.dcm"].doubt
    assert len(delivery.uris(Outcome.DELIVERED)) == 11


def test_a_receiver_that_takes_fewer_associations_gets_all_over_those(
    receiver: ReceiverStarter, sender: SenderMaker, tmp_path: Path, write_ct: CtWriter
) -> None:
    lock, taken = threading.Lock(), 0

    def script(talk: Conversation) -> None:
        nonlocal taken
        with lock:
            taken += 1
            full = taken > 2
        if full:
            talk.reject(2, 3, 2)
            return
        talk.accept()
        while True:
            found = talk.read_store()
            time.sleep(0.01)
            talk.respond(*found)

    series(tmp_path, write_ct, 20)
    peer = receiver(script)
    delivery = sender(peer).deliver(FolderDelivery(tmp_path, associations=4))
    assert len(delivery.uris(Outcome.DELIVERED)) == 20
    assert peer.connections == 4


def test_one_that_finds_no_room_stops_the_others_at_their_next_instance(
    receiver: ReceiverStarter, sender: SenderMaker, tmp_path: Path, write_ct: CtWriter
) -> None:
    lock, count = threading.Lock(), 0

    def script(talk: Conversation) -> None:
        nonlocal count
        talk.accept()
        while True:
            found = talk.read_store()
            with lock:
                count += 1
                status = 0xA700 if count == 10 else 0
            time.sleep(0.01)
            talk.respond(*found, status)

    series(tmp_path, write_ct, 60)
    peer = receiver(script)
    delivery = FolderDelivery(tmp_path, associations=4)
    with pytest.raises(DestinationUnavailable, match="A700") as caught:
        sender(peer).deliver(delivery)
    assert caught.value.code == "out-of-resources"
    assert len(delivery.uris(Outcome.DELIVERED)) == len(peer.stored) - 1
    assert 9 <= len(delivery.outcomes) < 20


def is_silent(talk: Conversation) -> None:
    talk.accept()
    talk.read_store()
    talk.wait_for_end()


@pytest.mark.parametrize(("error", "limit"), [(LeaseLost, 4), (Stopping, 8)])
def test_a_silent_receiver_does_not_hold_up_who_must_stop(
    receiver: ReceiverStarter,
    sender: SenderMaker,
    tmp_path: Path,
    write_ct: CtWriter,
    error: type[Exception],
    limit: float,
) -> None:
    series(tmp_path, write_ct, 4)
    peer = receiver(is_silent)

    def stop(_count: int) -> None:
        if len(peer.stored) == 2:
            raise error("now")

    delivery = FolderDelivery(tmp_path, at_checkpoint=stop, associations=2)
    begun = time.monotonic()
    with pytest.raises(error):
        sender(peer, replace(SHORT, dimse=60)).deliver(delivery)
    assert time.monotonic() - begun < limit
    assert delivery.outcomes == {}


def test_a_task_has_its_time(
    receiver: ReceiverStarter, sender: SenderMaker, tmp_path: Path, write_ct: CtWriter
) -> None:
    def script(talk: Conversation) -> None:
        talk.accept()
        while True:
            found = talk.read_store()
            time.sleep(0.1)
            talk.respond(*found)

    series(tmp_path, write_ct, 40)
    peer = receiver(script)
    delivery = FolderDelivery(tmp_path, associations=2)
    with pytest.raises(DestinationUnavailable, match=r"within 0\.5 s") as caught:
        sender(peer, replace(SHORT, task=0.5)).deliver(delivery)
    assert caught.value.code == "task-timeout"
    assert 0 < len(delivery.uris(Outcome.DELIVERED)) < 20
    assert len(delivery.uris(Outcome.DELIVERED)) == len(peer.stored)


# Custody


def test_all_is_announced_before_it_goes_out(
    receiver: ReceiverStarter, sender: SenderMaker, tmp_path: Path, write_ct: CtWriter
) -> None:
    sent = series(tmp_path, write_ct, 40)
    delivery = FolderDelivery(tmp_path, associations=2)

    def script(talk: Conversation) -> None:
        talk.accept()
        while True:
            context, command = talk.read_store()
            announced = {one.sop_instance_uid for one in delivery.announced}
            assert command.AffectedSOPInstanceUID in announced
            talk.respond(context, command)

    peer = receiver(script)
    sender(peer).deliver(delivery)
    assert {one.sop_instance_uid for one in delivery.announced} == set(sent)


def test_what_is_there_or_has_another_objects_uid_is_not_sent(
    receiver: ReceiverStarter, sender: SenderMaker, tmp_path: Path, write_ct: CtWriter
) -> None:
    sent = series(tmp_path, write_ct, 3)
    peer = receiver(takes_all)
    clearances = {"000.dcm": Clearance.DELIVERED, "002.dcm": Clearance.REUSED}
    delivery = sender(peer).deliver(FolderDelivery(tmp_path, clearances=clearances))
    assert peer.stored_uids() == [sent[1]]
    assert delivery.codes(Outcome.DELIVERED) == {"000.dcm": "already-delivered", "001.dcm": "0000"}
    assert delivery.codes(Outcome.REJECTED) == {"002.dcm": "uid-reused"}


def test_nothing_to_send_after_all_opens_no_association(
    receiver: ReceiverStarter, sender: SenderMaker, tmp_path: Path, write_ct: CtWriter
) -> None:
    series(tmp_path, write_ct, 1)
    peer = receiver(takes_all)
    sender(peer).deliver(FolderDelivery(tmp_path, clearances={"000.dcm": Clearance.DELIVERED}))
    assert peer.connections == 0


@pytest.mark.parametrize("commitment", [Commit.ASK, Commit.REQUIRE])
def test_what_is_to_be_committed_awaits_it(
    receiver: ReceiverStarter,
    sender: SenderMaker,
    tmp_path: Path,
    write_ct: CtWriter,
    commitment: Commit,
) -> None:
    series(tmp_path, write_ct, 2)
    peer = receiver(takes_all)
    delivery = sender(peer, commitment=commitment).deliver(FolderDelivery(tmp_path))
    assert delivery.uris(Outcome.AWAITING) == ["000.dcm", "001.dcm"]


# Transcoding


def refuses(*what: str) -> Script:
    """Refuse these SOP classes and transfer syntaxes, and take the rest."""

    def script(talk: Conversation) -> None:
        talk.accept(refuse=dict.fromkeys(what, 4))
        talk.store_all()

    return script


def test_what_is_refused_as_it_is_goes_in_another_transfer_syntax(
    receiver: ReceiverStarter, sender: SenderMaker, tmp_path: Path, write_ct: CtWriter
) -> None:
    implicit = series(tmp_path / "a", write_ct, 3, transfer_syntax=ImplicitVRLittleEndian)
    explicit = series(tmp_path / "b", write_ct, 3, transfer_syntax=ExplicitVRLittleEndian)
    peer = receiver(refuses(ImplicitVRLittleEndian))
    delivery = sender(peer).deliver(FolderDelivery(tmp_path))
    assert len(delivery.uris(Outcome.DELIVERED)) == 6
    assert sorted(peer.stored_uids()) == sorted(implicit + explicit)
    assert peer.connections == 1  # what is accepted already need not be proposed again
    message = str(delivery.outcomes["a/000.dcm"].message)
    assert message == "sent as Explicit VR Little Endian; it was Implicit VR Little Endian"
    assert delivery.outcomes["b/000.dcm"].message is None
    stored = dict(peer.stored)
    meant = dcmread(tmp_path / "a" / "000.dcm")
    found = dcmread(io.BytesIO(stored[implicit[0]]), force=True)
    assert found.to_json_dict() == meant.to_json_dict()
    digests = {one.uri: one.sha256 for one in delivery.announced}
    raw = (tmp_path / "a" / "000.dcm").read_bytes()
    begins = raw.index(stored_head(meant))
    assert digests["a/000.dcm"] == hashlib.sha256(raw[begins:]).hexdigest()


def stored_head(image: Dataset) -> bytes:
    """Return the first bytes of a data set in implicit little endian: the head of (0008,0005)."""
    value = str(image.SpecificCharacterSet)
    return struct.pack("<HHI", 8, 5, len(value))


def test_what_is_not_to_be_transcoded_is_rejected(
    receiver: ReceiverStarter, sender: SenderMaker, tmp_path: Path, write_ct: CtWriter
) -> None:
    series(tmp_path, write_ct, 1, transfer_syntax=ImplicitVRLittleEndian)
    peer = receiver(refuses(ImplicitVRLittleEndian))
    delivery = sender(peer, transcode=False).deliver(FolderDelivery(tmp_path))
    assert delivery.codes(Outcome.REJECTED) == {"000.dcm": "no-presentation-context"}
    assert peer.connections == 1


def test_what_is_refused_in_every_transfer_syntax_is_rejected_with_all_of_them(
    receiver: ReceiverStarter, sender: SenderMaker, tmp_path: Path, write_ct: CtWriter
) -> None:
    series(tmp_path, write_ct, 2, transfer_syntax=ImplicitVRLittleEndian)
    peer = receiver(refuses(STORAGE + "2"))
    delivery = sender(peer).deliver(FolderDelivery(tmp_path))
    assert set(delivery.codes(Outcome.REJECTED).values()) == {"no-presentation-context"}
    message = str(delivery.outcomes["000.dcm"].message)
    assert "Implicit VR Little Endian" in message
    assert "nor in Explicit VR Little Endian" in message


def test_what_was_refused_once_is_not_proposed_again_while_the_association_lasts(
    receiver: ReceiverStarter, sender: SenderMaker, tmp_path: Path, write_ct: CtWriter
) -> None:
    for task in "ab":
        series(tmp_path / task, write_ct, 2, transfer_syntax=ImplicitVRLittleEndian)
    peer = receiver(refuses(ImplicitVRLittleEndian))
    agent = sender(peer, replace(SHORT, idle=30))
    for task in "ab":
        done = agent.deliver(FolderDelivery(tmp_path / task))
        assert len(done.uris(Outcome.DELIVERED)) == 2
    assert peer.connections == 2
