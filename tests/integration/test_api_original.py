"""An unmodified client of the original, byte for byte, on a service of its own process."""

import json
import socket
from typing import TYPE_CHECKING, Any
from uuid import UUID

from clara_results.wire.tasks import Registration, ResultFile

if TYPE_CHECKING:
    from tests.conftest import Service, ServiceStarter


def exchange(service: "Service", request: str) -> tuple[int, dict[str, str], bytes]:
    """Send a request as it stands, with bare line feeds made CRLF, and take the answer apart."""
    host, _, port = service.url.removeprefix("http://").partition(":")
    head, _, body = request.partition("\n\n")
    raw = (head.strip().replace("\n", "\r\n") + "\r\nConnection: close\r\n\r\n" + body).encode()
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(raw)
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    answer_head, _, content = answer.partition(b"\r\n\r\n")
    status, *lines = answer_head.decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    return int(status.split()[1]), headers, content


def register(service: "Service", data: list[Any] | None) -> str:
    body = Registration(
        agent="ClaraSCU", job_id="job1", pipeline_id="pipeline1", payload_id="dicom-export",
        data=data,
        files=[ResultFile(uri="dicom-op/series1.dcm"), ResultFile(uri="dicom-op/series2.dcm")],
    )  # fmt: skip
    return service.client.register(body).tasks[0].task_id


PENDING = """\
GET /api/tasks/ClaraSCU/pending?size=10 HTTP/1.1
Host: results:8088
"""
SUCCESS = """\
PUT /api/tasks/success/{} HTTP/1.1
Host: results:8088
Content-Length: 0
"""
SUCCESS_WITHOUT_LENGTH = """\
PUT /api/tasks/success/{} HTTP/1.1
Host: results:8088
"""
FAILURE = """\
PUT /api/tasks/failure/{} HTTP/1.1
Host: results:8088
Content-Type: application/json; charset=utf-8
Content-Length: {}

{}"""


def pending(service: "Service") -> list[dict[str, Any]]:
    status, headers, content = exchange(service, PENDING)
    assert status == 200
    assert headers["content-type"].partition(";")[0] == "application/json"
    assert headers["cache-control"] == "no-store"
    tasks: list[dict[str, Any]] = json.loads(content)
    assert isinstance(tasks, list)
    return tasks


def fail(service: "Service", task_id: str, body: str) -> int:
    return exchange(service, FAILURE.format(task_id, len(body), body))[0]


def test_its_three_calls_do_what_they_did(service: "ServiceStarter") -> None:
    running = service(retry_delay=0)
    assert pending(running) == []
    assert exchange(running, PENDING)[2] == b"[]"

    task_id = register(running, ["Orthanc"])
    (task,) = pending(running)
    original = {
        "taskId": task_id, "jobId": "job1", "pipelineId": "pipeline1",
        "payloadId": "dicom-export", "parameters": "\"Orthanc\"", "state": "InProgress",
        "agent": "clarascu", "retries": 0,
        "uris": ["dicom-op/series1.dcm", "dicom-op/series2.dcm"],
    }  # fmt: skip
    assert {name: task[name] for name in original} == original
    assert str(UUID(task["taskId"])) == task["taskId"]
    assert json.loads(task["parameters"]) == "Orthanc"
    assert pending(running) == []  # it is this client's now

    assert fail(running, task_id, '{"RetryLater":true}') == 200
    (again,) = pending(running)
    assert (again["taskId"], again["retries"], again["uris"]) == (task_id, 1, original["uris"])
    assert exchange(running, SUCCESS.format(task_id))[0] == 200
    assert running.client.task(task_id).state == "Succeeded"
    assert exchange(running, SUCCESS_WITHOUT_LENGTH.format(task_id))[0] == 200  # its own retry
    assert fail(running, task_id, '{"RetryLater":true}') == 409

    task_id = register(running, None)
    (task,) = pending(running)
    assert task["parameters"] is None
    assert exchange(running, SUCCESS_WITHOUT_LENGTH.format(task_id))[0] == 200
    assert running.client.task(task_id).state == "Succeeded"

    task_id = register(running, ["Nowhere"])
    pending(running)
    assert fail(running, task_id, '{"RetryLater":false}') == 200
    assert running.client.task(task_id).state == "Failed"
    assert fail(running, task_id, '{"RetryLater":false}') == 200

    task_id = register(running, ["Orthanc"])
    pending(running)
    assert fail(running, task_id, '{"retryLater":false}') == 200
    assert running.client.task(task_id).state == "Failed"

    assert "Traceback" not in running.log()


def test_it_may_write_names_and_ids_in_any_case_and_leave_the_size_out(
    service: "ServiceStarter",
) -> None:
    running = service()
    task_id = register(running, ["Orthanc"])
    pending(running)
    assert exchange(running, SUCCESS.format(task_id.upper()))[0] == 200

    for name in ("clarascu", "CLARASCU"):
        register(running, ["x"])
        status, _, content = exchange(running, PENDING.replace("ClaraSCU", name))
        assert (status, len(json.loads(content))) == (200, 1)
    size = PENDING.replace("size=10", "size=2")
    for _ in range(3):
        register(running, ["x"])
    assert len(json.loads(exchange(running, size)[2])) == 2
    assert len(json.loads(exchange(running, PENDING.replace("?size=10", ""))[2])) == 1
    for path in ("live", "ready", "status"):
        status, _, content = exchange(running, f"GET /health/{path} HTTP/1.1\nHost: r\n")
        assert status == 200
        assert json.loads(content)["status"] == "ok"
