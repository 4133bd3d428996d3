"""An association that we open to verify a receiver and to store instances there (PS3.7, PS3.8).

The data path is our own: an instance's data set goes from its file to the network without being decoded or copied,
and every wait has a deadline. Nothing that a peer does passes in silence: it answers, or one of three errors says
what it did instead.

One thread uses an association; ``Association.interrupt`` ends it from any other.
"""

import contextlib
import errno
import ssl
import struct
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import NoReturn, Self

from pynetdicom.pdu import A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import (
    A_ASSOCIATE,
    ImplementationClassUIDNotification,
    ImplementationVersionNameNotification,
    MaximumLengthNotification,
    UserIdentityNegotiation,
)
from pynetdicom.presentation import PresentationContext

from clara_results.agents.dicom.connection import (
    PIECES_LIMIT,
    AssociationAborted,
    Interrupted,
    PduConnection,
    Piece,
)
from clara_results.agents.dicom.part10 import (
    IMPLEMENTATION_CLASS_UID,
    IMPLEMENTATION_VERSION_NAME,
)
from clara_results.agents.secrets import CODE, Secrets
from clara_results.agents.tls import refusal, tls_context
from clara_results.domain.clock import Clock
from clara_results.domain.receivers import AuthKind
from clara_results.errors import DestinationUnavailable, UnreadableInput
from clara_results.wire.destinations import Auth, Destination

VERIFICATION = "1.2.840.10008.1.1"
CONTEXT_LIMIT = 128
"""Presentation contexts of an association: odd numbers of one byte (PS3.8 9.3.2.2)."""
IDENTITY_LIMIT = 60_000
"""Bytes of a passcode or a token; all that is said of the user information has to fit 65,535 (PS3.8 9.3.2.3)."""
LEAST_RATE = 10_000
"""Bytes a second that a receiver must take on average, else it is taken for dead."""

_APPLICATION_CONTEXT = "1.2.840.10008.3.1.1.1"
_ASSOCIATE_AC, _ASSOCIATE_RJ, _P_DATA, _RELEASE_RQ, _RELEASE_RP, _ABORT = 2, 3, 4, 5, 6, 7
_PDU_NAMES = {
    1: "A-ASSOCIATE-RQ",
    _ASSOCIATE_AC: "A-ASSOCIATE-AC",
    _ASSOCIATE_RJ: "A-ASSOCIATE-RJ",
    _P_DATA: "P-DATA-TF",
    _RELEASE_RQ: "A-RELEASE-RQ",
    _RELEASE_RP: "A-RELEASE-RP",
}
_TLS_ALERT = 0x15
_SHORT_PDU = struct.Struct(">BBIBBBB").pack
_ABORTION = _SHORT_PDU(_ABORT, 0, 4, 0, 0, 0, 0)
_PDV_HEAD = struct.Struct(">BBIIBB")  # PDU type, 0, PDU length, PDV length, context, control header
_PDV_OVERHEAD = 6
_IS_COMMAND, _IS_LAST = 1, 2
_ABORT_SECONDS = 0.5

_C_STORE, _C_ECHO, _IS_RESPONSE = 0x0001, 0x0030, 0x8000
_NO_DATA_SET = 0x0101
_COMMAND_LIMIT = 1 << 16
_GROUP_LENGTH, _AFFECTED_CLASS, _COMMAND_FIELD, _MESSAGE_ID = 0x0000, 0x0002, 0x0100, 0x0110
_ANSWERED_ID, _PRIORITY, _DATA_SET_TYPE = 0x0120, 0x0700, 0x0800
_STATUS, _AFFECTED_INSTANCE = 0x0900, 0x1000
_ELEMENT = struct.Struct("<HHI")

_CONTEXT_REFUSALS = {
    1: "refused by the receiver's user",
    2: "refused without a reason",
    3: "the receiver does not take this SOP class",
    4: "the receiver does not take this SOP class in this transfer syntax",
}
_ABORT_REASONS = {
    0: "no reason given",
    1: "unrecognized PDU",
    2: "unexpected PDU",
    4: "unrecognized PDU parameter",
    5: "unexpected PDU parameter",
    6: "invalid PDU parameter value",
}
_REJECT_RESULTS = {1: "permanently", 2: "for now"}
_REJECT_REASONS = {
    (1, 1): "no reason given",
    (1, 2): "application context name not supported",
    (1, 3): "calling AE title not recognized: make it known to the receiver",
    (1, 7): "called AE title not recognized: the receiver does not go by it",
    (2, 1): "no reason given by its protocol machine",
    (2, 2): "protocol version not supported",
    (3, 1): "temporary congestion",
    (3, 2): "local limit exceeded: the receiver has too many associations open",
}


@dataclass(frozen=True, slots=True)
class AssociationSettings:
    """Time limits, in seconds, and sizes.

    Attributes:
        connect: For the TCP connection.
        association: For the answer to an association request.
        dimse: For the answer to a C-STORE or C-ECHO, and for a receiver that takes no more data.
        release: For the answer to a release.
        max_pdu: Bytes of a P-DATA-TF that are taken, and that are sent where the receiver has no limit.
        pause: Before an instance that broke an association is sent again.
        idle: For which an association is kept open that no task uses; 0: none is.
        task: For all instances of a task; what is left then is sent in another attempt.
    """

    connect: float = 10
    association: float = 30
    dimse: float = 60
    release: float = 5
    max_pdu: int = 131_072
    pause: float = 1
    idle: float = 1
    task: float = 21_600


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a user is (PS3.7 D.3.3.7), as whom the association is asked for.

    Attributes:
        kind: The User-Identity-Type: 1, user name; 2, user name and passcode; 5, JSON Web Token.
        primary: The user name, or the token.
        passcode: The passcode; empty for other kinds.
    """

    kind: int
    primary: bytes = field(repr=False)
    passcode: bytes = field(default=b"", repr=False)

    @classmethod
    def of(cls, auth: Auth, secrets: Secrets) -> Self:
        """Return who a destination's ``auth`` says we are: a user name, with or without passcode, or a token.

        Raises:
            DestinationUnavailable: A secret is not there, or is too long.
        """
        secret = secrets.text(auth.secret).encode() if auth.secret is not None else b""
        if len(secret) > IDENTITY_LIMIT:
            raise DestinationUnavailable(
                f"the secret {auth.secret!r} has more than {IDENTITY_LIMIT} bytes; an association request has no "
                "room for it",
                code=CODE,
            )
        if auth.kind is AuthKind.BEARER:
            return cls(5, secret)
        if auth.kind is AuthKind.BASIC:
            return cls(2 if secret else 1, (auth.user_name or "").encode(), secret)
        raise DestinationUnavailable(f"a DICOM association can't be asked for with {auth.kind}")


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is called, where, how, and by whom.

    Attributes:
        host: DNS name or address.
        port: TCP port.
        called: The receiver's AE title, as written.
        calling: Our AE title.
        tls: How the connection is secured; None: not.
        identity: As which user; None: as none.
    """

    host: str
    port: int
    called: str
    calling: str
    tls: ssl.SSLContext | None = None
    identity: Identity | None = None

    @classmethod
    def of(cls, destination: Destination, calling_ae_title: str, secrets: Secrets) -> Self:
        """Return who a destination of kind ``dicom`` is.

        Args:
            destination: Which.
            calling_ae_title: Ours, unless the destination wants another.
            secrets: Where what its ``tls`` and ``auth`` name lies; it is read now.

        Raises:
            DestinationUnavailable: A secret is not there, or is not what it must be.
        """
        host, port, called = destination.host, destination.port, destination.ae_title
        if host is None or port is None or called is None:
            raise DestinationUnavailable(
                f"{destination.name} has not a host, a port and an AE title"
            )
        return cls(
            host,
            port,
            called,
            destination.calling_ae_title or calling_ae_title,
            tls_context(destination.tls, secrets) if destination.tls else None,
            Identity.of(destination.auth, secrets) if destination.auth else None,
        )

    def __str__(self) -> str:
        return f"{self.called} at {self.host} port {self.port}"


Context = tuple[str, str]
"""A SOP class UID and the transfer syntax UID that goes with it."""


class Association:
    """An association, from the connection to its end. As a context manager it is aborted at the end unless released.

    Args:
        peer: Who the receiver is.
        contexts: What is to be stored: at most CONTEXT_LIMIT pairs of SOP class and transfer syntax.
        settings: Time limits and sizes.
        clock: Where time comes from.

    Attributes:
        refused: Why the receiver takes nothing of a context, in words, for those that it refused.
        send_limit: Bytes of a P-DATA-TF that may be sent.
        identified: Whether the receiver said that it took the identity of the user.
    """

    def __init__(
        self,
        peer: Peer,
        contexts: Sequence[Context],
        settings: AssociationSettings,
        clock: Clock,
    ) -> None:
        self._connection = PduConnection(settings.dimse, clock)
        self._peer = peer
        self._settings = settings
        self._clock = clock
        self._negotiated = False
        self._message_id = 0
        self._ids = {context: 2 * index + 1 for index, context in enumerate(contexts)}
        self._accepted: dict[Context, int] = {}
        self.refused: dict[Context, str] = {}
        self.send_limit = settings.max_pdu
        self.identified = False

    def open(self) -> Self:
        """Connect, secure the connection if the peer wants that, and negotiate; return the association itself.

        Raises:
            DestinationUnavailable: The receiver can't be reached, rejected the association, did not answer in time,
                or not as it must.
            Interrupted: ``interrupt`` was called.
        """
        self.connect()
        self.secure()
        self.negotiate()
        return self

    def connect(self) -> None:
        """Connect: the first part of ``open``."""
        self._connection.connect(self._peer.host, self._peer.port, self._settings.connect)

    def secure(self) -> str | None:
        """Secure the connection, if the peer wants that: the second part of ``open``. Return how, if it is secured."""
        if self._peer.tls is None:
            return None
        return self._connection.secure(self._peer.tls, self._peer.host, self._settings.association)

    def interrupt(self) -> None:
        """End the association from any thread, at any time, also while it is being opened.

        What waits for the receiver at that moment, and what is called later, raises Interrupted.
        """
        self._connection.interrupt(_ABORTION)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.abort()

    @property
    def ended(self) -> bool:
        """Tell whether it is closed on our side: nothing more can be sent."""
        return self._connection.closed

    def idles(self) -> bool:
        """Tell whether it is open, as far as is known, between two messages: the receiver has not ended it meanwhile."""
        return self._connection.quiet()

    def accepts(self, context: Context) -> bool:
        """Tell whether the receiver takes what is of this SOP class and transfer syntax."""
        return context in self._accepted

    # Negotiation (PS3.8 7.1, 9.3.2 to 9.3.4)

    def negotiate(self) -> None:
        """Ask for the association: the last part of ``open``."""
        try:
            self._negotiate()
        except AssociationAborted as cause:
            raise DestinationUnavailable(
                f"no association with {self._peer}: {cause}; it was being negotiated"
            ) from cause

    def _negotiate(self) -> None:
        deadline = self._clock.monotonic() + self._settings.association
        within = f"the association request within {self._settings.association:g} s"
        self._send([self._request()], deadline, within)
        kind, body = self._receive(deadline, within)
        if kind == _ASSOCIATE_RJ:
            self._connection.close()
            raise DestinationUnavailable(f"{self._peer} {_rejection(body, self._peer)}")
        if kind != _ASSOCIATE_AC:
            self._unexpected(kind, body)
        try:
            accepted, limit, self.identified = _read_accept(body)
        except (struct.error, IndexError, UnicodeDecodeError) as cause:
            self._violation("an A-ASSOCIATE-AC that can't be read", cause)
        self._negotiated = True
        self.send_limit = min(limit or self._settings.max_pdu, self._settings.max_pdu)
        if self.send_limit <= _PDV_OVERHEAD + 1:
            self._violation(f"a maximum length of {limit} bytes, in which nothing can be sent")
        for context, number in self._ids.items():
            result, syntax = accepted.get(number, (2, ""))
            if result != 0:
                self.refused[context] = _CONTEXT_REFUSALS.get(result, f"refused, reason {result}")
            elif syntax != context[1]:
                self._violation(f"transfer syntax {syntax!r} accepted, {context[1]} proposed")
            else:
                self._accepted[context] = number

    def _request(self) -> bytes:
        length = MaximumLengthNotification()
        length.maximum_length_received = self._settings.max_pdu
        implementation = ImplementationClassUIDNotification()
        implementation.implementation_class_uid = IMPLEMENTATION_CLASS_UID
        version = ImplementationVersionNameNotification()
        version.implementation_version_name = IMPLEMENTATION_VERSION_NAME
        request = A_ASSOCIATE()
        request.application_context_name = _APPLICATION_CONTEXT
        request.calling_ae_title = self._peer.calling
        request.called_ae_title = self._peer.called
        request.user_information = [length, implementation, version]
        if self._peer.identity is not None:
            identity = UserIdentityNegotiation()
            identity.user_identity_type = self._peer.identity.kind
            identity.positive_response_requested = True
            identity.primary_field = self._peer.identity.primary
            identity.secondary_field = self._peer.identity.passcode
            request.user_information = [*request.user_information, identity]
        definitions = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a UID is sent as it is, whatever pydicom thinks of it
            for (sop_class, syntax), number in self._ids.items():
                context = PresentationContext()
                context.context_id = number
                context.abstract_syntax = sop_class
                context.add_transfer_syntax(syntax)
                definitions.append(context)
            request.presentation_context_definition_list = definitions
            return A_ASSOCIATE_RQ(request).encode()

    # Services (PS3.7 9.1.1, 9.1.5, 9.3)

    def store(
        self,
        sop_instance_uid: str,
        context: Context,
        data_set: memoryview,
        passed: Callable[[int], None] = lambda _: None,
    ) -> int:
        """Send an instance and wait for the answer.

        Args:
            sop_instance_uid: The instance.
            context: Its SOP class and transfer syntax; one that is accepted.
            data_set: As encoded in that transfer syntax; best of a mapped file, so that it takes no memory.
            passed: Called now and then, while a large data set is sent, with about how many bytes of it have been.

        Returns:
            The status that the receiver answered with.

        Raises:
            AssociationAborted: The association broke; whether the receiver has the instance is not known.
            DestinationUnavailable: No answer in time, or the data is not taken; the association is aborted.
            UnreadableInput: The data became shorter while it was sent; the association is aborted.
            Interrupted: ``interrupt`` was called; whether the receiver has the instance is not known.
        """
        number = self._accepted[context]
        self._message_id = self._message_id % 0xFFFF + 1
        command = _command_set(
            (_AFFECTED_CLASS, _uid(context[0])),
            (_COMMAND_FIELD, _us(_C_STORE)),
            (_MESSAGE_ID, _us(self._message_id)),
            (_PRIORITY, _us(0)),
            (_DATA_SET_TYPE, _us(0)),
            (_AFFECTED_INSTANCE, _uid(sop_instance_uid)),
        )
        seconds = self._settings.dimse + len(data_set) / LEAST_RATE
        pieces: list[Piece] = []
        sent = 0
        deadline = self._clock.monotonic() + seconds
        within = f"instance {sop_instance_uid} in time"
        for piece in self._pdus(number, command, data_set):
            pieces.append(piece)
            if len(pieces) == PIECES_LIMIT:
                self._send(pieces, deadline, within, whole=False)
                sent += sum(map(len, pieces))
                passed(sent)
                pieces = []
        self._send(pieces, deadline, within)
        return self._response(_C_STORE, number, sop_instance_uid)

    def echo(self) -> int:
        """Verify the receiver, which must have accepted VERIFICATION, and return the status that it answered with.

        Raises:
            AssociationAborted: The association broke.
            DestinationUnavailable: No answer in time.
            Interrupted: ``interrupt`` was called.
        """
        number = next(
            id_ for (sop_class, _), id_ in self._accepted.items() if sop_class == VERIFICATION
        )
        self._message_id = self._message_id % 0xFFFF + 1
        command = _command_set(
            (_AFFECTED_CLASS, _uid(VERIFICATION)),
            (_COMMAND_FIELD, _us(_C_ECHO)),
            (_MESSAGE_ID, _us(self._message_id)),
            (_DATA_SET_TYPE, _us(_NO_DATA_SET)),
        )
        deadline = self._clock.monotonic() + self._settings.dimse
        self._send(list(self._pdus(number, command)), deadline, "the C-ECHO in time")
        return self._response(_C_ECHO, number)

    def _pdus(
        self, number: int, command: bytes, data_set: memoryview | None = None
    ) -> Iterator[Piece]:
        """Yield a message as P-DATA-TF PDUs (PS3.8 9.3.5) with one PDV each: a head, what it holds, a head, …."""
        step = (self.send_limit - _PDV_OVERHEAD) & ~1  # a fragment has an even length
        parts = [(_IS_COMMAND, memoryview(command))]
        if data_set is not None:
            parts.append((0, data_set))
        for control, part in parts:
            head = _PDV_HEAD.pack(_P_DATA, 0, step + 6, step + 2, number, control)
            last = (len(part) - 1) // step * step if len(part) else 0
            for start in range(0, last, step):
                yield head
                yield part[start : start + step]
            rest = len(part) - last
            yield _PDV_HEAD.pack(_P_DATA, 0, rest + 6, rest + 2, number, control | _IS_LAST)
            yield part[last:]

    def _response(self, request: int, number: int, sop_instance_uid: str | None = None) -> int:
        """Wait for the response to the last request, hold it to the rules, and return its status."""
        elements = self._read_response(number)
        field = elements.get(_COMMAND_FIELD)
        if field != _us(request | _IS_RESPONSE):
            shown = "no command field" if field is None else f"command field {_hex(field)}"
            self._violation(f"a response with {shown}; {request | _IS_RESPONSE:04X}H is due")
        answered = elements.get(_ANSWERED_ID, b"")
        if answered != _us(self._message_id):
            self._violation(
                f"a response to message {int.from_bytes(answered, 'little')}; "
                f"the answer to {self._message_id} is due"
            )
        status = elements.get(_STATUS, b"")
        if len(status) != 2:
            self._violation("a response without a status")
        if elements.get(_DATA_SET_TYPE, _us(_NO_DATA_SET)) != _us(_NO_DATA_SET):
            self._violation("a response that announces a data set; none can follow it")
        stored = elements.get(_AFFECTED_INSTANCE, b"").strip(b"\0 ")
        if sop_instance_uid is not None and stored not in {b"", sop_instance_uid.encode()}:
            self._violation(f"a response about another instance than {sop_instance_uid}")
        return int.from_bytes(status, "little")

    def _read_response(self, number: int) -> dict[int, bytes]:
        seconds = self._settings.dimse
        deadline = self._clock.monotonic() + seconds
        within = f"message {self._message_id} within {seconds:g} s"
        command = b""
        last = False
        while not last:
            kind, body = self._receive(deadline, within)
            if kind != _P_DATA:
                self._unexpected(kind, body)
            at = 0
            while at < len(body):
                if last or at + 6 > len(body):
                    self._violation("a P-DATA-TF with more in it than a response")
                length, context, control = struct.unpack_from(">IBB", body, at)
                end = at + 4 + length
                if length < 2 or end > len(body):
                    self._violation("a presentation data value whose length is wrong")
                if context != number or not control & _IS_COMMAND:
                    self._violation("a presentation data value where the response is due")
                command += body[at + 6 : end]
                last = bool(control & _IS_LAST)
                at = end
            if len(command) > _COMMAND_LIMIT:
                self._violation(f"a response of more than {_COMMAND_LIMIT} bytes")
        try:
            return _read_command_set(command)
        except ValueError as cause:
            self._violation("a response that is cut off", cause)

    # Ends (PS3.8 7.2, 7.3)

    def release(self, seconds: float | None = None) -> None:
        """End the association in good order, or else any way; all that was sent is answered, so nothing hangs on it.

        Args:
            seconds: How long to wait for the receiver's part in it; None: as the settings say.
        """
        limit = self._settings.release if seconds is None else seconds
        deadline = self._clock.monotonic() + limit
        try:
            if self._connection.send_at_once(_SHORT_PDU(_RELEASE_RQ, 0, 4, 0, 0, 0, 0)):
                kind = 0
                while kind not in {_RELEASE_RP, _ABORT}:
                    kind, _ = self._connection.receive(deadline)
                    if kind == _RELEASE_RQ:  # both ask at once (PS3.8 7.2.2.7)
                        self._connection.send_at_once(_SHORT_PDU(_RELEASE_RP, 0, 4, 0, 0, 0, 0))
        except (OSError, AssociationAborted, Interrupted):
            pass  # the peer did not wait for it, or it was not to be waited for: it ends with the connection
        finally:
            self._connection.close()

    def abort(self) -> None:
        """End the association at once; harmless if it has ended."""
        self._connection.send_at_once(_ABORTION)
        self._connection.close()

    # What goes wrong

    def _send(
        self, pieces: Sequence[Piece], deadline: float, within: str, *, whole: bool = True
    ) -> None:
        try:
            self._connection.send(pieces, deadline, whole=whole)
        except TimeoutError as cause:
            self._look_for_abort()
            self.abort()
            raise DestinationUnavailable(
                f"{self._peer} did not take {within}: {cause.strerror}"
            ) from cause
        except OSError as cause:
            if cause.errno == errno.EFAULT:
                self._connection.close()
                raise UnreadableInput("the file became shorter while it was sent") from cause
            self._look_for_abort()
            self._lost(cause)

    def _receive(self, deadline: float, within: str) -> tuple[int, bytes]:
        try:
            return self._connection.receive(deadline)
        except TimeoutError as cause:
            self.abort()
            raise DestinationUnavailable(f"{self._peer} did not answer {within}") from cause
        except AssociationAborted:
            self.abort()
            raise
        except OSError as cause:
            self._lost(cause)

    def _look_for_abort(self) -> None:
        """Raise what the peer said before it stopped reading, if it said anything."""
        with contextlib.suppress(OSError):  # it said nothing; the caller knows the rest
            kind, body = self._connection.receive(self._clock.monotonic() + _ABORT_SECONDS)
            self._unexpected(kind, body)

    def _lost(self, cause: OSError) -> NoReturn:
        self._connection.close()
        if isinstance(cause, ssl.SSLError) and not isinstance(cause, ssl.SSLEOFError):
            words = refusal(cause)
        elif self._peer.tls is not None and not self._negotiated:  # its alert may have been lost
            words = (
                "the receiver closed it; one that wants a certificate of ours (tls.certificate), or does not take "
                "the one that it was shown, may do so"
            )
        else:
            words = (cause.strerror or str(cause)).lower()
        raise AssociationAborted(f"the connection to {self._peer} broke: {words}") from cause

    def _unexpected(self, kind: int, body: bytes) -> NoReturn:
        """Raise what it means that the peer sent this PDU instead of the one that is due."""
        if kind == _ABORT:
            self._connection.close()
            raise AssociationAborted(f"{self._peer} {_abortion(body)}")
        if kind == _RELEASE_RQ:
            self._connection.send_at_once(_SHORT_PDU(_RELEASE_RP, 0, 4, 0, 0, 0, 0))
            self._connection.close()
            raise AssociationAborted(f"{self._peer} released the association in the middle of it")
        if kind == _TLS_ALERT and self._peer.tls is None and not self._negotiated:
            self._violation(
                "a TLS alert: it takes secured connections only; give the destination tls"
            )
        self._violation(f"{_PDU_NAMES.get(kind, f'a PDU of type {kind:02X}H')} out of turn")

    def _violation(self, what: str, cause: Exception | None = None) -> NoReturn:
        self.abort()
        raise AssociationAborted(f"{self._peer} broke the protocol: it sent {what}") from cause


def _hex(value: bytes) -> str:
    return f"{int.from_bytes(value, 'little'):04X}H"


def _us(number: int) -> bytes:
    return number.to_bytes(2, "little")


def _uid(uid: str) -> bytes:
    value = uid.encode("ascii")
    return value + b"\0" if len(value) % 2 else value


def _command_set(*elements: tuple[int, bytes]) -> bytes:
    """Encode a command set (PS3.7 6.3.1): implicit little endian, elements in ascending order."""
    body = b"".join(_ELEMENT.pack(0, element, len(value)) + value for element, value in elements)
    return _ELEMENT.pack(0, _GROUP_LENGTH, 4) + len(body).to_bytes(4, "little") + body


def _read_command_set(command: bytes) -> dict[int, bytes]:
    """Decode a command set.

    Raises:
        ValueError: It is cut off, or has an element that is not of group 0000.
    """
    at, elements = 0, {}
    while at < len(command):
        if at + _ELEMENT.size > len(command):
            raise ValueError("cut off")
        group, element, length = _ELEMENT.unpack_from(command, at)
        at += _ELEMENT.size
        if group != 0 or at + length > len(command):
            raise ValueError("cut off")
        elements[element] = command[at : at + length]
        at += length
    return elements


def _items(body: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the variable items of an A-ASSOCIATE PDU (PS3.8 9.3.2), or the sub-items of one of them.

    Raises:
        struct.error: One is cut off.
    """
    at = 0
    while at < len(body):
        kind, _, length = struct.unpack_from(">BBH", body, at)
        at += 4 + length
        if at > len(body):
            raise struct.error("cut off")
        yield kind, body[at - length : at]


def _read_accept(body: bytes) -> tuple[dict[int, tuple[int, str]], int, bool]:
    """Read an A-ASSOCIATE-AC.

    Returns:
        Results and transfer syntaxes by context; the maximum length (0: no limit); whether it answers to the
        identity of the user.

    Items that are not known are passed over, as PS3.8 9.3.1 wants it; pynetdicom's decoder fails at them.

    Raises:
        struct.error, IndexError, UnicodeDecodeError: It is not one.
    """
    contexts, limit, identified = {}, 0, False
    for kind, data in _items(body[68:]):
        if kind == 0x21:
            syntax = b"".join(value for sub, value in _items(data[4:]) if sub == 0x40)
            contexts[data[0]] = (data[2], syntax.strip(b"\0 ").decode("ascii"))
        elif kind == 0x50:
            for sub, value in _items(data):
                if sub == 0x51:
                    (limit,) = struct.unpack(">I", value)
                identified = identified or sub == 0x59
    return contexts, limit, identified


def _rejection(body: bytes, peer: Peer) -> str:
    """Return an A-ASSOCIATE-RJ (PS3.8 9.3.4) in words."""
    if len(body) != 4:
        return "rejected the association, and does not say why"
    _, result, source, reason = body
    how = _REJECT_RESULTS.get(result, f"with result {result}")
    why = _REJECT_REASONS.get((source, reason), f"source {source}, reason {reason}")
    if peer.identity is not None and reason == 1:
        why += "; it may not take the user that we say we are"
    return f"rejected the association of {peer.calling} {how}: {why}"


def _abortion(body: bytes) -> str:
    """Return an A-ABORT (PS3.8 9.3.8) in words."""
    if len(body) == 4 and body[2] == 2:
        why = _ABORT_REASONS.get(body[3], f"reason {body[3]}")
        return f"aborted the association: its protocol machine says {why}"
    return "aborted the association"
