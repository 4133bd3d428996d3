"""DICOM series in a folder, and whether the slices of one make a volume.

A volume's slices have one size, one pixel spacing and one orientation, and lie on a straight line along their normal, one
slice spacing apart (PS3.3 C.7.6.2). Coordinates are DICOM's own: millimetres to the patient's left, back and head.
"""

from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydicom import Dataset, dcmread
from pydicom.errors import InvalidDicomError

from liver_tumor.step import Refused, say

Vector = npt.NDArray[np.float64]

SPACING_TOLERANCE = 0.02
"""How much a slice distance may differ from the series' usual one, as a part of it."""
TILT_TOLERANCE = 0.01
"""How far slices may slide sideways, as a part of the way along the normal."""
ORIENTATION_TOLERANCE = 1e-4
"""How much two direction cosines may differ."""


@dataclass(frozen=True, slots=True)
class Slice:
    """A single-frame image.

    Attributes:
        path: Its file.
        header: All of its attributes but the pixels.
    """

    path: Path
    header: Dataset


@dataclass(frozen=True, slots=True)
class Grid:
    """Where the voxels of a volume are.

    Attributes:
        size: Columns, rows and slices.
        spacing: Millimetres between two columns, rows and slices.
        origin: Centre of the first voxel, in millimetres.
        direction: 3 x 3; its columns are the unit vectors along a row, along a column and along the slices.
    """

    size: tuple[int, int, int]
    spacing: tuple[float, float, float]
    origin: Vector
    direction: Vector


@dataclass(frozen=True, slots=True)
class Series:
    """A series' images, as they were found.

    Attributes:
        uid: Series Instance UID.
        slices: In no order.
    """

    uid: str
    slices: list[Slice]

    @property
    def modality(self) -> str:
        """Return what made it: CT, MR…."""
        return str(self.slices[0].header.get("Modality", ""))

    def __str__(self) -> str:
        """Name it without anything of the patient's."""
        return f"series {self.uid} ({self.modality}, {len(self.slices)} images)"


def find(folder: Path) -> dict[str, Series]:
    """Return the series of images below a folder, by Series Instance UID.

    Files that are not DICOM, and instances that are not images, are left out; how many is said. An instance that is
    there twice counts once.

    Raises:
        Refused: There is no image.
    """
    found: dict[str, dict[str, Slice]] = defaultdict(dict)
    others = 0
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            continue
        try:
            header = dcmread(path, stop_before_pixels=True)
        except InvalidDicomError:
            others += 1
            continue
        except EOFError as error:
            raise Refused(f"{path} is cut off") from error
        if "Rows" not in header or "SeriesInstanceUID" not in header:
            others += 1
            continue
        found[str(header.SeriesInstanceUID)].setdefault(
            str(header.SOPInstanceUID), Slice(path, header)
        )
    if others:
        say(f"left out {others} files that are not DICOM images")
    if not found:
        raise Refused(f"there is no DICOM image in {folder}")
    return {uid: Series(uid, list(slices.values())) for uid, slices in found.items()}


def choose(found: dict[str, Series], modality: str, uid: str | None) -> Series:
    """Choose the series to work on: the one that is asked for, else the one of this modality with the most images.

    Whether it makes a volume is not looked at: another phase or another kernel must not stand in unasked for a series
    that is damaged.

    Args:
        found: What there is.
        modality: Value of Modality (0008,0060).
        uid: Series Instance UID; None: choose.

    Raises:
        Refused: There is none such.
    """
    listing = "; ".join(str(each) for each in found.values())
    if uid is not None:
        if uid not in found:
            raise Refused(f"there is no series {uid}; there is {listing}")
        return found[uid]
    candidates = [each for each in found.values() if each.modality == modality]
    if not candidates:
        raise Refused(f"there is no {modality} series; there is {listing}")
    candidates.sort(key=_preference)
    for other in candidates[1:]:
        say(f"not chosen: {other}")
    return candidates[0]


def _preference(series: Series) -> tuple[int, int, str]:
    number = series.slices[0].header.get("SeriesNumber")
    return (-len(series.slices), 0 if number is None else int(number), series.uid)


def arrange(series: Series) -> tuple[list[Slice], Grid]:
    """Return a series' slices in the order of their places, and the grid that they make.

    Raises:
        Refused: They make no volume; the message says which rule is broken, and where.
    """
    slices = series.slices
    if len(slices) < 2:
        raise Refused(f"{series}: one image makes no volume")
    for each in slices:
        _check_single(series, each)
    _check_alike(series)
    rows = np.array(slices[0].header.ImageOrientationPatient, dtype=float)
    across, down = rows[:3], rows[3:]
    if abs(across @ down) > 1e-3 or abs(np.linalg.norm(rows) - 2**0.5) > 1e-3:
        raise Refused(
            f"{series}: the directions of its rows and columns are not unit vectors at right angles"
        )
    normal = np.cross(across, down)
    placed = sorted(slices, key=lambda each: float(_position(each) @ normal))
    spacing = _slice_spacing(series, placed, normal)
    row_spacing, column_spacing = map(float, slices[0].header.PixelSpacing)
    return placed, Grid(
        size=(int(slices[0].header.Columns), int(slices[0].header.Rows), len(slices)),
        spacing=(column_spacing, row_spacing, spacing),
        origin=_position(placed[0]),
        direction=np.column_stack([across, down, normal]),
    )


def _position(each: Slice) -> Vector:
    return np.array(each.header.ImagePositionPatient, dtype=float)


def _check_single(series: Series, each: Slice) -> None:
    header = each.header
    if int(header.get("NumberOfFrames") or 1) > 1:
        raise Refused(
            f"{series}: {each.path.name} has several frames; only single-frame images are taken"
        )
    if int(header.get("SamplesPerPixel", 1)) != 1:
        raise Refused(f"{series}: {each.path.name} is in colour")
    for keyword, count in {
        "ImagePositionPatient": 3,
        "ImageOrientationPatient": 6,
        "PixelSpacing": 2,
    }.items():
        try:
            numbers = np.array(header[keyword].value, dtype=float)
        except (KeyError, TypeError, ValueError):
            numbers = np.empty(0)
        if numbers.shape != (count,) or not np.isfinite(numbers).all():
            raise Refused(f"{series}: {each.path.name} has no {keyword} of {count} numbers")


def _check_alike(series: Series) -> None:
    first = series.slices[0]
    for each in series.slices[1:]:
        for keyword in ("Rows", "Columns", "FrameOfReferenceUID"):
            ours, theirs = first.header.get(keyword), each.header.get(keyword)
            if ours != theirs:
                raise Refused(
                    f"{series}: {keyword} is {ours} in {first.path.name} and {theirs} in {each.path.name}; "
                    "a volume has one"
                )
        for keyword in ("PixelSpacing", "ImageOrientationPatient"):
            values = [np.array(one.header[keyword].value, dtype=float) for one in (first, each)]
            if np.abs(values[0] - values[1]).max() > ORIENTATION_TOLERANCE:
                raise Refused(
                    f"{series}: {keyword} is {_text(values[0])} in {first.path.name} and {_text(values[1])} in "
                    f"{each.path.name}; a volume has one (is a localizer among the slices?)"
                )


def _text(values: Vector) -> str:
    return "\\".join(f"{value:g}" for value in values)


def _slice_spacing(series: Series, placed: list[Slice], normal: Vector) -> float:
    """Return millimetres from slice to slice, after a look at each.

    Raises:
        Refused: Two are at one place, some are missing, or they slide sideways (a tilted gantry).
    """
    positions = [_position(each) for each in placed]
    steps = np.array([float((after - before) @ normal) for before, after in pairwise(positions)])
    usual = float(np.median(steps))
    for index, step in enumerate(steps):
        where = f"{placed[index].path.name} and {placed[index + 1].path.name}"
        if step < 0.001:
            raise Refused(
                f"{series}: {where} are at the same place; are there several phases in one series?"
            )
        if abs(step - usual) > SPACING_TOLERANCE * usual:
            missing = round(step / usual) - 1
            raise Refused(
                f"{series}: {step:g} mm lie between {where}, {usual:g} mm between most slices"
                + (f"; about {missing} are missing" if missing > 0 else "")
            )
    way = positions[-1] - positions[0]
    along = float(way @ normal)
    sideways = float(np.linalg.norm(way - along * normal))
    if sideways > TILT_TOLERANCE * along:
        raise Refused(
            f"{series}: its slices slide {sideways:.1f} mm sideways over {along:.1f} mm (a tilted gantry): "
            "resample it to an upright grid first"
        )
    return along / (len(placed) - 1)
