"""DICOM series, multi-frame images and segmentations as volumes: each pixel where its file says that it is."""

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

pytest.importorskip("isal", reason="clara-results[render] is not installed")
import SimpleITK
from pydicom import Dataset, dcmread
from pydicom.sequence import Sequence
from pydicom.uid import (
    EnhancedCTImageStorage,
    RLELossless,
    generate_uid,
)

from clara_results.agents.render.planning import plan
from clara_results.agents.render.reading import numbers, read, read_labels
from clara_results.agents.render.source import Group, Kind, Plan
from tests.support.slices import (
    APART,
    AXIAL,
    COLUMNS,
    ORIENTATIONS,
    ROWS,
    SLICES,
    SPACING,
    mask,
    multi_frame,
    of_slice,
    pixels,
    place,
    segmentation,
    write_series,
)

if TYPE_CHECKING:
    from tests.conftest import CtWriter


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Give the folder of a task's files."""
    path = tmp_path / "files"
    path.mkdir()
    return path


def planned(folder: Path) -> Plan:
    return plan(folder, [path.relative_to(folder).as_posix() for path in folder.rglob("*.dcm")])


def only(folder: Path) -> Group:
    made = planned(folder)
    assert made.verdicts == []
    (group,) = made.groups
    return group


def where(orientation: tuple[float, ...], index: tuple[int, int, int]) -> Any:
    """Return where a pixel is: PS3.3 C.7.6.2.1.1."""
    i, j, k = index
    across, down = np.array(orientation[:3]), np.array(orientation[3:])
    return place(orientation, k) + across * SPACING[1] * i + down * SPACING[0] * j


def check_places(image: SimpleITK.Image, orientation: tuple[float, ...]) -> None:
    for index in itertools.product((0, COLUMNS - 1), (0, ROWS - 1), range(SLICES)):
        point = image.TransformIndexToPhysicalPoint(index)
        assert point == pytest.approx(where(orientation, index), abs=1e-3)
        assert image[index] == pixels(index[2])[index[1], index[0]] - 1024


@pytest.mark.parametrize("orientation", ORIENTATIONS.values(), ids=ORIENTATIONS)
def test_a_series_lies_where_its_files_say(
    folder: Path, write_ct: "CtWriter", orientation: tuple[float, ...]
) -> None:
    names = write_series(folder, write_ct, orientation)
    group = only(folder)
    assert group.density.uris == names
    assert (group.density.modality, group.density.unit) == ("CT", "HU")
    check_places(read(folder, group.density), orientation)


def test_compressed_images_are_decoded(folder: Path, write_ct: "CtWriter") -> None:
    write_series(folder, write_ct)
    for path in folder.iterdir():
        image = dcmread(path)
        image.compress(RLELossless)
        image.save_as(path)
    check_places(read(folder, only(folder).density), AXIAL)


def test_each_slice_is_rescaled_as_it_says(folder: Path, write_ct: "CtWriter") -> None:
    names = write_series(folder, write_ct)
    for name in names[1:]:
        spoil(folder, name, RescaleSlope="0.25")
    image = read(folder, only(folder).density)
    for number in range(SLICES):
        expected = pixels(number)[1, 3] * (0.25 if number else 1) - 1024
        assert image[3, 1, number] == expected


@pytest.mark.parametrize(
    "changes",
    [
        {"ImageOrientationPatient": [1, 0, 0]},
        {"ImagePositionPatient": [1, 2]},
        {"ImagePositionPatient": ["nan", 0, 0]},
        {"ImagePositionPatient": ["1e400", 0, 0]},
        {"PixelSpacing": [0, 1]},
    ],
)
@pytest.mark.filterwarnings("ignore:Invalid value for VR")
def test_an_image_that_is_nowhere_does_not_keep_back_the_others(
    folder: Path, write_ct: "CtWriter", changes: dict[str, Any]
) -> None:
    write_ct(folder / "bad/x.dcm", SeriesInstanceUID="1.2.3.4", **of_slice(AXIAL, 0, **changes))
    names = write_series(folder, write_ct)
    made = planned(folder)
    assert [group.density.uris for group in made.groups] == [names]
    assert [verdict.uri for verdict in made.verdicts] == ["bad/x.dcm"]


def test_a_slice_that_is_no_dicom_any_more_is_refused(folder: Path, write_ct: "CtWriter") -> None:
    write_series(folder, write_ct)
    path = folder / "4.dcm"
    path.write_bytes(bytes(path.stat().st_size))
    assert verdicts(folder)["4.dcm"] == ("damaged", True)


@pytest.mark.parametrize("orientation", ORIENTATIONS.values(), ids=ORIENTATIONS)
def test_an_enhanced_image_lies_where_its_frames_say(
    folder: Path, orientation: tuple[float, ...]
) -> None:
    order = [3, 0, 4, 1, 2]
    image = multi_frame(folder / "a.dcm", EnhancedCTImageStorage, orientation, order)
    rescale = Dataset()
    rescale.RescaleSlope, rescale.RescaleIntercept = 1, -1024
    image.SharedFunctionalGroupsSequence[0].PixelValueTransformationSequence = Sequence([rescale])
    image.PixelData = b"".join(pixels(number).tobytes() for number in order)
    image.save_as(folder / "a.dcm", enforce_file_format=True)
    check_places(read(folder, only(folder).density), orientation)


def spoil(folder: Path, name: str, **changes: Any) -> None:
    image = dcmread(folder / name)
    for keyword, value in changes.items():
        setattr(image, keyword, value)
    image.save_as(folder / name)


def verdicts(folder: Path) -> dict[str, tuple[str, bool]]:
    return {one.uri: (one.code, one.rejected) for one in planned(folder).verdicts}


def test_a_series_that_is_no_grid_is_refused(folder: Path, write_ct: "CtWriter") -> None:
    names = write_series(folder, write_ct)
    (folder / names[2]).unlink()
    assert set(verdicts(folder).values()) == {("series-uneven", True)}
    write_ct(folder / names[2], **of_slice(AXIAL, 2, ImagePositionPatient=[-40, 20.5, 105.25]))
    assert set(verdicts(folder).values()) == {("series-tilted", True)}
    write_ct(folder / names[2], **of_slice(AXIAL, 2, ImagePositionPatient=[-50, 20.5, 105.25]))
    assert verdicts(folder) == {}
    write_ct(folder / "again.dcm", **of_slice(AXIAL, 2))
    assert set(verdicts(folder).values()) == {("series-overlaps", True)}


def test_time_points_become_datasets_of_their_own(folder: Path, write_ct: "CtWriter") -> None:
    write_series(folder, write_ct)
    for number in range(SLICES):
        write_ct(folder / f"late{number}.dcm", **of_slice(AXIAL, number, AcquisitionNumber=2))
    made = planned(folder)
    assert made.verdicts == []
    assert [len(group.density.uris) for group in made.groups] == [SLICES, SLICES]
    assert sorted({uri[:4] == "late" for group in made.groups for uri in group.uris}) == [False, True]  # fmt: skip


def test_what_is_no_slice_is_passed_over(folder: Path, write_ct: "CtWriter") -> None:
    write_ct(folder / "flat.dcm", ImagePositionPatient=None)
    write_ct(folder / "report.dcm", Rows=None, PixelData=None, ImageOrientationPatient=None)
    skipped = ("not-a-volume", False)
    assert verdicts(folder) == {"flat.dcm": skipped, "report.dcm": skipped}


def test_a_damaged_image_is_refused(folder: Path, write_ct: "CtWriter") -> None:
    names = write_series(folder, write_ct)
    short = folder / names[0]
    short.write_bytes(short.read_bytes()[:-10])
    (folder / "bad.dcm").write_bytes(bytes(128) + b"DICM")
    found = verdicts(folder)
    assert found == {names[0]: ("size-differs", True), "bad.dcm": ("damaged", True)}
    (group,) = planned(folder).groups
    assert len(group.density.uris) == SLICES - 1


# Segmentations


def maps(folder: Path) -> list[tuple[Any, list[str]]]:
    group = only(folder)
    (label,) = group.labels
    assert group.density.grid is not None
    found = read_labels(folder, label.source, group.density.grid)
    return [(numbers(image).copy(), [one.name for one in segments]) for image, segments in found]


@pytest.mark.parametrize("orientation", ORIENTATIONS.values(), ids=ORIENTATIONS)
def test_a_segmentation_lies_on_its_images(
    folder: Path, write_ct: "CtWriter", orientation: tuple[float, ...]
) -> None:
    names = write_series(folder, write_ct, orientation)
    order = [(1, 4), (1, 1), (2, 1)]
    frames = [mask((0, 0)), mask((7, 5), (6, 5)), mask((3, 2))]
    segmentation(folder, dcmread(folder / names[0]), order, frames, orientation)
    ((found, called),) = maps(folder)
    expected = np.zeros((SLICES, ROWS, COLUMNS))
    expected[4, 0, 0] = expected[1, 5, 7] = expected[1, 5, 6] = 1
    expected[1, 2, 3] = 2
    assert (found == expected).all()
    assert called == ["Organ 1", "Organ 2"]


def test_a_segmentation_that_goes_the_other_way_lies_right(
    folder: Path, write_ct: "CtWriter"
) -> None:
    names = write_series(folder, write_ct)
    turned = (-1, 0, 0, 0, 1, 0)
    corner = np.add(place(AXIAL, 3), [SPACING[1] * (COLUMNS - 1), 0, 0])
    segmentation(folder, dcmread(folder / names[0]), [(1, 0)], [mask((0, 2))], turned)
    image = dcmread(folder / "seg.dcm")
    position = image.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence[0]
    position.ImagePositionPatient = [float(x) for x in corner]
    image.save_as(folder / "seg.dcm")
    ((found, _),) = maps(folder)
    assert np.argwhere(found).tolist() == [[3, 2, COLUMNS - 1]]


def test_segments_that_overlap_are_maps_of_their_own(folder: Path, write_ct: "CtWriter") -> None:
    names = write_series(folder, write_ct)
    order = [(1, 2), (2, 2), (3, 2)]
    frames = [mask((1, 1), (2, 1)), mask((2, 1)), mask((5, 5))]
    segmentation(folder, dcmread(folder / names[0]), order, frames)
    (first, called), (second, also) = maps(folder)
    assert (called, also) == (["Organ 1", "Organ 3"], ["Organ 2"])
    assert [first[2, 1, 1], first[2, 1, 2], first[2, 5, 5], second[2, 1, 2]] == [1, 1, 3, 2]
    assert second.sum() == 2


def test_half_and_more_of_a_voxel_counts(folder: Path, write_ct: "CtWriter") -> None:
    names = write_series(folder, write_ct)
    frame = mask((0, 0)) * 49 + mask((1, 0)) * 50 + mask((2, 0)) * 100
    segmentation(folder, dcmread(folder / names[0]), [(1, 2)], [frame], kind="FRACTIONAL")
    ((found, _),) = maps(folder)
    assert np.argwhere(found).tolist() == [[2, 0, 1], [2, 0, 2]]


def test_a_label_map_segmentation_is_taken_as_it_is(folder: Path, write_ct: "CtWriter") -> None:
    names = write_series(folder, write_ct)
    frame = mask((0, 0)) * 1 + mask((1, 0)) * 2
    order = [(1, 2)]
    segmentation(folder, dcmread(folder / names[0]), order, [frame], kind="LABELMAP")
    ((found, called),) = maps(folder)
    assert (found[2, 0, 0], found[2, 0, 1], called) == (1, 2, ["Organ 1"])


def test_a_segment_has_its_own_colour(folder: Path, write_ct: "CtWriter") -> None:
    names = write_series(folder, write_ct)
    segmentation(folder, dcmread(folder / names[0]), [(1, 0), (2, 0)], [mask((0, 0)), mask((1, 1))])
    group = only(folder)
    assert group.density.grid is not None
    ((_, segments),) = read_labels(folder, group.labels[0].source, group.density.grid)
    red, none = segments
    assert red.color is not None
    channels = list(bytes.fromhex(red.color[1:]))
    assert channels == pytest.approx([255, 0, 0], abs=3)
    assert none.color is None


def test_a_segmentation_without_its_images_is_shown_by_itself(
    folder: Path, write_ct: "CtWriter"
) -> None:
    orientation = ORIENTATIONS["oblique"]
    series = write_ct(folder / "a.dcm", **of_slice(AXIAL, 0))
    (folder / "a.dcm").unlink()
    frames = [mask((0, 0)), mask((7, 5)), mask((3, 2))]
    segmentation(folder, series, [(1, 1), (1, 3), (2, 3)], frames, orientation)
    image = dcmread(folder / "seg.dcm")
    measures = image.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    measures.SpacingBetweenSlices = APART
    image.save_as(folder / "seg.dcm")
    group = only(folder)
    assert group.uris == ["seg.dcm"]
    shown = read(folder, group.density)
    assert np.argwhere(numbers(shown)).tolist() == [[0, 0, 0], [2, 2, 3], [2, 5, 7]]
    for index, number in (((0, 0, 0), 1), ((3, 2, 2), 2)):
        assert shown[index] == number
        expected = where(orientation, (*index[:2], index[2] + 1))
        assert shown.TransformIndexToPhysicalPoint(index) == pytest.approx(expected, abs=1e-3)
    ((labels, called),) = maps(folder)
    assert (labels == numbers(shown)).all()
    assert called == ["Organ 1", "Organ 2"]


def test_a_segmentation_finds_its_images_around_the_task_s_files(
    folder: Path, write_ct: "CtWriter"
) -> None:
    names = write_series(folder, write_ct)
    write_ct(folder / "other.dcm", SeriesInstanceUID="1.2.3")
    segmentation(folder, dcmread(folder / names[0]), [(1, 4)], [mask((0, 0))])
    made = plan(folder, ["seg.dcm"], [*names, "other.dcm"])
    assert made.verdicts == []
    (group,) = made.groups
    assert (group.density.kind, group.density.uris) == (Kind.SERIES, names)
    assert [label.source.uris for label in group.labels] == [["seg.dcm"]]
    (alone,) = plan(folder, ["seg.dcm"], ["other.dcm"]).groups
    assert alone.density.kind is Kind.SEGMENTATION


def test_a_segmentation_of_another_distance_is_brought_over(
    folder: Path, write_ct: "CtWriter"
) -> None:
    names = write_series(folder, write_ct)
    segmentation(folder, dcmread(folder / names[0]), [(1, 0), (1, 1)], [mask((0, 0)), mask((3, 3))])
    image = dcmread(folder / "seg.dcm")
    for number, frame in enumerate(image.PerFrameFunctionalGroupsSequence):
        at = [float(x) for x in place(AXIAL, 2 + number * 0.4)]
        frame.PlanePositionSequence[0].ImagePositionPatient = at
    image.save_as(folder / "seg.dcm")
    ((found, _),) = maps(folder)
    assert np.argwhere(found).tolist() == [[2, 0, 0]]  # of the other no slice is nearest


def test_what_highdicom_writes_is_read(folder: Path, write_ct: "CtWriter") -> None:
    seg = pytest.importorskip("highdicom.seg", reason="highdicom is not installed")
    from highdicom import AlgorithmIdentificationSequence
    from highdicom.seg import SegmentAlgorithmTypeValues, SegmentationTypeValues, SegmentDescription
    from pydicom.sr.codedict import codes

    names = write_series(folder, write_ct)
    images = [dcmread(folder / name) for name in names]
    values = np.zeros((SLICES, ROWS, COLUMNS), np.uint8)
    values[1, 2, 3] = values[2, 2, 3] = 1
    values[3, 4, 5] = 2
    algorithm = AlgorithmIdentificationSequence("test", codes.DCM.ArtificialIntelligence, "1")
    described = [
        SegmentDescription(
            number, name, codes.SCT.Organ, codes.SCT.Liver, SegmentAlgorithmTypeValues.AUTOMATIC, algorithm
        )
        for number, name in ((1, "Liver"), (2, "Tumour"))
    ]  # fmt: skip
    made = seg.Segmentation(
        images, values, SegmentationTypeValues.BINARY, described, generate_uid(), 1, generate_uid(), 1,
        "Maker", "Model", "1", "1",
    )  # fmt: skip
    made.save_as(folder / "seg.dcm")
    ((found, called),) = maps(folder)
    assert (found == values).all()
    assert called == ["Liver", "Tumour"]
