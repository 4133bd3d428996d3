"""segmentation: a volume becomes a label map of the lungs and of a dense, round lesion in them.

It stands where the pipeline has an AI operator, since no trained model can be shipped here. It is classical image
processing (thresholds, connected components, morphology), not AI, and not a medical device; it looks at lungs, not at the
liver. What it takes and writes is what the AI operator takes and writes, so that a real one drops in.

Input: a folder with one ``X.mhd`` in Hounsfield units. Output: ``X.output.mhd`` and ``.raw``, the label map on the same grid
(8 bits; 0: nothing), and ``X.output.json``, what its values mean and what made it.
"""

import argparse
import math
import sys
from pathlib import Path
from typing import Any

import SimpleITK

from liver_tumor import description, metaimage
from liver_tumor.description import Algorithm, Code, Description, Segment
from liver_tumor.step import Refused, only_input, only_output, run, say

AIR_HU = -320
"""Below it is air or lung."""
LUNG_ML = 300.0
"""Smaller pieces of air inside the body are not taken for lung: bowel, windpipe."""
CLOSING_MM = 25.0
"""Gaps in the lungs up to twice as wide are looked at for a lesion."""
LESION_HU = (-200, 300)
"""What a lesion's values lie between: soft tissue, neither lung nor bone."""
VESSEL_MM = 5.0
"""What is thinner than twice this is a vessel: part of the lung, and no lesion."""
LESION_ML = 3.0
"""Smaller lesions are not looked for."""
ROUNDNESS = 0.86
"""Surface of a sphere of the same volume, as a part of the lesion's; heart, hilum and diaphragm have less."""

LUNG, LESION = 1, 2

DESCRIPTION = Description(
    algorithm=Algorithm(
        name="Clara Results classical lung lesion stand-in",
        version="1",
        family=Code(value="123104", scheme="DCM", meaning="Morphological Operations"),
        type="AUTOMATIC",
        parameters={
            "air": f"below {AIR_HU} HU",
            "lung": f"at least {LUNG_ML:g} ml of air inside the body",
            "closing": f"{CLOSING_MM:g} mm",
            "lesion": f"{LESION_HU[0]} to {LESION_HU[1]} HU, at least {LESION_ML:g} ml",
            "opening": f"{VESSEL_MM:g} mm",
            "roundness": f"at least {ROUNDNESS:g}",
        },
        manufacturer="Clara Results examples",
    ),
    series_description="NOT AI, NOT A MEDICAL DEVICE: lungs, lesion",
    notice="NOT AI - NOT A MEDICAL DEVICE - NOT FOR DIAGNOSIS",
    segments=(
        Segment(
            value=LUNG,
            name="Lungs",
            color="#4cb5e6",
            category=Code(value="123037004", scheme="SCT", meaning="Anatomical Structure"),
            type=Code(value="39607008", scheme="SCT", meaning="Lung"),
        ),
        Segment(
            value=LESION,
            name="Lesion",
            color="#e6502d",
            category=Code(
                value="49755003", scheme="SCT", meaning="Morphologically Abnormal Structure"
            ),
            type=Code(value="52988006", scheme="SCT", meaning="Lesion"),
        ),
    ),
)


def segment(volume: Any) -> Any:
    """Return the label map of a volume: 1 is lung, 2 the largest dense and round lesion in it, if there is one.

    Args:
        volume: A SimpleITK image in Hounsfield units; the patient must be surrounded by air within the slices.

    Raises:
        Refused: There is no lung in it.
    """
    found = _lungs(volume)
    around = _around(found, CLOSING_MM)
    lungs = found[around]
    lesion = _lesion(volume[around], _closed(lungs, CLOSING_MM))
    solid = SimpleITK.And(_closed(lungs, VESSEL_MM), SimpleITK.Not(lesion))
    label = found * 0
    label[around] = SimpleITK.Cast(solid, SimpleITK.sitkUInt8) * LUNG + lesion * LESION
    return label


def _around(mask: Any, millimetres: float) -> tuple[slice, ...]:
    """Return the box around a mask with a margin of so many millimetres: to look at the rest would be of no use."""
    box = _shapes(mask).GetBoundingBox(1)
    return tuple(
        slice(max(0, start - margin), min(length, start + extent + margin))
        for start, extent, length, margin in zip(
            box[:3],
            box[3:],
            mask.GetSize(),
            [math.ceil(millimetres / spacing) + 1 for spacing in mask.GetSpacing()],
            strict=True,
        )
    )


def _lungs(volume: Any) -> Any:
    """Return the air that does not reach the slices' edges."""
    pieces = SimpleITK.ConnectedComponent(
        SimpleITK.BinaryThreshold(volume, upperThreshold=AIR_HU, lowerThreshold=-32768)
    )
    shapes = _shapes(pieces)
    columns, rows, _ = volume.GetSize()

    def inside(piece: int) -> bool:
        x, y, _, width, height, _ = shapes.GetBoundingBox(piece)
        return bool(x > 0 and y > 0 and x + width < columns and y + height < rows)

    found = [
        piece
        for piece in shapes.GetLabels()
        if inside(piece) and shapes.GetPhysicalSize(piece) > LUNG_ML * 1000
    ]
    if not found:
        raise Refused(
            f"no lung is in this volume: no {LUNG_ML:g} ml of air inside the body. This stand-in segments lungs only"
        )
    return _only(pieces, found)


def _lesion(volume: Any, lungs: Any) -> Any:
    """Return the largest dense and round thing in the lungs, which may be nothing."""
    low, high = LESION_HU
    dense = SimpleITK.And(
        lungs, SimpleITK.BinaryThreshold(volume, lowerThreshold=low, upperThreshold=high)
    )
    pieces = SimpleITK.ConnectedComponent(_opened(dense, VESSEL_MM))
    shapes = _shapes(pieces)
    round_ones = [
        piece
        for piece in shapes.GetLabels()
        if shapes.GetPhysicalSize(piece) > LESION_ML * 1000
        and shapes.GetRoundness(piece) >= ROUNDNESS
    ]
    return _only(pieces, sorted(round_ones, key=shapes.GetPhysicalSize)[-1:])


def _shapes(pieces: Any) -> Any:
    shapes: Any = SimpleITK.LabelShapeStatisticsImageFilter()
    shapes.Execute(pieces)
    return shapes


def _only(pieces: Any, wanted: list[int]) -> Any:
    """Return where one of the wanted pieces is."""
    chosen = pieces == -1
    for piece in wanted:
        chosen = SimpleITK.Or(chosen, pieces == piece)
    return chosen


def _closed(mask: Any, millimetres: float) -> Any:
    """Return a mask with its gaps filled that are no wider than twice so many millimetres."""
    grown = _grown(mask, millimetres)
    return SimpleITK.Or(mask, SimpleITK.Not(_grown(SimpleITK.Not(grown), millimetres)))


def _opened(mask: Any, millimetres: float) -> Any:
    """Return a mask without what is no thicker than twice so many millimetres."""
    shrunk = SimpleITK.Not(_grown(SimpleITK.Not(mask), millimetres))
    return SimpleITK.And(mask, _grown(shrunk, millimetres))


def _grown(mask: Any, millimetres: float) -> Any:
    """Return all that is no further from a mask than so many millimetres.

    By a map of distances, whose cost does not grow with the distance as that of a structuring element does.
    """
    distance = SimpleITK.SignedMaurerDistanceMap(
        mask, insideIsPositive=False, squaredDistance=False, useImageSpacing=True
    )
    return distance <= millimetres


def convert(folder: Path, output: Path) -> None:
    """Write the label map of a folder's volume, and its description.

    Raises:
        Refused: There is no such volume, or no lung in it.
        OSError: A file can't be written.
    """
    path = metaimage.only(folder, metaimage.VOLUME)
    say(f"{DESCRIPTION.notice}: {DESCRIPTION.algorithm.name}")
    say(f"reading {path.name}")
    label = segment(metaimage.read(path))
    metaimage.write(label, output / f"{path.stem}{metaimage.LABEL}")
    description.write(DESCRIPTION, output / f"{path.stem}.output.json")
    shapes = _shapes(label)
    for each in DESCRIPTION.segments:
        millilitres = (
            shapes.GetPhysicalSize(each.value) / 1000 if each.value in shapes.GetLabels() else 0
        )
        say(f"{each.name}: {millilitres:.1f} ml")


def main() -> int:
    """Run the operator, and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="segmentation",
        description=f"Segment lungs and a lesion in a CT volume. {DESCRIPTION.notice}.",
    )
    parser.add_argument("--input", type=Path, help="folder with one MHD volume")
    parser.add_argument("--output", type=Path, help="folder for the label map; empty or missing")
    given = parser.parse_args()
    return run("segmentation", lambda: convert(only_input(given.input), only_output(given.output)))


if __name__ == "__main__":
    sys.exit(main())
