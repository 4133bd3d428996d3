"""What a receiver can do wrong, and the typed error that each makes: never a hang, never a silence."""

from __future__ import annotations

import mmap
import os
import socket
import struct
import threading
import time
from contextlib import ExitStack, closing, contextmanager
from typing import TYPE_CHECKING

import pytest
from pynetdicom.pdu_primitives import UserIdentityNegotiation

from clara_results.agents.dicom.association import (
    CONTEXT_LIMIT,
    VERIFICATION,
    Association,
    AssociationSettings,
    Identity,
    Peer,
)
from clara_results.agents.dicom.connection import (
    RECEIVED_LIMIT,
    AssociationAborted,
    Interrupted,
    PduConnection,
)
from clara_results.agents.dicom.part10 import IMPLEMENTATION_CLASS_UID
from clara_results.domain.clock import SystemClock
from clara_results.errors import DestinationUnavailable, UnreadableInput
from tests.conftest import eventually
from tests.support.instances import takes_all

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.faults.conftest import (
        Conversation,
        ReceiverStarter,
        Script,
        ScriptedReceiver,
    )

CLOCK = SystemClock()
IMPLICIT = "1.2.840.10008.1.2"
CT = ("1.2.840.10008.5.1.4.1.1.2", IMPLICIT)
SHORT = AssociationSettings(connect=2, association=0.3, dimse=0.3, release=0.3)
UID = "1.2.3.4"
DATA = bytes(range(256)) * 100
LARGE = b"\7" * (32 << 20)
"""More than the socket buffers of both sides hold."""


def associate(
    receiver: ScriptedReceiver,
    settings: AssociationSettings = SHORT,
    contexts: tuple[tuple[str, str], ...] = (CT,),
    called: str = "PACS",
    calling: str = "ClaraSCU",
    identity: Identity | None = None,
) -> Association:
    peer = Peer(receiver.host, receiver.port, called, calling, None, identity)
    return Association(peer, contexts, settings, CLOCK).open()


def connect(host: str, port: int, seconds: float) -> None:
    PduConnection(1, CLOCK).connect(host, port, seconds)


def store(receiver: ScriptedReceiver, data: bytes = DATA) -> int:
    with associate(receiver) as association:
        return association.store(UID, CT, memoryview(data))


# What goes well


@pytest.mark.parametrize(
    ("max_pdu", "size"),
    [(9, 1000), (64, 100_000)]  # more pieces than one sendmsg takes
    + [
        (limit, size)
        for limit in (0, 16_384, 131_072)
        for size in (0, 1, 16_378, 16_379, 3_000_001)
    ]
    + [(1 << 24, 3_000_001)],
)
def test_every_byte_arrives_whatever_the_pdu_length(
    receiver: ReceiverStarter, max_pdu: int, size: int
) -> None:
    def script(talk: Conversation) -> None:
        talk.accept(max_pdu)
        talk.store_all()

    data = os.urandom(size)
    peer = receiver(script)
    settings = AssociationSettings(dimse=20)
    with associate(peer, settings) as association:
        assert association.store(UID, CT, memoryview(data)) == 0
        assert association.store("1.2.5", CT, memoryview(b"again!")) == 0
        association.release()
    assert peer.stored == [(UID, data), ("1.2.5", b"again!")]


def test_no_pdu_is_longer_than_the_receiver_allows(receiver: ReceiverStarter) -> None:
    lengths = []

    def script(talk: Conversation) -> None:
        talk.accept(4096)
        read = talk.read_pdu

        def recorded() -> tuple[int, bytes]:
            kind, body = read()
            lengths.append(len(body))
            return kind, body

        talk.read_pdu = recorded  # type: ignore[method-assign]
        talk.store_all()

    with associate(receiver(script)) as association:
        association.store(UID, CT, memoryview(DATA))
        association.release()
    assert max(lengths) == 4096


def test_what_is_asked_for(receiver: ReceiverStarter) -> None:
    asked = []

    def script(talk: Conversation) -> None:
        asked.append(talk.accept())
        talk.store_all()

    sixteen = "SIXTEEN  LETTERS"
    association = associate(receiver(script), called=sixteen, calling=sixteen[::-1])
    association.release()
    (request,) = asked
    assert request.called_ae_title == sixteen
    assert request.calling_ae_title == sixteen[::-1]
    assert request.implementation_class_uid == IMPLEMENTATION_CLASS_UID
    assert request.maximum_length_received == SHORT.max_pdu
    contexts = request.presentation_context_definition_list
    assert [(str(c.abstract_syntax), list(c.transfer_syntax)) for c in contexts] == [
        (CT[0], [CT[1]])
    ]


def test_as_many_contexts_as_an_association_can_have(receiver: ReceiverStarter) -> None:
    contexts = tuple((f"1.2.3.{index}", IMPLICIT) for index in range(CONTEXT_LIMIT))
    with associate(receiver(takes_all), contexts=contexts) as association:
        assert all(association.accepts(context) for context in contexts)
        assert association.store(UID, contexts[-1], memoryview(DATA)) == 0
        association.release()


def test_a_refused_context_says_why_and_the_others_go(receiver: ReceiverStarter) -> None:
    def script(talk: Conversation) -> None:
        talk.accept(refuse={"1.2.3": 3, "1.2.4": 4})
        talk.store_all()

    contexts = (CT, ("1.2.3", IMPLICIT), ("1.2.4", IMPLICIT))
    with associate(receiver(script), contexts=contexts) as association:
        assert [association.accepts(context) for context in contexts] == [True, False, False]
        assert "SOP class" in association.refused[contexts[1]]
        assert "transfer syntax" in association.refused[contexts[2]]
        assert association.store(UID, CT, memoryview(DATA)) == 0


def test_items_that_are_not_known_are_passed_over(receiver: ReceiverStarter) -> None:
    def script(talk: Conversation) -> None:
        talk.accept(extra=struct.pack(">BBH", 0x7E, 0, 5) + b"hello")
        talk.store_all()

    assert store(receiver(script)) == 0


@pytest.mark.parametrize("pieces", [2, 5])
def test_an_answer_in_fragments(receiver: ReceiverStarter, pieces: int) -> None:
    def script(talk: Conversation) -> None:
        talk.accept()
        talk.respond(*talk.read_store(), 0xB007, pieces=pieces, instance=UID)

    assert store(receiver(script)) == 0xB007


def test_an_answer_that_trickles_in(receiver: ReceiverStarter) -> None:
    def script(talk: Conversation) -> None:
        talk.accept()
        send = talk.socket

        class Trickle:
            def sendall(self, data: bytes) -> None:
                for byte in data:
                    send.sendall(bytes([byte]))

        context, command = talk.read_store()
        talk.socket = Trickle()  # type: ignore[assignment]
        talk.respond(context, command)
        talk.socket = send
        talk.wait_for_end()

    assert store(receiver(script)) == 0


def test_message_ids_start_anew_past_their_end(receiver: ReceiverStarter) -> None:
    ids = []

    def script(talk: Conversation) -> None:
        talk.accept()
        for _ in range(3):
            context, command = talk.read_store()
            ids.append(command.MessageID)
            talk.respond(context, command)

    with associate(receiver(script)) as association:
        association._message_id = 0xFFFE
        for _ in range(3):
            assert association.store(UID, CT, memoryview(DATA)) == 0
    assert ids == [0xFFFF, 1, 2]


def test_echo(receiver: ReceiverStarter) -> None:
    def script(talk: Conversation) -> None:
        talk.accept()
        context, command, data = talk.read_message()
        assert (command.CommandField, command.AffectedSOPClassUID, data) == (
            0x30,
            VERIFICATION,
            b"",
        )
        talk.respond(context, command)

    with associate(receiver(script), contexts=((VERIFICATION, IMPLICIT),)) as association:
        assert association.echo() == 0


def test_a_receiver_on_ipv6(receiver: ReceiverStarter) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    assert store(receiver(takes_all, host="::1")) == 0


def test_a_slow_reader_is_waited_for_while_it_reads(receiver: ReceiverStarter) -> None:
    """It never pauses for as long as it may, but takes much longer altogether."""

    def script(talk: Conversation) -> None:
        talk.accept(0)
        read = talk._read

        def slowly(count: int) -> bytes:
            time.sleep(0.015)
            return read(count)

        talk._read = slowly  # type: ignore[method-assign]
        talk.store_all()

    peer = receiver(script)
    settings = AssociationSettings(dimse=1)
    begun = time.monotonic()
    with associate(peer, settings) as association:
        sending = association._connection._socket
        assert sending is not None
        sending.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
        assert association.store(UID, CT, memoryview(LARGE)[: 12 << 20]) == 0
    assert time.monotonic() - begun > 2 * settings.dimse


# No connection


def test_nobody_listens(free_port: Callable[[], int]) -> None:
    with pytest.raises(DestinationUnavailable, match="connection refused"):
        connect("127.0.0.1", free_port(), 5)


def test_a_host_that_is_not_known() -> None:
    with pytest.raises(DestinationUnavailable, match=r"'no-such-host\.invalid' can't be resolved"):
        connect("no-such-host.invalid", 104, 5)
    with pytest.raises(DestinationUnavailable, match="can't be resolved"):
        connect("x" * 64 + ".invalid", 104, 5)


@contextmanager
def full_backlog() -> Iterator[int]:
    """A port where the system answers nothing more, as behind a silent firewall."""
    with closing(socket.create_server(("127.0.0.1", 0), backlog=0)) as full, ExitStack() as waiting:
        address = full.getsockname()
        for _ in range(4):
            one = waiting.enter_context(socket.socket())
            one.setblocking(False)
            one.connect_ex(address)
        yield address[1]


def test_a_host_that_takes_no_connection() -> None:
    with full_backlog() as port:
        begun = time.monotonic()
        with pytest.raises(DestinationUnavailable, match=r"no answer within 0\.3 s"):
            connect("127.0.0.1", port, 0.3)
        assert time.monotonic() - begun < 5


# No association


@pytest.mark.parametrize(
    ("result", "source", "reason", "words"),
    [
        (1, 1, 1, "permanently: no reason given"),
        (1, 1, 2, "application context name not supported"),
        (1, 1, 3, "calling AE title not recognized"),
        (1, 1, 7, "called AE title not recognized"),
        (1, 2, 1, "no reason given by its protocol machine"),
        (1, 2, 2, "protocol version not supported"),
        (2, 3, 1, "for now: temporary congestion"),
        (2, 3, 2, "local limit exceeded"),
        (9, 8, 7, "with result 9: source 8, reason 7"),
    ],
)
def test_a_rejected_association_says_why(
    receiver: ReceiverStarter, result: int, source: int, reason: int, words: str
) -> None:
    def script(talk: Conversation) -> None:
        talk.reject(result, source, reason)

    with pytest.raises(DestinationUnavailable, match=words):
        associate(receiver(script))


def says(kind: int, body: bytes, length: int | None = None) -> Script:
    def script(talk: Conversation) -> None:
        talk.read_request()
        talk.send_pdu(kind, body, length)
        talk.wait_for_end()

    return script


def closes(talk: Conversation) -> None:
    talk.read_request()


def resets(talk: Conversation) -> None:
    talk.read_request()
    talk.reset()


def is_silent(talk: Conversation) -> None:
    talk.wait_for_end()


ACCEPTED = b"\0\1\0\0" + b" " * 32 + b"\0" * 32


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (closes, "closed the connection"),
        (resets, "reset"),
        (is_silent, r"did not answer the association request within 0\.3 s"),
        (says(3, b"\0"), "does not say why"),
        (says(7, b"\0\0\2\6"), "aborted .* invalid PDU parameter value"),
        (says(7, b"\0\0\0\0"), "aborted the association"),
        (says(5, b"\0\0\0\0"), "released the association"),
        (says(4, b"\0\0\0\0"), "P-DATA-TF out of turn"),
        (says(0x55, b""), "a PDU of type 55H out of turn"),
        (says(2, b""), "without|no limit|refused|can't be read|nothing"),
        (says(2, ACCEPTED + b"\x21\0\0\x20\1"), "can't be read"),
        (says(2, ACCEPTED + b"\x50\0\0\x08\x51\0\0\4\0\0\0\6"), "in which nothing can be sent"),
        (says(2, b"", RECEIVED_LIMIT + 1), f"claims {RECEIVED_LIMIT + 1} bytes"),
        (says(2, b"\0" * 10, 100), "did not answer the association request"),
    ],
)
def test_no_association_comes_about(receiver: ReceiverStarter, script: Script, words: str) -> None:
    begun = time.monotonic()
    if words.startswith("without"):
        association = associate(receiver(script))
        assert not association.accepts(CT)
        assert CT in association.refused
        association.abort()
        return
    with pytest.raises(DestinationUnavailable, match=words):
        associate(receiver(script))
    assert time.monotonic() - begun < 5


def test_a_transfer_syntax_that_was_not_proposed(receiver: ReceiverStarter) -> None:
    def script(talk: Conversation) -> None:
        talk.accept(syntax="1.2.840.10008.1.2.1")
        talk.wait_for_end()

    with pytest.raises(DestinationUnavailable, match=r"'1\.2\.840\.10008\.1\.2\.1' accepted"):
        associate(receiver(script))


# An instance without an answer


def after_store(action: Callable[[Conversation, int, object], None]) -> Script:
    def script(talk: Conversation) -> None:
        talk.accept()
        context, command = talk.read_store()
        action(talk, context, command)
        talk.wait_for_end()

    return script


def answers(**how: object) -> Script:
    return after_store(lambda talk, context, command: talk.respond(context, command, **how))  # type: ignore[arg-type]


def sends(kind: int, body: bytes, length: int | None = None) -> Script:
    return after_store(lambda talk, context, command: talk.send_pdu(kind, body, length))


def pdv(context: int, control: int, value: bytes, length: int | None = None) -> bytes:
    claimed = len(value) + 2 if length is None else length
    return struct.pack(">IBB", claimed, context, control) + value


STATUS_ONLY = struct.pack("<HHIH", 0, 0x0900, 2, 0)


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (answers(status=None), "without a status"),
        (answers(message_id=77), "a response to message 77; the answer to 1 is due"),
        (answers(field=0x8030), "command field 8030H; 8001H is due"),
        (answers(field=0x0001), "command field 0001H"),
        (answers(instance="1.2.99"), "about another instance"),
        (answers(data_set_type=0), "announces a data set"),
        (sends(4, pdv(1, 3, STATUS_ONLY)), "no command field"),
        (sends(4, pdv(1, 3, b"")), "no command field"),
        (sends(4, pdv(3, 3, STATUS_ONLY)), "where the response is due"),
        (sends(4, pdv(1, 2, STATUS_ONLY)), "where the response is due"),
        (sends(4, pdv(1, 3, STATUS_ONLY, 1)), "whose length is wrong"),
        (sends(4, pdv(1, 3, STATUS_ONLY, 5000)), "whose length is wrong"),
        (sends(4, pdv(1, 3, STATUS_ONLY[:-1])), "a response that is cut off"),
        (sends(4, pdv(1, 3, STATUS_ONLY[:5])), "a response that is cut off"),
        (sends(4, pdv(1, 3, STATUS_ONLY) * 2), "more in it than a response"),
        (sends(4, b"\0\0\0"), "more in it than a response"),
        (sends(4, pdv(1, 1, b"\0" * 70_000)), "a response of more than"),
        (sends(2, b"\0" * 68), "A-ASSOCIATE-AC out of turn"),
        (sends(6, b"\0\0\0\0"), "A-RELEASE-RP out of turn"),
        (sends(0x99, b""), "a PDU of type 99H out of turn"),
        (sends(4, b"", RECEIVED_LIMIT + 1), f"claims {RECEIVED_LIMIT + 1} bytes"),
        (sends(7, b"\0\0\2\2"), "aborted .* unexpected PDU"),
        (sends(7, b""), "aborted the association"),
        (sends(5, b"\0\0\0\0"), "released the association in the middle"),
        (after_store(lambda talk, *_: talk.reset()), "reset"),
        (after_store(lambda talk, *_: talk.socket.shutdown(socket.SHUT_WR)), "closed the"),
    ],
)
def test_an_association_that_breaks_at_an_instance(
    receiver: ReceiverStarter, script: Script, words: str
) -> None:
    begun = time.monotonic()
    with pytest.raises(AssociationAborted, match=words):
        store(receiver(_ending(script)))
    assert time.monotonic() - begun < 5


def _ending(script: Script) -> Script:
    """A script whose connection is closed by itself may end with an error of the socket's."""

    def ending(talk: Conversation) -> None:
        try:
            script(talk)
        except OSError:
            assert talk.socket.fileno() == -1

    return ending


@pytest.mark.parametrize(
    "script",
    [
        after_store(lambda *_: None),
        sends(4, pdv(1, 1, STATUS_ONLY)),
        sends(4, b"", 100),
        sends(4, b""),
    ],
    ids=["nothing", "no last fragment", "half a PDU", "an empty PDU"],
)
def test_no_answer_in_time(receiver: ReceiverStarter, script: Script) -> None:
    begun = time.monotonic()
    with pytest.raises(DestinationUnavailable, match=r"did not answer message 1 within 0\.3 s"):
        store(receiver(script))
    assert 0.2 < time.monotonic() - begun < 5


def test_an_answer_that_never_comes_to_its_end_is_not_waited_for(
    receiver: ReceiverStarter,
) -> None:
    """Each byte comes soon enough; the deadline is for the whole."""

    def drip(talk: Conversation, *_: object) -> None:
        talk.send_pdu(4, b"", 10_000)
        try:
            while True:
                talk.socket.sendall(b"\0")
                time.sleep(0.02)
        except OSError:
            return

    with pytest.raises(DestinationUnavailable, match="did not answer message 1"):
        store(receiver(after_store(drip)))


# An instance that can't be sent


def test_an_abort_in_the_middle_of_an_instance(receiver: ReceiverStarter) -> None:
    def script(talk: Conversation) -> None:
        talk.accept()
        talk.read_pdu()
        talk.read_pdu()
        talk.abort(2, 6)
        talk.socket.shutdown(socket.SHUT_WR)
        talk.wait_for_end()

    with pytest.raises(AssociationAborted, match=r"aborted|broke"):
        store(receiver(script), LARGE)


def test_an_abort_by_a_receiver_that_reads_no_further_is_found(receiver: ReceiverStarter) -> None:
    def script(talk: Conversation) -> None:
        talk.accept()
        talk.read_pdu()
        talk.abort(2, 6)
        time.sleep(1)

    with pytest.raises(AssociationAborted, match="invalid PDU parameter value"):
        store(receiver(script), LARGE)


def test_a_reset_in_the_middle_of_an_instance(receiver: ReceiverStarter) -> None:
    def script(talk: Conversation) -> None:
        talk.accept()
        talk.read_pdu()
        talk.reset()

    with pytest.raises(AssociationAborted, match=r"the connection to PACS .* broke"):
        store(receiver(script), LARGE)


def test_a_receiver_that_reads_nothing(receiver: ReceiverStarter) -> None:
    def script(talk: Conversation) -> None:
        talk.accept()
        time.sleep(2)

    begun = time.monotonic()
    with pytest.raises(DestinationUnavailable, match="it takes no more data"):
        store(receiver(script), LARGE)
    assert time.monotonic() - begun < 5


def test_a_file_that_becomes_shorter_while_it_is_sent(
    receiver: ReceiverStarter, tmp_path: Path
) -> None:
    path = tmp_path / "image"
    path.write_bytes(LARGE)
    with path.open("r+b") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        file.truncate(100_000)
        with (
            associate(receiver(takes_all)) as association,
            pytest.raises(UnreadableInput, match="shorter"),
        ):
            association.store(UID, CT, memoryview(mapped))


# Ends


@pytest.mark.parametrize(
    "end",
    [
        lambda talk: talk.send_pdu(6),
        lambda talk: talk.send_pdu(5),
        lambda talk: (talk.send_pdu(5), talk.read_pdu(), talk.send_pdu(6)),
        lambda talk: talk.abort(),
        lambda talk: talk.reset(),
        lambda talk: talk.send_pdu(4, b"\0" * 20),
        lambda talk: talk.send_pdu(4, b"", RECEIVED_LIMIT + 1),
        lambda talk: talk.wait_for_end(),
    ],
    ids=["granted", "both", "both, granted", "abort", "reset", "data", "lie", "silence"],
)
def test_a_release_neither_hangs_nor_raises(
    receiver: ReceiverStarter, end: Callable[[Conversation], object]
) -> None:
    def script(talk: Conversation) -> None:
        talk.accept()
        assert talk.read_pdu()[0] == 5
        end(talk)
        if talk.socket.fileno() != -1:
            talk.wait_for_end()

    association = associate(receiver(script))
    begun = time.monotonic()
    association.release()
    assert time.monotonic() - begun < 2
    association.release()
    association.abort()


def test_an_association_that_the_receiver_ended_while_nothing_was_sent_is_found_out(
    receiver: ReceiverStarter,
) -> None:
    ended = threading.Event()

    def script(talk: Conversation) -> None:
        talk.accept()
        talk.respond(*talk.read_store())
        assert ended.wait(5)
        talk.abort()

    with associate(receiver(script)) as association:
        assert association.idles()
        assert association.store(UID, CT, memoryview(DATA)) == 0
        assert association.idles()
        ended.set()
        eventually(lambda: not association.idles(), "the abort is found")
        association.release()
        assert not association.idles()


# Interrupted from another thread


def interrupted(
    association: Association, when: threading.Event, act: Callable[[], object]
) -> float:
    """Interrupt an association while it acts; return the seconds until it noticed."""
    noticed: list[float] = []

    def interrupt() -> None:
        assert when.wait(10)
        time.sleep(0.1)  # what was begun waits now
        noticed.append(time.monotonic())
        association.interrupt()

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(Interrupted):
        act()
    seconds = time.monotonic() - noticed[0]
    thread.join()
    assert association.ended
    return seconds


PATIENT = AssociationSettings(connect=30, association=30, dimse=30, release=30)
WELL_BEFORE = 8.0
"""Seconds: who waited for the receiver instead would wait longer."""


def unopened(receiver: ScriptedReceiver) -> Association:
    return Association(Peer(receiver.host, receiver.port, "PACS", "ClaraSCU"), [CT], PATIENT, CLOCK)


def test_a_wait_for_an_answer_is_interrupted_and_the_receiver_hears_of_it(
    receiver: ReceiverStarter,
) -> None:
    waits, heard = threading.Event(), []

    def script(talk: Conversation) -> None:
        talk.accept()
        talk.read_store()
        waits.set()
        heard.append(talk._read(10))

    peer = receiver(script)
    association = unopened(peer).open()
    seconds = interrupted(association, waits, lambda: association.store(UID, CT, memoryview(DATA)))
    assert seconds < WELL_BEFORE
    with pytest.raises(Interrupted):
        association.store(UID, CT, memoryview(DATA))
    association.release()
    association.interrupt()
    peer.stop()
    assert heard == [struct.pack(">BBIBBBB", 7, 0, 4, 0, 0, 0, 0)]


def test_the_sending_of_an_instance_is_interrupted(receiver: ReceiverStarter) -> None:
    waits = threading.Event()

    def script(talk: Conversation) -> None:
        talk.accept()
        talk.read_pdu()
        waits.set()
        assert talk.socket.recv(1, socket.MSG_PEEK)
        over.wait(10)

    over = threading.Event()
    association = unopened(receiver(script)).open()
    try:
        seconds = interrupted(
            association, waits, lambda: association.store(UID, CT, memoryview(LARGE))
        )
    finally:
        over.set()
    assert seconds < WELL_BEFORE


def test_the_negotiation_is_interrupted(receiver: ReceiverStarter) -> None:
    waits = threading.Event()

    def script(talk: Conversation) -> None:
        talk.read_request()
        waits.set()
        talk.wait_for_end()

    association = unopened(receiver(script))
    assert interrupted(association, waits, association.open) < 1


def test_the_connecting_is_interrupted() -> None:
    with full_backlog() as port:
        association = Association(Peer("127.0.0.1", port, "PACS", "ClaraSCU"), [CT], PATIENT, CLOCK)
        begun = threading.Event()
        begun.set()
        assert interrupted(association, begun, association.open) < 1


def test_an_association_interrupted_before_it_is_opened_never_is(
    receiver: ReceiverStarter,
) -> None:
    association = unopened(receiver(takes_all))
    association.interrupt()
    with pytest.raises(Interrupted):
        association.open()
    assert association.ended


def test_a_release_is_interrupted_without_an_error(receiver: ReceiverStarter) -> None:
    waits = threading.Event()

    def script(talk: Conversation) -> None:
        talk.accept()
        assert talk.read_pdu()[0] == 5
        waits.set()
        talk.wait_for_end()

    association = unopened(receiver(script)).open()

    def interrupt() -> None:
        assert waits.wait(10)
        association.interrupt()

    thread = threading.Thread(target=interrupt)
    thread.start()
    begun = time.monotonic()
    association.release()
    assert time.monotonic() - begun < 5
    thread.join()


def test_an_interrupt_at_any_moment_ends_the_association_and_harms_nothing(
    receiver: ReceiverStarter,
) -> None:
    """Whatever the other thread does just then: an instance arrives whole, or counts as not answered."""
    peer = receiver(takes_all)
    answered = 0
    for attempt in range(60):
        association = unopened(peer)
        timer = threading.Timer(attempt * 0.0002, association.interrupt)
        timer.start()
        try:
            association.open()
            while True:
                association.store(UID, CT, memoryview(DATA))
                answered += 1
        except Interrupted:
            assert association.ended
        timer.join()
    peer.stop()
    assert {data for _, data in peer.stored} <= {DATA}
    assert len(peer.stored) >= answered


# As which user


def asked_as(
    receiver: ReceiverStarter, identity: Identity, extra: bytes = b""
) -> UserIdentityNegotiation:
    asked = []

    def script(talk: Conversation) -> None:
        asked.append(talk.accept(extra=extra))
        talk.store_all()

    with associate(receiver(script), identity=identity) as association:
        association.release()
        assert association.identified is bool(extra)
    (request,) = asked
    (found,) = [
        item for item in request.user_information if isinstance(item, UserIdentityNegotiation)
    ]
    return found


@pytest.mark.parametrize(
    "identity",
    [
        Identity(1, b"ward"),
        Identity(2, b"ward", "gehe\u00efm".encode()),
        Identity(5, b"a.b.c" * 999),
    ],
    ids=["user name", "passcode", "JSON Web Token"],
)
def test_the_identity_of_the_user(receiver: ReceiverStarter, identity: Identity) -> None:
    asked = asked_as(receiver, identity)
    assert asked.user_identity_type == identity.kind
    assert asked.positive_response_requested
    assert asked.primary_field == identity.primary
    assert (asked.secondary_field or b"") == identity.passcode


def test_a_receiver_that_answers_to_the_identity(receiver: ReceiverStarter) -> None:
    response = struct.pack(">BBHH", 0x59, 0, 2, 0)
    information = struct.pack(">BBH", 0x50, 0, len(response)) + response
    asked_as(receiver, Identity(1, b"ward"), extra=information)


@pytest.mark.parametrize("source", [1, 2])
def test_a_receiver_that_does_not_take_the_user(receiver: ReceiverStarter, source: int) -> None:
    with pytest.raises(DestinationUnavailable, match="may not take the user") as caught:
        associate(
            receiver(lambda talk: talk.reject(1, source, 1)),
            identity=Identity(2, b"ward", b"hidden"),
        )
    assert "hidden" not in str(caught.value)


def test_nothing_shows_a_passcode() -> None:
    peer = Peer("127.0.0.1", 104, "PACS", "ClaraSCU", None, Identity(2, b"ward", b"hidden"))
    assert "hidden" not in f"{peer!r} {peer}"
    assert "ward" not in f"{peer!r} {peer}"


def test_an_association_that_is_left_is_aborted(receiver: ReceiverStarter) -> None:
    ends = []

    def script(talk: Conversation) -> None:
        talk.accept()
        ends.append(talk._read(10))

    peer = receiver(script)
    with associate(peer):
        pass
    peer.stop()
    assert ends == [struct.pack(">BBIBBBB", 7, 0, 4, 0, 0, 0, 0)]
