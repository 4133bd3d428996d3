"""Volumes with a landmark, written in every way that a task's files may have."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK

DIMS = (7, 6, 5)
"""Voxels along i, j and k: none like another, so that no axis is mistaken for another."""
LANDMARK = (5, 1, 3)
"""The voxel (i, j, k) that is brightest."""
SPACING = (1.5, 2.0, 3.0)
ORIGIN = (10.0, -20.0, 30.0)
IDENTITY = (1.0, 0, 0, 0, 1, 0, 0, 0, 1)
FLIPPED = (-1.0, 0, 0, 0, 1, 0, 0, 0, -1)
MIRRORED = (-1.0, 0, 0, 0, 1, 0, 0, 0, 1)
TURNED = (0.0, 0, 1, 1, 0, 0, 0, -1, 0)
TILTED = (0.96, -0.28, 0.0, 0.28, 0.96, 0.0, 0.0, 0.0, 1.0)
OBLIQUE = (0.8, -0.36, 0.48, 0.6, 0.48, -0.64, 0.0, 0.8, 0.6)


def volume(
    direction: tuple[float, ...] = IDENTITY, kind: Any = np.int16, least: float = -1000
) -> SimpleITK.Image:
    """Return a volume with the landmark: all its values are different, the landmark's is the greatest."""
    values = np.arange(np.prod(DIMS)).reshape(DIMS[::-1]) + least
    values[LANDMARK[::-1]] = 2000
    image = SimpleITK.GetImageFromArray(values.astype(kind))
    image.SetSpacing(SPACING)
    image.SetOrigin(ORIGIN)
    image.SetDirection(direction)
    return image


def labels(direction: tuple[float, ...] = IDENTITY, kind: Any = np.uint8) -> SimpleITK.Image:
    """Return a label map on the same grid: 2 at the landmark and left and right of it, 1 at one corner."""
    values = np.zeros(DIMS[::-1], kind)
    i, j, k = LANDMARK
    values[k, j, i - 1 : i + 2] = 2
    values[0, 0, 0] = 1
    image = SimpleITK.GetImageFromArray(values)
    image.SetSpacing(SPACING)
    image.SetOrigin(ORIGIN)
    image.SetDirection(direction)
    return image


def write(image: SimpleITK.Image, path: Path, *, compressed: bool = False) -> Path:
    """Write an image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    SimpleITK.WriteImage(image, str(path), compressed)
    return path


def mhd(path: Path, drop: tuple[str, ...] = (), **fields: str) -> Path:
    """Write the volume as ``.mhd`` and ``.raw`` by hand, without some of the header's fields, or with others."""
    image = volume()
    header = {
        "ObjectType": "Image",
        "NDims": "3",
        "BinaryData": "True",
        "BinaryDataByteOrderMSB": "False",
        "CompressedData": "False",
        "TransformMatrix": "1 0 0 0 1 0 0 0 1",
        "Offset": " ".join(map(str, ORIGIN)),
        "ElementSpacing": " ".join(map(str, SPACING)),
        "DimSize": " ".join(map(str, DIMS)),
        "ElementType": "MET_SHORT",
        **fields,
        "ElementDataFile": fields.get("ElementDataFile", path.with_suffix(".raw").name),
    }
    lines = [f"{name} = {value}" for name, value in header.items() if name not in drop]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([*lines, ""]), encoding="utf-8")
    path.with_suffix(".raw").write_bytes(SimpleITK.GetArrayFromImage(image).tobytes())
    return path


def ras(image: SimpleITK.Image, index: tuple[int, ...]) -> list[float]:
    """Return where a voxel is, in NIfTI's coordinates."""
    x, y, z = image.TransformContinuousIndexToPhysicalPoint([float(at) for at in index])
    return [-x, -y, z]


def corners() -> list[tuple[int, ...]]:
    """Return the voxels at the corners."""
    return list(itertools.product(*[(0, size - 1) for size in DIMS]))
