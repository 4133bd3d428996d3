"""What is removed when its time is over, and what stays; on both databases, with a clock that the test moves."""

import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
import sqlalchemy as sa

from clara_results.client import ResultsClient
from clara_results.domain.tasks import Outcome, State
from clara_results.errors import NotFound
from clara_results.service.pruner import Pruned
from clara_results.store import retention, schema
from clara_results.wire.tasks import FailureReport, Registration, SuccessReport
from tests.integration.conftest import told

if TYPE_CHECKING:
    from tests.integration.conftest import Answer, LocalService

MINUTE = 60.0
HOUR = 60 * MINUTE
DAY = 24 * HOUR
KEPT = 8 * HOUR
KEPT_FAILED = 7 * DAY


def path_of(uri: str, payload: str = "pay") -> str:
    return f"/api/payloads/{payload}/files/{uri}"


def upload(local: "LocalService", uri: str, content: bytes = b"x", payload: str = "pay") -> None:
    assert local.call("PUT", path_of(uri, payload), raw=content).status in {200, 201}


def prune(local: "LocalService") -> Pruned:
    """Run a round, in which nothing may go wrong."""
    pruned = local.engine.pruner.round()
    assert pruned.faults == []
    return pruned


def rows(local: "LocalService", table: sa.Table) -> int:
    found = sa.select(sa.func.count()).select_from(table)
    number = local.engine._database.read(lambda c: c.execute(found).scalar_one())
    return int(number.result(10))


def on_disk(local: "LocalService", payload: str = "pay") -> set[str]:
    """Return all that lies in a payload, folders too."""
    folder = local.payloads / payload
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def end(local: "LocalService", task_id: str | None = None, state: State = State.SUCCEEDED) -> None:
    """Bring tasks (all that are due, or one) to their end."""
    for task in local.client.claim("clarascu", size=100):
        if task_id not in {None, task.task_id}:
            continue
        if state == State.SUCCEEDED:
            local.client.succeed(task.task_id, SuccessReport(lease_token=task.lease_token))
        else:
            report = FailureReport(lease_token=task.lease_token, retry_later=False)
            local.client.fail(task.task_id, report)


# When


@pytest.fixture
def uploaded(local: "LocalService") -> "LocalService":
    """Give a service with two uploaded files and a task of them."""
    upload(local, "op/a.dcm", b"alpha")
    upload(local, "op/b.dcm", b"beta")
    local.register("op/a.dcm", "op/b.dcm")
    return local


def test_uploads_go_when_all_is_delivered_and_their_time_is_over(uploaded: "LocalService") -> None:
    local = uploaded
    end(local)
    local.clock.advance(KEPT - 1)
    assert prune(local).payloads == 0
    assert local.call("GET", path_of("op/a.dcm")).data == b"alpha"
    local.clock.advance(1)
    assert prune(local).payloads == 1
    assert not (local.payloads / "pay").exists()
    assert list((local.payloads / ".incoming").iterdir()) == []
    assert rows(local, schema.uploads) == 0
    for method in ("GET", "HEAD"):
        assert local.call(method, path_of("op/a.dcm")).status == 410
    problem = local.call("GET", path_of("op/a.dcm")).problem(410, "payload-gone")
    assert "were removed on 2026-01-02 at 11:04 UTC" in problem["detail"]
    local.call("GET", "/api/payloads/pay").problem(410, "payload-gone")
    assert prune(local).payloads == 0


def test_nothing_goes_while_a_task_is_unfinished(uploaded: "LocalService") -> None:
    local = uploaded
    local.clock.advance(100 * DAY)
    assert prune(local).payloads == 0
    task = local.claim(lease=86_400)
    local.clock.advance(DAY - 1)
    assert prune(local).payloads == 0
    local.client.succeed(task.task_id, SuccessReport(lease_token=task.lease_token))
    assert prune(local).payloads == 0  # its time begins now
    local.clock.advance(KEPT)
    assert prune(local).payloads == 1


@pytest.mark.parametrize("state", [State.FAILED, State.CANCELED])
def test_what_was_not_delivered_stays_longer(uploaded: "LocalService", state: State) -> None:
    local = uploaded
    (other,) = local.register("op/a.dcm", job_id="other")
    end(local, other.task_id)
    (first,) = [task for task in local.client.tasks().items if task.task_id != other.task_id]
    if state == State.CANCELED:
        local.client.cancel(first.task_id)
    else:
        local.clock.advance(HOUR + 1)  # the lease of the claim is over
        local.engine._database.write(lambda tx: local.engine.queue.rescue(tx, 10)).result(10)
        end(local, first.task_id, State.FAILED)
    assert local.client.task(first.task_id).state == state
    local.clock.advance(KEPT_FAILED - 1)
    assert prune(local).payloads == 0
    local.clock.advance(1)
    assert prune(local).payloads == 1


def test_the_time_counts_from_the_last_registration(uploaded: "LocalService") -> None:
    local = uploaded
    end(local)
    local.clock.advance(KEPT - 1)
    local.register("op/a.dcm", job_id="later")
    end(local)
    local.clock.advance(KEPT - 1)
    assert prune(local).payloads == 0
    local.clock.advance(1)
    assert prune(local).payloads == 1


def test_the_time_counts_from_the_last_upload(uploaded: "LocalService") -> None:
    local = uploaded
    end(local)
    local.clock.advance(KEPT - 1)
    upload(local, "op/c.dcm")
    local.clock.advance(KEPT - 1)
    assert prune(local).payloads == 0
    local.clock.advance(1)
    assert prune(local).payloads == 1
    assert not (local.payloads / "pay").exists()


def test_an_upload_that_was_never_registered_goes_as_what_failed(local: "LocalService") -> None:
    upload(local, "op/a.dcm")
    local.clock.advance(KEPT_FAILED - 1)
    assert prune(local).payloads == 0
    local.clock.advance(1)
    assert prune(local).payloads == 1
    assert not (local.payloads / "pay").exists()


def test_each_payload_has_its_own_time(local: "LocalService") -> None:
    for payload in ("one", "two", "three"):
        upload(local, "a", payload=payload)
        local.register("a", payload_id=payload, job_id=payload)
    end(local)
    local.register("a", payload_id="two", job_id="again")
    local.clock.advance(KEPT)
    assert prune(local).payloads == 2
    assert sorted(path.name for path in local.payloads.iterdir()) == [".incoming", "two"]


@pytest.mark.parametrize("policy", [{"retention": 0.0}])
def test_0_is_for_ever(uploaded: "LocalService") -> None:
    local = uploaded
    end(local)
    upload(local, "never-registered", payload="lone")
    upload(local, "a", payload="failed")
    local.register("a", payload_id="failed", job_id="failed")
    end(local, state=State.FAILED)
    local.clock.advance(400 * DAY)
    assert prune(local).payloads == 1
    assert not (local.payloads / "failed").exists()
    assert rows(local, schema.tasks) == 0  # tasks are forgotten all the same
    assert prune(local).payloads == 0
    assert local.call("GET", path_of("op/a.dcm")).data == b"alpha"
    assert (local.payloads / "lone" / "never-registered").exists()


@pytest.mark.parametrize("policy", [{"keep_tasks": HOUR, "retention": DAY}])
def test_files_outlive_tasks_that_are_kept_shorter(uploaded: "LocalService") -> None:
    local = uploaded
    end(local)
    local.clock.advance(HOUR)
    assert prune(local).tasks == 1
    local.clock.advance(KEPT_FAILED - HOUR - 1)
    assert prune(local).payloads == 0  # without tasks: the longer of both times
    local.clock.advance(1)
    assert prune(local).payloads == 1


# What


def test_files_in_place_are_the_platforms(uploaded: "LocalService") -> None:
    local = uploaded
    local.put_file("op/its-own.dcm", b"platform")
    local.put_file("op/deep/its-own.dcm", b"platform")
    local.register("op/a.dcm", "op/its-own.dcm", job_id="mixed")
    end(local)
    local.clock.advance(KEPT)
    assert prune(local).payloads == 1
    assert on_disk(local) == {"op", "op/its-own.dcm", "op/deep", "op/deep/its-own.dcm"}
    assert local.call("GET", path_of("op/its-own.dcm")).data == b"platform"
    local.call("GET", path_of("op/a.dcm")).problem(410, "payload-gone")


def test_the_platforms_own_file_stays_its_own_when_the_same_is_uploaded(
    local: "LocalService",
) -> None:
    local.put_file("op/a.dcm", b"alpha")
    assert local.call("PUT", path_of("op/a.dcm"), raw=b"alpha").status == 200
    local.call("PUT", path_of("op/a.dcm"), raw=b"other").problem(409, "exists-differently")
    local.register("op/a.dcm")
    end(local)
    local.clock.advance(100 * DAY)
    assert prune(local).payloads == 0
    assert on_disk(local) == {"op", "op/a.dcm"}


def test_folders_that_get_empty_go_and_no_others(local: "LocalService") -> None:
    upload(local, "a/b/c/d/file")
    upload(local, "a/x/file")
    (local.payloads / "pay" / "a" / "x" / "made by the platform").mkdir()
    local.clock.advance(KEPT_FAILED)
    assert prune(local).payloads == 1
    assert on_disk(local) == {"a", "a/x", "a/x/made by the platform"}


def test_a_link_put_in_the_place_of_a_folder_leads_nobody_out(
    local: "LocalService", tmp_path: Path
) -> None:
    upload(local, "op/a")
    upload(local, "b")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "a").write_bytes(b"precious")
    folder = local.payloads / "pay"
    (folder / "op" / "a").unlink()
    (folder / "op").rmdir()
    (folder / "op").symlink_to(outside)
    (folder / "b").unlink()
    (folder / "b").symlink_to(outside / "a")
    local.clock.advance(KEPT_FAILED)
    assert prune(local).payloads == 1
    assert (outside / "a").read_bytes() == b"precious"
    assert on_disk(local) == {"op", "b"}


@pytest.mark.parametrize("policy", [{"own_payloads": True}])
def test_own_payloads_go_as_a_whole(local: "LocalService") -> None:
    local.put_file("op/a.dcm", b"alpha")
    local.put_file("anything/else", b"beta")
    local.put_file("left/alone", b"gamma", payload_id="unregistered")
    upload(local, "op/b.dcm")
    local.register("op/a.dcm", "op/b.dcm")
    end(local)
    local.clock.advance(KEPT - 1)
    assert prune(local).payloads == 0
    local.clock.advance(1)
    assert prune(local).payloads == 1
    assert sorted(path.name for path in local.payloads.iterdir()) == [".incoming", "unregistered"]
    local.call("GET", path_of("op/a.dcm")).problem(410, "payload-gone")
    # A job that runs again: what it lays down anew counts anew.
    local.put_file("op/a.dcm", b"alpha")
    local.register("op/a.dcm", job_id="again")
    end(local)
    local.clock.advance(KEPT)
    assert prune(local).payloads == 1
    assert not (local.payloads / "pay").exists()


def test_thousands_of_files_go_in_more_than_one_step(local: "LocalService") -> None:
    files = [f"op/{number:04}" for number in range(450)]
    moment = local.clock.now()
    folder = local.payloads / "pay" / "op"
    folder.mkdir(parents=True)
    for uri in files:
        (folder / Path(uri).name).write_bytes(b"x")

    def note(transaction: Any) -> None:
        retention.touch(transaction.connection, "pay", moment, holds_files=True)
        transaction.connection.execute(
            schema.uploads.insert(),
            [
                {"payload_id": "pay", "uri": uri, "size": 1, "sha256": "", "created_at": moment}
                for uri in files
            ],
        )

    local.engine._database.write(note).result(10)
    local.clock.advance(KEPT_FAILED)
    assert prune(local).payloads == 1
    assert not (local.payloads / "pay").exists()
    assert rows(local, schema.uploads) == 0


# Whoever comes afterwards


@pytest.fixture
def removed(uploaded: "LocalService") -> "LocalService":
    """Give a service whose payload's files have been removed; its one task is Succeeded."""
    end(uploaded)
    uploaded.clock.advance(KEPT)
    assert prune(uploaded).payloads == 1
    return uploaded


def register_raw(local: "LocalService", *uris: str, **more: Any) -> "Answer":
    body = {"agent": "ClaraSCU", "jobId": "late", "pipelineId": "p", "payloadId": "pay", "uris": uris} | more  # fmt: skip
    return local.call("POST", "/api/tasks", body)


def test_no_task_is_made_of_files_that_are_gone(removed: "LocalService") -> None:
    local = removed
    local.put_file("op/in-place", b"x")
    problem = register_raw(local, "op/in-place", "op/a.dcm").problem(410, "payload-gone")
    assert "1 of 2" in problem["detail"]
    register_raw(local, "op/a.dcm", verify=True).problem(422, "missing-file")
    assert rows(local, schema.tasks) == 1
    assert register_raw(local, "op/in-place").status == 201  # what is there can be registered


def test_what_is_uploaded_again_can_be_registered_again(removed: "LocalService") -> None:
    local = removed
    upload(local, "op/a.dcm", b"another")
    assert local.call("GET", path_of("op/a.dcm")).data == b"another"
    assert register_raw(local, "op/a.dcm").status == 201
    end(local)
    local.clock.advance(KEPT)
    assert prune(local).payloads == 1
    assert not (local.payloads / "pay").exists()


def test_a_task_whose_files_are_gone_is_not_sent_again(uploaded: "LocalService") -> None:
    local = uploaded
    end(local, state=State.FAILED)
    (task,) = local.client.tasks().items
    local.clock.advance(KEPT_FAILED)
    assert prune(local).payloads == 1
    local.call("POST", f"/api/tasks/{task.task_id}/retry").problem(410, "payload-gone")
    local.call("POST", f"/api/tasks/{task.task_id}/redeliver").problem(410, "payload-gone")
    assert local.call("POST", "/api/tasks/retry", {"state": "Failed"}).json == {"changed": 0}
    assert local.client.task(task.task_id).state == State.FAILED


def test_a_retry_needs_only_what_was_not_delivered(uploaded: "LocalService") -> None:
    local = uploaded
    local.put_file("op/in-place", b"x")
    local.register("op/a.dcm", "op/in-place", job_id="mixed")
    for task in local.client.claim("clarascu", size=10):
        outcomes = [
            told(uri, Outcome.DELIVERED if uri == "op/a.dcm" else Outcome.REJECTED)
            for uri in task.uris or ()
        ]
        report = FailureReport(lease_token=task.lease_token, retry_later=False, files=outcomes)
        local.client.fail(task.task_id, report)
    local.clock.advance(KEPT_FAILED)
    assert prune(local).payloads == 1
    assert local.call("POST", "/api/tasks/retry", {"state": "Failed"}).json == {"changed": 1}
    (task,) = local.client.claim("clarascu", size=10)
    assert task.uris == ["op/in-place"]


def test_a_retried_task_keeps_its_files(uploaded: "LocalService") -> None:
    local = uploaded
    end(local, state=State.FAILED)
    (task,) = local.client.tasks().items
    local.clock.advance(KEPT_FAILED - 1)
    local.client.retry(task.task_id)
    local.clock.advance(10 * DAY)
    assert prune(local).payloads == 0
    assert on_disk(local) == {"op", "op/a.dcm", "op/b.dcm"}


def test_the_operators_question_whether_a_file_is_there_is_answered_no(
    removed: "LocalService",
) -> None:
    assert not removed.client.has_file("pay", "op/a.dcm", 5, "0" * 64)


def test_a_person_may_remove_a_payload(uploaded: "LocalService") -> None:
    local = uploaded
    local.call("DELETE", "/api/payloads/pay").problem(409, "payload-in-use")
    end(local)
    local.put_file("op/in-place", b"x")
    assert local.call("DELETE", "/api/payloads/pay").status == 204
    assert not (local.payloads / "pay").exists()
    assert rows(local, schema.uploads) == 0
    local.call("GET", path_of("op/a.dcm")).problem(410, "payload-gone")
    register_raw(local, "op/a.dcm").problem(410, "payload-gone")
    local.call("DELETE", "/api/payloads/pay").problem(404, "payload-not-found")
    local.call("DELETE", "/api/payloads/never").problem(404, "payload-not-found")
    local.call("GET", path_of("a", "never")).problem(404, "file-not-found")


# Rows


def test_finished_tasks_are_forgotten_after_90_days(uploaded: "LocalService") -> None:
    local = uploaded
    (kept,) = local.register("op/a.dcm", job_id="unfinished")
    (first,) = [task for task in local.client.tasks().items if task.task_id != kept.task_id]
    end(local, first.task_id)
    local.clock.advance(90 * DAY - 1)
    assert prune(local).tasks == 0
    local.clock.advance(1)
    assert prune(local).tasks == 1
    with pytest.raises(NotFound):
        local.client.task(first.task_id)
    assert [task.task_id for task in local.client.tasks().items] == [kept.task_id]
    assert (rows(local, schema.registrations), rows(local, schema.attempts)) == (1, 1)
    assert rows(local, schema.files) == 1
    assert rows(local, schema.history) == len(local.client.task(kept.task_id).history or [])


def test_a_registration_is_forgotten_with_its_last_task(local: "LocalService") -> None:
    first, second = local.register("a", data=["one", "two"], key="key")
    end(local, first.task_id)
    local.clock.advance(90 * DAY)
    assert prune(local).tasks == 1
    again = local.register("a", data=["one", "two"], key="key")
    assert [task.task_id for task in again] == [second.task_id]
    local.client.cancel(second.task_id)
    local.clock.advance(90 * DAY)
    assert prune(local).tasks == 1
    assert rows(local, schema.registrations) == 0
    # The key is forgotten, so the same request is a new one.
    assert local.register("a", data=["one", "two"], key="key")[0].task_id not in {
        first.task_id,
        second.task_id,
    }


def test_many_tasks_go_in_batches(local: "LocalService") -> None:
    body = Registration(
        agent="ClaraSCU", job_id="job", pipeline_id="p", payload_id="pay",
        uris=[f"f{number}" for number in range(20)], data=[f"d{number}" for number in range(450)],
    )  # fmt: skip
    assert len(local.client.register(body).tasks) == 450
    changed = local.call("POST", "/api/tasks/cancel", {"jobId": "job"}).json
    assert changed == {"changed": 450}
    local.clock.advance(90 * DAY)
    assert prune(local).tasks == 450
    for table in (schema.tasks, schema.files, schema.history, schema.registrations):
        assert rows(local, table) == 0


def test_payloads_and_agents_are_forgotten_too(removed: "LocalService") -> None:
    local = removed
    local.client.claim("clarascu")  # no instance: nobody to remember
    ResultsClient(local.url, instance="pod-1").claim("clarascu")
    local.clock.advance(45 * DAY)
    ResultsClient(local.url, instance="pod-2").claim("clarascu")
    upload(local, "a", payload="younger")
    local.clock.advance(45 * DAY - 1)
    assert prune(local).tasks == 1  # it ended before its files were removed
    local.call("GET", path_of("op/a.dcm")).problem(410, "payload-gone")
    local.clock.advance(1)
    prune(local)
    assert rows(local, schema.payloads) == 1
    agents = local.engine._database.read(
        lambda c: c.scalars(sa.select(schema.agents.c.instance)).all()
    )
    assert agents.result(10) == ["pod-2"]
    local.call("GET", path_of("op/a.dcm")).problem(404, "file-not-found")


def test_a_payload_removed_late_is_remembered_all_the_same(uploaded: "LocalService") -> None:
    local = uploaded
    end(local)
    local.clock.advance(1000 * DAY)  # nobody pruned for years
    pruned = prune(local)
    assert (pruned.payloads, pruned.tasks) == (1, 1)
    register_raw(local, "op/a.dcm").problem(410, "payload-gone")
    local.clock.advance(90 * DAY)
    prune(local)
    assert rows(local, schema.payloads) == 0


@pytest.mark.parametrize("policy", [{"keep_tasks": 0.0}])
def test_tasks_can_be_kept_for_ever(removed: "LocalService") -> None:
    removed.clock.advance(1000 * DAY)
    assert prune(removed).tasks == 0
    assert rows(removed, schema.payloads) == 1


# Crashes and faults


def test_a_crash_before_the_file_is_in_place_is_made_good(local: "LocalService") -> None:
    """The service notes an upload before it is in place; here it ends in between."""
    note = local.engine.retention.note_upload
    local.engine._database.write(
        lambda tx: note(tx, "pay", "op/a", 5, "f" * 64, in_place=False)
    ).result(10)
    local.call("GET", path_of("op/a")).problem(404, "file-not-found")
    answer = local.call("PUT", path_of("op/a"), raw=b"other")
    assert answer.status == 201
    etag = local.call("HEAD", path_of("op/a")).headers["ETag"]
    assert etag == answer.headers["ETag"] != f'"{"f" * 64}"'
    local.clock.advance(KEPT_FAILED)
    assert prune(local).payloads == 1
    assert not (local.payloads / "pay").exists()


def test_a_crash_after_the_file_is_in_place_leaves_nothing_for_ever(local: "LocalService") -> None:
    note = local.engine.retention.note_upload
    local.engine._database.write(
        lambda tx: note(tx, "pay", "op/a", 1, "f" * 64, in_place=False)
    ).result(10)
    local.put_file("op/a", b"x")
    local.clock.advance(KEPT_FAILED)
    assert prune(local).payloads == 1
    assert not (local.payloads / "pay").exists()


def test_a_removal_that_was_cut_short_is_finished(uploaded: "LocalService") -> None:
    """It ended when the payload was marked and one of its files was gone, but not noted so."""
    local = uploaded
    end(local)
    local.clock.advance(KEPT)
    local.engine._database.write(
        lambda tx: retention.set_payload(tx.connection, "pay", {"removed_at": local.clock.now()})
    ).result(10)
    (local.payloads / "pay" / "op" / "a.dcm").unlink()
    register_raw(local, "op/a.dcm").problem(410, "payload-gone")
    assert prune(local).payloads == 1
    assert not (local.payloads / "pay").exists()
    assert rows(local, schema.uploads) == 0


def test_what_crashes_left_aside_is_swept_when_it_is_a_day_old(local: "LocalService") -> None:
    prune(local)  # the day's sweep has been: at the start
    aside = local.payloads / ".incoming"
    aside.mkdir(parents=True)
    old = datetime(2025, 12, 31, tzinfo=UTC).timestamp()
    new = local.clock.now().timestamp() + MINUTE
    for name, moment in (("old", old), ("new", new)):
        (aside / name).write_bytes(b"x")
        os.utime(aside / name, (moment, moment))
    local.clock.advance(DAY - 1)
    prune(local)
    assert {path.name for path in aside.iterdir()} == {"old", "new"}
    local.clock.advance(1)
    prune(local)
    assert {path.name for path in aside.iterdir()} == {"new"}


@pytest.fixture
def stuck(local: "LocalService") -> Iterator[Callable[[], None]]:
    """Give a payload whose folder the disk won't let go; calling it mends the disk."""
    upload(local, "op/a", payload="stuck")
    folder = local.payloads / "stuck"
    away = local.payloads / f"away-{uuid4().hex}"
    blocker = local.payloads / ".incoming"

    def mend() -> None:
        if away.exists():
            blocker.unlink()
            away.rename(blocker)

    assert folder.is_dir()
    blocker.rename(away)
    blocker.write_bytes(b"no folder, so that nothing can be set aside")
    yield mend
    mend()


def test_a_fault_of_the_disk_does_not_end_the_pruning(
    local: "LocalService", stuck: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    (task,) = local.register("other", payload_id="other")
    end(local, task.task_id)
    local.clock.advance(90 * DAY)
    pruned = local.engine.pruner.round()
    assert len(pruned.faults) >= 1
    assert pruned.tasks == 1  # the other steps are done all the same
    assert "the payload store fails" in caplog.text
    assert (local.payloads / "stuck" / "op" / "a").exists()
    stuck()
    assert prune(local).payloads == 1
    assert not (local.payloads / "stuck").exists()
