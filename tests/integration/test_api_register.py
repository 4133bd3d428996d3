"""``POST /api/tasks``: what a registration becomes, and what is refused."""

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from clara_results.domain.tasks import Outcome, State
from clara_results.wire.tasks import Release, ResultFile, SuccessReport

if TYPE_CHECKING:
    from tests.integration.conftest import LocalService

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

BODY: dict[str, Any] = {
    "agent": "ClaraSCU",
    "jobId": "job-1",
    "pipelineId": "pipe-1",
    "payloadId": "pay-1",
    "files": [{"uri": "op/a.dcm", "size": 5}, {"uri": "op/b.dcm"}],
}


def post(local: "LocalService", key: str | None = None, **changes: Any) -> Any:
    body = {name: value for name, value in (BODY | changes).items() if value is not ...}
    return local.call("POST", "/api/tasks", body, {} if key is None else {"Idempotency-Key": key})


def test_without_data_it_is_one_task_without_parameters(local: "LocalService") -> None:
    answer = post(local, operator="register-dicom")
    assert answer.status == 201
    (task,) = answer.json["tasks"]
    assert len(task["taskId"]) == 36
    now = local.clock.now().isoformat().replace("+00:00", "Z")
    assert {name: value for name, value in task.items() if value is not None} == {
        "taskId": task["taskId"], "jobId": "job-1", "pipelineId": "pipe-1", "payloadId": "pay-1",
        "operator": "register-dicom", "state": "Pending", "agent": "clarascu", "retries": 0,
        "maxRetries": 3, "attempt": 0, "priority": 0, "createdAt": now, "updatedAt": now,
        "dueAt": now,
        "counts": {"pending": 2, "awaiting": 0, "delivered": 0, "skipped": 0, "retry": 0, "rejected": 0},
    }  # fmt: skip
    assert task["parameters"] is None


@pytest.mark.parametrize(
    "elements",
    [["Zürich \U0001f600", "", "NUL \0 and \u2028", "a/b"], [5, -1.5, 1e300, 10**30, True, None],
     [[], {"a": [1, {"b": None}]}]],
)  # fmt: skip
def test_each_element_of_data_is_a_task_whose_parameters_are_that_element_as_json(
    local: "LocalService", elements: list[Any]
) -> None:
    tasks = post(local, data=elements).json["tasks"]
    assert [json.loads(task["parameters"]) for task in tasks] == elements
    shown = [local.client.task(task["taskId"]) for task in tasks]
    assert [json.loads(task.parameters or "") for task in shown] == elements
    claimed = local.client.claim("clarascu", size=9)
    assert [json.loads(task.parameters or "") for task in claimed] == elements


def test_all_that_was_said_of_files_comes_with_the_claim(local: "LocalService") -> None:
    file = {"uri": "op/ä.dcm", "size": 7, "modified": "2026-01-02T04:04:05.000006+01:00",
            "sha256": "0a" * 32, "mediaType": "application/dicom"}  # fmt: skip
    post(local, files=[file], maxRetries=7, priority=5)
    task = local.claim()
    assert task.uris == ["op/ä.dcm"]
    assert task.files is not None
    (claimed,) = task.files
    assert isinstance(claimed, ResultFile)
    assert (claimed.uri, claimed.size, claimed.sha256) == ("op/ä.dcm", 7, "0a" * 32)
    assert claimed.media_type == "application/dicom"
    assert str(claimed.modified) == "2026-01-02 03:04:05.000006+00:00"
    assert (task.max_retries, task.priority) == (7, 5)


def test_uris_are_files_of_unknown_size(local: "LocalService") -> None:
    post(local, files=..., uris=["b", "a"])
    task = local.claim()
    assert task.uris == ["b", "a"]  # in the order of registration
    assert task.files == [ResultFile(uri="b"), ResultFile(uri="a")]


def test_not_before_holds_it_back_until_then(local: "LocalService") -> None:
    due = local.clock.now() + timedelta(hours=1)
    (task,) = post(local, notBefore=due.isoformat()).json["tasks"]
    assert task["dueAt"] == due.isoformat().replace("+00:00", "Z")
    assert local.client.claim("clarascu") == []
    local.clock.advance(3600)
    assert local.claim().task_id == task["taskId"]


def test_not_before_in_the_past_is_now(local: "LocalService") -> None:
    (task,) = post(local, notBefore="2001-01-01T00:00:00Z").json["tasks"]
    assert task["dueAt"] == task["createdAt"]


# Idempotency


def test_the_same_key_and_body_give_the_same_tasks_once(local: "LocalService") -> None:
    first = post(local, "k1", data=["A", "B"])
    again = post(local, "k1", data=["A", "B"])
    quoted = post(local, '"k1"', data=["A", "B"])
    assert (first.status, again.status, quoted.status) == (201, 200, 200)
    assert first.json == again.json == quoted.json
    assert len(local.client.tasks().items) == 2


def test_the_repeated_answer_shows_how_the_tasks_stand_now(local: "LocalService") -> None:
    post(local, "k1")
    claimed = local.claim()
    again = post(local, "k1")
    assert again.json["tasks"][0]["state"] == "InProgress"
    assert claimed.lease_token is not None
    assert claimed.lease_token not in again.data.decode()  # the lease is the claimer's alone


@pytest.mark.parametrize(
    "change",
    [{"data": ["C"]}, {"jobId": "other"}, {"files": [{"uri": "op/a.dcm", "size": 6}]}, {"priority": 1},
     {"data": [1.0]}, {"data": [True]}],
)  # fmt: skip
def test_the_same_key_with_another_body_is_refused(
    local: "LocalService", change: dict[str, Any]
) -> None:
    post(local, "k1", data=[1])
    post(local, "k1", **({"data": [1]} | change)).problem(409, "key-reused")
    assert len(local.client.tasks().items) == 1


def test_a_key_is_another_in_another_case(local: "LocalService") -> None:
    assert post(local, "k1").status == 201
    assert post(local, "K1").status == 201


@pytest.mark.parametrize("key", ["", '""', "x" * 256])
def test_a_key_that_is_none_is_refused(local: "LocalService", key: str) -> None:
    assert post(local, key).status == 422


def test_without_a_key_every_registration_is_new(local: "LocalService") -> None:
    assert post(local).status == 201
    assert post(local).status == 201
    assert [task.supersedes for task in local.client.tasks().items] == [None, None]


def test_of_the_same_registration_at_once_one_is_made(local: "LocalService") -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: post(local, "k1", data=["A"]), range(8)))
    assert sorted(answer.status for answer in answers) == [200] * 7 + [201]
    assert len({answer.json["tasks"][0]["taskId"] for answer in answers}) == 1
    assert len(local.client.tasks().items) == 1


# Superseding


def test_a_new_key_of_the_same_scope_supersedes_what_is_not_delivered(
    local: "LocalService",
) -> None:
    old = local.register("a", key="k1", data=["P", "R", "D", "F"], operator="op")
    pending, running, done, failed = old
    tokens = {t.task_id: t.lease_token or "" for t in local.client.claim("clarascu", size=4)}
    local.client.release(pending.task_id, Release(lease_token=tokens[pending.task_id]))
    local.client.succeed(done.task_id, SuccessReport())
    local.call("PUT", f"/api/tasks/failure/{failed.task_id}", {"RetryLater": False})
    new = local.register("a2", key="k2", data=["P", "R", "D", "F"], operator="op")
    shown = [local.client.task(task.task_id) for task in old]
    assert [t.state for t in shown] == [State.CANCELED, State.CANCELED, State.SUCCEEDED, State.FAILED]  # fmt: skip
    assert [t.superseded_by for t in shown] == [new[0].task_id, new[1].task_id, None, new[3].task_id]  # fmt: skip
    assert [t.supersedes for t in new] == [pending.task_id, running.task_id, None, failed.task_id]
    # Whoever held one has lost it.
    body = {"leaseToken": tokens[running.task_id]}
    answer = local.call("PUT", f"/api/tasks/success/{running.task_id}", body)
    answer.problem(409, "lease-lost")
    assert [t.task_id for t in local.client.claim("clarascu", size=9)] == [t.task_id for t in new]
    local.call("POST", f"/api/tasks/{failed.task_id}/retry").problem(409, "superseded")


@pytest.mark.parametrize(
    "other",
    [{"job_id": "job2"}, {"operator": "op2"}, {"agent": "other"}, {"data": ["B"]}, {"data": None}],
)
def test_another_scope_supersedes_nothing(local: "LocalService", other: dict[str, Any]) -> None:
    (old,) = local.register(key="k1", data=["A"], operator="op")
    (new,) = local.register(key="k2", **({"data": ["A"], "operator": "op"} | other))
    assert new.supersedes is None
    assert local.client.task(old.task_id).state == State.PENDING


def test_the_agents_name_is_the_same_scope_in_any_case(local: "LocalService") -> None:
    (old,) = local.register(key="k1", agent="ClaraSCU")
    (new,) = local.register(key="k2", agent="CLARAscu")
    assert (new.supersedes, new.agent) == (old.task_id, "clarascu")


def test_a_chain_of_registrations_supersedes_the_latest_only(local: "LocalService") -> None:
    (first,) = local.register(key="k1")
    (second,) = local.register(key="k2")
    (third,) = local.register(key="k3")
    shown = [local.client.task(task.task_id) for task in (first, second, third)]
    assert [t.superseded_by for t in shown] == [second.task_id, third.task_id, None]
    assert [t.supersedes for t in shown] == [None, first.task_id, second.task_id]
    assert "superseded" in [entry.event for entry in shown[0].history or []]


# Verification


@pytest.fixture
def present(local: "LocalService") -> None:
    local.put_file("op/a.dcm", b"alpha", "pay-1")
    local.put_file("op/b.dcm", b"beta", "pay-1")


@pytest.mark.usefixtures("present")
def test_verified_files_that_are_there_with_their_size_are_taken(local: "LocalService") -> None:
    assert post(local, verify=True).status == 201


@pytest.mark.usefixtures("present")
def test_files_that_are_missing_or_of_another_size_are_named(local: "LocalService") -> None:
    files = [
        {"uri": "op/a.dcm", "size": 4},
        {"uri": "op/b.dcm"},
        {"uri": "op/c.dcm"},
        {"uri": "op"},
    ]
    problem = post(local, verify=True, files=files).problem(422, "missing-file")
    assert [fault["field"] for fault in problem["errors"]] == [
        "files[0].size", "files[2].uri", "files[3].uri",
    ]  # fmt: skip
    assert "5 bytes" in problem["errors"][0]["message"]
    assert local.client.tasks().items == []


def test_missing_uris_are_named_as_uris(local: "LocalService") -> None:
    problem = post(local, files=..., uris=["no"], verify=True).problem(422, "missing-file")
    assert [fault["field"] for fault in problem["errors"]] == ["uris[0]"]


@pytest.mark.usefixtures("present")
def test_a_link_out_of_the_payload_is_not_verified(local: "LocalService") -> None:
    (local.payloads / "pay-1" / "out").symlink_to("/etc/passwd")
    post(local, verify=True, files=[{"uri": "out"}]).problem(422, "unsafe-uri")


def test_a_name_too_long_for_the_disk_is_not_there(local: "LocalService") -> None:
    post(local, verify=True, files=[{"uri": "x" * 300}]).problem(422, "missing-file")


def test_without_verify_files_need_not_be_there(local: "LocalService") -> None:
    assert post(local).status == 201


def test_every_file_begins_pending(local: "LocalService") -> None:
    (task,) = local.register("a", "b")
    page = local.client.files(task.task_id)
    assert [(f.uri, f.outcome, f.attempt) for f in page.items] == [
        ("a", Outcome.PENDING, None),
        ("b", Outcome.PENDING, None),
    ]
