"""Measure how fast results reach a DICOM receiver, beside dcmsend, storescu and pynetdicom's storescu, in one run.

It makes files, starts each receiver as a process of its own, has everyone send the same files, one sender after the
other, round after round, and prints medians. It ends all that it started.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from benchmarks.dicom import files, receivers
from benchmarks.dicom.files import Series
from benchmarks.dicom.senders import Bare, OurDestination, Ours, Program, Sender
from benchmarks.queue.__main__ import table
from benchmarks.queue.conditions import conditions, report, working_folder
from benchmarks.queue.errors import BenchmarkFailed
from benchmarks.queue.servers import program

COUNTS = {"CT": 300, "MF": 1, "SR": 1000}
PART = {"CT": 60, "MF": 1, "SR": 100}
"""Files that are sent to receivers as they are shipped: each instance costs the other senders 44 or 88 ms there."""
PEERS = ("dcmsend", "storescu", "pynetdicom")
ASSOCIATIONS = (1, 2, 4)

Figures = dict[str, list[float]]


def measure(
    receiver: receivers.Receiver, senders: Sequence[Sender], series: Series, rounds: int
) -> Figures:
    """Have all senders send a series, once to warm up and then round by round; return the seconds of each."""
    found: Figures = defaultdict(list)
    for turn in range(rounds + 1):
        for sender in [*senders[turn % len(senders) :], *senders[: turn % len(senders)]]:
            series.renew()
            seconds = sender.send(series, receiver)
            receiver.check(len(series.paths))
            if turn:
                found[sender.name].append(seconds)
    return found


def tabled(kind: str, count: int, size: int, found: Figures, base: str) -> str:
    """Return a table of one series at one receiver."""
    rows = []
    basis = median(found[base])
    for name, values in found.items():
        middle = median(values)
        rows.append(
            [
                name,
                f"**{middle:.3f}** ({min(values):.3f} to {max(values):.3f})",
                f"{count / middle:,.0f}",
                f"{size / middle / 1e6:,.0f}",
                f"{basis / middle:.2f}",
            ]
        )
    head = [f"{count} {kind}" if count > 1 else kind, "s", "instances/s", "MB/s", f"times {base}"]
    return table(head, rows)


def at_receiver(
    kind: str, arguments: argparse.Namespace, ours: Ours, series: dict[str, Series]
) -> list[str]:
    """Measure everyone at one receiver; return its tables."""
    shown = [f"### {receivers.NAMES[kind]}"]
    with ExitStack() as running:
        receiver = receivers.start(kind, arguments.work / kind, running)
        senders: list[Sender] = [
            OurDestination(ours, receiver, number) for number in arguments.associations
        ]
        senders += [Bare(number) for number in arguments.associations] if kind == "sink" else [Program(name) for name in arguments.peers]  # fmt: skip
        base = f"bare sender, {max(arguments.associations)}" if kind == "sink" else arguments.peers[0]  # fmt: skip
        for name, one in series.items():
            begin = time.monotonic()
            found = measure(receiver, senders, one, arguments.rounds)
            shown.append(tabled(name, len(one.paths), one.size, found, base))
            took = time.monotonic() - begin
            print(f"{kind}, {name}: {took:.0f} s\n{shown[-1]}\n", file=sys.stderr)
    return shown


def versions() -> dict[str, str]:
    """Return the versions of what is measured beside us."""
    found = {}
    for name in ("dcmsend", "Orthanc"):
        said = subprocess.run(
            [program(name), "--version"], capture_output=True, text=True, check=False
        ).stdout
        found[{"dcmsend": "DCMTK"}.get(name, name)] = " ".join(said.split()[:4])
    return found


def main() -> int:
    """Run the benchmark; return the process's exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dicom", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="rounds that count (default 5)")
    parser.add_argument("--only", nargs="+", choices=receivers.KINDS, default=list(receivers.KINDS), metavar="RECEIVER", help=f"which receivers, of: {', '.join(receivers.KINDS)} (default all)")  # fmt: skip
    parser.add_argument("--series", nargs="+", choices=list(COUNTS), default=list(COUNTS), help="which files (default all)")  # fmt: skip
    parser.add_argument("--associations", nargs="+", type=int, default=list(ASSOCIATIONS), help="how many of ours (default 1 2 4)")  # fmt: skip
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS), help="beside whom; the first is the measure (default all)")  # fmt: skip
    parser.add_argument("--scale", type=int, default=1, help="times as many files, for the steady state (default 1)")  # fmt: skip
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="folder on the disk to measure (default the system's for temporary files)")  # fmt: skip
    arguments = parser.parse_args()
    try:
        with working_folder(arguments.folder) as folder, ExitStack() as running:
            arguments.work = folder
            told = conditions(arguments.work, versions(), ("clara-results", "pydicom", "pynetdicom"))  # fmt: skip
            ours = Ours(arguments.work / "ours", running)
            whole, part = {}, {}
            for kind in arguments.series:
                count = COUNTS[kind] * (1 if kind == "MF" else arguments.scale)
                whole[kind] = files.make(kind, count, ours.payloads / kind.lower())
                part[kind] = whole[kind].first(PART[kind], ours.payloads / f"{kind.lower()}-part")
            shown = []
            for kind in arguments.only:
                shown += at_receiver(kind, arguments, ours, part if kind.endswith("-shipped") else whole)  # fmt: skip
    except BenchmarkFailed as failed:
        print(f"error: {failed}", file=sys.stderr)
        return 1
    rounds = f"{arguments.rounds}; medians (least to most)"
    report(told, rounds, shown)
    return 0


if __name__ == "__main__":
    sys.exit(main())
