"""``make demo``: to its good end, without tools, out of time, interrupted."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ALL = "Every receiver holds all 62 instances, by its own account"


class Demo:
    """A running demo whose temporary files lie in a folder of the test's own."""

    def __init__(self, folder: Path, *arguments: str, path: str | None = None) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-m", "examples.demo", *arguments],
            cwd=ROOT,
            env={
                **os.environ,
                "TMPDIR": str(folder),
                "PATH": path or os.environ["PATH"] + ":/usr/sbin",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def said_until(self, words: str) -> str:
        """Return what it prints up to a line with these words."""
        assert self.process.stdout is not None
        said = ""
        for line in self.process.stdout:
            said += line
            if words in line:
                return said
        raise AssertionError(f"it never said {words!r}, but:\n{said}")

    def ended(self) -> tuple[int, str]:
        """Return its exit code and what it printed."""
        said, _ = self.process.communicate(timeout=110)
        return self.process.returncode, said

    def left(self) -> list[str]:
        """Return what is left of it: files, and processes that know its folder."""
        processes = []
        for command in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                line = command.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except (FileNotFoundError, ProcessLookupError):
                continue  # ended meanwhile
            if str(self.folder) in line:
                processes.append(line)
        return processes + [str(path) for path in self.folder.iterdir()]


@pytest.fixture
def demo() -> Iterator[Callable[..., Demo]]:
    """Give a function that starts a demo; nothing of it may be left at the end."""
    started: list[Demo] = []
    with tempfile.TemporaryDirectory(prefix="demo-test-") as folder:

        def start(*arguments: str, path: str | None = None) -> Demo:
            started.append(Demo(Path(folder), *arguments, path=path))
            return started[-1]

        try:
            yield start
        finally:
            for one in started:
                if one.process.poll() is None:
                    os.killpg(one.process.pid, signal.SIGTERM)
                    one.process.communicate(timeout=60)


def test_every_receiver_has_everything(
    demo: Callable[..., Demo], require_tool: Callable[[str], str]
) -> None:
    require_tool("Orthanc")
    require_tool("dcmqrscp")
    running = demo()

    code, said = running.ended()

    assert code == 0, said
    assert ALL in said
    assert "stands in" not in said
    for name, program in {
        "Orthanc": "Orthanc",
        "DCM4CHEE": "DCMTK dcmqrscp",
        "ImageViewer1": "our own receiver",
    }.items():
        assert re.search(rf"^  {name} +{program}, AE title", said, re.MULTILINE), said
        assert re.search(
            rf"^  {name} +Succeeded +62 of 62 delivered, receiver holds 62$", said, re.MULTILINE
        ), said
    assert running.left() == []


def test_without_tools_our_own_receiver_stands_in(demo: Callable[..., Demo]) -> None:
    running = demo(path="/nowhere")

    code, said = running.ended()

    assert code == 0, said
    assert ALL in said
    assert "Orthanc is not installed: our own receiver stands in as Orthanc" in said
    assert "dcmqrscp is not installed: our own receiver stands in as DCM4CHEE" in said
    assert running.left() == []


def test_out_of_time_it_says_what_it_waited_for(demo: Callable[..., Demo]) -> None:
    running = demo("--timeout", "0.1", path="/nowhere")

    code, said = running.ended()

    assert code == 1, said
    assert "The demo failed: " in said
    assert "not within the demo's 0.1 s" in said
    assert running.left() == []


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupted_it_leaves_nothing(demo: Callable[..., Demo], sent: signal.Signals) -> None:
    running = demo(path="/nowhere")
    running.said_until("starting the Results Service")
    deadline = time.monotonic() + 20
    while not any("clara-results up" in line for line in running.left()):
        assert time.monotonic() < deadline
        time.sleep(0.02)

    running.process.send_signal(sent)

    code, said = running.ended()
    assert code == 130, said
    assert "interrupted" in said
    assert running.left() == []
