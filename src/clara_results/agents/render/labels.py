"""What label maps mark: how much, where, in which colour."""

import colorsys
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from clara_results.agents.render.faults import Unshowable
from clara_results.agents.render.grid import Grid
from clara_results.agents.render.segmentation import Segment
from clara_results.wire.datasets import LabelValue

COLORS = (
    "#e6194b", "#3cb44b", "#4363d8", "#ffe119", "#f58231", "#42d4f4", "#f032e6", "#bfef45",
    "#fabed4", "#469990", "#dcbeff", "#9a6324", "#fffac8", "#aaffc3", "#808000", "#ffd8b1",
)  # fmt: skip
"""For what has no colour of its own: told apart from each other and from grey."""
VALUE_LIMIT = 1000
"""Different values that a label map may have."""
_COLOR = re.compile(r"#[0-9a-fA-F]{6}", re.ASCII)
_GOLDEN = 0.618034


def measure(
    labels: Any, grid: Grid, known: Sequence[Segment], described: Sequence[Mapping[str, Any]]
) -> list[LabelValue]:
    """Measure what a label map marks.

    Args:
        labels: Its voxels, [k, j, i].
        grid: Where they are.
        known: What is known of the values from the map's own file.
        described: The same from the JSON file beside it: ``value``, ``name``, ``color``; it goes before.

    Raises:
        Unshowable: It has too many different values (``not-labels``).
    """
    counts, sums = _counted(labels)
    values = [int(value) for value in np.flatnonzero(counts) if value]
    if len(values) > VALUE_LIMIT:
        raise Unshowable(
            f"it has {len(values)} different labels; up to {VALUE_LIMIT} are shown",
            code="not-labels",
        )
    means = {value: sums[:, value] / counts[value] for value in values}
    centres = _nearest(labels, means, grid)
    volume = float(np.prod(grid.spacing)) / 1000
    names = {one.number: one.name for one in known} | {one["value"]: str(one["name"]) for one in described}  # fmt: skip
    colors = {one.number: one.color for one in known if one.color} | {
        one["value"]: one["color"].lower()
        for one in described
        if _COLOR.fullmatch(str(one.get("color")))
    }
    return [
        LabelValue(
            value=value,
            name=printable(names.get(value)) or f"Label {value}",
            color=colors.get(value) or _color(number),
            volume_ml=round(int(counts[value]) * volume, 6),
            voxels=int(counts[value]),
            centre=centres[value],
        )
        for number, value in enumerate(values)
    ]


def printable(text: str | None) -> str:
    """Return text as a dataset holds it: at most 255 printable characters."""
    return "".join(c for c in text or "" if c.isprintable())[:255].strip()


def ras(point: Sequence[float]) -> list[float]:
    """Return a point in NIfTI's coordinates (RAS+) that is in DICOM's and ITK's (LPS+)."""
    return [round(value, 4) + 0.0 for value in (-point[0], -point[1], point[2])]


def _counted(labels: Any) -> tuple[Any, Any]:
    """Return for each value how many voxels have it, and the sums of their i, j and k."""
    most = int(labels.max(initial=0)) + 1
    counts = np.zeros(most, np.int64)
    sums = np.zeros((3, most))
    for k, layer in enumerate(labels):
        j, i = np.nonzero(layer)
        if not j.size:
            continue
        marked = layer[j, i]
        here = np.bincount(marked, minlength=most)
        counts += here
        sums[0] += np.bincount(marked, i, most)
        sums[1] += np.bincount(marked, j, most)
        sums[2] += here * k
    return counts, sums


def _nearest(labels: Any, means: Mapping[int, Any], grid: Grid) -> dict[int, list[float]]:
    """Return for each value its voxel that is nearest to its middle, which may lie outside of it."""
    found: dict[int, list[float]] = {}
    for value, mean in means.items():
        middle = (round(mean[0]), round(mean[1]), round(mean[2]))
        if labels[middle[::-1]] == value:
            found[value] = ras(grid.point(middle))
    best: dict[int, tuple[float, tuple[int, int, int]]] = {}
    missing = [value for value in means if value not in found]
    for k, layer in enumerate(labels if missing else []):
        for value in missing:
            j, i = np.nonzero(layer == value)
            if not j.size:
                continue
            mean = means[value]
            off = ((i - mean[0]) * grid.spacing[0]) ** 2 + ((j - mean[1]) * grid.spacing[1]) ** 2
            at = int(off.argmin())
            distance = float(off[at]) + ((k - mean[2]) * grid.spacing[2]) ** 2
            if value not in best or distance < best[value][0]:
                best[value] = (distance, (int(i[at]), int(j[at]), k))
    return found | {value: ras(grid.point(index)) for value, (_, index) in best.items()}


def _color(number: int) -> str:
    if number < len(COLORS):
        return COLORS[number]
    rgb = colorsys.hsv_to_rgb(number * _GOLDEN % 1, 0.65, 0.95)
    return "#" + "".join(f"{round(part * 255):02x}" for part in rgb)
