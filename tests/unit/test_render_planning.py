"""Which files make one dataset, and what is said of those that can't."""

import gzip
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("isal", reason="clara-results[render] is not installed")
import SimpleITK

from clara_results.agents.render.planning import plan
from clara_results.agents.render.reading import read
from clara_results.agents.render.source import Plan
from clara_results.wire.codec import from_json, to_json
from tests.support.volumes import (
    DIMS,
    FLIPPED,
    IDENTITY,
    LANDMARK,
    labels,
    mhd,
    volume,
    write,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Give the folder of a task's files."""
    path = tmp_path / "files"
    path.mkdir()
    return path


def planned(folder: Path) -> Plan:
    uris = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    made = plan(folder, uris)
    again = json.loads(to_json(made))
    assert from_json(Plan, again) == made  # it goes to the agent and back
    assert sorted([uri for group in made.groups for uri in group.uris] + [one.uri for one in made.verdicts]) == sorted(uris)  # fmt: skip
    return made


def codes(made: Plan) -> dict[str, str]:
    return {one.uri: one.code for one in made.verdicts}


# What goes together


def groups(made: Plan) -> dict[str, list[str]]:
    return {group.density.uris[0]: [label.source.uris[0] for label in group.labels] for group in made.groups}  # fmt: skip


def test_a_config_says_what_belongs_together(folder: Path) -> None:
    write(volume(), folder / "op/CT.mhd")
    write(labels(), folder / "op/liver.mhd")
    write(labels(), folder / "op/masks/tumour.mha")
    (folder / "op/config_render.json").write_text("{}")
    config = {
        "name": "Liver",
        "density": "CT.mhd",
        "settings": "config_render.json",
        "seg_masks": ["liver.mhd", "masks/tumour.mha"],
    }
    (folder / "op/config.meta").write_text(json.dumps(config))
    (group,) = planned(folder).groups
    assert group.name == "Liver"
    assert groups(planned(folder)) == {"op/CT.mhd": ["op/liver.mhd", "op/masks/tumour.mha"]}
    assert set(group.others) == {"op/config.meta", "op/config_render.json"}
    assert "op/CT.raw" in group.uris


@pytest.mark.parametrize(
    ("text", "code", "says"),
    [
        ("not JSON", "config-invalid", "no JSON"),
        ("[]", "config-invalid", '"density"'),
        ('{"density": 1}', "config-invalid", '"density"'),
        ('{"density": "CT.mhd", "seg_masks": "x"}', "config-invalid", '"seg_masks"'),
        ('{"density": "gone.mhd"}', "data-file-missing", '"density"'),
        ('{"density": "CT.mhd", "seg_masks": ["gone"]}', "data-file-missing", r"seg_masks[0]"),
        ('{"density": "../../CT.mhd"}', "data-file-missing", '"density"'),
    ],
)
def test_a_config_that_is_wrong_is_refused(folder: Path, text: str, code: str, says: str) -> None:
    write(volume(), folder / "CT.mhd")
    (folder / "config.meta").write_text(text)
    made = planned(folder)
    (verdict,) = made.verdicts
    assert (verdict.uri, verdict.code, verdict.rejected) == ("config.meta", code, True)
    assert says in verdict.message
    assert groups(made) == {"CT.mhd": []}


def test_configs_of_one_volume_are_one_dataset(folder: Path) -> None:
    write(volume(), folder / "CT.mhd")
    for name in "liver", "tumour":
        write(labels(), folder / f"{name}.mhd")
        config = {"density": "CT.mhd", "seg_masks": [f"{name}.mhd"]}
        (folder / f"{name}.meta").write_text(json.dumps(config))
    made = planned(folder)
    assert (groups(made), made.verdicts) == ({"CT.mhd": ["liver.mhd", "tumour.mhd"]}, [])
    assert made.groups[0].others == ["liver.meta", "tumour.meta"]


@pytest.mark.parametrize("end", [".mhd", ".mha", ".nii", ".nii.gz"])
def test_an_output_belongs_to_its_volume_in_any_folder(folder: Path, end: str) -> None:
    write(volume(), folder / f"reader/1.2.3{end}")
    write(labels(), folder / "segmentation/1.2.3.output.mhd")
    (folder / "segmentation/1.2.3.output.json").write_text(
        '{"segments": [{"value": 1, "name": "Liver"}]}'
    )
    made = planned(folder)
    assert groups(made) == {f"reader/1.2.3{end}": ["segmentation/1.2.3.output.mhd"]}
    assert made.groups[0].labels[0].description == "segmentation/1.2.3.output.json"


def test_two_volumes_have_each_their_own_output(folder: Path) -> None:
    for name in "a", "b":
        write(volume(), folder / f"{name}/CT.mhd")
        write(labels(), folder / f"{name}/CT.output.mhd")
    assert groups(planned(folder)) == {"a/CT.mhd": ["a/CT.output.mhd"], "b/CT.mhd": ["b/CT.output.mhd"]}  # fmt: skip


def test_labels_are_known_by_what_is_in_them(folder: Path) -> None:
    write(volume(), folder / "scan.nii.gz")
    write(labels(kind=np.float32), folder / "scan_liver.nii.gz")
    write(labels(FLIPPED), folder / "elsewhere.nii.gz")
    assert groups(planned(folder)) == {"scan.nii.gz": ["scan_liver.nii.gz"], "elsewhere.nii.gz": []}


def test_labels_go_to_the_volume_whose_name_is_most_like_theirs(folder: Path) -> None:
    for name in "t1", "flair":
        write(volume(), folder / f"{name}.nii")
        write(labels(), folder / f"{name}_mask.nii")
    made = planned(folder)
    assert groups(made) == {"t1.nii": ["t1_mask.nii"], "flair.nii": ["flair_mask.nii"]}


def test_labels_find_the_volume_of_a_group_that_is_known(folder: Path) -> None:
    write(volume(), folder / "CT.mhd")
    write(labels(), folder / "CT.output.mhd")
    write(labels(), folder / "more.nii")
    assert groups(planned(folder)) == {"CT.mhd": ["CT.output.mhd", "more.nii"]}


def test_without_an_image_the_map_with_most_in_it_is_the_volume(folder: Path) -> None:
    grey = np.arange(np.prod(DIMS)).reshape(DIMS[::-1]) % 200
    image = SimpleITK.GetImageFromArray(grey.astype(np.uint8))
    image.CopyInformation(volume())
    write(image, folder / "b.mha")
    write(labels(), folder / "a.mha")
    assert groups(planned(folder)) == {"b.mha": ["a.mha"]}


def test_what_is_no_volume_is_none_of_its_business(folder: Path) -> None:
    write(volume(), folder / "CT.mha")
    (folder / "report.pdf").write_bytes(b"%PDF")
    (folder / "notes.json").write_text("{}")
    (folder / "stray.raw").write_bytes(b"1234")
    (folder / "empty").write_bytes(b"")
    made = planned(folder)
    assert set(codes(made).values()) == {"not-a-volume"}
    assert not any(one.rejected for one in made.verdicts)
    assert groups(made) == {"CT.mha": []}


# What is wrong

HEADERS: list[tuple[str, Callable[[Path], object], str]] = [
    ("no dims", lambda path: mhd(path, drop=("DimSize",)), "header-incomplete"),
    ("no type", lambda path: mhd(path, drop=("ElementType",)), "header-incomplete"),
    ("no spacing", lambda path: mhd(path, drop=("ElementSpacing",)), "header-incomplete"),
    ("odd dims", lambda path: mhd(path, DimSize="7 6 x"), "header-invalid"),
    ("few dims", lambda path: mhd(path, DimSize="7 6"), "header-invalid"),
    ("no voxels", lambda path: mhd(path, DimSize="0 6 5"), "header-invalid"),
    ("five dims", lambda path: mhd(path, NDims="5", DimSize="7 6 5 1 1"), "not-3d"),
    ("huge", lambda path: mhd(path, DimSize="70000 60000 5"), "too-large"),
    ("other dims", lambda path: mhd(path, DimSize="7 6 4"), "size-differs"),
    ("other type", lambda path: mhd(path, ElementType="MET_FLOAT"), "size-differs"),
    ("no such type", lambda path: mhd(path, ElementType="MET_WORD"), "unsupported-volume"),
    ("text", lambda path: mhd(path, BinaryData="False"), "unsupported-volume"),
    ("colour", lambda path: mhd(path, ElementNumberOfChannels="3"), "not-scalar"),
    ("no spacing between", lambda path: mhd(path, ElementSpacing="1 0 1"), "header-invalid"),
    ("odd spacing", lambda path: mhd(path, ElementSpacing="1 nan 1"), "header-invalid"),
    ("odd place", lambda path: mhd(path, Offset="1 2"), "header-invalid"),
    ("flat", lambda path: mhd(path, TransformMatrix="1 0 0 0 1 0 0 0 0"), "direction-invalid"),
    ("sheared", lambda path: mhd(path, TransformMatrix="1 0 0 0.2 1 0 0 0 1"), "direction-invalid"),
    ("stretched", lambda path: mhd(path, TransformMatrix="2 0 0 0 1 0 0 0 1"), "direction-invalid"),
    ("few numbers", lambda path: mhd(path, TransformMatrix="1 0 0 1"), "header-invalid"),
    ("gone", lambda path: mhd(path, ElementDataFile="gone.raw"), "data-file-missing"),
    ("outside", lambda path: mhd(path, ElementDataFile="../../a.raw"), "data-file-missing"),
    ("many", lambda path: mhd(path, ElementDataFile="LIST"), "unsupported-volume"),
    ("not compressed", lambda path: mhd(path, CompressedData="True"), "damaged"),
]


@pytest.mark.parametrize("make", [each[1] for each in HEADERS], ids=[each[0] for each in HEADERS])
def test_a_bad_header_is_refused_with_its_voxels(
    folder: Path, make: Callable[[Path], object]
) -> None:
    (code,) = [code for _, maker, code in HEADERS if maker is make]
    make(folder / "a.mhd")
    made = planned(folder)
    assert made.groups == []
    assert codes(made) == {"a.mhd": code, "a.raw": "dataset-incomplete"}
    assert all(one.rejected and one.message for one in made.verdicts)
    # A file's name may be a patient's.
    assert not any("a.mhd" in one.message or ".raw" in one.message for one in made.verdicts)


def test_voxels_may_be_the_last_bytes_of_their_file(folder: Path) -> None:
    mhd(folder / "a.mhd", HeaderSize="-1")
    raw = folder / "a.raw"
    raw.write_bytes(b"something before" + raw.read_bytes())
    mhd(folder / "b.mhd", HeaderSize="16")
    raw = folder / "b.raw"
    raw.write_bytes(b"something before" + raw.read_bytes())
    made = planned(folder)
    assert made.verdicts == []
    for group in made.groups:
        image = read(folder, group.density)
        assert image[LANDMARK] == 2000


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def test_voxels_that_are_cut_off_are_refused(folder: Path) -> None:
    cut(write(volume(), folder / "a.mha"))
    cut(write(volume(), folder / "b.nii"))
    packed = write(volume(), folder / "c.nii.gz")
    packed.write_bytes(gzip.compress(gzip.decompress(packed.read_bytes())[:-20]))
    cut(write(volume(), folder / "d.nii.gz"))
    cut(write(volume(), folder / "e.mha", compressed=True))
    short = write(volume(), folder / "f.mhd", compressed=True)
    raw = folder / "f.zraw"
    raw.write_bytes(zlib.compress(zlib.decompress(raw.read_bytes())[:-20]))
    long = write(volume(), folder / "g.mhd")
    (folder / "g.raw").write_bytes((folder / "g.raw").read_bytes() + b"more")
    assert short.exists()
    assert long.exists()
    (folder / "h.nii.gz").write_bytes(b"not gzip at all")
    made = planned(folder)
    assert made.groups == []
    assert codes(made) == {
        "a.mha": "size-differs",
        "b.nii": "size-differs",
        "c.nii.gz": "size-differs",
        "d.nii.gz": "damaged",
        "e.mha": "damaged",
        "f.mhd": "size-differs",
        "f.zraw": "dataset-incomplete",
        "g.mhd": "size-differs",
        "g.raw": "dataset-incomplete",
        "h.nii.gz": "damaged",
    }


@pytest.mark.parametrize(
    ("at", "kind", "value", "code"),
    [
        (0, "<i", 0, "header-invalid"),
        (344, "<4s", b"ni1\0", "unsupported-volume"),
        (40, "<h", 9, "header-invalid"),
        (42, "<h", 0, "header-invalid"),
        (70, "<h", 128, "unsupported-volume"),
        (108, "<f", float("nan"), "header-invalid"),
    ],
)
def test_a_bad_nifti_header_is_refused(
    folder: Path, at: int, kind: str, value: object, code: str
) -> None:
    path = write(volume(), folder / "a.nii")
    data = bytearray(path.read_bytes())
    struct.pack_into(kind, data, at, value)
    path.write_bytes(data)
    assert codes(planned(folder)) == {"a.nii": code}


def test_time_points_are_refused(folder: Path) -> None:
    write(SimpleITK.JoinSeries([volume(), volume()]), folder / "a.nii")
    write(SimpleITK.JoinSeries([volume(), volume()]), folder / "b.mha")
    assert codes(planned(folder)) == {"a.nii": "not-3d", "b.mha": "not-3d"}


def test_nothing_of_a_dataset_is_shown_if_a_part_is_bad(folder: Path) -> None:
    write(volume(), folder / "CT.mhd")
    write(labels(), folder / "CT.output.mhd")
    (folder / "CT.output.raw").write_bytes(b"short")
    write(volume(FLIPPED), folder / "other.mha")
    made = planned(folder)
    assert groups(made) == {"other.mha": []}
    assert codes(made) == {
        "CT.mhd": "dataset-incomplete",
        "CT.raw": "dataset-incomplete",
        "CT.output.mhd": "size-differs",
        "CT.output.raw": "dataset-incomplete",
    }


def test_labels_on_another_grid_are_refused(folder: Path) -> None:
    write(volume(IDENTITY), folder / "CT.mha")
    write(labels(FLIPPED), folder / "CT.output.mha")
    made = planned(folder)
    assert codes(made) == {"CT.mha": "dataset-incomplete", "CT.output.mha": "grid-differs"}
