"""Measure the queue beside RabbitMQ's quorum queue and procrastinate, in one run.

In a temporary folder it starts each server as a process of its own, has 8 clients in 2 processes register tasks of 500
bytes, claim and report them, phase by phase and all at once, and prints medians over the rounds, what each task
costs in CPU time, and how long a registered task takes to reach a waiting agent. Rounds alternate between what is
measured. It ends all that it started.
"""

import argparse
import asyncio
import resource
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from benchmarks.queue import load
from benchmarks.queue.clients import Procrastinate, QuorumQueue, Target, waiting_messages
from benchmarks.queue.conditions import busy_seconds, conditions, report, working_folder
from benchmarks.queue.errors import BenchmarkFailed
from benchmarks.queue.servers import Postgres, RabbitMQ, Service, cpu_seconds
from clara_results.client import ResultsClient
from clara_results.wire.destinations import Destination

SIZE = 10
"""Tasks that a client claims at once; RabbitMQ's prefetch."""
WARM_UP = 200
"""Tasks of the round that shows how fast each is, and is not counted."""
LARGEST = 50_000
PACE = 100.0
"""Tasks a second while latency is measured."""
PACKAGES = ("clara-results", "uvicorn", "psycopg", "aio-pika", "procrastinate", "uvloop")
KINDS = ("sqlite", "postgresql", "replicas", "rabbitmq", "procrastinate")
REGISTER, WORK, WORK_1, CYCLE, CYCLE_1 = PHASES = (
    "register",
    f"claim+report, {SIZE} at once",
    "claim+report, 1 at once",
    f"cycles, {SIZE} at once",
    "cycles, 1 at once",
)


@dataclass(frozen=True, slots=True)
class Figures:
    """What one phase of one round came to.

    Attributes:
        rate: Tasks a second.
        servers: Milliseconds of CPU that a task took of each server, by the server's name.
        clients: The same of the clients.
        cores: How many CPUs the clients kept busy.
        others: How many CPUs were busy with something else.
    """

    rate: float
    servers: dict[str, float]
    clients: float
    cores: float
    others: float


@dataclass
class Contender:
    """Something that is measured.

    Attributes:
        name: As it is printed.
        target: Where its clients go.
        processes: Its servers' processes by name.
        pace: Tasks a second by phase, as seen last.
        figures: What was measured by phase.
    """

    name: str
    target: Target
    processes: list[tuple[str, int]]
    pace: dict[str, float] = field(default_factory=dict)
    figures: dict[str, list[Figures]] = field(default_factory=lambda: defaultdict(list))

    def run(self, phase: str, roles: Callable[[int], list[load.Role]], tasks: int) -> Figures:
        """Run one phase."""
        before = [cpu_seconds(pid) for _, pid in self.processes]
        begin, busy, children = time.monotonic(), busy_seconds(), _children_seconds()
        measured = load.run(self.target, roles(tasks), tasks)
        whole, busy = time.monotonic() - begin, busy_seconds() - busy
        used: dict[str, float] = defaultdict(float)
        for (name, pid), earlier in zip(self.processes, before, strict=True):
            used[name] += cpu_seconds(pid) - earlier
        self.pace[phase] = measured.rate
        return Figures(
            rate=measured.rate,
            servers={name: seconds / tasks * 1000 for name, seconds in used.items()},
            clients=measured.client_cpu / tasks * 1000,
            cores=measured.client_cpu / measured.seconds,
            others=max(0.0, busy - sum(used.values()) - _children_seconds() + children) / whole,
        )

    def round(self, seconds: float) -> dict[str, list[Figures]]:
        """Run all phases, each with as many tasks as it does in ``seconds``."""

        def number(phase: str) -> int:
            wanted = int(self.pace.get(phase, 0.0) * seconds)
            return min(max(wanted, WARM_UP), LARGEST) // load.CLIENTS * load.CLIENTS

        found: dict[str, list[Figures]] = {}
        for phase, size in ((WORK, SIZE), (WORK_1, 1)):
            tasks = number(REGISTER)
            found.setdefault(REGISTER, []).append(self.run(REGISTER, load.registering, tasks))
            found[phase] = [self.run(phase, lambda _, size=size: load.working(size), tasks)]  # type: ignore[misc]
        for phase, size in ((CYCLE, SIZE), (CYCLE_1, 1)):
            found[phase] = [
                self.run(phase, lambda tasks, size=size: load.cycling(tasks, size), number(phase))  # type: ignore[misc]
            ]
        return found


def _children_seconds() -> float:
    """Return the CPU seconds of all processes of ours that have ended: the clients, start included."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def open_contenders(
    kinds: Sequence[str], folder: Path, running: ExitStack
) -> tuple[list[Contender], dict[str, str]]:
    """Start all servers; return what is measured, and the servers' versions."""
    found: list[Contender] = []
    versions: dict[str, str] = {}
    if "sqlite" in kinds:
        service = Service(folder / "sqlite", running)
        processes = [("service", service.pid)]
        found.append(Contender("SQLite", Target("http", (service.url,)), processes))
        found.append(Contender("SQLite, limited", _limited(service.url), processes))
    if {"postgresql", "replicas", "procrastinate"} & {*kinds}:
        postgres = Postgres(folder / "postgresql", running)
        versions["PostgreSQL"] = postgres.settings()
        found += _on_postgres(kinds, postgres, folder, running)
    if "rabbitmq" in kinds:
        rabbit = RabbitMQ(folder / "rabbitmq", running)
        asyncio.run(QuorumQueue(rabbit.url).prepare())
        versions["RabbitMQ"] = rabbit.version()
        processes = [("server", rabbit.pid)]
        found.append(Contender("RabbitMQ quorum", Target("amqp", (rabbit.url,)), processes))
    return found, versions


def _on_postgres(
    kinds: Sequence[str], postgres: Postgres, folder: Path, running: ExitStack
) -> list[Contender]:
    found: list[Contender] = []
    database = [("database", postgres.pid)]
    if "postgresql" in kinds:
        service = Service(folder / "one", running, postgres.new_database("one"))
        processes = [("service", service.pid), *database]
        found.append(Contender("PostgreSQL", Target("http", (service.url,)), processes))
        found.append(Contender("PostgreSQL, limited", _limited(service.url), processes))
    if "replicas" in kinds:
        url = postgres.new_database("three")
        replicas = [Service(folder / "three", running, url) for _ in range(3)]
        processes = [("service", each.pid) for each in replicas] + database
        target = Target("http", tuple(each.url for each in replicas))
        found.append(Contender("PostgreSQL, 3 replicas", target, processes))
    if "procrastinate" in kinds:
        url = postgres.new_database("procrastinate")
        asyncio.run(Procrastinate(url).prepare())
        found.append(Contender("procrastinate", Target("procrastinate", (url,)), database))
    return found


def _limited(url: str) -> Target:
    """Set a destination up, whose limit claims must keep; return the target whose tasks name it."""
    limited = Destination(
        name="receiver", ae_title="RECEIVER", host="127.0.0.1", port=104, max_associations=1000
    )
    ResultsClient(url).add_destination(limited)
    return Target("http", (url,), limited.name)


def measure(contenders: list[Contender], rounds: int, seconds: float) -> None:
    """Run a round that warms up, and those that count; each begins with another contender."""
    for turn in range(rounds + 1):
        for contender in contenders[turn % len(contenders) :] + contenders[: turn % len(contenders)]:  # fmt: skip
            found = contender.round(seconds if turn else 0.0)
            if turn:
                for phase, figures in found.items():
                    contender.figures[phase] += figures
            if contender.target.kind == "amqp":
                left = asyncio.run(waiting_messages(contender.target.urls[0]))
                if left:
                    raise BenchmarkFailed(f"RabbitMQ still holds {left} messages")
            told = ", ".join(f"{phase} {contender.pace[phase]:.0f}/s" for phase in PHASES)
            print(f"round {turn or 'of warming up'}: {contender.name}: {told}", file=sys.stderr)


def rates(contenders: list[Contender]) -> str:
    """Return a table of tasks a second: medians, least and most."""

    def cell(figures: list[Figures]) -> str:
        values = [one.rate for one in figures]
        return f"**{median(values):,.0f}** ({min(values):,.0f} to {max(values):,.0f})"

    rows = [[one.name, *[cell(one.figures[phase]) for phase in PHASES]] for one in contenders]
    return table(["tasks/s", *PHASES], rows)


def costs(contenders: list[Contender]) -> str:
    """Return a table of the CPU time that a task costs: medians."""

    def cell(figures: list[Figures]) -> str:
        servers = [
            f"{name} {median(one.servers[name] for one in figures):.2f}"
            for name in figures[0].servers
        ]
        return ", ".join([*servers, f"clients {median(one.clients for one in figures):.2f}"])

    def load_cell(figures: list[Figures]) -> str:
        clients, others = (
            median(one.cores for one in figures),
            median(one.others for one in figures),
        )
        return f"{clients:.2f}, {others:.2f}"

    shown = (REGISTER, WORK, CYCLE, CYCLE_1)
    rows = [
        [one.name, *[cell(one.figures[phase]) for phase in shown], load_cell(one.figures[CYCLE])]
        for one in contenders
    ]
    return table(["CPU ms a task", *shown, "CPUs busy with clients, with others (cycles)"], rows)


def latencies(contenders: list[Contender], seconds: float) -> str:
    """Measure and return a table of the time from registering to a waiting agent's claim."""
    rows = []
    for contender in contenders:
        found = load.paced(contender.target, PACE, seconds, SIZE)
        values = [found[len(found) // 2], found[int(len(found) * 0.99)], found[-1]]
        rows.append([contender.name, *[f"{value * 1000:.1f}" for value in values]])
        print(f"latency: {', '.join(rows[-1])}", file=sys.stderr)
    return table([f"ms, at {PACE:.0f} tasks/s", "p50", "p99", "most"], rows)


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> int:
    """Run the benchmark; return the process's exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.queue", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="rounds that count (default 5)")
    parser.add_argument("--seconds", type=float, default=3.0, help="about so long takes a phase of a round (default 3)")  # fmt: skip
    parser.add_argument("--latency", type=float, default=30.0, help="seconds for which latency is measured; 0: not at all (default 30)")  # fmt: skip
    parser.add_argument("--only", nargs="+", choices=KINDS, default=list(KINDS), metavar="KIND", help=f"what to measure, of: {', '.join(KINDS)} (default all)")  # fmt: skip
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="folder on the disk to measure (default the system's for temporary files)")  # fmt: skip
    arguments = parser.parse_args()
    try:
        with working_folder(arguments.folder) as folder, ExitStack() as running:
            folder.chmod(0o755)  # PostgreSQL, which does not run as root, looks into it
            contenders, versions = open_contenders(arguments.only, folder, running)
            told = conditions(folder, versions, PACKAGES)
            measure(contenders, arguments.rounds, arguments.seconds)
            tables = [rates(contenders), costs(contenders)]
            if arguments.latency:
                tables.append(latencies(contenders, arguments.latency))
    except BenchmarkFailed as failed:
        print(f"error: {failed}", file=sys.stderr)
        return 1
    rounds = f"{arguments.rounds} of about {arguments.seconds:g} s a phase; medians (least to most)"
    report(told, rounds, tables)
    return 0


if __name__ == "__main__":
    sys.exit(main())
