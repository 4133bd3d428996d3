"""The Results Service's client against a scripted server: what it sends, and what it makes of answers."""

import hashlib
import io
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from clara_results import __version__
from clara_results.client import ResultsClient
from clara_results.domain.tasks import Outcome, State
from clara_results.errors import (
    ClaraResultsError,
    ExistsDifferently,
    FilesUnaccounted,
    LeaseLost,
    NotFound,
    Refused,
    ServiceUnavailable,
    UnsafeUri,
)
from clara_results.wire.tasks import (
    FailureReport,
    FileOutcome,
    Redelivery,
    Registration,
    Release,
    Renewal,
    ResultFile,
    SuccessReport,
    TaskFilter,
)

MOMENT = "2026-01-02T03:04:05.000006Z"
TASK = {
    "taskId": "t", "jobId": "j", "pipelineId": "p", "payloadId": "y", "state": "Pending",
    "agent": "a", "retries": 0, "maxRetries": 3, "createdAt": MOMENT, "updatedAt": MOMENT,
    "fromANewerService": {"x": 1},
}  # fmt: skip


@dataclass
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Script:
    """What the server answers next, and what it was asked."""

    status: int = 200
    body: bytes = b"{}"
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None
    """Bytes of the body after which the connection is closed."""
    requests: list[Request] = field(default_factory=list)

    def answer(self, body: Any, status: int = 200, **headers: str) -> None:
        self.status = status
        self.body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}

    @property
    def last(self) -> Request:
        return self.requests[-1]


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
def url(script: Script) -> Iterator[str]:
    """Run a server that follows the script."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_one_request(self) -> None:
            self.raw_requestline = self.rfile.readline(65537)
            if not self.raw_requestline or not self.parse_request():
                self.close_connection = True
                return
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            script.requests.append(
                Request(str(self.command), self.path, dict(self.headers.items()), body)
            )
            self.send_response(script.status)
            for name, value in ({"Content-Length": str(len(script.body))} | script.headers).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(script.body[: script.cut])
            self.wfile.flush()
            if script.cut is not None:
                self.close_connection = True

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join(10)
    server.server_close()


@pytest.fixture
def client(url: str) -> ResultsClient:
    return ResultsClient(url + "/", token="s3cret", instance="host:1", read_timeout=5)


def test_every_call_says_who_asks(client: ResultsClient, script: Script) -> None:
    client.ready()
    assert script.last.headers["User-Agent"] == f"clara-results/{__version__}"
    assert script.last.headers["Authorization"] == "Bearer s3cret"
    assert script.last.headers["Clara-Results-Instance"] == "host:1"


def test_without_token_and_instance_it_says_neither(url: str, script: Script) -> None:
    ResultsClient(url).ready()
    assert not {"Authorization", "Clara-Results-Instance"} & set(script.last.headers)


def test_a_registration_is_sent_with_its_key(client: ResultsClient, script: Script) -> None:
    script.answer({"tasks": [TASK]}, 201)
    body = Registration(agent="A", job_id="j", pipeline_id="p", payload_id="y",
                        files=[ResultFile(uri="ä")])  # fmt: skip
    (task,) = client.register(body, "key-1").tasks
    assert (task.task_id, task.state) == ("t", State.PENDING)
    assert task.created_at == datetime(2026, 1, 2, 3, 4, 5, 6, UTC)
    request = script.last
    assert (request.method, request.path) == ("POST", "/api/tasks")
    assert request.headers["Idempotency-Key"] == '"key-1"'
    assert request.headers["Content-Type"] == "application/json"
    assert request.json["files"] == [{"uri": "ä"}]
    client.register(body)
    assert "Idempotency-Key" not in script.last.headers


def test_a_claim_asks_as_the_contract_says(client: ResultsClient, script: Script) -> None:
    claimed = TASK | {"leaseToken": "x", "leaseExpiresAt": MOMENT, "files": [{"uri": "a"}]}
    script.answer([claimed])
    (task,) = client.claim("ClaraSCU", size=3, wait=0.5, lease=60)
    assert (task.lease_token, task.files) == ("x", [ResultFile(uri="a")])
    assert script.last.path == "/api/tasks/ClaraSCU/pending?size=3&wait=0.5&lease=60&associations=1"
    script.answer([])
    assert client.claim("a") == []
    assert script.last.path == "/api/tasks/a/pending?size=1&wait=0.0&associations=1"


def test_reports_go_where_the_contract_says(client: ResultsClient, script: Script) -> None:
    script.answer(TASK)
    client.succeed("t", SuccessReport(lease_token="x"))
    assert (script.last.method, script.last.path) == ("PUT", "/api/tasks/success/t")
    assert script.last.json == {"leaseToken": "x"}
    files = [FileOutcome(uri="a", outcome=Outcome.RETRY, code="A700")]
    client.fail("t", FailureReport(retry_later=True, lease_token="x", files=files))
    assert script.last.path == "/api/tasks/failure/t"
    assert script.last.json["retryLater"] is True
    assert script.last.json["files"] == [
        {"uri": "a", "outcome": "retry", "code": "A700", "doubt": False}
    ]
    client.release("t", Release(lease_token="x"))
    assert (script.last.method, script.last.path) == ("PUT", "/api/tasks/t/release")
    script.answer({"leaseExpiresAt": MOMENT, "associations": 3})
    renewed = client.renew("t", Renewal(lease_token="x", seconds=5))
    assert renewed.associations == 3
    assert renewed.lease_expires_at == datetime(2026, 1, 2, 3, 4, 5, 6, UTC)
    assert (script.last.method, script.last.path) == ("PUT", "/api/tasks/t/lease")


def test_what_people_do_goes_where_the_contract_says(client: ResultsClient, script: Script) -> None:
    script.answer(TASK)
    for call, path in (
        (client.retry, "/api/tasks/t/retry"),
        (client.cancel, "/api/tasks/t/cancel"),
        (lambda t: client.redeliver(t, Redelivery(destination="X")), "/api/tasks/t/redeliver"),
    ):
        call("t")
        assert (script.last.method, script.last.path) == ("POST", path)
    client.task("t")
    assert (script.last.method, script.last.path) == ("GET", "/api/tasks/t")
    script.answer({"items": [], "nextCursor": "7"})
    assert client.tasks(state="Failed", q="a&b", limit=None).next_cursor == "7"
    assert script.last.path == "/api/tasks?state=Failed&q=a%26b"
    assert client.files("t", outcome="rejected", cursor="3").items == []
    assert script.last.path == "/api/tasks/t/files?outcome=rejected&cursor=3"
    script.answer({"changed": 4})
    assert client.retry_all(TaskFilter(job_id="j")).changed == 4
    assert (script.last.path, script.last.json) == ("/api/tasks/retry", {"jobId": "j"})
    assert client.cancel_all(TaskFilter(state=State.PENDING)).changed == 4
    assert (script.last.path, script.last.json) == ("/api/tasks/cancel", {"state": "Pending"})


def test_names_are_escaped(client: ResultsClient, script: Script) -> None:
    script.answer({"jobId": "a/b?c", "delivered": True, "summary": "", "tasks": []})
    client.job("a/b?c ü")
    assert script.last.path == "/api/jobs/a%2Fb%3Fc%20%C3%BC"
    script.answer(b"")
    client.remove_destination("50% off?")
    assert script.last.path == "/api/destinations/50%25%20off%3F"
    client.put_file("pay", "op/ä #1?.dcm", io.BytesIO(b"x"), 1, "sha-256=:AA==:")
    assert script.last.path == "/api/payloads/pay/files/op/%C3%A4%20%231%3F.dcm"


@pytest.mark.parametrize("uri", ["../x", "a/../../x", "a//b", "/a", ".", ""])
def test_an_unsafe_uri_is_not_even_asked_for(
    client: ResultsClient, script: Script, uri: str
) -> None:
    def download() -> None:
        with client.get_file("pay", uri):
            pass

    for call in (
        download,
        lambda: client.has_file("pay", uri, 1, "0"),
        lambda: client.put_file("pay", uri, io.BytesIO(b"x"), 1, "sha-256=:AA==:"),
    ):
        with pytest.raises(UnsafeUri):
            call()
    assert script.requests == []


def test_a_file_is_uploaded_whole_with_its_digest(client: ResultsClient, script: Script) -> None:
    content = b"x" * 300_000
    client.put_file("pay", "a", io.BytesIO(content), len(content), "sha-256=:AAAA:")
    assert script.last.method == "PUT"
    assert script.last.body == content
    assert script.last.headers["Content-Length"] == "300000"
    assert script.last.headers["Content-Digest"] == "sha-256=:AAAA:"


@pytest.mark.parametrize(
    ("size", "digest", "same"), [(3, "right", True), (4, "right", False), (3, "wrong", False)]
)
def test_a_file_is_there_if_size_and_digest_are(
    client: ResultsClient, script: Script, size: int, digest: str, same: bool
) -> None:
    right = hashlib.sha256(b"abc").hexdigest()
    script.answer(b"abc", ETag=f'"{right}"')
    assert client.has_file("pay", "a", size, right if digest == "right" else "0" * 64) is same
    assert script.last.method == "HEAD"
    script.answer(b"", 404)
    assert not client.has_file("pay", "a", size, right)


def test_a_file_is_downloaded_in_pieces(client: ResultsClient, script: Script) -> None:
    content = bytes(range(256)) * 10_000
    script.answer(content, Last_Modified="Fri, 02 Jan 2026 03:04:05 GMT")
    with client.get_file("pay", "a") as download:
        pieces = list(download.pieces)
    assert b"".join(pieces) == content
    assert len(pieces) > 1
    assert download.modified == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def test_a_download_that_breaks_off_is_an_error_and_not_a_short_file(
    client: ResultsClient, script: Script
) -> None:
    script.answer(b"x" * 100_000, Last_Modified="Fri, 02 Jan 2026 03:04:05 GMT")
    script.cut = 50_000
    with (
        client.get_file("pay", "a") as download,
        pytest.raises(ServiceUnavailable, match="broke off"),
    ):
        list(download.pieces)


@pytest.mark.parametrize("when", ["", "yesterday"])
def test_a_download_without_its_time_is_no_answer_of_the_service(
    client: ResultsClient, script: Script, when: str
) -> None:
    script.answer(b"x", Last_Modified=when)

    def download() -> None:
        with client.get_file("pay", "a"):
            pass

    with pytest.raises(ServiceUnavailable):
        download()


@pytest.mark.parametrize(
    ("status", "code", "error"),
    [
        (404, "task-not-found", NotFound),
        (409, "lease-lost", LeaseLost),
        (409, "files-unaccounted", FilesUnaccounted),
        (409, "exists-differently", ExistsDifferently),
        (409, "key-reused", Refused),
        (410, "payload-gone", Refused),
        (422, "unsafe-uri", UnsafeUri),
        (422, "missing-file", Refused),
        (413, "too-large", Refused),
        (429, "slow-down", ServiceUnavailable),
        (500, "internal-error", ServiceUnavailable),
        (503, "database-unavailable", ServiceUnavailable),
        (507, "storage-full", ServiceUnavailable),
    ],
)
def test_a_problem_becomes_an_error_of_ours(
    client: ResultsClient,
    script: Script,
    status: int,
    code: str,
    error: type[ClaraResultsError],
) -> None:
    script.answer(
        {"status": status, "title": "t", "detail": "why", "code": code,
         "errors": [{"field": "files[0].uri", "message": "what"}]},
        status,
    )  # fmt: skip
    with pytest.raises(error, match="why") as raised:
        client.task("t")
    assert type(raised.value) is error
    if error is not ServiceUnavailable:
        assert raised.value.code == code
    if isinstance(raised.value, Refused):
        assert raised.value.status == status
        assert [(e.field, e.message) for e in raised.value.errors] == [("files[0].uri", "what")]


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'"x"', b'{"errors": [1]}', b"\xff", b"null"])  # fmt: skip
@pytest.mark.parametrize("status", [302, 400, 404, 502])
def test_a_refusal_that_is_no_problem_names_the_call(
    client: ResultsClient, script: Script, status: int, body: bytes
) -> None:
    script.answer(body, status, Location="/elsewhere")
    with pytest.raises(ClaraResultsError, match=f"GET /api/tasks/t was answered with {status}"):
        client.task("t")
    assert len(script.requests) == 1  # no redirect is followed


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"null", b"5", b'{"taskId": "t"}',
                                  json.dumps(TASK | {"state": "AsleepForever"}).encode(),
                                  json.dumps(TASK | {"createdAt": 5}).encode(),
                                  json.dumps(TASK | {"attempts": 5}).encode()])  # fmt: skip
def test_an_answer_that_is_no_task_is_not_taken_for_one(
    client: ResultsClient, script: Script, body: bytes
) -> None:
    script.answer(body)
    with pytest.raises(ServiceUnavailable):
        client.task("t")


@pytest.mark.parametrize("body", [b"{}", b"null", b"5", b"[5]", b"[[]]", b'"ab"'])
def test_an_answer_that_is_no_list_of_tasks_is_not_taken_for_one(
    client: ResultsClient, script: Script, body: bytes
) -> None:
    script.answer(body)
    with pytest.raises(ServiceUnavailable):
        client.claim("a")


def test_nobody_there_is_the_service_being_away(free_port: Any) -> None:
    with pytest.raises(ServiceUnavailable, match="does not answer") as raised:
        ResultsClient(f"http://127.0.0.1:{free_port()}").ready()
    assert "object at 0x" not in str(raised.value)
    assert raised.value.exit_code == 4


def test_silence_is_the_service_being_away() -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        client = ResultsClient(f"http://127.0.0.1:{silent.getsockname()[1]}", read_timeout=0.1)
        with pytest.raises(ServiceUnavailable, match="does not answer"):
            client.ready()


def test_an_address_that_makes_no_sense_is_an_error_of_ours() -> None:
    with pytest.raises(ServiceUnavailable):
        ResultsClient("http://no.such.host.invalid:1", read_timeout=1).ready()
