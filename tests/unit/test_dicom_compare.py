"""What counts as a difference between an object sent and the one a receiver returns, and what does not."""

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydicom import DataElement, Dataset, Sequence, dcmread
from pydicom.encaps import encapsulate
from pydicom.uid import RLELossless

from clara_results.agents.dicom.compare import (
    COERCED,
    SHOWN_LIMIT,
    compare,
    compare_files,
    from_json,
)
from clara_results.agents.dicom.frames import FrameDecoders
from tests.conftest import CtWriter


def sent() -> Dataset:
    made = Dataset()
    made.SpecificCharacterSet = "ISO_IR 192"
    made.SOPInstanceUID = "1.2.3"
    made.PatientName = "Müller^Jörg"
    made.PatientID = "P1"
    made.InstanceNumber = 7
    made.PixelSpacing = ["0.50", "0.5"]
    made.ImageComments = "a comment"
    made.OperatorsName = "Smith^John^^"
    made.RescaleSlope = "1.0"
    made.RecommendedDisplayFrameRateInFloat = 1.1
    made.ContentSequence = Sequence([Dataset(), Dataset()])
    made.ContentSequence[1].TextValue = "text"
    made.ContentSequence[1].PatientID = "P1"
    made.RedPaletteColorLookupTableData = b"\1\2\3\0"
    made.private_block(0x0011, "CLARA RESULTS TEST", create=True).add_new(1, "LO", "ours")
    made.AcquisitionNumber = None
    made["PixelData"] = DataElement("PixelData", "OW", bytes(8))
    return made


def changed(**values: Any) -> Dataset:
    made = sent()
    for keyword, value in values.items():
        if value is ...:
            del made[keyword]
        else:
            setattr(made, keyword, value)
    return made


def test_the_same_is_the_same() -> None:
    assert compare(sent(), sent()) == []


@pytest.mark.parametrize(
    "values",
    [
        {"PatientName": "Right^Name", "PatientID": "P2", "AccessionNumber": "A"},
        {"OriginalAttributesSequence": [Dataset()], "SpecificCharacterSet": "ISO_IR 100"},
        {"InstanceNumber": "07", "PixelSpacing": ["0.5", "0.500"], "RescaleSlope": "1"},
        {"OperatorsName": "Smith^John", "ImageComments": "a comment  "},
        {"AcquisitionNumber": ..., "ContentTime": None},
        {"RecommendedDisplayFrameRateInFloat": 1.10000002},
        {"RedPaletteColorLookupTableData": b"\1\2\3"},
        {"PixelData": b"\1\1"},
    ],
)
def test_what_an_archive_may_do_is_no_difference(values: dict[str, Any]) -> None:
    assert compare(sent(), changed(**values)) == []


def test_private_elements_may_be_added_but_not_lost_or_changed() -> None:
    added = sent()
    added.private_block(0x0013, "ARCHIVE", create=True).add_new(1, "LO", "its own")
    assert compare(sent(), added) == []
    assert compare(added, sent()) == ["(0013,0010)", "(0013,1001)"]
    other = sent()
    other[0x00111001].value = "theirs"
    assert compare(sent(), other) == ["(0011,1001)"]


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ({"InstanceNumber": 8}, "InstanceNumber (0020,0013)"),
        ({"ImageComments": ...}, "ImageComments (0020,4000)"),
        ({"ImageComments": None}, "ImageComments (0020,4000)"),
        ({"PixelSpacing": ["0.5"]}, "PixelSpacing (0028,0030)"),
        ({"PixelSpacing": ["0.5", "0.51"]}, "PixelSpacing (0028,0030)"),
        ({"SOPInstanceUID": "1.2.4"}, "SOPInstanceUID (0008,0018)"),
        ({"RedPaletteColorLookupTableData": b"\1\2\4\0"}, "RedPaletteColorLookupTableData (0028,1201)"),
        ({"PixelPaddingValue": 0}, "PixelPaddingValue (0028,0120)"),
        ({"ContentSequence": ...}, "ContentSequence (0040,A730)"),
        ({"ContentSequence": [Dataset()]}, "ContentSequence (0040,A730)"),
        ({"ContentSequence": [Dataset(), Dataset()]}, "ContentSequence (0040,A730)[2] > TextValue (0040,A160)"),
    ],
)  # fmt: skip
def test_all_else_is_one_and_is_named_without_a_value(values: dict[str, Any], found: str) -> None:
    assert compare(sent(), changed(**values)) == [found]


def test_of_a_part_only_what_is_there_counts() -> None:
    part = Dataset()
    part.SOPInstanceUID = "1.2.3"
    part.InstanceNumber = 7
    part.ImageComments = None
    part.NumberOfFrames = 1
    assert compare(sent(), part, partial=True) == []
    part.InstanceNumber = 8
    assert compare(sent(), part, partial=True) == ["InstanceNumber (0020,0013)"]


def test_no_more_than_a_few_are_named() -> None:
    many = Dataset()
    for number in range(30):
        many.add_new(0x00200000 + 0x3100 + number, "LO", "x")
    assert len(compare(many, Dataset())) == SHOWN_LIMIT


def test_dicom_json_is_read_and_what_lies_elsewhere_is_passed_over() -> None:
    parsed = json.loads(sent().to_json(bulk_data_threshold=2, bulk_data_element_handler=lambda _: "http://pacs/bulk"))  # fmt: skip
    theirs, unseen = from_json(parsed)
    assert 0x00281201 in unseen
    assert compare(sent(), theirs, unseen=unseen) == []
    parsed["00200013"]["Value"] = [9]
    assert compare(sent(), *[from_json(parsed)[0]], unseen=unseen) == ["InstanceNumber (0020,0013)"]
    with pytest.raises(ValueError, match="not DICOM JSON"):
        from_json({"00200013": "nothing of the kind"})


def test_what_is_left_out_of_account_tells_whose_it_is_and_never_what_it_is() -> None:
    groups = {tag.group for tag in COERCED}
    assert 0x0028 not in groups
    assert 0x7FE0 not in groups
    identity = {0x00080016, 0x00080018, 0x0020000D, 0x0020000E, 0x00200013}
    assert not identity & set(map(int, COERCED))


@pytest.fixture(scope="module")
def decoders() -> Iterator[FrameDecoders]:
    made = FrameDecoders()
    yield made
    made.close()


@pytest.mark.parametrize("flag", ["+ti", "+tb", "+td"])
def test_files_of_other_encodings_are_compared_by_what_they_hold(
    flag: str,
    decoders: FrameDecoders,
    write_ct: CtWriter,
    require_tool: Callable[[str], str],
    tmp_path: Path,
) -> None:
    path, theirs, other = tmp_path / "1.dcm", tmp_path / "theirs.dcm", tmp_path / "other.dcm"
    write_ct(path, ImageComments="Müller")
    subprocess.run([require_tool("dcmconv"), flag, path, theirs], check=True)
    made = dcmread(path)
    made.PixelData = bytes(511) + b"\1"
    made.save_as(other)
    with path.open("rb") as ours, theirs.open("rb") as stored, other.open("rb") as different:
        assert compare_files(ours, stored, decoders, tmp_path) == []
        assert compare_files(different, stored, decoders, tmp_path) == ["PixelData (7FE0,0010)"]
        assert compare_files(different, ours, decoders, tmp_path) == ["PixelData (7FE0,0010)"]


def test_zero_and_blank_as_numbers_are_no_padding(
    decoders: FrameDecoders, write_ct: CtWriter, tmp_path: Path
) -> None:
    ours, theirs = tmp_path / "ours.dcm", tmp_path / "theirs.dcm"
    made = write_ct(ours, SmallestImagePixelValue=0)
    made.SmallestImagePixelValue = 0x20
    made.save_as(theirs, enforce_file_format=True)
    with ours.open("rb") as one, theirs.open("rb") as other:
        found = compare_files(one, other, decoders, tmp_path)
    assert found == ["SmallestImagePixelValue (0028,0106)"]


def test_compressed_pixel_data_is_compared_as_it_is_offset_tables_aside(
    decoders: FrameDecoders, write_ct: CtWriter, tmp_path: Path
) -> None:
    paths = [tmp_path / f"{number}.dcm" for number in range(3)]
    made = write_ct(paths[0])
    made.NumberOfFrames = 3
    made.file_meta.TransferSyntaxUID = RLELossless
    frames = [bytes([number]) * 100_000 for number in range(3)]
    for path, table, last in zip(paths, (True, False, True), (2, 2, 1), strict=True):
        frames[2] = bytes([last]) * 100_000
        made["PixelData"] = DataElement("PixelData", "OB", encapsulate(frames, has_bot=table))
        made["PixelData"].is_undefined_length = True
        made.save_as(path, enforce_file_format=True)
    with paths[0].open("rb") as ours, paths[1].open("rb") as same, paths[2].open("rb") as other:
        assert compare_files(ours, same, decoders, tmp_path) == []
        assert compare_files(ours, other, decoders, tmp_path) == ["PixelData (7FE0,0010)"]
