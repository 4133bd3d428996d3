"""The wire's JSON: ours and pydantic's are the same, there and back."""

import dataclasses
import functools
import json
import typing
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from clara_results.domain.receivers import AuthKind, Clearance, Commit, Verify
from clara_results.domain.tasks import Outcome, State
from clara_results.wire import destinations, instances, payloads, tasks
from clara_results.wire.codec import camel, from_json, timestamp, to_json

BODIES: list[Any] = [
    kind
    for module in (tasks, instances, payloads, destinations)
    for kind in vars(module).values()
    if dataclasses.is_dataclass(kind) and kind.__module__ == module.__name__
]
STRICT = {
    "Announced", "Announcement", "Auth", "CommitmentFailure", "CommitmentResult", "Destination", "FailedInstance",
    "FileOutcome", "Idle", "Progress", "Redelivery", "Registration", "Release", "Renewal", "ResultFile", "TaskFilter",
    "Tls",
}  # fmt: skip
"""Those that only our own clients send: a misspelt field is to be refused."""

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)  # fmt: skip
moments = st.datetimes(
    datetime(1, 1, 2),  # noqa: DTZ001  (hypothesis wants bounds without a zone)
    datetime(9999, 12, 30),  # noqa: DTZ001
    timezones=st.just(UTC) | st.integers(-1439, 1439).map(lambda m: timezone(timedelta(minutes=m))),
)
PLAIN: dict[Any, st.SearchStrategy[Any]] = {
    Any: json_values,
    bool: st.booleans(),
    datetime: moments,
    float: st.floats(allow_nan=False, allow_infinity=False),
    int: st.integers(),
    str: texts,
    **{
        kind: st.sampled_from(kind)
        for kind in (Outcome, State, AuthKind, Clearance, Commit, Verify)
    },
}


def values(hint: Any) -> st.SearchStrategy[Any]:
    """Draw values of a field's type; lists are short, as what is in them is drawn alone as well."""
    if hint in PLAIN:
        return PLAIN[hint]
    if hint in BODIES:
        return drawn(hint)
    inner = typing.get_args(hint)
    if typing.get_origin(hint) is list:
        return st.lists(values(inner[0]), max_size=1)
    if typing.get_origin(hint) is dict:
        return st.dictionaries(texts, values(inner[1]), max_size=2)
    return st.none() | values(inner[0])


@functools.cache
def drawn(kind: Any) -> st.SearchStrategy[Any]:
    """Draw bodies with every field given."""
    hints = typing.get_type_hints(kind)
    return st.builds(
        kind, **{field.name: values(hints[field.name]) for field in dataclasses.fields(kind)}
    )


@pytest.mark.parametrize("kind", BODIES, ids=lambda kind: kind.__name__)
@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(data=st.data())
def test_both_ways_there_and_back(kind: Any, data: st.DataObject) -> None:
    body = data.draw(drawn(kind))
    ours = to_json(body)
    adapter = TypeAdapter(kind)
    assert adapter.validate_json(ours) == body  # the service reads what the client writes
    theirs = adapter.dump_json(body, by_alias=True)
    assert from_json(kind, json.loads(theirs)) == body  # the client reads what the service writes
    assert from_json(kind, json.loads(ours)) == body


@pytest.mark.parametrize("kind", BODIES, ids=lambda kind: kind.__name__)
@settings(max_examples=5, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(data=st.data())
def test_a_field_it_does_not_have_is_refused_by_strict_bodies_only(
    kind: Any, data: st.DataObject
) -> None:
    more = json.loads(to_json(data.draw(drawn(kind)))) | {"noSuchField": 1}
    assert from_json(kind, more) is not None  # a newer service may say more to an older client
    adapter = TypeAdapter(kind)
    if kind.__name__ in STRICT:
        with pytest.raises(ValidationError, match="noSuchField"):
            adapter.validate_python(more)
    else:
        adapter.validate_python(more)


def test_names_are_camel_case() -> None:
    assert camel("job_id") == "jobId"
    assert camel("sop_instance_uid") == "sopInstanceUid"
    assert camel("sha256") == "sha256"


def test_a_registration_is_written_as_the_contract_spells_it() -> None:
    body = tasks.Registration(
        agent="ClaraSCU",
        job_id="j",
        pipeline_id="p",
        payload_id="y",
        data=["Orthanc", {"ä": None}],
        files=[tasks.ResultFile(uri="a", size=0, modified=datetime(2026, 1, 2, tzinfo=UTC))],
        verify=True,
    )
    assert json.loads(to_json(body)) == {
        "agent": "ClaraSCU",
        "jobId": "j",
        "pipelineId": "p",
        "payloadId": "y",
        "data": ["Orthanc", {"ä": None}],  # None inside a value is a value
        "files": [{"uri": "a", "size": 0, "modified": "2026-01-02T00:00:00.000000Z"}],
        "verify": True,
        "priority": 0,
    }


@pytest.mark.parametrize(
    ("moment", "text"),
    [
        (datetime(2026, 11, 22, 8, 30, tzinfo=UTC), "2026-11-22T08:30:00.000000Z"),
        (datetime(2026, 1, 1, 1, 0, 0, 7, timezone(timedelta(hours=2))), "2025-12-31T23:00:00.000007Z"),
        (datetime(33, 4, 3, 15, tzinfo=UTC), "0033-04-03T15:00:00.000000Z"),
    ],
)  # fmt: skip
def test_times_are_written_in_utc_to_the_microsecond(moment: datetime, text: str) -> None:
    assert timestamp(moment) == text


def test_a_list_of_bodies_is_an_array() -> None:
    assert to_json([tasks.Changed(changed=1)]) == b'[{"changed":1}]'


def test_text_is_written_as_utf_8() -> None:
    assert to_json(tasks.Redelivery(destination="Zürich")) == '{"destination":"Zürich"}'.encode()


@pytest.mark.parametrize(
    ("kind", "value", "error"),
    [
        (tasks.Changed, {}, TypeError),
        (tasks.Changed, None, TypeError),
        (tasks.TaskFile, {"uri": "a", "outcome": "vanished"}, ValueError),
        (tasks.Renewed, {"leaseExpiresAt": "soon"}, ValueError),
        (tasks.Renewed, {"leaseExpiresAt": 5}, TypeError),
        (tasks.TaskPage, {"items": 5}, TypeError),
        (tasks.TaskPage, {"items": {}}, TypeError),
        (tasks.TaskPage, {"items": ["changed"]}, TypeError),
        (tasks.Changed, "changed", TypeError),
        (tasks.Changed, {"changed": "1"}, TypeError),
        (tasks.TaskError, {"code": None, "message": "m"}, TypeError),
    ],
)
def test_what_is_not_such_a_body_is_an_error(
    kind: type, value: Any, error: type[Exception]
) -> None:
    with pytest.raises(error):
        from_json(kind, value)


def test_enumerations_come_back_as_themselves() -> None:
    outcome = from_json(tasks.FileOutcome, {"uri": "a", "outcome": "retry"})
    assert outcome.outcome is Outcome.RETRY
    filtered = from_json(tasks.TaskFilter, {"state": "Failed", "taskIds": ["x"]})
    assert filtered.state is State.FAILED
    assert filtered.task_ids == ["x"]
