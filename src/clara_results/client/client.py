"""ResultsClient: one method a call of the HTTP contract."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any, BinaryIO, TypeVar
from urllib.parse import quote, urlencode

import urllib3

from clara_results import __version__
from clara_results.domain import names
from clara_results.errors import (
    ClaraResultsError,
    ExistsDifferently,
    FieldError,
    FilesUnaccounted,
    LeaseLost,
    NotFound,
    Refused,
    ServiceUnavailable,
    UnsafeUri,
)
from clara_results.wire.codec import from_json, to_json
from clara_results.wire.datasets import Dataset, DatasetFile, DatasetPage, Publication
from clara_results.wire.destinations import (
    AgentPage,
    Destination,
    DestinationPage,
    DestinationView,
    TestResult,
)
from clara_results.wire.instances import (
    Announcement,
    Clearances,
    CommitmentFailure,
    CommitmentRequest,
    CommitmentRequests,
    CommitmentResult,
)
from clara_results.wire.payloads import Payload
from clara_results.wire.tasks import (
    Changed,
    FailureReport,
    FilePage,
    Job,
    Redelivery,
    Registered,
    Registration,
    Release,
    Renewal,
    Renewed,
    SuccessReport,
    Task,
    TaskFilter,
    TaskPage,
)

T = TypeVar("T")
CONNECT_TIMEOUT = 5.0
READ_TIMEOUT = 60.0
CHUNK = 1 << 20
INSTANCE_HEADER = "Clara-Results-Instance"
"""Request header in which an agent process says who it is."""
LEASE_HEADER = "Clara-Results-Lease"
"""Request header with the lease token under which a file is uploaded."""

_TYPED: dict[str, type[ClaraResultsError]] = {
    kind.code: kind for kind in (LeaseLost, FilesUnaccounted, ExistsDifferently, UnsafeUri)
}


@dataclass(frozen=True, slots=True)
class Download:
    """A file on its way from the service.

    Attributes:
        pieces: Its bytes.
        modified: Its time of last change, to the second.
    """

    pieces: Iterator[bytes]
    modified: datetime


class ResultsClient:
    """The Results Service at one URL. Thread-safe; connections are pooled and reused.

    A call is made once: who calls decides whether and how long to try again. Every method raises
    ServiceUnavailable when the service can't be reached or answers 5xx or 429, NotFound for 404, LeaseLost,
    FilesUnaccounted, ExistsDifferently or UnsafeUri where the problem's code says so, and Refused for every
    other refusal.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        instance: str | None = None,
        connections: int = 16,
        read_timeout: float = READ_TIMEOUT,
    ) -> None:
        """Make a client; nothing is sent yet.

        Args:
            url: Base URL of the service.
            token: Bearer token (RFC 6750).
            instance: What an agent process calls itself.
            connections: Connections kept in the pool.
            read_timeout: Seconds of silence after which an answer is no longer waited for.
        """
        headers = {"User-Agent": f"clara-results/{__version__}"}
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        if instance is not None:
            headers[INSTANCE_HEADER] = instance
        self.url = url.rstrip("/")
        self._read_timeout = read_timeout
        self._pool = urllib3.PoolManager(
            maxsize=connections,
            headers=headers,
            retries=False,
            timeout=urllib3.Timeout(connect=CONNECT_TIMEOUT, read=read_timeout),
        )

    # Tasks

    def register(self, body: Registration, idempotency_key: str | None = None) -> Registered:
        """Register results (``POST /api/tasks``)."""
        headers = {"Idempotency-Key": f'"{idempotency_key}"'} if idempotency_key else None
        return self._call(Registered, "POST", "/api/tasks", body, headers=headers)

    def claim(
        self,
        agent: str,
        *,
        size: int = 1,
        wait: float = 0.0,
        lease: int | None = None,
        associations: int = 1,
    ) -> list[Task]:
        """Claim up to ``size`` due tasks; ``wait`` seconds (at most 60) until one is due.

        Args:
            agent: Whose tasks.
            size: 1 to 100.
            wait: Seconds.
            lease: Seconds of the lease.
            associations: How many a task can make use of, if its destination has them free.
        """
        query = {"size": size, "wait": wait, "lease": lease, "associations": associations}
        timeout = urllib3.Timeout(connect=CONNECT_TIMEOUT, read=wait + self._read_timeout)
        answer = self._send(
            "GET", f"/api/tasks/{quote(agent)}/pending", query=query, timeout=timeout
        )
        return _typed(list[Task], _json(answer), answer)

    def succeed(self, task_id: str, report: SuccessReport) -> Task:
        """Report success."""
        return self._call(Task, "PUT", f"/api/tasks/success/{quote(task_id)}", report)

    def fail(self, task_id: str, report: FailureReport) -> Task:
        """Report failure."""
        return self._call(Task, "PUT", f"/api/tasks/failure/{quote(task_id)}", report)

    def renew(self, task_id: str, renewal: Renewal) -> Renewed:
        """Renew a lease and report outcomes so far; they are durable when this returns."""
        return self._call(Renewed, "PUT", f"/api/tasks/{quote(task_id)}/lease", renewal)

    def announce(self, task_id: str, body: Announcement) -> Clearances:
        """Note which instances are about to be sent; the answer says which may (``PUT …/instances``)."""
        return self._call(Clearances, "PUT", f"/api/tasks/{quote(task_id)}/instances", body)

    def release(self, task_id: str, release: Release) -> Task:
        """Give a claimed task back."""
        return self._call(Task, "PUT", f"/api/tasks/{quote(task_id)}/release", release)

    def tasks(self, **query: str | int | None) -> TaskPage:
        """List tasks, newest first; ``state``, ``agent``, ``jobId``, ``payloadId``, ``destination``, ``since``, ``until``, ``q``, ``cursor``, ``limit``."""
        return self._call(TaskPage, "GET", "/api/tasks", query=query)

    def task(self, task_id: str) -> Task:
        """Return one task with its attempts and history."""
        return self._call(Task, "GET", f"/api/tasks/{quote(task_id)}")

    def files(self, task_id: str, **query: str | int | None) -> FilePage:
        """List a task's files; ``outcome``, ``cursor``, ``limit``."""
        return self._call(FilePage, "GET", f"/api/tasks/{quote(task_id)}/files", query=query)

    def retry(self, task_id: str) -> Task:
        """Put a Failed task back to Pending."""
        return self._call(Task, "POST", f"/api/tasks/{quote(task_id)}/retry")

    def cancel(self, task_id: str) -> Task:
        """Cancel an unfinished task."""
        return self._call(Task, "POST", f"/api/tasks/{quote(task_id)}/cancel")

    def redeliver(self, task_id: str, body: Redelivery) -> Task:
        """Send all files of a finished task once more, as a new task."""
        return self._call(Task, "POST", f"/api/tasks/{quote(task_id)}/redeliver", body)

    def retry_all(self, which: TaskFilter) -> Changed:
        """Put all Failed tasks of a filter back to Pending."""
        return self._call(Changed, "POST", "/api/tasks/retry", which)

    def cancel_all(self, which: TaskFilter) -> Changed:
        """Cancel all unfinished tasks of a filter."""
        return self._call(Changed, "POST", "/api/tasks/cancel", which)

    def job(self, job_id: str) -> Job:
        """Return a job's tasks and whether its results are delivered."""
        return self._call(Job, "GET", f"/api/jobs/{quote(job_id, safe='')}")

    # Storage commitment

    def commitments_due(self, agent: str, size: int = 10) -> list[CommitmentRequest]:
        """Take up to ``size`` commitments that an agent is to ask for now; they count as asked (``POST …/due``)."""
        path = f"/api/commitments/{quote(agent)}/due"
        return self._call(CommitmentRequests, "POST", path, query={"size": size}).items

    def committed(self, transaction_uid: str, body: CommitmentResult) -> Task:
        """Tell what a receiver said to a commitment that it was asked for; raises NotFound if it never was."""
        return self._call(Task, "PUT", f"/api/commitments/{quote(transaction_uid)}", body)

    def commitment_failed(self, transaction_uid: str, body: CommitmentFailure) -> Task:
        """Tell that a receiver could not be asked for a commitment."""
        return self._call(Task, "PUT", f"/api/commitments/{quote(transaction_uid)}/failure", body)

    # Payloads

    def has_file(self, payload_id: str, uri: str, size: int, sha256: str) -> bool:
        """Tell whether the payload holds that very content at that URI."""
        try:
            answer = self._send("HEAD", _file_path(payload_id, uri))
        except NotFound:
            return False
        except Refused as error:
            if error.status == 410:
                return False  # it was there, and may come again
            raise
        etag = answer.headers.get("ETag", "").strip('"')
        return answer.headers.get("Content-Length") == str(size) and etag == sha256

    def put_file(
        self, payload_id: str, uri: str, content: BinaryIO, size: int, digest: str
    ) -> None:
        """Upload a file; the service checks it before it is there.

        Args:
            payload_id: Into which payload.
            uri: Its path there.
            content: Read from its present position.
            size: Bytes to be sent.
            digest: Its SHA-256 in the form of RFC 9530, ``sha-256=:BASE64:``.
        """
        headers = {
            "Content-Length": str(size),
            "Content-Digest": digest,
            "Content-Type": "application/octet-stream",
        }
        self._send("PUT", _file_path(payload_id, uri), content=content, headers=headers)

    @contextmanager
    def get_file(self, payload_id: str, uri: str) -> Iterator[Download]:
        """Download a file.

        Raises:
            ServiceUnavailable: The connection broke; what came before is not the whole file.
        """
        with self._download(_file_path(payload_id, uri)) as download:
            yield download

    def payload(self, payload_id: str) -> Payload:
        """List a payload's files."""
        return self._call(Payload, "GET", f"/api/payloads/{quote(payload_id)}")

    # Datasets

    def put_dataset_file(
        self, task_id: str, dataset_id: str, lease_token: str, file: DatasetFile, content: BinaryIO
    ) -> None:
        """Upload a file of a dataset under a task's lease; nobody sees it before the dataset is published.

        Args:
            task_id: The task that it is made for.
            dataset_id: Which dataset: ``domain.datasets.dataset_id``.
            lease_token: The claim's.
            file: Its URI (``domain.datasets.file_uri``), size and digest, which the service holds it to.
            content: Read from its present position.
        """
        headers = {
            "Content-Length": str(file.size),
            "Content-Type": "application/octet-stream",
            LEASE_HEADER: lease_token,
        }
        path = f"{_made_path(task_id, dataset_id)}/files/{quote(names.file_uri(file.uri))}"
        timeout = urllib3.Timeout(
            connect=CONNECT_TIMEOUT, read=READ_TIMEOUT
        )  # its disk may be slow
        self._send("PUT", path, content=content, headers=headers, timeout=timeout)

    def publish(self, task_id: str, dataset_id: str, body: Publication) -> Dataset:
        """Publish a dataset whose files are all uploaded, under a task's lease."""
        return self._call(Dataset, "PUT", _made_path(task_id, dataset_id), body)

    def datasets(self, **query: str | int | None) -> DatasetPage:
        """List datasets, newest first; ``jobId``, ``taskId``, ``payloadId``, ``cursor``, ``limit``."""
        return self._call(DatasetPage, "GET", "/api/datasets", query=query)

    def dataset(self, dataset_id: str) -> Dataset:
        """Return one dataset."""
        return self._call(Dataset, "GET", _dataset_path(dataset_id))

    @contextmanager
    def get_dataset_file(self, dataset_id: str, uri: str) -> Iterator[Download]:
        """Download a file of a dataset.

        Raises:
            ServiceUnavailable: The connection broke; what came before is not the whole file.
        """
        path = f"{_dataset_path(dataset_id)}/files/{quote(names.file_uri(uri))}"
        with self._download(path) as download:
            yield download

    def save_view(self, dataset_id: str, view: dict[str, Any]) -> Dataset:
        """Save the viewer's settings with a dataset: JSON of at most 64 KiB."""
        return self._call(Dataset, "PUT", f"{_dataset_path(dataset_id)}/view", view)

    def remove_dataset(self, dataset_id: str) -> None:
        """Remove a dataset and its files."""
        self._send("DELETE", _dataset_path(dataset_id))

    # Destinations, agents, health

    def destinations(self) -> list[DestinationView]:
        """Return all destinations, by name."""
        return self._call(DestinationPage, "GET", "/api/destinations").items

    def destination(self, name: str) -> DestinationView:
        """Return one destination."""
        return self._call(DestinationView, "GET", _destination_path(name))

    def add_destination(self, body: Destination) -> DestinationView:
        """Add a destination."""
        return self._call(DestinationView, "POST", "/api/destinations", body)

    def replace_destination(self, name: str, body: Destination) -> DestinationView:
        """Change a destination; its name may change too."""
        return self._call(DestinationView, "PUT", _destination_path(name), body)

    def remove_destination(self, name: str) -> None:
        """Remove a destination."""
        self._send("DELETE", _destination_path(name))

    def pause_destination(self, name: str) -> DestinationView:
        """Let no more tasks for a destination be claimed."""
        return self._call(DestinationView, "POST", f"{_destination_path(name)}/pause")

    def resume_destination(self, name: str) -> DestinationView:
        """Let tasks for a destination be claimed again."""
        return self._call(DestinationView, "POST", f"{_destination_path(name)}/resume")

    def test_destination(self, name: str) -> TestResult:
        """Have the service test whether a destination answers."""
        return self._call(TestResult, "POST", f"{_destination_path(name)}/test")

    def agents(self) -> AgentPage:
        """Return the agent processes seen."""
        return self._call(AgentPage, "GET", "/api/agents")

    def ready(self) -> None:
        """Return if the service is ready, else raise ServiceUnavailable."""
        self._send("GET", "/health/ready")

    # How all of them go out

    @contextmanager
    def _download(self, path: str) -> Iterator[Download]:
        answer = self._send("GET", path, preload=False)
        try:
            yield Download(_pieces(answer), _last_modified(answer))
        finally:
            answer.close()
            answer.release_conn()

    def _call(
        self,
        kind: type[T],
        method: str,
        path: str,
        body: object = None,
        *,
        query: Mapping[str, Any] | None = None,
        headers: dict[str, str] | None = None,
    ) -> T:
        answer = self._send(
            method,
            path,
            content=None if body is None else to_json(body),
            query=query,
            headers=({"Content-Type": "application/json"} if body is not None else {})
            | (headers or {}),
        )
        return _typed(kind, _json(answer), answer)

    def _send(
        self,
        method: str,
        path: str,
        *,
        content: bytes | BinaryIO | None = None,
        query: Mapping[str, Any] | None = None,
        headers: dict[str, str] | None = None,
        timeout: urllib3.Timeout | None = None,
        preload: bool = True,
    ) -> urllib3.BaseHTTPResponse:
        fields = {key: str(value) for key, value in (query or {}).items() if value is not None}
        url = self.url + path + ("?" + urlencode(fields) if fields else "")
        options: dict[str, Any] = {} if timeout is None else {"timeout": timeout}
        try:
            answer = self._pool.request(
                method,
                url,
                body=content,
                headers={**self._pool.headers, **(headers or {})},
                preload_content=preload,
                redirect=False,
                **options,
            )
        except urllib3.exceptions.HTTPError as error:
            raise ServiceUnavailable(
                f"the Results Service at {self.url} does not answer: {_reason(error)}"
            ) from error
        if answer.status >= 300:
            raise _problem(answer, f"{method} {_place(path)}")
        return answer


def _file_path(payload_id: str, uri: str) -> str:
    # Checked here: on its way out, a path with '..' in it would become another path.
    return f"/api/payloads/{quote(payload_id)}/files/{quote(names.file_uri(uri))}"


def _dataset_path(dataset_id: str) -> str:
    return f"/api/datasets/{quote(dataset_id, safe='')}"


def _made_path(task_id: str, dataset_id: str) -> str:
    return f"/api/tasks/{quote(task_id)}{_dataset_path(dataset_id).removeprefix('/api')}"


def _destination_path(name: str) -> str:
    return f"/api/destinations/{quote(name, safe='')}"


def _pieces(answer: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
    try:
        yield from answer.stream(CHUNK, decode_content=False)
    except urllib3.exceptions.HTTPError as error:
        raise ServiceUnavailable(f"a download broke off: {_reason(error)}") from error


def _json(answer: urllib3.BaseHTTPResponse) -> Any:
    try:
        return json.loads(answer.data)
    except ValueError as error:
        raise ServiceUnavailable(
            f"the answer to {_place(answer.url)} is not JSON: is that a Results Service?"
        ) from error


def _last_modified(answer: urllib3.BaseHTTPResponse) -> datetime:
    try:
        return parsedate_to_datetime(answer.headers.get("Last-Modified", ""))
    except ValueError as error:
        raise ServiceUnavailable(
            f"the answer to {_place(answer.url)} does not tell the file's time: is that a Results Service?"
        ) from error


def _typed(kind: type[T], value: Any, answer: urllib3.BaseHTTPResponse) -> T:
    try:
        return from_json(kind, value)
    except (TypeError, ValueError, AttributeError) as error:
        raise ServiceUnavailable(
            f"the answer to {_place(answer.url)} is not a {kind.__name__}: is the service of another version?"
        ) from error


def _place(url: str | None) -> str:
    """Return a URL or path for a message: without a file's name or what was searched for, which may be a patient's."""
    path, _, uri = (url or "").partition("?")[0].partition("/files/")
    return f"{path}/files/…" if uri else path


def _reason(error: Exception) -> str:
    """Return what went wrong without urllib3's object addresses."""
    inner = getattr(error, "reason", None) or error
    return str(inner).split(": ", 1)[-1]


def _problem(answer: urllib3.BaseHTTPResponse, call: str) -> ClaraResultsError:
    """Map an RFC 9457 problem, or whatever else a refusal holds, to an error of ours."""
    try:
        problem = json.loads(answer.data or b"{}")
        detail = str(problem.get("detail") or problem.get("title") or "")
        code = str(problem.get("code") or "")
        errors = [
            FieldError(str(e["field"]), str(e["message"])) for e in problem.get("errors") or ()
        ]
    except (ValueError, AttributeError, KeyError, TypeError):
        detail, code, errors = "", "", []
    message = detail or f"{call} was answered with {answer.status} {answer.reason or ''}".rstrip()
    if answer.status >= 500 or answer.status == 429:
        return ServiceUnavailable(f"the Results Service says {answer.status}: {message}")
    if answer.status in {401, 403}:
        message += (
            " (the token that this program shows comes from --token-file, CLARA_RESULTS_TOKEN_FILE or "
            "CLARA_RESULTS_TOKEN)"
        )
    if answer.status == 404:
        return NotFound(message, code=code or None)
    if code in _TYPED:
        return _TYPED[code](message, errors=errors)
    return Refused(message, code=code or "refused", status=answer.status, errors=errors)
