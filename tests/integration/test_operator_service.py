"""The operator and the real Results Service, each in a process of its own."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from clara_results.client import ResultsClient
from clara_results.domain.tasks import State
from clara_results.wire.tasks import SuccessReport

ROOT = Path(__file__).parents[2]
LIMIT = 30.0
"""Seconds within which anything here must happen."""
IDS = ("--job", "job1", "--pipeline", "pipeline1", "--payload", "payload1", "--operator", "op")


class Service:
    """The service's process, and what a test asks of it."""

    def __init__(self, folder: Path) -> None:
        self.payloads = folder / "payloads"
        self._log = folder / "service.log"
        self._data = folder / "data"
        self._port = "0"
        self.start()

    def start(self) -> None:
        log = self._log.open("w")
        self._process = subprocess.Popen(
            [
                *(Path(sys.executable).parent / "clara-results", "serve", "--port", self._port),
                *("--data", self._data, "--payloads", self.payloads),
            ],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=bare_environment(),
        )
        log.close()
        deadline = time.monotonic() + LIMIT
        while not (listens := re.search(r"listens on (http://\S+:(\d+))", self._log.read_text())):
            assert self._process.poll() is None, self._log.read_text()
            assert time.monotonic() < deadline, self._log.read_text()
            time.sleep(0.02)
        self.url, self._port = listens[1], listens[2]
        self.client = ResultsClient(self.url)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        self._process.send_signal(number)
        self._process.wait(LIMIT)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    """Give a service with an empty database."""
    made = Service(tmp_path)
    yield made
    made.stop()


def bare_environment() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if not k.startswith(("CLARA_", "NVIDIA_"))}


def command(service: Service, *flags: str) -> list[str]:
    register = [sys.executable, str(ROOT / "register.py")]
    return [*register, "--agent", "ClaraSCU", *IDS, "--service", service.url, "--json", *flags]


def run(*words: str) -> tuple[int, dict[str, Any]]:
    ended = subprocess.run(
        words, env=bare_environment(), capture_output=True, text=True, timeout=LIMIT, check=False
    )
    assert "Traceback" not in ended.stderr
    return ended.returncode, json.loads(ended.stdout)


def test_uploads_arrive_and_what_a_task_names_does_not_change(
    service: Service, tmp_path: Path
) -> None:
    results = tmp_path / "results"
    (results / "series ä").mkdir(parents=True)
    (results / "series ä" / "1.dcm").write_bytes(os.urandom(3_000_000))
    (results / "empty").touch()
    register = command(service, "--input", str(results), "--data", '["Orthanc",{"b":1,"a":2}]')
    code, first = run(*register)
    assert code == 0
    parameters = [json.loads(task["parameters"]) for task in first["tasks"]]
    assert parameters == ["Orthanc", {"a": 2, "b": 1}]
    (claimed,) = service.client.claim("ClaraSCU", size=1)
    assert claimed.files is not None
    assert [file.size for file in claimed.files] == [0, 3_000_000]
    with service.client.get_file("payload1", claimed.files[1].uri) as download:
        assert b"".join(download.pieces) == (results / "series ä" / "1.dcm").read_bytes()

    code, again = run(*register)  # a pod that restarts
    assert code == 0
    assert [task["taskId"] for task in again["tasks"]] == [
        task["taskId"] for task in first["tasks"]
    ]
    assert [task["state"] for task in again["tasks"]] == ["InProgress", "Pending"]

    (results / "empty").write_text("no more")  # changed results
    code, newer = run(*register)
    assert code == 0
    assert [task["supersedes"] for task in newer["tasks"]] == [t["taskId"] for t in first["tasks"]]
    assert service.client.task(first["tasks"][1]["taskId"]).state is State.CANCELED
    assert service.client.has_file(
        "payload1", claimed.files[0].uri, 0, claimed.files[0].sha256 or ""
    )

    (results / "empty").write_text("")  # and the older ones once more
    code, older = run(*register)
    assert (code, older["error"]["code"]) == (7, "superseded")
    assert newer["tasks"][1]["taskId"] in older["error"]["message"]
    assert len(service.client.tasks().items) == 4


def test_files_in_place_are_checked_by_the_service(service: Service) -> None:
    output = service.payloads / "payload1" / "liver" / "out"
    output.mkdir(parents=True)
    (output / "a.dcm").write_text("12345")
    place = ("--input", str(output), "--payloads", str(service.payloads))
    code, found = run(*command(service, *place))
    assert (code, len(found["tasks"])) == (0, 1)
    files = service.client.files(found["tasks"][0]["taskId"]).items
    assert [(file.uri, file.size) for file in files] == [("liver/out/a.dcm", 5)]
    code, wrong = run(*command(service, "--input", str(output), "--input-uri", "out=wrong/place"))
    assert (code, wrong["error"]["code"]) == (7, "missing-file")
    assert f"(here '{output}/a.dcm')" in wrong["error"]["message"]
    assert f"out: {output} is 'wrong/place' of payload payload1" in wrong["error"]["message"]
    assert len(service.client.tasks().items) == 1


@pytest.fixture
def in_namespace(require_tool: Callable[[str], str], tmp_path: Path) -> list[str]:
    """Give the words before a shell command that has mounts of its own."""
    words = [require_tool("unshare"), "--mount"] + (
        [] if os.geteuid() == 0 else ["--map-root-user"]
    )
    mount = require_tool("mount")
    tried = subprocess.run(
        [*words, mount, "--bind", tmp_path, tmp_path], capture_output=True, text=True, check=False
    )
    if tried.returncode != 0:
        reason = f"no mount namespace of one's own here: {tried.stderr.strip()}"
        if os.environ.get("CLARA_RESULTS_REQUIRE_TOOLS") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return [*words, "sh", "-euc"]


def test_a_mounted_input_that_hides_the_payload(
    service: Service, tmp_path: Path, in_namespace: list[str]
) -> None:
    """As in a pod: /input is a mount of a part of the payload, and the payload itself is not seen."""
    output = service.payloads / "payload1" / "liver" / "out"
    output.mkdir(parents=True)
    for number in range(3):
        (output / f"{number}.dcm").write_text("x" * number)
    (output / "link").symlink_to("2.dcm")
    mounted, nothing = tmp_path / "pod" / "input", tmp_path / "nothing"
    mounted.mkdir(parents=True)
    nothing.mkdir()
    register = command(service, "--input", str(mounted), "--payloads", str(service.payloads))
    script = (
        f"mount --bind {output} {mounted}; mount --bind {nothing} {service.payloads}; "
        f"test ! -e {output}; "
        'exec "$@"'
    )
    code, found = run(*in_namespace, script, "sh", *register, "--input-uri", "input=liver/out")
    assert code == 0
    files = service.client.files(found["tasks"][0]["taskId"]).items
    assert [(file.uri, file.size, file.sha256) for file in files] == [
        ("liver/out/0.dcm", 0, None),
        ("liver/out/1.dcm", 1, None),
        ("liver/out/2.dcm", 2, None),
        ("liver/out/link", 2, None),
    ]
    moment = (output / "0.dcm").stat().st_mtime_ns // 1000
    assert files[0].modified is not None
    assert round(files[0].modified.timestamp() * 1_000_000) == moment
    code, _ = run(*in_namespace, script, "sh", *register)  # unsaid, they are uploaded
    assert code == 0
    assert len(list((service.payloads / "payload1" / "op" / "input").glob("*/*"))) == 4


def test_a_service_that_is_killed_and_comes_back(service: Service, tmp_path: Path) -> None:
    results = tmp_path / "results"
    results.mkdir()
    (results / "a").touch()
    service.stop(signal.SIGKILL)
    process = subprocess.Popen(
        command(service, "--input", str(results)),
        env=bare_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        assert "trying again in" in process.stderr.readline()
        service.start()
        out, _ = process.communicate(timeout=LIMIT)
    finally:
        process.kill()
    assert process.returncode == 0
    assert len(json.loads(out)["tasks"]) == 1


def test_waiting_for_an_agent(service: Service, tmp_path: Path) -> None:
    results = tmp_path / "results"
    results.mkdir()
    (results / "a").touch()
    process = subprocess.Popen(
        command(service, "--input", str(results), "--wait", str(LIMIT)),
        env=bare_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        (task,) = service.client.claim("ClaraSCU", wait=LIMIT)
        assert process.poll() is None
        service.client.succeed(task.task_id, SuccessReport(lease_token=task.lease_token))
        out, _ = process.communicate(timeout=LIMIT)
    finally:
        process.kill()
    assert process.returncode == 0
    assert json.loads(out)["tasks"][0]["state"] == "Succeeded"
