"""dicom-reader: a DICOM series becomes a volume in MetaImage format (MHD), 16 bits, in the modality's own unit.

Input: a folder of DICOM files. Output: ``<Series Instance UID>.mhd`` and ``.raw``.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK

from liver_tumor import metaimage, series
from liver_tumor.step import Refused, only_input, only_output, run, say

_INT16 = np.iinfo(np.int16)


def read_volume(slices: list[series.Slice], grid: series.Grid) -> Any:
    """Return slices as a SimpleITK image of 16-bit integers, with each slice's own rescale applied (PS3.3 C.7.6.16.2.9).

    Args:
        slices: In the order of their places.
        grid: The grid that they make.

    Raises:
        Refused: A file can't be decoded, or a value does not fit 16 bits.
    """
    reader: Any = SimpleITK.ImageSeriesReader()
    reader.SetFileNames([str(each.path) for each in slices])
    reader.SetOutputPixelType(SimpleITK.sitkFloat32)  # else the first slice's type is forced on all
    try:
        values = SimpleITK.GetArrayFromImage(reader.Execute())
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise Refused(f"the pixels of {slices[0].path.parent} can't be read: {reason}") from error
    low, high = float(values.min()), float(values.max())
    if low < _INT16.min or high > _INT16.max:
        raise Refused(f"values from {low:g} to {high:g} do not fit 16 bits")
    image: Any = SimpleITK.GetImageFromArray(np.rint(values).astype(np.int16))
    image.SetSpacing(grid.spacing)
    image.SetOrigin(grid.origin.tolist())
    image.SetDirection(grid.direction.ravel().tolist())
    return image


def convert(dicom: Path, output: Path, modality: str, uid: str | None) -> Path:
    """Write the volume of a series in a folder of DICOM files.

    Args:
        dicom: The folder.
        output: Where to.
        modality: Which kind of series to choose.
        uid: Which series; None: that with the most images.

    Returns:
        The MHD file.

    Raises:
        Refused: There is no such series, or it makes no volume.
        OSError: A file can't be read or written.
    """
    chosen = series.choose(series.find(dicom), modality, uid)
    say(f"reading {chosen}")
    slices, grid = series.arrange(chosen)
    path = output / f"{chosen.uid}{metaimage.VOLUME}"
    metaimage.write(read_volume(slices, grid), path, chosen.modality)
    columns, rows, planes = grid.size
    spacing = " x ".join(f"{each:.4g}" for each in grid.spacing)
    say(f"wrote {path.name}: {columns} x {rows} x {planes} voxels of {spacing} mm")
    return path


def main() -> int:
    """Run the operator, and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="dicom-reader", description="Convert a DICOM series to an MHD volume."
    )
    parser.add_argument("--input", type=Path, help="folder of DICOM files")
    parser.add_argument("--output", type=Path, help="folder for the volume; empty or missing")
    parser.add_argument("--modality", default="CT", help="kind of series to choose (%(default)s)")
    parser.add_argument("--series", help="its UID; without it that with the most images is taken")
    given = parser.parse_args()

    def work() -> None:
        convert(only_input(given.input), only_output(given.output), given.modality, given.series)

    return run("dicom-reader", work)


if __name__ == "__main__":
    sys.exit(main())
