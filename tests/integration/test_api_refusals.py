"""``POST /api/tasks``: what is refused, and where the limits are."""

import json
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.integration.conftest import LocalService

BODY: dict[str, Any] = {
    "agent": "ClaraSCU",
    "jobId": "job-1",
    "pipelineId": "pipe-1",
    "payloadId": "pay-1",
    "files": [{"uri": "op/a.dcm", "size": 5}, {"uri": "op/b.dcm"}],
}


pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
"""What is refused never gets as far as a database."""


def post(local: "LocalService", **changes: Any) -> Any:
    body = {name: value for name, value in (BODY | changes).items() if value is not ...}
    return local.call("POST", "/api/tasks", body)


MALFORMED: list[tuple[dict[str, Any], str]] = [
    ({"agent": "1x"}, "agent"), ({"agent": ...}, "agent"), ({"agent": 5}, "agent"),
    ({"payloadId": "../x"}, "payloadId"), ({"jobId": ""}, "jobId"),
    ({"jobId": "x" * 256}, "jobId"), ({"jobId": "a\nb"}, "jobId"), ({"jobId": "a\0"}, "jobId"),
    ({"pipelineId": "\ud800"}, "pipelineId"), ({"operator": ""}, "operator"),
    ({"priority": 101}, "priority"), ({"priority": -101}, "priority"),
    ({"priority": 10**40}, "priority"), ({"priority": "high"}, "priority"),
    ({"maxRetries": -1}, "maxRetries"), ({"maxRetries": 1001}, "maxRetries"),
    ({"notBefore": "soon"}, "notBefore"), ({"notBefore": "2026-01-01T00:00:00"}, "notBefore"),
    ({"notBefore": "9999-12-31T23:59:59-10:00"}, "notBefore"),
    ({"data": []}, "data"), ({"data": "Orthanc"}, "data"), ({"data": {"a": 1}}, "data"),
    ({"files": []}, "files"), ({"files": ...}, "files"), ({"uris": ["a"]}, "files"),
    ({"files": ..., "uris": []}, "uris"), ({"files": ..., "uris": "a"}, "uris"),
    ({"files": [{"uri": "a"}, {"uri": "a"}]}, "files[1].uri"),
    ({"files": [{"uri": "a", "size": -1}]}, "files[0].size"),
    ({"files": [{"uri": "a", "size": 1 << 63}]}, "files[0].size"),
    ({"files": [{"uri": "a", "sha256": "xyz"}]}, "files[0].sha256"),
    ({"files": [{"uri": "a", "sha256": "AB" * 32}]}, "files[0].sha256"),
    ({"files": [{"uri": "a", "modified": "2026-01-01T00:00:00"}]}, "files[0].modified"),
    ({"files": [{"uri": "a", "modified": "0001-01-01T00:00:00+10:00"}]}, "files[0].modified"),
    ({"files": [{"uri": "a", "mediaType": "a\0b"}]}, "files[0].mediaType"),
    ({"files": [{"size": 1}]}, "files[0].uri"), ({"files": [5]}, "files[0]"),
    ({"files": [{"uri": "a", "colour": 1}]}, "files[0].colour"),
    ({"jobID": "misspelt"}, "jobID"),
]  # fmt: skip


def test_a_malformed_field_is_named(local: "LocalService") -> None:
    for changes, field in MALFORMED:
        answer = post(local, **changes)
        assert answer.status == 422, (changes, answer.data)
        problem = answer.json
        assert problem["code"] in {"invalid-input", "invalid-request"}
        assert field in [fault["field"] for fault in problem["errors"]], problem
    assert local.client.tasks().items == []


def test_an_unsafe_uri_is_refused_and_named(local: "LocalService") -> None:
    for uri in ["/a", "../a", "a/../b", "a\\b", "C:/a", "", "a\0", "a//b", "\ud800"]:
        problem = post(local, files=[{"uri": "fine"}, {"uri": uri}]).problem(422, "unsafe-uri")
        assert [fault["field"] for fault in problem["errors"]] == ["files[1].uri"]


def test_all_that_is_wrong_is_said_at_once(local: "LocalService") -> None:
    answer = post(
        local, agent="1", payloadId="..", priority=500, files=[{"uri": "/"}, {"uri": "b"}]
    )
    problem = answer.problem(422, "invalid-input")
    fields = {fault["field"] for fault in problem["errors"]}
    assert fields == {"agent", "payloadId", "priority", "files[0].uri"}


def test_data_that_is_no_text_is_refused(local: "LocalService") -> None:
    for element in ["\ud800", {"\udfff": 1}, ["deep", {"a": "\ud8ff"}]]:
        problem = post(local, data=[element]).problem(422, "invalid-input")
        assert problem["errors"][0]["field"] == "data"


def post_raw(local: "LocalService", raw: bytes | str) -> Any:
    raw = raw.encode() if isinstance(raw, str) else raw
    headers = {"Content-Type": "application/json"}
    return local.call("POST", "/api/tasks", raw=raw, headers=headers)


def test_data_with_a_number_that_json_does_not_have_is_refused(local: "LocalService") -> None:
    for number in ["NaN", "Infinity", "-Infinity", "1e999"]:
        answer = post_raw(local, json.dumps(BODY)[:-1] + f', "data": [[{number}]]}}')
        problem = answer.problem(422, "invalid-input")
        assert problem["errors"][0]["field"] == "data"


def test_data_nested_too_deep_is_refused(local: "LocalService") -> None:
    for depth in [101, 300, 900, 5_000, 100_000]:
        nested = "[" * depth + "]" * depth
        answer = post_raw(local, json.dumps(BODY)[:-1] + f', "data": {nested}}}')
        assert answer.status == 422, answer.data
        assert answer.headers["Content-Type"] == "application/problem+json"
    nested = "[" * 100 + "]" * 100
    assert post_raw(local, json.dumps(BODY)[:-1] + f', "data": {nested}}}').status == 201


def test_a_body_that_is_no_registration_is_refused(local: "LocalService") -> None:
    for raw in [b"", b"{", b"[]", b"null", b'"x"', b"\xff", b"{'a': 1}", b"5", b"1" * 5000]:
        post_raw(local, raw).problem(422, "invalid-request")


def test_a_hundred_thousand_files_are_taken_and_one_more_is_not(local: "LocalService") -> None:
    uris = [f"op/{number}" for number in range(100_000)]
    answer = post(local, files=..., uris=uris)
    assert answer.status == 201
    assert answer.json["tasks"][0]["counts"]["pending"] == 100_000
    problem = post(local, files=..., uris=[*uris, "more"]).problem(422, "invalid-input")
    assert problem["errors"][0]["field"] == "uris"
    assert "100000" in problem["detail"].replace(",", "")


def test_a_mebibyte_of_data_is_taken_and_more_is_not(local: "LocalService") -> None:
    assert post(local, data=["x" * ((1 << 20) - 4)]).status == 201
    problem = post(local, data=["x" * (1 << 20)]).problem(422, "invalid-input")
    assert problem["errors"][0]["field"] == "data"


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_past_16_mib_is_too_large(local: "LocalService", chunked: bool) -> None:
    large = b'{"agent": "' + b"x" * (16 << 20) + b'"}'
    headers = {"Content-Type": "application/json"}
    if chunked:
        answer = local._pool.request(
            "POST", local.url + "/api/tasks", headers=headers,
            body=iter([large[i : i + 65536] for i in range(0, len(large), 65536)]),
        )  # fmt: skip
        assert answer.status == 413
        return
    local.call("POST", "/api/tasks", raw=large, headers=headers).problem(413, "too-large")
