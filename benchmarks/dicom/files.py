"""The files that are sent: synthetic, of the sizes that results have."""

import os
import random
from dataclasses import dataclass, field
from pathlib import Path

from pydicom import Dataset, dcmwrite
from pydicom.dataset import FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian

MULTI_FRAME = UID("1.2.840.10008.5.1.4.1.1.7.2")  # Multi-frame Grayscale Byte Secondary Capture
REPORT = UID("1.2.840.10008.5.1.4.1.1.88.11")  # Basic Text SR
KINDS = {
    "CT": "CT slices of 526 KB",
    "MF": "one multi-frame of 80 MB",
    "SR": "reports of 3 to 8 KB",
}
DISTINCT = 100
"""Files of a kind that are made; the others are copies of them, under other UIDs."""
_UID_LENGTH = 44
_HEAD = 4096
"""Bytes of a file in which its SOP Instance UID is found."""
_DICE = random.Random(20_26)  # noqa: S311  (content, not secrets)


@dataclass(frozen=True, slots=True)
class Series:
    """Files of one kind in a folder of their own.

    Attributes:
        folder: Where they lie.
        paths: Each of them, in order.
        size: Bytes of all.
    """

    folder: Path
    paths: list[Path]
    size: int
    _places: dict[Path, tuple[int, ...]] = field(repr=False)

    def renew(self) -> None:
        """Give each instance a SOP Instance UID that no receiver has seen; nothing else changes."""
        for path, places in self._places.items():
            uid = _uid().encode()
            descriptor = os.open(path, os.O_WRONLY)
            for place in places:
                os.pwrite(descriptor, uid, place)
            os.close(descriptor)

    def first(self, count: int, folder: Path) -> "Series":
        """Return a series of the first files alone, in a folder of its own."""
        folder.mkdir(parents=True)
        places: dict[Path, tuple[int, ...]] = {}
        for path in self.paths[:count]:
            copy = folder / path.name
            copy.write_bytes(path.read_bytes())
            places[copy] = self._places[path]
        return Series(folder, [*places], sum(path.stat().st_size for path in places), places)


def make(kind: str, count: int, folder: Path) -> Series:
    """Write files of a kind into a new folder.

    Args:
        kind: One of KINDS.
        count: How many.
        folder: Where.
    """
    folder.mkdir(parents=True)
    study, series = _uid(), _uid()
    places: dict[Path, tuple[int, ...]] = {}
    for number in range(1, count + 1):
        path = folder / f"{number:05}.dcm"
        if number > DISTINCT:
            first = folder / f"{number % DISTINCT + 1:05}.dcm"
            path.write_bytes(first.read_bytes())
            places[path] = places[first]
            continue
        made = {"CT": _slice, "MF": _multi_frame, "SR": _report}[kind](number)
        made.SOPInstanceUID = _uid()
        made.StudyInstanceUID, made.SeriesInstanceUID = study, series
        made.InstanceNumber, made.SeriesNumber = number, 1
        made.PatientID, made.PatientName = "BENCHMARK-1", "Benchmark^One"
        made.StudyDate, made.StudyTime, made.AccessionNumber = "20260102", "030405", "A1"
        made.file_meta = FileMetaDataset()
        made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dcmwrite(path, made, enforce_file_format=True)
        places[path] = _places(path, str(made.SOPInstanceUID).encode())
    return Series(folder, [*places], sum(path.stat().st_size for path in places), places)


def _uid() -> str:
    """Return a UID (PS3.5 B.2), always as long."""
    return f"2.25.{_DICE.randrange(10**38, 3 * 10**38)}"


def _places(path: Path, uid: bytes) -> tuple[int, ...]:
    with path.open("rb") as file:
        head = file.read(_HEAD)
    places = tuple(at for at in range(len(head)) if head.startswith(uid, at))
    assert len(uid) == _UID_LENGTH and len(places) == 2, "the UID of a benchmark's file is not where it must be"  # noqa: PT018, S101  # fmt: skip
    return places


def _image(sop_class: UID, modality: str, frames: int, bits: int) -> Dataset:
    made = Dataset()
    made.SOPClassUID, made.Modality = sop_class, modality
    made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
    made.Rows = made.Columns = 512
    made.BitsAllocated = made.BitsStored = bits
    made.HighBit, made.PixelRepresentation = bits - 1, 0
    made.add_new("PixelData", "OW" if bits == 16 else "OB", _DICE.randbytes(frames * 512 * 512 * bits // 8))  # fmt: skip
    return made


def _slice(number: int) -> Dataset:
    made = _image(CTImageStorage, "CT", 1, 16)
    made.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    made.ImagePositionPatient = [0, 0, number]
    made.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    made.PixelSpacing, made.SliceThickness = [0.7, 0.7], 1
    made.RescaleIntercept, made.RescaleSlope = -1024, 1
    return made


def _multi_frame(_number: int) -> Dataset:
    made = _image(MULTI_FRAME, "OT", 300, 8)
    made.NumberOfFrames = 300
    made.ConversionType = "WSD"
    return made


def _report(_number: int) -> Dataset:
    made = Dataset()
    made.SOPClassUID, made.Modality = REPORT, "SR"
    made.CompletionFlag, made.VerificationFlag = "COMPLETE", "UNVERIFIED"
    made.ValueType, made.ContinuityOfContent = "CONTAINER", "SEPARATE"
    made.ConceptNameCodeSequence = [_code("126000", "Imaging Measurement Report")]
    made.ContentSequence = [_finding(index) for index in range(_DICE.randrange(14, 40))]
    return made


def _finding(index: int) -> Dataset:
    made = Dataset()
    made.RelationshipType, made.ValueType = "CONTAINS", "TEXT"
    made.ConceptNameCodeSequence = [_code("121071", "Finding")]
    made.TextValue = f"finding {index}: " + "x" * _DICE.randrange(20, 80)
    return made


def _code(value: str, meaning: str) -> Dataset:
    made = Dataset()
    made.CodeValue, made.CodingSchemeDesignator, made.CodeMeaning = value, "DCM", meaning
    return made
