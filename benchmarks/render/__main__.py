"""Measure how long a CT takes until it can be looked at, and how much memory, beside SimpleITK's own ``.nii.gz``.

It makes a volume, starts a service and a render agent, has both the agent and SimpleITK alone work on the same files in turn,
round after round, and prints medians. It ends all that it started.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.queue.conditions import ROOT, conditions, report, working_folder
from benchmarks.queue.errors import BenchmarkFailed
from benchmarks.queue.servers import Process, Service, processes_of
from benchmarks.render import phantom
from clara_results.client import ResultsClient
from clara_results.domain.tasks import State
from clara_results.wire.tasks import Registration

LIMIT = 300.0
PAUSE = 0.05
FORMS = {"MHD": "ct.mhd", "MHD and labels": "ct.mhd", "DICOM series": ""}
"""What is registered, and what SimpleITK reads of it."""


@dataclass(slots=True)
class Found:
    """What was measured of one form: seconds and kilobytes of each round, ours and SimpleITK's."""

    ours: list[float] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)
    peer: list[float] = field(default_factory=list)
    peer_memory: list[int] = field(default_factory=list)


class Ours:
    """A service, and a render agent that is started anew for each dataset."""

    def __init__(self, folder: Path, running: ExitStack) -> None:
        """Start the service."""
        service = Service(folder, running)
        self._folder = folder
        self._url = service.url
        self.payloads = folder / "payloads"
        self._client = ResultsClient(service.url)

    def publish(self, payload: str) -> tuple[float, int]:
        """Have a payload published by a fresh agent; return seconds from its claim, and kilobytes at most.

        Raises:
            BenchmarkFailed: It was not.
        """
        root = self.payloads / payload
        uris = sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())
        with ExitStack() as running:
            agent = Process(
                [sys.executable, "-m", "clara_results", "agent", "render"],
                self._folder / "agent.log",
                {
                    "CLARA_RESULTS_SERVICE": self._url,
                    "CLARA_RESULTS_PAYLOADS": str(self.payloads),
                    "CLARA_RESULTS_LOG_LEVEL": "warning",
                },
            )
            running.callback(agent.stop)
            body = Registration(
                agent="renderserver", job_id=uuid.uuid4().hex, pipeline_id="benchmark",
                payload_id=payload, uris=uris,
            )  # fmt: skip
            (task,) = self._client.register(body).tasks
            deadline = time.monotonic() + LIMIT
            while not task.state.finished and time.monotonic() < deadline:
                time.sleep(PAUSE)
                task = self._client.task(task.task_id)
            memory = sum(map(_peak, processes_of(agent.pid)))
        attempts = task.attempts or []
        if task.state != State.SUCCEEDED or len(attempts) != 1 or attempts[0].ended_at is None:
            raise BenchmarkFailed(f"the task ended as {task.state}: {task.last_error}")
        for made in self._client.datasets(taskId=task.task_id).items:
            self._client.remove_dataset(made.dataset_id)
        return (attempts[0].ended_at - attempts[0].claimed_at).total_seconds(), memory


def simpleitk(source: Path, target: Path) -> tuple[float, int]:
    """Have SimpleITK alone write a volume; return its seconds and kilobytes."""
    command = [sys.executable, "-m", "benchmarks.render.peer", str(source), str(target)]
    ended = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    seconds, kilobytes = ended.stdout.split()
    return float(seconds), int(kilobytes)


def measure(work: Path, size: tuple[int, int, int], rounds: int) -> dict[str, Found]:
    """Measure all forms."""
    found = {form: Found() for form in FORMS}
    with ExitStack() as running:
        ours = Ours(work / "ours", running)
        values, labels = phantom.volume(size)
        for number, form in enumerate(FORMS):
            payload = ours.payloads / f"form-{number}"
            if form == "DICOM series":
                phantom.write_series(values, payload)
            else:
                phantom.write_metaimage(values, payload / "ct.mhd")
            if "labels" in form:
                phantom.write_metaimage(labels, payload / "ct.output.mhd")
        for _ in range(rounds):
            for number, (form, source) in enumerate(FORMS.items()):
                seconds, kilobytes = ours.publish(f"form-{number}")
                found[form].ours.append(seconds)
                found[form].memory.append(kilobytes)
                payload = ours.payloads / f"form-{number}"
                seconds, kilobytes = simpleitk(payload / source, work / "peer.nii.gz")
                found[form].peer.append(seconds)
                found[form].peer_memory.append(kilobytes)
    return found


def tabled(found: dict[str, Found]) -> str:
    """Return what was found as a Markdown table."""
    lines = [
        "| | published, s | memory, MB | SimpleITK alone, s | memory, MB |",
        "| --- | --- | --- | --- | --- |",
    ]
    for form, one in found.items():
        ours, peer = _spread(one.ours), _spread(one.peer)
        memory, others = max(one.memory) / 1024, max(one.peer_memory) / 1024
        lines.append(f"| {form} | {ours} | {memory:.0f} | {peer} | {others:.0f} |")
    return "\n".join(lines)


def _spread(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.1f} ({min(seconds):.1f} to {max(seconds):.1f})"


def _peak(process: int) -> int:
    """Return the kilobytes that a process had at most; of one that has ended 0."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")), 0)  # fmt: skip


def main() -> int:
    """Run the benchmark; return the process's exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.render", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="rounds (default 3)")
    parser.add_argument("--size", type=int, nargs=3, default=(512, 512, 300), help="voxels (default 512 512 300)")  # fmt: skip
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="folder on the disk to measure (default the system's for temporary files)")  # fmt: skip
    arguments = parser.parse_args()
    try:
        with working_folder(arguments.folder) as folder:
            told = conditions(folder, {}, ("clara-results", "simpleitk", "isal", "numpy"))
            found = measure(folder, tuple(arguments.size), arguments.rounds)
    except BenchmarkFailed as failed:
        print(f"error: {failed}", file=sys.stderr)
        return 1
    size = " x ".join(map(str, arguments.size))
    report(told, f"{arguments.rounds} of {size} voxels; medians (least to most)", [tabled(found)])
    return 0


if __name__ == "__main__":
    sys.exit(main())
