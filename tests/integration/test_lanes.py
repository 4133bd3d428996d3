"""Lanes: limits, pauses and unavailable destinations, one of which never holds up another."""

import threading
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from clara_results.domain.tasks import Outcome, State
from clara_results.store import schema
from clara_results.wire.destinations import Destination
from clara_results.wire.tasks import FailureReport, Release, Renewal, SuccessReport, Task
from tests.integration.conftest import told

if TYPE_CHECKING:
    from tests.integration.conftest import LocalService

NO_LIMIT = 1000


def add(local: "LocalService", name: str, max_associations: int = 2) -> None:
    body = Destination(
        name=name, ae_title=name, host="127.0.0.1", port=104, max_associations=max_associations
    )
    local.client.add_destination(body)


def register(local: "LocalService", destination: str, count: int = 1, **more: Any) -> list[str]:
    return [
        local.register("a.dcm", "b.dcm", data=[destination], job_id=f"job{n}", **more)[0].task_id
        for n in range(count)
    ]


def unavailable(local: "LocalService", task: Task) -> Task:
    report = FailureReport(
        retry_later=True, lease_token=task.lease_token, unavailable=True, code="x", message="away"
    )
    return local.client.fail(task.task_id, report)


def succeed(local: "LocalService", task: Task) -> Task:
    return local.client.succeed(task.task_id, SuccessReport(lease_token=task.lease_token))


def test_no_more_tasks_are_in_progress_than_a_destination_takes(local: "LocalService") -> None:
    add(local, "Small", max_associations=2)
    register(local, "small", 3)
    claimed = local.client.claim("clarascu", size=10)
    assert len(claimed) == 2
    assert local.client.claim("clarascu", size=10) == []
    succeed(local, claimed[0])
    assert len(local.client.claim("clarascu", size=10)) == 1


def test_a_place_that_is_given_back_is_free_again(local: "LocalService") -> None:
    add(local, "Small", max_associations=1)
    register(local, "Small", 2)
    first = local.claim()
    assert local.client.claim("clarascu") == []
    local.client.release(first.task_id, Release(lease_token=first.lease_token or ""))
    assert local.claim().task_id == first.task_id


def test_a_full_destination_does_not_hold_up_another(local: "LocalService") -> None:
    add(local, "Slow", max_associations=1)
    add(local, "Quick", max_associations=1)
    register(local, "Slow", 5, priority=50)
    (quick,) = register(local, "Quick")
    claimed = local.client.claim("clarascu", size=10)
    assert [task.parameters for task in claimed] == ['"Slow"', '"Quick"']
    assert claimed[1].task_id == quick


def test_a_destination_that_is_not_set_up_has_no_limit(local: "LocalService") -> None:
    register(local, "Nowhere", 5)
    assert len(local.client.claim("clarascu", size=10)) == 5


def test_tasks_without_a_destination_have_no_limit(local: "LocalService") -> None:
    for number in range(5):
        local.register(job_id=f"job{number}")
    assert len(local.client.claim("clarascu", size=10)) == 5


def test_nothing_goes_to_a_paused_destination_until_it_is_resumed(local: "LocalService") -> None:
    add(local, "Archive")
    register(local, "Archive")
    paused = local.client.pause_destination("ARCHIVE")
    assert (paused.paused_at, paused.pending) == (local.clock.now(), 1)
    local.clock.advance(10_000_000)
    assert local.client.claim("clarascu") == []
    assert local.client.resume_destination("archive").paused_at is None
    local.claim()


def test_what_is_in_progress_when_a_destination_is_paused_goes_on(local: "LocalService") -> None:
    add(local, "Archive")
    register(local, "Archive")
    task = local.claim()
    local.client.pause_destination("Archive")
    assert succeed(local, task).state == State.SUCCEEDED


def test_a_destination_that_could_not_be_reached_gets_one_probe_at_a_time(
    local: "LocalService",
) -> None:
    add(local, "Away", max_associations=NO_LIMIT)
    register(local, "Away", 10)
    unavailable(local, local.claim())
    view = local.client.destination("away")
    assert view.down_since == local.clock.now()
    assert view.down_reason == "away"
    assert local.client.claim("clarascu", size=10) == []  # nine are due, and must wait all the same
    local.clock.advance(61)
    (probe,) = local.client.claim("clarascu", size=10)
    assert local.client.claim("clarascu", size=10) == []  # one probe is out
    unavailable(local, probe)
    assert local.client.claim("clarascu", size=10) == []
    assert local.client.destination("Away").down_since == view.down_since


def test_all_that_waits_goes_out_once_a_probe_was_answered(local: "LocalService") -> None:
    add(local, "Away", max_associations=NO_LIMIT)
    register(local, "Away", 10)
    first, second = local.client.claim("clarascu", size=2)
    unavailable(local, first)
    unavailable(local, second)
    local.clock.advance(61)
    (probe,) = local.client.claim("clarascu", size=10)
    # The first answer for a file is proof enough; the task itself goes on.
    renewal = Renewal(lease_token=probe.lease_token or "", files=[told("a.dcm")])
    local.client.renew(probe.task_id, renewal)
    assert local.client.destination("Away").down_since is None
    assert len(local.client.claim("clarascu", size=10)) == 9


def test_a_success_that_lists_no_files_shows_that_the_destination_is_up(
    local: "LocalService",
) -> None:
    add(local, "Pacs", max_associations=5)
    register(local, "Pacs", 4)
    unavailable(local, local.claim())
    local.clock.advance(61)
    succeed(local, local.claim())
    assert local.client.destination("Pacs").down_since is None
    assert len(local.client.claim("clarascu", size=10)) == 3


def test_peek_shows_what_a_claim_would_give_and_changes_nothing(local: "LocalService") -> None:
    add(local, "Pacs", max_associations=1)
    (first, _second) = register(local, "Pacs", 2)
    for _ in range(2):
        shown = local.call("GET", "/api/tasks/clarascu/pending?size=10&peek=true").json
        assert [(task["taskId"], task["state"]) for task in shown] == [(first, "Pending")]
    assert local.claim().task_id == first


def test_what_is_not_due_yet_is_claimed_in_the_order_of_claims_once_it_is(
    local: "LocalService",
) -> None:
    later = local.clock.now() + timedelta(seconds=30)
    (low,) = local.register(job_id="one", not_before=later)
    (high,) = local.register(job_id="two", not_before=later, priority=5)
    (now,) = local.register(job_id="three")
    assert local.claim().task_id == now.task_id
    assert local.client.claim("clarascu", size=10) == []
    local.clock.advance(30)
    due = [task.task_id for task in local.client.claim("clarascu", size=10)]
    assert due == [high.task_id, low.task_id]


def test_a_refused_file_too_shows_that_the_destination_is_up(local: "LocalService") -> None:
    add(local, "Away")
    register(local, "Away")
    unavailable(local, local.claim())
    local.clock.advance(61)
    probe = local.claim()
    files = [told("a.dcm", Outcome.REJECTED), told("b.dcm", Outcome.REJECTED)]
    report = FailureReport(retry_later=False, lease_token=probe.lease_token, files=files)
    assert local.client.fail(probe.task_id, report).state == State.FAILED
    assert local.client.destination("Away").down_since is None


def test_a_probe_that_falls_silent_is_followed_by_another(local: "LocalService") -> None:
    add(local, "Away")
    register(local, "Away", 2)
    unavailable(local, local.claim())
    local.clock.advance(61)
    local.claim(lease=3600)
    local.clock.advance(61)
    local.claim(lease=3600)


def test_one_that_is_down_does_not_hold_up_another(local: "LocalService") -> None:
    add(local, "Away")
    add(local, "Here")
    register(local, "Away", 5)
    unavailable(local, local.claim())
    (here,) = register(local, "Here")
    assert [task.task_id for task in local.client.claim("clarascu", size=10)] == [here]


def test_a_change_to_a_destination_that_is_down_is_tried_at_once(local: "LocalService") -> None:
    add(local, "Away")
    register(local, "Away")
    unavailable(local, local.claim())
    assert local.client.claim("clarascu") == []
    body = Destination(name="Away", ae_title="AWAY", host="127.0.0.1", port=11112)
    assert local.client.replace_destination("Away", body).down_since is None
    local.claim()


@pytest.mark.parametrize("policy", [{"give_up": 100.0}])
def test_tasks_that_never_came_to_their_turn_fail_too_in_the_end(local: "LocalService") -> None:
    add(local, "Away")
    ids = register(local, "Away", 3)
    unavailable(local, local.claim())
    local.clock.advance(99)
    engine = local.engine
    assert _give_up(local) == 0
    late = register(local, "Away")
    local.clock.advance(2)
    assert _give_up(local) == 3
    for task_id in ids:
        task = local.client.task(task_id)
        assert task.state == State.FAILED
        assert task.last_error is not None
        assert task.last_error.code == "destination-unavailable"
    assert local.client.task(late[0]).state == State.PENDING
    local.client.retry(ids[0])  # by a person: a new time of waiting begins
    assert _give_up(local) == 0
    assert engine.closing.is_set() is False


def _give_up(local: "LocalService") -> int:
    return local.engine._database.write(
        lambda transaction: local.engine.queue.give_up(transaction, 100)
    ).result(10)


def test_a_waiting_claim_gets_the_place_that_becomes_free(local: "LocalService") -> None:
    add(local, "Small", max_associations=1)
    register(local, "Small", 2)
    first = local.claim()
    found: list[Task] = []
    waiting = threading.Thread(target=lambda: found.extend(local.client.claim("clarascu", wait=10)))
    waiting.start()
    succeed(local, first)
    waiting.join(4)  # well before it would look by itself
    assert len(found) == 1


def test_names_that_are_no_destinations_are_forgotten_once_nothing_waits_for_them(
    local: "LocalService",
) -> None:
    add(local, "Archive")
    register(local, "Archive")
    register(local, "Done-Once")
    register(local, "Still-Waiting")
    register(local, "Failed-Once", priority=100)
    failed = local.claim()
    local.client.fail(failed.task_id, FailureReport(retry_later=False))
    register(local, "In-Progress", priority=100)
    held = local.claim()
    assert held.parameters == '"In-Progress"'
    for task in local.client.tasks(destination="Done-Once").items:
        local.client.cancel(task.task_id)
    assert local.engine.pruner.round().faults == []
    lanes = local.engine._database.read(
        lambda connection: connection.execute(sa.select(schema.lanes)).all()
    )
    assert {row.destination for row in lanes.result(10)} == {
        "archive",
        "still-waiting",
        "in-progress",
    }
    # What is given back, retried, or registered anew, is found again.
    local.client.release(held.task_id, Release(lease_token=held.lease_token or ""))
    local.client.retry(failed.task_id)
    register(local, "Done-Once")
    claimed = {task.parameters for task in local.client.claim("clarascu", size=10)}
    assert claimed == {
        '"Archive"',
        '"Done-Once"',
        '"Still-Waiting"',
        '"In-Progress"',
        '"Failed-Once"',
    }


def test_any_number_of_names_that_are_no_destinations_costs_a_claim_little(
    local: "LocalService",
) -> None:
    for number in range(4):
        local.register(data=[f"name {number}-{n}" for n in range(50)], job_id=f"job{number}")
    statements: list[str] = []
    engine = local.engine._database.engine
    sa.event.listen(engine, "before_cursor_execute", lambda *call: statements.append(call[2]))
    local.claim()
    assert len(statements) < 60  # whatever the number of names


def test_the_next_task_tries_a_destination_whose_probe_was_given_back(
    local: "LocalService",
) -> None:
    add(local, "Away")
    register(local, "Away", 2)
    unavailable(local, local.claim())
    local.clock.advance(60)
    probe = local.claim()
    assert local.client.claim("clarascu") == []
    local.client.release(probe.task_id, Release(lease_token=probe.lease_token or ""))
    assert local.claim().task_id == probe.task_id
