"""dicom-writer: a label map becomes DICOM objects of the series that it was made from.

Inputs: a folder with ``X.output.mhd`` (the label map) and ``X.output.json`` (what its values mean), where X is the Series
Instance UID; and the folder with the original DICOM files. Output: ``segmentation.dcm``, and if asked for
``key-image-1.dcm`` … and ``report.dcm``.

Patient and study are the source's own, in its own character set. UIDs derive from job, series and content.
"""

import argparse
import os
import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK

from liver_tumor import description, metaimage, series
from liver_tumor.description import Description
from liver_tumor.dicom_reader import read_volume
from liver_tumor.results.identity import Origin
from liver_tumor.results.key_images import key_images
from liver_tumor.results.report import report
from liver_tumor.results.segments import Labels, segmentation
from liver_tumor.results.source import Source, source
from liver_tumor.step import JOB_ID, Refused, named_inputs, only_output, run, say

SEGMENTATION_INPUT = "segmentation"
GRID_TOLERANCE = 0.1
"""Millimetres that corners of label map and series may lie apart."""


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be written, of what.

    Attributes:
        segmentation: Folder of the label map and its description.
        dicom: Folder of the original series.
        output: Where to.
        job: The pipeline's job.
        series: Series Instance UID; None: the label map's name.
        key_images: Whether to write them.
        report: Whether to write one.
    """

    segmentation: Path
    dicom: Path
    output: Path
    job: str
    series: str | None
    key_images: bool
    report: bool


def write(order: Order) -> None:
    """Write the DICOM objects.

    Raises:
        Refused: Label map, description and series do not go together; the message says why.
        OSError: A file can't be read or written.
    """
    path = metaimage.only(order.segmentation, metaimage.LABEL)
    described = description.read(path.with_suffix(".json"))
    uid = order.series or path.name.removesuffix(metaimage.LABEL)
    taken = source(series.choose(series.find(order.dicom), "", uid))
    say(f"writing results of series {uid}")
    image = metaimage.read(path)
    check_grid(image, taken, path)
    labels = numbered(image, described, path)
    origin = Origin(taken, order.job)
    made, digest = segmentation(labels, described, origin)
    _save(made, order.output / "segmentation.dcm")
    if order.key_images:
        volume = SimpleITK.GetArrayFromImage(read_volume(taken.slices, taken.grid))
        for number, each in enumerate(key_images(volume, labels, described, origin, digest), 1):
            _save(each, order.output / f"key-image-{number}.dcm")
    if order.report:
        measured = report(labels, described, origin, made)
        if measured is None:
            say("nothing was segmented: there is nothing to report")
        else:
            _save(measured, order.output / "report.dcm")


def _save(instance: Any, path: Path) -> None:
    instance.save_as(path, enforce_file_format=True)
    say(f"wrote {path.name}: {instance.SOPClassUID.name} {instance.SOPInstanceUID}")


def check_grid(label: Any, taken: Source, path: Path) -> None:
    """Check that a label map lies on its series' grid.

    Raises:
        Refused: It does not.
    """
    grid = taken.grid
    if label.GetSize() != grid.size:
        raise Refused(
            f"{path.name} has {label.GetSize()} voxels, its series {grid.size}: resample it to the series' grid first"
        )
    apart = 0.0
    for corner in np.ndindex(2, 2, 2):
        index = [int(end) * (length - 1) for end, length in zip(corner, grid.size, strict=True)]
        ours = grid.origin + grid.direction @ (np.array(index) * grid.spacing)
        theirs = np.array(label.TransformIndexToPhysicalPoint(index))
        apart = max(apart, float(np.linalg.norm(ours - theirs)))
    if apart > GRID_TOLERANCE:
        raise Refused(
            f"{path.name} lies up to {apart:.4g} mm beside its series: resample it to the series' grid first"
        )


def numbered(label: Any, described: Description, path: Path) -> Labels:
    """Return a label map as segment numbers: 1 for the first that is described, and so on.

    Raises:
        Refused: It has a value that is not described.
    """
    values = SimpleITK.GetArrayFromImage(label)
    known = {segment.value: number for number, segment in enumerate(described.segments, 1)}
    unknown = sorted(set(np.unique(values).tolist()) - {0, *known})
    if unknown:
        raise Refused(
            f"{path.name} has the values {unknown[:5]}, which its description does not name"
        )
    labels = np.zeros(values.shape, np.uint8)
    for value, number in known.items():
        labels[values == value] = number
    return labels


def _order(given: Namespace) -> Order:
    """Return what the command line and the platform ask for.

    Raises:
        Refused: Something is missing or not clear.
    """
    folders = named_inputs()
    segmentation_folder = given.segmentation or folders.pop(SEGMENTATION_INPUT, None)
    others = list(folders.values())
    if segmentation_folder is None:
        if folders:
            raise Refused(f"no input is named {SEGMENTATION_INPUT}, but {', '.join(folders)}")
        segmentation_folder = Path("/input")
    if given.dicom is None and len(others) > 1:
        raise Refused(f"which input is the original series: {', '.join(folders)}? Give --dicom")
    job = given.job or os.environ.get(JOB_ID)
    if not job:
        raise Refused(f"the job is not known, and UIDs derive from it: set {JOB_ID}, or give --job")
    return Order(
        segmentation=segmentation_folder,
        dicom=given.dicom or (others[0] if others else Path("/dicom")),
        output=only_output(given.output),
        job=job,
        series=given.series,
        key_images=given.key_images,
        report=given.report,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the operator, and return its exit code.

    Args:
        arguments: Without the program's name; None: the process's own.
    """
    parser = argparse.ArgumentParser(
        prog="dicom-writer", description="Write a label map as DICOM objects of its series."
    )
    parser.add_argument("--segmentation", type=Path, help="folder of label map and description")
    parser.add_argument("--dicom", type=Path, help="folder of the original DICOM files")
    parser.add_argument("--output", type=Path, help="folder for the results; empty or missing")
    parser.add_argument("--job", help=f"the pipeline's job, of which UIDs derive (or {JOB_ID})")
    parser.add_argument("--series", help="UID of the original series (or the label map's name)")
    parser.add_argument(
        "--key-images", action="store_true", help="write secondary captures with outlines, too"
    )
    parser.add_argument(
        "--report", action="store_true", help="write a TID 1500 report of volumes, too"
    )
    given = parser.parse_args(arguments)
    return run("dicom-writer", lambda: write(_order(given)))


if __name__ == "__main__":
    sys.exit(main())
