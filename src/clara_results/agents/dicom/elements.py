"""Walks over the data elements of a data set, sequences and their items with them, without decoding a value."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto
from functools import lru_cache

from pydicom.datadict import dictionary_VR

from clara_results.agents.dicom.part10 import (
    IMPLICIT,
    ITEM,
    ITEM_END,
    SEQUENCE_END,
    UNDEFINED,
    Encoding,
    Window,
)


class Part(Enum):
    """What a data set consists of."""

    VALUE = auto()
    FRAGMENTS = auto()
    """An element with compressed pixel data (PS3.5 A.4)."""
    SEQUENCE = auto()
    SEQUENCE_ENDS = auto()
    ITEM = auto()
    ITEM_ENDS = auto()


@dataclass(frozen=True, slots=True)
class Element:
    """A data element, or an item.

    Attributes:
        tag: Its tag.
        vr: Its value representation as encoded; empty in implicit VR, and of an item.
        length: Of its value in bytes, or UNDEFINED.
        at: Where its value begins.
    """

    tag: int
    vr: bytes
    length: int
    at: int

    def __str__(self) -> str:
        return f"({self.tag >> 16:04X},{self.tag & 0xFFFF:04X})"


@dataclass(frozen=True, slots=True)
class _Inside:
    """A sequence or a data set that a walk is in; ``end`` is None where a delimiter ends it."""

    is_sequence: bool
    end: int | None
    encoding: Encoding


def walk(window: Window, start: int, encoding: Encoding) -> Iterator[tuple[Part, Element]]:
    """Yield the parts of the data set that begins at ``start`` and ends where the window's file does.

    With an end comes the item or sequence that ends.

    Raises:
        DicomUnreadable: It is cut off, or breaks the rules of its encoding.
    """
    position = start
    inside = [(_Inside(False, window.size, encoding), Element(0, b"", 0, start))]
    while True:
        here, opened = inside[-1]
        if position == here.end:
            inside.pop()
            if not inside:
                return
            yield (Part.SEQUENCE_ENDS if here.is_sequence else Part.ITEM_ENDS), opened
            continue
        element = Element(*window.head(here.encoding, position))
        if here.end is None and element.tag == (SEQUENCE_END if here.is_sequence else ITEM_END):
            inside.pop()
            yield (Part.SEQUENCE_ENDS if here.is_sequence else Part.ITEM_ENDS), opened
            position = element.at
            continue
        part = _part(window, here, element, position)
        end = None if element.length == UNDEFINED else element.at + element.length
        if end is not None and end > (window.size if here.end is None else here.end):
            raise window.cut_off(position)
        yield part, element
        position = element.at
        if part is Part.FRAGMENTS:
            for at, length in fragments(window, element.at):
                position = at + length
            position += 8  # a delimiter follows
        elif part is not Part.VALUE:
            # What is UN and has no length is a sequence in implicit little endian (PS3.5 6.2.2).
            within = IMPLICIT if element.vr == b"UN" else here.encoding
            inside.append((_Inside(part is Part.SEQUENCE, end, within), element))
        elif end is not None:
            position = end


def _part(window: Window, here: _Inside, element: Element, position: int) -> Part:
    if here.is_sequence:
        if element.tag != ITEM:
            raise window.broken(position, f"{element} where an item is due")
        return Part.ITEM
    if element.tag >> 16 == 0xFFFE:
        raise window.broken(position, f"{element} where a data element is due")
    if element.vr == b"SQ":
        return Part.SEQUENCE
    if element.length == UNDEFINED:
        if element.vr in {b"OB", b"OW"}:
            return Part.FRAGMENTS
        if element.vr in {b"", b"UN"}:
            return Part.SEQUENCE
        raise window.broken(position, f"a {element.vr.decode()} element without a length")
    if not element.vr and dictionary_vr(element.tag) == b"SQ":
        return Part.SEQUENCE
    return Part.VALUE


def fragments(window: Window, position: int) -> Iterator[tuple[int, int]]:
    """Yield where compressed pixel data's fragments are, and their lengths in bytes (PS3.5 A.4).

    The first is the basic offset table, which may be empty.

    Raises:
        DicomUnreadable: They are cut off, or something else is among them.
    """
    while True:
        tag, _, length, at = window.head(IMPLICIT, position)
        if tag == SEQUENCE_END:
            return
        if tag != ITEM or length == UNDEFINED or at + length > window.size:
            raise window.broken(position, "no fragment where one of compressed pixel data is due")
        yield at, length
        position = at + length


@lru_cache(maxsize=4096)
def dictionary_vr(tag: int) -> bytes:
    """Return the value representation that PS3.6 gives an element, such as ``US or SS`` where it gives several.

    UN for those that it does not know, and for private ones (PS3.5 6.2.2) but for their creators (PS3.5 7.8.1).
    """
    if tag >> 16 & 1:
        return b"LO" if 0x10 <= tag & 0xFFFF <= 0xFF else b"UN"
    try:
        return dictionary_VR(tag).encode("ascii")
    except KeyError:
        return b"UN"
