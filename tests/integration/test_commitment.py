"""Storage commitment, the service's part: what is asked for, when, and what comes of an answer."""

import json
import re
from typing import TYPE_CHECKING, Any

import pytest

from clara_results.domain.receivers import Clearance, Commit
from clara_results.domain.tasks import Outcome, State
from clara_results.errors import NotFound
from clara_results.wire.destinations import Destination, address
from clara_results.wire.instances import (
    Announced,
    Announcement,
    CommitmentFailure,
    CommitmentRequest,
    CommitmentResult,
    FailedInstance,
)
from clara_results.wire.tasks import FailureReport, SuccessReport, Task
from tests.conftest import eventually
from tests.integration.conftest import told

if TYPE_CHECKING:
    from tests.integration.conftest import LocalService

CT = "1.2.840.10008.5.1.4.1.1.2"
UIDS = {"a.dcm": "1.2.1", "b.dcm": "1.2.2"}
WAIT, DEADLINE = 600, 86_400


def add(local: "LocalService", name: str, commitment: Commit, port: int = 104) -> None:
    local.client.add_destination(
        Destination(name=name, ae_title="PACS", host="h", port=port, commitment=commitment)
    )


@pytest.fixture
def pacs(local: "LocalService") -> "LocalService":
    """A service with a destination that must commit itself and one that is only asked."""
    add(local, "Must", Commit.REQUIRE)
    add(local, "May", Commit.ASK, 105)
    return local


def announced(local: "LocalService", destination: str = "Must") -> Task:
    local.register(*UIDS, data=[destination])
    task = local.claim()
    announce(local, task)
    return task


def announce(local: "LocalService", task: Task) -> list[Clearance]:
    body = Announcement(
        lease_token=task.lease_token or "",
        receiver=address(local.client.destination(json.loads(task.parameters or ""))),
        instances=[
            Announced(uri=uri, sop_instance_uid=UIDS[uri], sop_class_uid=CT, sha256="0" * 64)
            for uri in task.uris or ()
        ],
    )
    return [item.clearance for item in local.client.announce(task.task_id, body).items]


def sent(local: "LocalService", destination: str = "Must") -> Task:
    task = announced(local, destination)
    files = [told(uri, Outcome.AWAITING, sop_instance_uid=uid) for uri, uid in UIDS.items()]
    report = SuccessReport(lease_token=task.lease_token, files=files)
    return local.client.succeed(task.task_id, report)


def due(local: "LocalService") -> list[CommitmentRequest]:
    return local.client.commitments_due("ClaraSCU")


def result(local: "LocalService", request: CommitmentRequest, *uids: str, **failed: int) -> Task:
    body = CommitmentResult(
        committed=list(uids),
        failed=[
            FailedInstance(sop_instance_uid=UIDS[f"{name}.dcm"], reason=reason)
            for name, reason in failed.items()
        ],
    )
    return local.client.committed(request.transaction_uid, body)


def outcomes(local: "LocalService", task: Task) -> dict[str, tuple[str, str | None]]:
    page = local.client.files(task.task_id)
    return {file.uri: (file.outcome, file.code) for file in page.items}


def test_a_task_awaits_the_commitment_and_nobody_holds_it(pacs: "LocalService") -> None:
    task = sent(pacs)
    assert task.state is State.AWAITING_COMMITMENT
    assert task.counts.awaiting == 2
    shown = pacs.client.task(task.task_id)
    assert [entry.event for entry in shown.history or ()] == ["registered", "claimed", "sent"]
    assert (shown.attempts or [])[0].result == "sent"
    assert pacs.client.claim("clarascu") == []
    view = pacs.client.destination("Must")
    assert (view.awaiting_commitment, view.in_progress, view.associations) == (1, 0, 0)
    assert pacs.client.job("job").delivered is False


def test_it_is_asked_for_once_under_a_uid_of_its_own(pacs: "LocalService") -> None:
    task = sent(pacs)
    (request,) = due(pacs)
    assert (request.task_id, request.parameters) == (task.task_id, '"Must"')
    assert re.fullmatch(r"2\.25\.\d{1,39}", request.transaction_uid)
    assert [(one.sop_class_uid, one.sop_instance_uid) for one in request.instances] == [
        (CT, "1.2.1"),
        (CT, "1.2.2"),
    ]
    assert due(pacs) == []


def test_committed_means_delivered(pacs: "LocalService") -> None:
    task = sent(pacs)
    (request,) = due(pacs)
    ended = result(pacs, request, *UIDS.values())
    assert ended.state is State.SUCCEEDED
    assert outcomes(pacs, task) == dict.fromkeys(UIDS, ("delivered", "committed"))
    assert pacs.client.job("job").delivered
    assert result(pacs, request, *UIDS.values()).state is State.SUCCEEDED  # said twice
    pacs.register(*UIDS, data=["Must"], job_id="again")
    assert announce(pacs, pacs.claim()) == [Clearance.DELIVERED] * 2


def test_until_then_it_is_not_delivered(pacs: "LocalService") -> None:
    sent(pacs)
    pacs.register(*UIDS, data=["Must"], job_id="again")
    assert announce(pacs, pacs.claim()) == [Clearance.SEND] * 2


def test_an_instance_that_the_receiver_does_not_have_is_sent_again(pacs: "LocalService") -> None:
    task = sent(pacs)
    (request,) = due(pacs)
    partly = result(pacs, request, "1.2.1", b=0x0112)
    assert (partly.state, partly.retries) == (State.PENDING, 1)
    assert outcomes(pacs, task) == {"a.dcm": ("delivered", "committed"), "b.dcm": ("retry", "0112")}
    pacs.clock.advance(60)
    again = pacs.claim()
    assert again.uris == ["b.dcm"]
    assert announce(pacs, again) == [Clearance.SEND]


def test_any_other_refusal_is_for_good(pacs: "LocalService") -> None:
    task = sent(pacs)
    (request,) = due(pacs)
    ended = result(pacs, request, "1.2.1", b=0x0110)
    assert (ended.state, ended.last_error and ended.last_error.code) == (State.FAILED, "files-rejected")  # fmt: skip
    assert outcomes(pacs, task)["b.dcm"] == ("rejected", "0110")


def test_an_answer_about_some_leaves_the_rest_awaited(pacs: "LocalService") -> None:
    task = sent(pacs)
    (request,) = due(pacs)
    partly = result(pacs, request, "1.2.1", "9.9.9")
    assert partly.state is State.AWAITING_COMMITMENT
    assert outcomes(pacs, task)["b.dcm"][0] == "awaiting"
    pacs.clock.advance(WAIT)
    (again,) = due(pacs)
    assert [one.sop_instance_uid for one in again.instances] == ["1.2.2"]
    assert result(pacs, again, "1.2.2").state is State.SUCCEEDED


def test_silence_leads_to_another_question_and_never_to_another_sending(
    pacs: "LocalService",
) -> None:
    sent(pacs)
    (first,) = due(pacs)
    pacs.clock.advance(WAIT - 1)
    assert due(pacs) == []
    pacs.clock.advance(1)
    (second,) = due(pacs)
    assert second.transaction_uid != first.transaction_uid
    assert pacs.client.claim("clarascu") == []
    assert result(pacs, first, *UIDS.values()).state is State.SUCCEEDED  # late, but it counts
    pacs.clock.advance(WAIT)
    assert due(pacs) == []


def test_after_the_deadline_it_fails_and_a_person_may_have_it_asked_again(
    pacs: "LocalService",
) -> None:
    task = sent(pacs)
    (first,) = due(pacs)
    pacs.clock.advance(DEADLINE)
    eventually(
        lambda: pacs.client.task(task.task_id).state is State.FAILED, "it fails at its deadline"
    )
    assert due(pacs) == []
    error = pacs.client.task(task.task_id).last_error
    assert error is not None
    assert error.code == "commitment-timeout"
    for uri in UIDS:
        pacs.put_file(uri, b"x")
    assert pacs.client.retry(task.task_id).state is State.AWAITING_COMMITMENT
    (again,) = due(pacs)
    assert again.transaction_uid != first.transaction_uid
    assert result(pacs, again, *UIDS.values()).state is State.SUCCEEDED


def test_a_commitment_that_comes_after_the_deadline_is_not_lost(pacs: "LocalService") -> None:
    task = sent(pacs)
    (request,) = due(pacs)
    pacs.clock.advance(DEADLINE)
    eventually(
        lambda: pacs.client.task(task.task_id).state is State.FAILED, "it fails at its deadline"
    )
    assert result(pacs, request, *UIDS.values()).state is State.FAILED
    assert outcomes(pacs, task) == dict.fromkeys(UIDS, ("delivered", "committed"))
    assert pacs.client.retry(task.task_id).state is State.SUCCEEDED


def test_what_is_to_be_sent_again_goes_before_the_rest_is_asked_for(pacs: "LocalService") -> None:
    task = announced(pacs)
    files = [
        told("a.dcm", Outcome.AWAITING, sop_instance_uid="1.2.1"),
        told("b.dcm", Outcome.RETRY),
    ]
    report = FailureReport(lease_token=task.lease_token, retry_later=True, files=files)
    assert pacs.client.fail(task.task_id, report).state is State.PENDING
    assert due(pacs) == []
    pacs.clock.advance(60)
    again = pacs.claim()
    assert again.uris == ["b.dcm"]
    files = [told("b.dcm", Outcome.AWAITING, sop_instance_uid="1.2.2")]
    pacs.client.succeed(again.task_id, SuccessReport(lease_token=again.lease_token, files=files))
    (request,) = due(pacs)
    assert len(request.instances) == 2


def failure(**more: Any) -> CommitmentFailure:
    return CommitmentFailure(code="x", message="away", **more)


def test_a_receiver_that_could_not_be_asked_is_asked_soon(pacs: "LocalService") -> None:
    sent(pacs)
    (first,) = due(pacs)
    told_of = pacs.client.commitment_failed(first.transaction_uid, failure())
    assert told_of.state is State.AWAITING_COMMITMENT
    assert due(pacs) == []
    pacs.clock.advance(60)
    assert len(due(pacs)) == 1


@pytest.mark.parametrize(
    ("destination", "state", "outcome"),
    [("Must", State.FAILED, "rejected"), ("May", State.SUCCEEDED, "delivered")],
)
def test_one_that_does_not_offer_it_is_content_enough_only_where_it_may_be(
    pacs: "LocalService", destination: str, state: State, outcome: str
) -> None:
    task = sent(pacs, destination)
    (request,) = due(pacs)
    ended = pacs.client.commitment_failed(request.transaction_uid, failure(unsupported=True))
    assert ended.state is state
    assert outcomes(pacs, task) == dict.fromkeys(UIDS, (outcome, "commitment-unsupported"))


def test_a_transaction_that_never_was_is_none(pacs: "LocalService") -> None:
    with pytest.raises(NotFound):
        pacs.client.committed("2.25.1", CommitmentResult(committed=["1.2"], failed=[]))
    with pytest.raises(NotFound):
        pacs.client.commitment_failed("2.25.1", failure())


def test_a_canceled_task_is_asked_for_no_more(pacs: "LocalService") -> None:
    task = sent(pacs)
    (request,) = due(pacs)
    assert pacs.client.cancel(task.task_id).state is State.CANCELED
    pacs.clock.advance(WAIT)
    assert due(pacs) == []
    assert result(pacs, request, *UIDS.values()).state is State.CANCELED


def test_its_files_are_kept_meanwhile(pacs: "LocalService") -> None:
    for uri in UIDS:
        pacs.put_file(uri, b"x")
    sent(pacs)
    pacs.call("DELETE", "/api/payloads/pay").problem(409, "payload-in-use")
