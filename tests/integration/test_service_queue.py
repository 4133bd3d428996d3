"""The queue over its whole way, on each kind of database: claims, leases, reports, retries, unavailability."""

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from clara_results.domain.tasks import Outcome, State
from clara_results.errors import FilesUnaccounted, LeaseLost, Refused
from clara_results.wire.tasks import (
    FailureReport,
    FileOutcome,
    Progress,
    Release,
    Renewal,
    SuccessReport,
    Task,
)
from tests.conftest import eventually

if TYPE_CHECKING:
    from tests.integration.conftest import LocalService

HOUR = 3600.0


def told(uri: str, outcome: Outcome = Outcome.DELIVERED, **more: Any) -> FileOutcome:
    return FileOutcome(uri=uri, outcome=outcome, **more)


def succeed(local: "LocalService", task: Task, *files: FileOutcome) -> Task:
    report = SuccessReport(lease_token=task.lease_token, files=list(files) or None)
    return local.client.succeed(task.task_id, report)


def fail(local: "LocalService", task: Task, *files: FileOutcome, **more: Any) -> Task:
    report = {"retry_later": True, "lease_token": task.lease_token, "files": list(files) or None}
    return local.client.fail(task.task_id, FailureReport(**report | more))


def renew(local: "LocalService", task: Task, *files: FileOutcome, **more: Any) -> datetime:
    renewal = Renewal(lease_token=task.lease_token or "", files=list(files) or None, **more)
    return local.client.renew(task.task_id, renewal).lease_expires_at


def results(local: "LocalService", task: Task) -> list[str | None]:
    return [attempt.result for attempt in local.client.task(task.task_id).attempts or []]


def outcomes(local: "LocalService", task: Task) -> dict[str, str]:
    return {file.uri: str(file.outcome) for file in local.client.files(task.task_id).items}


def due_in(local: "LocalService", task: Task) -> float:
    due_at = local.client.task(task.task_id).due_at
    assert due_at is not None
    return (due_at - local.clock.now()).total_seconds()


def expire(local: "LocalService", task: Task, seconds: float) -> Task:
    """Let a lease run out, and wait until that is noticed (within a second, of the machine's own time)."""
    local.clock.advance(seconds)
    eventually(
        lambda: local.client.task(task.task_id).state != State.IN_PROGRESS, "the lease's end is noticed"
    )  # fmt: skip
    return local.client.task(task.task_id)


# Claims


def test_a_claim_is_a_lease_with_a_token_and_an_attempt(local: "LocalService") -> None:
    (registered,) = local.register("a", "b")
    task = local.claim(lease=60)
    assert task.task_id == registered.task_id
    assert (task.state, task.attempt, task.retries) == (State.IN_PROGRESS, 1, 0)
    assert task.lease_expires_at == local.clock.now() + timedelta(seconds=60)
    assert task.lease_token is not None
    assert len(task.lease_token) >= 22  # 128 bits
    assert task.uris == ["a", "b"]
    assert task.due_at is None
    assert local.client.claim("clarascu") == []
    shown = local.client.task(task.task_id)
    assert (shown.lease_token, shown.lease_expires_at, shown.files) == (None, None, None)
    assert [entry.event for entry in shown.history or []] == ["registered", "claimed"]


def test_no_task_is_claimed_twice_however_many_ask(local: "LocalService") -> None:
    for number in range(10):
        local.register(data=list(range(6)), job_id=f"job-{number}")
    together = threading.Barrier(8)

    def work(_: int) -> list[str]:
        together.wait(20)
        mine: list[str] = []
        while tasks := local.client.claim("clarascu", size=7):
            mine += [task.task_id for task in tasks]
        return mine

    with ThreadPoolExecutor(8) as pool:
        claimed = [task for mine in pool.map(work, range(8)) for task in mine]
    assert len(claimed) == 60
    assert len(set(claimed)) == 60


def test_claims_go_by_priority_then_turn_then_age(local: "LocalService") -> None:
    big = local.register(job_id="big", data=[f"D{number}" for number in range(4)])
    small = local.register(job_id="small")
    late = local.register(job_id="late", priority=1)
    low = local.register(job_id="low", priority=-1)
    order = [local.claim().task_id for _ in range(7)]
    assert order[0] == late[0].task_id
    assert order[1] == big[0].task_id
    assert order[2] == small[0].task_id  # before all the rest of the big job
    assert order[3:6] == [task.task_id for task in big[1:]]
    assert order[6] == low[0].task_id


def test_a_job_that_comes_later_takes_turns_with_one_of_many_tasks(local: "LocalService") -> None:
    for number in range(10):
        local.register(job_id="big", data=[f"{number}"])
    for _ in range(3):
        local.claim()
    local.register(job_id="small", data=["x"])
    jobs = [local.claim().job_id for _ in range(3)]
    assert "small" in jobs


# Success


def test_success_without_files_delivers_all(local: "LocalService") -> None:
    local.register("a", "b")
    task = local.claim()
    done = succeed(local, task)
    assert (done.state, done.retries, done.counts.delivered) == (State.SUCCEEDED, 0, 2)
    assert outcomes(local, task) == {"a": "delivered", "b": "delivered"}
    assert results(local, task) == ["succeeded"]
    assert succeed(local, task).state == State.SUCCEEDED  # said again


def test_success_with_files_keeps_what_was_said_of_each(local: "LocalService") -> None:
    local.register("a", "b")
    task = local.claim()
    done = succeed(
        local, task,
        told("a", code="B007", message="coerced", sop_instance_uid="1.2.3"),
        told("b", Outcome.SKIPPED, code="not-dicom"),
    )  # fmt: skip
    assert done.state == State.SUCCEEDED
    one, other = local.client.files(task.task_id).items
    assert (one.code, one.message, one.sop_instance_uid, one.attempt) == ("B007", "coerced", "1.2.3", 1)  # fmt: skip
    assert one.updated_at == local.clock.now()
    assert (other.outcome, other.code) == (Outcome.SKIPPED, "not-dicom")


def test_success_that_leaves_a_file_out_is_refused_and_changes_nothing(
    local: "LocalService",
) -> None:
    local.register("a", "b")
    task = local.claim()
    with pytest.raises(FilesUnaccounted):
        succeed(local, task, told("a"))
    assert local.client.task(task.task_id).state == State.IN_PROGRESS
    assert outcomes(local, task) == {"a": "pending", "b": "pending"}
    renew(local, task, told("b"))  # what was told before counts
    assert succeed(local, task, told("a")).state == State.SUCCEEDED


def test_nothing_but_skipped_is_no_success(local: "LocalService") -> None:
    local.register("a")
    done = succeed(local, local.claim(), told("a", Outcome.SKIPPED))
    assert done.state == State.FAILED
    assert done.last_error is not None
    assert done.last_error.code == "nothing-delivered"


# Failure


def test_failure_to_retry_puts_it_back_after_a_back_off_that_doubles(local: "LocalService") -> None:
    local.register("a")
    for retries, plain in ((1, 30), (2, 60), (3, 120)):
        task = local.claim()
        assert task.retries == retries - 1
        back = fail(local, task, code="timed-out", message="no answer")
        assert (back.state, back.retries) == (State.PENDING, retries)
        assert 0.8 * plain <= due_in(local, task) <= 1.2 * plain
        assert local.client.claim("clarascu") == []
        local.clock.advance(1.2 * plain)
    last = fail(local, local.claim(), code="timed-out", message="no answer")
    assert (last.state, last.retries) == (State.FAILED, 3)
    assert last.last_error is not None
    assert (last.last_error.code, last.last_error.message) == ("timed-out", "no answer")
    assert results(local, last) == ["retry", "retry", "retry", "failed"]


def test_failure_for_good_rejects_what_has_no_outcome(local: "LocalService") -> None:
    local.register("a", "b")
    task = local.claim()
    done = fail(local, task, told("a"), retry_later=False, code="no-such-destination")
    assert (done.state, done.retries) == (State.FAILED, 0)
    assert outcomes(local, task) == {"a": "delivered", "b": "rejected"}
    assert fail(local, task, retry_later=False).state == State.FAILED  # said again


def test_some_rejected_and_some_to_retry_retries_the_rest_and_fails_in_the_end(
    local: "LocalService",
) -> None:
    local.register("a", "b", "c")
    back = fail(local, local.claim(), told("a"), told("b", Outcome.REJECTED, code="A900"))
    assert (back.state, back.counts.retry) == (State.PENDING, 1)
    local.clock.advance(HOUR)
    again = local.claim()
    assert again.uris == ["c"]
    done = succeed(local, again)
    assert done.state == State.FAILED
    assert done.last_error is not None
    assert done.last_error.code == "files-rejected"
    assert outcomes(local, again) == {"a": "delivered", "b": "rejected", "c": "delivered"}


def test_a_later_attempt_gets_only_what_is_not_yet_delivered(local: "LocalService") -> None:
    local.register("a", "b", "c")
    fail(local, local.claim(), told("b"), told("a", Outcome.SKIPPED))
    local.clock.advance(HOUR)
    again = local.claim()
    assert again.uris == ["c"]
    assert [file.uri for file in again.files or []] == ["c"]
    assert again.attempt == 2
    assert succeed(local, again).state == State.SUCCEEDED


def test_a_delivered_file_stays_delivered_whatever_is_said_later(local: "LocalService") -> None:
    local.register("a", "b")
    task = local.claim()
    renew(local, task, told("a", code="0000"))
    fail(local, task, told("a", Outcome.REJECTED, code="C000"))
    assert outcomes(local, task) == {"a": "delivered", "b": "retry"}


# Leases


def test_a_lease_is_renewed_from_now_on(local: "LocalService") -> None:
    local.register("a")
    task = local.claim(lease=60)
    local.clock.advance(40)
    assert renew(local, task) == local.clock.now() + timedelta(seconds=60)
    assert renew(local, task, seconds=5) == local.clock.now() + timedelta(seconds=5)
    assert renew(local, task) == local.clock.now() + timedelta(seconds=60)


def test_what_is_told_with_a_renewal_is_there_at_once(local: "LocalService") -> None:
    local.register("a", "b")
    task = local.claim()
    renew(local, task, told("a"), progress=Progress(files_delivered=1, bytes_delivered=7))
    shown = local.client.task(task.task_id)
    assert (shown.counts.delivered, shown.counts.pending) == (1, 1)
    assert shown.progress == Progress(files_delivered=1, bytes_delivered=7)
    assert outcomes(local, task) == {"a": "delivered", "b": "pending"}


def test_a_lease_that_runs_out_costs_a_retry_and_its_holder_may_report_nothing(
    local: "LocalService",
) -> None:
    local.register("a", "b")
    task = local.claim(lease=60)
    renew(local, task, told("a"))
    back = expire(local, task, 61)
    assert (back.state, back.retries) == (State.PENDING, 1)
    assert back.due_at == local.clock.now()
    for call in (succeed, fail, renew):
        with pytest.raises(LeaseLost):
            call(local, task, told("b"))
    with pytest.raises(LeaseLost):
        local.client.release(task.task_id, Release(lease_token=task.lease_token or ""))
    again = local.claim()
    assert again.uris == ["b"]
    for call in (succeed, fail, renew):  # nor once another holds it
        with pytest.raises(LeaseLost):
            call(local, task, told("b"))
    assert outcomes(local, task) == {"a": "delivered", "b": "pending"}
    assert local.client.task(task.task_id).state == State.IN_PROGRESS
    assert succeed(local, again).state == State.SUCCEEDED
    with pytest.raises(LeaseLost):
        succeed(local, task)  # the first holder did not deliver it
    assert results(local, task) == ["lease-expired", "succeeded"]


def test_leases_that_run_out_for_ever_end_in_failure(local: "LocalService") -> None:
    local.register("a", max_retries=1)
    assert expire(local, local.claim(lease=60), 61).state == State.PENDING
    ended = expire(local, local.claim(lease=60), 61)
    assert (ended.state, ended.retries) == (State.FAILED, 1)
    assert ended.last_error is not None
    assert ended.last_error.code == "lease-expired"
    assert results(local, ended) == ["lease-expired", "lease-expired"]


def test_a_lease_that_runs_out_after_the_last_file_was_told_is_success(
    local: "LocalService",
) -> None:
    local.register("a")
    task = local.claim(lease=60)
    renew(local, task, told("a"))
    assert expire(local, task, 61).state == State.SUCCEEDED
    assert succeed(local, task).state == State.SUCCEEDED


def test_many_leases_that_run_out_at_once_are_all_noticed(local: "LocalService") -> None:
    local.register("a", data=list(range(210)))  # more than are looked at in one go
    assert sum(len(local.client.claim("clarascu", size=70, lease=60)) for _ in range(3)) == 210
    local.clock.advance(61)
    eventually(
        lambda: not local.client.tasks(state="InProgress", limit=1).items, "all leases' end", 20
    )
    assert len(local.client.tasks(state="Pending", limit=1000).items) == 210


# Release


def test_a_release_gives_it_back_at_once_for_nothing(local: "LocalService") -> None:
    local.register("a", "b")
    task = local.claim()
    release = Release(lease_token=task.lease_token or "", files=[told("a")])
    back = local.client.release(task.task_id, release)
    assert (back.state, back.retries) == (State.PENDING, 0)
    assert local.client.release(task.task_id, release).state == State.PENDING  # said again
    again = local.claim()
    assert (again.uris, again.attempt) == (["b"], 2)
    with pytest.raises(LeaseLost):
        local.client.release(task.task_id, release)
    assert results(local, task) == ["released", None]


# Unavailable destinations


def unavailable(local: "LocalService", task: Task, *files: FileOutcome) -> Task:
    return fail(local, task, *files, unavailable=True, code="connection-refused")


def test_a_report_that_comes_again_is_answered_again_whatever_came_of_it(
    local: "LocalService",
) -> None:
    local.register()
    task = local.claim()
    renew(local, task, told("op/a.dcm", Outcome.RETRY), told("op/b.dcm"))
    for _ in range(2):
        assert succeed(local, task).state == State.PENDING  # one file is to be sent again
    with pytest.raises(LeaseLost):
        fail(local, task)  # another report is no repetition
    assert results(local, task) == ["retry"]


def test_an_unavailable_destination_costs_no_retry_however_often(local: "LocalService") -> None:
    local.register("a")
    for _ in range(12):
        task = local.claim()
        back = unavailable(local, task)
        assert (back.state, back.retries) == (State.PENDING, 0)
        assert 0 < due_in(local, task) <= 72  # soon, however long it lasts
        assert unavailable(local, task).state == State.PENDING  # said again
        local.clock.advance(72)
    assert succeed(local, local.claim()).state == State.SUCCEEDED


@pytest.mark.parametrize("policy", [{"give_up": 2 * HOUR}])
def test_it_fails_once_the_destination_was_unavailable_too_long(local: "LocalService") -> None:
    local.register("a")
    unavailable(local, local.claim())
    local.clock.advance(HOUR)
    assert unavailable(local, local.claim()).state == State.PENDING
    local.clock.advance(HOUR)
    ended = unavailable(local, local.claim())
    assert (ended.state, ended.retries) == (State.FAILED, 0)
    assert ended.last_error is not None
    assert ended.last_error.code == "connection-refused"


@pytest.mark.parametrize("policy", [{"give_up": 2 * HOUR}])
@pytest.mark.parametrize("early", [True, False])
def test_progress_starts_the_time_of_unavailability_anew(
    local: "LocalService", early: bool
) -> None:
    local.register("a", "b")
    unavailable(local, local.claim())
    local.clock.advance(1.5 * HOUR)
    task = local.claim()
    if early:  # told while it ran, and not again at its end
        renew(local, task, told("a"))
        unavailable(local, task)
    else:
        unavailable(local, task, told("a"))
    local.clock.advance(1.5 * HOUR)
    assert unavailable(local, local.claim()).state == State.PENDING  # three hours after the first
    local.clock.advance(HOUR)
    assert unavailable(local, local.claim()).state == State.FAILED


# People


def test_cancel_takes_it_from_its_holder(local: "LocalService") -> None:
    local.register("a")
    task = local.claim()
    renew(local, task, told("a"))
    assert local.client.cancel(task.task_id).state == State.CANCELED
    assert local.client.cancel(task.task_id).state == State.CANCELED  # said again
    with pytest.raises(LeaseLost):
        succeed(local, task)
    assert results(local, task) == ["canceled"]
    with pytest.raises(Refused, match="Canceled"):
        local.client.retry(task.task_id)


def test_retry_starts_a_failed_task_again_with_what_is_not_delivered(local: "LocalService") -> None:
    local.register("a", "b", max_retries=0)
    task = local.claim()
    fail(local, task, told("a"))
    again = local.client.retry(task.task_id)
    assert (again.state, again.retries, again.counts.delivered) == (State.PENDING, 0, 1)
    assert local.claim().uris == ["b"]
    with pytest.raises(Refused, match="InProgress"):
        local.client.retry(task.task_id)


# What only one kind of database would mind


def test_odd_characters_are_kept_found_or_refused_but_never_a_fault(local: "LocalService") -> None:
    for query in ("q=%00", "jobId=%00", "agent=%ff", "q='%22%3B--%25", "destination=%F0%9F%98%80"):
        assert local.call("GET", f"/api/tasks?{query}").status in {200, 422}
    for path in ("/api/jobs/%00", "/api/destinations/%00", "/api/jobs/a%0a"):
        assert local.call("GET", path).status in {404, 422}
    assert local.call("POST", "/api/tasks/cancel", {"jobId": "\0"}).status in {200, 422}
    assert local.call("POST", "/api/tasks/cancel", {"jobId": "\ud800"}).status in {200, 422}
    (task,) = local.register("a", data=["NUL \0 in a name"])
    local.claim()
    file = {"uri": "a", "outcome": "retry", "code": "\0", "message": "\0 \ud800 \U0001f600"}
    body = {"retryLater": True, "files": [file], "code": "\0", "message": "x\0y"}
    answer = local.call("PUT", f"/api/tasks/failure/{task.task_id}", body)
    assert (answer.status, answer.json["state"]) == (200, "Pending")
    assert answer.json["lastError"] == {"code": "?", "message": "x?y"}
    (kept,) = local.client.files(task.task_id).items
    assert kept.message == "? ? \U0001f600"
