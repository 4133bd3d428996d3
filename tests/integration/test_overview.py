"""What a person is to see first, found in a real database."""

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from clara_results.domain.tasks import Outcome
from clara_results.service.census import Census
from clara_results.service.metrics import Disk
from clara_results.service.overview import SILENT, STUCK, Overseer, Overview
from clara_results.service.trend import Trend
from clara_results.wire.destinations import Destination
from clara_results.wire.tasks import FailureReport, FileOutcome, SuccessReport, Task

if TYPE_CHECKING:
    import sqlalchemy as sa

    from clara_results.store.database import Database
    from tests.integration.conftest import LocalService

ROOMY, FULL = Disk("payloads", 50, 100), Disk("database", 9, 100)


@pytest.fixture
def overview(local: "LocalService", beside: "Database") -> Callable[[], Overview]:
    """Give a function that looks at everything."""

    async def read(operation: "Callable[[sa.Connection], Any]") -> Any:
        return await asyncio.wrap_future(beside.read(operation))

    async def census() -> Census:
        return Census(None, (ROOMY, FULL))

    return lambda: asyncio.run(Overseer(read, local.clock, census).overview())


def deliver(local: "LocalService", task: Task) -> None:
    local.client.succeed(task.task_id, SuccessReport(lease_token=task.lease_token))


def refuse(local: "LocalService", task: Task, code: str) -> None:
    files = [FileOutcome(uri=uri, outcome=Outcome.REJECTED, code=code) for uri in task.uris or ()]
    report = FailureReport(
        retry_later=False, lease_token=task.lease_token, code=f"dimse-{code}", files=files
    )
    local.client.fail(task.task_id, report)


def test_what_ended_is_counted_by_minute(local: "LocalService", beside: "Database") -> None:
    trend = Trend()

    def look() -> None:
        beside.read(lambda connection: trend.look(connection, local.clock.now())).result(30)

    local.register(data=["A", "B", "C"])
    local.clock.advance(3.2)
    deliver(local, local.claim())
    deliver(local, local.claim())
    refuse(local, local.claim(), "A900")
    look()
    now = trend.course(local.clock.now(), steps=60, minutes=1)
    assert (len(now.delivered), now.delivered[-1], now.failed[-1]) == (60, 2, 1)
    assert now.median[-1] == now.slowest[-1] == pytest.approx(3.2, abs=0.25)
    assert now.median[0] is None
    local.clock.advance(240)
    local.register(job_id="later")
    local.clock.advance(60)
    deliver(local, local.claim())
    look()
    course = trend.course(local.clock.now(), steps=60, minutes=1)
    assert (course.delivered[-6:], sum(course.failed)) == ([2, 0, 0, 0, 0, 1], 1)
    half, most = course.whole
    assert half == pytest.approx(3.2, abs=0.25)
    assert most == pytest.approx(60, abs=3)
    assert sum(trend.course(local.clock.now(), steps=96, minutes=15).delivered) == 3
    assert sum(s for s, _ in trend.by_destination().values()) == 3

    # Minutes that have passed are not read again: a task that is retried did fail then.
    (failed,) = local.client.tasks(state="Failed").items
    local.client.retry(failed.task_id)
    look()
    assert sum(trend.course(local.clock.now(), steps=60, minutes=1).failed) == 1
    local.clock.advance(86_400)
    look()
    assert trend.by_destination() == {}


def test_dead_letters_are_told_apart_by_cause(
    local: "LocalService", overview: Callable[[], Overview]
) -> None:
    body = Destination(name="PACS", ae_title="PACS", host="127.0.0.1", port=104)
    local.client.add_destination(body)
    for job in ("one", "two", "three"):
        local.register(job_id=job, data=["pacs"])
    refuse(local, local.claim(), "A900")
    refuse(local, local.claim(), "A900")
    refuse(local, local.claim(), "A700")
    found = [(c.agent, c.destination, c.code, c.tasks) for c in overview().causes]
    assert found == [("clarascu", "PACS", "dimse-A900", 2), ("clarascu", "PACS", "dimse-A700", 1)]
    (retried, *_) = local.client.tasks(state="Failed").items
    local.client.retry(retried.task_id)
    assert [c.tasks for c in overview().causes] == [2]


def test_an_agent_is_silent_that_asks_no_more(
    local: "LocalService", overview: Callable[[], Overview]
) -> None:
    local.register()
    (unseen,) = overview().agents
    assert (unseen.name, unseen.alive, unseen.waiting, unseen.instances) == ("clarascu", 0, 1, [])
    held = local.claim(lease=3600)
    local.clock.advance(2 * SILENT.total_seconds())
    (agent,) = overview().agents
    assert (agent.alive, agent.waiting) == (1, 0)  # it holds a task
    deliver(local, held)
    (agent,) = overview().agents
    assert (agent.alive, len(agent.instances)) == (0, 1)
    local.client.claim("clarascu")
    assert overview().agents[0].alive == 1
    local.clock.advance(90_000)
    assert overview().agents == []


def test_what_is_due_for_long_is_stuck_unless_its_destination_is_closed(
    local: "LocalService", overview: Callable[[], Overview]
) -> None:
    body = Destination(name="PACS", ae_title="PACS", host="127.0.0.1", port=104)
    local.client.add_destination(body)
    local.register(data=["PACS"])
    local.clock.advance((STUCK - timedelta(seconds=1)).total_seconds())
    assert overview().stuck == []
    local.clock.advance(1)
    (lane,) = overview().stuck
    assert (lane.agent, lane.destination, lane.pending) == ("clarascu", "pacs", 1)
    local.client.pause_destination("PACS")
    assert overview().stuck == []


def test_a_disk_with_little_room_is_low(overview: Callable[[], Overview]) -> None:
    assert overview().low_disks == [FULL]
