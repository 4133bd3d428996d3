"""The header reader, with pydicom as the second opinion."""

import contextlib
import io
import struct
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import Dataset, Sequence, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_file_meta_info
from pydicom.uid import (
    UID,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    MediaStorageDirectoryStorage,
    generate_uid,
)

from clara_results.agents.dicom import part10
from clara_results.agents.dicom.part10 import (
    DicomUnreadable,
    Header,
    NotForReceivers,
    read_header,
)

NATIVE = [
    ImplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    DeflatedExplicitVRLittleEndian,
]


def read(data: bytes, name: str = "x.dcm") -> Header:
    return read_header(lambda count, at: data[at : at + count], len(data), name)


def instance() -> Dataset:
    made = Dataset()
    made.SOPClassUID = CTImageStorage
    made.SOPInstanceUID = "1.2.3.4"
    made.SpecificCharacterSet = "ISO_IR 192"
    made.AccessionNumber = "A 1"
    made.PatientID = "P 1"
    made.IssuerOfPatientID = "Ward"
    made.StudyInstanceUID = "1.2.3"
    made.SeriesInstanceUID = "1.2.3.5"
    made.SeriesNumber = 7
    made.InstanceNumber = 12
    return made


def meta_of(made: Dataset, syntax: str) -> FileMetaDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = made.get("SOPClassUID", CTImageStorage)
    meta.MediaStorageSOPInstanceUID = made.get("SOPInstanceUID", "1.2.3")
    meta.TransferSyntaxUID = UID(syntax)
    return meta


def encoded(made: Dataset, syntax: str = ExplicitVRLittleEndian) -> bytes:
    made.file_meta = meta_of(made, syntax)
    out = io.BytesIO()
    made.save_as(out, enforce_file_format=True)
    return out.getvalue()


def with_raw_data_set(data_set: bytes, syntax: str = ExplicitVRLittleEndian) -> bytes:
    """A file whose data set is given byte by byte."""
    out = DicomBytesIO()
    out.write(b"\0" * 128 + b"DICM")
    write_file_meta_info(out, meta_of(instance(), syntax))
    return out.getvalue() + data_set


def assert_as_pydicom_reads(data: bytes) -> None:
    header, expected = read(data), dcmread(io.BytesIO(data))
    assert header.media_sop_class_uid == expected.file_meta.MediaStorageSOPClassUID
    assert header.media_sop_instance_uid == expected.file_meta.MediaStorageSOPInstanceUID
    assert header.transfer_syntax_uid == expected.file_meta.TransferSyntaxUID
    assert header.sop_class_uid == expected.get("SOPClassUID", "")
    assert header.sop_instance_uid == expected.get("SOPInstanceUID", "")
    assert header.study_instance_uid == expected.get("StudyInstanceUID", "")
    assert header.series_instance_uid == expected.get("SeriesInstanceUID", "")
    patient = (expected.get("PatientID", ""), expected.get("IssuerOfPatientID", ""))
    assert header.patient == tuple(part.strip(" ").encode() for part in patient)
    assert header.accession_number == expected.get("AccessionNumber", "").strip(" ").encode()
    assert header.character_set == expected.get("SpecificCharacterSet", "").encode()
    assert header.series_number == expected.get("SeriesNumber")
    assert header.instance_number == expected.get("InstanceNumber")


def nested(depth: int, undefined: bool) -> Dataset:
    made = Dataset()
    made.CodeValue = "x"
    made.is_undefined_length_sequence_item = undefined
    if depth:
        made.ContentSequence = Sequence([nested(depth - 1, undefined), nested(0, undefined)])
        made["ContentSequence"].is_undefined_length = undefined
    return made


@pytest.mark.parametrize("syntax", NATIVE)
@pytest.mark.parametrize("undefined", [True, False])
def test_sequences_before_and_after_what_is_wanted(syntax: str, undefined: bool) -> None:
    made = instance()
    made.ReferencedImageSequence = Sequence([nested(4, undefined), nested(0, undefined)])
    made["ReferencedImageSequence"].is_undefined_length = undefined
    made.ContentSequence = Sequence([nested(3, undefined)])
    made["ContentSequence"].is_undefined_length = undefined
    made.RequestAttributesSequence = Sequence()
    made["RequestAttributesSequence"].is_undefined_length = undefined
    assert_as_pydicom_reads(encoded(made, syntax))


@pytest.mark.parametrize("syntax", NATIVE)
def test_wanted_elements_within_sequences_are_not_taken(syntax: str) -> None:
    made = instance()
    del made.InstanceNumber
    made.ReferencedStudySequence = Sequence([instance()])
    made["ReferencedStudySequence"].is_undefined_length = True
    assert_as_pydicom_reads(encoded(made, syntax))
    assert read(encoded(made, syntax)).instance_number is None


@pytest.mark.parametrize("syntax", NATIVE)
def test_values_larger_than_the_window(syntax: str) -> None:
    made = instance()
    private = made.private_block(0x0009, "BIG", create=True)
    private.add_new(1, "OB", bytes(range(256)) * (part10.WINDOW // 128))
    made.PixelData = b"\1\2" * (2 * part10.WINDOW)
    made["PixelData"].VR = "OW"
    assert_as_pydicom_reads(encoded(made, syntax))


def test_long_nested_content_is_followed_across_windows() -> None:
    made = instance()
    made.ContentSequence = Sequence([nested(1, True) for _ in range(3000)])
    made["ContentSequence"].is_undefined_length = True
    data = encoded(made)
    assert len(data) > 2 * part10.WINDOW
    assert_as_pydicom_reads(data)
    with pytest.raises(DicomUnreadable, match="cut off"):
        read(data[:-8])


def test_encapsulated_pixel_data() -> None:
    made = instance()
    made.PixelData = encapsulate([b"\1\2\3\4", b"\xff" * 100_000])
    made["PixelData"].VR = "OB"
    made["PixelData"].is_undefined_length = True
    data = encoded(made, JPEG2000Lossless)
    assert_as_pydicom_reads(data)
    with pytest.raises(DicomUnreadable, match="cut off"):
        read(data[:-8])


def explicit(tag: int, vr: bytes, length: int, value: bytes = b"") -> bytes:
    return struct.pack("<HH2sHI", tag >> 16, tag & 0xFFFF, vr, 0, length) + value


def implicit(tag: int, length: int, value: bytes = b"") -> bytes:
    return struct.pack("<HHI", tag >> 16, tag & 0xFFFF, length) + value


ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
UNDEFINED = 0xFFFFFFFF
STUDY = struct.pack("<HH2sH", 0x0020, 0x000D, b"UI", 4) + b"1.2\0"


def test_unknown_of_undefined_length_is_a_sequence_in_implicit_little_endian() -> None:
    content = (
        implicit(ITEM, UNDEFINED)
        + implicit(0x00091001, 4, b"abcd")
        + implicit(0x00091002, UNDEFINED, implicit(ITEM, 2, b"zz") + implicit(SEQUENCE_END, 0))
        + implicit(ITEM_END, 0)
        + implicit(ITEM, 4, b"\0\0\0\0")
        + implicit(SEQUENCE_END, 0)
    )
    for_each = explicit(0x00091000, b"UN", UNDEFINED, content) + STUDY
    assert read(with_raw_data_set(for_each)).study_instance_uid == "1.2"


@pytest.mark.parametrize(
    ("data_set", "why"),
    [
        (explicit(0x00091000, b"UT", UNDEFINED), "UT element without a length"),
        (explicit(0x00091000, b"SQ", UNDEFINED) + STUDY, r"\(0020,000D\) where none can be"),
        (
            explicit(0x7FE00010, b"OB", UNDEFINED) + implicit(ITEM, UNDEFINED),
            "fragment of pixel data without a length",
        ),
        (implicit(ITEM_END, 0) + STUDY, "no value representation"),
        (struct.pack("<HH2sH", 8, 5, b"XX", 0), "no value representation"),
        (struct.pack("<HH2sH", 2, 5, b"UI", 0), "can't have"),
        (b"\0" * 16, "no value representation"),
        (explicit(0x00100020, b"UT", 5000, b" " * 5000), "more than 1024"),
        (STUDY + b"\x20", "cut off"),
    ],
)
def test_what_breaks_the_rules_is_named(data_set: bytes, why: str) -> None:
    with pytest.raises(DicomUnreadable, match=why):
        read(with_raw_data_set(data_set))


def test_a_delimiter_outside_a_sequence_is_found_in_implicit() -> None:
    with pytest.raises(DicomUnreadable, match="can't have"):
        read(with_raw_data_set(implicit(ITEM_END, 0), ImplicitVRLittleEndian))


def small_file(syntax: str) -> bytes:
    made = instance()
    made.ReferencedImageSequence = Sequence([nested(1, True)])
    made["ReferencedImageSequence"].is_undefined_length = True
    made.PixelData = b"\1\2\3\4"
    made["PixelData"].VR = "OW"
    return encoded(made, syntax)


def boundaries(data: bytes) -> set[int]:
    """Where a cut leaves whole elements: what is left can't be told from a shorter data set."""
    header = dcmread(io.BytesIO(data))
    if header.file_meta.TransferSyntaxUID == DeflatedExplicitVRLittleEndian:
        return set()
    found = {read(data).data_offset}
    for element in header:
        part = Dataset()
        for other in header:
            if other.tag <= element.tag:
                part.add(other)
        found.add(len(encoded_like(part, data)))
    return found


def encoded_like(part: Dataset, data: bytes) -> bytes:
    out = io.BytesIO()
    header = dcmread(io.BytesIO(data))
    part.file_meta = header.file_meta
    part.save_as(out, enforce_file_format=True)
    return out.getvalue()


@pytest.mark.parametrize("syntax", NATIVE)
def test_a_cut_anywhere_is_found(syntax: str) -> None:
    data = small_file(syntax)
    assert_as_pydicom_reads(data)
    whole = boundaries(data)
    for size in range(len(data)):
        if size in whole:
            read(data[:size])
            continue
        with pytest.raises(DicomUnreadable):
            read(data[:size])


def test_a_cut_says_where() -> None:
    data = small_file(ExplicitVRLittleEndian)
    with pytest.raises(DicomUnreadable, match=f"ends at byte {len(data) - 1}"):
        read(data[:-1])


@settings(deadline=None)
@given(st.data())
def test_damage_never_raises_anything_else(data: st.DataObject) -> None:
    whole = bytearray(small_file(data.draw(st.sampled_from(NATIVE))))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(132, len(whole) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(DicomUnreadable, NotForReceivers):
        read(bytes(whole))


@given(st.binary(max_size=200), st.sampled_from(NATIVE))
def test_any_bytes_for_a_data_set_never_raise_anything_else(data_set: bytes, syntax: str) -> None:
    with contextlib.suppress(DicomUnreadable):
        read(with_raw_data_set(data_set, syntax))


@given(
    st.lists(st.sampled_from([0x00080005, 0x00081032, 0x00100020, 0x00200013, 0x00400275])),
    st.booleans(),
    st.sampled_from(NATIVE),
    st.text("ABCdef 0123", max_size=16),
    st.integers(0, 99_999),
)
@settings(deadline=None)
def test_any_selection_of_elements(
    tags: list[int], undefined: bool, syntax: str, patient: str, number: int
) -> None:
    made = instance()
    made.PatientID = patient
    made.InstanceNumber = number
    for tag in tags:
        if tag in made:
            del made[tag]
        elif tag in {0x00081032, 0x00400275}:
            made.add_new(tag, "SQ", [nested(2, undefined)])
            made[tag].is_undefined_length = undefined
    assert_as_pydicom_reads(encoded(made, syntax))


@pytest.mark.parametrize("name", ["note.txt", "dcm", "x.dcm.gz"])
@pytest.mark.parametrize("data", [b"", b"hello", b"\0" * 500])
def test_what_does_not_claim_to_be_dicom_is_not_for_receivers(name: str, data: bytes) -> None:
    with pytest.raises(NotForReceivers) as caught:
        read(data, name)
    assert caught.value.code == "not-dicom"


@pytest.mark.parametrize("name", ["a.dcm", "A.DCM", "b.Dcm"])
def test_a_name_that_claims_dicom_is_held_to_it(name: str) -> None:
    with pytest.raises(DicomUnreadable, match="DICM mark"):
        read(b"hello", name)


def test_the_mark_is_held_to_whatever_the_name() -> None:
    with pytest.raises(DicomUnreadable, match=r"Media Storage SOP Class UID .* is missing"):
        read(b"\0" * 128 + b"DICM", "note.txt")


def test_a_directory_of_files_is_not_for_receivers() -> None:
    made = Dataset()
    made.SOPClassUID = MediaStorageDirectoryStorage
    made.SOPInstanceUID = generate_uid()
    with pytest.raises(NotForReceivers) as caught:
        read(encoded(made), "DICOMDIR")
    assert caught.value.code == "dicomdir"


def without_group_length(data: bytes) -> bytes:
    assert data[132:136] == b"\2\0\0\0"
    return data[:132] + data[144:]


@pytest.mark.parametrize("syntax", NATIVE)
def test_a_meta_header_without_its_length_is_read(syntax: str) -> None:
    assert_as_pydicom_reads(without_group_length(small_file(syntax)))


@pytest.mark.parametrize("change", [-40, -1, 1, 8, 100_000])
def test_a_meta_header_that_lies_about_its_length_is_found(change: int) -> None:
    data = bytearray(small_file(ExplicitVRLittleEndian))
    (length,) = struct.unpack_from("<I", data, 140)
    struct.pack_into("<I", data, 140, length + change)
    with pytest.raises(DicomUnreadable):
        read(bytes(data))


def test_a_uid_that_is_none_is_found() -> None:
    data = small_file(ExplicitVRLittleEndian)
    with pytest.raises(DicomUnreadable, match="holds no UID"):
        read(data.replace(b"1.2.840.10008.1.2.1", b"1.2.840.10008.1-2.1"))


def deflate(data_set: bytes) -> bytes:
    press = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return press.compress(data_set) + press.flush()


@pytest.mark.parametrize("follows", [b"\0", b"a gzip's checksum and size"])
def test_what_follows_deflated_data_is_passed_over(follows: bytes) -> None:
    file = with_raw_data_set(deflate(STUDY), DeflatedExplicitVRLittleEndian)
    assert read(file + follows).study_instance_uid == "1.2"


def test_damaged_deflated_data_is_found() -> None:
    with pytest.raises(DicomUnreadable, match="damaged"):
        read(with_raw_data_set(b"\xff" * 20, DeflatedExplicitVRLittleEndian))


def test_a_deflated_data_set_far_larger_than_its_file(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = explicit(0x7FE00010, b"OW", 1 << 24, b"\0" * (1 << 24))
    file = with_raw_data_set(deflate(STUDY + pixels), DeflatedExplicitVRLittleEndian)
    assert read(file).study_instance_uid == "1.2"
    monkeypatch.setattr(part10, "INFLATED_LIMIT", 1 << 20)
    with pytest.raises(DicomUnreadable, match="inflates to more than"):
        read(file)


def test_what_is_cut_off_within_the_deflated_data_is_found() -> None:
    file = with_raw_data_set(deflate(STUDY[:-1]), DeflatedExplicitVRLittleEndian)
    with pytest.raises(DicomUnreadable, match="the inflated data set is cut off"):
        read(file)


def test_the_patient_is_not_shown() -> None:
    assert "P 1" not in repr(read(encoded(instance())))


def test_every_sample_file_of_pydicom_reads_alike() -> None:
    """pydicom's own sample files: what it reads as Part 10 without complaint, we read to the same end."""
    from pydicom.data import get_testdata_file

    for name in [
        "CT_small.dcm",
        "MR_small.dcm",
        "rtdose.dcm",
        "rtplan.dcm",
        "JPEG2000.dcm",
        "image_dfl.dcm",
    ]:
        path = get_testdata_file(name)
        assert isinstance(path, str)
        data = Path(path).read_bytes()
        header, expected = read(data), dcmread(path)
        assert header.sop_instance_uid == expected.SOPInstanceUID
        assert header.patient[0].decode() == expected.PatientID
