"""The liver-tumour pipeline's dicom-reader: which series is taken, and when slices are a volume."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import SimpleITK
from pydicom import dcmread

from liver_tumor import metaimage, series
from liver_tumor.dicom_reader import convert
from liver_tumor.step import Refused, named_inputs, only_input, only_output, run

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.conftest import CtWriter


def written(path: Path) -> Any:
    return SimpleITK.ReadImage(str(path))


def write_series(folder: Path, write_ct: CtWriter, count: int = 4, **changes: Any) -> None:
    """Write slices whose names run against their places."""
    for number in range(count):
        write_ct(folder / f"{count - number}.dcm", number=number, **changes)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    folder = tmp_path / "output"
    folder.mkdir()
    return folder


def test_slices_are_put_in_the_order_of_their_places(
    tmp_path: Path, write_ct: CtWriter, output: Path
) -> None:
    write_series(tmp_path / "dicom", write_ct, PixelSpacing=[2, 3], ImageType=["ORIGINAL"])

    path = convert(tmp_path / "dicom", output, "CT", None)

    volume = written(path)
    assert path.name == f"{dcmread(tmp_path / 'dicom' / '1.dcm').SeriesInstanceUID}.mhd"
    assert volume.GetPixelID() == SimpleITK.sitkInt16
    assert volume.GetMetaData("Modality") == "MET_MOD_CT"
    assert volume.GetSize() == (16, 16, 4)
    assert volume.GetSpacing() == (3, 2, 5)  # PixelSpacing is that of rows, then of columns
    assert volume.GetOrigin() == (0, 0, 0)
    values = SimpleITK.GetArrayFromImage(volume)
    assert [int(plane[0, 0]) for plane in values] == [0, 1, 2, 3]


def test_an_oblique_series_keeps_its_directions(
    tmp_path: Path, write_ct: CtWriter, output: Path
) -> None:
    across, down = np.array([0.8, 0.6, 0]), np.array([0, 0, -1.0])
    normal = np.cross(across, down)
    for number in range(3):
        write_ct(
            tmp_path / "dicom" / f"{number}.dcm",
            number=number,
            ImageOrientationPatient=[*across, *down],
            ImagePositionPatient=list(np.round(10 - 2.5 * number * normal, 6)),
        )

    volume = written(convert(tmp_path / "dicom", output, "CT", None))

    assert np.array(volume.GetDirection()).reshape(3, 3) == pytest.approx(
        np.column_stack([across, down, normal])
    )
    assert volume.GetSpacing() == pytest.approx((1, 1, 2.5))
    assert volume.GetOrigin() == pytest.approx(tuple(10 - 5 * normal))
    planes = SimpleITK.GetArrayFromImage(volume)[:, 0, 0]
    assert planes.tolist() == [2, 1, 0]


def test_each_slice_is_rescaled_by_its_own_values(
    tmp_path: Path, write_ct: CtWriter, output: Path
) -> None:
    for number, (slope, intercept) in enumerate([(1, 0), (2, -1000), (0.25, 0.5)]):
        write_ct(
            tmp_path / "dicom" / f"{number}.dcm",
            number=number,
            PixelData=(100).to_bytes(2, "little") * 256,
            RescaleSlope=slope,
            RescaleIntercept=intercept,
        )

    volume = written(convert(tmp_path / "dicom", output, "CT", None))

    assert SimpleITK.GetArrayFromImage(volume)[:, 0, 0].tolist() == [100, -800, 26]


def test_values_that_do_not_fit_16_bits_are_refused(
    tmp_path: Path, write_ct: CtWriter, output: Path
) -> None:
    write_series(tmp_path / "dicom", write_ct, RescaleIntercept=40_000)

    with pytest.raises(Refused, match="values from 40000 to 40003 do not fit 16 bits"):
        convert(tmp_path / "dicom", output, "CT", None)


def change(number: int, **changes: Any) -> Callable[[Path, CtWriter], None]:
    def write(folder: Path, write_ct: CtWriter) -> None:
        write_series(folder, write_ct)
        write_ct(folder / f"{4 - number}.dcm", number=number, **changes)

    return write


def without(number: int) -> Callable[[Path, CtWriter], None]:
    def write(folder: Path, write_ct: CtWriter) -> None:
        write_series(folder, write_ct, 6)
        (folder / f"{6 - number}.dcm").unlink()

    return write


def tilted(folder: Path, write_ct: CtWriter) -> None:
    for number in range(4):
        write_ct(
            folder / f"{number}.dcm",
            number=number,
            ImagePositionPatient=[0, 2 * number, 5 * number],
        )


def same(**changes: Any) -> Callable[[Path, CtWriter], None]:
    return lambda folder, write_ct: write_series(folder, write_ct, **changes)


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (lambda folder, write_ct: write_series(folder, write_ct, 1), "one image makes no volume"),
        (without(3), "10 mm lie between 4.dcm and 2.dcm, 5 mm between .*; about 1 are missing"),
        (change(2, ImagePositionPatient=[0, 0, 11]), "6 mm lie between"),
        (change(2, ImagePositionPatient=[0, 0, 5]), "are at the same place"),
        (change(2, size=17), "Rows is 16 in 1.dcm and 17 in 2.dcm"),
        (change(2, PixelSpacing=[1, 2]), r"PixelSpacing is 1\\1 in 1.dcm and 1\\2 in 2.dcm"),
        (change(2, ImageOrientationPatient=[1, 0, 0, 0, 0, -1]), "is a localizer among the slices"),
        (change(2, FrameOfReferenceUID="1.2.3"), "FrameOfReferenceUID is"),
        (change(2, ImagePositionPatient=None), "2.dcm has no ImagePositionPatient of 3 numbers"),
        (change(2, NumberOfFrames=2), "2.dcm has several frames"),
        (change(2, SamplesPerPixel=3), "2.dcm is in colour"),
        (same(ImageOrientationPatient=[1, 0, 0, 0.5, 0.8, 0]), "not unit vectors at right angles"),
        (tilted, "slide 6.0 mm sideways over 15.0 mm"),
    ],
)
def test_slices_that_make_no_volume_are_refused_with_the_reason(
    tmp_path: Path,
    write_ct: CtWriter,
    output: Path,
    write: Callable[[Path, CtWriter], None],
    reason: str,
) -> None:
    write(tmp_path / "dicom", write_ct)

    with pytest.raises(Refused, match=reason):
        convert(tmp_path / "dicom", output, "CT", None)

    assert not list(output.iterdir())


def test_of_several_series_that_with_the_most_images_is_taken(
    tmp_path: Path, write_ct: CtWriter, capsys: pytest.CaptureFixture[str]
) -> None:
    write_series(tmp_path / "a", write_ct, 3, SeriesInstanceUID="1.2.1", SeriesNumber=2)
    write_series(tmp_path / "b", write_ct, 3, SeriesInstanceUID="1.2.2", SeriesNumber=1)
    write_series(tmp_path / "c", write_ct, 2, SeriesInstanceUID="1.2.3")
    write_series(tmp_path / "d", write_ct, 5, SeriesInstanceUID="1.2.4", Modality="MR")

    found = series.find(tmp_path)

    assert series.choose(found, "CT", None).uid == "1.2.2"
    assert "not chosen: series 1.2.1 (CT, 3 images)" in capsys.readouterr().out
    assert series.choose(found, "MR", None).uid == "1.2.4"
    assert series.choose(found, "CT", "1.2.3").uid == "1.2.3"
    with pytest.raises(Refused, match=r"no series 1\.2\.9; there is .*series 1\.2\.4 \(MR, 5"):
        series.choose(found, "CT", "1.2.9")
    with pytest.raises(Refused, match="there is no PT series"):
        series.choose(found, "PT", None)


def test_what_is_no_image_is_left_out_and_what_is_there_twice_counts_once(
    tmp_path: Path, write_ct: CtWriter, capsys: pytest.CaptureFixture[str]
) -> None:
    write_series(tmp_path, write_ct, 2)
    (tmp_path / "copy.dcm").write_bytes((tmp_path / "1.dcm").read_bytes())
    (tmp_path / "notes.txt").write_text("not DICOM")
    write_ct(tmp_path / "report.dcm", Rows=None, PixelData=None, SeriesInstanceUID="1.2.3")

    (only,) = series.find(tmp_path).values()

    assert len(only.slices) == 2
    assert capsys.readouterr().out == "left out 2 files that are not DICOM images\n"


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="there is no DICOM image in"):
        series.find(tmp_path)


def test_no_message_names_the_patient(
    tmp_path: Path, write_ct: CtWriter, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_series(tmp_path / "dicom", write_ct)
    convert(tmp_path / "dicom", output, "CT", None)
    write_ct(tmp_path / "dicom" / "x.dcm", number=9)
    with pytest.raises(Refused) as refusal:
        convert(tmp_path / "dicom", output, "CT", None)

    said = capsys.readouterr().out + str(refusal.value)
    assert "Phantom" not in said
    assert "PHANTOM-1" not in said


def test_folders_come_from_the_platform(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NVIDIA_CLARA_INPUTPATHS", f"input:{tmp_path}/in")
    monkeypatch.setenv("NVIDIA_CLARA_OUTPUTPATHS", f"output:{tmp_path}/out")
    assert only_input(None) == tmp_path / "in"
    assert only_input(tmp_path) == tmp_path
    assert only_output(None) == tmp_path / "out"

    (tmp_path / "out" / "old.mhd").touch()
    with pytest.raises(Refused, match="is not empty"):
        only_output(None)
    monkeypatch.setenv("NVIDIA_CLARA_INPUTPATHS", "a:/a;b:/b")
    assert list(named_inputs()) == ["a", "b"]
    with pytest.raises(Refused, match="names a, b: this operator takes one input"):
        only_input(None)
    monkeypatch.setenv("NVIDIA_CLARA_INPUTPATHS", "/a")
    with pytest.raises(Refused, match="'/a' is not name:/path"):
        only_input(None)
    monkeypatch.delenv("NVIDIA_CLARA_INPUTPATHS")
    assert str(only_input(None)) == "/input"


@pytest.mark.parametrize("size", [140, 300, 600, 900, 1100])
def test_a_file_that_is_cut_off_is_refused(
    tmp_path: Path, write_ct: CtWriter, output: Path, size: int
) -> None:
    write_series(tmp_path / "dicom", write_ct, 5)
    path = tmp_path / "dicom" / "3.dcm"
    path.write_bytes(path.read_bytes()[:size])

    with pytest.raises(Refused):
        convert(tmp_path / "dicom", output, "CT", None)

    assert not list(output.iterdir())


def test_a_fault_does_not_quote_values(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> None:
        raise ValueError("Phantom^One is no date")

    assert run("dicom-reader", work) == 1

    said = capsys.readouterr().err
    assert said.startswith("dicom-reader: this is a fault of the program: ValueError at ")
    assert "Phantom" not in said


def test_a_file_that_can_not_be_read_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "1.dcm").symlink_to(tmp_path / "gone")

    def work() -> None:
        series.find(tmp_path)

    assert run("dicom-reader", work) == 1
    assert f"{tmp_path}/1.dcm: No such file" in capsys.readouterr().err


def test_one_volume_and_one_label_map_are_found_by_their_names(tmp_path: Path) -> None:
    for name in ("1.2.mhd", "1.2.raw", "1.2.output.mhd", "1.2.output.raw"):
        (tmp_path / name).touch()

    assert metaimage.only(tmp_path, metaimage.VOLUME).name == "1.2.mhd"
    assert metaimage.only(tmp_path, metaimage.LABEL).name == "1.2.output.mhd"
    (tmp_path / "3.mhd").touch()
    with pytest.raises(Refused, match=r"one \*\.mhd; it holds 1\.2\.mhd, 3\.mhd"):
        metaimage.only(tmp_path, metaimage.VOLUME)
    with pytest.raises(Refused, match="can't be read"):
        metaimage.read(tmp_path / "3.mhd")
