"""Reads what must be known of a DICOM Part 10 file before it is sent, and finds out whether it is whole.

The file is read through a window, so that its size costs no memory, and values are skipped, not decoded: a sender of
small instances has a tenth of a millisecond for all that it checks. pydicom is the tests' second opinion.
"""

import re
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum, auto

from clara_results.errors import ClaraResultsError

ReadAt = Callable[[int, int], bytes]
"""Reads a file: ``read(count, offset)``, as ``os.pread`` does; fewer bytes only at its end."""

IMPLEMENTATION_CLASS_UID = "2.25.186121744103154591266682160995305927684"
"""Names us, in the files that are written here and in associations (PS3.7 D.3.3.2); the version's name goes with it."""
IMPLEMENTATION_VERSION_NAME = "CLARA_RESULTS"

MEDIA_STORAGE_DIRECTORY = "1.2.840.10008.1.3.10"

BIG_ENDIAN_SYNTAX = "1.2.840.10008.1.2.2"
IMPLICIT_SYNTAXES = frozenset(
    {
        "1.2.840.10008.1.2",
        "1.2.840.113619.5.2",  # GE's private one: big endian in its pixels only
    }
)
DEFLATED_SYNTAXES = frozenset(
    {
        "1.2.840.10008.1.2.1.99",  # Deflated Explicit VR Little Endian
        "1.2.840.10008.1.2.4.95",  # JPIP Referenced Deflate
        "1.2.840.10008.1.2.4.205",  # JPIP HTJ2K Referenced Deflate
    }
)

WINDOW = 1 << 16
"""Bytes of a file that are held at a time."""
INFLATED_LIMIT = 1 << 33
"""Bytes that a deflated data set may come to; one that is larger is taken for an attack."""
VALUE_LIMIT = 1024
"""Bytes of a value that is read here; the standard allows 64 characters."""

_META_AT = 132
_FIRST_GROUP, _LAST_GROUP = 0x0008, 0xFFFC
"""The groups that a data set's own elements can have (PS3.5 7.1, PS3.10 7.1)."""
_HEAD_LIMIT = 12
UNDEFINED = 0xFFFFFFFF
ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD

_LONG_VRS = b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split()
_SHORT_VRS = b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split()
IS_LONG = {vr: vr in _LONG_VRS for vr in _LONG_VRS + _SHORT_VRS}
"""Whether a value representation's length has 32 bits, after two reserved bytes, or 16 (PS3.5 7.1.2)."""

_GROUP_LENGTH, _MEDIA_CLASS, _MEDIA_INSTANCE = 0x00020000, 0x00020002, 0x00020003
_TRANSFER_SYNTAX = 0x00020010
_META_WANTED = frozenset({_GROUP_LENGTH, _MEDIA_CLASS, _MEDIA_INSTANCE, _TRANSFER_SYNTAX})
_CHARACTER_SET, _SOP_CLASS, _SOP_INSTANCE = 0x00080005, 0x00080016, 0x00080018
_ACCESSION = 0x00080050
_PATIENT, _ISSUER = 0x00100020, 0x00100021
_STUDY, _SERIES = 0x0020000D, 0x0020000E
_SERIES_NUMBER, _INSTANCE_NUMBER = 0x00200011, 0x00200013
_WANTED = frozenset(
    {_CHARACTER_SET, _SOP_CLASS, _SOP_INSTANCE, _ACCESSION, _PATIENT, _ISSUER, _STUDY, _SERIES}
    | {_SERIES_NUMBER, _INSTANCE_NUMBER}
)

_UID = re.compile(rb"[0-9.]{1,64}")


class NotForReceivers(ClaraResultsError):
    """A file that is none of a DICOM receiver's business: not DICOM at all, or a directory of files."""

    code = "not-dicom"


class DicomUnreadable(ClaraResultsError):
    """A file that says it is DICOM, but is cut off or breaks the rules of its encoding; the message says where."""

    code = "unreadable-dicom"


@dataclass(frozen=True, slots=True)
class Header:
    """What is known of an instance without decoding it.

    Attributes:
        media_sop_class_uid: SOP Class UID in the file meta information (PS3.10 7.1).
        media_sop_instance_uid: SOP Instance UID in the file meta information.
        transfer_syntax_uid: How the data set is encoded.
        data_offset: Where in the file the data set begins, in bytes.
        sop_class_uid: As the data set says; empty if it does not say so; likewise the UIDs that follow.
        character_set: Specific Character Set, as encoded: how the values that follow are.
        accession_number: Accession Number, as encoded; empty if there is none. Patient data, like what follows.
        patient: Patient ID and Issuer of Patient ID, as encoded. To be compared, never to be shown.
        series_number: None where there is none, or none that is a number; likewise the instance's.
    """

    media_sop_class_uid: str
    media_sop_instance_uid: str
    transfer_syntax_uid: str
    data_offset: int
    sop_class_uid: str
    sop_instance_uid: str
    study_instance_uid: str
    series_instance_uid: str
    character_set: bytes
    accession_number: bytes = field(repr=False)
    patient: tuple[bytes, bytes] = field(repr=False)
    series_number: int | None
    instance_number: int | None


def read_header(read: ReadAt, size: int, name: str) -> Header:
    """Read a file's header, and walk over its data set to the end to see that it is whole.

    Args:
        read: Reads the file.
        size: Its size in bytes.
        name: Its name; one that ends in ``.dcm`` claims to be DICOM.

    Raises:
        NotForReceivers: It is not DICOM, and does not claim to be; or it is a DICOMDIR (``dicomdir``).
        DicomUnreadable: It has the mark of DICOM, or the name, but can't be read as it.
    """
    if read(4, _META_AT - 4) != b"DICM":
        if name.lower().endswith(".dcm"):
            raise DicomUnreadable(
                "the name ends in .dcm, but at byte 128 there is no DICM mark (PS3.10 7.1): "
                "it is not a DICOM file"
            )
        raise NotForReceivers("not a DICOM file: there is no DICM mark at byte 128")
    meta, start = _read_meta(Window(read, size))
    media_class = _meta_uid(meta, _MEDIA_CLASS, "Media Storage SOP Class UID")
    if media_class == MEDIA_STORAGE_DIRECTORY:
        raise NotForReceivers(
            "a DICOMDIR: it lists the files of a medium, and is not sent", code="dicomdir"
        )
    media_instance = _meta_uid(meta, _MEDIA_INSTANCE, "Media Storage SOP Instance UID")
    syntax = _meta_uid(meta, _TRANSFER_SYNTAX, "Transfer Syntax UID")
    found = _walk_data_set(read, start, size, syntax)
    return Header(
        media_sop_class_uid=media_class,
        media_sop_instance_uid=media_instance,
        transfer_syntax_uid=syntax,
        data_offset=start,
        sop_class_uid=_text(found, _SOP_CLASS),
        sop_instance_uid=_text(found, _SOP_INSTANCE),
        study_instance_uid=_text(found, _STUDY),
        series_instance_uid=_text(found, _SERIES),
        character_set=_stripped(found, _CHARACTER_SET),
        accession_number=_stripped(found, _ACCESSION),
        patient=(_stripped(found, _PATIENT), _stripped(found, _ISSUER)),
        series_number=_number(found, _SERIES_NUMBER),
        instance_number=_number(found, _INSTANCE_NUMBER),
    )


def _stripped(found: dict[int, bytes], tag: int) -> bytes:
    return found.get(tag, b"").strip(b" \0")


def _text(found: dict[int, bytes], tag: int) -> str:
    return _stripped(found, tag).decode("ascii", "replace")


def _number(found: dict[int, bytes], tag: int) -> int | None:
    try:
        return int(_stripped(found, tag))
    except ValueError:
        return None


def _meta_uid(meta: dict[int, bytes], tag: int, name: str) -> str:
    value = _stripped(meta, tag)
    if not _UID.fullmatch(value):
        state = "holds no UID" if tag in meta else "is missing"
        raise DicomUnreadable(f"the file meta information's {name} {_shown(tag)} {state}")
    return value.decode("ascii")


def _shown(tag: int) -> str:
    return f"({tag >> 16:04X},{tag & 0xFFFF:04X})"


class Encoding:
    """How data elements are encoded (PS3.5 7.1): with a value representation or without, in which byte order."""

    def __init__(self, *, explicit: bool, order: str) -> None:
        self.explicit = explicit
        self.unpack_head = struct.Struct(order + "HH2sH").unpack_from
        self.unpack_item = struct.Struct(order + "HHI").unpack_from
        self.unpack_length = struct.Struct(order + "I").unpack_from


EXPLICIT = Encoding(explicit=True, order="<")
IMPLICIT = Encoding(explicit=False, order="<")
BIG_ENDIAN = Encoding(explicit=True, order=">")


def encoding_of(syntax: str) -> Encoding:
    """Return how data elements are encoded in a transfer syntax; a deflated one's, once it is inflated."""
    if syntax == BIG_ENDIAN_SYNTAX:
        return BIG_ENDIAN
    return IMPLICIT if syntax in IMPLICIT_SYNTAXES else EXPLICIT


class Window:
    """A piece of a file that moves along with the one who reads.

    Attributes:
        size: Of the whole, in bytes.
        data: The piece.
        base: Where it begins.
        room: The last place in it that is sure to hold the whole head of a data element.
    """

    def __init__(self, read: ReadAt, size: int, position: int = 0, of: str = "the file") -> None:
        self._read = read
        self._of = of
        self.size = size
        self.move(position)

    def move(self, position: int) -> None:
        """Move so that it begins at a place."""
        self.data = self._read(WINDOW, position)
        self.base = position
        self.room = len(self.data) - _HEAD_LIMIT

    def peek(self, position: int, length: int) -> bytes:
        """Return the bytes at a place that is in the window, or follows what is."""
        at = position - self.base
        if at + length > len(self.data):
            return self._read(length, position)
        return self.data[at : at + length]

    def value(self, position: int, length: int, tag: int) -> bytes:
        """Return the value of a data element that is to be read."""
        if length > VALUE_LIMIT:
            raise DicomUnreadable(
                f"{_shown(tag)} at byte {position} of {self._of} claims a value of {length} bytes; "
                f"more than {VALUE_LIMIT} can't be right"
            )
        return self.peek(position, length)

    def head(self, encoding: Encoding, position: int) -> tuple[int, bytes, int, int]:
        """Return a data element's tag, value representation, length, and where its value begins.

        An item or a delimiter (PS3.5 7.5) has no value representation.
        """
        if not 0 <= position - self.base <= self.room:
            self.move(position)
        at = position - self.base
        try:
            group, element, vr, length = encoding.unpack_head(self.data, at)
            tag = group << 16 | element
            if not encoding.explicit or group == 0xFFFE:
                length = encoding.unpack_item(self.data, at)[2]
                return tag, b"", length, position + 8
            if not IS_LONG[vr]:
                return tag, vr, length, position + 8
            return tag, vr, encoding.unpack_length(self.data, at + 8)[0], position + 12
        except struct.error:
            raise self.cut_off(position) from None
        except KeyError as unknown:
            raise self.no_vr(position, unknown) from None

    def cut_off(self, position: int) -> DicomUnreadable:
        """Return the error of an element, begun at ``position``, that what is read ends within."""
        return DicomUnreadable(
            f"{self._of} is cut off: it ends at byte {self.size}, within the data element "
            f"that begins at byte {position}"
        )

    def no_vr(self, position: int, unknown: KeyError) -> DicomUnreadable:
        """Return the error of an element whose value representation is none."""
        return DicomUnreadable(
            f"the data element at byte {position} of {self._of} has no value representation "
            f"that there is (PS3.5 6.2), but {unknown.args[0]!r}"
        )

    def broken(self, position: int, why: str) -> DicomUnreadable:
        """Return the error of a rule broken at ``position``."""
        return DicomUnreadable(f"at byte {position} of {self._of}: {why}")


def _read_meta(window: Window) -> tuple[dict[int, bytes], int]:
    """Return the file meta information's elements, and where the data set begins.

    A file without (0002,0000) is against PS3.10 7.1, but there are such, and where group 0002 ends is plain to see.
    """
    position, end = _META_AT, None
    meta: dict[int, bytes] = {}
    window.move(position)
    while position < (window.size if end is None else end):
        if end is None and window.peek(position, 2) != b"\2\0":
            break
        tag, _, length, value_at = window.head(EXPLICIT, position)
        if tag >> 16 != 2:
            raise window.broken(
                position, f"{_shown(tag)} within group 0002, whose length (0002,0000) is wrong"
            )
        if tag in _META_WANTED:
            meta[tag] = window.value(value_at, length, tag)
        if value_at + length > window.size:
            raise window.cut_off(position)
        position = value_at + length
        if tag == _GROUP_LENGTH:
            end = position + int.from_bytes(meta[tag], "little")
    if end is not None and end != position:
        raise window.broken(position, "group 0002 ends here, but not by its length (0002,0000)")
    return meta, position


def _walk_data_set(read: ReadAt, start: int, size: int, syntax: str) -> dict[int, bytes]:
    if syntax in DEFLATED_SYNTAXES:
        inflated_size = 0
        for piece in inflate(read, start, size):
            inflated_size += len(piece)
            if inflated_size > INFLATED_LIMIT:
                raise DicomUnreadable(f"the data set inflates to more than {INFLATED_LIMIT} bytes")
        inflated = _Inflated(inflate(read, start, size))
        return _walk(Window(inflated.read, inflated_size, of="the inflated data set"), EXPLICIT)
    return _walk(Window(read, size, start), encoding_of(syntax))


def _walk(window: Window, encoding: Encoding) -> dict[int, bytes]:
    """Go over a data set's elements to the end and return the values that are wanted, by tag.

    This is the one loop here whose speed matters; hence local names, and the head decoded in place.
    """
    size, position = window.size, window.base
    data, base, room = window.data, window.base, window.room
    explicit, unpack_length = encoding.explicit, encoding.unpack_length
    unpack_head, unpack_item = encoding.unpack_head, encoding.unpack_item
    found: dict[int, bytes] = {}
    vr = b""
    try:
        while position < size:
            at = position - base
            if at > room:
                window.move(position)
                data, base, room, at = window.data, window.base, window.room, 0
            if explicit:
                group, element, vr, length = unpack_head(data, at)
                value_at = position + 8
                if IS_LONG[vr]:
                    length = unpack_length(data, at + 8)[0]
                    value_at += 4
            else:
                group, element, length = unpack_item(data, at)
                value_at = position + 8
            if length == UNDEFINED or not _FIRST_GROUP <= group <= _LAST_GROUP:
                position = _skip_unusual(window, encoding, position)
                data, base, room = window.data, window.base, window.room
                continue
            if group <= 0x0020 and (tag := group << 16 | element) in _WANTED:
                found[tag] = window.value(value_at, length, tag)
            end = value_at + length
            if end > size:
                raise window.cut_off(position)
            position = end
    except struct.error:
        raise window.cut_off(position) from None
    except KeyError as unknown:
        raise window.no_vr(position, unknown) from None
    return found


class _In(Enum):
    """What surrounds the place that a walk has come to."""

    SEQUENCE = auto()
    ITEM = auto()
    FRAGMENTS = auto()


_ENDS = {_In.SEQUENCE: SEQUENCE_END, _In.ITEM: ITEM_END, _In.FRAGMENTS: SEQUENCE_END}


def _skip_unusual(window: Window, encoding: Encoding, position: int) -> int:
    """Return where an element of undefined length, which begins at ``position``, ends (PS3.5 7.5, A.4)."""
    tag, vr, _, value_at = window.head(encoding, position)
    if not _FIRST_GROUP <= tag >> 16 <= _LAST_GROUP:
        raise window.broken(position, f"{_shown(tag)}, which a data set can't have there")
    inside = [_undefined(window, encoding, position, vr)]
    position = value_at
    while inside:
        where, encoding = inside[-1]
        tag, vr, length, value_at = window.head(encoding, position)
        if tag == _ENDS[where]:
            inside.pop()
            position = value_at
            continue
        if (tag == ITEM) is (where is _In.ITEM) or (tag >> 16 == 0xFFFE and tag != ITEM):
            raise window.broken(position, f"{_shown(tag)} where none can be")
        if length != UNDEFINED:
            position = value_at + length
            continue
        if where is _In.SEQUENCE:
            inside.append((_In.ITEM, encoding))
        elif where is _In.ITEM:
            inside.append(_undefined(window, encoding, position, vr))
        else:
            raise window.broken(position, "a fragment of pixel data without a length")
        position = value_at
    return position


def _undefined(
    window: Window, encoding: Encoding, position: int, vr: bytes
) -> tuple[_In, Encoding]:
    """Return what an element of undefined length holds, by its value representation."""
    if vr in {b"SQ", b""}:
        return _In.SEQUENCE, encoding
    if vr == b"UN":  # a sequence in implicit little endian, whatever is around it (PS3.5 6.2.2)
        return _In.SEQUENCE, IMPLICIT
    if vr in {b"OB", b"OW"}:
        return _In.FRAGMENTS, encoding
    raise window.broken(position, f"a {vr.decode()} element without a length")


def inflate(read: ReadAt, start: int, size: int) -> Iterator[bytes]:
    """Yield a deflated data set (PS3.5 A.5) piece by piece; padding or a checksum after its end is passed over."""
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    position, waiting = start, b""
    while not stream.eof:
        if not waiting:
            waiting = read(WINDOW, position)
            position += len(waiting)
        try:
            piece = stream.decompress(waiting, WINDOW)
        except zlib.error as cause:
            raise DicomUnreadable(
                f"the deflated data set is damaged before byte {position}"
            ) from cause
        if not (waiting or piece):
            raise DicomUnreadable(f"the deflated data set is cut off at byte {size}")
        waiting = stream.unconsumed_tail
        yield piece


class _Inflated:
    """Reads what is inflated as if it were a file, forward only."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._data = b""
        self._base = 0

    def read(self, count: int, offset: int) -> bytes:
        while self._base + len(self._data) < offset + count:
            piece = next(self._pieces, None)
            if piece is None:
                break
            kept = self._data[max(0, offset - self._base) :]
            self._base += len(self._data) - len(kept)
            self._data = kept + piece
        at = offset - self._base
        return self._data[at : at + count]
