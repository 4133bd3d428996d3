"""Metrics: labels keep to their bounds, whatever tasks, agents and callers are called."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from clara_results.domain.happenings import FileHappening, TaskHappening
from clara_results.domain.tasks import Outcome
from clara_results.service.metrics import (
    AGENT_LIMIT,
    OTHER,
    Lane,
    Metrics,
    Receiver,
    Standing,
    disks,
)

NOW = datetime(2026, 1, 2, tzinfo=UTC)
ORTHANC = Receiver("orthanc", "Orthanc", paused=False, down=True)
PACS = Receiver("pacs", "PACS", paused=True, down=False)


def samples(metrics: Metrics, standing: Standing | None = None) -> dict[tuple[str, ...], float]:
    """Return each sample by its name and its labels' values in the order of the labels' names."""
    text = metrics.text(standing, [], ready=True).decode()
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.fixture
def metrics() -> Metrics:
    return Metrics("sqlite")


def lane(destination: str, agent: str = "a", **changes: object) -> Lane:
    values: dict[str, object] = {
        "pending": 0,
        "due_at": None,
        "failed": 0,
        "in_progress": 0,
        "awaiting_commitment": 0,
    }
    return Lane(agent=agent, destination=destination, **(values | changes))  # type: ignore[arg-type]


def test_a_destination_appears_by_its_name_or_as_another(metrics: Metrics) -> None:
    metrics.know([ORTHANC])
    for destination in ("orthanc", "DOE^JOHN", "DOE^JANE", ""):
        metrics.happened([TaskHappening("a", destination, "registered")])
    found = samples(metrics)
    name = "clara_results_task_events_total"
    assert found[name, "a", "Orthanc", "registered"] == 1
    assert found[name, "a", OTHER, "registered"] == 2
    assert found[name, "a", "", "registered"] == 1
    assert "DOE" not in str(found)


def test_what_a_destination_was_called_stays_when_it_is_removed(metrics: Metrics) -> None:
    metrics.know([ORTHANC, PACS])
    metrics.know([PACS])
    metrics.happened([TaskHappening("a", "orthanc", "claimed")])
    assert samples(metrics)["clara_results_task_events_total", "a", "Orthanc", "claimed"] == 1


@given(st.lists(st.text(min_size=1, max_size=3), min_size=1, unique=True))
def test_too_many_agents_share_a_label(agents: list[str]) -> None:
    metrics = Metrics("sqlite")
    for number in range(AGENT_LIMIT - 1):
        metrics.happened([TaskHappening(f"agent{number}", "", "registered")])
    for agent in agents:
        metrics.happened([TaskHappening(agent, "", "registered")])
    found = samples(metrics)
    events = {k: v for k, v in found.items() if k[0] == "clara_results_task_events_total"}
    assert len(events) == AGENT_LIMIT + (len(agents) > 1)
    assert sum(events.values()) == AGENT_LIMIT - 1 + len(agents)


def test_methods_that_callers_make_up_share_a_label(metrics: Metrics) -> None:
    for method in ("GET", "BREW", "WHEN"):
        metrics.answered(method, "/api/tasks", 405, 0.1)
    found = samples(metrics)
    assert found["clara_results_http_requests_total", "GET", "/api/tasks", "405"] == 1
    assert found["clara_results_http_requests_total", OTHER, "/api/tasks", "405"] == 2
    assert found["clara_results_http_request_seconds_count", OTHER, "/api/tasks"] == 2


def test_files_and_deliveries_are_counted(metrics: Metrics) -> None:
    metrics.happened(
        [
            FileHappening("a", "", Outcome.DELIVERED, 3),
            FileHappening("a", "", Outcome.DELIVERED, 2),
            TaskHappening("a", "", "succeeded", delivered_after=timedelta(seconds=90)),
        ]
    )
    found = samples(metrics)
    assert found["clara_results_files_total", "a", "", "delivered"] == 5
    assert found["clara_results_delivery_seconds_sum", "a", ""] == 90
    assert found["clara_results_delivery_seconds_bucket", "a", "", "60.0"] == 0
    assert found["clara_results_delivery_seconds_bucket", "a", "", "120.0"] == 1


def test_how_the_work_stands(metrics: Metrics) -> None:
    lanes = [
        lane(
            "orthanc",
            pending=5,
            due_at=NOW - timedelta(seconds=40),
            failed=1,
            in_progress=2,
            awaiting_commitment=4,
        ),
        lane("pacs", pending=1, due_at=NOW + timedelta(seconds=40)),
        lane("anybody", pending=2, due_at=NOW - timedelta(seconds=7)),
        lane("somebody", pending=3, due_at=NOW - timedelta(seconds=9)),
    ]
    found = samples(metrics, Standing(NOW, lanes, [ORTHANC, PACS]))
    tasks = {key[1:]: value for key, value in found.items() if key[0] == "clara_results_tasks"}
    awaiting = {key for key in tasks if key[2] == "AwaitingCommitment"}
    assert {key[1]: tasks.pop(key) for key in awaiting} == {"Orthanc": 4, "PACS": 0, OTHER: 0}
    assert tasks == {
        ("a", "Orthanc", "Pending"): 5, ("a", "Orthanc", "InProgress"): 2, ("a", "Orthanc", "Failed"): 1,
        ("a", "PACS", "Pending"): 1, ("a", "PACS", "InProgress"): 0, ("a", "PACS", "Failed"): 0,
        ("a", OTHER, "Pending"): 5, ("a", OTHER, "InProgress"): 0, ("a", OTHER, "Failed"): 0,
    }  # fmt: skip
    assert found["clara_results_oldest_pending_seconds", "a", "Orthanc"] == 40
    assert found["clara_results_oldest_pending_seconds", "a", "PACS"] == 0  # not due yet
    assert found["clara_results_oldest_pending_seconds", "a", OTHER] == 9
    assert found["clara_results_destination_down", "Orthanc"] == 1
    assert found["clara_results_destination_paused", "Orthanc"] == 0
    assert found["clara_results_destination_paused", "PACS"] == 1


def test_what_the_database_does_not_say_is_left_out(metrics: Metrics) -> None:
    found = samples(metrics, None)
    assert found["clara_results_ready",] == 1
    assert not any(key[0] in {"clara_results_tasks", "clara_results_destination_down"} for key in found)  # fmt: skip


def test_each_app_has_metrics_of_its_own() -> None:
    one, other = Metrics("sqlite"), Metrics("sqlite")
    one.happened([TaskHappening("a", "", "registered")])
    assert ("clara_results_task_events_total", "a", "", "registered") not in samples(other)


def test_names_follow_prometheus_conventions(metrics: Metrics) -> None:
    metrics.know([ORTHANC])
    metrics.happened([TaskHappening("a", "", "succeeded", delivered_after=timedelta(1))])
    text = metrics.text(Standing(NOW, [lane("orthanc")], [ORTHANC]), [], ready=True).decode()
    families = list(text_string_to_metric_families(text))
    assert len({family.name for family in families}) == len(families)
    for family in families:
        assert family.documentation
        assert family.name.startswith(("clara_results_", "process_"))
        if family.type == "counter":
            assert all(sample.name.endswith("_total") for sample in family.samples)
        if family.type == "histogram":
            assert family.name.endswith("_seconds")


def test_a_folder_that_is_yet_to_be_made_lies_on_its_parents_disk(tmp_path: Path) -> None:
    there, to_be_made = disks({"payloads": tmp_path, "database": tmp_path / "a" / "b"})
    assert there.size == to_be_made.size > there.free > 0
