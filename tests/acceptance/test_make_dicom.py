"""The DICOM series and segmentation made of the sample volume."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK
from pydicom import dcmread

from examples.make_dicom import LABEL, VOLUME
from tests.support.dciodvfy import faults

ROOT = Path(__file__).parents[2]


def make(folder: Path) -> list[Path]:
    """Make the study in a process of its own (highdicom leaves databases open), and return its files."""
    done = subprocess.run(
        [sys.executable, "-m", "examples.make_dicom", folder],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("wrote 62 instances of study ")
    return sorted(folder.rglob("*.dcm"))


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return make(tmp_path_factory.mktemp("study"))


def ct_files(study: list[Path]) -> list[Path]:
    return [path for path in study if path.parent.name == "ct"]


def test_each_instance_follows_the_standard(study: list[Path]) -> None:
    assert len(study) == 62
    assert faults(study) == {}


def test_the_series_is_the_volume(study: list[Path]) -> None:
    volume: Any = SimpleITK.ReadImage(str(VOLUME))

    series: Any = SimpleITK.ReadImage([str(path) for path in ct_files(study)])

    assert series.GetSize() == volume.GetSize()
    assert series.GetSpacing() == pytest.approx(volume.GetSpacing())
    assert series.GetOrigin() == pytest.approx(volume.GetOrigin())
    assert series.GetDirection() == pytest.approx(volume.GetDirection())
    assert np.array_equal(SimpleITK.GetArrayFromImage(series), SimpleITK.GetArrayFromImage(volume))


def test_the_segmentation_is_the_label_map_on_the_series(study: list[Path]) -> None:
    (path,) = set(study) - set(ct_files(study))
    segmentation = dcmread(path)
    label: Any = SimpleITK.ReadImage(str(LABEL))
    expected = {
        index: plane
        for index, plane in enumerate(SimpleITK.GetArrayFromImage(label))
        if plane.any()
    }
    slices = {
        str(dcmread(file).SOPInstanceUID): number for number, file in enumerate(ct_files(study))
    }
    frames = {
        slices[
            str(group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID)
        ]: (plane, group.PlanePositionSequence[0].ImagePositionPatient)
        for group, plane in zip(
            segmentation.PerFrameFunctionalGroupsSequence, segmentation.pixel_array, strict=True
        )
    }

    assert frames.keys() == expected.keys()
    for index, (plane, position) in frames.items():
        assert np.array_equal(plane, expected[index])
        place = label.TransformIndexToPhysicalPoint((0, 0, index))
        assert [float(value) for value in position] == pytest.approx(place)


def test_the_patient_is_made_up_and_uids_are_new(study: list[Path], tmp_path: Path) -> None:
    instances = [dcmread(path, stop_before_pixels=True) for path in study]
    again = [dcmread(path, stop_before_pixels=True) for path in make(tmp_path)]

    assert {(str(one.PatientName), one.PatientID) for one in instances} == {
        ("DEMO^LUNG", "DEMO-LUNG-2")
    }
    for keyword, number in {
        "StudyInstanceUID": 1,
        "SeriesInstanceUID": 2,
        "SOPInstanceUID": 62,
        "FrameOfReferenceUID": 1,
    }.items():
        uids = {one[keyword].value for one in instances}
        assert len(uids) == number
        assert uids.isdisjoint({one[keyword].value for one in again})
