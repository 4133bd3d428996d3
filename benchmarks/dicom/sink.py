"""A receiver that stores nothing: it takes what is proposed, reads, and answers success. ``python sink.py PORT``.

It knows no more of DICOM than it must, so that what a sender costs is what is measured.
"""

import socket
import struct
import sys
import threading

_PDU = struct.Struct(">BBI")
_PDV = struct.Struct(">IBB")
_ROOM = 1 << 20


def _item(kind: int, value: bytes) -> bytes:
    return struct.pack(">BBH", kind, 0, len(value)) + value


def _accept(request: bytes) -> bytes:
    """Return an A-ASSOCIATE-AC (PS3.8 9.3.3) that takes each context in its first transfer syntax."""
    answer, at = request[:68], 68
    while at < len(request):
        kind, _, length = struct.unpack_from(">BBH", request, at)
        value = request[at + 4 : at + 4 + length]
        at += 4 + length
        if kind == 0x10:
            answer += _item(kind, value)
        elif kind == 0x20:
            syntax = value[4 + 4 + struct.unpack_from(">H", value, 6)[0] :]
            first = syntax[: 4 + struct.unpack_from(">H", syntax, 2)[0]]
            answer += _item(0x21, bytes([value[0], 0, 0, 0]) + first)
    return answer + _item(0x50, _item(0x51, struct.pack(">I", 131_072)) + _item(0x52, b"1.2.3"))


def _response(command: bytes) -> bytes:
    """Return a C-STORE-RSP (PS3.7 9.3.1.2) of success."""
    at, message_id = 0, b"\1\0"
    while at < len(command):
        element, length = struct.unpack_from("<2xHI", command, at)
        if element == 0x0110:
            message_id = command[at + 8 : at + 10]
        at += 8 + length
    body = b"".join(
        struct.pack("<HHI", 0, element, 2) + value
        for element, value in (
            (0x0100, b"\x01\x80"),
            (0x0120, message_id),
            (0x0800, b"\x01\x01"),
            (0x0900, b"\0\0"),
        )
    )
    return struct.pack("<HHII", 0, 0, 4, len(body)) + body


class _Talk:
    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._data = bytearray(_ROOM)
        self._begin = self._end = 0

    def _take(self, count: int) -> memoryview:
        """Return the next bytes; they are overwritten later."""
        if self._begin + count > len(self._data):
            rest = self._data[self._begin : self._end]
            self._data[: len(rest)] = rest
            self._begin, self._end = 0, len(rest)
        while self._end - self._begin < count:
            got = self._socket.recv_into(memoryview(self._data)[self._end :])
            if not got:
                raise ConnectionResetError
            self._end += got
        taken = memoryview(self._data)[self._begin : self._begin + count]
        self._begin += count
        if self._begin == self._end:
            self._begin = self._end = 0
        return taken

    def run(self) -> None:
        command = b""
        while True:
            kind, _, length = _PDU.unpack(self._take(_PDU.size))
            body = self._take(length)
            if kind == 1:
                self._send(2, _accept(bytes(body)))
            elif kind == 5:
                self._send(6, b"\0\0\0\0")
            elif kind == 4:
                at = 0
                while at < length:
                    size, context, control = _PDV.unpack_from(body, at)
                    if control & 1:
                        command += bytes(body[at + 6 : at + 4 + size])
                    elif control & 2:
                        answer = _response(command)
                        command = b""
                        self._send(4, _PDV.pack(len(answer) + 2, context, 3) + answer)
                    at += 4 + size
            else:
                raise ConnectionResetError

    def _send(self, kind: int, body: bytes) -> None:
        self._socket.sendall(_PDU.pack(kind, 0, len(body)) + body)


def _serve(connection: socket.socket) -> None:
    with connection:
        try:
            _Talk(connection).run()
        except ConnectionError:
            return  # how each of them ends


def main() -> None:
    """Take associations until ended."""
    listening = socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=100)
    while True:
        connection, _ = listening.accept()
        threading.Thread(target=_serve, args=(connection,), daemon=True).start()


if __name__ == "__main__":
    main()
