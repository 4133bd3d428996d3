"""The render agent's exporter without a service: what is told of each file, whatever goes wrong."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import pytest

pytest.importorskip("isal", reason="clara-results[render] is not installed")

from pydicom import dcmread

from clara_results.agents.render.converter import Converter
from clara_results.agents.render.exporter import PATIENCE, RenderExporter
from clara_results.domain import datasets as domain
from clara_results.domain.tasks import Outcome
from clara_results.errors import (
    DestinationUnavailable,
    LeaseLost,
    Refused,
    ServiceUnavailable,
    Stopping,
)
from clara_results.wire.datasets import Dataset, DatasetFile, Publication
from clara_results.wire.payloads import Payload, PayloadFile
from tests.support.delivery import FolderDelivery
from tests.support.slices import COLUMNS, ROWS, SLICES, mask, segmentation, write_series
from tests.support.volumes import labels, mhd, volume, write

if TYPE_CHECKING:
    from tests.conftest import CtWriter

TASK = "0193b0f0-c92e-7eab-aabc-d5e1855295d6"


class Hurried:
    """A clock that goes on by half of the agent's patience each time that it is looked at."""

    def __init__(self) -> None:
        self._at = 0.0

    def monotonic(self) -> float:
        self._at += PATIENCE / 2
        return self._at

    def now(self) -> Any:
        raise AssertionError("nobody asks for the time of day")


class Keeper:
    """Takes datasets as the service does; ``fault`` may raise instead."""

    def __init__(self, fault: Callable[[str], None] = lambda _: None) -> None:
        self._fault = fault
        self._lock = threading.Lock()
        self.files: dict[str, bytes] = {}
        self.published: dict[str, Publication] = {}
        self.listed: list[PayloadFile] = []

    def put_dataset_file(
        self, task_id: str, dataset_id: str, lease_token: str, file: DatasetFile, content: BinaryIO
    ) -> None:
        self._fault("put")
        data = content.read()
        assert (len(data), lease_token) == (file.size, "token")
        with self._lock:
            self.files[file.uri] = data

    def publish(self, task_id: str, dataset_id: str, body: Publication) -> Dataset:
        self._fault("publish")
        assert dataset_id == domain.dataset_id(task_id, body.density)
        self.published[body.name] = body
        return None  # type: ignore[return-value]  # nobody looks at it

    def payload(self, payload_id: str) -> Payload:
        self._fault("payload")
        return Payload(payload_id=payload_id, files=self.listed)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Give a folder with a volume and its labels."""
    path = tmp_path / "payload"
    write(volume(), path / "op/ct.mhd")
    write(labels(), path / "op/ct.output.mhd")
    return path


ALL = ["op/ct.mhd", "op/ct.output.mhd", "op/ct.output.raw", "op/ct.raw"]


def delivery(folder: Path, at_checkpoint: Callable[[int], None] = lambda _: None) -> FolderDelivery:
    made = FolderDelivery(folder, None, at_checkpoint)
    object.__setattr__(made.task, "task_id", TASK)
    object.__setattr__(made.task, "lease_token", "token")
    return made


def deliver(made: FolderDelivery, keeper: Keeper, converter: Converter | None = None) -> None:
    exporter = RenderExporter(keeper, Hurried(), converter)
    try:
        exporter.deliver(made)
    finally:
        exporter.close()


def test_all_files_of_a_dataset_are_delivered_once_it_is_published(folder: Path) -> None:
    (folder / "notes.txt").write_text("none of it")
    made, keeper = delivery(folder), Keeper()
    deliver(made, keeper)
    assert made.uris(Outcome.DELIVERED) == ALL
    assert made.codes(Outcome.SKIPPED) == {"notes.txt": "not-a-volume"}
    (body,) = keeper.published.values()
    assert sorted(body.files) == ALL
    assert made.bytes_told == sum((folder / uri).stat().st_size for uri in ALL)
    assert {one.uri.split("/")[-1] for one in body.originals} == {uri.split("/")[-1] for uri in ALL}
    listed = {body.volume.uri, body.previews.axial, body.previews.coronal, body.previews.sagittal}
    listed |= {one.uri for one in body.labels} | {one.uri for one in body.originals}
    assert listed == set(keeper.files)
    assert all(name.isprintable() for name in keeper.files)


def test_if_a_file_is_not_there_all_wait_for_it(folder: Path) -> None:
    made, keeper = delivery(folder), Keeper()
    (folder / "op/ct.raw").unlink()
    deliver(made, keeper)
    assert made.codes() == dict.fromkeys(ALL, "missing-file")
    assert made.uris(Outcome.RETRY) == ALL
    assert keeper.published == {}


def test_a_file_that_was_changed_is_refused_with_what_belongs_to_it(folder: Path) -> None:
    made, keeper = delivery(folder), Keeper()
    (folder / "op/ct.raw").write_bytes(b"other")
    deliver(made, keeper)
    assert made.uris(Outcome.REJECTED) == ALL
    assert made.codes()["op/ct.raw"] == "file-changed"
    assert keeper.published == {}


def test_without_its_labels_a_volume_is_not_published(folder: Path) -> None:
    made, keeper = delivery(folder), Keeper()
    (folder / "op/ct.output.raw").write_bytes(b"other")
    deliver(made, keeper)
    assert made.uris(Outcome.REJECTED) == ALL
    assert keeper.files == {}


def test_labels_that_are_none_are_told_as_what_is_bad(folder: Path) -> None:
    write(volume(), folder / "op/ct.output.mhd")
    made, keeper = delivery(folder), Keeper()
    deliver(made, keeper)
    incomplete = dict.fromkeys(ALL, "dataset-incomplete")
    assert made.codes(Outcome.REJECTED) == incomplete | {"op/ct.output.mhd": "not-labels"}
    assert keeper.files == {}


@pytest.mark.parametrize("call", ["put", "publish"])
def test_a_service_that_can_not_take_it_makes_the_task_wait(folder: Path, call: str) -> None:
    def full(called: str) -> None:
        if called == call:
            raise ServiceUnavailable("the Results Service says 507: no room")

    made = delivery(folder)
    with pytest.raises(DestinationUnavailable, match="507"):
        deliver(made, Keeper(full))
    assert made.outcomes == {}


@pytest.mark.parametrize("call", ["put", "publish"])
def test_a_service_that_is_away_for_a_moment_is_asked_again(folder: Path, call: str) -> None:
    left = [call]

    def once(called: str) -> None:
        if called in left:
            left.remove(called)
            raise ServiceUnavailable("away")

    made = delivery(folder)
    deliver(made, Keeper(once))
    assert (made.uris(Outcome.DELIVERED), left) == (ALL, [])


def test_what_the_service_refuses_is_rejected(folder: Path) -> None:
    def refuse(called: str) -> None:
        if called == "publish":
            raise Refused("it can't be", code="invalid-dataset", status=422)

    made = delivery(folder)
    deliver(made, Keeper(refuse))
    assert made.codes(Outcome.REJECTED) == dict.fromkeys(ALL, "invalid-dataset")


@pytest.mark.parametrize("error", [LeaseLost("gone"), Stopping("ended")])
def test_nothing_more_is_done_once_the_task_is_not_the_agent_s(
    folder: Path, error: Exception
) -> None:
    begun = threading.Event()

    def look(_: int) -> None:
        if begun.is_set():
            raise error

    def put(called: str) -> None:
        begun.set()

    made, keeper = delivery(folder, look), Keeper(put)
    with pytest.raises(type(error)):
        deliver(made, keeper)
    assert (made.outcomes, keeper.published) == ({}, {})


SILENT = "tests.support.silent_child"


def test_a_lease_that_is_lost_while_it_converts_ends_the_child(folder: Path) -> None:
    converter = Converter(SILENT)
    pids: list[int | None] = []

    def look(count: int) -> None:
        pids.append(converter.pid)
        if count > len(ALL) + 2:
            raise LeaseLost("gone")

    with pytest.raises(LeaseLost):
        deliver(delivery(folder, look), Keeper(), converter)
    assert pids[-1] is not None
    assert not Path(f"/proc/{pids[-1]}").exists()


@pytest.mark.parametrize(
    ("module", "says"),
    [(SILENT, "did not come to an end"), ("tests.support.no_such_module", "broke down")],
)
def test_a_child_that_hangs_or_dies_is_a_matter_of_another_try(
    folder: Path, module: str, says: str
) -> None:
    made = delivery(folder)
    deliver(made, Keeper(), Converter(module, least=0.5 if module == SILENT else 30))
    assert made.codes(Outcome.RETRY) == dict.fromkeys(ALL, "converter-failed")
    assert says in (made.outcomes[ALL[0]].message or "")


def test_a_disk_without_room_makes_the_task_wait(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(DestinationUnavailable, match="TMPDIR"):
        deliver(delivery(folder), Keeper())


def test_a_dataset_that_is_refused_does_not_keep_back_the_next(folder: Path) -> None:
    write(volume((-1, 0, 0, 0, 1, 0, 0, 0, 1)), folder / "zz/other.mha")
    left = [1]

    def refuse(called: str) -> None:
        if called == "put" and left:
            left.clear()
            raise Refused("it can't be", code="digest-mismatch", status=422)

    made, keeper = delivery(folder), Keeper(refuse)
    deliver(made, keeper)
    assert made.codes(Outcome.REJECTED) == dict.fromkeys(ALL, "digest-mismatch")
    assert made.uris(Outcome.DELIVERED) == ["zz/other.mha"]
    other = keeper.published["other"]
    assert {other.volume.uri, other.originals[0].uri} <= set(keeper.files)


def test_one_bad_dataset_does_not_keep_back_the_others(folder: Path) -> None:
    mhd(folder / "bad/a.mhd", DimSize="7 6 4")
    made, keeper = delivery(folder), Keeper()
    deliver(made, keeper)
    assert made.uris(Outcome.DELIVERED) == ALL
    assert made.codes(Outcome.REJECTED) == {"bad/a.mhd": "size-differs", "bad/a.raw": "dataset-incomplete"}  # fmt: skip


def test_a_segmentation_is_shown_over_its_series_in_the_payload(
    tmp_path: Path, write_ct: "CtWriter"
) -> None:
    payload = tmp_path / "payload"
    payload.mkdir()
    names = write_series(payload, write_ct)
    segmentation(payload, dcmread(payload / names[0]), [(1, 4)], [mask((0, 0))])
    (payload / "notes.txt").write_text("none of it")
    made, keeper = delivery(payload), Keeper()
    files = made.task.files or []
    keeper.listed = [PayloadFile(uri=one.uri, size=one.size or 0, modified=made.task.created_at) for one in files]  # fmt: skip
    object.__setattr__(made.task, "files", [one for one in files if one.uri == "seg.dcm"])
    deliver(made, keeper)
    assert made.uris(Outcome.DELIVERED) == ["seg.dcm"]
    (body,) = keeper.published.values()
    assert (body.density, body.files, body.modality) == ("seg.dcm", ["seg.dcm"], "CT")
    assert [one.uri.split("/")[-1] for one in body.originals] == ["seg.dcm"]
    assert body.volume.dims == [COLUMNS, ROWS, SLICES]
    assert [one.name for one in body.labels[0].values] == ["Organ 1"]
