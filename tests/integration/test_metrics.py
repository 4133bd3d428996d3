"""``/metrics``: what happened is counted once it is durable, and how the work stands is asked of the database."""

import json
import re
import subprocess
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from prometheus_client.parser import text_string_to_metric_families

from clara_results.domain.scopes import Scopes
from clara_results.domain.tasks import Outcome, State
from clara_results.service import access
from clara_results.service.census import FRESH
from clara_results.service.metrics import OTHER, standing
from clara_results.store import standing as store
from clara_results.store.database import Database, open_database
from clara_results.store.migrations import migrate
from clara_results.store.schema import EPOCH, lanes, metadata
from clara_results.wire.destinations import Destination
from clara_results.wire.tasks import FailureReport, Renewal, SuccessReport
from tests.conftest import eventually
from tests.integration.conftest import told

if TYPE_CHECKING:
    from tests.integration.conftest import FakeClock, LocalService

EVENTS = "clara_results_task_events_total"
TASKS = "clara_results_tasks"


def scrape(local: "LocalService", **headers: str) -> dict[tuple[str, ...], float]:
    """Return each sample by its name and its labels' values in the order of the labels' names."""
    answer = local.call("GET", "/metrics", headers=headers)
    assert answer.status == 200
    assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(answer.data.decode())
        for sample in family.samples
    }


def fresh(local: "LocalService") -> dict[tuple[str, ...], float]:
    """Scrape until what is told was asked of the database from now on."""
    begun, enumerator = time.monotonic(), local.engine.enumerator
    eventually(lambda: time.monotonic() - begun > FRESH, "the last census is old")
    before = enumerator.taken
    eventually(lambda: bool(scrape(local)) and enumerator.taken > before, "a census is taken")
    return scrape(local)


@pytest.fixture
def orthanc_known(local: "LocalService") -> None:
    """Set up a destination, and wait until the service's metrics know its name."""
    body = Destination(
        name="Orthanc", ae_title="ORTHANC", host="127.0.0.1", port=104, max_associations=9
    )
    local.client.add_destination(body)
    eventually(
        lambda: ("clara_results_destination_down", "Orthanc") in fresh(local), "the name is known"
    )


@pytest.mark.usefixtures("orthanc_known")
def test_a_tasks_life_is_counted(local: "LocalService", clock: "FakeClock") -> None:
    (task,) = local.register("a", "b", "c", data=["ORTHANC"])
    local.register("x", data=["nobody knows^this"])
    held = local.claim(size=1)
    assert held.task_id == task.task_id
    some = Renewal(lease_token=held.lease_token or "", files=[told("a")])
    local.client.renew(held.task_id, some)
    retry = FailureReport(
        retry_later=True, lease_token=held.lease_token, files=[told("b", Outcome.SKIPPED)]
    )
    local.client.fail(held.task_id, retry)
    clock.advance(60)
    (held,) = [
        each for each in local.client.claim("clarascu", size=5) if each.task_id == task.task_id
    ]
    assert held.uris == ["c"]
    report = SuccessReport(lease_token=held.lease_token)
    for _ in range(2):  # said twice, counted once
        local.client.succeed(held.task_id, report)
    found = scrape(local)
    where = ("clarascu", "Orthanc")
    assert {key[-1]: value for key, value in found.items() if key[:3] == (EVENTS, *where)} == {
        "registered": 1, "claimed": 2, "retry": 1, "succeeded": 1,
    }  # fmt: skip
    files = {k[-1]: v for k, v in found.items() if k[:3] == ("clara_results_files_total", *where)}
    assert files == {"delivered": 2, "skipped": 1, "retry": 1}
    assert found["clara_results_delivery_seconds_sum", *where] == 60
    assert found["clara_results_delivery_seconds_count", *where] == 1
    assert found[EVENTS, "clarascu", OTHER, "registered"] == 1
    assert "nobody" not in local.call("GET", "/metrics").data.decode()


def test_what_is_rolled_back_is_not_counted(local: "LocalService") -> None:
    (task,) = local.register("a")
    held = local.claim()
    answer = local.call(
        "PUT",
        f"/api/tasks/failure/{task.task_id}",
        {"retryLater": False, "leaseToken": held.lease_token, "files": [{"uri": "a", "outcome": "delivered"}, {"uri": "stranger", "outcome": "delivered"}]},
    )  # fmt: skip
    answer.problem(422, "unknown-file")
    found = scrape(local)
    assert (EVENTS, "clarascu", "", "failed") not in found
    assert not any(key[0] == "clara_results_files_total" for key in found)


def test_an_expired_lease_is_counted(local: "LocalService", clock: "FakeClock") -> None:
    local.register()
    local.claim()
    clock.advance(4000)
    expired = (EVENTS, "clarascu", "", "lease-expired")
    eventually(lambda: scrape(local).get(expired) == 1, "the lease is counted as expired")


@pytest.mark.usefixtures("orthanc_known")
def test_how_the_work_stands(local: "LocalService", clock: "FakeClock") -> None:
    for number in range(4):
        local.register("a", data=["Orthanc"], job_id=f"j{number}", max_retries=0)
    local.register("a", agent="other")
    held = local.client.claim("clarascu", size=2)
    local.client.fail(held[0].task_id, FailureReport(retry_later=False))
    clock.advance(30)
    local.client.pause_destination("Orthanc")
    found = fresh(local)
    where = ("clarascu", "Orthanc")
    assert found[TASKS, *where, State.PENDING] == 2
    assert found[TASKS, *where, State.IN_PROGRESS] == 1
    assert found[TASKS, *where, State.FAILED] == 1
    assert found[TASKS, "other", "", State.PENDING] == 1
    assert found["clara_results_oldest_pending_seconds", *where] == 30
    assert found["clara_results_destination_paused", "Orthanc"] == 1
    assert found["clara_results_destination_down", "Orthanc"] == 0
    local.client.fail(held[1].task_id, FailureReport(retry_later=True, unavailable=True))
    assert fresh(local)["clara_results_destination_down", "Orthanc"] == 1


def test_a_task_that_is_not_due_yet_is_not_old(local: "LocalService", clock: "FakeClock") -> None:
    local.register("a", not_before=clock.now() + timedelta(hours=1))
    assert fresh(local)["clara_results_oldest_pending_seconds", "clarascu", ""] == 0


def test_requests_are_counted_by_their_routes(local: "LocalService") -> None:
    (task,) = local.register()
    local.call("GET", f"/api/tasks/{task.task_id}")
    local.call("GET", "/api/tasks/00000000-0000-0000-0000-000000000000")
    local.call("GET", "/nowhere/PHANTOM^ONE")
    local.call("POST", "/api/tasks", raw=b"x" * (17 << 20))
    found = scrape(local)
    name = "clara_results_http_requests_total"
    assert found[name, "POST", "/api/tasks", "201"] == 1
    assert found[name, "POST", "/api/tasks", "413"] == 1
    assert found[name, "GET", "/api/tasks/{task_id}", "200"] == 1
    assert found[name, "GET", "/api/tasks/{task_id}", "404"] == 1
    assert found[name, "GET", "(none)", "404"] == 1
    assert found["clara_results_http_request_seconds_count", "GET", "/api/tasks/{task_id}"] == 2
    text = local.call("GET", "/metrics").data.decode()
    assert task.task_id not in text
    assert "PHANTOM" not in text


def test_the_process_and_the_build_are_told(local: "LocalService") -> None:
    found = scrape(local)
    assert found["process_resident_memory_bytes",] > 1 << 20
    (info,) = [key for key in found if key[0] == "clara_results_build_info"]
    assert info[1] in {"sqlite", "postgresql"}
    for operation in ("read", "write"):
        local.register("a")
        assert scrape(local)["clara_results_database_operation_seconds_count", operation] >= 1
    assert found["clara_results_disk_free_bytes", "payloads"] > 0
    assert (("clara_results_disk_free_bytes", "database") in found) == (info[1] == "sqlite")


def test_metrics_are_for_those_who_may_read(local: "LocalService", database_url: str) -> None:
    with access.opened(database_url) as database:
        made = database.write(
            lambda tx: access.create(
                tx, "prometheus", Scopes(frozenset({"read"})), None, local.clock.now()
            )
        ).result(20)
    local.clock.advance(5)
    local.call("GET", "/metrics").problem(401, "token-missing")
    assert scrape(local, Authorization=f"Bearer {made.token}")["clara_results_ready",] == 1


# What dashboard and rules name

DEPLOY = Path(__file__).parents[2] / "deploy"
DASHBOARD = DEPLOY / "grafana" / "clara-results.json"
RULES = DEPLOY / "prometheus" / "alerts.yaml"


def named(text: str) -> set[str]:
    return set(re.findall(r"\b(?:clara_results|process)_[a-z_]+\b", text))


def expressions() -> set[str]:
    """Return all that the dashboard's panels and variables ask for."""
    dashboard = json.loads(DASHBOARD.read_text())
    panels = [
        *dashboard["panels"],
        *(p for row in dashboard["panels"] for p in row.get("panels", [])),
    ]
    asked = {target["expr"] for panel in panels for target in panel.get("targets", [])}
    return asked | {
        variable["query"]["query"]
        for variable in dashboard["templating"]["list"]
        if variable["type"] == "query"
    }


@pytest.mark.usefixtures("orthanc_known")
def test_all_that_dashboard_rules_and_page_name_is_exported(
    local: "LocalService", clock: "FakeClock"
) -> None:
    local.register("a", data=["Orthanc"])
    held = local.claim()
    local.client.succeed(held.task_id, SuccessReport(lease_token=held.lease_token))
    exported = {key[0] for key in fresh(local)}
    page = (DEPLOY.parent / "docs" / "monitoring.md").read_text()
    in_page = set(re.findall(r"^\| `(clara_results_[a-z_]+)", page, re.MULTILINE))
    families = {re.sub(r"_(bucket|count|sum)$", "", name) for name in exported}
    assert in_page == {name for name in families if name.startswith("clara_results_")}
    for source in (" ".join(expressions()), RULES.read_text()):
        assert named(source)
        assert named(source) <= exported


def test_the_dashboard_is_whole() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    assert dashboard["uid"] == "clara-results"
    assert {v["name"] for v in dashboard["templating"]["list"]} >= {"datasource"}
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        if panel["type"] == "row":
            continue
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert panel["title"]
        assert panel["description"]
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
    spots = {
        (x, y)
        for panel in dashboard["panels"]
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    }
    assert len(spots) == sum(p["gridPos"]["w"] * p["gridPos"]["h"] for p in dashboard["panels"])


def test_the_rules_are_what_promtool_expects(require_tool: Any) -> None:
    promtool = require_tool("promtool")
    checked = subprocess.run([promtool, "check", "rules", str(RULES)], capture_output=True, text=True, check=False)  # fmt: skip
    assert checked.returncode == 0, checked.stdout + checked.stderr
    cases = RULES.with_name("alerts_test.yaml")
    tested = subprocess.run([promtool, "test", "rules", str(cases)], capture_output=True, text=True, check=False)  # fmt: skip
    assert tested.returncode == 0, tested.stdout + tested.stderr
    names = set(re.findall(r"- alert: (\w+)", RULES.read_text()))
    assert set(re.findall(r"alertname: (\w+)", cases.read_text())) == names


# However many tasks there are

MANY = 200_000


@pytest.fixture
def filled(database_url: str) -> Iterator[Database]:
    """Open a database with very many finished tasks, few that wait, and statistics as they are after a while."""
    database = open_database(database_url)
    try:
        database.start(lambda _: None, lambda _: None)
        migrate(database.engine)
        with database.engine.begin() as connection:
            _fill(connection, MANY)
        with database.engine.connect() as plain:
            if plain.dialect.name == "postgresql":
                plain = plain.execution_options(isolation_level="AUTOCOMMIT")  # noqa: PLW2901
                plain.exec_driver_sql("VACUUM ANALYZE tasks")
        yield database
    finally:
        database.close()


def _fill(connection: sa.Connection, count: int) -> None:
    numbers = (
        f"generate_series(1, {count}) AS g(n)"
        if connection.dialect.name == "postgresql"
        else f"(WITH RECURSIVE g(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM g WHERE n < {count}) SELECT n FROM g)"  # noqa: S608
    )
    registrations, tasks = metadata.tables["registrations"], metadata.tables["tasks"]
    connection.execute(
        registrations.insert().values(id=1, body_sha256="", scope_sha256="", created_at=EPOCH)
    )
    connection.execute(lanes.insert(), [{"agent": "a", "destination": f"d{n}"} for n in range(20)])
    state = "CASE mod(n, 1000) WHEN 0 THEN 'Pending' WHEN 1 THEN 'Failed' ELSE 'Succeeded' END"
    columns = {
        "task_id": "'t' || n", "registration_id": "1", "element": "n", "agent": "'a'", "job_id": "'j' || n",
        "pipeline_id": "'p'", "payload_id": "'q'", "destination": "'d' || CAST(mod(n / 1000, 20) AS INTEGER)", "state": state,
        "priority": "0", "turn": "n", "retries": "0", "max_retries": "0", "attempt": "0", "created_at": "n",
        "updated_at": "n", "due_at": "CASE mod(n, 1000) WHEN 0 THEN n END", "waits": "false", "unavailable_times": "0",
        "associations": "0", "files_pending": "0", "files_awaiting": "0", "files_delivered": "1", "files_skipped": "0", "files_retry": "0", "files_rejected": "0",
    }  # fmt: skip
    assert set(columns) <= set(tasks.columns.keys())
    connection.exec_driver_sql(
        f"INSERT INTO tasks ({', '.join(columns)}) SELECT {', '.join(columns.values())} FROM {numbers}"  # noqa: S608
    )


def test_finished_tasks_cost_a_scrape_nothing(filled: Database) -> None:
    now = EPOCH + timedelta(days=1)
    found = filled.read(lambda connection: standing(connection, now)).result(60)
    assert sum(lane.pending for lane in found.lanes) == MANY // 1000
    assert sum(lane.failed for lane in found.lanes) == MANY // 1000
    assert min(lane.due_at for lane in found.lanes if lane.due_at) == EPOCH + timedelta(
        microseconds=1000
    )
    times = []
    for _ in range(5):
        begun = time.perf_counter()
        filled.read(lambda connection: standing(connection, now)).result(60)
        times.append(time.perf_counter() - begun)
    assert min(times) < 0.1


def test_each_count_reads_an_index_of_its_own(filled: Database) -> None:
    asked: list[str] = []

    def plan(connection: sa.Connection) -> str:
        @sa.event.listens_for(connection, "before_cursor_execute")
        def _note(_c: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
            asked.append(statement)

        store.lanes_standing(connection)
        explain = "EXPLAIN QUERY PLAN " if connection.dialect.name == "sqlite" else "EXPLAIN "
        rows = connection.exec_driver_sql(explain + asked[0]).all()
        return "\n".join(str(row) for row in rows)

    shown = filled.read(plan).result(60)
    assert "ix_tasks_due" in shown
    assert "ix_tasks_failed" in shown
    assert "Seq Scan on tasks" not in shown
    assert "SCAN tasks" not in shown
