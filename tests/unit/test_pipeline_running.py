"""``clara-results pipeline run``: real processes, in the order of what they read from whom."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from clara_results.cli.pipeline import app
from clara_results.errors import ClaraResultsError
from tests.conftest import eventually

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

PATIENCE = 60.0
"""Seconds that a busy machine may take."""


class Pipelines:
    """Runs pipelines whose operators are shell scripts.

    Attributes:
        folder: Holds the definition, the images and the input.
        data: The data folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / "data"
        (folder / "in" / "deep").mkdir(parents=True)
        (folder / "in" / "deep" / "file").write_text("input\n")
        self.write_images("images: {test/sh: {}, test/true: {command: ['true']}}\n")

    def write_images(self, text: str) -> None:
        (self.folder / "images.yaml").write_text(text)

    def define(self, *operators: dict[str, Any], **top: Any) -> None:
        """Write the definition, in JSON, which is YAML too."""
        whole = {"api-version": "0.4.0", "name": "test", "operators": operators, **top}
        (self.folder / "p.yaml").write_text(json.dumps(whole))

    def arguments(self, *flags: str, job: str = "job", resume: bool = False) -> list[str]:
        begin = ["--resume", job] if resume else ["--input", str(self.folder / "in"), "--job", job]
        return ["run", str(self.folder / "p.yaml"), *begin, "--data", str(self.data), *flags]

    def run(self, *flags: str, job: str = "job", resume: bool = False) -> Ran:
        return Ran(CliRunner().invoke(app, [*self.arguments(*flags, job=job, resume=resume), "--json"]))  # fmt: skip

    def file(self, path: str, job: str = "job") -> str:
        return (self.data / "payloads" / job / path).read_text()

    def record(self, job: str = "job") -> Any:
        return json.loads((self.data / "runs" / job / "run.json").read_text())

    def log(self, operator: str, job: str = "job") -> str:
        return (self.data / "runs" / job / "logs" / f"{operator}.log").read_text()


class Ran:
    """What a command printed and how it ended."""

    def __init__(self, result: Any) -> None:
        self.error = result.exception
        self.record: Any = json.loads(result.stdout) if result.stdout else None
        if not isinstance(self.error, ClaraResultsError | SystemExit | None):
            raise self.error

    def states(self) -> dict[str, str]:
        return {step["operator"]: step["state"] for step in self.record["steps"]}

    def step(self, name: str) -> dict[str, Any]:
        return next(step for step in self.record["steps"] if step["operator"] == name)

    def kept(self) -> set[str]:
        return {step["operator"] for step in self.record["steps"] if step["kept"]}


@pytest.fixture
def pipelines(tmp_path: Path) -> Pipelines:
    return Pipelines(tmp_path)


def sh(
    name: str, script: str, *sources: str, output: bool = True, variables: dict[str, str] | None = None
) -> dict[str, Any]:  # fmt: skip
    """Return an operator that runs a shell script: ``$out`` is its output, ``$in`` its first input."""
    inputs = [{"from": each, "path": f"/from/{each}"} for each in sources] or [{"path": "/input"}]
    return {
        "name": name,
        "container": {
            "image": "test/sh",
            "command": ["sh", "-euc", f"in=$1 out=$2; {script}", "sh", inputs[0]["path"], "/output"],
        },
        "input": inputs,
        "output": [{"path": "/output"}] if output else None,
        "variables": variables,
    }  # fmt: skip


def test_operators_read_what_those_before_them_wrote(pipelines: Pipelines) -> None:
    pipelines.define(
        sh("last", 'cat "$in/made" > "$out/copied"; echo done', "middle"),
        sh("first", 'cp "$in/deep/file" "$out/made"'),
        sh("middle", 'sed s/input/output/ "$in/made" > "$out/made"', "first"),
    )
    ran = pipelines.run()
    assert ran.error is None
    assert set(ran.states().values()) == {"Succeeded"}
    assert pipelines.file("input/deep/file") == "input\n"
    assert pipelines.file("last/output/copied") == "output\n"
    assert pipelines.log("last") == "done\n"
    assert (pipelines.folder / "in" / "deep" / "file").read_text() == "input\n"
    assert ran.record == pipelines.record()
    assert all(0 < step["seconds"] <= ran.record["seconds"] for step in ran.record["steps"])
    assert 0 < ran.record["platformSeconds"] <= ran.record["seconds"]


def test_an_operator_finds_the_platforms_environment(
    pipelines: Pipelines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NVIDIA_CLARA_INPUTPATHS", "another:/runs/own")
    monkeypatch.setenv("CLARA_RESULTS_INPUT_URIS", "another=one")
    monkeypatch.setenv("OF_THE_MACHINE", "yes")
    pipelines.define(
        sh("first", "true"),
        sh("second", "env", "first", variables={"OWN": "x${{x}}", "AT": "/from/first/a"}),
        parameters={"x": "y"},
    )
    assert pipelines.run("--service", "https://results.example/base").error is None
    payload = pipelines.data / "payloads" / "job"
    found = dict(line.split("=", 1) for line in pipelines.log("second").splitlines() if "=" in line)
    expected = {
        "NVIDIA_CLARA_JOBID": "job", "NVIDIA_CLARA_PAYLOADID": "job", "NVIDIA_CLARA_PIPELINEID": "test",
        "NVIDIA_CLARA_OPERATORNAME": "second",
        "NVIDIA_CLARA_INPUTPATHS": f"output:{payload}/first/output",
        "NVIDIA_CLARA_OUTPUTPATHS": f"output:{payload}/second/output",
        "CLARA_RESULTSSERVICE_SERVICE_HOST": "results.example",
        "CLARA_RESULTSSERVICE_SERVICE_PORT": "443",
        "CLARA_RESULTS_SERVICE": "https://results.example/base",
        "CLARA_RESULTS_PAYLOADS": str(pipelines.data / "payloads"),
        "OWN": "xy", "AT": f"{payload}/first/output/a", "OF_THE_MACHINE": "yes",
    }  # fmt: skip
    assert {name: found.get(name) for name in expected} == expected
    assert "CLARA_RESULTS_INPUT_URIS" not in found
    assert pipelines.run("--upload", job="other").error is None
    assert "CLARA_RESULTS_PAYLOADS" not in pipelines.log("second", job="other")


def meeting(me: str, other: str) -> str:
    """Return a script that ends only if another one runs at the same time."""
    return f'touch "$in/../{me}"; until [ -e "$in/../{other}" ]; do sleep 0.02; done'


def test_independent_operators_run_side_by_side(pipelines: Pipelines) -> None:
    pipelines.define(sh("left", meeting("left", "right")), sh("right", meeting("right", "left")))
    assert pipelines.run("--jobs", "2", "--timeout", str(PATIENCE)).error is None


def test_never_more_than_jobs_run_side_by_side(pipelines: Pipelines) -> None:
    alone = 'mkdir "$in/../busy"; sleep 0.05; rmdir "$in/../busy"'
    pipelines.define(*(sh(name, alone) for name in ("a", "b", "c")))
    assert pipelines.run("--jobs", "1").error is None


def test_after_a_failure_nothing_more_is_started_and_resume_goes_on(pipelines: Pipelines) -> None:
    pipelines.define(
        sh("reader", 'echo x >> "$out/file"'),
        sh("broken", 'echo "out of memory" >&2; [ -e "$out/../../mended" ]', "reader"),
        sh("after", 'echo y > "$out/file"', "broken"),
    )
    ran = pipelines.run("--jobs", "1")
    assert ran.states() == {"reader": "Succeeded", "broken": "Failed", "after": "Waiting"}
    assert (ran.error.code, ran.error.exit_code) == ("operator-failed", 10)
    for part in ("broken failed: ended with exit code 1", "    out of memory", "not run: after", "--resume job"):  # fmt: skip
        assert part in str(ran.error)
    (pipelines.data / "payloads" / "job" / "mended").touch()
    again = pipelines.run(resume=True)
    assert again.error is None
    assert set(again.states().values()) == {"Succeeded"}
    assert again.kept() == {"reader"}
    assert pipelines.file("reader/output/file") == "x\n"  # not made twice


def test_what_changed_is_run_again_with_all_that_reads_it_into_empty_folders(
    pipelines: Pipelines,
) -> None:
    def define(word: str) -> None:
        pipelines.define(
            sh("same", 'echo same > "$out/file"'),
            sh("changed", f'echo {word} > "$out/{word}"'),
            sh("reader", 'cat "$in"/* > "$out/all"', "changed"),
        )

    define("one")
    assert pipelines.run().error is None
    define("two")
    again = pipelines.run(resume=True)
    assert again.error is None
    assert again.kept() == {"same"}
    assert pipelines.file("reader/output/all") == "two\n"
    assert pipelines.run(resume=True).kept() == {"same", "changed", "reader"}


def test_parameters_of_a_run_hold_when_it_is_resumed(pipelines: Pipelines) -> None:
    pipelines.define(sh("a", 'echo ${{word}} > "$out/file"'), parameters={"word": "default"})
    assert pipelines.run("--set", "word=given").error is None
    assert pipelines.run(resume=True).kept() == {"a"}
    assert pipelines.file("a/output/file") == "given\n"
    assert pipelines.run("--set", "word=other", resume=True).kept() == set()
    assert pipelines.file("a/output/file") == "other\n"


def test_an_operator_whose_time_is_over_is_ended_with_all_its_children(
    pipelines: Pipelines,
) -> None:
    pipelines.write_images("images: {test/sh: {timeout: 0.5}}\n")
    pipelines.define(sh("endless", 'sleep 600 & echo $! > "$out/child"; wait'))
    ran = pipelines.run()
    assert ran.step("endless")["reason"] == "did not end within 0.5 s"
    assert ran.step("endless")["state"] == "Failed"
    child = int(pipelines.file("endless/output/child"))
    eventually(lambda: ended(child), "its child's end", PATIENCE)


def test_a_signal_that_ends_an_operator_is_told(pipelines: Pipelines) -> None:
    pipelines.define(sh("killed", "kill -KILL $$"))
    step = pipelines.run().step("killed")
    assert (step["exitCode"], step["reason"]) == (-9, "ended by signal 9 (Killed)")


def test_what_an_operator_leaves_running_is_ended_with_it(pipelines: Pipelines) -> None:
    pipelines.define(sh("parent", 'sleep 600 & echo $! > "$out/child"'))
    assert pipelines.run().error is None
    child = int(pipelines.file("parent/output/child"))
    eventually(lambda: ended(child), "its child's end", PATIENCE)


def ended(process: int) -> bool:
    """Tell whether a process is no more, or waits only for its parent to take note."""
    try:
        with open(f"/proc/{process}/stat") as file:  # noqa: PTH123
            return file.read().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_operators_and_the_run_can_go_on(
    pipelines: Pipelines, number: signal.Signals
) -> None:
    pipelines.define(
        sh("first", 'echo x > "$out/file"'),
        sh("long", 'echo $$ > "$out/me"; [ -e "$out/../../go" ] || sleep 600', "first"),
    )
    command = [sys.executable, "-m", "clara_results", "pipeline", *pipelines.arguments()]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    me = pipelines.data / "payloads" / "job" / "long" / "output" / "me"
    try:
        eventually(lambda: me.is_file() and me.read_text() != "", "the long operator", PATIENCE)
        with pytest.raises(ClaraResultsError, match="is still going on"):
            raise pipelines.run(resume=True).error  # one run of a job at a time
        operator = int(me.read_text())
        run.send_signal(number)
        out, err = run.communicate(timeout=PATIENCE)
    finally:
        run.kill()
        run.wait()
    assert run.returncode == 128 + number
    assert "long\tStopped" in out
    assert f"ended by {number.name}; --resume job" in err
    assert ended(operator)
    (pipelines.data / "payloads" / "job" / "go").touch()
    again = pipelines.run(resume=True)
    assert again.error is None
    assert again.kept() == {"first"}


def test_a_killed_run_can_go_on_once_its_operators_have_ended(pipelines: Pipelines) -> None:
    pipelines.define(sh("long", 'echo $$ > "$out/me"; [ -e "$out/../../go" ] || sleep 600'))
    command = [sys.executable, "-m", "clara_results", "pipeline", *pipelines.arguments()]
    run = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    me = pipelines.data / "payloads" / "job" / "long" / "output" / "me"
    try:
        eventually(lambda: me.is_file() and me.read_text() != "", "the long operator", PATIENCE)
    finally:
        run.kill()
        run.wait()
    orphan = int(me.read_text())
    (pipelines.data / "payloads" / "job" / "go").touch()
    try:
        assert pipelines.run(resume=True).error.code == "run-active"
    finally:
        os.killpg(orphan, signal.SIGKILL)
    eventually(lambda: ended(orphan), "the orphan's end", PATIENCE)
    assert pipelines.run(resume=True).states() == {"long": "Succeeded"}


def paths(folder: Path) -> Iterable[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_what_cannot_begin_leaves_nothing_behind(pipelines: Pipelines) -> None:
    pipelines.define(sh("a", "true"))
    (pipelines.folder / "in" / "link").symlink_to("nowhere")
    assert "link can't be copied" in str(pipelines.run().error)
    (pipelines.folder / "in" / "link").unlink()
    (pipelines.folder / "in" / "deep" / "file").unlink()
    assert pipelines.run().error.code == "no-files"
    (pipelines.data / "payloads" / "job").mkdir()
    (pipelines.folder / "in" / "file").touch()
    assert pipelines.run().error.code == "payload-exists"
    assert "there is no such folder" in str(pipelines.run("--input", "/no/such").error)
    assert set(paths(pipelines.data)) == {"runs", "payloads", "payloads/job"}


def test_refusals_say_what_to_do(pipelines: Pipelines) -> None:
    pipelines.define(sh("a", "true"))
    assert pipelines.run().error is None
    for refused, part in (
        (pipelines.run(), "there is a run of the job job already: --resume job"),
        (pipelines.run(job="other", resume=True), "there is no run of a job other"),
        (pipelines.run("--job", "x", resume=True), "--resume, which names the job itself"),
        (pipelines.run("--resume", "job"), "give either --input"),
        (pipelines.run(job="../x"), "that is not a payload id"),
        (pipelines.run("--images", "none.yaml", job="new"), "none.yaml can't be read"),
    ):
        assert part in str(refused.error)
    pipelines.define({"name": "a"})
    faulty = pipelines.run(job="new")
    assert faulty.error.code == "invalid-pipeline"
    assert "p.yaml:1:" in str(faulty.error)
    assert not (pipelines.data / "payloads" / "new").exists()


def test_an_operator_that_cannot_be_started_has_failed(pipelines: Pipelines) -> None:
    program = pipelines.folder / "program"
    program.write_text("#!/no/such/interpreter\n")
    program.chmod(0o755)
    pipelines.write_images("images: {test/program: {command: [./program]}}\n")
    pipelines.define({"name": "a", "container": {"image": "test/program"}})
    step = pipelines.run().step("a")
    assert step["state"] == "Failed"
    assert "can't be started: " in step["reason"]
    assert "No such file" in step["reason"]


def test_a_run_whose_record_cannot_be_written_ends_all_operators(pipelines: Pipelines) -> None:
    pipelines.define(
        sh("long", 'echo $$ > "$out/../../me"; exec sleep 600'),
        sh("other", 'until [ -s "$in/../me" ]; do sleep 0.05; done; rm -r "$in/../../../runs"'),
    )
    ran = pipelines.run("--jobs", "2")
    assert ran.error.code == "record-unwritable"
    assert "/runs/job: " in str(ran.error)
    eventually(lambda: ended(int(pipelines.file("me"))), "the long operator's end", PATIENCE)


def test_a_terminal_shows_each_operator_with_the_last_line_of_its_log(pipelines: Pipelines) -> None:
    pipelines.define(sh("slow", 'echo "reading 7 of 9"; until [ -e "$out/../../go" ]; do sleep 0.05; done'))  # fmt: skip
    command = [sys.executable, "-m", "clara_results", "pipeline", *pipelines.arguments()]
    ours, theirs = pty.openpty()
    run = subprocess.Popen(command, stdout=theirs, stderr=theirs, env={**os.environ, "TERM": "xterm", "COLUMNS": "100"})  # fmt: skip
    os.close(theirs)
    shown = b""
    try:
        with contextlib.suppress(OSError):  # the terminal's end
            while piece := os.read(ours, 4096):
                shown += piece
                if b"reading 7 of 9" in shown:
                    (pipelines.data / "payloads" / "job" / "go").touch()
        assert run.wait(PATIENCE) == 0
    finally:
        run.kill()
        run.wait()
        os.close(ours)
    assert b"reading 7 of 9" in shown
    assert b"1 of 1 operators ran" in shown


def test_without_the_extra_a_person_is_told_what_to_install() -> None:
    script = "import sys; sys.modules['ruamel'] = None; from clara_results.cli.app import run; sys.exit(run(['pipeline', 'check', 'x']))"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=PATIENCE, check=False)  # fmt: skip
    assert ended.returncode == 2
    assert "install clara-results[pipeline]" in ended.stderr


def test_an_output_that_stays_empty_is_noted(pipelines: Pipelines) -> None:
    pipelines.define(sh("a", "true"))
    assert pipelines.run().step("a")["note"] == "wrote nothing into output"


def test_a_run_that_registers_asks_first_whether_the_service_answers(
    pipelines: Pipelines, free_port: Any
) -> None:
    pipelines.define({
        "name": "register",
        "container": {"image": "test/sh", "command": ["python", "register.py", "--agent", "A"]},
        "input": [{"path": "/input"}],
    })  # fmt: skip
    ran = pipelines.run("--service", f"http://127.0.0.1:{free_port()}")
    assert ran.error.code == "service-unavailable"
    assert not pipelines.data.exists()
