"""The liver-tumour pipeline's stand-in for an AI operator, and the description that goes with a label map."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import SimpleITK

from liver_tumor import description
from liver_tumor.segmentation import DESCRIPTION, LESION, LUNG, convert, segment
from liver_tumor.step import Refused

if TYPE_CHECKING:
    from pathlib import Path

AIR, LUNG_HU, TISSUE = -1000, -850, 40
SPACING = (4.0, 4.0, 5.0)
"""Millimetres."""


def ball(centre: tuple[float, float, float], radius: tuple[float, float, float]) -> Any:
    """Return an ellipsoid in a volume of 80 x 64 x 40 voxels; millimetres, x y z."""
    places = np.indices((40, 64, 80))[::-1] * np.reshape(SPACING, (3, 1, 1, 1))
    away = (places - np.reshape(centre, (3, 1, 1, 1))) / np.reshape(radius, (3, 1, 1, 1))
    return (away**2).sum(axis=0) <= 1


def phantom(*, lungs: bool = True, lesion: bool = True) -> tuple[Any, Any]:
    """Return a chest with two lungs and a lesion of 15 mm radius, and where the lesion is."""
    values = np.full((40, 64, 80), AIR, np.int16)
    values[ball((160, 128, 100), (140, 105, 200))] = TISSUE
    if lungs:
        values[ball((90, 128, 100), (45, 70, 75))] = LUNG_HU
        values[ball((230, 128, 100), (45, 70, 75))] = LUNG_HU
    place = ball((230, 128, 100), (15, 15, 15))
    if lesion:
        values[place] = TISSUE
    image: Any = SimpleITK.GetImageFromArray(values)
    image.SetSpacing(SPACING)
    return image, place


def test_lungs_and_the_lesion_in_them_are_found() -> None:
    volume, lesion = phantom()

    label = segment(volume)

    found = SimpleITK.GetArrayFromImage(label)
    assert label.GetPixelID() == SimpleITK.sitkUInt8
    assert label.GetSpacing() == SPACING
    overlap = 2 * (lesion & (found == LESION)).sum() / (lesion.sum() + (found == LESION).sum())
    assert overlap > 0.9
    lung = SimpleITK.GetArrayFromImage(volume) == LUNG_HU
    assert (found[lung] == LUNG).mean() > 0.97
    assert not found[SimpleITK.GetArrayFromImage(volume) == AIR].any()


def test_no_lesion_is_no_lesion() -> None:
    volume, _ = phantom(lesion=False)

    assert np.unique(SimpleITK.GetArrayFromImage(segment(volume))).tolist() == [0, LUNG]


def test_a_volume_without_lungs_is_refused() -> None:
    volume, _ = phantom(lungs=False)

    with pytest.raises(Refused, match="no lung is in this volume"):
        segment(volume)


def test_label_map_and_description_bear_the_volumes_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    volume, _ = phantom()
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    SimpleITK.WriteImage(volume, str(tmp_path / "in" / "1.2.3.mhd"))

    convert(tmp_path / "in", tmp_path / "out")

    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "1.2.3.output.json",
        "1.2.3.output.mhd",
        "1.2.3.output.raw",
    ]
    assert description.read(tmp_path / "out" / "1.2.3.output.json") == DESCRIPTION
    said = capsys.readouterr().out
    assert "NOT AI - NOT A MEDICAL DEVICE" in said
    assert "Lesion: 1" in said


def test_it_says_that_it_is_neither_ai_nor_a_medical_device() -> None:
    for text in (DESCRIPTION.notice, DESCRIPTION.series_description):
        assert "NOT AI" in text
        assert "NOT A MEDICAL DEVICE" in text
    assert DESCRIPTION.algorithm.family.value == "123104"  # morphological operations, not 123110


def altered(**changes: Any) -> dict[str, Any]:
    return DESCRIPTION.model_dump(by_alias=True) | changes


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (altered(notice="back\\slash"), "notice: String should match"),
        (altered(notice="x" * 65), "notice: String should have at most 64"),
        (altered(segments=[]), "segments: Tuple should have at least 1"),
        (altered(segmentz=[]), "segmentz: Extra inputs"),
        (altered(segments=[DESCRIPTION.segments[0].model_dump(by_alias=True)] * 2), "twice"),
        (
            altered(segments=[{"value": 0, "name": "Läsion", "color": "red"}]),
            r"segments\.0\.value.*segments\.0\.name.*segments\.0\.color.*segments\.0\.category",
        ),
    ],
)
def test_a_description_that_is_not_valid_is_refused_with_all_that_is_wrong(
    tmp_path: Path, content: dict[str, Any], reason: str
) -> None:
    path = tmp_path / "1.2.3.output.json"
    path.write_text(json.dumps(content))

    with pytest.raises(Refused, match=reason):
        description.read(path)


def test_a_label_map_needs_a_description(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="it says what the label map's values mean"):
        description.read(tmp_path / "1.2.3.output.json")
