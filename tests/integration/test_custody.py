"""What receivers were sent under which UID, and what people find results by."""

import hashlib
import json
from typing import TYPE_CHECKING, Any

import pytest

from clara_results.domain.receivers import Clearance
from clara_results.domain.tasks import Outcome
from clara_results.errors import LeaseLost, Refused
from clara_results.wire.destinations import Destination, address
from clara_results.wire.instances import Announced, Announcement
from clara_results.wire.tasks import FailureReport, Redelivery, Release, SuccessReport, Task
from tests.integration.conftest import told

if TYPE_CHECKING:
    from tests.integration.conftest import Answer, LocalService, TokenMaker

SEND, DELIVERED, REUSED = Clearance.SEND, Clearance.DELIVERED, Clearance.REUSED
STUDY, SERIES = "1.2.3", "1.2.3.4"


def digest(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()


def instance(
    uri: str = "a.dcm", uid: str = "1.2.3.4.5", content: str = "x", **more: Any
) -> Announced:
    values = {
        "sop_class_uid": "1.2.840.10008.5.1.4.1.1.2",
        "study_instance_uid": STUDY,
        "series_instance_uid": SERIES,
        "accession_number": "ACC-7",
        "patient_id": "PAT-9",
        "issuer_of_patient_id": "Ward",
    }
    return Announced(uri=uri, sop_instance_uid=uid, sha256=digest(content), **(values | more))


@pytest.fixture
def pacs(local: "LocalService") -> "LocalService":
    """A service with two destinations, one of which may be sent other objects under known UIDs."""
    add(local, "Pacs")
    add(local, "Any", port=105, overwrite=True)
    return local


def add(local: "LocalService", name: str, **more: Any) -> None:
    values: dict[str, Any] = {
        "ae_title": "PACS",
        "host": "pacs.example",
        "port": 104,
        "max_associations": 50,
    }
    local.client.add_destination(Destination(name=name, **(values | more)))


def claimed(local: "LocalService", destination: str = "Pacs", job: str = "job") -> Task:
    local.register("a.dcm", "b.dcm", data=[destination], job_id=job)
    return local.claim()


def announce(local: "LocalService", task: Task, *instances: Announced) -> list[Clearance]:
    known = local.client.destination(json.loads(task.parameters or ""))
    return announce_to(local, address(known), task, *instances)


def announce_to(
    local: "LocalService", receiver: str, task: Task, *instances: Announced
) -> list[Clearance]:
    body = Announcement(
        lease_token=task.lease_token or "", receiver=receiver, instances=list(instances)
    )
    items = local.client.announce(task.task_id, body).items
    assert [item.uri for item in items] == [one.uri for one in instances]
    return [item.clearance for item in items]


def delivered(local: "LocalService", task: Task, *instances: Announced) -> None:
    """Report a task's instances as delivered, and all else of it as skipped."""
    outcomes = [told(one.uri, sop_instance_uid=one.sop_instance_uid) for one in instances]
    rest = {"a.dcm", "b.dcm"} - {one.uri for one in instances}
    outcomes += [told(uri, Outcome.SKIPPED) for uri in rest]
    local.client.succeed(task.task_id, SuccessReport(lease_token=task.lease_token, files=outcomes))


def ended(local: "LocalService", task: Task, one: Announced, **outcome: Any) -> None:
    """Report that a task's instance was not delivered."""
    files = [told(one.uri, sop_instance_uid=one.sop_instance_uid, **outcome)]
    report = FailureReport(lease_token=task.lease_token, retry_later=False, files=files)
    local.client.fail(task.task_id, report)


def sent(local: "LocalService", destination: str = "Pacs") -> None:
    """Have an instance delivered."""
    task = claimed(local, destination, "earlier")
    assert announce(local, task, instance()) == [SEND]
    delivered(local, task, instance())


def test_what_a_receiver_has_is_not_sent_again(pacs: "LocalService") -> None:
    sent(pacs)
    assert announce(pacs, claimed(pacs), instance("b.dcm")) == [DELIVERED]


def test_another_object_under_its_uid_is_not_sent(pacs: "LocalService") -> None:
    sent(pacs)
    later = claimed(pacs)
    assert announce(pacs, later, instance(content="y")) == [REUSED]
    ended(pacs, later, instance(content="y"), outcome=Outcome.REJECTED, code="uid-reused")
    assert announce(pacs, claimed(pacs, job="next"), instance()) == [DELIVERED]


def test_it_is_unless_the_destination_may_be_overwritten(pacs: "LocalService") -> None:
    sent(pacs, "Any")
    later = claimed(pacs, "Any")
    assert announce(pacs, later, instance(content="y")) == [SEND]
    delivered(pacs, later, instance(content="y"))


def test_what_may_have_been_sent_keeps_its_uid(pacs: "LocalService") -> None:
    task = claimed(pacs)
    announce(pacs, task, instance())
    pacs.client.cancel(task.task_id)  # whether the receiver has it nobody knows
    later = claimed(pacs, job="later")
    assert announce(pacs, later, instance(content="y"), instance("b.dcm", "1.9")) == [REUSED, SEND]
    assert announce(pacs, claimed(pacs, job="same"), instance()) == [SEND]


def test_a_task_that_is_claimed_again_goes_on(pacs: "LocalService") -> None:
    task = claimed(pacs)
    announce(pacs, task, instance())
    pacs.client.release(task.task_id, Release(lease_token=task.lease_token or ""))
    assert announce(pacs, pacs.claim(), instance()) == [SEND]


@pytest.mark.parametrize(("doubt", "then"), [(False, SEND), (True, REUSED)])
def test_an_object_that_was_refused_frees_its_uid_unless_there_is_doubt(
    pacs: "LocalService", doubt: bool, then: Clearance
) -> None:
    task = claimed(pacs)
    announce(pacs, task, instance())
    ended(pacs, task, instance(), outcome=Outcome.REJECTED, code="A900", doubt=doubt)
    assert announce(pacs, claimed(pacs, job="mended"), instance(content="y")) == [then]


@pytest.mark.parametrize(("doubt", "then"), [(False, SEND), (True, REUSED)])
def test_one_to_retry_keeps_its_uid_if_there_is_doubt(
    pacs: "LocalService", doubt: bool, then: Clearance
) -> None:
    task = claimed(pacs)
    announce(pacs, task, instance())
    ended(pacs, task, instance(), outcome=Outcome.RETRY, code="0110", doubt=doubt)
    assert announce(pacs, claimed(pacs, job="other"), instance(content="y")) == [then]


def test_a_refusal_does_not_undo_what_an_earlier_attempt_may_have_sent(
    pacs: "LocalService",
) -> None:
    task = claimed(pacs)
    announce(pacs, task, instance())
    pacs.client.release(task.task_id, Release(lease_token=task.lease_token or ""))
    again = pacs.claim()  # whether the first attempt's instance came to the receiver nobody knows
    announce(pacs, again, instance())
    announce(pacs, again, instance())  # as after an answer that was lost
    ended(pacs, again, instance(), outcome=Outcome.REJECTED, code="A900")
    assert announce(pacs, claimed(pacs, job="other"), instance(content="y")) == [REUSED]


def test_nor_what_another_task_has_delivered(pacs: "LocalService") -> None:
    sent(pacs, "Any")
    later = claimed(pacs, "Any", "later")
    announce(pacs, later, instance(content="y"))
    ended(pacs, later, instance(content="y"), outcome=Outcome.REJECTED, code="A900")
    add(pacs, "Strict", port=105)
    assert announce(pacs, claimed(pacs, "Strict", "last"), instance(content="z")) == [REUSED]


def test_a_person_may_have_it_sent_again(pacs: "LocalService") -> None:
    task = claimed(pacs)
    announce(pacs, task, instance())
    delivered(pacs, task, instance())
    for uri in ("a.dcm", "b.dcm"):
        pacs.put_file(uri, b"x")
    pacs.client.redeliver(task.task_id, Redelivery())
    assert announce(pacs, pacs.claim(), instance()) == [SEND]
    assert announce(pacs, claimed(pacs, job="more"), instance(content="y")) == [REUSED]


def test_two_names_for_one_receiver_are_one(pacs: "LocalService") -> None:
    sent(pacs)
    add(pacs, "Alias", host="PACS.example")
    assert announce(pacs, claimed(pacs, "Alias"), instance()) == [DELIVERED]


def test_a_name_that_moves_to_another_receiver_takes_nothing_along(pacs: "LocalService") -> None:
    sent(pacs)
    moved = Destination(name="Pacs", ae_title="PACS", host="new.example", port=104)
    pacs.client.replace_destination("Pacs", moved)
    assert announce(pacs, claimed(pacs), instance()) == [SEND]


def test_what_was_sent_before_a_name_moved_was_sent_to_the_old_receiver(
    pacs: "LocalService",
) -> None:
    task = claimed(pacs)
    old = address(pacs.client.destination("Pacs"))  # as the agent has read it
    moved = Destination(name="Pacs", ae_title="PACS", host="new.example", port=104)
    pacs.client.replace_destination("Pacs", moved)
    assert announce_to(pacs, old, task, instance()) == [SEND]
    delivered(pacs, task, instance())
    assert announce(pacs, claimed(pacs, job="next"), instance()) == [SEND]
    add(pacs, "Old")
    assert announce(pacs, claimed(pacs, "Old", "third"), instance()) == [DELIVERED]


def test_other_settings_do_not_make_another_receiver(pacs: "LocalService") -> None:
    sent(pacs)
    same = Destination(name="Pacs", ae_title="PACS", host="pacs.example", port=104, transcode=False)
    pacs.client.replace_destination("Pacs", same)
    assert announce(pacs, claimed(pacs), instance()) == [DELIVERED]


def test_a_destination_that_is_gone_forgets_nothing(pacs: "LocalService") -> None:
    sent(pacs)
    task = claimed(pacs)
    old = address(pacs.client.destination("Pacs"))
    pacs.client.remove_destination("Pacs")
    assert announce_to(pacs, old, task, instance()) == [DELIVERED]
    add(pacs, "Again")
    assert announce(pacs, claimed(pacs, "Again", "next"), instance()) == [DELIVERED]


def test_only_the_holder_may_announce(pacs: "LocalService") -> None:
    task = claimed(pacs)
    pacs.client.cancel(task.task_id)
    with pytest.raises(LeaseLost):
        announce(pacs, task, instance())


@pytest.mark.parametrize(
    "wrong",
    [
        [instance("nowhere.dcm")],
        [instance("a.dcm"), instance("b.dcm")],
        [instance("b.dcm", "1.8")],
        [instance(uid="")],
        [instance(uid="1." * 40)],
        [Announced(uri="a.dcm", sop_instance_uid="1.2", sha256="AB")],
        [instance(uid="1.2 3")],
    ],
    ids=["unknown-file", "uid-twice", "uri-twice", "no-uid", "long-uid", "digest", "space"],
)
def test_what_cannot_be_announced_is_refused_as_a_whole(
    pacs: "LocalService", wrong: list[Announced]
) -> None:
    task = claimed(pacs)
    with pytest.raises(Refused) as raised:
        announce(pacs, task, instance("b.dcm", "1.7"), *wrong)
    assert raised.value.status == 422
    assert announce(pacs, claimed(pacs, job="other"), instance(uid="1.7", content="y")) == [SEND]


# Found again


def found(local: "LocalService", text: str, token: str | None = None) -> list[str]:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    answer = local.call("GET", f"/api/tasks?q={text}", headers=headers)
    assert answer.status == 200, answer.data
    return [item["taskId"] for item in answer.json["items"]]


def files(local: "LocalService", task_id: str, token: str | None = None) -> list[dict[str, Any]]:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    answer: Answer = local.call("GET", f"/api/tasks/{task_id}/files", headers=headers)
    items: list[dict[str, Any]] = answer.json["items"]
    return items


def test_results_are_found_by_what_people_know_of_them(pacs: "LocalService") -> None:
    task = claimed(pacs)
    announce(pacs, task, instance(), instance("b.dcm", "1.2.3.4.6"))
    other = claimed(pacs, job="other")
    announce(pacs, other, instance("b.dcm", "1.9.9", study_instance_uid="1.9", patient_id="PAT-8",
                                   accession_number=None, series_instance_uid="1.9.1"))  # fmt: skip
    for text in (STUDY, SERIES, "1.2.3.4.5", "1.2.3.4.6", "ACC-7", "PAT-9"):
        assert found(pacs, text) == [task.task_id], text
    assert found(pacs, "PAT-8") == found(pacs, "1.9") == [other.task_id]
    assert found(pacs, "PAT") == []  # whole identifiers only
    first = files(pacs, task.task_id)[0]
    assert first["patientId"] == "PAT-9"
    assert first["issuerOfPatientId"] == "Ward"
    assert first["accessionNumber"] == "ACC-7"
    assert (first["studyInstanceUid"], first["seriesInstanceUid"]) == (STUDY, SERIES)


def test_odd_values_are_kept_as_far_as_they_can_be(pacs: "LocalService") -> None:
    task = claimed(pacs)
    odd = instance(patient_id="a\0b", study_instance_uid="1." * 200, accession_number="x" * 999)
    assert announce(pacs, task, odd) == [SEND]
    (shown,) = [file for file in files(pacs, task.task_id) if file["uri"] == "a.dcm"]
    assert shown["patientId"] == "a?b"
    assert len(shown["studyInstanceUid"]) == len(shown["accessionNumber"]) == 255


def test_patient_data_takes_the_scope_operate(
    pacs: "LocalService", make_token: "TokenMaker"
) -> None:
    task = claimed(pacs)
    announce(pacs, task, instance())
    read, operate = make_token("read"), make_token("operate", "read", name="operator")
    assert found(pacs, "PAT-9", read) == found(pacs, "ACC-7", read) == []
    assert found(pacs, "PAT-9", operate) == found(pacs, STUDY, read) == [task.task_id]
    shown = files(pacs, task.task_id, read)[0]
    assert shown["studyInstanceUid"] == STUDY
    assert not {"patientId", "issuerOfPatientId", "accessionNumber"} & {
        name for name, value in shown.items() if value is not None
    }
    assert files(pacs, task.task_id, operate)[0]["patientId"] == "PAT-9"


def test_patient_data_goes_when_the_payload_goes(pacs: "LocalService") -> None:
    pacs.put_file("a.dcm", b"x")
    task = claimed(pacs)
    announce(pacs, task, instance(), instance("b.dcm", "1.9"))
    delivered(pacs, task, instance())
    assert pacs.call("DELETE", "/api/payloads/pay").status == 204
    assert found(pacs, "PAT-9") == found(pacs, "ACC-7") == []
    assert found(pacs, SERIES) == found(pacs, "1.2.3.4.5") == [task.task_id]
    shown = files(pacs, task.task_id)
    assert {file["seriesInstanceUid"] for file in shown} == {SERIES}
    assert "PAT-9" not in str(shown)


@pytest.mark.parametrize("policy", [{"patient_columns": False}])
def test_patient_data_need_not_be_kept(pacs: "LocalService") -> None:
    task = claimed(pacs)
    announce(pacs, task, instance())
    assert found(pacs, "PAT-9") == found(pacs, "ACC-7") == []
    assert found(pacs, STUDY) == [task.task_id]
    assert "PAT-9" not in str(files(pacs, task.task_id))
