"""What Prometheus is told: docs/monitoring.md has each metric's meaning.

Two kinds. *Counted here*: what this process did; over replicas they add up. *Asked of the database*: how the work
stands for all replicas alike; each replica says the same, so they do not add up.

Labels are bounded: a destination appears by its configured name (``(other)`` where no such one is configured: what a
task names may be any text), an agent by its name as long as there are not too many of them. Never a job, a task or a file.
"""

import platform
import shutil
import threading
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import prometheus_client as prometheus
import sqlalchemy as sa
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.registry import Collector, CollectorRegistry

from clara_results import __version__
from clara_results.domain.happenings import FileHappening, Happening
from clara_results.domain.tasks import State
from clara_results.store import standing as store

PREFIX = "clara_results_"
MEDIA_TYPE = CONTENT_TYPE_PLAIN_0_0_4
OTHER = "(other)"
AGENT_LIMIT = 100
"""Agents that have a label of their own."""
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"})
OPERATION_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60)
REQUEST_BUCKETS = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
DELIVERY_BUCKETS = (0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 14_400, 86_400)

prometheus.disable_created_metrics()  # type: ignore[no-untyped-call]  # they would double the series


@dataclass(frozen=True, slots=True)
class Lane:
    """An agent's tasks for one destination.

    Attributes:
        agent: Its name.
        destination: Its destination's key.
        pending: Tasks that wait.
        due_at: When the first of them is or was due; None: there is none.
        failed: Dead letters.
        in_progress: Tasks that an agent holds.
        awaiting_commitment: Tasks whose receiver is to commit itself to keep what it was sent.
    """

    agent: str
    destination: str
    pending: int
    due_at: datetime | None
    failed: int
    in_progress: int
    awaiting_commitment: int


@dataclass(frozen=True, slots=True)
class Receiver:
    """A destination: its key and name, and whether it takes tasks."""

    name_key: str
    name: str
    paused: bool
    down: bool


@dataclass(frozen=True, slots=True)
class Standing:
    """How the work stands, for all replicas alike.

    Attributes:
        at: When.
        lanes: All lanes.
        receivers: All destinations.
    """

    at: datetime
    lanes: Sequence[Lane]
    receivers: Sequence[Receiver]


def standing(connection: sa.Connection, now: datetime) -> Standing:
    """Return how the work stands."""
    held = store.in_state(connection, State.IN_PROGRESS)
    awaiting = store.in_state(connection, State.AWAITING_COMMITMENT)
    lanes = [
        Lane(
            agent=row.agent,
            destination=row.destination,
            pending=row.pending,
            due_at=min((at for at in (row.in_line, row.due_at) if at is not None), default=None),
            failed=row.failed,
            in_progress=held.get((row.agent, row.destination), 0),
            awaiting_commitment=awaiting.get((row.agent, row.destination), 0),
        )
        for row in store.lanes_standing(connection)
    ]
    return Standing(now, lanes, receivers(connection))


def receivers(connection: sa.Connection) -> list[Receiver]:
    """Return all destinations."""
    rows = store.destinations_standing(connection)
    return [Receiver(row.name_key, row.name, row.paused, row.down) for row in rows]


@dataclass(frozen=True, slots=True)
class Disk:
    """Room on the disk of one of the service's folders, in bytes."""

    folder: str
    free: int
    size: int


def disks(folders: Mapping[str, Path]) -> list[Disk]:
    """Return the room on the disks of some folders; one that can't be looked at is left out."""
    found = []
    for name, path in folders.items():
        try:
            # A folder that is yet to be made will lie on its parent's disk.
            usage = shutil.disk_usage(next(p for p in (path, *path.parents) if p.exists()))
        except OSError:
            continue  # who watches sees that the series is missing; uploads say why
        found.append(Disk(name, usage.free, usage.total))
    return found


class Metrics:
    """The metrics of one service process; methods may be called from any thread."""

    def __init__(self, database: str) -> None:
        """Make the metrics.

        Args:
            database: Kind of database, for the build's info.
        """
        self.registry = CollectorRegistry()
        self._names: dict[str, str] = {}
        self._agents: set[str] = set()
        self._of_route: dict[
            tuple[str, str, int], tuple[prometheus.Counter, prometheus.Histogram]
        ] = {}
        self._lock = threading.Lock()

        def counter(name: str, text: str, *labels: str) -> prometheus.Counter:
            return prometheus.Counter(PREFIX + name, text, labels, registry=self.registry)

        def histogram(
            name: str, text: str, buckets: Sequence[float], *labels: str
        ) -> prometheus.Histogram:
            return prometheus.Histogram(
                PREFIX + name, text, labels, registry=self.registry, buckets=buckets
            )

        self._events = counter(
            "task_events", "Entries of tasks' histories that this process wrote", "agent", "destination", "event"
        )  # fmt: skip
        self._files = counter(
            "files", "Files that were told of, by outcome", "agent", "destination", "outcome"
        )
        self._deliveries = histogram(
            "delivery_seconds", "Time from a task's registration to its success", DELIVERY_BUCKETS, "agent", "destination"
        )  # fmt: skip
        operations = histogram(
            "database_operation_seconds", "Time of a database operation, waiting for its turn included", OPERATION_BUCKETS, "operation"
        )  # fmt: skip
        self.reads = operations.labels("read")
        self.writes = operations.labels("write")
        self._answers = counter("http_requests", "Requests answered", "method", "route", "status")
        self._requests = histogram(
            "http_request_seconds", "Time until an answer begins", REQUEST_BUCKETS, "method", "route"
        )  # fmt: skip
        self.event_streams = prometheus.Gauge(
            PREFIX + "event_streams", "Open streams of events", registry=self.registry
        )
        build = prometheus.Info(PREFIX + "build", "What runs here", registry=self.registry)
        build.info(
            {"version": __version__, "python": platform.python_version(), "database": database}
        )
        prometheus.ProcessCollector(registry=self.registry)

    def know(self, found: Iterable[Receiver]) -> None:
        """Take the names that destinations have; those that are no more keep theirs."""
        names = {receiver.name_key: receiver.name for receiver in found}
        if not names.items() <= self._names.items():
            self._names = self._names | names

    def happened(self, happenings: Sequence[Happening]) -> None:
        """Count what a transaction did."""
        for happening in happenings:
            labels = (self._agent(happening.agent), self._destination(happening.destination))
            if isinstance(happening, FileHappening):
                self._files.labels(*labels, happening.outcome.value).inc(happening.count)
                continue
            self._events.labels(*labels, happening.event).inc()
            if happening.delivered_after is not None:
                self._deliveries.labels(*labels).observe(happening.delivered_after.total_seconds())

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count an HTTP request.

        Args:
            method: Its method; one that is unknown is counted as another.
            route: The route's template.
            status: What was answered.
            seconds: Until the answer began.
        """
        key = (method if method in METHODS else OTHER, route, status)
        series = self._of_route.get(key)
        if series is None:  # looking them up by their labels takes longer than counting
            known = key[0]
            series = (
                self._answers.labels(known, route, str(status)),
                self._requests.labels(known, route),
            )
            self._of_route[key] = series
        answers, durations = series
        answers.inc()
        durations.observe(seconds)

    def text(self, found: Standing | None, folders: Sequence[Disk], *, ready: bool) -> bytes:
        """Return all metrics as Prometheus reads them; ``MEDIA_TYPE`` is their media type.

        Args:
            found: How the work stands; None: the database does not say.
            folders: Room on disks.
            ready: Whether this process can serve.
        """
        if found is not None:
            self.know(found.receivers)
        return generate_latest(_Both(self.registry, self._gauges(found, folders, ready=ready)))

    def _gauges(
        self, found: Standing | None, folders: Sequence[Disk], *, ready: bool
    ) -> list[Metric]:
        up = GaugeMetricFamily(
            PREFIX + "ready", "1 while the database answers and this process is not ending"
        )
        up.add_metric([], float(ready))
        free = GaugeMetricFamily(
            PREFIX + "disk_free_bytes", "Room left on a folder's disk", labels=["folder"]
        )
        size = GaugeMetricFamily(
            PREFIX + "disk_size_bytes", "Size of a folder's disk", labels=["folder"]
        )
        for disk in folders:
            free.add_metric([disk.folder], disk.free)
            size.add_metric([disk.folder], disk.size)
        gauges: list[Metric] = [up, free, size]
        if found is not None:
            gauges += self._of_lanes(found)
            gauges += _of_receivers(found.receivers)
        return gauges

    def _of_lanes(self, found: Standing) -> list[Metric]:
        tasks = GaugeMetricFamily(
            PREFIX + "tasks", "Tasks that are not finished, and dead letters", labels=["agent", "destination", "state"]
        )  # fmt: skip
        oldest = GaugeMetricFamily(
            PREFIX + "oldest_pending_seconds", "How long the first of the tasks that wait has been due", labels=["agent", "destination"]
        )  # fmt: skip
        counts: dict[tuple[str, str, State], int] = defaultdict(int)
        ages: dict[tuple[str, str], float] = defaultdict(float)
        for lane in found.lanes:
            agent, destination = self._agent(lane.agent), self._destination(lane.destination)
            counts[agent, destination, State.PENDING] += lane.pending
            counts[agent, destination, State.IN_PROGRESS] += lane.in_progress
            counts[agent, destination, State.AWAITING_COMMITMENT] += lane.awaiting_commitment
            counts[agent, destination, State.FAILED] += lane.failed
            age = 0.0 if lane.due_at is None else (found.at - lane.due_at).total_seconds()
            ages[agent, destination] = max(age, ages[agent, destination])
        for labels, number in counts.items():
            tasks.add_metric(labels, number)
        for where, age in ages.items():
            oldest.add_metric(where, age)
        return [tasks, oldest]

    def _destination(self, key: str) -> str:
        return self._names.get(key, OTHER) if key else ""

    def _agent(self, name: str) -> str:
        if name in self._agents:
            return name
        with self._lock:
            if len(self._agents) >= AGENT_LIMIT:
                return OTHER
            self._agents.add(name)
        return name


def _of_receivers(found: Sequence[Receiver]) -> list[Metric]:
    paused = GaugeMetricFamily(
        PREFIX + "destination_paused", "1 while a person has paused a destination", labels=["destination"]
    )  # fmt: skip
    down = GaugeMetricFamily(
        PREFIX + "destination_down", "1 while a destination can't be reached", labels=["destination"]
    )  # fmt: skip
    for receiver in found:
        paused.add_metric([receiver.name], float(receiver.paused))
        down.add_metric([receiver.name], float(receiver.down))
    return [paused, down]


class _Both(Collector):
    """What a registry holds, and some gauges of the moment, as one thing to be encoded."""

    def __init__(self, registry: CollectorRegistry, gauges: Sequence[Metric]) -> None:
        self._registry = registry
        self._gauges = gauges

    def collect(self) -> Iterable[Any]:
        """Return all metrics."""
        yield from self._registry.collect()
        yield from self._gauges
