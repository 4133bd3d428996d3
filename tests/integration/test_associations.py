"""How a destination's associations are shared among tasks, and what agents keep open counts for."""

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from clara_results.client import ResultsClient
from clara_results.wire.destinations import Destination
from clara_results.wire.tasks import FailureReport, Idle, Release, Renewal, SuccessReport, Task

if TYPE_CHECKING:
    from tests.integration.conftest import LocalService


@pytest.fixture
def pacs(local: "LocalService") -> "LocalService":
    """A service with a destination that takes four associations."""
    local.client.add_destination(
        Destination(name="Pacs", ae_title="PACS", host="127.0.0.1", port=104, max_associations=4)
    )
    return local


def register(local: "LocalService", files: int, job: str) -> str:
    uris = [f"{number}.dcm" for number in range(files)]
    return local.register(*uris, data=["Pacs"], job_id=job)[0].task_id


def claim(local: "LocalService", **more: Any) -> Task:
    return local.claim(associations=100, **more)


def renew(local: "LocalService", task: Task, using: int) -> int:
    renewal = Renewal(lease_token=task.lease_token or "", associations=using)
    return local.client.renew(task.task_id, renewal).associations


def in_use(local: "LocalService") -> int:
    return local.client.destination("Pacs").associations


def test_a_task_has_all_that_are_free_and_that_its_files_can_use(pacs: "LocalService") -> None:
    register(pacs, 1, "small")
    register(pacs, 300, "large")
    assert claim(pacs).associations == 1
    assert claim(pacs).associations == 3
    register(pacs, 9, "late")
    assert pacs.client.claim("clarascu", associations=100) == []
    assert in_use(pacs) == 4


def test_who_asks_for_no_more_has_one_a_task(pacs: "LocalService") -> None:
    for number in range(6):
        register(pacs, 9, f"job{number}")
    claimed = pacs.client.claim("clarascu", size=10)
    assert [task.associations for task in claimed] == [1, 1, 1, 1]


def test_tasks_claimed_together_have_one_each_at_least(pacs: "LocalService") -> None:
    for number in range(3):
        register(pacs, 9, f"job{number}")
    claimed = pacs.client.claim("clarascu", size=10, associations=100)
    assert sorted(task.associations or 0 for task in claimed) == [1, 1, 2]


def test_a_task_gets_what_others_no_longer_use(pacs: "LocalService") -> None:
    register(pacs, 1, "small")
    register(pacs, 300, "large")
    small, large = claim(pacs), claim(pacs)
    assert renew(pacs, large, 3) == 3
    pacs.client.succeed(small.task_id, SuccessReport(lease_token=small.lease_token))
    assert renew(pacs, large, 3) == 4
    assert in_use(pacs) == 4


def test_one_that_has_them_all_makes_room_for_who_waits(pacs: "LocalService") -> None:
    register(pacs, 300, "large")
    large = claim(pacs)
    assert large.associations == 4
    register(pacs, 1, "small")
    assert renew(pacs, large, 4) == 3
    assert pacs.client.claim("clarascu", associations=100) == []  # it is still open
    assert renew(pacs, large, 3) == 3
    assert claim(pacs).associations == 1
    assert in_use(pacs) == 4


def test_nobody_gives_up_more_than_a_fair_share(pacs: "LocalService") -> None:
    register(pacs, 300, "first")
    first = claim(pacs)
    register(pacs, 300, "second")
    assert renew(pacs, first, 4) == 3
    allowed = renew(pacs, first, 3)
    second = claim(pacs)
    register(pacs, 300, "third")
    for using in (allowed, 2, 2, 2):
        allowed = renew(pacs, first, using)
    assert allowed == 2
    assert (second.associations, renew(pacs, second, 1)) == (1, 1)
    assert in_use(pacs) <= 4


def test_a_holder_that_says_nothing_of_them_keeps_what_it_had(pacs: "LocalService") -> None:
    register(pacs, 300, "large")
    large = claim(pacs)
    register(pacs, 1, "small")
    renewal = Renewal(lease_token=large.lease_token or "")
    assert pacs.client.renew(large.task_id, renewal).associations == 4
    assert in_use(pacs) == 4


@pytest.mark.parametrize("report", ["success", "failure"])
def test_what_an_agent_keeps_open_is_its_own_until_it_is_over(
    pacs: "LocalService", report: str
) -> None:
    mine = ResultsClient(pacs.url, instance="mine:1")
    other = ResultsClient(pacs.url, instance="other:2")
    register(pacs, 9, "first")
    (task,) = mine.claim("clarascu", associations=100)
    idle = Idle(associations=3, seconds=5)
    if report == "success":
        mine.succeed(task.task_id, SuccessReport(lease_token=task.lease_token, idle=idle))
    else:
        body = FailureReport(lease_token=task.lease_token, retry_later=False, idle=idle)
        mine.fail(task.task_id, body)
    register(pacs, 9, "second")
    (taken,) = other.claim("clarascu", associations=100)
    assert taken.associations == 1
    register(pacs, 9, "third")
    assert other.claim("clarascu", associations=100) == []
    (own,) = mine.claim("clarascu", associations=100)
    assert own.associations == 3  # what it kept is the task's now
    assert in_use(pacs) == 4


def test_what_is_still_kept_counts_when_one_of_it_is_used(pacs: "LocalService") -> None:
    mine = ResultsClient(pacs.url, instance="mine:1")
    other = ResultsClient(pacs.url, instance="other:2")
    register(pacs, 9, "first")
    (task,) = mine.claim("clarascu", associations=100)
    idle = Idle(associations=4, seconds=5)
    mine.succeed(task.task_id, SuccessReport(lease_token=task.lease_token, idle=idle))
    register(pacs, 1, "small")
    register(pacs, 1, "next")
    (small,) = mine.claim("clarascu", associations=100)
    assert small.associations == 1
    assert other.claim("clarascu", associations=100) == []  # three are open still
    idle = Idle(associations=4, seconds=5)
    mine.succeed(small.task_id, SuccessReport(lease_token=small.lease_token, idle=idle))
    assert other.claim("clarascu", associations=100) == []  # all four are
    assert len(mine.claim("clarascu", associations=100)) == 1


def test_what_was_kept_open_counts_no_longer_than_was_said(pacs: "LocalService") -> None:
    mine = ResultsClient(pacs.url, instance="mine:1")
    other = ResultsClient(pacs.url, instance="other:2")
    register(pacs, 9, "first")
    (task,) = mine.claim("clarascu", associations=100)
    idle = Idle(associations=1000, seconds=5)  # no more than it had count
    mine.succeed(task.task_id, SuccessReport(lease_token=task.lease_token, idle=idle))
    register(pacs, 9, "second")
    assert other.claim("clarascu", associations=100) == []
    pacs.clock.advance(5)
    (taken,) = other.claim("clarascu", associations=100)
    assert taken.associations == 4


def test_a_claim_waits_for_what_another_agent_keeps_open(pacs: "LocalService") -> None:
    mine = ResultsClient(pacs.url, instance="mine:1")
    other = ResultsClient(pacs.url, instance="other:2")
    register(pacs, 9, "first")
    (task,) = mine.claim("clarascu", associations=100)
    idle = Idle(associations=4, seconds=1)
    mine.succeed(task.task_id, SuccessReport(lease_token=task.lease_token, idle=idle))
    register(pacs, 9, "second")
    assert other.claim("clarascu", associations=100) == []
    pacs.clock.advance(1)
    assert len(other.claim("clarascu", associations=100, wait=5)) == 1


def test_a_task_given_back_has_none(pacs: "LocalService") -> None:
    register(pacs, 300, "large")
    large = claim(pacs)
    pacs.client.release(large.task_id, Release(lease_token=large.lease_token or ""))
    assert in_use(pacs) == 0


class Agents:
    """Agent processes that open and close associations as they are told, and count all that are open."""

    def __init__(self, url: str, most: int) -> None:
        self.url = url
        self.most = most
        self.open = 0
        self.highest = 0
        self.shared = 0
        self.faults: list[str] = []
        self._lock = threading.Lock()

    def change(self, number: int) -> None:
        with self._lock:
            self.open += number
            self.highest = max(self.highest, self.open)
            if self.open > self.most:
                self.faults.append(f"{self.open} are open")

    def work(self, name: str, seed: int, tasks: int) -> None:
        """Do as an agent does with some tasks."""
        chance = random.Random(seed)  # noqa: S311  (to be the same each time)
        client = ResultsClient(self.url, instance=name)
        kept = 0
        for _ in range(tasks):
            claimed = client.claim("clarascu", associations=100, wait=5)
            self.change(-kept)  # they are the task's now, or too old to be of use
            kept = 0
            for task in claimed:
                kept = self._carry(client, task, chance)
        self.change(-kept)

    def _carry(self, client: ResultsClient, task: Task, chance: random.Random) -> int:
        allowed, using = task.associations or 0, 0
        for _ in range(chance.randrange(1, 6)):
            wanted = min(allowed, chance.randrange(1, 5))
            self.change(wanted - using)
            using = wanted
            renewal = Renewal(lease_token=task.lease_token or "", associations=using)
            before, allowed = allowed, client.renew(task.task_id, renewal).associations
            self.shared += allowed != before
        kept = chance.choice([0, min(using, 1)])
        self.change(kept - using)
        report = SuccessReport(
            lease_token=task.lease_token, idle=Idle(associations=kept, seconds=60) if kept else None
        )
        client.succeed(task.task_id, report)
        return kept


def test_whatever_agents_do_no_more_are_open_than_a_destination_takes(pacs: "LocalService") -> None:
    agents = Agents(pacs.url, 4)
    for number in range(120):
        register(pacs, number % 7 + 1, f"job{number}")
    with ThreadPoolExecutor(4) as pool:
        ends = [pool.submit(agents.work, f"agent:{number}", number, 30) for number in range(4)]
        for end in ends:
            end.result(120)
    assert agents.faults == []
    assert agents.highest == 4  # and they are made use of
    assert agents.shared > 0  # how often depends on who is when
