"""What people ask and do over HTTP: lists, pages, jobs, retry, cancel, redeliver."""

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from clara_results.domain.tasks import State
from clara_results.service.queue import BATCH
from clara_results.wire.codec import timestamp
from clara_results.wire.tasks import SuccessReport, Task

if TYPE_CHECKING:
    from tests.integration.conftest import LocalService

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
NOBODY = "9f6c0a0f-c92e-4eab-aabc-d5e1855295d6"


def succeed(local: "LocalService", **claim: Any) -> Task:
    task = local.claim(**claim)
    return local.client.succeed(task.task_id, SuccessReport())


def fail(local: "LocalService", **claim: Any) -> Task:
    task = local.claim(**claim)
    local.call("PUT", f"/api/tasks/failure/{task.task_id}", {"RetryLater": False})
    return local.client.task(task.task_id)


def listed(local: "LocalService", query: str) -> list[str]:
    answer = local.call("GET", f"/api/tasks{query}")
    assert answer.status == 200, answer.data
    return [task["jobId"] for task in answer.json["items"]]


# Lists


def test_tasks_are_listed_newest_first_a_page_at_a_time(local: "LocalService") -> None:
    for number in range(7):
        local.register(job_id=f"job-{number}")
    seen: list[str] = []
    query, pages = "?limit=3", 0
    while True:
        page = local.call("GET", f"/api/tasks{query}").json
        seen += [task["jobId"] for task in page["items"]]
        pages += 1
        local.register(job_id="came meanwhile")  # does not shift what follows
        if page["nextCursor"] is None:
            break
        query = f"?limit=3&cursor={page['nextCursor']}"
    assert seen == [f"job-{number}" for number in range(6, -1, -1)]
    assert pages == 3


def test_a_page_that_ends_with_the_last_task_has_no_next(local: "LocalService") -> None:
    for number in range(3):
        local.register(job_id=f"job-{number}")
    assert local.call("GET", "/api/tasks?limit=3").json["nextCursor"] is None


def test_tasks_are_found_by_what_they_are(local: "LocalService") -> None:
    local.register(job_id="one", data=["Orthanc"], payload_id="p1")
    local.register(job_id="two", data=["DCM4CHEE"], agent="other", operator="Reg-Op")
    local.register(job_id="three_3%", pipeline_id="liver-tumour")
    succeed(local, agent="other")
    assert listed(local, "?state=Succeeded") == ["two"]
    assert listed(local, "?state=Pending") == ["three_3%", "one"]
    assert listed(local, "?agent=OTHER") == ["two"]
    assert listed(local, "?jobId=one") == ["one"]
    assert listed(local, "?payloadId=p1") == ["one"]
    assert listed(local, "?destination=ORTHANC") == ["one"]
    assert listed(local, "?destination=orthanc&state=Failed") == []
    assert listed(local, "?q=orth") == ["one"]
    assert listed(local, "?q=REG-op") == ["two"]
    assert listed(local, "?q=tumour") == ["three_3%"]
    assert listed(local, "?q=3%25") == ["three_3%"]  # no wildcard
    assert listed(local, "?q=e_3") == ["three_3%"]
    assert listed(local, "?q=o%25e") == []
    (task,) = local.client.tasks(jobId="one").items
    assert listed(local, f"?q={task.task_id.upper()}") == ["one"]


def test_a_task_is_found_by_an_instance_in_it(local: "LocalService") -> None:
    local.register("a", job_id="one")
    task = local.claim()
    file = {"uri": "a", "outcome": "delivered", "sopInstanceUid": "1.2.840.99"}
    local.call("PUT", f"/api/tasks/success/{task.task_id}", {"files": [file]})
    assert listed(local, "?q=1.2.840.99") == ["one"]
    assert listed(local, "?q=1.2.840.9") == []


@pytest.mark.parametrize(
    ("query", "field"),
    [("?state=Lost", "state"), ("?limit=0", "limit"), ("?limit=1001", "limit"),
     ("?cursor=x", "cursor"), ("?cursor=-1", "cursor"), (f"?cursor={1 << 63}", "cursor"),
     ("?q=" + "x" * 256, "q")],
)  # fmt: skip
def test_a_parameter_out_of_range_is_named(local: "LocalService", query: str, field: str) -> None:
    problem = local.call("GET", f"/api/tasks{query}").problem(422, "invalid-request")
    assert [fault["field"] for fault in problem["errors"]] == [field]


def test_odd_characters_in_a_query_find_nothing(local: "LocalService") -> None:
    for query in (
        "?q=%00",
        "?jobId=%00",
        "?agent=%ff",
        "?q='%22%3B--",
        "?destination=%F0%9F%98%80",
    ):
        answer = local.call("GET", f"/api/tasks{query}")
        assert answer.status in {200, 422}


def test_a_tasks_files_are_paged_in_their_order(local: "LocalService") -> None:
    uris = [f"op/{number}" for number in range(7)]
    local.register(*uris)
    task = local.claim()
    files = [{"uri": "op/3", "outcome": "rejected", "code": "A900"}]
    local.call("PUT", f"/api/tasks/failure/{task.task_id}", {"retryLater": True, "files": files})
    seen: list[str] = []
    cursor = None
    while True:
        page = local.client.files(task.task_id, limit=3, cursor=cursor)
        seen += [file.uri for file in page.items]
        if page.next_cursor is None:
            break
        cursor = page.next_cursor
    assert seen == uris
    (rejected,) = local.client.files(task.task_id, outcome="rejected").items
    assert (rejected.uri, rejected.code) == ("op/3", "A900")
    local.call("GET", f"/api/tasks/{NOBODY}/files").problem(404, "task-not-found")
    assert local.call("GET", f"/api/tasks/{task.task_id}/files?outcome=lost").status == 422


def test_a_task_is_shown_with_its_attempts_and_history(local: "LocalService") -> None:
    local.register()
    local.call("PUT", f"/api/tasks/failure/{local.claim().task_id}", {"RetryLater": True})
    local.clock.advance(60)
    done = succeed(local)
    shown = local.client.task(done.task_id)
    assert [(a.attempt, a.result) for a in shown.attempts or []] == [(1, "retry"), (2, "succeeded")]
    assert [entry.event for entry in shown.history or []] == [
        "registered", "claimed", "retry", "claimed", "succeeded",
    ]  # fmt: skip
    assert shown.updated_at == local.clock.now()
    assert shown.created_at < shown.updated_at
    local.call("GET", f"/api/tasks/{NOBODY}").problem(404, "task-not-found")
    local.call("GET", "/api/tasks/17").problem(422, "invalid-request")


# Jobs


def test_a_job_is_delivered_when_all_that_counts_is(local: "LocalService") -> None:
    local.register(job_id="j", data=["A", "B"])
    job = local.client.job("j")
    assert (job.delivered, len(job.tasks)) == (False, 2)
    succeed(local)
    job = local.client.job("j")
    assert not job.delivered
    assert "1 Pending" in job.summary
    succeed(local)
    job = local.client.job("j")
    assert (job.delivered, job.summary) == (True, "all 2 tasks are delivered")
    local.call("GET", "/api/jobs/none").problem(404, "job-not-found")


def test_what_was_superseded_does_not_keep_a_job_from_being_delivered(
    local: "LocalService",
) -> None:
    local.register(job_id="j", key="k1")
    local.register(job_id="j", key="k2")
    succeed(local)
    assert local.client.job("j").delivered


def test_a_jobs_id_may_hold_any_printable_character(local: "LocalService") -> None:
    for job in ("a/b", "50%", "ü?#", "a b"):
        local.register(job_id=job)
        assert local.client.job(job).job_id == job


# Retry, cancel


def test_retry_and_cancel_of_what_is_not_there(local: "LocalService") -> None:
    for what in ("retry", "cancel", "redeliver"):
        local.call("POST", f"/api/tasks/{NOBODY}/{what}").problem(404, "task-not-found")
        local.call("POST", f"/api/tasks/x/{what}").problem(422, "invalid-request")


def test_retry_is_for_failed_tasks_only(local: "LocalService") -> None:
    (task,) = local.register()
    local.call("POST", f"/api/tasks/{task.task_id}/retry").problem(409, "illegal-transition")
    failed = fail(local)
    answer = local.call("POST", f"/api/tasks/{failed.task_id}/retry")
    assert (answer.status, answer.json["state"], answer.json["retries"]) == (200, "Pending", 0)


def test_cancel_is_for_unfinished_tasks_only(local: "LocalService") -> None:
    local.register()
    done = succeed(local)
    local.call("POST", f"/api/tasks/{done.task_id}/cancel").problem(409, "illegal-transition")
    (task,) = local.register()
    assert local.call("POST", f"/api/tasks/{task.task_id}/cancel").json["state"] == "Canceled"
    assert local.client.claim("clarascu") == []


def test_a_filter_retries_and_cancels_many(local: "LocalService") -> None:
    for number in range(4):
        local.register(job_id=f"job-{number % 2}", data=[f"D{number}"])
    for _ in range(3):
        fail(local)
    assert local.call("POST", "/api/tasks/retry", {"jobId": "job-0"}).json == {"changed": 2}
    assert local.call("POST", "/api/tasks/retry", {"jobId": "job-0"}).json == {"changed": 0}
    assert local.call("POST", "/api/tasks/cancel", {"state": "Failed"}).json == {"changed": 0}
    assert local.call("POST", "/api/tasks/cancel", {"destination": "d0"}).json == {"changed": 1}
    ids = [task.task_id for task in local.client.tasks().items]
    answer = local.call(
        "POST", "/api/tasks/cancel", {"taskIds": [*ids, NOBODY], "agent": "ClaraSCU"}
    )
    assert answer.json == {"changed": 2}
    states = sorted(task.state for task in local.client.tasks().items)
    assert states == [State.CANCELED, State.CANCELED, State.CANCELED, State.FAILED]


@pytest.mark.parametrize("what", ["retry", "cancel"])
def test_a_filter_that_says_nothing_is_refused(local: "LocalService", what: str) -> None:
    local.register()
    local.call("POST", f"/api/tasks/{what}", {}).problem(422, "empty-filter")
    answer = local.call("POST", f"/api/tasks/{what}", {"jobID": "x"})
    assert answer.problem(422, "invalid-request")["errors"][0]["field"] == "jobID"
    assert local.call("POST", f"/api/tasks/{what}", {"taskIds": []}).json == {"changed": 0}
    assert local.client.tasks().items[0].state == State.PENDING


def test_a_filter_of_very_many_tasks_is_taken(local: "LocalService") -> None:
    (task,) = local.register()
    ids = [f"{number:08x}-0000-4000-8000-000000000000" for number in range(300_000)]
    answer = local.call("POST", "/api/tasks/cancel", {"taskIds": [*ids, task.task_id]})
    assert (answer.status, answer.json) == (200, {"changed": 1})


# Redeliver


def test_redelivery_is_a_new_task_with_all_files(local: "LocalService") -> None:
    local.put_file("a", b"x")
    local.put_file("b", b"y")
    local.register("a", "b", data=["Orthanc"], priority=7, max_retries=9)
    done = succeed(local)
    answer = local.call("POST", f"/api/tasks/{done.task_id}/redeliver")
    assert answer.status == 201
    again = answer.json
    assert again["redeliveryOf"] == done.task_id
    assert (again["state"], again["parameters"]) == ("Pending", '"Orthanc"')
    assert (again["priority"], again["maxRetries"], again["retries"]) == (7, 9, 0)
    assert again["counts"]["pending"] == 2
    task = local.claim()
    assert (task.task_id, task.uris) == (again["taskId"], ["a", "b"])
    shown = local.client.task(done.task_id)
    assert shown.state == State.SUCCEEDED
    assert (shown.history or [])[-1].event == "redelivered"
    assert again["taskId"] in ((shown.history or [])[-1].message or "")


def test_redelivery_may_go_elsewhere(local: "LocalService") -> None:
    local.put_file("a", b"x")
    local.register("a", data=["Orthanc"])
    done = succeed(local)
    answer = local.call("POST", f"/api/tasks/{done.task_id}/redeliver", {"destination": "Zürich"})
    assert answer.json["parameters"] == '"Zürich"'
    assert listed(local, "?destination=ZÜRICH") == ["job"]


def test_what_is_redelivered_elsewhere_is_claimed(local: "LocalService") -> None:
    """Its agent never had a task for that destination before."""
    local.put_file("op/a.dcm", b"x")
    local.register("op/a.dcm", data=["Orthanc"])
    done = succeed(local)
    local.call("POST", f"/api/tasks/{done.task_id}/redeliver", {"destination": "DCM4CHEE"})
    assert local.claim().redelivery_of == done.task_id


def test_a_failed_task_that_was_sent_once_more_does_not_count_against_its_job(
    local: "LocalService",
) -> None:
    local.put_file("op/a.dcm", b"x")
    local.register("op/a.dcm", data=["Orthanc"])
    failed = fail(local)
    assert not local.client.job("job").delivered
    local.call("POST", f"/api/tasks/{failed.task_id}/redeliver", {"destination": "DCM4CHEE"})
    succeed(local)
    assert local.client.job("job").summary == "1 of 2 tasks are not delivered: 1 Failed"
    local.call("POST", f"/api/tasks/{failed.task_id}/redeliver")
    assert "1 of 2 tasks are not delivered: 1 Pending" in local.client.job("job").summary
    succeed(local)
    assert local.client.job("job").delivered


def test_a_task_that_a_person_canceled_is_replaced_by_newer_results(local: "LocalService") -> None:
    (first,) = local.register(key="one", data=["Orthanc"])
    local.call("POST", f"/api/tasks/{first.task_id}/cancel")
    (second,) = local.register(key="two", data=["Orthanc"])
    assert local.client.task(first.task_id).superseded_by == second.task_id
    succeed(local)
    assert local.client.job("job").delivered


def test_redelivery_of_what_is_not_finished_is_refused(local: "LocalService") -> None:
    (task,) = local.register()
    local.call("POST", f"/api/tasks/{task.task_id}/redeliver").problem(409, "illegal-transition")


def test_redelivery_of_files_that_are_no_more_is_refused(local: "LocalService") -> None:
    path = local.put_file("a", b"x")
    local.register("a", "b")
    done = succeed(local)
    problem = local.call("POST", f"/api/tasks/{done.task_id}/redeliver").problem(
        410, "payload-gone"
    )
    assert "1 of 2" in problem["detail"]
    path.unlink()
    local.call("POST", f"/api/tasks/{done.task_id}/redeliver").problem(410, "payload-gone")
    assert len(local.client.tasks().items) == 1


# Health


def test_health_tells_how_work_stands(local: "LocalService") -> None:
    assert local.call("GET", "/health/live").json["status"] == "ok"
    assert local.call("GET", "/health/ready").json["status"] == "ok"
    local.register(data=["A", "B"])
    succeed(local)
    status = local.call("GET", "/health/status").json
    assert status["tasks"] == {
        "Pending": 1, "InProgress": 0, "AwaitingCommitment": 0, "Succeeded": 1, "Failed": 0, "Canceled": 0,
    }  # fmt: skip
    assert status["version"]


# Times, and many tasks

MINUTE = 60.0


def by_the_minute(local: "LocalService", number: int) -> list[Task]:
    made = []
    for count in range(number):
        made += local.register(job_id=f"job-{count}")
        local.clock.advance(MINUTE)
    return made


def at(local: "LocalService", seconds: float) -> str:
    return timestamp(local.clock.now() + timedelta(seconds=seconds))


def test_tasks_are_found_by_the_time_of_registration(local: "LocalService") -> None:
    first, second, third = by_the_minute(local, 3)

    def found(**query: str) -> list[str]:
        return [task.task_id for task in local.client.tasks(**query).items]

    assert found(since=at(local, -2 * MINUTE)) == [third.task_id, second.task_id]
    assert found(until=at(local, -2 * MINUTE)) == [second.task_id, first.task_id]
    between = {"since": at(local, -2.5 * MINUTE), "until": at(local, -1.5 * MINUTE)}
    assert found(**between) == [second.task_id]
    assert found(since=at(local, 0)) == []


def test_a_time_without_an_offset_is_refused(local: "LocalService") -> None:
    answer = local.call("GET", "/api/tasks?since=2026-01-02T03:04:05")
    (fault,) = answer.problem(422, "invalid-input")["errors"]
    assert fault["field"] == "since"
    assert "offset from UTC" in fault["message"]
    answer = local.call("POST", "/api/tasks/cancel", {"until": "2026-01-02T03:04:05"})
    assert answer.problem(422, "invalid-input")["errors"][0]["field"] == "until"


def test_a_filter_by_time_or_text_cancels_just_what_it_finds(local: "LocalService") -> None:
    first, second, third = by_the_minute(local, 3)
    body = {"until": at(local, -2.5 * MINUTE)}
    assert local.call("POST", "/api/tasks/cancel", body).json == {"changed": 1}
    assert local.client.task(first.task_id).state == State.CANCELED
    assert local.call("POST", "/api/tasks/cancel", {"q": "job-2"}).json == {"changed": 1}
    assert local.client.task(third.task_id).state == State.CANCELED
    assert local.client.task(second.task_id).state == State.PENDING


@pytest.mark.parametrize("text", ["", "\0", "a\0"])
def test_a_text_that_finds_nothing_or_all_changes_nothing(local: "LocalService", text: str) -> None:
    local.register()
    assert local.call("POST", "/api/tasks/cancel", {"q": text}).status == 422
    assert len(local.client.tasks(state="Pending").items) == 1


def test_it_is_told_beforehand_how_many_tasks_an_act_would_change(local: "LocalService") -> None:
    local.register(data=["A", "B", "C"])
    fail(local)
    succeed(local)
    (old,) = local.register(key="old", job_id="again")
    local.claim()
    local.client.claim("clarascu")
    asked = {"jobId": "job"}
    assert local.call("POST", "/api/tasks/concerned", asked).json == {"retry": 1, "cancel": 1}
    ids = [task.task_id for task in local.client.tasks().items]
    answer = local.call("POST", "/api/tasks/concerned", {"taskIds": [*ids, NOBODY]})
    assert answer.json == {"retry": 1, "cancel": 2}
    local.call("PUT", f"/api/tasks/failure/{old.task_id}", {"RetryLater": False})
    local.register(
        "op/new.dcm", key="new", job_id="again"
    )  # supersedes: the old one can't be retried
    answer = local.call("POST", "/api/tasks/concerned", {"jobId": "again"})
    assert answer.json == {"retry": 0, "cancel": 1}


def test_more_tasks_than_fit_a_transaction_are_all_changed(local: "LocalService") -> None:
    for _ in range(3):
        local.register(data=[f"D{number}" for number in range(BATCH)])
    assert local.call("POST", "/api/tasks/cancel", {"jobId": "job"}).json == {"changed": 3 * BATCH}
    assert not local.client.tasks(state="Pending").items
