"""From a group of files to what the browser gets: volumes as ``.nii.gz``, a reduced first look, previews, numbers."""

import hashlib
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK
from isal import isal_zlib

from clara_results.agents.render.content import Content, look
from clara_results.agents.render.faults import Unshowable
from clara_results.agents.render.grid import Grid
from clara_results.agents.render.labels import measure, printable
from clara_results.agents.render.planning import described
from clara_results.agents.render.previews import Layer, draw
from clara_results.agents.render.reading import numbers, read, read_labels
from clara_results.agents.render.source import Converted, Group, Made
from clara_results.domain import datasets as domain
from clara_results.wire.datasets import DatasetFile, LabelMap, LargestLabel, Previews, Volume

LARGE = 8 << 20
"""Voxels beyond which a volume gets a first look."""
LOOK = 4 << 20
"""Voxels that one has at the most."""
LEVEL = 3
"""Of ISA-L's: the smallest file, and on CT not slower than its others."""
CHUNK = 1 << 20
_KINDS = (
    (SimpleITK.sitkInt16, np.int16),
    (SimpleITK.sitkUInt16, np.uint16),
    (SimpleITK.sitkInt32, np.int32),
)
"""Types for whole numbers, in the order in which they are taken."""


def convert(folder: Path, group: Group, out: Path) -> Converted:
    """Make what the browser gets of a group.

    Args:
        folder: The task's files, by URI.
        group: What belongs together.
        out: Folder for what is made; there is nothing in it.

    Raises:
        Unshowable: A file can't be shown; the message names it.
    """
    return _Conversion(folder, group, out).run()


class _Conversion:
    def __init__(self, folder: Path, group: Group, out: Path) -> None:
        self._folder = folder
        self._group = group
        self._out = out
        self._made: list[Made] = []

    def run(self) -> Converted:
        density = self._group.density
        grid = density.grid
        if grid is None:
            raise Unshowable("a volume has a grid", code="unsupported-volume")
        image, content = _narrowed(_reading(self._folder, density))
        volume = self._volume("volume", density.name, image, content)
        factors = _factors(grid)
        look_image = SimpleITK.BinShrink(image, factors) if factors else None
        first_look = None if look_image is None else self._volume("look", density.name, look_image, content)  # fmt: skip
        labels: list[LabelMap] = []
        layers: list[Layer] = []
        maps: list[SimpleITK.Image] = []  # previews look at their voxels
        for label, map_ in self._label_maps(grid, look_image):
            labels.append(label)
            maps.append(map_)
            layers.append(Layer(numbers(map_), {one.value: one.color for one in label.values}))
        largest = _largest(labels)
        where = [size // 2 for size in grid.dims]
        if largest is not None:
            centre = next(one for one in labels[largest.label].values if one.value == largest.value).centre  # fmt: skip
            where = list(image.TransformPhysicalPointToIndex([-centre[0], -centre[1], centre[2]]))
        drawn = draw(numbers(image), layers, grid, where, density.modality, self._out)
        previews = {plane: self._note("preview", path, path.name).uri for plane, path in drawn.items()}  # fmt: skip
        return Converted(
            name=printable(self._group.name) or "Volume",
            modality=density.modality,
            unit=density.unit,
            volume=volume,
            first_look=first_look,
            labels=labels,
            largest_label=largest,
            previews=Previews(**previews),
            made=self._made,
        )

    def _label_maps(
        self, grid: Grid, look_image: SimpleITK.Image | None
    ) -> Sequence[tuple[LabelMap, SimpleITK.Image]]:
        found = []
        for label in self._group.labels:
            source = label.source
            try:
                maps = read_labels(self._folder, source, grid)
            except Unshowable as fault:
                raise at(source.uris[0], fault) from fault
            about = described(self._folder / label.description) if label.description else []
            for number, (image, segments) in enumerate(maps):
                name = source.name if len(maps) == 1 else f"{source.name} {number + 1}"
                label_map = self._label(name, image, grid, look_image, segments, about)
                found.append((label_map, image))  # fmt: skip
        return found

    def _label(
        self,
        name: str,
        image: SimpleITK.Image,
        grid: Grid,
        look_image: SimpleITK.Image | None,
        segments: Any,
        about: Any,
    ) -> LabelMap:
        values = measure(numbers(image), grid, segments, about)
        file = self._nifti("label", name, image)
        reduced = None
        if look_image is not None:
            small = SimpleITK.Resample(image, look_image, SimpleITK.Transform(), SimpleITK.sitkNearestNeighbor, 0, image.GetPixelID())  # fmt: skip
            reduced = self._nifti("look", name, small).uri
        return LabelMap(
            uri=file.uri,
            size=file.size,
            sha256=file.sha256,
            name=printable(name) or "Labels",
            first_look_uri=reduced,
            values=values,
        )

    def _volume(self, kind: str, name: str, image: SimpleITK.Image, content: Content) -> Volume:
        file = self._nifti(kind, name, image)
        return Volume(
            uri=file.uri,
            size=file.size,
            sha256=file.sha256,
            dims=list(image.GetSize()),
            spacing=list(image.GetSpacing()),
            value_range=[content.least, content.greatest],
            dtype=str(numbers(image).dtype),
        )

    def _nifti(self, kind: str, name: str, image: SimpleITK.Image) -> DatasetFile:
        """Write an image; SimpleITK's own compression takes five times as long."""
        plain = self._out / "plain.nii"
        SimpleITK.WriteImage(image, str(plain), useCompression=False)
        path = self._out / f"{len(self._made)}.nii.gz"
        press = isal_zlib.compressobj(LEVEL, isal_zlib.DEFLATED, 16 + zlib.MAX_WBITS)
        with plain.open("rb") as source, path.open("wb") as target:
            while piece := source.read(CHUNK):
                target.write(press.compress(piece))
            target.write(press.flush())
        plain.unlink()
        return self._note(kind, path, f"{plain_name(name)}.nii.gz")

    def _note(self, kind: str, path: Path, name: str) -> DatasetFile:
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        noted = DatasetFile(
            uri=domain.file_uri(kind, sha256, name), size=path.stat().st_size, sha256=sha256
        )
        self._made.append(Made(path=path.name, file=noted))
        return noted


def at(uri: str, fault: Unshowable) -> Unshowable:
    """Return a fault with the file that it is about."""
    fault.uri = uri
    return fault


def plain_name(name: str) -> str:
    """Return what a file made of something of that name is called: short, without what a file system minds."""
    return (
        "".join(c if c.isalnum() or c in "._-" else "_" for c in name)[:80].strip(".") or "volume"
    )


def _reading(folder: Path, density: Any) -> SimpleITK.Image:
    try:
        return read(folder, density)
    except Unshowable as fault:
        raise at(density.uris[0], fault) from fault


def _narrowed(image: SimpleITK.Image) -> tuple[SimpleITK.Image, Content]:
    """Return a volume in the smallest type that holds it, and what it holds.

    What is not finite becomes the least value that is: a viewer's window would have no end.
    """
    content = look(image)
    if not content.finite:
        values = np.nan_to_num(
            SimpleITK.GetArrayViewFromImage(image),
            nan=content.least,
            posinf=content.least,
            neginf=content.least,
        )
        finite = SimpleITK.GetImageFromArray(values)
        finite.CopyInformation(image)
        image = finite
    kind = SimpleITK.sitkFloat32
    if content.whole:
        kind = next((kind for kind, number in _KINDS if np.iinfo(number).min <= content.least and content.greatest <= np.iinfo(number).max), SimpleITK.sitkFloat32)  # fmt: skip
    return (image if image.GetPixelID() == kind else SimpleITK.Cast(image, kind)), content


def _factors(grid: Grid) -> list[int] | None:
    """Return by how many voxels each axis of a large volume is reduced for a first look, evenly in millimetres."""
    if grid.voxels <= LARGE:
        return None
    factors = [1, 1, 1]
    while True:
        voxels = 1
        for size, factor in zip(grid.dims, factors, strict=True):
            voxels *= size // factor
        if voxels <= LOOK:
            return factors
        reducible = [axis for axis in range(3) if grid.dims[axis] // (factors[axis] + 1) >= 1]
        finest = min(reducible, key=lambda axis: grid.spacing[axis] * factors[axis])
        factors[finest] += 1


def _largest(labels: Sequence[LabelMap]) -> LargestLabel | None:
    found = [
        (one.voxels, -number, one.value)
        for number, label in enumerate(labels)
        for one in label.values
    ]
    if not found:
        return None
    _, number, value = max(found)
    return LargestLabel(label=-number, value=value)
