"""Volumes and label maps as SimpleITK images, whatever they were."""

from pathlib import Path
from typing import Any

import SimpleITK

from clara_results.agents.render import dicom, files, segmentation
from clara_results.agents.render.content import Content, look
from clara_results.agents.render.faults import Unshowable
from clara_results.agents.render.grid import Grid
from clara_results.agents.render.source import Kind, Source


def read(folder: Path, source: Source) -> SimpleITK.Image:
    """Read a volume: three dimensions, single numbers, on the source's grid.

    Raises:
        Unshowable: It can't be read.
    """
    if source.grid is None:
        raise Unshowable("it has no grid of its own", code="unsupported-volume")
    if source.kind is Kind.SERIES:
        return dicom.read_series(folder, source)
    if source.kind is Kind.SEGMENTATION:
        return segmentation.read_marked(folder, source)
    if source.kind is Kind.FRAMES:
        return dicom.read_frames(folder, source)
    return files.read_volume(folder / source.path, source.grid)


def read_labels(
    folder: Path, source: Source, grid: Grid
) -> list[tuple[SimpleITK.Image, list[segmentation.Segment]]]:
    """Read label maps on their volume's grid, as few bits as hold them, and what is known of what they mark.

    Raises:
        Unshowable: They can't be read, or hold something else than labels (``not-labels``).
    """
    if source.kind is Kind.SEGMENTATION:
        return segmentation.read_segmentation(folder, source, grid)
    image = read(folder, source)
    content = look(image)
    if not content.labels:
        raise Unshowable(
            f"it is no label map: it holds {_found(content)}; labels are whole numbers from 0, at most "
            f"{content.LABELS} different ones",
            code="not-labels",
        )
    kind = SimpleITK.sitkUInt8 if content.greatest < 256 else SimpleITK.sitkUInt16
    labels = image if image.GetPixelID() == kind else SimpleITK.Cast(image, kind)
    labels.SetSpacing(grid.spacing)
    labels.SetOrigin(grid.origin)
    labels.SetDirection(grid.direction)
    return [(labels, [])]


def _found(content: Content) -> str:
    if not content.whole:
        return "numbers that are not whole"
    if content.least < 0:
        return f"numbers below 0 (the least is {content.least:g})"
    return "many different numbers"


def numbers(image: SimpleITK.Image) -> Any:
    """Return an image's voxels as [k, j, i], without a copy; they live as long as the image."""
    return SimpleITK.GetArrayViewFromImage(image)
