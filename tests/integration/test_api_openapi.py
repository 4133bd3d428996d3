"""The OpenAPI document, the pages that show it, and that every answer is of the documented kind."""

import re
from typing import TYPE_CHECKING, Any

import pytest

from clara_results.api.app import create_app
from clara_results.service.engine import Engine
from clara_results.wire.destinations import Destination, TestResult

if TYPE_CHECKING:
    from tests.integration.conftest import LocalService

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
ID = "9f6c0a0f-c92e-4eab-aabc-d5e1855295d6"
VALUES = {
    "task_id": ID,
    "agent": "clarascu",
    "job_id": "j",
    "payload_id": "p",
    "uri": "a",
    "name": "n",
    "dataset_id": "d",
}
CONTRACT = """
POST /api/tasks
GET /api/tasks
GET /api/tasks/{agent}/pending
PUT /api/tasks/success/{task_id}
PUT /api/tasks/failure/{task_id}
PUT /api/tasks/{task_id}/lease
PUT /api/tasks/{task_id}/release
GET /api/tasks/{task_id}
GET /api/tasks/{task_id}/files
POST /api/tasks/{task_id}/retry
POST /api/tasks/{task_id}/cancel
POST /api/tasks/{task_id}/redeliver
POST /api/tasks/retry
POST /api/tasks/cancel
GET /api/jobs/{job_id}
PUT /api/payloads/{payload_id}/files/{uri}
GET /api/payloads/{payload_id}/files/{uri}
HEAD /api/payloads/{payload_id}/files/{uri}
GET /api/payloads/{payload_id}
DELETE /api/payloads/{payload_id}
GET /api/config/destinationaetitle
POST /api/config/destinationaetitle
GET /api/config/destinationaetitle/{name}
DELETE /api/config/destinationaetitle/{name}
GET /api/destinations
POST /api/destinations
GET /api/destinations/{name}
PUT /api/destinations/{name}
DELETE /api/destinations/{name}
POST /api/destinations/{name}/test
GET /api/agents
PUT /api/tasks/{task_id}/datasets/{dataset_id}
PUT /api/tasks/{task_id}/datasets/{dataset_id}/files/{uri}
GET /api/datasets
GET /api/datasets/{dataset_id}
DELETE /api/datasets/{dataset_id}
PUT /api/datasets/{dataset_id}/view
GET /api/datasets/{dataset_id}/files/{uri}
HEAD /api/datasets/{dataset_id}/files/{uri}
GET /health/live
GET /health/ready
GET /health/status
"""


def documented(document: dict[str, Any]) -> set[str]:
    return {
        f"{method.upper()} {path}" for path, item in document["paths"].items() for method in item
    }


def references(node: Any) -> set[str]:
    if isinstance(node, dict):
        inner = set().union(*(references(value) for value in node.values()))
        return inner | ({node["$ref"]} if isinstance(node.get("$ref"), str) else set())
    if isinstance(node, list):
        return set().union(*(references(value) for value in node))
    return set()


def test_the_document_holds_the_whole_contract_and_is_whole(local: "LocalService") -> None:
    document = local.call("GET", "/openapi.json").json
    assert document["openapi"].startswith("3.1")
    assert set(CONTRACT.split("\n")) - {""} <= documented(document)
    schemas = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
    assert references(document) <= schemas
    operations = [op for item in document["paths"].values() for op in item.values()]
    ids = [op["operationId"] for op in operations]
    assert len(ids) == len(set(ids))
    assert all(op.get("summary") and op.get("description") for op in operations)
    for path, item in document["paths"].items():
        for operation in item.values():
            named = {p["name"] for p in operation.get("parameters", []) if p["in"] == "path"}
            assert named == set(re.findall(r"{(\w+)}", path))


def test_bodies_are_documented_in_camel_case(local: "LocalService") -> None:
    schemas = local.call("GET", "/openapi.json").json["components"]["schemas"]
    properties = {name for schema in schemas.values() for name in schema.get("properties", {})}
    assert {"taskId", "jobId", "RetryLater", "leaseToken", "aeTitle", "hostIp"} <= properties
    assert not [name for name in properties if "_" in name]


def test_every_documented_call_answers_as_documented(local: "LocalService") -> None:
    document = local.call("GET", "/openapi.json").json
    for path, item in document["paths"].items():
        if path == "/api/events":
            continue  # it goes on for ever
        for method, operation in item.items():
            url = re.sub(r"{(\w+)}", lambda match: VALUES.get(match[1], "x"), path)
            body: Any = {} if method in {"post", "put", "patch"} else None
            answer = local.call(method.upper(), url, body)
            where = f"{method} {path}: {answer.status} {answer.data[:200]!r}"
            assert str(answer.status) in operation["responses"], where
            assert answer.status < 500, where
            if answer.status >= 400 and method != "head":
                assert answer.headers["Content-Type"] == "application/problem+json", where
                problem = answer.json
                assert {"type", "title", "status", "detail", "code"} <= set(problem), where


def test_what_is_no_call_is_a_problem_too(local: "LocalService") -> None:
    local.call("GET", "/api/nothing").problem(404, "not-found")
    local.call("GET", "/api/tasks/retry/x/y").problem(404, "not-found")
    answer = local.call("PATCH", "/api/tasks")
    answer.problem(405, "method-not-allowed")
    assert answer.headers["Allow"]


def test_the_pages_ask_no_other_host(local: "LocalService") -> None:
    page = local.call("GET", "/docs")
    assert page.status == 200
    html = page.data.decode()
    assert not re.findall(r"""(?:https?:)?//[\w.-]+\.\w+""", html)
    assets = re.findall(r"""(?:src|href)="([^"]+)\"""", html)
    assert len(assets) >= 2
    for asset in assets:
        answer = local.call("GET", asset)
        assert (answer.status, bool(answer.data)) == (200, True), asset
    assert "/openapi.json" in html
    local.call("GET", "/docs/assets/../../etc/passwd").problem(404, "not-found")


def test_the_document_is_made_without_a_warning(database_url: str) -> None:
    def no_engine() -> Engine:
        raise AssertionError("nobody serves here")

    def no_test(destination: Destination) -> TestResult:
        raise AssertionError("nobody serves here")

    assert create_app(no_engine, no_test).openapi()["paths"]


# What a problem must not say


SECRET = "DOE^JANE^19700101"


def test_no_problem_repeats_a_value_that_may_be_a_patients(
    local: "LocalService", caplog: pytest.LogCaptureFixture
) -> None:
    local.register("a")
    task = local.claim()
    good = {"agent": "a", "jobId": "j", "pipelineId": "p", "payloadId": "y", "uris": ["a"]}
    calls: list[tuple[str, str, Any]] = [
        ("POST", "/api/tasks", good | {"data": SECRET}),
        ("POST", "/api/tasks", good | {"data": [SECRET, float("nan")]}),
        ("POST", "/api/tasks", good | {"data": [{SECRET: "\ud800"}]}),
        ("POST", "/api/tasks", good | {"data": [SECRET * 100_000]}),
        ("POST", "/api/tasks", good | {"priority": SECRET}),
        ("POST", "/api/tasks", good | {"notBefore": SECRET}),
        ("POST", "/api/tasks", good | {"files": [{"uri": "a", "size": SECRET}], "uris": None}),
        ("PUT", f"/api/tasks/failure/{task.task_id}", {"retryLater": SECRET}),
        ("PUT", f"/api/tasks/failure/{ID}", {"retryLater": True, "message": SECRET}),
        ("PUT", f"/api/tasks/success/{task.task_id}",
         {"files": [{"uri": "a", "outcome": SECRET, "message": SECRET}]}),
        ("PUT", f"/api/tasks/success/{task.task_id}",
         {"files": [{"uri": "a", "outcome": "rejected", "message": SECRET}]}),
        ("PUT", f"/api/tasks/{task.task_id}/lease", {"leaseToken": "x", "progress": SECRET}),
    ]  # fmt: skip
    for method, path, body in calls:
        answer = local.call(method, path, body)
        assert 400 <= answer.status < 500, answer.data
        assert SECRET not in answer.data.decode()
    raw = b'{"agent": "' + SECRET.encode() + b'" "jobId"'
    answer = local.call("POST", "/api/tasks", raw=raw, headers={"Content-Type": "application/json"})
    assert answer.status == 422
    assert SECRET not in answer.data.decode()
    assert SECRET not in caplog.text


def test_a_key_that_came_with_another_body_does_not_show_the_other(local: "LocalService") -> None:
    local.register("a", key="k", data=[SECRET])
    body = {"agent": "a", "jobId": "j", "pipelineId": "p", "payloadId": "y", "uris": ["a"]}
    answer = local.call("POST", "/api/tasks", body, {"Idempotency-Key": "k"})
    answer.problem(409, "key-reused")
    assert SECRET not in answer.data.decode()
