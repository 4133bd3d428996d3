"""A bare sender: what C-STORE costs in Python with nothing around it. ``python bare.py PORT ASSOCIATIONS FOLDER``.

It reads files, finds SOP class, instance and transfer syntax in their file meta information alone, and hands each to the
socket in one ``sendmsg``. It checks, notes and reports nothing. What an exporter needs beyond its time is what safety
costs. Prints the seconds from its first look at the files to the last association's release.
"""

import mmap
import os
import socket
import struct
import sys
import threading
import time
from collections import deque

_PDU = struct.Struct(">BBI")
_HEAD = struct.Struct(">BBIIBB")
_LARGE = 1 << 16
_SUCCESS = b"\0\0\0\x09\2\0\0\0\0\0"
"""Status (0000,0900) of 0000H in a response."""

Meta = tuple[bytes, bytes, bytes, int]


def _meta(data: memoryview) -> Meta:
    """Return SOP class, SOP instance, transfer syntax, and where the data set begins (PS3.10 7.1)."""
    (length,) = struct.unpack_from("<I", data, 140)
    at, end = 144, 144 + length
    found: dict[int, bytes] = {}
    while at < end:
        element, vr, size = struct.unpack_from("<2xH2sH", data, at)
        at += 8
        if vr in {b"OB", b"UN"}:
            (size,) = struct.unpack_from("<I", data, at)
            at += 4
        found[element] = bytes(data[at : at + size])
        at += size
    return found[2], found[3], found[16].rstrip(b"\0"), end


def _item(kind: int, value: bytes) -> bytes:
    return struct.pack(">BBH", kind, 0, len(value)) + value


class _Association:
    def __init__(self, port: int, contexts: list[tuple[bytes, bytes]]) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        body = struct.pack(">HH16s16s32x", 1, 0, b"RECEIVER".ljust(16), b"BARE".ljust(16))
        body += _item(0x10, b"1.2.840.10008.3.1.1.1")
        self._ids = {context: 2 * index + 1 for index, context in enumerate(contexts)}
        for (sop_class, syntax), number in self._ids.items():
            inner = _item(0x30, sop_class.rstrip(b"\0")) + _item(0x40, syntax)
            body += _item(0x20, bytes([number, 0, 0, 0]) + inner)
        body += _item(0x50, _item(0x51, struct.pack(">I", 131_072)) + _item(0x52, b"1.2.3.4"))
        self._socket.sendall(_PDU.pack(1, 0, len(body)) + body)
        answer = self._answer()
        at = answer.index(b"\x51\x00\x00\x04") + 4
        self._step = (struct.unpack_from(">I", answer, at)[0] or 131_072) - 6
        self._message = 0

    def _answer(self) -> bytes:
        data = b""
        while len(data) < 6 or len(data) < 6 + _PDU.unpack_from(data)[2]:
            piece = self._socket.recv(65_536)
            if not piece:
                raise ConnectionResetError
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
            data += piece
        return data

    def store(self, meta: Meta, data: memoryview) -> None:
        sop_class, instance, syntax, _ = meta
        self._message = self._message % 65_535 + 1
        number = self._ids[sop_class, syntax]
        command = b"".join(
            struct.pack("<HHI", 0, element, len(value)) + value
            for element, value in (
                (2, sop_class),
                (0x100, b"\1\0"),
                (0x110, struct.pack("<H", self._message)),
                (0x700, b"\0\0"),
                (0x800, b"\0\0"),
                (0x1000, instance),
            )
        )
        command = struct.pack("<HHII", 0, 0, 4, len(command)) + command
        size = len(command)
        pieces: list[bytes | memoryview] = [
            _HEAD.pack(4, 0, size + 6, size + 2, number, 3),
            command,
        ]
        for at in range(0, len(data), self._step):
            piece = data[at : at + self._step]
            last = 2 if at + self._step >= len(data) else 0
            pieces += [_HEAD.pack(4, 0, len(piece) + 6, len(piece) + 2, number, last), piece]
        self._send(pieces)
        answer = self._answer()
        if _SUCCESS not in answer:
            raise ConnectionAbortedError("an instance was not taken")

    def _send(self, pieces: list[bytes | memoryview]) -> None:
        for start in range(0, len(pieces), 1000):
            some = pieces[start : start + 1000]
            left = sum(map(len, some))
            while left:
                sent = self._socket.sendmsg(some)
                left -= sent
                while some and sent >= len(some[0]):
                    sent -= len(some.pop(0))
                if some:
                    some[0] = memoryview(some[0])[sent:]

    def release(self) -> None:
        self._socket.sendall(_PDU.pack(5, 0, 4) + bytes(4))
        self._answer()
        self._socket.close()


def _read(path: str) -> memoryview:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        size = os.fstat(descriptor).st_size
        if size <= _LARGE:
            return memoryview(os.read(descriptor, size))
        return memoryview(mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ))
    finally:
        os.close(descriptor)


def _head(path: str) -> Meta:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return _meta(memoryview(os.read(descriptor, 2048)))
    finally:
        os.close(descriptor)


def _work(
    port: int, paths: deque[str], contexts: list[tuple[bytes, bytes]], sent: list[str]
) -> None:
    association = _Association(port, contexts)
    while True:
        try:
            path = paths.popleft()
        except IndexError:
            break
        data = _read(path)
        meta = _meta(data)
        association.store(meta, data[meta[3] :])
        sent.append(path)
    association.release()


def main() -> None:
    """Send a folder's files."""
    port, associations, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    begin = time.perf_counter()
    paths = deque(sorted(entry.path for entry in os.scandir(folder)))
    contexts = list(dict.fromkeys((meta[0], meta[2]) for meta in map(_head, paths)))
    count, sent = len(paths), list[str]()
    threads = [
        threading.Thread(target=_work, args=(port, paths, contexts, sent))
        for _ in range(associations)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(time.perf_counter() - begin)
    if len(sent) != count:
        sys.exit(f"{len(sent)} of {count} files were sent")


if __name__ == "__main__":
    main()
