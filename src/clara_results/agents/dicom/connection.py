"""A TCP connection that carries DICOM's protocol data units (PS3.8 9.3), with a deadline on every wait.

Two things rule its speed. The receiver answers at once only if nothing of an instance is held back here: Nagle's
algorithm is off, and an instance goes out in one ``sendmsg``. And a receiver that itself has Nagle's algorithm on
sends its answer in two pieces, the second only when the first is acknowledged: so acknowledgements are not delayed,
which Linux must be told again after each receive.
"""

import errno
import select
import socket
import struct
from collections.abc import Sequence

from clara_results.domain.clock import Clock
from clara_results.errors import ClaraResultsError, DestinationUnavailable

RECEIVED_LIMIT = 1 << 20
"""Bytes of a protocol data unit that are taken; none that is sent to a storage SCU comes near."""
PIECES_LIMIT = 1000
"""Pieces of one ``sendmsg``; Linux takes 1024 (IOV_MAX)."""

_RECEIVE = 1 << 16
_PDU_HEAD = struct.Struct(">BBI")
_TIMEVAL = struct.Struct("@ll")
_QUICK_ACK = getattr(socket, "TCP_QUICKACK", None)  # Linux only

Piece = bytes | memoryview


class AssociationAborted(ClaraResultsError):
    """An open association ended before its time, or its peer broke the protocol so that it was ended."""

    code = "association-aborted"


def connect(host: str, port: int, seconds: float, clock: Clock) -> socket.socket:
    """Open a TCP connection: to the first of the host's addresses, of either family, that takes it.

    Args:
        host: DNS name, IPv4 or IPv6 address.
        port: TCP port.
        seconds: For all addresses together. The system's resolver has time limits of its own.
        clock: Where time comes from.

    Raises:
        DestinationUnavailable: The name is not known, or no address takes the connection in time.
    """
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as cause:  # UnicodeError: a name that IDNA does not allow
        why = cause.strerror if isinstance(cause, OSError) else "not a legal name"
        raise DestinationUnavailable(f"the host {host!r} can't be resolved: {why}") from cause
    deadline = clock.monotonic() + seconds
    failures = []
    for family, kind, protocol, _, address in addresses:
        left = deadline - clock.monotonic()
        if left <= 0:
            failures.append(f"no answer within {seconds:g} s")
            break
        connection = socket.socket(family, kind, protocol)
        connection.settimeout(left)
        try:
            connection.connect(address)
        except OSError as cause:
            connection.close()
            failures.append(f"{address[0]}: {_words(cause, seconds)}")
        else:
            return connection
    raise DestinationUnavailable(f"can't connect to {host} port {port}: {'; '.join(failures)}")


def _words(cause: OSError, seconds: float) -> str:
    if isinstance(cause, TimeoutError) and cause.errno is None:
        return f"no answer within {seconds:g} s"
    return (cause.strerror or str(cause)).lower()


class PduConnection:
    """Sends and receives protocol data units.

    Args:
        connection: A connected socket, from now on the PduConnection's.
        stall: Seconds that the peer may take nothing of what is sent.
        clock: Where time comes from.
    """

    def __init__(self, connection: socket.socket, stall: float, clock: Clock) -> None:
        self._socket = connection
        self._clock = clock
        self._received = b""
        self._whole = True
        connection.settimeout(None)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        wait = _TIMEVAL.pack(*divmod(max(1, round(stall * 1_000_000)), 1_000_000))
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, wait)
        self._readable = select.poll()
        self._readable.register(connection, select.POLLIN)
        self._acknowledge_quickly()

    def _acknowledge_quickly(self) -> None:
        if _QUICK_ACK is not None:
            self._socket.setsockopt(socket.IPPROTO_TCP, _QUICK_ACK, 1)

    def send(self, pieces: Sequence[Piece], deadline: float, *, whole: bool = True) -> None:
        """Send at most PIECES_LIMIT pieces that follow each other.

        Args:
            pieces: What to send.
            deadline: On the clock's steady counter.
            whole: After these a protocol data unit is complete.

        Raises:
            TimeoutError: The peer took nothing for too long, or not all in time.
            OSError: The connection broke; or, with EFAULT, a piece can't be read: its file became shorter.
        """
        self._whole = False
        left = sum(map(len, pieces))
        while True:
            try:
                sent = self._socket.sendmsg(pieces)
            except BlockingIOError as cause:
                raise TimeoutError(errno.ETIMEDOUT, "it takes no more data") from cause
            left -= sent
            if not left:
                break
            pieces = _after(pieces, sent)
            if self._clock.monotonic() > deadline:
                raise TimeoutError(errno.ETIMEDOUT, "it takes data too slowly")
        self._whole = whole

    def send_at_once(self, pdu: bytes) -> bool:
        """Send a small protocol data unit if it can go without waiting, and tell whether it went."""
        if not self._whole:
            return False
        try:
            return self._socket.send(pdu, socket.MSG_DONTWAIT) == len(pdu)
        except OSError:  # the peer is gone, or takes nothing: the caller is told, and closes
            return False

    def receive(self, deadline: float) -> tuple[int, bytes]:
        """Wait for a protocol data unit and return its type and what follows its head.

        Raises:
            TimeoutError: It did not come, whole, in time.
            OSError: The connection broke.
            AssociationAborted: It claims to be larger than RECEIVED_LIMIT.
        """
        self._fill(_PDU_HEAD.size, deadline)
        kind, _, length = _PDU_HEAD.unpack_from(self._received)
        if length > RECEIVED_LIMIT:
            raise AssociationAborted(
                f"the receiver sent a PDU of type {kind:02X}H that claims {length} bytes; "
                f"more than {RECEIVED_LIMIT} are not taken"
            )
        end = _PDU_HEAD.size + length
        self._fill(end, deadline)
        body = self._received[_PDU_HEAD.size : end]
        self._received = self._received[end:]
        return kind, body

    def _fill(self, size: int, deadline: float) -> None:
        while len(self._received) < size:
            left = deadline - self._clock.monotonic()
            if left <= 0 or not self._readable.poll(left * 1000):
                raise TimeoutError(errno.ETIMEDOUT, "no answer in time")
            piece = self._socket.recv(_RECEIVE)
            if not piece:
                raise ConnectionResetError(errno.ECONNRESET, "the receiver closed the connection")
            self._acknowledge_quickly()
            self._received += piece

    @property
    def closed(self) -> bool:
        """Tell whether it was closed on our side."""
        return self._socket.fileno() == -1

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()


def _after(pieces: Sequence[Piece], sent: int) -> list[Piece]:
    """Return what is left of pieces whose first ``sent`` bytes are gone."""
    for index, piece in enumerate(pieces):
        if sent < len(piece):
            return [memoryview(piece)[sent:], *pieces[index + 1 :]]
        sent -= len(piece)
    return []
