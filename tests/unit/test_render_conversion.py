"""From files to what the browser gets: where its voxels are, what they hold, and what is said of labels."""

import gzip
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("isal", reason="clara-results[render] is not installed")
import SimpleITK
from PIL import Image

from clara_results.agents.render.conversion import convert
from clara_results.agents.render.faults import Unshowable
from clara_results.agents.render.planning import plan
from clara_results.agents.render.source import Converted
from tests.support import volumes
from tests.support.volumes import (
    DIMS,
    FLIPPED,
    IDENTITY,
    LANDMARK,
    MIRRORED,
    OBLIQUE,
    SPACING,
    TILTED,
    TURNED,
    labels,
    mhd,
    ras,
    volume,
    write,
)

DIRECTIONS = {
    "straight": IDENTITY,
    "flipped": FLIPPED,
    "mirrored": MIRRORED,
    "turned": TURNED,
    "oblique": OBLIQUE,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Give the folder of a task's files."""
    path = tmp_path / "files"
    path.mkdir()
    return path


def converted(folder: Path) -> Converted:
    """Convert the one dataset that is in a folder."""
    uris = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    made = plan(folder, uris)
    assert made.verdicts == []
    (group,) = made.groups
    out = folder.parent / "made"
    out.mkdir()
    return convert(folder, group, out)


class Nifti:
    """A file that was made, read by hand as NiiVue does: sform, else qform."""

    def __init__(self, folder: Path, made: Converted, uri: str) -> None:
        (one,) = [one for one in made.made if one.file.uri == uri]
        data = gzip.decompress((folder.parent / "made" / one.path).read_bytes())
        assert struct.unpack_from("<i", data)[0] == 348
        self.dims = struct.unpack_from("<8h", data, 40)
        (self.datatype,) = struct.unpack_from("<h", data, 70)
        pixdim = struct.unpack_from("<8f", data, 76)
        assert struct.unpack_from("<2f", data, 112) in {(1.0, 0.0), (0.0, 0.0)}  # no rescaling
        qform, sform = struct.unpack_from("<2h", data, 252)
        assert qform > 0
        assert sform > 0
        b, c, d, *offset = struct.unpack_from("<6f", data, 256)
        self.sform = np.array(struct.unpack_from("<12f", data, 280)).reshape(3, 4)
        self.qform = quaternion(b, c, d, offset, pixdim)
        kinds = {2: np.uint8, 4: np.int16, 8: np.int32, 16: np.float32, 512: np.uint16}
        (start,) = struct.unpack_from("<f", data, 108)
        values = np.frombuffer(data, kinds[self.datatype], offset=int(start))
        self.values = values.reshape(self.dims[3], self.dims[2], self.dims[1])

    def point(self, index: tuple[int, ...], matrix: str = "sform") -> list[float]:
        return list(getattr(self, matrix) @ [*index, 1.0])


def quaternion(b: float, c: float, d: float, offset: list[float], pixdim: Any) -> Any:
    """Return the matrix of a qform (nifti1.h, METHOD 2)."""
    a = max(0.0, 1 - b * b - c * c - d * d) ** 0.5
    turn = np.array([
        [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
        [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
        [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
    ])  # fmt: skip
    scale = [pixdim[1], pixdim[2], pixdim[3] * (-1 if pixdim[0] < 0 else 1)]
    return np.column_stack([turn * scale, offset])


@pytest.mark.parametrize("direction", DIRECTIONS.values(), ids=DIRECTIONS)
@pytest.mark.parametrize("name", ["ct.mhd", "ct.mha", "ct.nii", "ct.nii.gz", "z.mhd", "z.mha"])
def test_each_voxel_is_where_it_was(folder: Path, name: str, direction: tuple[float, ...]) -> None:
    image = volume(direction)
    write(image, folder / name, compressed=name.startswith("z"))
    nifti = Nifti(folder, made := converted(folder), made.volume.uri)
    assert nifti.dims[:4] == (3, *DIMS)
    for index in [*volumes.corners(), LANDMARK]:
        for matrix in ("sform", "qform"):
            assert nifti.point(index, matrix) == pytest.approx(ras(image, index), abs=1e-3)
    assert nifti.values[LANDMARK[::-1]] == 2000
    assert (nifti.values == SimpleITK.GetArrayFromImage(image)).all()
    assert made.volume.dims == list(DIMS)
    assert made.volume.spacing == pytest.approx(SPACING)
    assert made.volume.value_range == [-1000, 2000]
    assert made.volume.dtype == "int16"


def test_a_header_without_matrix_is_straight(folder: Path) -> None:
    mhd(folder / "ct.mhd", drop=("TransformMatrix",))
    nifti = Nifti(folder, made := converted(folder), made.volume.uri)
    for index in [*volumes.corners(), LANDMARK]:
        assert nifti.point(index) == pytest.approx(ras(volume(), index), abs=1e-4)
    assert nifti.values[LANDMARK[::-1]] == 2000


@pytest.mark.parametrize(
    ("kind", "least", "shown"),
    [
        (np.int16, -1000, "int16"),
        (np.uint8, 0, "int16"),
        (np.float64, -1000, "int16"),
        (np.int32, 40_000, "uint16"),
        (np.float32, -40_000, "int32"),
        (np.float32, 0.5, "float32"),
    ],
)
def test_numbers_stay_what_they_are(folder: Path, kind: Any, least: float, shown: str) -> None:
    image = volume(kind=kind, least=least)
    write(image, folder / "a.mhd")
    nifti = Nifti(folder, made := converted(folder), made.volume.uri)
    assert made.volume.dtype == shown
    assert (nifti.values == SimpleITK.GetArrayFromImage(image)).all()


def test_what_is_not_finite_is_shown_as_the_least(folder: Path) -> None:
    values = SimpleITK.GetArrayFromImage(volume(kind=np.float32, least=0.5))
    values[0, 0, :3] = np.nan, np.inf, -np.inf
    write(SimpleITK.GetImageFromArray(values), folder / "a.mha")
    nifti = Nifti(folder, made := converted(folder), made.volume.uri)
    assert made.volume.value_range == [3.5, 2000]
    assert list(nifti.values[0, 0, :4]) == [3.5, 3.5, 3.5, 3.5]


@pytest.mark.parametrize("direction", DIRECTIONS.values(), ids=DIRECTIONS)
def test_labels_are_measured(folder: Path, direction: tuple[float, ...]) -> None:
    write(volume(direction), folder / "ct.mhd")
    write(labels(direction), folder / "ct.output.mhd")
    segments = [{"value": 2, "name": "Tumour", "color": "#AA0000"}, {"value": 7, "name": "none"}]
    (folder / "ct.output.json").write_text(json.dumps({"segments": segments}))
    made = converted(folder)
    (map_,) = made.labels
    one, two = map_.values
    assert (one.value, one.name, one.voxels) == (1, "Label 1", 1)
    assert (two.value, two.name, two.voxels, two.color) == (2, "Tumour", 3, "#aa0000")
    assert two.volume_ml == pytest.approx(3 * 1.5 * 2 * 3 / 1000)
    assert two.centre == pytest.approx(ras(volume(direction), LANDMARK), abs=1e-3)
    assert made.largest_label is not None
    assert (made.largest_label.label, made.largest_label.value) == (0, 2)
    nifti = Nifti(folder, made, map_.uri)
    assert nifti.datatype == 2
    assert nifti.point(LANDMARK) == pytest.approx(two.centre, abs=1e-3)
    assert (nifti.values == SimpleITK.GetArrayFromImage(labels())).all()


def test_the_centre_of_a_ring_is_in_the_ring(folder: Path) -> None:
    values = np.zeros((5, 9, 9), np.uint8)
    values[2, 1:8, 1:8] = 1
    values[2, 2:7, 2:7] = 0
    write(SimpleITK.GetImageFromArray(np.zeros((5, 9, 9), np.int16) - 1), folder / "a.mhd")
    write(SimpleITK.GetImageFromArray(values), folder / "a.output.mhd")
    x, y, z = converted(folder).labels[0].values[0].centre
    assert values[round(z), round(-y), round(-x)] == 1


def test_labels_that_are_none_are_refused(folder: Path) -> None:
    write(volume(), folder / "ct.mhd")
    write(volume(), folder / "ct.output.mhd")
    with pytest.raises(Unshowable, match="numbers below 0") as refused:
        converted(folder)
    assert (refused.value.code, refused.value.uri) == ("not-labels", "ct.output.mhd")


def test_a_large_volume_has_a_first_look(folder: Path) -> None:
    values = np.zeros((140, 256, 256), np.int16)
    values[:, 100:140, 100:140] = 500
    image = SimpleITK.GetImageFromArray(values)
    image.SetSpacing((0.5, 0.5, 1.0))
    image.SetDirection(OBLIQUE)
    write(image, folder / "ct.nii")
    marked = SimpleITK.Cast(image == 500, SimpleITK.sitkUInt8)
    write(marked, folder / "ct.output.nii")
    made = converted(folder)
    look = made.first_look
    assert look is not None
    assert look.dims == [128, 128, 140]
    assert look.spacing == pytest.approx([1, 1, 1])
    (label,) = made.labels
    assert label.first_look_uri is not None
    small, mask = Nifti(folder, made, look.uri), Nifti(folder, made, label.first_look_uri)
    assert mask.values.shape == small.values.shape
    assert ((mask.values == 1) == (small.values == 500)).all()
    index = (60, 60, 70)
    expected = ras(image, (120, 120, 70))
    assert np.linalg.norm(np.subtract(small.point(index), expected)) < 0.6  # half a large voxel
    assert made.largest_label is not None


@pytest.mark.parametrize("direction", [IDENTITY, FLIPPED, MIRRORED, TURNED, TILTED])
def test_previews_are_in_the_radiological_convention(
    folder: Path, direction: tuple[float, ...]
) -> None:
    size, spacing = (24, 28, 32), (1.0, 1.0, 1.0)
    image = SimpleITK.Image(size, SimpleITK.sitkInt16) - 1000
    image.SetSpacing(spacing)
    image.SetDirection(direction)
    middle = image.TransformContinuousIndexToPhysicalPoint([11.5, 13.5, 15.5])
    voxels = SimpleITK.GetArrayFromImage(image)
    for k, j, i in np.ndindex(voxels.shape):
        x, y, z = np.subtract(image.TransformIndexToPhysicalPoint((i, j, k)), middle)
        voxels[k, j, i] = 1000 if x > 3 and y > 3 and z > 3 else -1000  # left, back, head
    bright = SimpleITK.GetImageFromArray(voxels)
    bright.CopyInformation(image)
    write(bright, folder / "a.mhd", compressed=False)
    at = [round(each) for each in image.TransformPhysicalPointToContinuousIndex(np.add(middle, 6))]
    seed = np.zeros(voxels.shape, np.uint8)
    seed[at[2], at[1], at[0]] = 1  # so that the planes go through the bright octant
    mask = SimpleITK.GetImageFromArray(seed)
    mask.CopyInformation(image)
    write(mask, folder / "a.output.mhd")
    made = converted(folder)
    expected = {  # (row, column) of the bright quarter: down is back or feet, right is left or back
        "axial": (1, 1),
        "coronal": (0, 1),
        "sagittal": (0, 1),
    }
    for plane, quarter in expected.items():
        picture = np.array(Image.open(folder.parent / "made" / f"{plane}.png").convert("L"), float)
        rows, columns = picture.shape[0] // 2, picture.shape[1] // 2
        quarters = {
            (row, column): picture[
                row * rows : (row + 1) * rows, column * columns : (column + 1) * columns
            ].mean()
            for row in (0, 1)
            for column in (0, 1)
        }
        assert max(quarters, key=lambda each: quarters[each]) == quarter, plane
    assert made.previews.axial.startswith("preview/")


def test_the_same_files_make_the_same_dataset(folder: Path) -> None:
    write(volume(), folder / "ct.mhd")
    write(labels(), folder / "ct.output.mhd")
    first = converted(folder)
    (folder.parent / "made").rename(folder.parent / "before")
    assert converted(folder) == first
