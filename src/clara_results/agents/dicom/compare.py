"""Whether a receiver holds what it was sent: attribute by attribute, bulk data by digest.

A receiver may change what says whose an image is, and what for: PS3.4 B.4.1.3 allows an SCP of C-STORE to coerce
attributes, and IHE Radiology's profile Patient Information Reconciliation has it do so when a patient or an order becomes
known or changes later (Patient Update, RAD-12; Procedure Update, RAD-13). Those attributes are left out of account:
COERCED. UIDs are not among them: to find an image under other UIDs is to find another image. All else must be as it was
sent. Private elements, and attributes that are empty, may be added.

Values are patient data: tags and keywords are all that is told of them.
"""

import hashlib
import os
import struct
import tempfile
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial as bound
from pathlib import Path
from typing import Any, BinaryIO

from pydicom import dcmread
from pydicom.datadict import keyword_for_tag
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.tag import BaseTag, Tag
from pydicom.valuerep import PersonName

from clara_results.agents.dicom.elements import Part, fragments, walk
from clara_results.agents.dicom.frames import FrameDecoders
from clara_results.agents.dicom.part10 import (
    DEFLATED_SYNTAXES,
    Header,
    Window,
    encoding_of,
    read_header,
)
from clara_results.agents.dicom.transcode import (
    CHUNK,
    EXPLICIT_SYNTAX,
    IMPLICIT_SYNTAX,
    transcode,
)

_PATIENT = [
    "PatientName",
    "PatientID",
    "IssuerOfPatientID",
    "IssuerOfPatientIDQualifiersSequence",
    "TypeOfPatientID",
    "OtherPatientIDs",
    "OtherPatientIDsSequence",
    "OtherPatientNames",
    "PatientBirthName",
    "PatientMotherBirthName",
    "PatientBirthDate",
    "PatientBirthTime",
    "PatientSex",
    "PatientAddress",
    "PatientTelephoneNumbers",
    "EthnicGroup",
    "PatientComments",
    "ReferencedPatientSequence",
    "PatientAge",
    "PatientSize",
    "PatientWeight",
    "Occupation",
    "AdditionalPatientHistory",
    "AdmissionID",
    "IssuerOfAdmissionIDSequence",
]
"""PS3.3 C.7.1.1 and C.7.2.2: Patient and Patient Study."""
_ORDER = [
    "AccessionNumber",
    "IssuerOfAccessionNumberSequence",
    "StudyID",
    "StudyDescription",
    "ReferringPhysicianName",
    "ReferringPhysicianIdentificationSequence",
    "ConsultingPhysicianName",
    "RequestingPhysician",
    "RequestingService",
    "ProcedureCodeSequence",
    "ReferencedStudySequence",
    "RequestedProcedureID",
    "RequestedProcedureDescription",
    "RequestedProcedureCodeSequence",
    "ReasonForPerformedProcedureCodeSequence",
    "RequestAttributesSequence",
    "ReferencedPerformedProcedureStepSequence",
]
"""PS3.3 C.7.2.1 and C.7.3.1: General Study, and what a series says of the order that it answers."""
_ARCHIVE = [
    "SpecificCharacterSet",
    "TimezoneOffsetFromUTC",
    "InstanceCoercionDateTime",
    "OriginalAttributesSequence",
    "ContributingEquipmentSequence",
    "InstanceAvailability",
    "RetrieveAETitle",
    "RetrieveURL",
    "RetrieveURI",
    "QueryRetrieveLevel",
    "StorageMediaFileSetID",
    "StorageMediaFileSetUID",
    "SOPInstanceStatus",
    "DataSetTrailingPadding",
]
"""PS3.3 C.12.1, PS3.4 C.4.1, PS3.18 10.6.3: what tells of a coercion, or of the archive."""
COERCED = frozenset(Tag(keyword) for keyword in _PATIENT + _ORDER + _ARCHIVE)
"""Attributes that are left out of account, wherever in a data set they are."""
SHOWN_LIMIT = 20
"""Attributes that are named as differing; more of them say no more."""

_PIXEL_VALUES = frozenset(map(Tag, (0x7FE00008, 0x7FE00009, 0x7FE00010)))
_PIXELS = _PIXEL_VALUES | {Tag(0x7FE00001), Tag(0x7FE00002), Tag(0x7FE00003)}


def compare(
    ours: Dataset,
    theirs: Dataset,
    *,
    partial: bool = False,
    unseen: Collection[int] = (),
) -> list[str]:
    """Return the attributes in which what a receiver holds differs from what it was sent, but for pixel data.

    Args:
        ours: What was sent.
        theirs: What it returned.
        partial: It returned only some attributes, such as those that a query asked for: the others are not compared.
        unseen: Tags of attributes that it did not return the values of (see ``from_json``).

    Returns:
        Keywords and tags, such as ``Rows (0028,0010)``; at most SHOWN_LIMIT.
    """
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's, of values that break rules: they quote them
        for name in _differences(ours, theirs, partial, {*unseen, *_PIXELS}):
            found.append(name)
            if len(found) == SHOWN_LIMIT:
                break
    return found


def from_json(instance: Mapping[str, Any]) -> tuple[Dataset, set[int]]:
    """Return an instance's DICOM JSON (PS3.18 F) as a data set, and the tags of what it has but elsewhere.

    Raises:
        ValueError: It is not DICOM JSON.
    """
    elsewhere: set[int] = set()

    def bulk(tag: str, vr: str, _uri: str) -> Any:
        elsewhere.add(int(tag, 16))
        return "" if vr in {"UC", "UR", "UT", "LT", "ST"} else b""

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return Dataset.from_json(dict(instance), bulk_data_uri_handler=bulk), elsewhere
    except (TypeError, KeyError, AttributeError, AssertionError) as cause:
        raise ValueError("not DICOM JSON") from cause


def compare_files(
    ours: BinaryIO, theirs: BinaryIO, decoders: FrameDecoders, scratch: Path
) -> list[str]:
    """Return the attributes in which two Part 10 files differ; as ``compare``, pixel data with it.

    Where their transfer syntaxes differ, compressed pixel data is compared decoded.

    Args:
        ours: What was sent.
        theirs: What the receiver returned.
        decoders: Where compressed frames are decoded.
        scratch: A folder for what is decoded.

    Raises:
        DicomUnreadable, NotForReceivers: One can't be read.
        CannotTranscode: They can't be compared, as one can't be decoded.
        OSError: A file can't be read or written.
    """
    mine, its = _header(ours), _header(theirs)
    syntaxes = {mine.transfer_syntax_uid, its.transfer_syntax_uid}
    with ExitStack() as opened:
        folder = Path(opened.enter_context(tempfile.TemporaryDirectory(dir=scratch)))
        if len(syntaxes) > 1 or syntaxes & DEFLATED_SYNTAXES:
            ours, mine = opened.enter_context(_plain(ours, mine, folder / "ours", decoders))
            theirs, its = opened.enter_context(_plain(theirs, its, folder / "theirs", decoders))
        found = compare(attributes(ours), attributes(theirs))
        if _pixels_digest(ours, mine) != _pixels_digest(theirs, its):
            found.append(_name(Tag(0x7FE00010)))
    return found[:SHOWN_LIMIT]


@contextmanager
def _plain(
    file: BinaryIO, header: Header, out: Path, decoders: FrameDecoders
) -> Iterator[tuple[BinaryIO, Header]]:
    """Give a file whose pixel data is native and little endian: itself, or one made of it."""
    if header.transfer_syntax_uid in {EXPLICIT_SYNTAX, IMPLICIT_SYNTAX}:
        yield file, header
        return
    made = transcode(file, header, EXPLICIT_SYNTAX, out, decoders)
    with out.open("rb") as opened:
        yield opened, made


def _header(file: BinaryIO) -> Header:
    size = os.fstat(file.fileno()).st_size
    return read_header(bound(os.pread, file.fileno()), size, "")


def attributes(file: BinaryIO) -> Dataset:
    """Return a Part 10 file's attributes up to its pixel data, without a word about values that break rules: it would quote them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        file.seek(0)
        return dcmread(file, stop_before_pixels=True)


def _pixels_digest(file: BinaryIO, header: Header) -> bytes:
    """Return the SHA-256 of pixel data, or of its fragments but for the offset table; of nothing if there is none."""
    size = os.fstat(file.fileno()).st_size
    window = Window(bound(os.pread, file.fileno()), size)
    digest, depth = hashlib.sha256(), 0
    for part, element in walk(window, header.data_offset, encoding_of(header.transfer_syntax_uid)):
        if part in {Part.SEQUENCE, Part.ITEM}:
            depth += 1
        elif part in {Part.SEQUENCE_ENDS, Part.ITEM_ENDS}:
            depth -= 1
        elif depth == 0 and element.tag in _PIXEL_VALUES:
            if part is Part.VALUE:
                pieces = [(element.at, element.length)]
            else:
                pieces = [*fragments(window, element.at)][1:]
            for at, length in pieces:
                _add(digest, file, at, length)
    return digest.digest()


def _add(digest: Any, file: BinaryIO, at: int, length: int) -> None:
    end = at + length
    while at < end and (piece := os.pread(file.fileno(), min(CHUNK, end - at), at)):
        digest.update(piece)
        at += len(piece)


# Attributes


def _differences(
    ours: Dataset, theirs: Dataset, partial: bool, passed: Collection[int], path: str = ""
) -> Iterator[str]:
    for tag in sorted({*ours.keys(), *theirs.keys()}):
        if tag in passed or tag in COERCED or tag.element == 0:  # 0: a group length
            continue
        if _raw(ours, tag) == _raw(theirs, tag) is not None:
            continue
        mine, its = _items(ours, tag), _items(theirs, tag)
        if mine and its and len(mine) == len(its):
            for number, (one, other) in enumerate(zip(mine, its, strict=True), 1):
                within = f"{path}{_name(tag)}[{number}] > "
                yield from _differences(one, other, partial, passed, within)
        elif not _same(ours, theirs, tag, partial):
            yield path + _name(tag)


def _items(data_set: Dataset, tag: BaseTag) -> Sequence[Dataset] | None:
    """Return a sequence's items; None if it is none."""
    try:
        element: DataElement | None = data_set.get(tag)
    except _CONVERSION:
        return None
    return element.value if element is not None and element.VR == "SQ" else None


def _same(ours: Dataset, theirs: Dataset, tag: BaseTag, partial: bool) -> bool:
    try:
        mine, its = _values(ours, tag), _values(theirs, tag)
    except _CONVERSION:
        return False
    if its is None:
        return partial or mine is None
    if mine is None:
        return partial or tag.is_private
    return mine == its


def _raw(data_set: Dataset, tag: BaseTag) -> bytes | None:
    """Return a value as it is encoded, where it was not decoded yet: where that is the same, the value is."""
    element: object = data_set.get_item(tag) if tag in data_set else None
    if not isinstance(element, RawDataElement) or element.value is None:
        return None
    return element.value if element.is_little_endian else None


_CONVERSION = (ValueError, TypeError, LookupError, NotImplementedError, OverflowError)
"""What pydicom raises where a value is none of its value representation."""


def _values(data_set: Dataset, tag: BaseTag) -> list[Any] | None:
    """Return values in a form in which they can be compared; None if there are none."""
    if tag not in data_set:
        return None
    element = data_set[tag]
    if element.VR == "SQ":
        return [len(element.value)] if element.value else None
    several = isinstance(element.value, MultiValue | list)
    values = [
        _comparable(one, element.VR) for one in (element.value if several else [element.value])
    ]
    while values and values[-1] in {None, ""}:
        values.pop()
    return values or None


def _comparable(value: Any, vr: str) -> Any:
    """Return a value freed of what its encoding adds: padding, the look of a number, the width of one."""
    if isinstance(value, bytes):
        return hashlib.sha256(value + b"\0" * (len(value) % 2)).digest() if value else None
    if isinstance(value, PersonName):
        return "=".join(group.rstrip("^ ") for group in str(value).split("=")).rstrip("=")
    if vr in {"DS", "IS"} and value not in {None, ""}:
        return float(value)
    if vr in {"FL", "OF"} and isinstance(value, float):
        return struct.pack("<f", value)
    if isinstance(value, str):
        return value.strip("\0 ")
    return value


def _name(tag: BaseTag) -> str:
    shown = f"({tag.group:04X},{tag.element:04X})"
    keyword = keyword_for_tag(tag)
    return f"{keyword} {shown}" if keyword else shown
