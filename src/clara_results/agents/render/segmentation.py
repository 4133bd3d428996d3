"""DICOM segmentations (PS3.3 A.51, C.8.20), brought onto the grid of the images that they segment."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import SimpleITK
from pydicom.dataset import Dataset

from clara_results.agents.render.dicom import (
    PLACE_TOLERANCE,
    Image,
    Slice,
    frames,
    grid_of,
    ordered,
    pixels_of,
    text,
)
from clara_results.agents.render.faults import Unshowable
from clara_results.agents.render.grid import Grid
from clara_results.agents.render.source import Kind, Source


def segmentation_of(image: Image) -> Source:
    """Return a segmentation on a grid of its own, and which series it segments.

    Raises:
        Unshowable: Its frames have no places, or lie on no grid.
    """
    header = image.header
    referenced = header.get("ReferencedSeriesSequence") or []
    series = str(referenced[0].get("SeriesInstanceUID")) if referenced else None
    return Source(
        kind=Kind.SEGMENTATION,
        uris=[image.uri],
        grid=_own_grid(header, frames(header), None),
        name=text(header, "SeriesDescription") or "Segmentation",
        modality=text(header, "Modality"),
        series=series,
        frame_of_reference=text(header, "FrameOfReferenceUID"),
    )


LAYER_LIMIT = 10_000
"""Slices of a segmentation, those where it marks nothing included."""


@dataclass(frozen=True, slots=True)
class Segment:
    """One thing that a segmentation marks: its number, what it is called, and its colour as ``#rrggbb`` if it has one."""

    number: int
    name: str
    color: str | None


def read_segmentation(
    folder: Path, source: Source, grid: Grid
) -> list[tuple[SimpleITK.Image, list[Segment]]]:
    """Read a segmentation on its images' grid: one label map, or several where segments overlap.

    Of a fractional one a voxel counts that is covered by half or more (PS3.3 C.8.20.2).

    Raises:
        Unshowable: It can't be decoded, or does not lie on a grid.
    """
    header = pydicom.dcmread(folder / source.uris[0])
    pixels = pixels_of(header)
    places = frames(header)
    own = _own_grid(header, places, grid)
    layer_of = [
        round((one.height - places[ordered(places)[0]].height) / own.spacing[2]) for one in places
    ]
    if header.get("SegmentationType") == "FRACTIONAL":
        pixels = pixels >= int(header.MaximumFractionalValue) / 2
    segments = {
        int(one.SegmentNumber): Segment(int(one.SegmentNumber), str(one.SegmentLabel), _color(one))
        for one in header.SegmentSequence
    }
    if header.get("SegmentationType") == "LABELMAP":
        whole = np.zeros(own.dims[::-1], np.uint16)
        for layer, frame in zip(layer_of, pixels, strict=True):
            whole[layer] = np.maximum(whole[layer], frame)
        marked = [(whole, list(segments))]
    else:
        numbers = [
            int(one.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
            for one in header.PerFrameFunctionalGroupsSequence
        ]
        marked = _stacked(pixels, layer_of, numbers, own)
    made = []
    for array, present in marked:
        image = SimpleITK.GetImageFromArray(array)
        image.SetSpacing(own.spacing)
        image.SetOrigin(own.origin)
        image.SetDirection(own.direction)
        shown = [segments.get(number) or Segment(number, f"Segment {number}", None) for number in present]  # fmt: skip
        made.append((on_grid(image, grid), shown))
    return made


def _stacked(
    pixels: Any, layer_of: Sequence[int], numbers: Sequence[int], grid: Grid
) -> list[tuple[Any, list[int]]]:
    """Put segments into as few maps as hold them without overlap."""
    maps: list[tuple[Any, list[int]]] = []
    for number in sorted(set(numbers)):
        mask = np.zeros(grid.dims[::-1], bool)
        for index, of in enumerate(numbers):
            if of == number:
                mask[layer_of[index]] |= pixels[index].astype(bool)
        free = next((map_ for map_ in maps if not map_[0][mask].any()), None)
        if free is None:
            free = (np.zeros(grid.dims[::-1], np.uint16), [])
            maps.append(free)
        free[0][mask] = number
        free[1].append(number)
    return maps


def read_marked(folder: Path, source: Source) -> SimpleITK.Image:
    """Read a segmentation whose images are not there as a volume: each voxel the number of its segment.

    Raises:
        Unshowable: It can't be decoded.
    """
    if source.grid is None:
        raise Unshowable("a segmentation has a grid", code="unsupported-volume")
    maps = [image for image, _ in read_segmentation(folder, source, source.grid)]
    marked = maps[0]
    for other in maps[1:]:
        marked = SimpleITK.Maximum(marked, other)
    return marked


def _distances(header: Dataset, images: Grid | None) -> list[float]:
    """Return how far apart a segmentation's slices may be: as its images' are, or as it says itself."""
    if images is not None:
        return [images.spacing[2]]
    shared = (header.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
    measures = (shared.get("PixelMeasuresSequence") or [Dataset()])[0]
    said = [measures.get("SpacingBetweenSlices"), measures.get("SliceThickness")]
    return [float(one) for one in said if one]


def _own_grid(header: Dataset, places: Sequence[Slice], images: Grid | None) -> Grid:
    """Return the grid of a segmentation, which leaves out slices where it marks nothing.

    Args:
        header: The segmentation's.
        places: Its frames'.
        images: Where the images are that it segments, if they are there.

    Raises:
        Unshowable: Its frames lie on none.
    """
    order = ordered(places)
    first, last = places[order[0]], places[order[-1]]
    heights = sorted({round(one.height, 3) for one in places})
    steps = [b - a for a, b in itertools.pairwise(heights)]
    for distance in [*_distances(header, images), *([min(steps)] if steps else [1.0])]:
        if all(abs(step / distance - round(step / distance)) <= PLACE_TOLERANCE and step > distance / 2 for step in steps):  # fmt: skip
            break
    else:
        raise Unshowable("its frames are not at equal distances", code="series-uneven")
    count = round((last.height - first.height) / distance) + 1
    if count > LAYER_LIMIT:
        raise Unshowable(f"it reaches over more than {LAYER_LIMIT:,} slices", code="too-large")
    normal = first.normal
    layers = [
        Slice(
            first.orientation,
            tuple(a + number * distance * b for a, b in zip(first.position, normal, strict=True)),
            first.spacing,
            first.size,
        )
        for number in range(count)
    ]
    for one in places:
        nearest = layers[round((one.height - first.height) / distance)]
        off = math.dist(nearest.position, one.position)
        if off > PLACE_TOLERANCE * max(distance, *first.spacing):
            raise Unshowable("its frames do not lie on top of each other", code="series-tilted")
    return grid_of(layers, distance)


def on_grid(image: SimpleITK.Image, grid: Grid) -> SimpleITK.Image:
    """Return a label map on another grid, each voxel as the nearest of the map."""
    reference = SimpleITK.Image(grid.dims, image.GetPixelID())
    reference.SetSpacing(grid.spacing)
    reference.SetOrigin(grid.origin)
    reference.SetDirection(grid.direction)
    return SimpleITK.Resample(
        image, reference, SimpleITK.Transform(), SimpleITK.sitkNearestNeighbor, 0
    )


def _color(segment: Dataset) -> str | None:
    """Return a segment's recommended colour (PS3.3 C.10.7.1.1: CIELab scaled to 16 bits, D65) as sRGB (IEC 61966-2-1)."""
    scaled = segment.get("RecommendedDisplayCIELabValue")
    if scaled is None or len(scaled) != 3:
        return None
    lightness = scaled[0] * 100 / 65535
    a, b = (value * 255 / 65535 - 128 for value in scaled[1:])
    y = (lightness + 16) / 116
    xyz = [white * _lab_inverse(t) for white, t in ((0.95047, y + a / 500), (1.0, y), (1.08883, y - b / 200))]  # fmt: skip
    linear = np.array([[3.2406, -1.5372, -0.4986], [-0.9689, 1.8758, 0.0415], [0.0557, -0.2040, 1.0570]]) @ xyz  # fmt: skip
    linear = np.clip(linear, 0, 1)
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return "#" + "".join(f"{round(float(value) * 255):02x}" for value in srgb)


def _lab_inverse(t: float) -> float:
    return t**3 if t > 6 / 29 else 3 * (6 / 29) ** 2 * (t - 4 / 29)
