"""The liver-tumour pipeline's dicom-writer, and the three operators on the sample volume.

highdicom leaves databases open, so that dicom-writer runs in processes of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import SimpleITK
from pydicom import Dataset, dcmread

from examples.make_dicom import LABEL, VOLUME, ct_series
from liver_tumor import description, metaimage
from liver_tumor.segmentation import DESCRIPTION
from tests.support.dciodvfy import faults

if TYPE_CHECKING:
    from collections.abc import Sequence

OPERATORS = Path(__file__).parents[2] / "examples" / "liver-tumor"
CLASSES = {
    "key-image-1.dcm": "Secondary Capture Image Storage",
    "key-image-2.dcm": "Secondary Capture Image Storage",
    "report.dcm": "Comprehensive 3D SR Storage",
    "segmentation.dcm": "Segmentation Storage",
}
_RUN_ALL = """
import json, sys
from liver_tumor.dicom_writer import main
print(json.dumps([main(each) for each in json.loads(sys.argv[1])]))
"""


def write_all(runs: Sequence[Sequence[object]]) -> tuple[list[int], str]:
    """Run dicom-writer with several command lines in one process; return its exit codes, and what it said of faults."""
    lines = json.dumps([[str(argument) for argument in each] for each in runs])
    done = subprocess.run(
        [sys.executable, "-c", _RUN_ALL, lines],
        cwd=OPERATORS,
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


def voxels(segmentation: Dataset, slices: list[str]) -> Any:
    """Return a SEG as a label map, by what each frame says of segment and source image.

    Args:
        segmentation: A binary one.
        slices: SOP Instance UIDs of the source, in the order of the label map.
    """
    frames = np.atleast_3d(segmentation.pixel_array)
    label = np.zeros((len(slices), segmentation.Rows, segmentation.Columns), np.uint8)
    for group, frame in zip(segmentation.PerFrameFunctionalGroupsSequence, frames, strict=True):
        (image,) = group.DerivationImageSequence[0].SourceImageSequence
        number = group.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        label[slices.index(image.ReferencedSOPInstanceUID)][frame > 0] = number
    return label


# ---- the sample volume, once through all three ----


@dataclass(frozen=True)
class Chain:
    """The folders of one run of the three operators."""

    dicom: Path
    volume: Path
    label: Path
    results: Path
    said: str


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """Run the operators as a pipeline does: by the platform's variables."""
    folder = tmp_path_factory.mktemp("chain")
    dicom, volume, label, results = (
        folder / name for name in ("dicom", "volume", "label", "results")
    )
    dicom.mkdir()
    for image in ct_series(SimpleITK.ReadImage(str(VOLUME))):
        image.save_as(dicom / f"{image.InstanceNumber}.dcm", enforce_file_format=True)
    said = ""
    for command, inputs, output in (
        (["dicom_reader"], f"input:{dicom}", volume),
        (["segmentation"], f"output:{volume}", label),
        (
            ["dicom_writer", "--key-images", "--report"],
            f"segmentation:{label};input:{dicom}",
            results,
        ),
    ):
        done = subprocess.run(
            [sys.executable, "-m", f"liver_tumor.{command[0]}", *command[1:]],
            cwd=OPERATORS,
            env=os.environ
            | {
                "NVIDIA_CLARA_JOBID": "job-1",
                "NVIDIA_CLARA_INPUTPATHS": inputs,
                "NVIDIA_CLARA_OUTPUTPATHS": f"result:{output}",
            },
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        said += done.stdout + done.stderr
    return Chain(dicom, volume, label, results, said)


def sources(folder: Path) -> list[Dataset]:
    """Return a folder's slices, ordered by place."""
    read = [dcmread(path) for path in folder.iterdir()]
    return sorted(read, key=lambda each: float(each.ImagePositionPatient[2]))


def test_the_volume_is_the_sample(chain: Chain) -> None:
    sample: Any = SimpleITK.ReadImage(str(VOLUME))
    volume = metaimage.read(metaimage.only(chain.volume, metaimage.VOLUME))

    assert volume.GetSize() == sample.GetSize()
    assert volume.GetSpacing() == pytest.approx(sample.GetSpacing())
    assert volume.GetOrigin() == pytest.approx(sample.GetOrigin())
    assert np.array_equal(SimpleITK.GetArrayFromImage(volume), SimpleITK.GetArrayFromImage(sample))


def test_the_lesion_is_the_samples_tumour(chain: Chain) -> None:
    tumour = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(LABEL))) > 0
    label = metaimage.read(metaimage.only(chain.label, metaimage.LABEL))
    lesion = SimpleITK.GetArrayFromImage(label) == 2

    overlap = 2 * (tumour & lesion).sum() / (tumour.sum() + lesion.sum())

    assert overlap > 0.8  # Dice; measured: 0.84


def test_results_follow_the_standard(chain: Chain) -> None:
    paths = sorted(chain.results.iterdir())

    assert {path.name: dcmread(path).SOPClassUID.name for path in paths} == CLASSES
    assert faults(paths) == {}


def test_the_seg_reads_back_as_the_label_map(chain: Chain) -> None:
    label = metaimage.read(metaimage.only(chain.label, metaimage.LABEL))
    segmentation = dcmread(chain.results / "segmentation.dcm")

    read = voxels(segmentation, [str(each.SOPInstanceUID) for each in sources(chain.dicom)])

    assert np.array_equal(read, SimpleITK.GetArrayFromImage(label))


def test_the_seg_says_what_made_it_and_that_it_is_not_ai(chain: Chain) -> None:
    segmentation = dcmread(chain.results / "segmentation.dcm")

    assert segmentation.SeriesDescription == "NOT AI, NOT A MEDICAL DEVICE: lungs, lesion"
    assert "NOT A MEDICAL DEVICE" in segmentation.ContentDescription
    assert [
        (
            each.SegmentLabel,
            each.SegmentAlgorithmType,
            each.SegmentedPropertyTypeCodeSequence[0].CodeValue,
            each.SegmentationAlgorithmIdentificationSequence[0].AlgorithmName,
            each.SegmentationAlgorithmIdentificationSequence[0]
            .AlgorithmFamilyCodeSequence[0]
            .CodeMeaning,
        )
        for each in segmentation.SegmentSequence
    ] == [
        ("Lungs", "AUTOMATIC", "39607008", DESCRIPTION.algorithm.name, "Morphological Operations"),
        ("Lesion", "AUTOMATIC", "52988006", DESCRIPTION.algorithm.name, "Morphological Operations"),
    ]


def contents(item: Dataset) -> list[Dataset]:
    """Return all items of a report's content tree."""
    found = [item]
    for below in item.get("ContentSequence", []):
        found += contents(below)
    return found


def test_the_report_has_the_volumes_of_the_segments(chain: Chain) -> None:
    label = metaimage.read(metaimage.only(chain.label, metaimage.LABEL))
    counts = np.bincount(SimpleITK.GetArrayFromImage(label).ravel())
    millilitres = counts[1:] * np.prod(label.GetSpacing()) / 1000
    segmentation = dcmread(chain.results / "segmentation.dcm")

    items = contents(dcmread(chain.results / "report.dcm"))

    texts = [each.TextValue for each in items if each.ValueType == "TEXT"]
    assert texts.count(DESCRIPTION.notice) == 2
    measured = [each.MeasuredValueSequence[0] for each in items if each.ValueType == "NUM"]
    assert [float(each.NumericValue) for each in measured] == pytest.approx(millilitres, abs=0.001)
    assert {each.MeasurementUnitsCodeSequence[0].CodeValue for each in measured} == {"mL"}
    referred = [
        each.ReferencedSOPSequence[0]
        for each in items
        if each.ValueType == "IMAGE" and "ReferencedSegmentNumber" in each.ReferencedSOPSequence[0]
    ]
    assert [each.ReferencedSOPInstanceUID for each in referred] == [segmentation.SOPInstanceUID] * 2


def test_a_key_image_shows_the_outlines(chain: Chain) -> None:
    image = dcmread(chain.results / "key-image-1.dcm")
    pixels = image.pixel_array
    colours = {tuple(colour) for colour in pixels.reshape(-1, 3).tolist()}

    assert pixels.shape == (512, 512, 3)
    assert {segment.rgb for segment in DESCRIPTION.segments} <= colours
    (reference,) = image.SourceImageSequence
    label = metaimage.read(metaimage.only(chain.label, metaimage.LABEL))
    lesion = SimpleITK.GetArrayFromImage(label) == 2
    largest = sources(chain.dicom)[int(lesion.sum(axis=(1, 2)).argmax())]
    assert reference.ReferencedSOPInstanceUID == largest.SOPInstanceUID


def test_logs_have_nothing_of_the_patient(chain: Chain) -> None:
    assert "NOT A MEDICAL DEVICE" in chain.said
    assert "DEMO" not in chain.said


# ---- small series: whose they are, which UIDs they have, what is refused ----

NAMES: dict[str, tuple[list[str] | str | None, str, str]] = {
    "ISO 2022 IR 87": (
        ["", "ISO 2022 IR 87"],
        "Yamada^Tarou=山田^太郎=やまだ^たろう",
        "1b2442",
    ),
    "GB18030": ("GB18030", "Wang^XiaoDong=王^小东", "cdf5"),
    "UTF-8": ("ISO_IR 192", "Müller^Zoë=王^小東", "c3bc"),
    "none": (None, "Phantom^One", "5068"),
}
"""Character set, patient's name, and some of its bytes in hexadecimal."""


@dataclass(frozen=True)
class Small:
    """A series of four slices of 12 x 10 pixels, and a label map of it."""

    folder: Path
    uid: str
    slices: list[str]
    label: Any

    @property
    def arguments(self) -> list[object]:
        """Return where it is, as dicom-writer takes it."""
        return ["--segmentation", self.folder / "label", "--dicom", self.folder / "dicom"]


def small(folder: Path, **changes: Any) -> Small:
    """Write a small series with these attributes (without those that are None), and a label map of it."""
    values = np.arange(4 * 12 * 10, dtype=np.int16).reshape(4, 12, 10)
    volume: Any = SimpleITK.GetImageFromArray(values)
    volume.SetSpacing((2, 3, 4))
    label: Any = SimpleITK.GetImageFromArray((values % 7 == 3) + 2 * (values % 7 == 5).astype("u1"))
    label.SetSpacing((2, 3, 4))
    images = ct_series(volume)
    (folder / "dicom").mkdir(parents=True)
    (folder / "label").mkdir()
    for image in images:
        for keyword, value in changes.items():
            if value is None:
                delattr(image, keyword)
            else:
                setattr(image, keyword, value)
        image.save_as(folder / "dicom" / f"{image.InstanceNumber}.dcm", enforce_file_format=True)
    uid = str(images[0].SeriesInstanceUID)
    metaimage.write(label, folder / "label" / f"{uid}.output.mhd")
    description.write(DESCRIPTION, folder / "label" / f"{uid}.output.json")
    return Small(
        folder,
        uid,
        [str(image.SOPInstanceUID) for image in images],
        SimpleITK.GetArrayFromImage(label),
    )


def issuer(value: str) -> Dataset:
    item = Dataset()
    item.LocalNamespaceEntityID = value
    return item


INHERITED = (
    "PatientName",
    "PatientID",
    "IssuerOfPatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyInstanceUID",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "AccessionNumber",
    "IssuerOfAccessionNumberSequence",
    "ReferringPhysicianName",
)


def test_patient_and_study_are_the_sources_own_in_its_character_set(tmp_path: Path) -> None:
    made = {
        name: small(
            tmp_path / name,
            SpecificCharacterSet=charset,
            PatientName=text,
            PatientID="Z-1",
            IssuerOfPatientID="CLINIC",
            AccessionNumber="A-17",
            IssuerOfAccessionNumberSequence=[issuer("RIS")],
            ReferringPhysicianName=text,
            PatientBirthDate="19700230",  # no such day: it is the source's all the same
            PatientSex="",
            LossyImageCompression="01",
            LossyImageCompressionRatio=8,
            LossyImageCompressionMethod="ISO_15444_1",
        )
        for name, (charset, text, _) in NAMES.items()
    }

    everything = ["--job", "j", "--key-images", "--report"]
    codes, said = write_all(
        [
            [*each.arguments, "--output", each.folder / "results", *everything]
            for each in made.values()
        ]
    )

    assert codes == [0] * len(made), said
    assert said == ""  # no warning that quotes a value
    for name, (charset, text, some_bytes) in NAMES.items():
        folder = made[name].folder
        source = dcmread(folder / "dicom" / "1.dcm")
        paths = sorted((folder / "results").iterdir())
        assert [path.name for path in paths] == list(CLASSES), name
        for path in paths:
            result = dcmread(path)
            assert result.get("SpecificCharacterSet") == charset, name
            assert str(result.PatientName) == text
            assert bytes.fromhex(some_bytes) in path.read_bytes(), name
            for keyword in INHERITED:
                assert result[keyword].value == source[keyword].value, keyword
            assert result.SeriesInstanceUID != source.SeriesInstanceUID
            if "PixelData" in result:
                assert result.LossyImageCompression == "01"
                assert result.LossyImageCompressionRatio == 8
        segmentation = dcmread(folder / "results" / "segmentation.dcm")
        assert segmentation.FrameOfReferenceUID == source.FrameOfReferenceUID
        assert np.array_equal(voxels(segmentation, made[name].slices), made[name].label), name
        assert faults([folder / "dicom" / "1.dcm", *paths]) == {}, name


def uids(folder: Path) -> set[str]:
    read = [dcmread(path) for path in folder.iterdir()]
    return {
        str(each[keyword].value)
        for each in read
        for keyword in ("SeriesInstanceUID", "SOPInstanceUID")
    }


def test_a_run_again_makes_the_same_and_a_change_makes_others(tmp_path: Path) -> None:
    made = small(tmp_path)
    label = next((tmp_path / "label").glob("*.mhd"))
    other_label = tmp_path / "other-label"
    other_label.mkdir()
    changed = metaimage.read(label)
    changed[0, 0, 0] = 1
    metaimage.write(changed, other_label / label.name)
    description.write(DESCRIPTION, (other_label / label.name).with_suffix(".json"))
    other_name = tmp_path / "other-name"
    other_name.mkdir()
    for path in (tmp_path / "dicom").iterdir():
        image = dcmread(path)
        image.PatientName = "CORRECTED^NAME"
        image.save_as(other_name / path.name)
    dicom, segmentation = tmp_path / "dicom", tmp_path / "label"
    runs = {
        "first": (segmentation, dicom, "job-1"),
        "again": (segmentation, dicom, "job-1"),
        "other job": (segmentation, dicom, "job-2"),
        "other label": (other_label, dicom, "job-1"),
        "other name": (segmentation, other_name, "job-1"),
    }

    codes, said = write_all(
        [
            [
                *(
                    "--segmentation",
                    labels,
                    "--dicom",
                    images,
                    "--output",
                    tmp_path / "results" / name,
                ),
                *("--job", job, "--key-images", "--report"),
            ]
            for name, (labels, images, job) in runs.items()
        ]
    )

    assert codes == [0] * len(runs), said
    results = tmp_path / "results"
    for path in (results / "first").iterdir():
        assert path.read_bytes() == (results / "again" / path.name).read_bytes(), path.name
    first = uids(results / "first")
    assert len(first) == 3 + len(list((results / "first").iterdir()))  # three series
    for name in ("other job", "other label", "other name"):
        assert uids(results / name).isdisjoint(first), name
    assert made.uid not in first


def test_nothing_found_is_a_result(tmp_path: Path) -> None:
    made = small(tmp_path)
    path = next((tmp_path / "label").glob("*.mhd"))
    metaimage.write(metaimage.read(path) * 0, path)
    output = tmp_path / "results"

    codes, said = write_all(
        [[*made.arguments, "--output", output, "--job", "j", "--key-images", "--report"]]
    )

    assert codes == [0], said
    (only,) = output.iterdir()
    assert faults([only]) == {}
    segmentation = dcmread(only)
    assert [each.SegmentLabel for each in segmentation.SegmentSequence] == ["Lungs", "Lesion"]
    assert not segmentation.pixel_array.any()


def test_what_does_not_go_together_is_refused_with_the_reason(tmp_path: Path) -> None:
    folders = {}
    for name in ("moved", "size", "value", "stranger", "text", "job"):
        folders[name] = small(tmp_path / name)
    labels = {name: next((each.folder / "label").glob("*.mhd")) for name, each in folders.items()}
    moved = metaimage.read(labels["moved"])
    moved.SetOrigin((0, 0, 0.5))
    metaimage.write(moved, labels["moved"])
    metaimage.write(metaimage.read(labels["size"])[1:], labels["size"])
    metaimage.write(metaimage.read(labels["value"]) + 2, labels["value"])
    labels["stranger"].rename(labels["stranger"].with_name("1.2.3.output.mhd"))
    labels["stranger"].with_suffix(".json").rename(
        labels["stranger"].with_name("1.2.3.output.json")
    )
    labels["text"].with_suffix(".json").unlink()

    codes, said = write_all(
        [
            [*each.arguments, "--output", each.folder / "results"]
            + (["--job", "j"] if name != "job" else [])
            for name, each in folders.items()
        ]
    )

    assert codes == [2] * len(folders)
    expected = [
        "lies up to 0.5 mm beside its series: resample it",
        "has (9, 12, 4) voxels, its series (10, 12, 4): resample it",
        "has the values [3, 4], which its description does not name",
        "there is no series 1.2.3; there is series",
        "is missing: it says what the label map's values mean",
        "the job is not known, and UIDs derive from it: set NVIDIA_CLARA_JOBID, or give --job",
    ]
    lines = said.splitlines()
    assert len(lines) == len(expected), said
    for line, text in zip(lines, expected, strict=True):
        assert line.startswith("dicom-writer: ")
        assert text in line
    assert not list(tmp_path.glob("*/results/*"))
