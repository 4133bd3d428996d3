"""No patient data in what is logged, printed, measured or answered with an error.

A name, an id and an accession number that occur nowhere else go through everything: names and content of files, task
data, keys, queries, bad requests, receivers' answers. Then all that the processes said is searched for them.
"""

import base64
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import urllib3
from pydicom import Dataset
from pydicom.uid import CTImageStorage
from pynetdicom import AE, evt
from pynetdicom.events import Event

from clara_results.domain.tasks import State
from clara_results.wire.destinations import Destination
from clara_results.wire.tasks import (
    FailureReport,
    FileOutcome,
    Registration,
    Renewal,
    ResultFile,
    Task,
)
from tests.conftest import eventually

if TYPE_CHECKING:
    from tests.conftest import AgentStarter, CtWriter, Service, ServiceStarter, StoreScpStarter

NAME, ID, ACCESSION = "Qmarked^Patient", "QMARKED-ID-4711", "QMARKED-ACC-081"
MARKER = re.compile(rb"q\W*m\W*a\W*r\W*k\W*e\W*d", re.IGNORECASE)
"""Whatever case, and whatever stands in between."""
FILE = f"op/{NAME} {ID}.dcm"
REGISTER = Path(__file__).parents[2] / "register.py"


@dataclass
class Said:
    """All that was said: by processes, and in answers to what could not be done."""

    parts: dict[str, bytes] = field(default_factory=dict)

    def add(self, where: str, text: str | bytes) -> None:
        content = text.encode() if isinstance(text, str) else text
        self.parts[where] = self.parts.get(where, b"") + content

    def check(self) -> None:
        found = {
            where: [
                content[max(0, m.start() - 200) : m.end() + 50] for m in MARKER.finditer(content)
            ]
            for where, content in self.parts.items()
        }
        leaks = [f"{where}: {hit!r}" for where, hits in found.items() for hit in hits]
        assert not leaks, "\n".join(leaks)
        assert all(self.parts.values()), "something said nothing at all"


@pytest.fixture
def said() -> Said:
    return Said()


@pytest.fixture
def served(service: "ServiceStarter", database_url: str) -> "Service":
    """Run a service that logs all it can, in either form of lines."""
    log_format = "json" if database_url.startswith("sqlite") else "console"
    return service(
        database=database_url, log_level="debug", log_format=log_format, retry_delay=0.1,
        retry_delay_max=0.1, max_retries=1,
    )  # fmt: skip


def test_the_markers_are_found_where_they_are() -> None:
    for text in (NAME, ID, ACCESSION, NAME.lower(), "Q m-a r.ked"):
        leaking = Said()
        leaking.add("here", f"before {text} after")
        with pytest.raises(AssertionError, match="before"):
            leaking.check()


# Requests


Call = tuple[str, str, Any, dict[str, str]]
"""Method, path, body (JSON, or bytes as they are; None: none), headers."""


def bad_registrations() -> Iterator[Call]:
    good = {
        "agent": "clarascu", "jobId": "j", "pipelineId": "p", "payloadId": "pay", "uris": [FILE],
    }  # fmt: skip
    changes: list[dict[str, Any]] = [
        {"notBefore": NAME}, {"priority": ID}, {"maxRetries": NAME}, {NAME: ID}, {"data": NAME},
        {"data": []}, {"verify": NAME}, {"data": [NAME] * 1001},
        {"uris": [FILE, NAME], "verify": True},
        {"uris": None, "files": [{"uri": FILE, NAME: 1}]},
        {"uris": None, "files": [{"uri": FILE, "size": NAME}]},
        {"uris": None, "files": [{"uri": FILE, "size": -1}, {"uri": NAME, "sha256": ID}]},
        {"uris": None, "files": [{"uri": FILE, "size": 1}], "verify": True},
    ]  # fmt: skip
    for name in ("agent", "jobId", "pipelineId", "payloadId", "operator"):
        changes += [{name: f"{NAME}\u0007{ID}/"}, {name: {NAME: ID}}]
    for uris in ([f"../{NAME}"], [f"/{ID}"], [FILE, FILE], [f"a\\{NAME}"], [f"{NAME}/\x00"],
                 [NAME + "x" * 1100], ["\ud800" + NAME], [], [{NAME: 1}]):  # fmt: skip
        changes.append({"uris": uris})
    for change in changes:
        yield "POST", "/api/tasks", good | change, {}
    yield "POST", "/api/tasks", good | {"jobId": "other"}, {"Idempotency-Key": NAME}  # came before
    yield "POST", "/api/tasks", good, {"Idempotency-Key": NAME * 30}
    yield "POST", "/api/tasks", b'{"agent": "' + NAME.encode(), {}
    yield "POST", "/api/tasks", NAME.encode("utf-16"), {}


def bad_readings(task: Task) -> Iterator[Call]:
    for path in (
        f"/api/tasks/{NAME}", f"/api/tasks/{NAME}/files", f"/api/tasks/{NAME}/pending",
        f"/api/tasks?state={NAME}", f"/api/tasks?cursor={NAME}", f"/api/tasks?q={NAME * 30}",
        f"/api/tasks/{task.task_id}/files?outcome={NAME}", f"/api/tasks/clarascu/pending?size={ID}",
        f"/api/payloads/{NAME}", f"/api/payloads/{NAME}/files/{NAME}",
        f"/api/payloads/pay/files/{NAME}", f"/api/payloads/pay/files/%2E%2E%2F{NAME}",
        f"/api/payloads/pay/files/op/{NAME}%00", f"/api/destinations/{NAME}",
        f"/api/config/destinationaetitle/{NAME}", f"/api/jobs/{NAME}", f"/{NAME}", f"/api/{NAME}/x",
        f"/api/events?lastEventId={NAME}",
    ):  # fmt: skip
        yield "GET", path, None, {}


def bad_reports(task: Task, lease: str) -> Iterator[Call]:
    of_task = f"/api/tasks/{task.task_id}"
    report = {"leaseToken": lease, "RetryLater": True}
    rejected = {"uri": FILE, "outcome": "rejected", "message": NAME}
    strange: list[dict[str, Any]] = [
        {"uri": NAME, "outcome": "delivered"}, {"uri": FILE, "outcome": NAME}, {NAME: ID},
    ]  # fmt: skip
    for told in strange:
        for call in ("success", "failure"):
            yield "PUT", f"/api/tasks/{call}/{task.task_id}", report | {"files": [told]}, {}
    yield "PUT", f"/api/tasks/success/{task.task_id}", report | {"files": [rejected]}, {}
    yield "PUT", f"/api/tasks/success/{task.task_id}", {"leaseToken": NAME}, {}
    yield "PUT", f"/api/tasks/success/{NAME}", {}, {}
    yield "PUT", f"/api/tasks/failure/{task.task_id}", {"RetryLater": NAME}, {}
    yield "PUT", f"{of_task}/lease", {"leaseToken": NAME, "seconds": 5}, {}
    yield "PUT", f"{of_task}/lease", {"leaseToken": lease, "seconds": NAME}, {}
    yield "PUT", f"{of_task}/release", {"leaseToken": NAME}, {}
    for call in ("retry", "cancel", "redeliver"):
        yield "POST", f"/api/tasks/{NAME}/{call}", {}, {}
    yield "POST", f"{of_task}/redeliver", {"destination": NAME}, {}
    yield "POST", "/api/tasks/retry", {NAME: ID}, {}
    yield "POST", "/api/tasks/cancel", {"state": NAME}, {}


def bad_destinations() -> Iterator[Call]:
    good = {"name": "X", "aeTitle": "X", "host": "127.0.0.1", "port": 104}
    for change in ({"name": f"{NAME}/"}, {"aeTitle": NAME * 3}, {"host": f"{NAME} {ID}"},
                   {"port": NAME}, {"kind": NAME}, {NAME: ID}):  # fmt: skip
        yield "POST", "/api/destinations", good | change, {}
    original = {"name": "X", "aeTitle": NAME * 3, "hostIp": ID, "port": 104}
    yield "POST", "/api/config/destinationaetitle", original, {}
    for method in ("PUT", "DELETE"):
        yield method, f"/api/destinations/{NAME}", good, {}
    for call in ("test", "pause", "resume"):
        yield "POST", f"/api/destinations/{NAME}/{call}", None, {}


def bad_uploads() -> Iterator[Call]:
    place = "/api/payloads/pay/files/"
    wrong = base64.b64encode(b"x" * 32).decode()
    yield "PUT", f"{place}{FILE}", NAME.encode(), {}  # other content than what lies there
    yield "PUT", f"{place}{NAME}/%2E%2E/x", ID.encode(), {}
    yield "PUT", f"{place}{FILE}/below", ID.encode(), {}  # a file is in the way
    yield "PUT", f"{place}{NAME}{'x' * 300}", ID.encode(), {}
    yield "PUT", f"{place}new {NAME}", ID.encode(), {"Content-Digest": f"sha-256=:{wrong}:"}
    yield "PUT", f"{place}new {NAME}", ID.encode(), {"Content-Digest": f"sha-256={NAME}"}
    yield "DELETE", f"/api/payloads/{NAME}", None, {}
    yield "PATCH", f"{place}{NAME}", None, {}


def send_bad_requests(served: "Service", said: Said) -> None:
    body = Registration(
        agent="clarascu", job_id="j", pipeline_id="p", payload_id="pay", uris=[FILE, "op/b"],
        data=[{"patient": NAME}],
    )  # fmt: skip
    (task,) = served.client.register(body, NAME).tasks
    (held,) = served.client.claim("clarascu")
    assert held.task_id == task.task_id
    calls = [
        *bad_registrations(), *bad_readings(task), *bad_reports(task, held.lease_token or ""),
        *bad_destinations(), *bad_uploads(),
    ]  # fmt: skip
    with urllib3.PoolManager(retries=False, timeout=20) as pool:
        for method, path, content, headers in calls:
            raw, kind = content, {}
            if content is not None and not isinstance(content, bytes):
                raw, kind = json.dumps(content).encode(), {"Content-Type": "application/json"}
            url = served.url + path.replace("^", "%5E").replace(" ", "%20")
            answer = pool.request(method, url, body=raw, headers=kind | headers)
            assert 400 <= answer.status < 500, (method, path, content, answer.status, answer.data)
            said.add("answers", b"\n" + answer.data + str(dict(answer.headers)).encode())
    served.client.renew(
        task.task_id,
        Renewal(
            lease_token=held.lease_token or "",
            files=[FileOutcome(uri=FILE, outcome="rejected", code="0110", message=f"{NAME} {ID}")],  # type: ignore[arg-type]
        ),
    )
    report = FailureReport(
        retry_later=False, lease_token=held.lease_token, code="x", message=f"{NAME} {ID}"
    )
    assert served.client.fail(task.task_id, report).state is State.FAILED


# Deliveries


@pytest.fixture
def talkative() -> Iterator[int]:
    """Run a receiver that refuses every instance and names the patient; give its port."""

    def refuse(event: Event) -> Dataset:
        answer = Dataset()
        answer.Status = 0xA900
        answer.ErrorComment = f"{event.dataset.PatientName} is unknown"
        return answer

    ae = AE("TALKATIVE")
    ae.add_supported_context(CTImageStorage)
    server = ae.start_server(
        ("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, refuse)]
    )
    assert server is not None
    assert server.socket is not None
    yield server.socket.getsockname()[1]
    server.shutdown()


def write_files(folder: Path, write_ct: "CtWriter") -> list[ResultFile]:
    """Write files of which some can be delivered and others can't, each for another reason."""
    marked: dict[str, Any] = {"PatientName": NAME, "PatientID": ID, "AccessionNumber": ACCESSION}
    good = folder / FILE
    uid = write_ct(good, **marked).SOPInstanceUID.encode()
    write_ct(folder / f"op/{ID}-changed.dcm", number=2, **marked)
    write_ct(folder / f"op/{ID}-gone.dcm", number=3, **marked)
    named_as_uid = good.read_bytes().replace(uid, (NAME * 5).encode()[: len(uid)])
    (folder / f"op/{NAME}-bad-uid.dcm").write_bytes(named_as_uid)
    (folder / f"op/{NAME}-cut.dcm").write_bytes(good.read_bytes()[:-100])
    (folder / f"op/{NAME}.txt").write_text(f"{NAME} {ID} {ACCESSION}")
    (folder / f"op/{NAME}-mangled.dcm").write_bytes(
        good.read_bytes()[:300] + f"{NAME}".encode() * 20
    )
    found = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    files = [
        ResultFile(uri=str(path.relative_to(folder)), size=path.stat().st_size) for path in found
    ]
    (folder / f"op/{ID}-changed.dcm").write_text(NAME)
    (folder / f"op/{ID}-gone.dcm").unlink()
    return files


def ended(served: "Service", task_id: str) -> Task:
    eventually(lambda: served.client.task(task_id).state.finished, f"task {task_id} ends", 60)
    return served.client.task(task_id)


def test_no_patient_data_is_said_anywhere(
    served: "Service",
    agent: "AgentStarter",
    storescp: "StoreScpStarter",
    talkative: int,
    free_port: Callable[[], int],
    write_ct: "CtWriter",
    said: Said,
    tmp_path: Path,
) -> None:
    folder = served.payloads / "pay"
    files = write_files(folder, write_ct)
    send_bad_requests(served, said)
    scp = storescp()
    for name, port in (("Good", scp.port), ("Talkative", talkative), ("Down", free_port())):
        served.client.add_destination(
            Destination(name=name, ae_title=name.upper(), host="127.0.0.1", port=port)
        )
    tasks: dict[tuple[str, int], str] = {}
    for fetched in (False, True):
        who = "Fetcher" if fetched else "ClaraSCU"
        settings: dict[str, Any] = {"payloads": ""} if fetched else {}
        agent(served, ae_title=who, log_level="debug", lease=5, connect_timeout=1, **settings)
        body = Registration(
            agent=who, job_id=f"job-{who}", pipeline_id="p", payload_id="pay", files=files,
            data=["Good", "Talkative", NAME, {"destination": NAME}, "Down"],
        )  # fmt: skip
        made = served.client.register(body, f"{NAME} {ID} {who}").tasks
        tasks |= {(who, number): task.task_id for number, task in enumerate(made)}
    down = tasks.pop(("ClaraSCU", 4)), tasks.pop(("Fetcher", 4))
    eventually(
        lambda: any(served.client.task(task_id).last_error for task_id in down), "one is tried", 30
    )
    for task_id in [*down, *tasks.values()]:
        done = served.client.cancel(task_id) if task_id in down else ended(served, task_id)
        assert done.state is (State.CANCELED if task_id in down else State.FAILED)
        if done.last_error is None:  # the other one showed that the destination is down
            assert task_id in down
            continue
        said.add("last errors", f"{done.last_error.code}: {done.last_error.message}\n")
        told = served.client.task(task_id).history or []
        said.add("histories", "".join(f"{each.event} {each.message}\n" for each in told))
    assert len(scp.files()) >= 1
    run_register(served, tmp_path, write_ct, said)
    metrics = urllib3.request("GET", f"{served.url}/metrics")
    assert metrics.status == 200
    said.add("metrics", metrics.data)
    served.stop()
    said.add("service", served.log())
    for number in (1, 2):
        said.add(f"agent {number}", (tmp_path / f"agent-{number}.log").read_bytes())
    said.check()


# The operator


def run_register(served: "Service", tmp_path: Path, write_ct: "CtWriter", said: Said) -> None:
    inside = served.payloads / "payload-2" / "op"
    outside = tmp_path / "input"
    for folder in (inside, outside):
        write_ct(folder / f"{NAME} {ID}.dcm", PatientName=NAME, PatientID=ID)

    def register(exit_code: int, input_path: Path, *arguments: str, **environment: str) -> None:
        done = subprocess.run(
            [sys.executable, str(REGISTER), "--agent", "ClaraSCU", "--job", "j2", "--pipeline", "p",
             "--payload", "payload-2", "--operator", "op", "--input", f"in={input_path}",
             "--payloads", str(served.payloads), *arguments],
            env=os.environ | {"CLARA_RESULTS_SERVICE": served.url} | environment,
            capture_output=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == exit_code, done.stderr
        said.add(f"register {len(said.parts)}", b"-\n" + done.stdout + done.stderr)

    marked = json.dumps([{"destination": NAME, "patient": ID}])
    register(0, inside, "--data", '["Good"]')
    register(0, inside, "--data", '["Good"]')
    register(0, outside, "--data", '["Good"]', "--wait")
    register(0, outside, "--data", marked)
    register(6, outside, "--data", marked, "--wait")  # nothing new, and not delivered
    register(6, outside, "--data", '["Talkative"]', "--wait")
    nobody = {"CLARA_RESULTS_SERVICE": "http://127.0.0.1:9"}
    register(4, outside, "--data", marked, "--timeout", "0", **nobody)


def test_none_is_said_to_who_is_refused(
    service: "ServiceStarter", said: Said, tmp_path: Path, write_ct: "CtWriter"
) -> None:
    served = service(anonymous="read@192.0.2.0/24", log_level="debug")
    folder = tmp_path / "input"
    write_ct(folder / f"{NAME} {ID}.dcm", PatientName=NAME, PatientID=ID)
    for token in ("", f"{ID}"):
        done = subprocess.run(
            [sys.executable, str(REGISTER), "--agent", "ClaraSCU", "--job", "j2", "--pipeline", "p",
             "--payload", "payload-2", "--operator", "op", "--input", f"in={folder}"],
            env=os.environ | {"CLARA_RESULTS_SERVICE": served.url, "CLARA_RESULTS_TOKEN": token},
            capture_output=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 7, done.stderr
        said.add(f"register {len(said.parts)}", done.stdout + done.stderr)
        headers = {"Authorization": f"Bearer {token}"}
        url = f"{served.url}/api/payloads/pay/files/{NAME}".replace("^", "%5E")
        answer = urllib3.request("GET", url, headers=headers, retries=False)
        assert answer.status == 401
        said.add("answers", answer.data + str(dict(answer.headers)).encode())
    served.stop()
    said.add("service", served.log())
    said.check()
