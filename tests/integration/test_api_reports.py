"""Reports over HTTP: what is taken, what is refused, and that a refused one changes nothing."""

from typing import TYPE_CHECKING, Any

import pytest

from clara_results.wire.tasks import Task

if TYPE_CHECKING:
    from tests.integration.conftest import Answer, LocalService

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
SUCCESS, FAILURE = "/api/tasks/success/{}", "/api/tasks/failure/{}"
LEASE, RELEASE = "/api/tasks/{}/lease", "/api/tasks/{}/release"
NOBODY = "9f6c0a0f-c92e-4eab-aabc-d5e1855295d6"


def put(local: "LocalService", path: str, task: Task | str, **body: Any) -> "Answer":
    task_id = task if isinstance(task, str) else task.task_id
    return local.call("PUT", path.format(task_id), body)


def claimed(local: "LocalService", *uris: str) -> Task:
    local.register(*uris)
    return local.claim()


def unchanged(local: "LocalService", before: dict[str, Any]) -> bool:
    return bool(shown(local, before["taskId"]) == before)


def shown(local: "LocalService", task_id: str) -> dict[str, Any]:
    task: dict[str, Any] = local.call("GET", f"/api/tasks/{task_id}").json
    task["files"] = local.call("GET", f"/api/tasks/{task_id}/files").json
    return task


@pytest.mark.parametrize("path", [SUCCESS, FAILURE, LEASE, RELEASE])
def test_a_report_on_no_task_is_not_found(local: "LocalService", path: str) -> None:
    body = {"leaseToken": "x"} | ({"retryLater": True} if path == FAILURE else {})
    put(local, path, NOBODY, **body).problem(404, "task-not-found")
    problem = put(local, path, "17", **body).problem(422, "invalid-request")
    assert [fault["field"] for fault in problem["errors"]] == ["task_id"]


def test_a_stale_token_is_refused_and_nothing_changes(local: "LocalService") -> None:
    task = claimed(local)
    before = shown(local, task.task_id)
    for path, more in ((SUCCESS, {}), (FAILURE, {"retryLater": True}), (LEASE, {}), (RELEASE, {})):
        files = [{"uri": "op/a.dcm", "outcome": "delivered"}]
        answer = put(local, path, task, leaseToken="stale", files=files, **more)
        answer.problem(409, "lease-lost")
    assert unchanged(local, before)


def test_a_report_without_a_token_counts_while_the_task_is_in_progress(
    local: "LocalService",
) -> None:
    task = claimed(local)
    assert put(local, SUCCESS, task).json["state"] == "Succeeded"
    local.register()
    task = local.claim()
    assert put(local, FAILURE, task, retryLater=True).json["state"] == "Pending"
    put(local, SUCCESS, task).problem(409, "lease-lost")  # it is InProgress no more


def test_a_task_that_nobody_has_claimed_takes_no_report(local: "LocalService") -> None:
    (task,) = local.register()
    before = shown(local, task.task_id)
    put(local, SUCCESS, task).problem(409, "lease-lost")
    put(local, FAILURE, task, retryLater=True).problem(409, "lease-lost")
    assert unchanged(local, before)


@pytest.mark.parametrize("token", [True, False])
def test_a_finished_task_takes_the_same_report_again_and_no_other(
    local: "LocalService", token: bool
) -> None:
    task = claimed(local)
    with_token = {"leaseToken": task.lease_token} if token else {}
    put(local, SUCCESS, task, **with_token)
    before = shown(local, task.task_id)
    assert put(local, SUCCESS, task, **with_token).status == 200
    put(local, FAILURE, task, retryLater=True, **with_token).problem(409, "lease-lost")
    put(local, FAILURE, task, retryLater=False, **with_token).problem(409, "lease-lost")
    put(local, SUCCESS, task, leaseToken="other").problem(409, "lease-lost")
    put(local, LEASE, task, leaseToken=task.lease_token).problem(409, "lease-lost")
    put(local, RELEASE, task, leaseToken=task.lease_token).problem(409, "lease-lost")
    assert unchanged(local, before)


def test_a_failed_task_takes_the_same_report_again_and_no_success(local: "LocalService") -> None:
    task = claimed(local)
    put(local, FAILURE, task, retryLater=False, leaseToken=task.lease_token)
    before = shown(local, task.task_id)
    assert before["state"] == "Failed"
    again = put(local, FAILURE, task, retryLater=False, leaseToken=task.lease_token)
    assert (again.status, again.json["state"]) == (200, "Failed")
    put(local, SUCCESS, task, leaseToken=task.lease_token).problem(409, "lease-lost")
    assert unchanged(local, before)


@pytest.mark.parametrize("outcome", ["pending", "retry", "rejected"])
def test_a_success_report_of_files_that_are_not_is_refused(
    local: "LocalService", outcome: str
) -> None:
    task = claimed(local, "a", "b")
    before = shown(local, task.task_id)
    files = [{"uri": "a", "outcome": "delivered"}, {"uri": "b", "outcome": outcome}]
    put(local, SUCCESS, task, files=files).problem(422, "contradictory-report")
    assert unchanged(local, before)


@pytest.mark.parametrize("path", [SUCCESS, FAILURE, LEASE, RELEASE])
def test_a_report_on_a_file_that_is_not_the_tasks_is_refused(
    local: "LocalService", path: str
) -> None:
    task = claimed(local, "a")
    before = shown(local, task.task_id)
    files = [{"uri": "a", "outcome": "delivered"}, {"uri": "z", "outcome": "delivered"}]
    answer = put(local, path, task, retryLater=True, leaseToken=task.lease_token, files=files) \
        if path == FAILURE else put(local, path, task, leaseToken=task.lease_token, files=files)  # fmt: skip
    answer.problem(422, "unknown-file")
    assert unchanged(local, before)


def test_an_empty_list_of_files_accounts_for_none(local: "LocalService") -> None:
    task = claimed(local, "a")
    put(local, SUCCESS, task, files=[]).problem(409, "files-unaccounted")
    assert put(local, FAILURE, task, retryLater=True, files=[]).json["counts"]["retry"] == 1


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        (FAILURE, {}, "RetryLater"),
        (FAILURE, {"retryLater": "perhaps"}, "retryLater"),
        (LEASE, {}, "leaseToken"),
        (LEASE, {"leaseToken": "x", "seconds": "many"}, "seconds"),
        (LEASE, {"leaseToken": "x", "colour": 1}, "colour"),
        (LEASE, {"leaseToken": "x", "progress": {"filesDelivered": -1}}, "progress.filesDelivered"),
        (LEASE, {"leaseToken": "x", "progress": {"bytesDelivered": 1 << 63}}, "progress.bytesDelivered"),
        (RELEASE, {}, "leaseToken"),
        (SUCCESS, {"files": [{"uri": "a", "outcome": "vanished"}]}, "files[0].outcome"),
        (SUCCESS, {"files": [{"outcome": "delivered"}]}, "files[0].uri"),
    ],
)  # fmt: skip
def test_a_malformed_report_is_refused_and_the_field_named(
    local: "LocalService", path: str, body: dict[str, Any], field: str
) -> None:
    task = claimed(local, "a")
    before = shown(local, task.task_id)
    if "leaseToken" in body:
        body = body | {"leaseToken": task.lease_token}
    answer = put(local, path, task, **body)
    assert answer.status == 422, answer.data
    assert field in [fault["field"] for fault in answer.json["errors"]], answer.json
    assert unchanged(local, before)


@pytest.mark.parametrize("seconds", [0, -1, 86_401, 10**30])
def test_a_lease_out_of_range_is_refused(local: "LocalService", seconds: int) -> None:
    task = claimed(local)
    assert put(local, LEASE, task, leaseToken=task.lease_token, seconds=seconds).status == 422


@pytest.mark.parametrize("text", ["\ud800", "NUL \0", "x" * 100_000, "\u2028\U0001f600"])
def test_whatever_an_agent_says_in_words_is_kept_or_refused(
    local: "LocalService", text: str
) -> None:
    task = claimed(local, "a")
    file = {"uri": "a", "outcome": "retry", "message": text, "code": text, "sopInstanceUid": text}
    answer = put(local, FAILURE, task, retryLater=True, files=[file], message=text, code=text)
    assert answer.status in {200, 422}, answer.data
    assert local.call("GET", f"/api/tasks/{task.task_id}").status == 200
    assert local.call("GET", f"/api/tasks/{task.task_id}/files").status == 200
    if text.startswith("x"):
        (kept,) = local.client.files(task.task_id).items
        assert kept.message == "x" * 2000  # cut, not refused


def test_many_files_are_told_at_once(local: "LocalService") -> None:
    uris = [f"op/{number}" for number in range(3000)]  # more than fit one IN list
    task = claimed(local, *uris)
    files = [{"uri": uri, "outcome": "delivered"} for uri in uris]
    assert put(local, SUCCESS, task, files=files).json["counts"]["delivered"] == 3000
