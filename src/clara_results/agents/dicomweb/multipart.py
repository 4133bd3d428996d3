"""Instances as parts of a message (RFC 2387, PS3.18 8.6): written without being held, read into a file."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from email.message import Message
from typing import BinaryIO
from uuid import uuid4

from clara_results.errors import UnreadableInput

PIECE = 1 << 18
"""Bytes that are read and sent at a time; instances that are smaller are sent together."""
_HEAD_LIMIT = 1 << 14


@dataclass(frozen=True, slots=True)
class Part:
    """A Part 10 file that is to be sent, open.

    Attributes:
        uri: Its name in the task.
        file: It.
        size: Its bytes.
    """

    uri: str
    file: BinaryIO
    size: int


class InstancesMessage:
    """A request's body: Part 10 files, one a part. ``pieces`` makes it as often as it is asked for.

    Attributes:
        content_type: Of the request.
        size: Bytes of the whole.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        boundary = uuid4().hex
        self._parts = parts
        self._head = f"\r\n--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
        self._end = f"\r\n--{boundary}--\r\n".encode()
        self.content_type = f'multipart/related; type="application/dicom"; boundary={boundary}'
        self.size = sum(len(self._head) + part.size for part in parts) + len(self._end)

    def pieces(self) -> Iterator[bytes]:
        """Yield the body.

        Raises:
            UnreadableInput: A file is shorter than it was, or can't be read; ``uri`` of the error names it.
        """
        waiting = bytearray()
        for part in self._parts:
            waiting += self._head
            for data in _read(part):
                if len(waiting) + len(data) > PIECE:
                    yield bytes(waiting)
                    waiting.clear()
                if len(data) == PIECE:
                    yield data
                else:
                    waiting += data
        yield bytes(waiting + self._end)


class PartUnreadable(UnreadableInput):
    """A file can't be read while it is sent.

    Attributes:
        uri: Which.
    """

    def __init__(self, uri: str, message: str) -> None:
        super().__init__(message)
        self.uri = uri


def _read(part: Part) -> Iterator[bytes]:
    left = part.size
    try:
        part.file.seek(0)
        while left:
            data = part.file.read(min(PIECE, left))
            if not data:
                raise PartUnreadable(part.uri, "the file became shorter while it was sent")
            left -= len(data)
            yield data
    except OSError as cause:
        raise PartUnreadable(
            part.uri, f"the file can't be read: {cause.strerror or type(cause).__name__}"
        ) from cause


def only_part(content_type: str, message: BinaryIO, out: BinaryIO) -> bool:
    """Copy the first part of a multipart message.

    Args:
        content_type: The message's.
        message: It; read from the beginning.
        out: Where the part goes.

    Returns:
        Whether there is one, whole.
    """
    head = Message()
    head["Content-Type"] = content_type
    boundary = head.get_param("boundary")
    if head.get_content_maintype() != "multipart" or not isinstance(boundary, str) or not boundary:
        return False
    mark = b"--" + boundary.encode("ascii", "replace")
    message.seek(0)
    window = message.read(_HEAD_LIMIT)
    begin = re.search(rb"(?:\A|\r\n)" + re.escape(mark) + rb"[ \t]*\r\n", window)
    if begin is None:
        return False
    blank = window.find(b"\r\n\r\n", begin.end() - 2)
    if blank < 0:
        return False
    return _copy_until(b"\r\n" + mark, message, window[blank + 4 :], out)


def _copy_until(mark: bytes, message: BinaryIO, window: bytes, out: BinaryIO) -> bool:
    while (at := window.find(mark)) < 0:
        kept = len(mark) - 1
        out.write(window[:-kept] if len(window) > kept else b"")
        more = message.read(PIECE)
        if not more:
            return False
        window = (window[-kept:] if len(window) > kept else window) + more
    out.write(window[:at])
    return True
