"""What is announced of instances, in which batches, and what becomes of those that need no sending."""

from __future__ import annotations

import hashlib
import io
import threading
from typing import TYPE_CHECKING

import pytest
from pydicom import dcmread

from clara_results.agents import custody
from clara_results.agents.custody import Cleared, cleared
from clara_results.agents.dicom.plan import plan
from clara_results.domain.receivers import Clearance
from clara_results.domain.tasks import Outcome
from clara_results.errors import LeaseLost
from clara_results.wire.destinations import Destination
from tests.support.delivery import FolderDelivery

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from typing import Any

    from clara_results.wire.instances import Announced
    from tests.conftest import CtWriter

LIMIT = 10.0
PACS = Destination(name="PACS", ae_title="PACS", host="pacs.example", port=104)


def series(folder: Path, write_ct: CtWriter, count: int, **changes: Any) -> None:
    for number in range(count):
        write_ct(folder / f"{number:04}", number=number, **changes)


def ready(delivery: FolderDelivery) -> list[str]:
    with cleared(delivery, PACS, plan(delivery)) as found:
        return [instance.file.uri for instance in found]


def test_all_of_an_instance_is_announced(tmp_path: Path, write_ct: CtWriter) -> None:
    for size in (16, 256):  # one that is held from its reading on, one that is read again
        write_ct(
            tmp_path / str(size),
            size=size,
            AccessionNumber="A-1 ",
            PatientID="P 1",
            IssuerOfPatientID="Ward",
        )
    delivery = FolderDelivery(tmp_path)
    assert ready(delivery) == ["16", "256"]
    for told in delivery.announced:
        raw = (tmp_path / told.uri).read_bytes()
        image = dcmread(io.BytesIO(raw))
        begin = raw.index(b"\x08\x00\x05\x00CS")
        assert told.sha256 == hashlib.sha256(raw[begin:]).hexdigest()
        assert told.sop_instance_uid == image.SOPInstanceUID
        assert told.sop_class_uid == image.SOPClassUID
        assert told.study_instance_uid == image.StudyInstanceUID
        assert told.series_instance_uid == image.SeriesInstanceUID
        assert (told.accession_number, told.patient_id) == ("A-1", "P 1")
        assert told.issuer_of_patient_id == "Ward"


@pytest.mark.parametrize(
    ("character_set", "text", "expected"),
    [
        ("ISO_IR 100", "Jürgen", "Jürgen"),
        ("ISO_IR 192", "患者", "患者"),
        ("GB18030", "患者1", "患者1"),
        (["", "ISO 2022 IR 87"], "山田", "山田"),
    ],
)
def test_values_are_told_in_their_character_set(
    tmp_path: Path, write_ct: CtWriter, character_set: Any, text: str, expected: str
) -> None:
    write_ct(tmp_path / "1", SpecificCharacterSet=character_set, PatientID=text)
    delivery = FolderDelivery(tmp_path)
    ready(delivery)
    assert delivery.announced[0].patient_id == expected


@pytest.mark.parametrize("character_set", [b"ISO_IR 192", b"ISO_IR 999", b"NONSENSE  "])
def test_what_cannot_be_decoded_is_replaced(
    tmp_path: Path, write_ct: CtWriter, character_set: bytes
) -> None:
    write_ct(tmp_path / "1", SpecificCharacterSet="ISO_IR 192", PatientID="PXXXX")
    raw = (tmp_path / "1").read_bytes()
    raw = raw.replace(b"ISO_IR 192", character_set, 1).replace(b"PXXXX", b"P\xff\xfe\x001")
    (tmp_path / "1").write_bytes(raw)
    delivery = FolderDelivery(tmp_path)
    ready(delivery)
    told = delivery.announced[0].patient_id
    assert told is not None
    assert told.startswith("P")
    assert told.endswith("1")
    assert "\0" not in told
    assert "\ufffd" in told


def test_what_has_no_value_is_not_announced_as_one(tmp_path: Path, write_ct: CtWriter) -> None:
    write_ct(tmp_path / "1", PatientID="", AccessionNumber="", StudyInstanceUID=None)
    delivery = FolderDelivery(tmp_path)
    ready(delivery)
    told = delivery.announced[0]
    assert (told.patient_id, told.accession_number, told.study_instance_uid) == (None, None, None)


def test_what_needs_no_sending_is_told(tmp_path: Path, write_ct: CtWriter) -> None:
    series(tmp_path, write_ct, 4)
    clearances = {"0001": Clearance.DELIVERED, "0002": Clearance.REUSED}
    delivery = FolderDelivery(tmp_path, clearances=clearances)
    assert ready(delivery) == ["0000", "0003"]
    assert delivery.codes(Outcome.DELIVERED) == {"0001": "already-delivered"}
    assert delivery.codes(Outcome.REJECTED) == {"0002": "uid-reused"}
    assert not delivery.outcomes["0002"].doubt


def test_a_file_that_is_gone_by_then_is_told_and_the_rest_goes_on(
    tmp_path: Path, write_ct: CtWriter
) -> None:
    series(tmp_path, write_ct, 3, size=256)
    delivery = FolderDelivery(tmp_path)
    instances = plan(delivery)
    (tmp_path / "0001").unlink()
    with cleared(delivery, PACS, instances) as found:
        assert [instance.file.uri for instance in found] == ["0000", "0002"]
    assert delivery.codes(Outcome.RETRY) == {"0001": "missing-file"}


class Batches(FolderDelivery):
    """Counts announcements, and may refuse one."""

    sizes: list[int]
    fails_at: int | None = None

    def announce(self, receiver: str, instances: Sequence[Announced]) -> Mapping[str, Clearance]:
        self.sizes = [*getattr(self, "sizes", []), len(instances)]
        if len(self.sizes) == self.fails_at:
            raise LeaseLost("gone")
        return super().announce(receiver, instances)


def test_it_works_two_batches_ahead_and_no_further(tmp_path: Path, write_ct: CtWriter) -> None:
    series(tmp_path, write_ct, 150)
    delivery = Batches(tmp_path)
    first = custody.FIRST_BATCH
    with cleared(delivery, PACS, plan(delivery)) as found:
        next(found)
        until = threading.Event()
        for _ in range(100):
            if len(delivery.sizes) == 3:
                break
            until.wait(0.05)
        until.wait(0.3)  # were it to go on, it would now
        assert delivery.sizes == [first, 2 * first, 4 * first]
        assert len(list(found)) == 149
    assert sum(delivery.sizes) == 150


def test_what_stops_it_is_raised_to_each_who_takes(tmp_path: Path, write_ct: CtWriter) -> None:
    series(tmp_path, write_ct, 40)
    delivery = Batches(tmp_path)
    delivery.fails_at = 2
    with cleared(delivery, PACS, plan(delivery)) as found:
        for _ in range(custody.FIRST_BATCH):
            next(found)
        for _ in range(2):
            with pytest.raises(LeaseLost):
                next(found)


def test_it_ends_when_it_is_left_early(tmp_path: Path, write_ct: CtWriter) -> None:
    series(tmp_path, write_ct, 150)
    before = threading.active_count()
    delivery = FolderDelivery(tmp_path)
    with cleared(delivery, PACS, plan(delivery)) as found:
        assert isinstance(found, Cleared)
        next(found)
    assert threading.active_count() == before
    assert len(delivery.announced) < 150
