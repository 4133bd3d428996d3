"""A TCP connection, secured by TLS or not, that carries DICOM's protocol data units (PS3.8 9.3); every wait has a deadline.

Two things rule its speed. The receiver answers at once only if nothing of an instance is held back here: Nagle's
algorithm is off, and an instance goes out in one ``sendmsg``. And a receiver that itself has Nagle's algorithm on
sends its answer in two pieces, the second only when the first is acknowledged: so acknowledgements are not delayed,
which Linux must be told again after each receive.
"""

import contextlib
import errno
import mmap
import os
import select
import socket
import ssl
import struct
import threading
from collections.abc import Sequence

from clara_results.agents.tls import refusal
from clara_results.domain.clock import Clock
from clara_results.errors import ClaraResultsError, DestinationUnavailable

RECEIVED_LIMIT = 1 << 20
"""Bytes of a protocol data unit that are taken; none that is sent to a storage SCU comes near."""
PIECES_LIMIT = 128
"""Pieces of one ``sendmsg``; Linux takes 1024 (IOV_MAX). With the largest PDUs these are some MB: enough at a time."""

_RECEIVE = 1 << 16
_PDU_HEAD = struct.Struct(">BBI")
_PDU_TYPES = range(1, 8)
_TIMEVAL = struct.Struct("@ll")
_QUICK_ACK = getattr(socket, "TCP_QUICKACK", None)  # Linux only
_JOINED = 1 << 18
"""Bytes that a secured connection is given at once."""

Piece = bytes | memoryview


class AssociationAborted(ClaraResultsError):
    """An open association ended before its time, or its peer broke the protocol so that it was ended."""

    code = "association-aborted"


class Interrupted(ClaraResultsError):
    """``interrupt`` ended the association from another thread; an instance under way may have arrived or not."""

    code = "interrupted"


class PduConnection:
    """Sends and receives protocol data units. One thread uses it; ``interrupt`` is any thread's.

    Args:
        stall: Seconds that the peer may take nothing of what is sent.
        clock: Where time comes from.
    """

    def __init__(self, stall: float, clock: Clock) -> None:
        self._stall = stall
        self._clock = clock
        self._received = b""
        self._whole = True
        self._sending = False
        self._interrupted = False
        self._ending = threading.Lock()
        self._socket: socket.socket | None = None
        self._transport: _Plain | _Secured | None = None

    def connect(self, host: str, port: int, seconds: float) -> None:
        """Connect to the first of the host's addresses, of either family, that takes it.

        Args:
            host: DNS name, IPv4 or IPv6 address.
            port: TCP port.
            seconds: For all addresses together. The system's resolver has time limits of its own.

        Raises:
            DestinationUnavailable: The name is not known, or no address takes the connection in time.
            Interrupted: ``interrupt`` was called.
        """
        try:
            addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as cause:  # UnicodeError: a name that IDNA does not allow
            why = cause.strerror if isinstance(cause, OSError) else "not a legal name"
            raise DestinationUnavailable(f"the host {host!r} can't be resolved: {why}") from cause
        deadline = self._clock.monotonic() + seconds
        failures = []
        for family, kind, protocol, _, address in addresses:
            left = deadline - self._clock.monotonic()
            if left <= 0:
                failures.append(f"no answer within {seconds:g} s")
                break
            opened = socket.socket(family, kind, protocol)
            self._adopt(opened)
            opened.settimeout(left)
            try:
                opened.connect(address)
            except OSError as cause:
                self.close()
                self._stop_if_interrupted(cause)
                failures.append(f"{address[0]}: {_words(cause, seconds)}")
            else:
                self._stop_if_interrupted()
                self._transport = _Plain(opened, self._stall)
                return
        raise DestinationUnavailable(f"can't connect to {host} port {port}: {'; '.join(failures)}")

    def secure(self, context: ssl.SSLContext, host: str, seconds: float) -> str:
        """Secure the connection (PS3.15 B.12), before anything else is sent.

        Args:
            context: How.
            host: Whom the peer's certificate must name, if the context has it checked.
            seconds: For the handshake.

        Returns:
            The version and the cipher suite that were agreed on.

        Raises:
            DestinationUnavailable: It does not come about; the connection is closed.
            Interrupted: ``interrupt`` was called.
        """
        if self._socket is None:
            raise DestinationUnavailable(f"no TLS with {host}: there is no connection")
        self._transport = None
        name = host.rstrip(".")
        try:
            self._socket.getpeername()  # or it has broken already, and wrap_socket might lose it (CPython 3.11)
            secured = context.wrap_socket(
                self._socket, server_hostname=name, do_handshake_on_connect=False
            )
            self._adopt(secured)
            secured.settimeout(seconds)
            secured.do_handshake()
        except OSError as cause:
            self.close()
            self._stop_if_interrupted(cause)
            if isinstance(cause, ssl.SSLError):
                why = refusal(cause)
            else:
                why = f"{_words(cause, seconds)}; does the receiver speak TLS on this port?"
            raise DestinationUnavailable(f"no TLS with {host}: {why}") from cause
        self._transport = _Secured(secured, self._stall, self._clock)
        suite = secured.cipher()
        return f"{secured.version()} with {suite[0] if suite else 'no cipher'}"

    def _adopt(self, opened: socket.socket) -> None:
        """Have a socket for this connection's, so that ``interrupt`` reaches it."""
        with self._ending:
            self._socket = opened
        if self._interrupted:
            self.close()
        self._stop_if_interrupted()

    def _stop_if_interrupted(self, cause: OSError | None = None) -> None:
        if self._interrupted:
            self.close()
            raise Interrupted("the association was ended from this side") from cause

    def interrupt(self, last: bytes) -> None:
        """End the connection from any thread, at any time: whatever waits for it raises Interrupted.

        Args:
            last: A small protocol data unit that is sent before, if that can be done at once.
        """
        with self._ending:
            self._interrupted = True  # from here on, no sending begins
            if self._socket is None:
                return
            with contextlib.suppress(
                OSError
            ):  # it may have broken already, or not yet be connected
                if isinstance(self._transport, _Plain) and self._whole and not self._sending:
                    self._socket.send(last, socket.MSG_DONTWAIT)
                # Not SSLSocket's own, which takes TLS from under the thread that uses it.
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def send(self, pieces: Sequence[Piece], deadline: float, *, whole: bool = True) -> None:
        """Send at most PIECES_LIMIT pieces that follow each other.

        Args:
            pieces: What to send.
            deadline: On the clock's steady counter.
            whole: After these a protocol data unit is complete.

        Raises:
            TimeoutError: The peer took nothing for too long, or not all in time.
            OSError: The connection broke; or, with EFAULT, a piece can't be read: its file became shorter.
            Interrupted: ``interrupt`` was called; the connection is closed.
        """
        transport = self._open_transport()
        self._sending = True
        try:
            self._stop_if_interrupted()  # after _sending is set, before the first byte
            self._whole = False
            left = sum(map(len, pieces))
            while True:
                sent = transport.send(pieces, deadline)
                left -= sent
                if not left:
                    break
                pieces = _after(pieces, sent)
                if self._clock.monotonic() > deadline:
                    raise TimeoutError(errno.ETIMEDOUT, "it takes data too slowly")
        except OSError as cause:
            self._stop_if_interrupted(cause)
            raise
        finally:
            self._sending = False
        self._whole = whole

    def send_at_once(self, pdu: bytes) -> bool:
        """Send a small protocol data unit if it can go without waiting, and tell whether it went."""
        if not self._whole or self._transport is None or self.closed:
            return False
        try:
            return self._transport.send_at_once(pdu)
        except OSError:  # the peer is gone, or takes nothing: the caller is told, and closes
            return False

    def receive(self, deadline: float) -> tuple[int, bytes]:
        """Wait for a protocol data unit and return its type and what follows its head; nothing if it is of no type.

        Raises:
            TimeoutError: It did not come, whole, in time.
            OSError: The connection broke.
            AssociationAborted: It claims to be larger than RECEIVED_LIMIT.
            Interrupted: ``interrupt`` was called; the connection is closed.
        """
        try:
            self._fill(_PDU_HEAD.size, deadline)
            kind, _, length = _PDU_HEAD.unpack_from(self._received)
            if kind not in _PDU_TYPES:
                return kind, b""
            if length > RECEIVED_LIMIT:
                raise AssociationAborted(
                    f"the receiver sent a PDU of type {kind:02X}H that claims {length} bytes; "
                    f"more than {RECEIVED_LIMIT} are not taken"
                )
            end = _PDU_HEAD.size + length
            self._fill(end, deadline)
        except OSError as cause:
            self._stop_if_interrupted(cause)
            raise
        body = self._received[_PDU_HEAD.size : end]
        self._received = self._received[end:]
        return kind, body

    def _fill(self, size: int, deadline: float) -> None:
        transport = self._open_transport()
        while len(self._received) < size:
            left = deadline - self._clock.monotonic()
            piece = transport.receive(left) if left > 0 else None
            if piece is None:
                raise TimeoutError(errno.ETIMEDOUT, "no answer in time")
            if not piece:
                raise ConnectionResetError(errno.ECONNRESET, "the receiver closed the connection")
            self._received += piece

    def quiet(self) -> bool:
        """Tell whether the connection is open and the peer has sent nothing: how it is between messages."""
        if self._transport is None or self.closed or self._received:
            return False
        try:
            piece = self._transport.receive(0)
        except OSError:  # it broke: not quiet
            return False
        self._received += piece or b""
        return piece is None

    def _open_transport(self) -> "_Plain | _Secured":
        if self._transport is None or self.closed:
            self._stop_if_interrupted()
            raise OSError(errno.ENOTCONN, "the connection is closed")
        return self._transport

    @property
    def closed(self) -> bool:
        """Tell whether it was closed on our side, or never opened."""
        return self._socket is None or self._socket.fileno() == -1

    def close(self) -> None:
        """Close the connection."""
        if self._transport is not None:
            self._transport.end()
        with self._ending:  # its number may be another socket's right after
            if self._socket is not None:
                self._socket.close()


class _Plain:
    """What bytes go through as they are."""

    def __init__(self, connection: socket.socket, stall: float) -> None:
        self._socket = connection
        connection.settimeout(None)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        wait = _TIMEVAL.pack(*divmod(max(1, round(stall * 1_000_000)), 1_000_000))
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, wait)
        self._readable = select.poll()
        self._readable.register(connection, select.POLLIN)
        _acknowledge_quickly(connection)

    def send(self, pieces: Sequence[Piece], _deadline: float) -> int:
        """Send what the peer takes of some pieces, and return how many bytes that were."""
        try:
            return self._socket.sendmsg(pieces)
        except BlockingIOError as cause:
            raise TimeoutError(errno.ETIMEDOUT, "it takes no more data") from cause

    def send_at_once(self, pdu: bytes) -> bool:
        """Send without waiting, and tell whether all of it went."""
        return self._socket.send(pdu, socket.MSG_DONTWAIT) == len(pdu)

    def receive(self, seconds: float) -> bytes | None:
        """Return what came, nothing if the peer closed the connection, None if nothing came in time."""
        if not self._readable.poll(seconds * 1000):
            return None
        piece = self._socket.recv(_RECEIVE)
        if piece:
            _acknowledge_quickly(self._socket)
        return piece

    def end(self) -> None:
        """Do nothing: the connection is about to be closed."""


class _Secured:
    """What bytes go through within TLS, which has no ``sendmsg``: pieces are joined.

    They are joined by the kernel, in a file that is in memory only: copied here, a piece of a mapped file that became
    shorter would end the process.
    """

    def __init__(self, connection: ssl.SSLSocket, stall: float, clock: Clock) -> None:
        self._socket = connection
        self._stall = stall
        self._clock = clock
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._joined = os.memfd_create("clara-results-tls")
        os.ftruncate(self._joined, _JOINED)
        self._mapped = memoryview(mmap.mmap(self._joined, _JOINED))
        _acknowledge_quickly(connection)

    def send(self, pieces: Sequence[Piece], deadline: float) -> int:
        """Send the beginning of some pieces, and return how many bytes that were."""
        joined = os.pwritev(self._joined, _first(pieces, _JOINED), 0)
        sent = 0
        while sent < joined:
            left = deadline - self._clock.monotonic()
            if left <= 0:
                raise TimeoutError(errno.ETIMEDOUT, "it takes data too slowly")
            self._socket.settimeout(min(left, self._stall))
            try:
                sent += self._socket.send(self._mapped[sent:joined])
            except TimeoutError as cause:
                raise TimeoutError(errno.ETIMEDOUT, "it takes no more data") from cause
        return joined

    def send_at_once(self, pdu: bytes) -> bool:
        """Send without waiting, and tell whether all of it went."""
        self._socket.settimeout(0)
        return self._socket.send(pdu) == len(pdu)

    def receive(self, seconds: float) -> bytes | None:
        """Return what came, nothing if the peer closed the connection, None if nothing came in time."""
        self._socket.settimeout(seconds)
        try:
            piece = self._socket.recv(_RECEIVE)
        except (TimeoutError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return None
        if piece:
            _acknowledge_quickly(self._socket)
        return piece

    def end(self) -> None:
        """Tell the peer that the connection is about to be closed, if that can be done at once."""
        if self._joined != -1:
            os.close(self._joined)
            self._joined = -1
            with contextlib.suppress(OSError, ValueError):  # it is gone, or does not listen
                self._socket.settimeout(0)
                self._socket.unwrap()


def _acknowledge_quickly(connection: socket.socket) -> None:
    if _QUICK_ACK is not None:
        connection.setsockopt(socket.IPPROTO_TCP, _QUICK_ACK, 1)


def _words(cause: OSError, seconds: float) -> str:
    if isinstance(cause, TimeoutError) and cause.errno is None:
        return f"no answer within {seconds:g} s"
    return (cause.strerror or str(cause)).lower()


def _first(pieces: Sequence[Piece], limit: int) -> list[Piece]:
    """Return the first ``limit`` bytes of pieces."""
    chosen = []
    for piece in pieces:
        chosen.append(piece[:limit])
        limit -= len(chosen[-1])
        if not limit:
            break
    return chosen


def _after(pieces: Sequence[Piece], sent: int) -> list[Piece]:
    """Return what is left of pieces whose first ``sent`` bytes are gone."""
    for index, piece in enumerate(pieces):
        if sent < len(piece):
            return [memoryview(piece)[sent:], *pieces[index + 1 :]]
        sent -= len(piece)
    return []
