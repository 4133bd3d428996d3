"""``python register.py`` as a pipeline runs it, against a service that is faked at its HTTP seam.

Shown here: exit codes, messages, and exactly which calls are made.
"""

import base64
import hashlib
import json
import os
import pty
import shlex
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import urllib3

ROOT = Path(__file__).parents[2]
LIMIT = 30.0
"""Seconds within which one run must end."""
DATA = '["Orthanc","DCM4CHEE"]'


Trouble: TypeAlias = "int | Callable[[_Handler], object] | None"


class FakeService(ThreadingHTTPServer):
    """Answers as the service does, remembers every call, and does what a test tells it.

    Attributes:
        calls: Method and path of each call, in their order.
        bodies: Registrations that came.
        keys: Their idempotency keys.
        files: Uploads by path.
        troubles: For each method, what its next calls meet instead of an answer: a status, an action, or none.
        states: For a task of the number N: the states it has when asked, one after another.
        changes: Fields that every task has otherwise.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.calls: list[str] = []
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.files: dict[str, bytes] = {}
        self.troubles: dict[str, list[Trouble]] = {}
        self.states: dict[int, list[str]] = {}
        self.changes: dict[str, Any] = {}
        self.problem: dict[str, Any] = {"title": "trouble", "detail": "as the test wishes"}
        self.registered: dict[str, list[dict[str, Any]]] = {}
        self.tokens: set[str | None] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def made(self, method: str) -> int:
        return sum(call.startswith(method) for call in self.calls)

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of clients that went away: some tests end them."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeService

    def log_message(self, *arguments: object) -> None:
        """Keep quiet."""

    def _trouble(self) -> bool:
        self.server.calls.append(f"{self.command} {self.path}")
        self.server.tokens.add(self.headers.get("Authorization"))
        troubles = self.server.troubles.get(self.command)
        if not troubles:
            return False
        trouble = troubles.pop(0)
        if trouble is None:
            return False
        if isinstance(trouble, int):
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.answer(trouble, self.server.problem)
        else:
            trouble(self)
        return True

    def answer(self, status: int, body: object = None, headers: dict[str, str] | None = None) -> None:  # fmt: skip
        content = b"" if body is None else json.dumps(body).encode()
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def do_HEAD(self) -> None:
        if self._trouble():
            return
        content = self.server.files.get(self.path)
        if content is None:
            self.answer(404)
        else:
            tag = f'"{hashlib.sha256(content).hexdigest()}"'
            self.answer(200, None, {"Content-Length": str(len(content)), "ETag": tag})

    def do_PUT(self) -> None:
        if self._trouble():
            return
        content = self.rfile.read(int(self.headers["Content-Length"]))
        digest = base64.b64encode(hashlib.sha256(content).digest()).decode()
        assert self.headers["Content-Digest"] == f"sha-256=:{digest}:"
        self.server.files[self.path] = content
        self.answer(201)

    def do_POST(self) -> None:
        if self._trouble():
            return
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        key = self.headers["Idempotency-Key"]
        self.server.bodies.append(body)
        self.server.keys.append(key)
        known = key in self.server.registered
        if not known:
            self.server.registered[key] = [
                {
                    "taskId": str(uuid.UUID(int=number)),
                    "jobId": body["jobId"],
                    "pipelineId": body["pipelineId"],
                    "payloadId": body["payloadId"],
                    "parameters": None if element is ... else json.dumps(element),
                    "state": "Pending",
                    "agent": body["agent"],
                    "retries": 0,
                    "maxRetries": 3,
                    "createdAt": "2026-11-22T08:30:00.000000Z",
                    "updatedAt": "2026-11-22T08:30:00.000000Z",
                    "counts": {"pending": len(body["files"])},
                }
                for number, element in enumerate(body.get("data", [...]))
            ]
        tasks = [each | self.server.changes for each in self.server.registered[key]]
        self.answer(200 if known else 201, {"tasks": tasks})

    def do_GET(self) -> None:
        if self._trouble():
            return
        number = uuid.UUID(self.path.rsplit("/", 1)[1]).int
        (tasks,) = self.server.registered.values()
        states = self.server.states[number]
        state = states.pop(0) if len(states) > 1 else states[0]
        error = {"code": "refused", "message": "the receiver says no"}
        self.answer(
            200,
            tasks[number]
            | {"state": state}
            | ({"lastError": error} if state == "Failed" else {})
            | self.server.changes,
        )


@pytest.fixture
def service() -> Iterator[FakeService]:
    """Give a service that listens."""
    with FakeService() as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield made
        made.shutdown()
        thread.join(LIMIT)


@dataclass
class Run:
    """How a run ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.out)
        assert self.out.count("\n") == 1
        return found


@dataclass
class Step:
    """A pipeline step: its folders, and how it is run."""

    folder: Path
    url: str
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def input(self) -> Path:
        return self.folder / "input"

    def write(self, name: str, content: str = "content") -> Path:
        path = self.input / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        return path

    def command(self, *flags: str) -> list[str]:
        return [sys.executable, str(ROOT / "register.py"), *flags]

    def variables(self) -> dict[str, str]:
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("CLARA_", "NVIDIA_"))
        }
        host, port = self.url.removeprefix("http://").split(":")
        return {
            **kept,
            "NVIDIA_CLARA_JOBID": "job1",
            "NVIDIA_CLARA_PIPELINEID": "pipeline1",
            "NVIDIA_CLARA_PAYLOADID": "payload1",
            "NVIDIA_CLARA_OPERATORNAME": "register-op",
            "NVIDIA_CLARA_INPUTPATHS": f"input:{self.input}",
            "CLARA_RESULTSSERVICE_SERVICE_HOST": host,
            "CLARA_RESULTSSERVICE_SERVICE_PORT": port,
            "CLARA_RESULTS_PORT": "tcp://10.0.0.1:8088",  # Kubernetes' own, of a service of that name
            **self.environment,
        }

    def start(self, *flags: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command(*flags),
            env=self.variables(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
        )

    def run(self, *flags: str, agent: str | None = "ClaraSCU") -> Run:
        return ended(self.start(*([] if agent is None else ["--agent", agent]), *flags))


def ended(process: subprocess.Popen[str]) -> Run:
    try:
        out, err = process.communicate(timeout=LIMIT)
    finally:
        process.kill()
    assert "Traceback" not in err
    return Run(process.returncode, out, err)


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {LIMIT} s"
        time.sleep(0.01)


@pytest.fixture
def step(tmp_path: Path, service: FakeService) -> Step:
    """Give a step whose input is an empty folder outside of the payload."""
    made = Step(tmp_path, service.url)
    made.input.mkdir()
    return made


def hang_up(handler: _Handler) -> None:
    """Read a part of what comes, and go away without an answer."""
    handler.rfile.read(10)
    handler.close_connection = True


# What a good run does


def test_files_in_place_are_registered_in_one_request(step: Step, service: FakeService) -> None:
    step.write("b/2.dcm", "12")
    os.utime(step.write("a.dcm", "1"), ns=(0, 1_000_002_999))
    run = step.run("--data", DATA, "--input-uri", "input=liver/out")
    assert run.code == 0
    assert run.out.splitlines() == [
        f'{uuid.UUID(int=0)}  Pending  clarascu  "Orthanc"  2 files',
        f'{uuid.UUID(int=1)}  Pending  clarascu  "DCM4CHEE"  2 files',
    ]
    assert run.err == ""
    assert service.calls == ["POST /api/tasks"]
    (body,) = service.bodies
    times = [file.pop("modified") for file in body["files"]]
    assert times[0] == "1970-01-01T00:00:01.000002Z"
    assert body == {
        "agent": "clarascu",
        "jobId": "job1",
        "pipelineId": "pipeline1",
        "payloadId": "payload1",
        "operator": "register-op",
        "data": ["Orthanc", "DCM4CHEE"],
        "files": [{"uri": "liver/out/a.dcm", "size": 1}, {"uri": "liver/out/b/2.dcm", "size": 2}],
        "verify": True,
        "priority": 0,
    }
    assert len(service.keys[0]) == 66
    assert service.tokens == {None}


def test_the_payloads_folder_says_where_the_files_are(
    step: Step, service: FakeService, tmp_path: Path
) -> None:
    folder = tmp_path / "payloads" / "payload1" / "out"
    folder.mkdir(parents=True)
    (folder / "a.dcm").touch()
    run = step.run("--payloads", str(tmp_path / "payloads"), "--input", str(folder))
    assert run.code == 0
    assert run.out == f"{uuid.UUID(int=0)}  Pending  clarascu  -  1 file\n"
    assert [file["uri"] for file in service.bodies[0]["files"]] == ["out/a.dcm"]
    assert "data" not in service.bodies[0]
    assert service.calls == ["POST /api/tasks"]


def test_other_inputs_are_uploaded_below_a_part_of_the_key(
    step: Step, service: FakeService
) -> None:
    step.write("a b/ä.dcm", "12345")
    step.write("empty", "")
    run = step.run("--data", '["Orthanc"]')
    assert run.code == 0
    key = service.keys[0].strip('"')
    folder = f"register-op/input/{key[:12]}"
    paths = [f"/api/payloads/payload1/files/{folder}/{name}" for name in ("a%20b/%C3%A4.dcm", "empty")]  # fmt: skip
    assert service.files == dict(zip(paths, (b"12345", b""), strict=True))
    assert sorted(service.calls[:-1]) == sorted(f"{m} {p}" for p in paths for m in ("HEAD", "PUT"))
    assert service.calls[-1] == "POST /api/tasks"
    assert service.bodies[0]["files"] == [
        {"uri": f"{folder}/a b/ä.dcm", "size": 5, "sha256": hashlib.sha256(b"12345").hexdigest()},
        {"uri": f"{folder}/empty", "size": 0, "sha256": hashlib.sha256().hexdigest()},
    ]
    assert not service.bodies[0]["verify"]


def test_a_restarted_step_registers_the_same_and_uploads_nothing_again(
    step: Step, service: FakeService
) -> None:
    for number in range(10):
        step.write(f"{number}.dcm", str(number))
    first = step.run("--data", DATA)
    second = step.run("--data", ' [ "Orthanc", "DCM4CHEE" ] ')
    assert (first.code, second.code) == (0, 0)
    assert first.out == second.out
    assert service.keys[0] == service.keys[1]
    assert service.bodies[0] == service.bodies[1]
    assert (service.made("PUT"), service.made("HEAD")) == (10, 20)


def test_changed_results_are_another_registration(step: Step, service: FakeService) -> None:
    step.write("a", "1")
    step.run()
    step.write("a", "2")
    step.run()
    assert service.keys[0] != service.keys[1]
    assert service.made("PUT") == 2


def test_an_upload_that_breaks_is_resumed_file_by_file_by_the_next_run(
    step: Step, service: FakeService
) -> None:
    for number in range(20):
        step.write(f"{number}.dcm", str(number) * 100)

    service.troubles["PUT"] = [*[None] * 5, *[hang_up] * 50]
    run = step.run("--timeout", "0")
    assert run.code == 4
    assert "goes on from here" in run.err
    assert len(service.files) == 5
    assert service.bodies == []
    before = set(service.files)
    service.troubles.clear()
    service.calls.clear()
    assert step.run().code == 0
    puts = {call.removeprefix("PUT ") for call in service.calls if call.startswith("PUT")}
    assert len(service.files) == 20
    assert puts == set(service.files) - before


def test_an_upload_that_breaks_is_sent_again_by_the_same_run(
    step: Step, service: FakeService
) -> None:
    step.write("a.dcm", "1" * 1_000_000)
    service.troubles["PUT"] = [hang_up, 503]
    run = step.run()
    assert run.code == 0
    assert run.err.count("trying again in") == 2
    assert [call[:4] for call in service.calls] == ["HEAD", "PUT ", "PUT ", "PUT ", "POST"]
    assert [len(content) for content in service.files.values()] == [1_000_000]


def test_inputs_in_place_and_uploads_in_one_registration(step: Step, service: FakeService) -> None:
    step.write("ct/a")
    step.write("seg/b")
    inputs = ("--input", f"ct={step.input}/ct", "--input", f"seg={step.input}/seg")
    assert step.run(*inputs, "--input-uri", "ct=.").code == 0
    (body,) = service.bodies
    key = service.keys[0][1:13]
    assert [file["uri"] for file in body["files"]] == ["a", f"register-op/seg/{key}/b"]
    assert body["verify"]


def test_a_token_file(step: Step, service: FakeService, tmp_path: Path) -> None:
    step.write("a")
    (tmp_path / "token").write_text("s3cret\n")
    step.environment["CLARA_RESULTS_TOKEN_FILE"] = str(tmp_path / "token")
    assert step.run().code == 0
    assert service.tokens == {"Bearer s3cret"}


def test_a_dry_run_shows_all_and_sends_nothing(step: Step, service: FakeService) -> None:
    step.write("a.dcm", "12345")
    step.write("b\u202e.dcm", "1")
    flags = ("--data", '["Orthanc",{"b":1,"a":null}]', "--dry-run")
    run = step.run(*flags)
    assert run.code == 0
    for part in (
        "agent           clarascu",
        "jobId           job1",
        "tasks           2",
        '  "Orthanc"',
        '  {"a":null,"b":1}',
        "files           2, 6 bytes",
        f"  from {step.input}/a.dcm",
        "b\\u202e.dcm",  # nothing may steer a terminal
        "nothing was sent",
    ):
        assert part in run.out
    in_place = step.run(*flags, "--json", "--input-uri", "input=x").json
    assert in_place["files"] == [
        {"uri": "x/a.dcm", "size": 5, "how": "in place", "path": f"{step.input}/a.dcm"},
        {"uri": "x/b\u202e.dcm", "size": 1, "how": "in place", "path": f"{step.input}/b\u202e.dcm"},
    ]
    assert in_place["tasks"] == [{"parameters": '"Orthanc"'}, {"parameters": '{"a":null,"b":1}'}]
    step.url = ":"
    without = step.run(*flags, "--json").json
    assert without["service"] is None
    assert without["files"][0]["uri"] == f"register-op/input/{without['idempotencyKey'][:12]}/a.dcm"
    assert service.calls == []


def test_json_of_a_registration(step: Step) -> None:
    step.write("a")
    (task, other) = step.run("--data", DATA, "--json", "--quiet").json["tasks"]
    assert task["parameters"] == '"Orthanc"'
    assert other["counts"]["pending"] == 1


# What is wrong with what is given


def check_error(run: Run, code: int, name: str, *parts: str) -> None:
    """Check exit code, the error's code in JSON, and its message there and on stderr."""
    error = run.json["error"]
    assert (run.code, error["code"]) == (code, name)
    for part in parts:
        assert part in error["message"]
        assert part in run.err


@pytest.mark.parametrize("agent", ["1scu", "scu-", "clara_scu", "clara scu", "-scu", ""])
def test_bad_agent(step: Step, service: FakeService, agent: str) -> None:
    rule = "letters, digits and hyphens; begins with a letter; does not end with a hyphen"
    check_error(step.run("--json", agent=agent), 2, "invalid-agent-name", rule)
    assert service.calls == []


@pytest.mark.parametrize(
    ("data", "place"),
    [
        ("Orthanc", "line 1, column 1"),
        ('["Orthanc"', "line 1, column 11"),
        ('["a",\n  b]', "line 2, column 3"),
        ('{"a":1}', "it is an object, not an array (line 1, column 1)"),
        ("[]", "the array is empty"),
        ("", "line 1, column 1"),
        ("-1", "it is a number, not an array"),
    ],
)
def test_bad_data(step: Step, service: FakeService, data: str, place: str) -> None:
    run = step.run("--json", "--data", data)
    check_error(run, 2, "invalid-data", place, """--data '["Orthanc","DCM4CHEE"]'""")
    assert service.calls == []


@pytest.mark.parametrize(
    "quoted", [r"[\"Orthanc\"]", r'"[\"Orthanc\"]"', """'["Orthanc"]'""", '"["Orthanc"]"']
)
def test_shell_quoted_data(step: Step, service: FakeService, quoted: str) -> None:
    step.write("a")
    assert step.run("--data", quoted).code == 0
    assert service.bodies[0]["data"] == ["Orthanc"]


def test_all_that_is_missing_at_once(step: Step) -> None:
    step.url = ":"
    for name in ("JOBID", "PIPELINEID", "PAYLOADID", "OPERATORNAME"):
        step.environment[f"NVIDIA_CLARA_{name}"] = ""
    flags = ("--agent", "--job", "--pipeline", "--payload", "--operator", "--service")
    run = step.run("--json", agent=None)
    check_error(run, 2, "missing", *flags, "NVIDIA_CLARA_JOBID", "CLARA_RESULTSSERVICE_SERVICE_HOST")  # fmt: skip
    assert len(run.json["error"]["errors"]) == 6


@pytest.mark.parametrize(
    ("flags", "name", "part"),
    [
        (["--nonsense"], "usage", "--nonsense"),
        (["--agent"], "usage", "--agent"),
        (["--input", "a=/x", "--input", "a=/y"], "duplicate-input", "two inputs are named a"),
        (["--input-uri", "seg=x"], "unknown-input", "mapped: input"),
        (["--input-uri", "input=../x"], "unsafe-uri", "'../x'"),
        (["--payload", "a/b"], "invalid-payload-id", "'a/b'"),
        (["--operator", "a/b"], "invalid-name", "1 to 255 letters, digits, '-' or '_'"),
        (["--service", "results"], "invalid-settings", "http://results:8088"),
        (["--timeout", "soon"], "invalid-settings", "'soon'"),
        (["--config", "/none.toml"], "invalid-settings", "/none.toml"),
        (["--token-file", "/none"], "invalid-settings", "/none"),
        (["--wait=-1"], "usage", "'-1' is not a number of seconds"),
    ],
)
def test_bad_flags(step: Step, service: FakeService, flags: list[str], name: str, part: str) -> None:  # fmt: skip
    step.write("a")
    check_error(step.run("--json", *flags), 2, name, part)
    assert service.calls == []


def test_bad_input_paths(step: Step) -> None:
    for value, name in (("/input", "invalid-input-paths"), ("a:/x;a:/y", "duplicate-input")):
        step.environment["NVIDIA_CLARA_INPUTPATHS"] = value
        assert step.run("--json").json["error"]["code"] == name


def test_a_file_name_that_is_no_uri(step: Step) -> None:
    (step.input / os.fsdecode(b"\xff\x1b[2J.dcm")).touch()
    check_error(step.run("--json"), 2, "unsafe-uri", r"\udcff\x1b[2J.dcm", "rename it")


def test_no_file(step: Step, service: FakeService) -> None:
    (step.input / "empty").mkdir()
    check_error(step.run("--json"), 3, "no-files", f"no file in {step.input} (input input)")
    assert service.calls == []


def test_no_file_allowed(step: Step, service: FakeService) -> None:
    run = step.run("--allow-empty")
    assert (run.code, run.out) == (0, "")
    assert f"no file in {step.input} (input input): nothing was registered" in run.err
    assert step.run("--allow-empty", "--json").json == {"tasks": []}
    assert service.calls == []


def test_an_input_that_is_not_there(step: Step, service: FakeService) -> None:
    run = step.run("--json", "--allow-empty", "--input", "ct=/none/such")
    check_error(run, 5, "unreadable-input", "/none/such does not exist: is it mapped?")
    assert service.calls == []


@pytest.mark.parametrize("what", ["input/b.dcm", "input/b"])
@pytest.mark.parametrize("uri", [[], ["--input-uri", "input=x"]])
def test_an_unreadable_file_or_folder(
    step: Step,
    service: FakeService,
    require_tool: Callable[[str], str],
    what: str,
    uri: list[str],
) -> None:
    step.write("a.dcm")
    path = step.folder / what
    step.write("b.dcm") if path.suffix else path.mkdir()
    path.chmod(0)
    powers = "-dac_override,-dac_read_search"  # root's, which let it read what nobody may
    without = [require_tool("setpriv"), f"--bounding-set={powers}", f"--inh-caps={powers}"]
    if os.geteuid() != 0:
        without = []
    process = subprocess.Popen(
        [*without, *step.command("--agent", "ClaraSCU", "--json", *uri)],
        env=step.variables(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        check_error(ended(process), 5, "unreadable-input", f"'{path}' can't be read: Permission")
    finally:
        path.chmod(0o700)
    assert service.calls == []


def test_a_link_that_leads_out(step: Step, service: FakeService, tmp_path: Path) -> None:
    step.write("a.dcm")
    (tmp_path / "secret").touch()
    (step.input / "link").symlink_to(tmp_path / "secret")
    check_error(step.run("--json"), 5, "unreadable-input", "link' is a symbolic link out of")
    assert service.calls == []


def test_a_file_that_changes_between_digest_and_upload(step: Step, service: FakeService) -> None:
    file = step.write("a.dcm", "12345")

    def change(handler: _Handler) -> None:
        file.write_text("12346")
        handler.answer(404)

    service.troubles["HEAD"] = [change]
    check_error(step.run("--json"), 5, "unreadable-input", "a.dcm' changed while it was read")
    assert service.files == {}
    assert service.made("POST") == 0


# What the service may do


def test_a_service_that_is_busy_or_broken_is_tried_again(step: Step, service: FakeService) -> None:
    step.write("a")
    service.troubles["POST"] = [503, hang_up, 429]
    run = step.run("--input-uri", "input=")
    assert run.code == 0
    said = [line for line in run.err.splitlines() if "trying again in" in line]
    assert ["503" in said[0], "429" in said[2]] == [True, True]
    assert service.calls == ["POST /api/tasks"] * 4
    assert len(service.bodies) == 1


def test_a_service_that_stays_away(step: Step, free_port: Callable[[], int]) -> None:
    step.write("a")
    step.url = f"127.0.0.1:{free_port()}"
    began = time.monotonic()
    run = step.run("--timeout", "1", "--json")
    assert 1 <= time.monotonic() - began < 10
    check_error(run, 4, "service-unavailable", "Connection refused", "registers nothing twice")
    assert run.err.count("trying again in") >= 2
    quiet = step.run("--timeout", "0.1", "--quiet")
    assert (quiet.code, quiet.out, quiet.err.count("trying again in")) == (4, "", 0)


def test_files_that_the_service_does_not_see(step: Step, service: FakeService) -> None:
    step.write("a.dcm")
    step.write("b.dcm")
    service.troubles["POST"] = [422]
    service.problem = {
        "code": "missing-file",
        "detail": "files are not in payload payload1 as they were registered",
        "errors": [{"field": "files[1].uri", "message": "wrong/b.dcm is not there"}],
    }
    run = step.run("--json", "--input-uri", "input=wrong")
    check_error(
        run,
        7,
        "missing-file",
        f"wrong/b.dcm is not there (here '{step.input}/b.dcm')",
        f"input: {step.input} is 'wrong' of payload payload1",
        "--input-uri",
    )
    assert run.json["error"]["errors"] == service.problem["errors"]
    assert service.made("POST") == 1


@pytest.mark.parametrize(
    ("method", "status", "name", "part"),
    [
        ("POST", 409, "key-reused", "another body"),
        ("POST", 401, "unauthorized", "CLARA_RESULTS_TOKEN_FILE"),
        ("PUT", 403, "forbidden", "CLARA_RESULTS_TOKEN_FILE"),
        ("POST", 413, "too-large", "another body"),
        ("PUT", 409, "exists-differently", "another body"),
    ],
)
def test_other_refusals(
    step: Step, service: FakeService, method: str, status: int, name: str, part: str
) -> None:
    step.write("a")
    service.troubles[method] = [status]
    service.problem = {"code": name, "detail": "another body"}
    check_error(step.run("--json"), 7, name, part)


@pytest.mark.parametrize("body", [{}, [], {"tasks": [{"taskId": 1}]}, {"tasks": 5}])
def test_something_else_than_the_service(step: Step, service: FakeService, body: object) -> None:
    step.write("a")
    service.troubles["POST"] = [lambda handler: handler.answer(200, body)] * 9
    run = step.run("--json", "--timeout", "0", "--input-uri", "input=")
    check_error(run, 4, "service-unavailable", "is the service of another version?")


def test_superseded_results_are_no_success(step: Step, service: FakeService) -> None:
    step.write("a")
    service.changes = {"state": "Canceled", "supersededBy": "newer-task"}
    run = step.run("--data", '["Orthanc"]', "--wait")
    task_id = uuid.UUID(int=0)
    assert run.code == 7
    assert run.out == f'{task_id}  Canceled  clarascu  "Orthanc"  1 file\n'
    assert "nothing new is registered" in run.err
    assert "task newer-task is the newer one" in run.err
    assert f"clara-results tasks redeliver {task_id}" in run.err
    found = step.run("--json").json
    assert found["error"]["code"] == "superseded"
    assert found["tasks"][0]["supersededBy"] == "newer-task"


@pytest.mark.parametrize(
    ("state", "remedy"), [("Failed", "retry"), ("Canceled", "redeliver"), ("Succeeded", None)]
)
def test_tasks_that_ended_before_are_shown_as_they_are(
    step: Step, service: FakeService, state: str, remedy: str | None
) -> None:
    step.write("a")
    service.changes = {"state": state}
    run = step.run()
    assert run.code == 0
    assert run.out.split()[1] == state
    said = f"clara-results tasks {remedy} {uuid.UUID(int=0)}" if remedy else ""
    assert said in run.err
    assert bool(run.err) == bool(remedy)


# Waiting


def test_waiting_for_delivery(step: Step, service: FakeService) -> None:
    step.write("a")
    service.states = {0: ["InProgress", "Succeeded"], 1: ["Succeeded"]}
    service.troubles["GET"] = [503]
    run = step.run("--data", DATA, "--wait")
    assert run.code == 0
    assert [line.split()[1] for line in run.out.splitlines()] == ["Succeeded", "Succeeded"]
    assert service.made("GET") == 4


def test_waiting_for_what_fails(step: Step, service: FakeService) -> None:
    step.write("a")
    service.states = {0: ["Succeeded"], 1: ["Failed"]}
    run = step.run("--data", DATA, "--wait", "--json")
    check_error(run, 6, "not-delivered", f"task {uuid.UUID(int=1)} for \"DCM4CHEE\" is Failed", "the receiver says no (refused)")  # fmt: skip
    assert [task["state"] for task in run.json["tasks"]] == ["Succeeded", "Failed"]


def test_waiting_in_vain(step: Step, service: FakeService) -> None:
    step.write("a")
    service.states = {0: ["InProgress"]}
    run = step.run("--wait=0.7")
    assert run.code == 6
    assert "not all is delivered after 0.7 s" in run.err
    assert "is still InProgress" in run.err
    assert run.out.split()[1] == "InProgress"


# Being ended


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_ended_by_a_signal_while_the_service_answers(
    step: Step, service: FakeService, number: signal.Signals
) -> None:
    step.write("a")
    release = threading.Event()
    service.troubles["POST"] = [
        lambda handler: handler.answer(503) if release.wait(LIMIT) else None
    ]
    process = step.start("--agent", "ClaraSCU", "--json")
    wait_for(lambda: service.made("POST") == 1, "the registration")
    process.send_signal(number)
    run = ended(process)
    release.set()
    check_error(run, 128 + number, "stopping", f"ended by {number.name}", "registers nothing twice")


def test_ended_by_a_signal_while_it_uploads(step: Step, service: FakeService) -> None:
    for name in range(10):
        step.write(str(name), "content")
    release = threading.Event()

    def hang(handler: _Handler) -> None:
        release.wait(LIMIT)
        handler.close_connection = True

    service.troubles["PUT"] = [hang] * 10
    process = step.start("--agent", "ClaraSCU")
    wait_for(lambda: service.made("PUT") == 4, "the uploads")
    process.terminate()
    began = time.monotonic()
    run = ended(process)
    assert time.monotonic() - began < 5  # it does not wait for an answer
    release.set()
    assert run.code == 143
    assert service.bodies == []


def test_ended_by_a_signal_while_it_waits(step: Step, service: FakeService) -> None:
    step.write("a")
    service.states = {0: ["InProgress"]}
    process = step.start("--agent", "ClaraSCU", "--wait")
    wait_for(lambda: service.made("GET") >= 2, "the second question")
    process.terminate()
    run = ended(process)
    assert run.code == 143
    assert run.out.split()[1] == "InProgress"
    assert "The tasks are registered and go on without this program." in run.err


# How it is run


def test_help(step: Step) -> None:
    run = ended(step.start("--help"))
    assert run.code == 0
    for part in ("exit codes:", "NVIDIA_CLARA_INPUTPATHS", "examples:", "--input-uri"):
        assert part in run.out


def in_a_plain_checkout(step: Step, packages: list[str]) -> Run:
    """Run register.py by a Python that has nothing installed but what lies in ``packages``."""
    code = (
        f"import sys, runpy; sys.path += {packages!r}; sys.argv[0] = 'register.py'; "
        f"runpy.run_path({str(ROOT / 'register.py')!r}, run_name='__main__')"
    )
    return ended(
        subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", code, "--agent", "ClaraSCU", "--json"],
            env=step.variables(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    )


def test_a_plain_checkout(step: Step) -> None:
    step.write("a")
    packages = Path(urllib3.__file__).parents[1]  # without its .pth files: we are not in there
    run = in_a_plain_checkout(step, [str(packages)])
    assert run.code == 0
    assert len(run.json["tasks"]) == 1


def test_a_plain_checkout_without_urllib3(step: Step) -> None:
    step.write("a")
    check_error(in_a_plain_checkout(step, []), 1, "not-installed", "pip install urllib3")


def test_the_commands_own_name(step: Step) -> None:
    step.write("a")
    command = Path(sys.executable).parent / "clara-results"
    process = subprocess.Popen(
        [command, "register", "--agent", "ClaraSCU"],
        env=step.variables(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    run = ended(process)
    assert run.code == 0
    assert "Pending" in run.out


@pytest.mark.parametrize(
    ("redirection", "code"), [("| true", 0), (">&-", 0), (">/dev/full", 1), ("2>&-", 0)]
)
def test_a_stdout_or_stderr_that_is_gone(
    step: Step, service: FakeService, redirection: str, code: int
) -> None:
    step.write("a")
    service.troubles["POST"] = [503]
    line = f"set -o pipefail; {shlex.join(step.command('--agent', 'ClaraSCU'))} {redirection}"
    process = subprocess.Popen(
        ["bash", "-c", line],
        env=step.variables(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    run = ended(process)
    assert run.code == code
    assert len(service.bodies) == 1
    assert "Exception" not in run.err


def test_progress_on_a_terminal_goes_away(step: Step, service: FakeService) -> None:
    for number in range(30):
        step.write(str(number))
    pause = threading.Event()

    def slowly(handler: _Handler) -> None:
        pause.wait(0.1)
        handler.answer(404)

    service.troubles["HEAD"] = [slowly] * 30
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        step.command("--agent", "ClaraSCU"),
        env=step.variables(),
        stdout=subprocess.PIPE,
        stderr=theirs,
    )
    os.close(theirs)
    out, _ = process.communicate(timeout=LIMIT)
    shown = os.read(ours, 65536).decode()
    os.close(ours)
    assert process.returncode == 0
    assert b"Pending" in out
    assert "\ruploading: " in shown
    assert shown.endswith("\r\x1b[K")
    assert "\n" not in shown


def test_a_thousand_files_in_place_start_fast(step: Step, service: FakeService) -> None:
    for number in range(1000):
        step.write(f"{number}.dcm", str(number))
    bare = {name: value for name, value in step.variables().items() if "COVERAGE" not in name}
    took: list[float] = []

    def answer(handler: _Handler) -> None:
        began = time.perf_counter()
        service.calls.pop()
        handler.do_POST()
        took.append(time.perf_counter() - began)

    service.troubles["POST"] = [part for _ in range(9) for part in (answer, None)]

    def seconds(*arguments: str) -> float:
        began = time.perf_counter()
        subprocess.run(
            [sys.executable, *arguments], env=bare, check=True, stdout=subprocess.DEVNULL
        )
        return time.perf_counter() - began

    register = ("--agent", "ClaraSCU", "--data", DATA, "--input-uri", "input=out")
    pairs = [
        (
            seconds("-c", "import urllib3"),
            seconds(str(ROOT / "register.py"), *register),
        )
        for _ in range(7)
    ]
    imports, registers = (min(column) for column in zip(*pairs, strict=True))
    assert len(service.bodies[0]["files"]) == 1000
    assert registers <= 3 * imports + min(took)
