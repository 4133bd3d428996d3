"""The table of faults in docs/reference/dicom.md, each row with one association and with four.

Whatever a receiver does: what is told as delivered, it has; what it has, is told as delivered, unless in doubt.
"""

from __future__ import annotations

import contextlib
import re
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from pydicom import Dataset

from clara_results.agents.dicom.association import AssociationSettings
from clara_results.agents.dicom.exporter import DicomExporter
from clara_results.agents.secrets import Secrets
from clara_results.domain.clock import SystemClock
from clara_results.domain.tasks import Outcome
from clara_results.errors import DestinationUnavailable, LeaseLost, Stopping
from clara_results.wire.destinations import Destination
from tests.faults.conftest import ABORT, PeerGone
from tests.support.delivery import FolderDelivery

if TYPE_CHECKING:
    from tests.conftest import CtWriter
    from tests.faults.conftest import Conversation, ReceiverStarter, Script, ScriptedReceiver

DOCUMENT = Path(__file__).parents[2] / "docs" / "reference" / "dicom.md"
COUNT = 12
"""Instances of each task; the fault is at the fifth, where it is at one."""
SHORT = AssociationSettings(connect=2, association=0.5, dimse=0.5, release=0.5, pause=0.01)
PATIENT = AssociationSettings(release=0.5, pause=0.01)

Act = Callable[["Conversation", int, Dataset], None]
"""What a receiver does once it has read an instance: with the context and the command set."""
DELIVERED = "delivered"


@dataclass(frozen=True)
class Fault:
    """A row of the table.

    Attributes:
        name: Its first column.
        scripts: What the receiver does, connection by connection, given the UIDs of the instances.
        attempts: How each attempt at the task ends: None, or the code of what it waits for.
        rejected: The code with which the fifth instance is rejected; None: it is delivered.
        held: What the receiver has in the end: all, all but one (the fifth), none, or those under way, perhaps.
        waits: How long it is waited for.
    """

    name: str
    scripts: Callable[[list[str]], list[Script]]
    attempts: tuple[str | None, ...] = (None,)
    rejected: str | None = None
    held: str = "all"
    waits: AssociationSettings = PATIENT


def serves(acts: dict[str, Act], most: int | None = None) -> Script:
    """Take instances, but do with these what is said; end after so many."""

    def script(talk: Conversation) -> None:
        talk.accept()
        taken = 0
        while most is None or taken < most:
            context, command, data = talk.read_message()
            uid = str(command.AffectedSOPInstanceUID)
            if uid in acts:
                acts[uid](talk, context, command)
                return
            talk.stored.append((uid, data))
            talk.respond(context, command)
            taken += 1

    return script


def at_fifth(act: Act, then: Script | None = None) -> Callable[[list[str]], list[Script]]:
    """Do this at the fifth instance, each time, or only until then."""

    def scripts(uids: list[str]) -> list[Script]:
        first = serves({uids[4]: act})
        return [first] if then is None else [first] * 4 + [then]

    return scripts


def once_at_fifth(act: Act) -> Callable[[list[str]], list[Script]]:
    """Do this at the fifth instance, but not a second time, whichever association it comes by."""

    def scripts(uids: list[str]) -> list[Script]:
        acts: dict[str, Act] = {}

        def first_time(talk: Conversation, context: int, command: Dataset) -> None:
            del acts[uids[4]]  # for all associations
            act(talk, context, command)

        acts[uids[4]] = first_time
        return [serves(acts)]

    return scripts


def at_each(act: Act) -> Callable[[list[str]], list[Script]]:
    return lambda uids: [serves(dict.fromkeys(uids, act))]


def always(script: Script) -> Callable[[list[str]], list[Script]]:
    return lambda _: [script]


def rejects(result: int, source: int, reason: int) -> Callable[[list[str]], list[Script]]:
    return always(lambda talk: talk.reject(result, source, reason))


def aborts(talk: Conversation, context: int, command: Dataset) -> None:
    talk.abort()


def resets(talk: Conversation, context: int, command: Dataset) -> None:
    talk.reset()


def is_silent(talk: Conversation, context: int, command: Dataset) -> None:
    talk.wait_for_end()


def wrong_message(talk: Conversation, context: int, command: Dataset) -> None:
    talk.respond(context, command, message_id=command.MessageID + 1)
    talk.wait_for_end()


def wrong_pdu(talk: Conversation, context: int, command: Dataset) -> None:
    talk.send_pdu(2, b"\0" * 68)
    talk.wait_for_end()


def lies(talk: Conversation, context: int, command: Dataset) -> None:
    talk.send_pdu(4, struct.pack(">IBB", 5000, context, 3) + b"\0" * 20)
    talk.wait_for_end()


def claims_a_gigabyte(talk: Conversation, context: int, command: Dataset) -> None:
    talk.send_pdu(4, b"", 1 << 30)
    talk.wait_for_end()


def keeps_it_and_resets(talk: Conversation, context: int, command: Dataset) -> None:
    talk.stored.append((str(command.AffectedSOPInstanceUID), b""))
    talk.reset()


def is_full(talk: Conversation, context: int, command: Dataset) -> None:
    talk.respond(context, command, 0xA700)
    while True:
        talk.respond(*talk.read_message()[:2], 0xA700)


def full_for_a_while(uids: list[str]) -> list[Script]:
    """From the fifth instance on there is no room, until the first attempt is over."""
    over = threading.Event()

    def script(talk: Conversation) -> None:
        talk.accept()
        while True:
            context, command, data = talk.read_message()
            uid = str(command.AffectedSOPInstanceUID)
            if uid in uids[4:] and not over.is_set():
                talk.respond(context, command, 0xA700)
                talk.wait_for_end()  # the association is released, or aborted
                over.set()
                return
            talk.stored.append((uid, data))
            talk.respond(context, command)

    return [script]


def aborts_within(uid_of: Callable[[list[str]], str]) -> Callable[[list[str]], list[Script]]:
    """Abort in the middle of the first PDU of an instance's data set."""

    def scripts(uids: list[str]) -> list[Script]:
        broken = uid_of(uids)

        def script(talk: Conversation) -> None:
            talk.accept()
            command = b""

            def watched() -> tuple[int, bytes]:
                nonlocal command
                kind, _, length = struct.unpack(">BBI", talk._read(6))
                head = talk._read(6 if kind == 4 else 4)
                is_command = kind == 4 and head[5] & 1
                if kind == 4 and not is_command and broken.encode() in command:
                    talk._read(100)
                    talk.abort(2, 6)
                    raise EndOfScript
                body = head + talk._read(length - len(head))
                command = body if is_command else command
                return kind, body

            talk.read_pdu = watched  # type: ignore[method-assign]
            try:
                talk.store_all()
            except EndOfScript:
                talk.wait_for_end()

        return [script]

    return scripts


class EndOfScript(Exception):
    """The fault has happened."""


def slowly(rate: int) -> Script:
    """Take bytes at so many a second."""

    def script(talk: Conversation) -> None:
        talk.accept()
        read = talk._read

        def paced(count: int) -> bytes:
            data = b""
            while len(data) < count:
                data += read(min(100, count - len(data)))
                time.sleep(min(100, count) / rate)
            return data

        talk._read = paced  # type: ignore[method-assign]
        with contextlib.suppress(ConnectionError):  # the sender has lost its patience
            talk.store_all()

    return script


UNAVAILABLE = "destination-unavailable"
FAULTS = [
    Fault("rejects the association: no reason given", rejects(1, 1, 1), (UNAVAILABLE,), held="none"),
    Fault("rejects the association: application context", rejects(1, 1, 2), (UNAVAILABLE,), held="none"),
    Fault("rejects the association: calling AE title", rejects(1, 1, 3), (UNAVAILABLE,), held="none"),
    Fault("rejects the association: called AE title", rejects(1, 1, 7), (UNAVAILABLE,), held="none"),
    Fault("rejects the association: its protocol machine", rejects(1, 2, 1), (UNAVAILABLE,), held="none"),
    Fault("rejects the association: protocol version", rejects(1, 2, 2), (UNAVAILABLE,), held="none"),
    Fault("rejects the association: congestion", rejects(2, 3, 1), (UNAVAILABLE,), held="none"),
    Fault("rejects the association: local limit", rejects(2, 3, 2), (UNAVAILABLE,), held="none"),
    Fault("takes the connection and never answers", always(lambda talk: talk.wait_for_end()), (UNAVAILABLE,), held="none", waits=SHORT),
    Fault("never answers one instance, the first time", once_at_fifth(is_silent), (UNAVAILABLE, None), waits=SHORT),
    Fault("never answers any instance", at_each(is_silent), (UNAVAILABLE,), held="none", waits=SHORT),
    Fault("aborts in the middle of one instance, each time", aborts_within(lambda uids: uids[4]), (None,), "aborts-association", "all but one"),
    Fault("aborts at one instance, each time", at_fifth(aborts), (None,), "aborts-association", "all but one"),
    Fault("aborts at one instance, once", once_at_fifth(aborts)),
    Fault("resets at one instance, once", once_at_fifth(resets)),
    Fault("keeps an instance, and resets before it answers, once", once_at_fifth(keeps_it_and_resets)),
    Fault("resets at every instance", at_each(resets), ("association-aborted",), held="none"),
    Fault("answers one instance with another message's id, each time", at_fifth(wrong_message), (None,), "aborts-association", "all but one"),
    Fault("answers one instance with a PDU of the wrong type, each time", at_fifth(wrong_pdu), (None,), "aborts-association", "all but one"),
    Fault("lies about the length of an answer, each time", at_fifth(lies), (None,), "aborts-association", "all but one"),
    Fault("claims an answer of a gigabyte, each time", at_fifth(claims_a_gigabyte), (None,), "aborts-association", "all but one"),
    Fault("closes after every two instances", lambda _: [serves({}, most=2)]),
    Fault("is full (A700) for a while", full_for_a_while, ("out-of-resources", None)),
    Fault("reads at 1 KB/s, more slowly than an instance may take", always(slowly(1_000)), (UNAVAILABLE,), held="those under way", waits=SHORT),
]  # fmt: skip


def exporter(peer: ScriptedReceiver, settings: AssociationSettings = PATIENT) -> DicomExporter:
    pacs = Destination(
        name="Pacs", ae_title="SIXTEEN  LETTERS", host=peer.host, port=peer.port, max_associations=4
    )
    return DicomExporter(lambda: [pacs], "ClaraSCU", settings, SystemClock(), Secrets(None))


def series(folder: Path, write_ct: CtWriter, count: int = COUNT, size: int = 16) -> list[str]:
    return [
        str(write_ct(folder / f"{number:02}.dcm", number=number, size=size).SOPInstanceUID)
        for number in range(count)
    ]


@pytest.mark.parametrize("associations", [1, 4])
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_has_the_outcome_that_the_table_says(
    receiver: ReceiverStarter, tmp_path: Path, write_ct: CtWriter, fault: Fault, associations: int
) -> None:
    uids = series(tmp_path, write_ct)
    by_uri = {f"{number:02}.dcm": uid for number, uid in enumerate(uids)}
    peer = receiver(*fault.scripts(uids))
    sender = exporter(peer, fault.waits)
    told: dict[str, tuple[Outcome, str | None, bool]] = {}
    for expected in fault.attempts:
        delivery = FolderDelivery(tmp_path, associations=associations)
        begun, ended = time.monotonic(), None
        try:
            sender.deliver(delivery)
        except DestinationUnavailable as error:
            ended = error.code
        assert ended == expected
        assert time.monotonic() - begun < 15
        for uri, one in delivery.outcomes.items():
            told[uri] = (one.outcome, one.code, one.doubt)
            (tmp_path / uri).unlink()  # what is settled is in no further claim
    sender.close()
    peer.stop()
    delivered = {by_uri[uri] for uri, (outcome, _, _) in told.items() if outcome == DELIVERED}
    held = set(peer.stored_uids())
    assert delivered <= held, "told as delivered, and the receiver does not have it"
    if fault.held == "those under way":
        assert not told
        assert len(held) <= associations
        return
    assert held == {"all": set(uids), "all but one": {*uids} - {uids[4]}, "none": set()}[fault.held]
    assert delivered == held
    assert len(told) == (0 if fault.held == "none" else COUNT)
    if fault.rejected is not None:
        assert told["04.dcm"] == (Outcome.REJECTED, fault.rejected, True)


@pytest.mark.parametrize("associations", [1, 4])
def test_a_slow_receiver_gets_all_while_no_instance_takes_too_long(
    receiver: ReceiverStarter, tmp_path: Path, write_ct: CtWriter, associations: int
) -> None:
    uids = series(tmp_path, write_ct, 4, size=4)
    peer = receiver(slowly(1_000))
    patient = AssociationSettings(dimse=20, release=5)
    delivery = FolderDelivery(tmp_path, associations=associations)
    begun = time.monotonic()
    sender = exporter(peer, patient)
    sender.deliver(delivery)
    assert time.monotonic() - begun > 1
    assert set(peer.stored_uids()) == set(uids)
    assert len(delivery.codes(Outcome.DELIVERED)) == 4
    sender.close()


@pytest.mark.parametrize("associations", [1, 4])
def test_300_sop_classes_by_ipv6_to_an_ae_title_of_16_characters(
    receiver: ReceiverStarter, tmp_path: Path, write_ct: CtWriter, associations: int
) -> None:
    called: set[str] = set()
    most: list[int] = []

    def script(talk: Conversation) -> None:
        asked = talk.accept()
        called.add(str(asked.called_ae_title))
        most.append(len(asked.presentation_context_definition_list))
        talk.store_all()

    for number in range(300):
        write_ct(
            tmp_path / f"{number:03}.dcm", number=number, size=2, SOPClassUID=f"1.2.3.{number}"
        )
    try:
        peer = receiver(script, host="::1")
    except OSError:
        pytest.skip("this machine has no IPv6")
    delivery = FolderDelivery(tmp_path, associations=associations)
    sender = exporter(peer)
    sender.deliver(delivery)
    sender.close()
    assert len(set(peer.stored_uids())) == len(delivery.codes(Outcome.DELIVERED)) == 300
    assert called == {"SIXTEEN  LETTERS"}
    assert max(most) <= 128


@pytest.mark.parametrize(
    ("error", "patience", "associations"), [(LeaseLost, 2.0, 1), (Stopping, 5.0, 4)]
)
def test_an_answer_that_does_not_come_holds_up_no_end(
    receiver: ReceiverStarter,
    tmp_path: Path,
    write_ct: CtWriter,
    error: type[Exception],
    patience: float,
    associations: int,
) -> None:
    """The agent is asked to end, or has lost the task, while a receiver is silent; then that hears an abort."""
    silent, ends = threading.Event(), []

    def script(talk: Conversation) -> None:
        talk.accept()
        talk.read_message()
        silent.set()
        try:
            ends.append(talk.read_pdu()[0])
        except PeerGone:
            ends.append(ABORT)

    def checkpoint(_: int) -> None:
        if silent.is_set():
            raise error("now")

    series(tmp_path, write_ct)
    peer = receiver(script)
    delivery = FolderDelivery(tmp_path, associations=associations, at_checkpoint=checkpoint)
    sender = exporter(peer, AssociationSettings())
    begun = time.monotonic()
    with pytest.raises(error):
        sender.deliver(delivery)
    assert time.monotonic() - begun < patience + 3
    sender.close()
    peer.stop()
    assert delivery.outcomes == {}
    assert set(ends) == {ABORT}


def test_the_table_has_a_row_for_each_fault_and_no_other() -> None:
    table = DOCUMENT.read_text().split("\n| the receiver … |", 1)[1].split("\n\n", 1)[0]
    rows = re.findall(r"^\| ([^|]+?) \|", table, re.MULTILINE)[1:]
    assert rows == [fault.name for fault in FAULTS]
