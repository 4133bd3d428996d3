"""Measure what a pipeline's steps cost beside their own time: 20 operators that do nothing, beside GNU make.

Once each operator reads from the one before, once none reads from another. make runs the same number of recipes, each with
a log of its own, as ours have. Everyone runs round after round; medians are printed, with the least and the most.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.queue.conditions import conditions, report, working_folder
from benchmarks.queue.errors import BenchmarkFailed

STEPS = 20
JOBS = 2
LIMIT = 120.0


def write_pipeline(folder: Path, *, chain: bool) -> Path:
    """Write a definition of operators that run ``true``, its images and its input; return the definition's path."""
    operators = [
        {
            "name": f"step-{number}",
            "container": {"image": "bench/true"},
            "input": [{"from": f"step-{number - 1}" if chain and number else None, "path": "/input"}],
            "output": [{"path": "/output"}],
        }
        for number in range(STEPS)
    ]  # fmt: skip
    definition = folder / "pipeline.yaml"
    definition.write_text(
        json.dumps({"api-version": "0.4.0", "name": "bench", "operators": operators})
    )
    (folder / "images.yaml").write_text('images: {bench/true: {command: ["true"]}}\n')
    (folder / "input").mkdir()
    (folder / "input" / "file").touch()
    return definition


def write_makefile(folder: Path, *, chain: bool) -> None:
    """Write a Makefile of as many targets."""
    rules = [f"all: {' '.join(f'step-{number}' for number in range(STEPS))}"]
    for number in range(STEPS):
        before = f" step-{number - 1}" if chain and number else ""
        rules.append(f"step-{number}:{before}\n\t@true > $@.log 2>&1")
    (folder / "Makefile").write_text("\n".join(rules) + "\n")


class Ours:
    """``clara-results pipeline run``."""

    def __init__(self, folder: Path, *, chain: bool) -> None:
        """Write what is run."""
        folder.mkdir()
        self._definition = write_pipeline(folder, chain=chain)
        self._folder = folder
        self._round = 0

    def run(self) -> tuple[float, float]:
        """Return the seconds of the whole command, and of the run that it tells of itself."""
        self._round += 1
        command = [
            sys.executable, "-m", "clara_results", "pipeline", "run", str(self._definition), "--input",
            str(self._folder / "input"), "--data", str(self._folder / "data"), "--job", f"job-{self._round}",
            "--jobs", str(JOBS), "--json",
        ]  # fmt: skip
        whole, told = timed(command)
        return whole, float(json.loads(told)["seconds"])


class Make:
    """GNU make."""

    def __init__(self, folder: Path, *, chain: bool) -> None:
        """Write what is run."""
        folder.mkdir()
        write_makefile(folder, chain=chain)
        self._folder = folder

    def run(self) -> tuple[float, float]:
        """Return the seconds of the whole command, twice."""
        whole, _ = timed(["make", "-C", str(self._folder), "-j", str(JOBS), "-s"])
        return whole, whole


def timed(command: list[str]) -> tuple[float, str]:
    """Run a command; return its seconds and what it printed."""
    begin = time.perf_counter()
    ended = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=False)
    seconds = time.perf_counter() - begin
    if ended.returncode != 0:
        raise BenchmarkFailed(f"{command[0]} failed: {ended.stderr[-500:]}")
    return seconds, ended.stdout


def measure(runs: dict[str, Callable[[], tuple[float, float]]], rounds: int) -> str:
    """Run everyone, round after round; return a table."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for number in range(rounds):
        for name in (list(runs), list(runs)[::-1])[number % 2]:
            found[name].append(runs[name]())
    lines = ["| what | a step, ms | the whole command, ms |", "| --- | ---: | ---: |"]
    for name, times in found.items():
        step = spread([inner / STEPS for _, inner in times])
        lines.append(f"| {name} | {step} | {spread([whole for whole, _ in times])} |")
    return "\n".join(lines)


def spread(seconds: list[float]) -> str:
    """Return a median with the least and the most, in milliseconds."""
    ordered = sorted(value * 1000 for value in seconds)
    return f"{statistics.median(ordered):.1f} ({ordered[0]:.1f} to {ordered[-1]:.1f})"


def main() -> int:
    """Run the benchmark; return the exit code."""
    parser = argparse.ArgumentParser(prog="benchmarks.pipeline", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--folder", type=Path, default=Path("/tmp"), help="on which disk")  # noqa: S108
    arguments = parser.parse_args()
    if shutil.which("make") is None:
        raise BenchmarkFailed("make is not installed")
    with working_folder(arguments.folder) as work:
        told = conditions(work, {}, ["clara-results"])
        runs = {}
        for shape, chain in (("one after the other", True), ("side by side", False)):
            runs[f"clara-results pipeline run, {shape}"] = Ours(work / f"ours-{chain}", chain=chain).run  # fmt: skip
            runs[f"make, {shape}"] = Make(work / f"make-{chain}", chain=chain).run
        table = measure(runs, arguments.rounds)
    report(told, f"{arguments.rounds}; median (least to most)", [f"{STEPS} operators that run `true`, --jobs {JOBS}:\n\n{table}"])  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
