"""Writes an instance anew in a transfer syntax that a receiver takes, without loss (PS3.5 A).

Data elements are copied, not decoded: their heads are written anew, their values pass byte for byte, in every
character set, private ones too. Only what hangs on the transfer syntax changes: compressed pixel data becomes native,
frame by frame, so that one frame is all that is held; what is big endian is swapped; sequences get undefined lengths;
group lengths, which would be wrong and are retired, go.
"""

import array
import io
import os
import struct
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from pydicom.encaps import generate_frames

from clara_results.agents.dicom.elements import Element, Part, dictionary_vr, walk
from clara_results.agents.dicom.frames import (
    DECODABLE,
    FrameDecoder,
    FrameDecoders,
    FrameDescription,
    FrameUndecodable,
)
from clara_results.agents.dicom.part10 import (
    BIG_ENDIAN,
    BIG_ENDIAN_SYNTAX,
    IMPLEMENTATION_CLASS_UID,
    IMPLEMENTATION_VERSION_NAME,
    IS_LONG,
    ITEM,
    ITEM_END,
    SEQUENCE_END,
    UNDEFINED,
    Header,
    ReadAt,
    Window,
    encoding_of,
    inflate,
)
from clara_results.errors import ClaraResultsError

EXPLICIT_SYNTAX, IMPLICIT_SYNTAX = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2"
LENGTH_LIMIT = UNDEFINED - 1
"""Bytes of a native value: its length has 32 bits and is even (PS3.5 7.1.1, 8.1.1)."""
CHUNK = 1 << 20
"""Bytes of a value that are held; a multiple of 8."""

_DEFLATED_SYNTAX = "1.2.840.10008.1.2.1.99"
_SAMPLES, _INTERPRETATION, _PLANAR, _FRAMES = 0x00280002, 0x00280004, 0x00280006, 0x00280008
_ROWS, _COLUMNS, _ALLOCATED, _STORED = 0x00280010, 0x00280011, 0x00280100, 0x00280101
_REPRESENTATION = 0x00280103
_OFFSETS, _OFFSET_LENGTHS, _TOTAL_LENGTH = 0x7FE00001, 0x7FE00002, 0x7FE00003
_PIXELS = 0x7FE00010
_NUMBERS = {
    _SAMPLES: "Samples per Pixel",
    _ROWS: "Rows",
    _COLUMNS: "Columns",
    _ALLOCATED: "Bits Allocated",
    _STORED: "Bits Stored",
    _REPRESENTATION: "Pixel Representation",
}
_WANTED = {*_NUMBERS, _INTERPRETATION, _FRAMES, _OFFSETS, _OFFSET_LENGTHS}
_OF_COMPRESSED = {_OFFSETS, _OFFSET_LENGTHS, _TOTAL_LENGTH}
_SWAPPED = {
    **dict.fromkeys((b"US", b"SS", b"AT", b"OW"), "H"),
    **dict.fromkeys((b"UL", b"SL", b"FL", b"OF", b"OL"), "I"),
    **dict.fromkeys((b"FD", b"OD", b"SV", b"UV", b"OV"), "Q"),
}
"""Value representations that hang on the byte order, and the numbers that they consist of (PS3.5 7.3)."""


class CannotTranscode(ClaraResultsError):
    """An instance that can't be written in the transfer syntax asked for; the message says why."""

    code = "not-transcodable"


def alternatives(transfer_syntax_uid: str) -> Sequence[str]:
    """Return what an instance can be transcoded into without loss, the best first; never a compressed one.

    Args:
        transfer_syntax_uid: How it is encoded. Where no decoder is known, as for video, there is no alternative.
    """
    if transfer_syntax_uid == EXPLICIT_SYNTAX:
        return (IMPLICIT_SYNTAX,)
    if transfer_syntax_uid == IMPLICIT_SYNTAX:
        return (EXPLICIT_SYNTAX,)
    if transfer_syntax_uid in {_DEFLATED_SYNTAX, BIG_ENDIAN_SYNTAX} | DECODABLE:
        return (EXPLICIT_SYNTAX, IMPLICIT_SYNTAX)
    return ()


def transcode(
    source: BinaryIO,
    header: Header,
    target_syntax_uid: str,
    out: Path,
    decoders: FrameDecoders,
    checkpoint: Callable[[], None] = lambda: None,
) -> Header:
    """Write an instance in another transfer syntax. The instance, and its UID, stay the same (PS3.3 C.12.4.1).

    Args:
        source: Its file.
        header: What ``read_header`` found there.
        target_syntax_uid: One of its ``alternatives``.
        out: The file to make, not there yet; it is gone again if anything fails.
        decoders: Where compressed frames are decoded.
        checkpoint: Called before each compressed frame; what it raises ends the work.

    Returns:
        The new file's header.

    Raises:
        CannotTranscode: Its pixel data can't be decoded, or would be too large.
        DicomUnreadable: The file breaks the rules of its encoding.
        OSError: A file can't be read or written.
    """
    syntax = header.transfer_syntax_uid
    if target_syntax_uid not in alternatives(syntax):
        raise CannotTranscode(
            f"there is no way without loss from transfer syntax {syntax} to {target_syntax_uid}"
        )
    if syntax == _DEFLATED_SYNTAX and target_syntax_uid == IMPLICIT_SYNTAX:
        return _inflated_first(source, header, out, decoders)
    made = replace(header, transfer_syntax_uid=target_syntax_uid)
    with out.open("xb") as opened:
        try:
            opened.write(_file_meta(made))
            made = replace(made, data_offset=opened.tell())
            if syntax == _DEFLATED_SYNTAX:
                size = os.fstat(source.fileno()).st_size
                opened.writelines(inflate(_reader(source), header.data_offset, size))
            else:
                with decoders.one() if syntax in DECODABLE else nullcontext() as decoder:
                    explicit = target_syntax_uid == EXPLICIT_SYNTAX
                    _Copy(source, header, opened, explicit, decoder, checkpoint).run()
        except BaseException:
            out.unlink()
            raise
    return made


def _inflated_first(source: BinaryIO, header: Header, out: Path, decoders: FrameDecoders) -> Header:
    inflated = out.with_name(out.name + ".inflated")
    explicit = transcode(source, header, EXPLICIT_SYNTAX, inflated, decoders)
    try:
        with inflated.open("rb") as opened:
            return transcode(opened, explicit, IMPLICIT_SYNTAX, out, decoders)
    finally:
        inflated.unlink()


def _reader(source: BinaryIO) -> ReadAt:
    number = source.fileno()
    return lambda count, offset: os.pread(number, count, offset)


def _file_meta(header: Header) -> bytes:
    """Return preamble, mark and file meta information (PS3.10 7.1) of a file that is written here."""
    elements = struct.pack("<HH2sHI2s", 2, 1, b"OB", 0, 2, b"\0\1") + b"".join(
        struct.pack("<HH2sH", 2, element, vr, len(value)) + value
        for element, vr, value in (
            (0x0002, b"UI", _even(header.media_sop_class_uid, "\0")),
            (0x0003, b"UI", _even(header.media_sop_instance_uid, "\0")),
            (0x0010, b"UI", _even(header.transfer_syntax_uid, "\0")),
            (0x0012, b"UI", _even(IMPLEMENTATION_CLASS_UID, "\0")),
            (0x0013, b"SH", _even(IMPLEMENTATION_VERSION_NAME, " ")),
        )
    )
    return bytes(128) + b"DICM" + struct.pack("<HH2sHI", 2, 0, b"UL", 4, len(elements)) + elements


def _even(text: str, padding: str) -> bytes:
    return (text + padding * (len(text) % 2)).encode("ascii")


class _View(io.RawIOBase):
    """A file with a position of its own, as many read it at once. Forward, and to where a number says."""

    def __init__(self, read: ReadAt, position: int) -> None:
        self._read = read
        self._position = position

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if whence == os.SEEK_END:
            raise io.UnsupportedOperation("seek from the end")
        self._position = offset + (self._position if whence == os.SEEK_CUR else 0)
        return self._position

    def readinto(self, buffer: Any) -> int:
        data = self._read(len(buffer), self._position)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


@dataclass(frozen=True, slots=True)
class _Native:
    """Native pixel data: value representation, bytes without padding, frames."""

    vr: bytes
    size: int
    frames: Iterable[bytes]


@dataclass(slots=True)
class _DataSet:
    """What is known of a data set, the whole one or an item, before it is copied.

    Attributes:
        parent: What it is nested in.
        values: The elements of _WANTED that it has.
        pixels_at: Where its compressed pixel data begin, if it has any.
        changes: Elements to write in the place of what it has there, by tag; VR and value.
        native: What its compressed pixel data become.
    """

    parent: "_DataSet | None"
    values: dict[int, Element] = field(default_factory=dict)
    pixels_at: int | None = None
    changes: deque[tuple[int, bytes, bytes]] = field(default_factory=deque)
    native: "_Native | None" = None


class _Copy:
    """The copying of one data set."""

    def __init__(
        self,
        source: BinaryIO,
        header: Header,
        out: BinaryIO,
        explicit: bool,
        decoder: FrameDecoder | None,
        checkpoint: Callable[[], None],
    ) -> None:
        self._read = _reader(source)
        self._size = os.fstat(source.fileno()).st_size
        self._start = header.data_offset
        self._syntax = header.transfer_syntax_uid
        self._encoding = encoding_of(self._syntax)
        self._out = out
        self._explicit = explicit
        self._decoder = decoder
        self._checkpoint = checkpoint
        self._known: dict[int, _DataSet] = {}

    def run(self) -> None:
        """Copy it."""
        self._survey()
        here = self._begin(self._start, None)
        for part, element in self._parts():
            if part is Part.VALUE:
                self._value(here, element)
            elif part is Part.FRAGMENTS:
                self._pixels(here)
            elif part is Part.SEQUENCE:
                self._flush(here, element.tag)
                self._head(element.tag, b"SQ", UNDEFINED)
            elif part is Part.ITEM:
                self._mark(ITEM, UNDEFINED)
                here = self._begin(element.at, here)
            elif part is Part.SEQUENCE_ENDS:
                self._mark(SEQUENCE_END, 0)
            elif here.parent is not None:
                self._flush(here, UNDEFINED)
                self._mark(ITEM_END, 0)
                here = here.parent
        self._flush(here, UNDEFINED)

    def _parts(self) -> Iterator[tuple[Part, Element]]:
        return walk(Window(self._read, self._size), self._start, self._encoding)

    def _survey(self) -> None:
        """Find what the copying has to know beforehand; of items, it is kept only where there is something."""
        here = self._known[self._start] = _DataSet(None)
        for part, element in self._parts():
            if part is Part.ITEM:
                here = _DataSet(here)
            elif part is Part.ITEM_ENDS and here.parent is not None:
                if here.values or here.pixels_at is not None:
                    self._known[element.at] = here
                here = here.parent
            elif part is Part.VALUE and element.tag in _WANTED:
                here.values[element.tag] = element
            elif part is Part.FRAGMENTS:
                if element.tag != _PIXELS or self._decoder is None:
                    raise CannotTranscode(f"{element} is compressed, which it can't be there")
                here.pixels_at = element.at

    def _begin(self, at: int, parent: _DataSet | None) -> _DataSet:
        here = self._known.get(at) or _DataSet(parent)
        if here.pixels_at is not None:
            self._decode(here, here.pixels_at)
        return here

    # Values

    def _value(self, here: _DataSet, element: Element) -> None:
        if element.tag & 0xFFFF == 0:
            return  # a group length
        if here.pixels_at is not None and element.tag in _OF_COMPRESSED:
            return
        if self._flush(here, element.tag):
            return
        vr = element.vr or self._vr(here, element)
        if self._explicit and not IS_LONG[vr] and element.length > 0xFFFF:
            vr = b"UN"  # PS3.5 6.2.2
        self._head(element.tag, vr, element.length)
        swapped = _SWAPPED.get(vr) if self._encoding is BIG_ENDIAN else None
        position, end = element.at, element.at + element.length
        while position < end:
            data = self._read(min(CHUNK, end - position), position)
            if not data:
                raise Window(self._read, position).cut_off(position)
            position += len(data)
            self._out.write(_swap(data, swapped, element) if swapped else data)

    def _flush(self, here: _DataSet, tag: int) -> bool:
        """Write the changes that come before a tag, or in its place; tell whether there was one in its place."""
        in_place = False
        while here.changes and here.changes[0][0] <= tag:
            changed, vr, value = here.changes.popleft()
            in_place = changed == tag
            self._head(changed, vr, len(value))
            self._out.write(value)
        return in_place

    def _head(self, tag: int, vr: bytes, length: int) -> None:
        group, element = tag >> 16, tag & 0xFFFF
        if not self._explicit:
            head = struct.pack("<HHI", group, element, length)
        elif IS_LONG[vr]:
            head = struct.pack("<HH2sHI", group, element, vr, 0, length)
        else:
            head = struct.pack("<HH2sH", group, element, vr, length)
        self._out.write(head)

    def _mark(self, tag: int, length: int) -> None:
        self._out.write(struct.pack("<HHI", tag >> 16, tag & 0xFFFF, length))

    def _vr(self, here: _DataSet, element: Element) -> bytes:
        """Return the value representation of an element that was encoded without (PS3.6; PS3.5 A.1, A.2)."""
        choice = dictionary_vr(element.tag)
        if b" " not in choice:
            return choice
        if element.tag == _PIXELS:
            return b"OB" if (self._number(here, _ALLOCATED) or 16) <= 8 else b"OW"
        if b"OW" in choice and not (b"US" in choice and element.length == 2):
            return b"OW"  # a table of one entry is a number
        signed = b"SS" in choice and self._number(here, _REPRESENTATION)
        return b"SS" if signed else b"US"

    def _number(self, here: _DataSet | None, tag: int) -> int | None:
        """Return a number (US) of a data set, or of the nearest around it that has one."""
        while here is not None and tag not in here.values:
            here = here.parent
        if here is None or here.values[tag].length != 2:
            return None
        order = ">H" if self._encoding is BIG_ENDIAN else "<H"
        return int(struct.unpack(order, self._read(2, here.values[tag].at))[0])

    def _text(self, here: _DataSet, tag: int) -> str:
        element = here.values.get(tag)
        if element is None:
            return ""
        return self._read(element.length, element.at).decode("ascii", "replace").strip(" \0")

    # Pixel data

    def _decode(self, here: _DataSet, at: int) -> None:
        """Prepare pixel data's native frames; the first is decoded at once, as what is written before hangs on it."""
        described = self._described(here)
        count = self._count(here)
        size = described.native_size * count
        if size > LENGTH_LIMIT:
            raise CannotTranscode(
                f"native, its pixel data would have {size} bytes; no more than {LENGTH_LIMIT} can be "
                "(PS3.5 7.1.1)"
            )
        frames = self._native(self._encoded(here, at, count), described, count)
        first, interpretation = next(frames)
        here.changes.append((_INTERPRETATION, b"CS", _even(interpretation, " ")))
        if described.samples_per_pixel > 1:
            here.changes.append((_PLANAR, b"US", b"\0\0"))
        here.native = _Native(
            b"OB" if described.bits_allocated <= 8 else b"OW",
            size,
            chain([first], _of_one_kind(frames, interpretation)),
        )

    def _pixels(self, here: _DataSet) -> None:
        self._flush(here, _PIXELS)
        native = here.native
        if native is None:
            raise AssertionError("what is compressed was not found when the data set was gone over")
        self._head(_PIXELS, native.vr, native.size + native.size % 2)
        self._out.writelines(native.frames)
        self._out.write(b"\0" * (native.size % 2))

    def _described(self, here: _DataSet) -> FrameDescription:
        numbers = {}
        for tag, name in _NUMBERS.items():
            number = self._number(here, tag) if tag in here.values else None
            if number is None:
                raise CannotTranscode(f"its pixel data is compressed, but {name} is missing")
            numbers[tag] = number
        if numbers[_ALLOCATED] % 8:
            raise CannotTranscode(
                f"its samples have {numbers[_ALLOCATED]} bits (Bits Allocated); only whole bytes are decoded here"
            )
        return FrameDescription(
            transfer_syntax_uid=self._syntax,
            rows=numbers[_ROWS],
            columns=numbers[_COLUMNS],
            samples_per_pixel=numbers[_SAMPLES],
            photometric_interpretation=self._text(here, _INTERPRETATION),
            bits_allocated=numbers[_ALLOCATED],
            bits_stored=numbers[_STORED],
            pixel_representation=numbers[_REPRESENTATION],
        )

    def _count(self, here: _DataSet) -> int:
        text = self._text(here, _FRAMES)
        try:
            count = int(text or 1)
        except ValueError:
            count = 0
        if count < 1:
            raise CannotTranscode("Number of Frames (0028,0008) is no number of frames")
        return count

    def _encoded(self, here: _DataSet, at: int, count: int) -> Iterator[bytes]:
        """Yield compressed frames, found by offset table, by count, or by where codestreams end (PS3.5 A.4)."""
        tables = None
        if _OFFSETS in here.values and _OFFSET_LENGTHS in here.values:
            first, second = here.values[_OFFSETS], here.values[_OFFSET_LENGTHS]
            tables = self._read(first.length, first.at), self._read(second.length, second.at)
        view = io.BufferedReader(_View(self._read, at), CHUNK)
        try:
            yield from generate_frames(view, number_of_frames=count, extended_offsets=tables)
        except (ValueError, struct.error, EOFError) as cause:
            raise CannotTranscode(f"its frames can't be told apart: {cause}") from cause

    def _native(
        self, encoded: Iterator[bytes], described: FrameDescription, count: int
    ) -> Iterator[tuple[bytes, str]]:
        """Yield native frames, each with its photometric interpretation: as many as there must be."""
        if self._decoder is None:
            raise CannotTranscode(
                "its pixel data is compressed, which its transfer syntax does not allow"
            )
        number = 0
        for number, frame in enumerate(encoded, 1):
            self._checkpoint()
            if number > count:
                break
            try:
                yield self._decoder.decode(described, frame)
            except FrameUndecodable as cause:
                raise CannotTranscode(f"frame {number} can't be decoded: {cause}") from cause
        if number != count:
            more = "more" if number > count else f"only {number}"
            raise CannotTranscode(f"Number of Frames (0028,0008) is {count}, but there are {more}")


def _of_one_kind(frames: Iterator[tuple[bytes, str]], interpretation: str) -> Iterator[bytes]:
    for native, its in frames:
        if its != interpretation:
            raise CannotTranscode(f"some of its frames are {interpretation}, some {its}")
        yield native


def _swap(data: bytes, kind: str, element: Element) -> bytes:
    try:
        numbers = array.array(kind, data)
    except ValueError:
        raise CannotTranscode(
            f"{element} has {element.length} bytes, no whole number of values"
        ) from None
    numbers.byteswap()
    return numbers.tobytes()
