"""Preview images: three planes with the labels over them, as a radiologist looks at them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK
from PIL import Image

from clara_results.agents.render.grid import Grid

EDGE = 320
"""Pixels of the longer edge."""
OPACITY = 0.45
_CT_WINDOW = (-160.0, 240.0)
_PERCENTILES = (1.0, 99.0)


@dataclass(frozen=True, slots=True)
class Layer:
    """A label map and what it looks like: its voxels, [k, j, i], and colours ``#rrggbb`` by value."""

    voxels: Any
    colors: dict[int, str]


def draw(
    volume: Any,
    layers: Sequence[Layer],
    grid: Grid,
    index: Sequence[int],
    modality: str | None,
    folder: Path,
) -> dict[str, Path]:
    """Draw the planes through a voxel, nearest to the axial, coronal and sagittal one.

    In the radiological convention: the patient's right is at the left of the image, front and head are up.

    Args:
        volume: The voxels, [k, j, i].
        layers: What lies over it.
        grid: Where they are.
        index: The voxel, (i, j, k).
        modality: Of the volume; of it the window.
        folder: Where to.

    Returns:
        Paths by plane.
    """
    order, flips = _towards_lps(grid)
    at = [
        grid.dims[axis] - 1 - index[axis] if flip else index[axis]
        for axis, flip in zip(order, flips, strict=True)
    ]
    x, y, z = (grid.spacing[axis] for axis in order)
    turned = _turn(volume, order, flips)
    overlays = [(_turn(layer.voxels, order, flips), layer.colors) for layer in layers]
    # Of [z, y, x] towards head, back and left: which plane, whether its head is to be up, and how far apart its pixels are.
    planes = {
        "axial": ((at[2], slice(None), slice(None)), False, (y, x)),
        "coronal": ((slice(None), at[1], slice(None)), True, (z, x)),
        "sagittal": ((slice(None), slice(None), at[0]), True, (z, y)),
    }
    window = _CT_WINDOW if modality == "CT" else None
    paths = {}
    for name, (which, up, spacing) in planes.items():
        plane = turned[which][::-1] if up else turned[which]
        shown = [(voxels[which][::-1] if up else voxels[which], colors) for voxels, colors in overlays]  # fmt: skip
        paths[name] = folder / f"{name}.png"
        _scaled(_drawn(plane, shown, window), spacing).save(paths[name], optimize=True)
    return paths


def _towards_lps(grid: Grid) -> tuple[list[int], list[bool]]:
    """Return which of a grid's axes goes along x, y and z, and whether it goes the other way."""
    codes = SimpleITK.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(grid.direction)
    order, flips = [], []
    for pair in ("LR", "PA", "SI"):
        axis = next(number for number, code in enumerate(codes) if code in pair)
        order.append(axis)
        flips.append(codes[axis] != pair[0])
    return order, flips


def _turn(volume: Any, order: Sequence[int], flips: Sequence[bool]) -> Any:
    """Return voxels [k, j, i] as [z, y, x], without a copy."""
    turned = volume.transpose([2 - axis for axis in reversed(order)])
    return turned[tuple(slice(None, None, -1 if flip else 1) for flip in reversed(flips))]


def _drawn(
    plane: Any, layers: Sequence[tuple[Any, dict[int, str]]], window: tuple[float, float] | None
) -> Image.Image:
    values = plane.astype(np.float32)
    low, high = window or (float(each) for each in np.percentile(values, _PERCENTILES))
    grey = np.clip((values - low) / max(high - low, 1e-6), 0, 1) * 255
    rgb = np.repeat(grey[:, :, np.newaxis], 3, axis=2)
    for voxels, colors in layers:
        for value in np.unique(voxels):
            if int(value) in colors:
                color = np.array(list(bytes.fromhex(colors[int(value)][1:])), np.float32)
                marked = voxels == value
                rgb[marked] = rgb[marked] * (1 - OPACITY) + color * OPACITY
    return Image.fromarray(rgb.astype(np.uint8))


def _scaled(image: Image.Image, spacing: tuple[float, float]) -> Image.Image:
    height, width = image.height * spacing[0], image.width * spacing[1]
    scale = EDGE / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return image.resize(size, Image.Resampling.BICUBIC)
