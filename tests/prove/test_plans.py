"""No statement that runs all the time walks through a table: asked of the databases about what they really ran.

SQLite tells every statement it runs to a trace (``traced_service.py``), and is asked for its plan. PostgreSQL's
``auto_explain`` logs the plan of every statement as it ran, with the rows that it touched.
"""

import json
import os
import re
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
import urllib3

from clara_results.client import ResultsClient
from clara_results.domain.tasks import Outcome
from clara_results.errors import ServiceUnavailable
from clara_results.settings import variable
from clara_results.wire.destinations import Destination
from clara_results.wire.instances import Announced, Announcement, CommitmentResult
from clara_results.wire.tasks import (
    FailureReport,
    FileOutcome,
    Idle,
    Registration,
    Release,
    Renewal,
    ResultFile,
    SuccessReport,
    Task,
)
from tests.conftest import ServerProcess, eventually
from tests.support.backlog import multiply

if TYPE_CHECKING:
    from tests.conftest import PostgresServer, ServiceStarter

pytestmark = [pytest.mark.prove, pytest.mark.timeout(600)]

TASKS = 20_000
"""Of each kind: Pending, and Succeeded."""
DESTINATIONS = 20
STUDY = "1.2.3"
ROWS = 200
"""Rows that one part of a plan may touch, where the tables hold ``2 * TASKS`` and more."""
SMALL = {
    "agents", "destinations", "idle_associations", "lanes", "receivers", "tokens", "turns", "alembic_version",
    "commitments",  # a row for each task that awaits one
}  # fmt: skip
"""Tables that do not grow with the work."""


@dataclass(frozen=True, slots=True)
class Planned:
    """A statement that ran.

    Attributes:
        statement: Its text, values replaced by ``?``.
        plan: Its plan, a line a step.
        faults: What is wrong with that.
    """

    statement: str
    plan: list[str]
    faults: list[str]


def shape(statement: str) -> str:
    return " ".join(re.sub(r"'(?:[^']|'')*'|(?<![\w$])\d+\b", "?", statement).split())


def registration(job: str, destination: str) -> Registration:
    return Registration(
        agent="planned",
        job_id=job,
        pipeline_id="pipeline",
        payload_id=job,
        operator="operator",
        data=[destination],
        files=[ResultFile(uri=f"{number}.dcm", size=1) for number in range(3)],
    )


def announce(client: ResultsClient, task: Task) -> None:
    """Announce a task's files as instances of one series."""
    body = Announcement(
        lease_token=task.lease_token or "",
        receiver="dicom RECEIVER 127.0.0.1 port 104",
        instances=[
            Announced(
                uri=uri, sop_instance_uid=f"{STUDY}.1.{number}", sop_class_uid="1.2.840", study_instance_uid=STUDY,
                series_instance_uid=f"{STUDY}.1", accession_number="ACC", patient_id="PAT", sha256="0" * 64,
            )
            for number, uri in enumerate(task.uris or ())
        ],
    )  # fmt: skip
    client.announce(task.task_id, body)


def populate(start: Callable[[], ResultsClient], stop: Callable[[], None], url: str) -> None:
    """Leave tasks behind that wait, and as many that are done."""
    client = start()
    names = [f"destination-{number}" for number in range(DESTINATIONS)]
    for name in names:
        client.add_destination(
            Destination(name=name, ae_title="RECEIVER", host="127.0.0.1", port=104)
        )
    waiting = [client.register(registration(f"job-{name}", name)).tasks[0] for name in names]
    client.register(registration("job-done", names[0]), "first of all")
    (done,) = client.claim("planned", size=1)
    announce(client, done)
    client.succeed(done.task_id, SuccessReport(lease_token=done.lease_token))
    waits = next(task for task in waiting if task.task_id != done.task_id)
    stop()
    multiply(url, waits.task_id, TASKS, TASKS // 100, DESTINATIONS)
    multiply(url, done.task_id, TASKS, TASKS // 100, DESTINATIONS)


def work(client: ResultsClient) -> None:
    """Have the service do all that agents and operators ask of it all the time."""
    body = registration("job-new", "destination-3")
    client.register(body, "a key")
    client.register(body, "a key")  # again
    client.register(body, "another key")  # supersedes
    first, second, third, fourth, fifth = (
        client.claim("planned", size=1, wait=1, associations=2)[0] for _ in range(5)
    )
    announce(client, first)
    awaited = [
        FileOutcome(uri=uri, outcome=Outcome.AWAITING, sop_instance_uid=f"{STUDY}.1.{number}")
        for number, uri in enumerate(fifth.uris or ())
    ]
    announce(client, fifth)
    idle = Idle(associations=1, seconds=5)
    client.succeed(
        fifth.task_id, SuccessReport(lease_token=fifth.lease_token, files=awaited, idle=idle)
    )
    (request,) = client.commitments_due("planned")
    uids = [one.sop_instance_uid for one in request.instances]
    client.committed(request.transaction_uid, CommitmentResult(committed=uids, failed=[]))
    for text in (STUDY, f"{STUDY}.1", f"{STUDY}.1.0", "ACC", "PAT"):
        client.tasks(q=text)
    token = first.lease_token or ""
    files = [
        FileOutcome(uri="0.dcm", outcome=Outcome.DELIVERED, sop_instance_uid=f"{STUDY}.1.0"),
        FileOutcome(uri="1.dcm", outcome=Outcome.REJECTED, sop_instance_uid=f"{STUDY}.1.1"),
    ]
    client.renew(first.task_id, Renewal(lease_token=token, files=files[:1], associations=1))
    client.renew(first.task_id, Renewal(lease_token=token, files=files[1:]))
    files[1:] = [FileOutcome(uri=f"{n}.dcm", outcome=Outcome.DELIVERED) for n in (1, 2)]
    client.succeed(first.task_id, SuccessReport(lease_token=token, files=files))
    client.release(second.task_id, Release(lease_token=second.lease_token or ""))
    client.fail(third.task_id, FailureReport(retry_later=True, lease_token=third.lease_token))
    client.fail(
        fourth.task_id,
        FailureReport(retry_later=True, lease_token=fourth.lease_token, unavailable=True),
    )
    client.task(first.task_id)
    client.files(first.task_id)
    client.job("job-new")


@contextmanager
def watched(url: str) -> Iterator[None]:
    """Read the stream of events while work is done, until one has come."""
    with closing(
        urllib3.PoolManager(retries=False, timeout=30).request(
            "GET", f"{url}/api/events", preload_content=False
        )
    ) as stream:
        yield
        while b"event: task" not in stream.readline():
            pass


def test_sqlite_walks_through_no_table(
    tmp_path: Path, free_port: Callable[[], int], service: "ServiceStarter"
) -> None:
    url = f"sqlite:///{tmp_path}/plans.db"
    log, port = tmp_path / "statements", free_port()
    client = ResultsClient(f"http://127.0.0.1:{port}")
    settings = {"data": tmp_path, "port": port, "database": url}
    process = ServerProcess(
        [sys.executable, str(Path(__file__).with_name("traced_service.py")), str(log), "serve"],
        tmp_path / "service.log",
        {variable(name): str(value) for name, value in settings.items()},
    )

    def ready() -> bool:
        try:
            client.ready()
        except ServiceUnavailable:
            return False
        return True

    def start() -> ResultsClient:
        process.start(ready)
        return client

    populate(start, process.stop, url)
    log.write_text("")
    start()
    try:
        with watched(f"http://127.0.0.1:{port}"):
            work(client)
        eventually(lambda: "lease_expires_at <=" in log.read_text(), "leases are looked at")
    finally:
        process.stop()
    with closing(sqlite3.connect(f"file:{tmp_path}/plans.db?mode=ro", uri=True)) as database:
        found = list(sqlite_plans(database, log))
    judge(found)


def sqlite_plans(database: sqlite3.Connection, log: Path) -> Iterator[Planned]:
    known: set[str] = set()
    for line in log.read_text().splitlines():
        statement = json.loads(line)
        if not statement.startswith(("SELECT", "INSERT", "UPDATE", "DELETE", "WITH")):
            continue
        if shape(statement) in known:
            continue
        known.add(shape(statement))
        plan = [row[3] for row in database.execute(f"EXPLAIN QUERY PLAN {statement}")]
        faults = [
            step
            for step in plan
            if (
                (walked := re.match(r"SCAN (\w+)", step))
                and walked[1] not in SMALL | {"CONSTANT", "anon_1"}
            )
            or "ix_tasks_state" in step  # half of all tasks have the same
        ]
        yield Planned(shape(statement), plan, faults)


def test_postgresql_walks_through_no_table(
    own_postgres: "PostgresServer", postgres_folder: Path, service: "ServiceStarter"
) -> None:
    running = service(database=own_postgres.url)
    populate(lambda: running.client, running.stop, own_postgres.url)
    with psycopg.connect(own_postgres.url, autocommit=True) as connection:
        connection.execute("LOAD 'auto_explain'")  # its settings are unknown before
        for name, value in {
            "session_preload_libraries": "auto_explain",
            "auto_explain.log_min_duration": "0",
            "auto_explain.log_analyze": "on",
            "auto_explain.log_timing": "off",
            "auto_explain.log_format": "json",
        }.items():
            connection.execute(f"ALTER SYSTEM SET {name} = '{value}'")
        connection.execute("SELECT pg_reload_conf()")
    running.start()
    with watched(running.url):
        work(running.client)
    (log,) = postgres_folder.glob("*/postgres.log")
    eventually(lambda: "lease_expires_at <=" in log.read_text(), "leases are looked at")
    running.stop()
    judge(list(postgres_plans(log)))


def postgres_plans(log: Path) -> Iterator[Planned]:
    known: set[str] = set()
    for block in re.findall(r"plan:\n((?:\t.*\n)+)", log.read_text()):
        told = json.loads(block)
        statement = shape(told["Query Text"])
        if "pg_" in statement:
            continue
        plan, faults = [], []
        for depth, node in nodes(told["Plan"]):
            table = node.get("Relation Name") or node.get("Index Name") or ""
            touched = node["Actual Rows"] + node.get("Rows Removed by Filter", 0)
            touched += node.get("Rows Removed by Index Recheck", 0)
            plan.append(f"{'  ' * depth}{node['Node Type']} {node.get('Index Name', '')} {table}")
            if not node["Actual Loops"]:
                continue  # planned, but not needed
            if node["Node Type"] == "Seq Scan" and table not in SMALL:
                faults.append(plan[-1])
            elif touched * node["Actual Loops"] > ROWS:
                faults.append(f"{plan[-1]}: {touched:.0f} rows, {node['Actual Loops']} times")
        if faults or statement not in known:
            known.add(statement)
            yield Planned(statement, plan, faults)


def nodes(plan: dict[str, Any], depth: int = 0) -> Iterator[tuple[int, dict[str, Any]]]:
    yield depth, plan
    for child in plan.get("Plans", ()):
        yield from nodes(child, depth + 1)


def judge(found: list[Planned]) -> None:
    if os.environ.get("CLARA_RESULTS_SHOW_PLANS") == "1":
        for each in found:
            print(each.statement, *each.plan, sep="\n    ")  # noqa: T201
    for verb, table in (("INSERT INTO", "tasks"), ("INSERT INTO", "files"), ("UPDATE", "tasks"), ("UPDATE", "files"), ("UPDATE", "attempts")):  # fmt: skip
        assert any(each.statement.startswith(f"{verb} {table}") for each in found), (
            f"{verb} {table}"
        )
    faults = [f"{each.statement}\n    {each.faults}" for each in found if each.faults]
    assert not faults, "\n".join(faults)
