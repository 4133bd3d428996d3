"""``/api/datasets`` over HTTP: uploaded and published under a lease, seen whole or not at all, and removed in time."""

import dataclasses
import hashlib
import io
import os
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from clara_results.domain import datasets as domain
from clara_results.domain.tasks import Outcome
from clara_results.errors import (
    LeaseLost,
    NotFound,
    Refused,
)
from clara_results.wire.codec import to_json
from clara_results.wire.datasets import (
    Dataset,
    DatasetFile,
    LabelMap,
    LabelValue,
    LargestLabel,
    Previews,
    Publication,
    Volume,
)
from clara_results.wire.tasks import Release, SuccessReport, Task

if TYPE_CHECKING:
    from tests.integration.conftest import LocalService, TokenMaker

DENSITY = "op/ct.mhd"
only_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


class Maker:
    """Makes a dataset for a claimed task as the render agent does."""

    def __init__(self, local: "LocalService", task: Task) -> None:
        self.local = local
        self.task_id = task.task_id
        self.token = task.lease_token or ""
        self.id = domain.dataset_id(task.task_id, DENSITY)

    def put(self, kind: str, name: str, content: bytes) -> DatasetFile:
        sha256 = hashlib.sha256(content).hexdigest()
        file = DatasetFile(
            uri=domain.file_uri(kind, sha256, name), size=len(content), sha256=sha256
        )
        self.local.client.put_dataset_file(
            self.task_id, self.id, self.token, file, io.BytesIO(content)
        )
        return file

    def body(self, content: bytes = b"the volume", **changes: Any) -> Publication:
        """Upload files, and return what publishes them."""
        volume = self.put("volume", "ct.nii.gz", content)
        label = self.put("label", "ct.output.nii.gz", b"a label")
        png = self.put("preview", "axial.png", b"\x89PNG").uri
        original = self.put("original", "op/ct.mhd", b"ObjectType = Image")
        liver = LabelValue(
            value=1, name="liver", color="#c04030", volume_ml=1.5, voxels=3, centre=[0.5, -1, 2]
        )
        fields: dict[str, Any] = {
            "lease_token": self.token,
            "density": DENSITY,
            "files": [DENSITY],
            "name": "ct",
            "modality": "CT",
            "unit": "HU",
            "volume": Volume(
                uri=volume.uri,
                size=volume.size,
                sha256=volume.sha256,
                dims=[4, 5, 6],
                spacing=[1, 1, 2.5],
                value_range=[-1024, 300],
                dtype="int16",
            ),
            "labels": [
                LabelMap(
                    uri=label.uri,
                    size=label.size,
                    sha256=label.sha256,
                    name="ct.output",
                    values=[liver],
                )
            ],
            "largest_label": LargestLabel(label=0, value=1),
            "previews": Previews(axial=png, coronal=png, sagittal=png),
            "originals": [original],
        }
        return Publication(**fields | changes)

    def publish(self, **changes: Any) -> Dataset:
        return self.local.client.publish(self.task_id, self.id, self.body(**changes))


@pytest.fixture
def maker(local: "LocalService") -> Maker:
    """Give what makes a dataset for a claimed task."""
    local.register(DENSITY, agent="renderserver")
    return Maker(local, local.claim("renderserver", lease=60))


def folder(local: "LocalService") -> list[str]:
    """Return the files of all datasets on the disk."""
    root = local.engine.datasets.files.root
    return sorted(
        str(path.relative_to(root))
        for path in root.rglob("*")
        if path.is_file() and ".incoming" not in path.parts
    )


def test_a_dataset_is_seen_once_it_is_published(local: "LocalService", maker: Maker) -> None:
    body = maker.body()
    assert local.call("GET", "/api/datasets").json == {"items": [], "nextCursor": None}
    one = f"/api/datasets/{maker.id}"
    local.call("GET", one).problem(404, "dataset-not-found")
    local.call("GET", f"{one}/files/{body.volume.uri}").problem(404, "dataset-not-found")
    made = local.client.publish(maker.task_id, maker.id, body)
    shown = local.call("GET", one).json
    assert (shown["datasetId"], shown["taskId"], shown["jobId"]) == (maker.id, maker.task_id, "job")
    assert shown["volume"]["dims"] == [4, 5, 6]
    assert shown["labels"][0]["values"][0]["centre"] == [0.5, -1, 2]
    assert shown["largestLabel"] == {"label": 0, "value": 1}
    assert (shown["firstLook"], shown["view"]) == (None, None)
    assert "leaseToken" not in shown
    assert local.client.dataset(maker.id) == made
    again = local.client.publish(maker.task_id, maker.id, body)
    assert again == made
    (file,) = local.client.files(maker.task_id).items
    assert (file.outcome, file.message) == (Outcome.DELIVERED, f"in dataset {maker.id}")
    local.client.succeed(maker.task_id, SuccessReport(lease_token=maker.token))
    for query in (f"taskId={maker.task_id}", "jobId=job", "payloadId=pay"):
        (item,) = local.call("GET", f"/api/datasets?{query}").json["items"]
        assert item == shown
    assert local.call("GET", "/api/datasets?jobId=other").json["items"] == []


@only_sqlite
def test_files_come_whole_in_part_and_for_ever(local: "LocalService", maker: Maker) -> None:
    content = os.urandom(300_000)
    made = maker.publish(content=content)
    url = f"/api/datasets/{maker.id}/files/{made.volume.uri}"
    down = local.call("GET", url)
    assert (down.status, down.data) == (200, content)
    assert down.headers["Content-Type"] == "application/gzip"
    assert "Content-Encoding" not in down.headers
    assert down.headers["Cache-Control"] == "private, max-age=31536000, immutable"
    assert down.headers["ETag"] == f'"{hashlib.sha256(content).hexdigest()}"'
    assert down.headers["X-Content-Type-Options"] == "nosniff"
    part = local.call("GET", url, headers={"Range": "bytes=10-19"})
    assert (part.status, part.data) == (206, content[10:20])
    assert part.headers["Content-Range"] == "bytes 10-19/300000"
    local.call("GET", url, headers={"Range": "bytes=300000-"}).problem(416, "range-not-satisfiable")
    assert local.call("GET", url, headers={"If-None-Match": down.headers["ETag"]}).status == 304
    head = local.call("HEAD", url)
    assert (head.status, head.data, head.headers["Content-Length"]) == (200, b"", "300000")
    png = local.call("GET", f"/api/datasets/{maker.id}/files/{made.previews.axial}")
    assert png.headers["Content-Type"] == "image/png"
    with local.client.get_dataset_file(maker.id, made.originals[0].uri) as original:
        assert b"".join(original.pieces) == b"ObjectType = Image"
    unlisted = f"/api/datasets/{maker.id}/files/volume/{'0' * 32}/other"
    local.call("GET", unlisted).problem(404, "file-not-found")


def test_only_the_holder_of_the_task_uploads_and_publishes(
    local: "LocalService", maker: Maker
) -> None:
    body = maker.body()
    local.client.release(maker.task_id, Release(lease_token=maker.token))
    later = Maker(local, local.claim("renderserver"))
    for stale in (lambda: maker.put("volume", "x.nii.gz", b"stale"), maker.publish):
        with pytest.raises(LeaseLost):
            stale()
    with pytest.raises(LeaseLost):
        local.client.publish(maker.task_id, maker.id, body)
    assert local.client.datasets().items == []
    assert later.publish().dataset_id == maker.id == later.id


@only_sqlite
def test_another_task_can_not_have_a_dataset_s_id(local: "LocalService", maker: Maker) -> None:
    maker.publish()
    local.register(DENSITY, agent="renderserver", job_id="other")
    other = Maker(local, local.claim("renderserver"))
    other.id = maker.id
    with pytest.raises(Refused) as refused:
        other.put("volume", "x.nii.gz", b"of another")
    assert (refused.value.status, refused.value.code) == (409, "dataset-exists")


def test_what_was_published_is_replaced_as_a_whole(local: "LocalService", maker: Maker) -> None:
    first = maker.publish(content=b"first")
    local.client.save_view(maker.id, {"opacity": 0.5})
    local.clock.advance(10)
    stray = maker.put("volume", "stray.nii.gz", b"of an attempt that died")
    second = maker.publish(content=b"second")
    assert second.created_at == first.created_at
    assert second.view == {"opacity": 0.5}
    for gone in (first.volume.uri, stray.uri):
        local.call("GET", f"/api/datasets/{maker.id}/files/{gone}").problem(404, "file-not-found")
    (left,) = [name for name in folder(local) if "/volume/" in name]
    assert left == f"{maker.id}/{second.volume.uri}"


@only_sqlite
def test_a_dataset_whose_files_are_not_there_is_not_published(
    local: "LocalService", maker: Maker
) -> None:
    body = maker.body()
    path = local.engine.datasets.files.root / maker.id / body.volume.uri
    path.unlink()
    with pytest.raises(Refused, match="1 of 4 files") as refused:
        local.client.publish(maker.task_id, maker.id, body)
    assert refused.value.code == "missing-file"
    path.write_bytes(b"cut")
    with pytest.raises(Refused, match="1 of 4 files"):
        local.client.publish(maker.task_id, maker.id, body)
    path.unlink()
    other = Previews(axial="preview/0/a.png", coronal="preview/0/a.png", sagittal="a.png")
    with pytest.raises(Refused, match="not there as they are listed"):
        maker.publish(previews=other)
    assert local.client.datasets().items == []


@only_sqlite
def test_a_file_that_came_differently_is_refused(local: "LocalService", maker: Maker) -> None:
    file = DatasetFile(uri=f"volume/{'0' * 32}/a.nii.gz", size=1, sha256="0" * 64)
    with pytest.raises(Refused) as refused:
        local.client.put_dataset_file(maker.task_id, maker.id, maker.token, file, io.BytesIO(b"x"))
    assert refused.value.code == "digest-mismatch"
    path = f"/api/tasks/{maker.task_id}/datasets/{maker.id}/files/{file.uri}"
    local.call("PUT", path, raw=b"x").problem(422, "invalid-request")  # no lease is shown
    assert folder(local) == []


@only_sqlite
@pytest.mark.parametrize(
    ("field", "value", "place"),
    [
        ("name", "", "name"),
        ("name", "a\nb", "name"),
        ("density", "op/other.mhd", "files"),
        ("files", [], "files"),
        ("dims", [1, 2], "volume.dims"),
        ("spacing", [1, 0, 1], "volume.spacing"),
        ("value_range", [0], "volume.valueRange"),
        ("color", "red", "labels[0].values[0].color"),
        ("centre", [1.0], "labels[0].values[0].centre"),
        ("largest_label", LargestLabel(label=0, value=2), "largestLabel"),
        ("largest_label", LargestLabel(label=-1, value=1), "largestLabel"),
    ],
)
def test_what_can_not_be_is_refused(
    local: "LocalService", maker: Maker, field: str, value: Any, place: str
) -> None:
    body = maker.body()
    if field in {"dims", "spacing", "value_range"}:
        body = dataclasses.replace(body, volume=dataclasses.replace(body.volume, **{field: value}))
    elif field in {"color", "centre"}:
        label = body.labels[0]
        one = dataclasses.replace(label.values[0], **{field: value})
        body = dataclasses.replace(body, labels=[dataclasses.replace(label, values=[one])])
    else:
        body = dataclasses.replace(body, **{field: value})
    answer = local.call(
        "PUT",
        f"/api/tasks/{maker.task_id}/datasets/{maker.id}",
        raw=to_json(body),
        headers={"Content-Type": "application/json"},
    )
    problem = answer.problem(422, "invalid-dataset")
    assert [error["field"] for error in problem["errors"]] == [place]


@only_sqlite
def test_the_density_is_a_file_of_the_task(local: "LocalService", maker: Maker) -> None:
    maker.id = domain.dataset_id(maker.task_id, "op/other.mhd")
    with pytest.raises(Refused) as refused:
        maker.publish(density="op/other.mhd", files=["op/other.mhd"])
    assert refused.value.code == "unknown-file"


@only_sqlite
def test_a_view_is_saved(local: "LocalService", maker: Maker) -> None:
    maker.publish()
    url = f"/api/datasets/{maker.id}/view"
    view = {"opacity": 0.25, "name": "Größe", "nested": {"points": [1, None, True]}}
    assert local.call("PUT", url, view).json["view"] == view
    assert local.client.dataset(maker.id).view == view
    for bad in ({"a": "x" * 70_000}, {"a": float("nan")}):
        local.call("PUT", url, bad).problem(422, "invalid-view")
    local.call("PUT", url, raw=b'{"a": "\\ud800"}').problem(422, "invalid-view")
    local.call("PUT", url, [1]).problem(422, "invalid-request")
    assert local.client.dataset(maker.id).view == view
    local.call("PUT", "/api/datasets/none/view", {}).problem(404, "dataset-not-found")


@only_sqlite
def test_a_dataset_is_removed(local: "LocalService", maker: Maker) -> None:
    maker.publish()
    local.client.remove_dataset(maker.id)
    assert folder(local) == []
    local.call("GET", f"/api/datasets/{maker.id}").problem(404, "dataset-not-found")
    with pytest.raises(NotFound):
        local.client.remove_dataset(maker.id)


def test_pages_follow_each_other(local: "LocalService", maker: Maker) -> None:
    made = [maker.publish().dataset_id]
    for number in range(2):
        local.register(DENSITY, agent="renderserver", job_id=f"j{number}")
        made.append(Maker(local, local.claim("renderserver")).publish().dataset_id)
    first = local.client.datasets(limit=2)
    assert [item.dataset_id for item in first.items] == made[:0:-1]
    rest = local.client.datasets(limit=2, cursor=first.next_cursor)
    assert [item.dataset_id for item in rest.items] == made[:1]
    assert rest.next_cursor is None


@pytest.mark.parametrize("policy", [{"keep_datasets": 10 * 86_400}])
def test_what_nobody_needs_any_more_goes(local: "LocalService", maker: Maker) -> None:
    maker.publish()
    local.register(DENSITY, agent="renderserver", job_id="other")
    died = Maker(local, local.claim("renderserver", lease=86_400))
    died.put("volume", "ct.nii.gz", b"of an agent that died")
    pruner, day = local.engine.pruner, timedelta(days=1).total_seconds()
    local.clock.advance(day - 1)
    assert pruner.round().datasets == 0
    local.clock.advance(2)
    assert pruner.round().datasets == 1
    assert {name.split("/")[0] for name in folder(local)} == {maker.id}
    local.clock.advance(5 * day)
    local.client.save_view(maker.id, {})
    local.clock.advance(9 * day)
    assert pruner.round().datasets == 0
    local.clock.advance(day)
    assert pruner.round().datasets == 1
    assert folder(local) == []
    assert local.client.datasets().items == []


@pytest.mark.parametrize("policy", [{"keep_datasets": 0}])
@only_sqlite
def test_datasets_may_be_kept_for_ever(local: "LocalService", maker: Maker) -> None:
    maker.publish()
    local.clock.advance(1000 * 86_400)
    assert local.engine.pruner.round().datasets == 0
    assert local.client.dataset(maker.id).name == "ct"


@only_sqlite
def test_who_may_do_what(local: "LocalService", maker: Maker, make_token: "TokenMaker") -> None:
    maker.publish()
    one = f"/api/datasets/{maker.id}"
    made = f"/api/tasks/{maker.task_id}/datasets/{maker.id}"

    def allowed(scope: str, method: str, path: str) -> bool:
        headers = {"Authorization": f"Bearer {tokens[scope]}", "Clara-Results-Lease": maker.token}
        return local.call(method, path, {}, headers).status != 403

    scopes = ("read", "operate", "admin", "agent:renderserver", "agent:other")
    tokens = {scope: make_token(scope, name=scope.replace(":", "-")) for scope in scopes}
    calls = [("GET", one), ("PUT", f"{one}/view"), ("PUT", made), ("DELETE", f"{one}x")]
    table = {scope: [allowed(scope, *call) for call in calls] for scope in scopes}
    assert table == {
        "read": [True, False, False, False],
        "operate": [True, True, False, False],
        "admin": [True, True, False, True],
        "agent:renderserver": [False, False, True, False],
        "agent:other": [False, False, False, False],
    }


def test_ids_and_uris_are_what_they_are_said_to_be() -> None:
    task = "0193b0f0-c92e-7eab-aabc-d5e1855295d6"
    assert domain.dataset_id(task, "a") == domain.dataset_id(task, "a")
    assert domain.dataset_id(task, "a") != domain.dataset_id(task, "b")
    uri = domain.file_uri("volume", "ab" * 32, "op/x/ct.nii.gz")
    assert uri == f"volume/{'ab' * 16}/ct.nii.gz"
    assert domain.bears(uri, "ab" * 32)
    assert not domain.bears(uri, "cd" * 32)
