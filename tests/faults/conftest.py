"""A receiver that does what a test tells it to, wrong things among them.

``receiver(script, script, …)``
    Starts a ``ScriptedReceiver`` that plays the first script with the first connection it takes, and so on; the last
    script is played again for every further one. Connections are served side by side. A script is a function that
    takes a ``Conversation``.
"""

import contextlib
import io
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Protocol

import pytest
from pydicom import Dataset
from pynetdicom.dsutils import decode
from pynetdicom.pdu import A_ASSOCIATE_AC, A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import (
    A_ASSOCIATE,
    ImplementationClassUIDNotification,
    MaximumLengthNotification,
)
from pynetdicom.presentation import PresentationContext

LIMIT = 20.0
"""Seconds after which a script that waits for its peer fails."""

RELEASE_RQ, RELEASE_RP, ABORT = 5, 6, 7


class PeerGone(Exception):
    """The peer closed the connection or aborted the association."""


class Conversation:
    """One connection, seen from the receiver.

    Attributes:
        socket: The connection.
        request: The association request, once ``accept`` or ``read_request`` has read it.
        stored: SOP Instance UIDs and data sets of what ``read_store`` has read.
    """

    def __init__(self, connection: socket.socket, stored: list[tuple[str, bytes]]) -> None:
        self.socket = connection
        self.socket.settimeout(LIMIT)
        self.request: A_ASSOCIATE_RQ | None = None
        self.stored = stored

    def _read(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            try:
                piece = self.socket.recv(min(count - len(data), 1 << 20))
            except (ConnectionError, ssl.SSLError) as cause:
                raise PeerGone from cause
            if not piece:
                raise PeerGone
            data += piece
        return data

    def read_pdu(self) -> tuple[int, bytes]:
        """Return the next PDU's type and what follows its head."""
        kind, _, length = struct.unpack(">BBI", self._read(6))
        body = self._read(length)
        if kind == ABORT:
            raise PeerGone
        return kind, body

    def send_pdu(self, kind: int, body: bytes = b"\0\0\0\0", length: int | None = None) -> None:
        """Send a PDU that claims ``length`` bytes; None: the truth."""
        claimed = len(body) if length is None else length
        self.socket.sendall(struct.pack(">BBI", kind, 0, claimed) + body)

    def read_request(self) -> A_ASSOCIATE:
        """Read the association request."""
        kind, body = self.read_pdu()
        assert kind == 1, f"PDU type {kind} where the association request is due"
        self.request = A_ASSOCIATE_RQ()
        self.request.decode(struct.pack(">BBI", kind, 0, len(body)) + body)
        return self.request.to_primitive()

    def accept(
        self,
        max_pdu: int = 16_384,
        refuse: dict[str, int] | None = None,
        syntax: str | None = None,
        extra: bytes = b"",
    ) -> A_ASSOCIATE:
        """Read the association request and accept it.

        Args:
            max_pdu: Maximum length to announce.
            refuse: Results other than acceptance, by SOP class or transfer syntax.
            syntax: Transfer syntax to answer with instead of the proposed one.
            extra: Items to append, encoded.
        """
        asked = self.read_request()
        length = MaximumLengthNotification()
        length.maximum_length_received = max_pdu
        implementation = ImplementationClassUIDNotification()
        implementation.implementation_class_uid = "1.2.3"
        answer = A_ASSOCIATE()
        answer.application_context_name = "1.2.840.10008.3.1.1.1"
        answer.calling_ae_title = asked.calling_ae_title
        answer.called_ae_title = asked.called_ae_title
        answer.user_information = [length, implementation]
        results = []
        for proposed in asked.presentation_context_definition_list:
            context = PresentationContext()
            context.context_id = proposed.context_id
            results_of = refuse or {}
            context.result = results_of.get(str(proposed.abstract_syntax), 0) or results_of.get(
                str(proposed.transfer_syntax[0]), 0
            )
            context.add_transfer_syntax(syntax or proposed.transfer_syntax[0])
            results.append(context)
        answer.presentation_context_definition_results_list = results
        answer.result = 0
        answer.result_source = 1
        encoded = A_ASSOCIATE_AC(answer).encode() + extra
        self.send_pdu(2, encoded[6:])
        return asked

    def reject(self, result: int, source: int, reason: int) -> None:
        """Read the association request and reject it."""
        self.read_request()
        self.send_pdu(3, bytes([0, result, source, reason]))

    def read_message(self) -> tuple[int, Dataset, bytes]:
        """Read a DIMSE message: context, command set, data set.

        A release is granted; then the peer is gone.
        """
        command, data, data_due = b"", b"", True
        context = 0
        command_read = False
        while not command_read or data_due:
            kind, body = self.read_pdu()
            if kind == RELEASE_RQ:
                self.send_pdu(RELEASE_RP)
                raise PeerGone
            assert kind == 4, f"PDU type {kind} within a message"
            at = 0
            while at < len(body):
                length, context, control = struct.unpack_from(">IBB", body, at)
                value = body[at + 6 : at + 4 + length]
                at += 4 + length
                if control & 1:
                    command += value
                    command_read = bool(control & 2)
                    if command_read:
                        data_due = self.decoded(command).CommandDataSetType != 0x0101
                else:
                    data += value
                    data_due = not control & 2
        return context, self.decoded(command), data

    @staticmethod
    def decoded(command: bytes) -> Dataset:
        return decode(io.BytesIO(command), True, True)

    def read_store(self) -> tuple[int, Dataset]:
        """Read a C-STORE request, keep its data set, and return its context and command set."""
        context, command, data = self.read_message()
        assert command.CommandField == 0x0001
        self.stored.append((str(command.AffectedSOPInstanceUID), data))
        return context, command

    def respond(
        self,
        context: int,
        command: Dataset,
        status: int | None = 0,
        *,
        field: int | None = None,
        message_id: int | None = None,
        instance: str | None = None,
        data_set_type: int | None = 0x0101,
        pieces: int = 1,
    ) -> None:
        """Answer a request: truly, unless told otherwise; in several fragments, if told so."""
        elements = [
            (
                0x0100,
                struct.pack("<H", field if field is not None else command.CommandField | 0x8000),
            ),
            (
                0x0120,
                struct.pack("<H", message_id if message_id is not None else command.MessageID),
            ),
        ]
        if data_set_type is not None:
            elements.append((0x0800, struct.pack("<H", data_set_type)))
        if status is not None:
            elements.append((0x0900, struct.pack("<H", status)))
        if instance is not None:
            value = instance.encode() + b"\0" * (len(instance) % 2)
            elements.append((0x1000, value))
        body = b"".join(struct.pack("<HHI", 0, tag, len(v)) + v for tag, v in elements)
        answer = struct.pack("<HHII", 0, 0, 4, len(body)) + body
        step = -(-len(answer) // pieces)
        for start in range(0, len(answer), step):
            piece = answer[start : start + step]
            last = 2 if start + step >= len(answer) else 0
            self.send_pdu(4, struct.pack(">IBB", len(piece) + 2, context, 1 | last) + piece)

    def store_all(self, status: Callable[[int], int] | int = 0) -> None:
        """Take instances until the peer releases; ``status`` is what to answer, by number from 0."""
        count = 0
        while True:
            context, command = self.read_store()
            self.respond(context, command, status if isinstance(status, int) else status(count))
            count += 1

    def abort(self, source: int = 2, reason: int = 0) -> None:
        """Send an A-ABORT."""
        self.send_pdu(ABORT, bytes([0, 0, source, reason]))

    def reset(self) -> None:
        """Break the connection at once, without a farewell."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def wait_for_end(self) -> None:
        """Read until the peer is gone."""
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            while self.socket.recv(1 << 20):
                pass


Script = Callable[[Conversation], None]


class ScriptedReceiver:
    """Plays scripts with those who connect.

    Attributes:
        host: Where it listens.
        port: Where it listens.
        stored: SOP Instance UIDs and data sets, in the order in which they came.
        connections: How many it has taken.
    """

    def __init__(self, scripts: tuple[Script, ...], host: str, tls: ssl.SSLContext | None) -> None:
        self.host = host
        self.stored: list[tuple[str, bytes]] = []
        self.connections = 0
        self._scripts = scripts
        self._tls = tls
        self._played: list[threading.Thread] = []
        self._errors: list[BaseException] = []
        self._listening = socket.create_server(
            (host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET
        )
        self.port = int(self._listening.getsockname()[1])
        self._listening.settimeout(0.05)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while not self._ended.is_set():
            try:
                connection, _ = self._listening.accept()
            except TimeoutError:
                continue
            script = self._scripts[min(self.connections, len(self._scripts) - 1)]
            self.connections += 1
            self._played.append(threading.Thread(target=self._play, args=(script, connection)))
            self._played[-1].start()

    def _play(self, script: Script, connection: socket.socket) -> None:
        try:
            if self._tls is not None:
                connection.settimeout(LIMIT)
                try:
                    connection = self._tls.wrap_socket(connection, server_side=True)
                except OSError:  # what is tested; the peer says how it sees it
                    return
            with connection:
                script(Conversation(connection, self.stored))
        except PeerGone:
            pass  # how an association ends
        except BaseException as error:  # noqa: BLE001  (told by stop, in the test's own thread)
            self._errors.append(error)
        finally:
            connection.close()

    def stored_uids(self) -> list[str]:
        """Return the SOP Instance UIDs in the order in which they came."""
        return [uid for uid, _ in self.stored]

    def stop(self) -> None:
        """End, and raise what a script raised."""
        self._ended.set()
        self._thread.join(LIMIT)
        self._listening.close()
        for thread in self._played:
            thread.join(LIMIT)
            assert not thread.is_alive(), "a script did not end"
        for error in self._errors:
            raise error


class ReceiverStarter(Protocol):
    """``receiver(script, …, host="::1", tls=context)`` starts one."""

    def __call__(
        self, *scripts: Script, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None
    ) -> ScriptedReceiver: ...


@pytest.fixture
def receiver() -> Iterator[ReceiverStarter]:
    """Give a function that starts scripted receivers for the time of the test."""
    with contextlib.ExitStack() as running:

        def start(
            *scripts: Script, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None
        ) -> ScriptedReceiver:
            made = ScriptedReceiver(scripts, host, tls)
            running.callback(made.stop)
            return made

        yield start
