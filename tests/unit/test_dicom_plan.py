"""What of a task is sent, in which order, and what is held back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from pydicom import dcmread
from pydicom.uid import (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MediaStorageDirectoryStorage,
    generate_uid,
)

from clara_results.agents.dicom.plan import check_unchanged, plan
from clara_results.agents.exporter import FileRejected
from clara_results.domain.tasks import Outcome
from clara_results.errors import Stopping
from tests.support.delivery import FolderDelivery

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

    from tests.conftest import CtWriter

STORAGE = "1.2.840.10008.5.1.4.1.1."


def planned(delivery: FolderDelivery) -> list[str]:
    return [instance.file.uri for instance in plan(delivery)]


def test_what_refers_comes_after_what_it_refers_to(tmp_path: Path, write_ct: CtWriter) -> None:
    order = [
        ("m-ct", "2"),
        ("l-seg", "66.4"),
        ("k-presentation-state", "11.1"),
        ("j-structure-set", "481.3"),
        ("i-basic-report", "88.11"),
        ("h-enhanced-report", "88.22"),
        ("a-key-objects", "88.59"),
    ]
    for number, (name, suffix) in enumerate(order):
        write_ct(tmp_path / f"{name}.dcm", number=number, SOPClassUID=STORAGE + suffix)
    assert planned(FolderDelivery(tmp_path)) == [f"{name}.dcm" for name, _ in order]


def test_images_go_by_study_series_and_instance_number(tmp_path: Path, write_ct: CtWriter) -> None:
    def add(name: str, **changes: Any) -> None:
        write_ct(tmp_path / name, **changes)

    add("a", StudyInstanceUID="1.2.2", SeriesNumber=1, InstanceNumber=1)
    add("b", StudyInstanceUID="1.2.1", SeriesNumber=10, InstanceNumber=1)
    add("c", StudyInstanceUID="1.2.1", SeriesNumber=9, SeriesInstanceUID="1.5", InstanceNumber=10)
    add("d", StudyInstanceUID="1.2.1", SeriesNumber=9, SeriesInstanceUID="1.5", InstanceNumber=9)
    add("e", StudyInstanceUID="1.2.1", SeriesNumber=9, SeriesInstanceUID="1.4", InstanceNumber=77)
    add("f", StudyInstanceUID="1.2.1", SeriesNumber=9, SeriesInstanceUID="1.4", InstanceNumber=None)
    add("g", StudyInstanceUID="1.2.1", SeriesNumber=None, SeriesInstanceUID="1.3", InstanceNumber=1)
    add("i", StudyInstanceUID="1.2.1", SeriesNumber=9, SeriesInstanceUID="1.5", InstanceNumber=9)
    assert planned(FolderDelivery(tmp_path)) == ["e", "f", "d", "i", "c", "b", "g", "a"]


def test_what_is_not_dicom_is_skipped_and_what_claims_it_rejected(
    tmp_path: Path, write_ct: CtWriter
) -> None:
    write_ct(tmp_path / "image")
    (tmp_path / "note.txt").write_text("hello")
    (tmp_path / "empty").touch()
    (tmp_path / "wrong.DCM").write_text("hello")
    write_ct(tmp_path / "cut")
    whole = (tmp_path / "cut").read_bytes()
    (tmp_path / "cut").write_bytes(whole[:-1])
    write_ct(tmp_path / "DICOMDIR", SOPClassUID=MediaStorageDirectoryStorage)
    delivery = FolderDelivery(tmp_path)
    assert planned(delivery) == ["image"]
    assert delivery.codes(Outcome.SKIPPED) == {
        "note.txt": "not-dicom",
        "empty": "not-dicom",
        "DICOMDIR": "dicomdir",
    }
    assert delivery.codes(Outcome.REJECTED) == {
        "wrong.DCM": "unreadable-dicom",
        "cut": "unreadable-dicom",
    }


def test_a_file_that_is_gone_is_tried_again_and_one_that_changed_is_not(
    tmp_path: Path, write_ct: CtWriter
) -> None:
    for name in ("here", "gone", "changed"):
        write_ct(tmp_path / name)
    delivery = FolderDelivery(tmp_path)
    (tmp_path / "gone").unlink()
    (tmp_path / "changed").write_text("changed")
    assert planned(delivery) == ["here"]
    assert delivery.codes(Outcome.RETRY) == {"gone": "missing-file"}
    assert delivery.codes(Outcome.REJECTED) == {"changed": "file-changed"}


def test_a_file_that_changes_after_it_was_read_is_found(tmp_path: Path, write_ct: CtWriter) -> None:
    write_ct(tmp_path / "one")
    (instance,) = plan(FolderDelivery(tmp_path))
    with (tmp_path / "one").open("rb") as file:
        check_unchanged(file, instance)
    write_ct(tmp_path / "one", number=2)
    with (tmp_path / "one").open("rb") as file, pytest.raises(FileRejected, match="changed"):
        check_unchanged(file, instance)


@pytest.mark.parametrize(
    ("keyword", "name"),
    [
        ("SOPClassUID", "SOP Class UID"),
        ("SOPInstanceUID", "SOP Instance UID"),
    ],
)
def test_meta_header_and_data_set_must_name_the_same(
    tmp_path: Path, write_ct: CtWriter, keyword: str, name: str
) -> None:
    write_ct(tmp_path / "right")
    write_ct(tmp_path / "wrong")
    image = dcmread(tmp_path / "wrong")
    setattr(image, keyword, "1.2.3")
    image.save_as(tmp_path / "wrong", enforce_file_format=False)
    delivery = FolderDelivery(tmp_path)
    assert planned(delivery) == ["right"]
    assert delivery.codes() == {"wrong": "uid-mismatch"}
    message = delivery.outcomes["wrong"].message
    assert message is not None
    assert name in message
    assert "1.2.3" in message


def test_a_data_set_without_its_uid_is_rejected(tmp_path: Path, write_ct: CtWriter) -> None:
    write_ct(tmp_path / "wrong")
    image = dcmread(tmp_path / "wrong")
    del image.SOPInstanceUID
    image.save_as(tmp_path / "wrong", enforce_file_format=False)
    delivery = FolderDelivery(tmp_path)
    assert planned(delivery) == []
    assert "missing in the data set" in str(delivery.outcomes["wrong"].message)


@pytest.mark.parametrize(
    "other",
    [
        {"PatientID": "SECRET-2"},
        {"PatientID": None},
        {"PatientID": "SECRET-1", "IssuerOfPatientID": "SECRET-WARD"},
    ],
)
def test_a_study_of_two_patients_is_held_back_whole(
    tmp_path: Path, write_ct: CtWriter, other: dict[str, Any]
) -> None:
    for number in (1, 2, 3):
        write_ct(tmp_path / f"{number}", number=number, PatientID="SECRET-1")
    write_ct(tmp_path / "4", number=4, **other)
    write_ct(tmp_path / "5", StudyInstanceUID=generate_uid(), PatientID="SECRET-3")
    delivery = FolderDelivery(tmp_path)
    assert planned(delivery) == ["5"]
    assert delivery.codes(Outcome.REJECTED) == dict.fromkeys("1234", "patient-mismatch")
    for told in delivery.outcomes.values():
        assert "SECRET" not in str(told)
        assert "2 different patients" in str(told.message)


def test_padding_does_not_make_another_patient(tmp_path: Path, write_ct: CtWriter) -> None:
    write_ct(tmp_path / "1", PatientID="P1")
    write_ct(tmp_path / "2", PatientID="P1 ")
    assert planned(FolderDelivery(tmp_path)) == ["1", "2"]


def test_the_same_instance_twice_goes_once(tmp_path: Path, write_ct: CtWriter) -> None:
    write_ct(tmp_path / "b")
    data = (tmp_path / "b").read_bytes()
    (tmp_path / "a").write_bytes(data)
    (tmp_path / "c").write_bytes(b"another preamble".ljust(128) + data[128:])
    delivery = FolderDelivery(tmp_path)
    assert planned(delivery) == ["a"]
    assert delivery.codes(Outcome.SKIPPED) == {
        "b": "duplicate-instance",
        "c": "duplicate-instance",
    }


def test_different_objects_under_one_uid_are_all_held_back(
    tmp_path: Path, write_ct: CtWriter
) -> None:
    write_ct(tmp_path / "1", SOPInstanceUID="1.2.3.4")
    (tmp_path / "1-again").write_bytes((tmp_path / "1").read_bytes())
    write_ct(tmp_path / "2", number=2, SOPInstanceUID="1.2.3.4")
    write_ct(tmp_path / "3")
    delivery = FolderDelivery(tmp_path)
    assert planned(delivery) == ["3"]
    assert delivery.codes(Outcome.REJECTED) == dict.fromkeys(["1", "1-again", "2"], "uid-reused")
    assert delivery.outcomes["1"].sop_instance_uid == "1.2.3.4"


def test_one_object_in_two_transfer_syntaxes_is_held_back(
    tmp_path: Path, write_ct: CtWriter
) -> None:
    for name, syntax in (("1", ExplicitVRLittleEndian), ("2", ImplicitVRLittleEndian)):
        write_ct(tmp_path / name, SOPInstanceUID="1.2.3.4", transfer_syntax=syntax)
    delivery = FolderDelivery(tmp_path)
    assert planned(delivery) == []
    assert set(delivery.codes(Outcome.REJECTED).values()) == {"uid-reused"}


def test_a_stop_ends_the_reading(tmp_path: Path, write_ct: CtWriter) -> None:
    for name in "abc":
        write_ct(tmp_path / name)

    def stop(count: int) -> None:
        if count == 2:
            raise Stopping("asked to end")

    with pytest.raises(Stopping):
        plan(FolderDelivery(tmp_path, at_checkpoint=stop))
