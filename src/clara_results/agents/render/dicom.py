"""DICOM images and segmentations of a task: which make one volume, and where its voxels are.

The places of slices and frames are taken from the files themselves (PS3.3 C.7.6.2, C.7.6.16.2): SimpleITK supposes that slices
lie on top of each other, at the distance of the first two.
"""

import itertools
import math
import struct
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import SimpleITK
from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.uid import UID

from clara_results.agents.render.faults import Unshowable
from clara_results.agents.render.files import VOXEL_LIMIT
from clara_results.agents.render.grid import Grid
from clara_results.agents.render.metaimage import orthonormal
from clara_results.agents.render.source import Kind, Source

SEGMENTATIONS = frozenset({"1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7"})
"""SOP Classes of Segmentation and Label Map Segmentation Storage."""
NOT_A_VOLUME = "not-a-volume"
PLACE_TOLERANCE = 0.1
"""Part of the distance of slices, or of the pixels, by which a slice's place may be off the grid."""
_TAGS = [
    "SOPClassUID", "Modality", "StudyInstanceUID", "SeriesInstanceUID", "SeriesDescription", "SeriesNumber",
    "FrameOfReferenceUID", "InstanceNumber", "AcquisitionNumber", "TemporalPositionIdentifier", "EchoNumbers", "ImageType",
    "Rows", "Columns", "SamplesPerPixel", "BitsAllocated", "NumberOfFrames", "ImageOrientationPatient",
    "ImagePositionPatient", "PixelSpacing", "SliceThickness", "Units",
]  # fmt: skip
UNREADABLE = (
    InvalidDicomError, BytesLengthException, AttributeError, ArithmeticError, EOFError, LookupError, NotImplementedError, TypeError, ValueError,
    struct.error,
)  # fmt: skip
"""What pydicom raises over what it can't read."""
_TELLS_APART = ("AcquisitionNumber", "TemporalPositionIdentifier", "EchoNumbers", "ImageType")
"""What images at the same place may differ in."""


@dataclass(frozen=True, slots=True)
class Slice:
    """An image, or a frame of one, with its place.

    Attributes:
        orientation: Unit vectors along a row and along a column.
        position: Centre of the first pixel, millimetres, LPS+.
        spacing: Millimetres from row to row, and from column to column.
        size: Rows and columns.
    """

    orientation: tuple[float, ...]
    position: tuple[float, ...]
    spacing: tuple[float, float]
    size: tuple[int, int]

    @property
    def whole(self) -> bool:
        """Tell whether it is a place: six and three finite numbers, and pixels of some size."""
        numbers = [*self.orientation, *self.position, *self.spacing]
        enough = (len(self.orientation), len(self.position)) == (6, 3)
        return enough and all(map(math.isfinite, numbers)) and min(*self.spacing, *self.size) > 0

    @property
    def normal(self) -> tuple[float, ...]:
        """Return the unit vector at right angles to the image."""
        return tuple(float(x) for x in np.cross(self.orientation[:3], self.orientation[3:]))

    @property
    def height(self) -> float:
        """Return the image's place along its normal."""
        return sum(a * b for a, b in zip(self.normal, self.position, strict=True))


@dataclass(frozen=True, slots=True)
class Image:
    """A file with a DICOM image, without its pixels."""

    uri: str
    header: Dataset


def is_dicom(path: Path) -> bool:
    """Tell whether a file is one of PS3.10, by its preamble."""
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def read_image(path: Path, uri: str) -> Image:
    """Read what of an image decides where it belongs.

    Raises:
        Unshowable: It can't be read (``damaged``), or ends too early (``size-differs``).
    """
    try:
        with path.open("rb") as file:
            header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=_TAGS)
            position = file.tell()
            if int(header.get("NumberOfFrames") or 1) > 1 or header.get("SOPClassUID") in SEGMENTATIONS:  # fmt: skip
                header = pydicom.dcmread(path, stop_before_pixels=True)
        for element in header:  # each is understood only now
            _ = element.value
        _check_end(header, path.stat().st_size - position)
    except UNREADABLE as error:
        raise Unshowable("it can't be read as DICOM", code="damaged") from error
    return Image(uri, header)


def _check_end(header: Dataset, left: int) -> None:
    """Look whether native pixels are all there: bytes that are left of the file from their element on."""
    syntax = UID(header.file_meta.TransferSyntaxUID)
    if syntax.is_compressed or "Rows" not in header:
        return
    frames = int(header.get("NumberOfFrames") or 1)
    bits = frames * header.Rows * header.Columns * header.SamplesPerPixel * header.BitsAllocated
    head = 8 if syntax.is_implicit_VR else 12  # tag, VR and length of Pixel Data: PS3.5 7.1
    if left - head < (bits + 7) // 8:
        raise Unshowable("its pixels end too early", code="size-differs")


def place(header: Dataset) -> Slice | None:
    """Return an image's place; None: it has none, or no grey values, so that it is no slice of a volume."""
    try:
        orientation = tuple(float(x) for x in header.ImageOrientationPatient)
        position = tuple(float(x) for x in header.ImagePositionPatient)
        spacing = (float(header.PixelSpacing[0]), float(header.PixelSpacing[1]))
        size = (int(header.Rows), int(header.Columns))
        grey = header.SamplesPerPixel == 1 and int(header.get("NumberOfFrames") or 1) == 1
    except (AttributeError, TypeError, ValueError, IndexError):
        return None
    slice_ = Slice(orientation, position, spacing, size)
    return slice_ if grey and slice_.whole else None


def frames(header: Dataset) -> list[Slice]:
    """Return the places of a multi-frame image's frames (PS3.3 C.7.6.16).

    Raises:
        Unshowable: They have none (``not-a-volume``).
    """
    try:
        shared = header.SharedFunctionalGroupsSequence[0]
        found = []
        for own in header.PerFrameFunctionalGroupsSequence:
            measures = _group(own, shared, "PixelMeasuresSequence")
            plane = _group(own, shared, "PlaneOrientationSequence")
            position = _group(own, shared, "PlanePositionSequence")
            found.append(
                Slice(
                    tuple(map(float, plane.ImageOrientationPatient)),
                    tuple(map(float, position.ImagePositionPatient)),
                    (float(measures.PixelSpacing[0]), float(measures.PixelSpacing[1])),
                    (int(header.Rows), int(header.Columns)),
                )
            )
    except (AttributeError, KeyError, TypeError, ValueError, IndexError):
        raise Unshowable("its frames have no places", code=NOT_A_VOLUME) from None
    if not all(one.whole for one in found):
        raise Unshowable("the places of its frames can't be", code="damaged")
    if not found or len(found) != int(header.get("NumberOfFrames") or 1):
        raise Unshowable("its frames are not as many as it says", code="damaged")
    return found


def _group(own: Dataset, shared: Dataset, name: str) -> Dataset:
    """Return a functional group of a frame: its own, or that of all."""
    group: Dataset = (own if name in own else shared)[name][0]
    return group


def ordered(slices: Sequence[Slice]) -> list[int]:
    """Return the indices of slices in their order along their normal."""
    return sorted(range(len(slices)), key=lambda index: slices[index].height)


def grid_of(slices: Sequence[Slice], thickness: float) -> Grid:
    """Return the grid that slices, in their order, lie on.

    Args:
        slices: The slices.
        thickness: Millimetres that a single one stands for.

    Raises:
        Unshowable: They lie on none.
    """
    first, count = slices[0], len(slices)
    row, column, normal = first.orientation[:3], first.orientation[3:], first.normal
    if len(first.orientation) != 6 or not orthonormal([list(row), list(column), list(normal)]):
        raise Unshowable(
            "the axes of its images are not at right angles to each other", code="direction-invalid"
        )
    if first.size[0] * first.size[1] * count > VOXEL_LIMIT:
        raise Unshowable(f"it has more than {VOXEL_LIMIT:,} voxels", code="too-large")
    distance = (slices[-1].height - first.height) / (count - 1) if count > 1 else thickness
    steps = [b.height - a.height for a, b in itertools.pairwise(slices)]
    if steps and min(steps) <= PLACE_TOLERANCE * max(steps):
        raise Unshowable(
            "several of its images are at one place: register each time point, echo or phase by itself",
            code="series-overlaps",
        )
    for number, one in enumerate(slices):
        off = one.height - first.height - number * distance
        if abs(off) > PLACE_TOLERANCE * distance:
            raise Unshowable(
                f"its slices are not at equal distances ({min(steps):.3f} to {max(steps):.3f} mm): are some missing?",
                code="series-uneven",
            )
        ideal = [a + (one.height - first.height) * b for a, b in zip(first.position, normal, strict=True)]  # fmt: skip
        if math.dist(ideal, one.position) > PLACE_TOLERANCE * min(first.spacing):
            raise Unshowable(
                "its slices do not lie on top of each other (a tilted gantry?): make a volume of them first",
                code="series-tilted",
            )
    axes = [list(row), list(column), list(normal)]
    return Grid(
        dims=[first.size[1], first.size[0], count],
        spacing=[first.spacing[1], first.spacing[0], distance],
        origin=list(first.position),
        direction=[axes[along][axis] for axis in range(3) for along in range(3)],
    )


def series_of(images: Iterable[Image]) -> tuple[list[Source], list[tuple[list[str], Unshowable]]]:
    """Find the volumes in single-frame images.

    Returns:
        The volumes; and what can't be one, each with its files and the reason.
    """
    stacks: dict[tuple[Any, ...], list[tuple[Image, Slice]]] = defaultdict(list)
    found: list[Source] = []
    faults: list[tuple[list[str], Unshowable]] = []
    for image in images:
        slice_ = place(image.header)
        if slice_ is None:
            reason = "it is no image of grey values with a place in the patient"
            faults.append(([image.uri], Unshowable(reason, code=NOT_A_VOLUME)))
            continue
        turned = tuple(round(x, 2) for x in slice_.orientation)
        spacing = tuple(round(x, 4) for x in slice_.spacing)
        key = (str(image.header.get("SeriesInstanceUID")), turned, spacing, slice_.size)
        stacks[key].append((image, slice_))
    for stack in stacks.values():
        for part in _apart(stack):
            try:
                found.append(_series(part))
            except Unshowable as fault:
                faults.append(([image.uri for image, _ in part], fault))
    return found, faults


def _apart(stack: list[tuple[Image, Slice]]) -> Iterable[list[tuple[Image, Slice]]]:
    """Part images that are at the same places, as several time points of a series are."""
    heights = {round(slice_.height, 3) for _, slice_ in stack}
    if len(heights) == len(stack):
        return [stack]
    parts: dict[str, list[tuple[Image, Slice]]] = defaultdict(list)
    for image, slice_ in stack:
        parts[repr([str(image.header.get(name)) for name in _TELLS_APART])].append((image, slice_))
    return parts.values()


def _series(part: list[tuple[Image, Slice]]) -> Source:
    order = ordered([slice_ for _, slice_ in part])
    header = part[order[0]][0].header
    thickness = float(header.get("SliceThickness") or 0) or 1.0
    grid = grid_of([part[index][1] for index in order], thickness)
    uris = [part[index][0].uri for index in order]
    return _described(Kind.SERIES, uris, header, grid)


def multi_frame_of(image: Image) -> Source:
    """Return the volume in a multi-frame image.

    Raises:
        Unshowable: There is none.
    """
    header = image.header
    if header.get("SamplesPerPixel") != 1:
        raise Unshowable("it has no grey values", code=NOT_A_VOLUME)
    places = frames(header)
    order = ordered(places)
    grid = grid_of([places[index] for index in order], thickness=1.0)
    return _described(Kind.FRAMES, [image.uri], header, grid)


def _described(kind: Kind, uris: list[str], header: Dataset, grid: Grid) -> Source:
    modality = text(header, "Modality")
    units = {"CT": "HU", "PT": text(header, "Units")}
    name = text(header, "SeriesDescription") or f"{modality or 'Image'} series {header.get('SeriesNumber') or ''}"  # fmt: skip
    return Source(
        kind=kind,
        uris=uris,
        grid=grid,
        name=name.strip(),
        modality=modality,
        unit=units.get(modality or ""),
        series=text(header, "SeriesInstanceUID"),
        frame_of_reference=text(header, "FrameOfReferenceUID"),
    )


def text(header: Dataset, keyword: str) -> str | None:
    """Return an element's value as text; None: it is not there, or empty."""
    return str(header.get(keyword) or "").strip() or None


def read_series(folder: Path, source: Source) -> SimpleITK.Image:
    """Read a series' volume, rescaled to its modality's values (PS3.3 C.11.1).

    Raises:
        Unshowable: An image can't be decoded.
    """
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames([str(folder / uri) for uri in source.uris])
    if len({_rescale(folder / uri) for uri in source.uris}) > 1:
        reader.SetOutputPixelType(SimpleITK.sitkFloat64)  # else all are read as the first is
    try:
        image = reader.Execute()
    except RuntimeError as error:
        raise Unshowable("one of its images can't be decoded", code="damaged") from error
    return _laid(image, source)


def _rescale(path: Path) -> tuple[str, str]:
    header = pydicom.dcmread(path, specific_tags=["RescaleSlope", "RescaleIntercept"], stop_before_pixels=True)  # fmt: skip
    return str(header.get("RescaleSlope")), str(header.get("RescaleIntercept"))


def read_frames(folder: Path, source: Source) -> SimpleITK.Image:
    """Read a multi-frame image's volume, rescaled to its modality's values (PS3.3 C.7.6.16.2.9).

    Raises:
        Unshowable: It can't be decoded.
    """
    header = pydicom.dcmread(folder / source.uris[0])
    pixels = pixels_of(header)
    order = ordered(frames(header))
    shared = header.SharedFunctionalGroupsSequence[0]
    name = "PixelValueTransformationSequence"
    values = np.empty(pixels.shape, np.float32)
    for number, index in enumerate(order):
        own = header.PerFrameFunctionalGroupsSequence[index]
        rescale = (own.get(name) or shared.get(name) or [Dataset()])[0]
        slope = float(rescale.get("RescaleSlope", 1))
        values[number] = pixels[index] * slope + float(rescale.get("RescaleIntercept", 0))
    return _laid(SimpleITK.GetImageFromArray(values), source)


def _laid(image: SimpleITK.Image, source: Source) -> SimpleITK.Image:
    grid = source.grid
    if grid is None or list(image.GetSize()) != grid.dims or image.GetNumberOfComponentsPerPixel() != 1:  # fmt: skip
        raise Unshowable("its pixels are not what its header says", code="damaged")
    image.SetSpacing(grid.spacing)
    image.SetOrigin(grid.origin)
    image.SetDirection(grid.direction)
    return image


def pixels_of(header: Dataset) -> Any:
    """Return an image's frames, [frame, row, column], as they are stored.

    Raises:
        Unshowable: They can't be decoded.
    """
    try:
        pixels = header.pixel_array
    except Exception as error:  # whatever a codec raises
        raise Unshowable("its frames can't be decoded", code="damaged") from error
    return pixels.reshape(-1, header.Rows, header.Columns)


def by_series(sources: Iterable[Source]) -> Mapping[str, Source]:
    """Return volumes by their Series Instance UID."""
    return {source.series: source for source in sources if source.series is not None}
