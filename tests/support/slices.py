"""DICOM slices, frames and segmentations of which each pixel's place is known."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import UID, ExplicitVRLittleEndian, SegmentationStorage, generate_uid

if TYPE_CHECKING:
    from tests.conftest import CtWriter

ROWS, COLUMNS, SLICES = 6, 8, 5
SPACING = (0.75, 0.5)
"""Millimetres from row to row and from column to column."""
APART = 2.5
ORIGIN = (-50.0, 20.5, 100.25)
ORIENTATIONS = {
    "axial": (1, 0, 0, 0, 1, 0),
    "prone": (-1, 0, 0, 0, -1, 0),
    "coronal": (1, 0, 0, 0, 0, -1),
    "sagittal": (0, 1, 0, 0, 0, -1),
    "oblique": (0.8, 0.6, 0.0, -0.36, 0.48, 0.8),
}
AXIAL = ORIENTATIONS["axial"]


def normal(orientation: tuple[float, ...]) -> Any:
    return np.cross(orientation[:3], orientation[3:])


def place(orientation: tuple[float, ...], number: float) -> Any:
    return np.add(ORIGIN, normal(orientation) * APART * number)


def pixels(number: int) -> Any:
    """Return a slice whose pixels are like no other's."""
    return np.arange(ROWS * COLUMNS, dtype=np.int16).reshape(ROWS, COLUMNS) + 1000 * number


def of_slice(orientation: tuple[float, ...], number: float, **changes: Any) -> dict[str, Any]:
    """Return what a slice's file is to have."""
    return {
        "ImageOrientationPatient": list(orientation),
        "ImagePositionPatient": [round(float(x), 6) for x in place(orientation, number)],
        "PixelSpacing": list(SPACING),
        "Rows": ROWS,
        "Columns": COLUMNS,
        "RescaleIntercept": -1024,
        "PixelData": pixels(int(number)).tobytes(),
        **changes,
    }


def write_series(
    folder: Path, write_ct: "CtWriter", orientation: tuple[float, ...] = AXIAL, count: int = SLICES
) -> list[str]:
    """Write a series whose files' names say nothing of their order; return them in the slices' order."""
    names = [f"{number}.dcm" for number in range(count)]
    names = names[::2] + names[1::2]
    for number, name in enumerate(names):
        write_ct(folder / name, **of_slice(orientation, number))
    return names


def multi_frame(path: Path, kind: str, orientation: tuple[float, ...], order: list[int]) -> Dataset:
    """Write an image of several frames in some order, with what all of these have in common."""
    image = Dataset()
    image.file_meta = FileMetaDataset()
    image.file_meta.MediaStorageSOPClassUID = UID(kind)
    image.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.SOPClassUID = kind
    image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID
    image.StudyInstanceUID = image.SeriesInstanceUID = generate_uid()
    image.Modality = "CT"
    image.Rows, image.Columns, image.NumberOfFrames = ROWS, COLUMNS, len(order)
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.BitsAllocated = image.BitsStored = 16
    image.HighBit, image.PixelRepresentation = 15, 1
    shared, measures, plane = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing = list(SPACING)
    plane.ImageOrientationPatient = list(orientation)
    shared.PixelMeasuresSequence = Sequence([measures])
    shared.PlaneOrientationSequence = Sequence([plane])
    image.SharedFunctionalGroupsSequence = Sequence([shared])
    frames = []
    for number in order:
        frame, position = Dataset(), Dataset()
        position.ImagePositionPatient = [float(x) for x in place(orientation, number)]
        frame.PlanePositionSequence = Sequence([position])
        frames.append(frame)
    image.PerFrameFunctionalGroupsSequence = Sequence(frames)
    return image


def segmentation(
    folder: Path,
    series: Dataset,
    order: list[tuple[int, int]],
    masks: Any,
    orientation: tuple[float, ...] = AXIAL,
    kind: str = "BINARY",
    **changes: Any,
) -> None:
    """Write a SEG of a series: ``order`` says of each frame its segment and its slice, ``masks`` its pixels."""
    path = folder / "seg.dcm"
    image = multi_frame(path, SegmentationStorage, orientation, [of for _, of in order])
    image.Modality = "SEG"
    image.SegmentationType = kind
    image.FrameOfReferenceUID = series.FrameOfReferenceUID
    referenced = Dataset()
    referenced.SeriesInstanceUID = series.SeriesInstanceUID
    image.ReferencedSeriesSequence = Sequence([referenced])
    segments = []
    for number in sorted({segment for segment, _ in order}):
        segment = Dataset()
        segment.SegmentNumber, segment.SegmentLabel = number, f"Organ {number}"
        if number == 1:
            segment.RecommendedDisplayCIELabValue = [34885, 53485, 50171]  # sRGB red
        segments.append(segment)
    image.SegmentSequence = Sequence(segments)
    for frame, (number, _) in zip(image.PerFrameFunctionalGroupsSequence, order, strict=True):
        identified = Dataset()
        identified.ReferencedSegmentNumber = number
        frame.SegmentIdentificationSequence = Sequence([identified])
    if kind == "BINARY":
        image.BitsAllocated = image.BitsStored = 1
        image.HighBit = image.PixelRepresentation = 0
        packed = np.packbits(np.array(masks, np.uint8).ravel(), bitorder="little").tobytes()
        image.PixelData = packed + b"\0" * (len(packed) % 2)
    else:
        image.BitsAllocated = image.BitsStored = 8
        image.HighBit, image.PixelRepresentation = 7, 0
        image.MaximumFractionalValue = 100
        image.PixelData = np.array(masks, np.uint8).tobytes()
    for keyword, value in changes.items():
        setattr(image, keyword, value)
    image.save_as(path, enforce_file_format=True)


def mask(*at: tuple[int, int]) -> Any:
    """Return a frame with some pixels (column, row) set."""
    frame = np.zeros((ROWS, COLUMNS), np.uint8)
    for column, row in at:
        frame[row, column] = 1
    return frame
