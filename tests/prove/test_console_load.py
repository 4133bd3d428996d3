"""One browser and 49 event streams watch while 50 tasks a second flow: the page shows each within a second."""

import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import Browser, sync_playwright

from clara_results.client import ResultsClient
from clara_results.wire.tasks import Registration, SuccessReport
from tests.conftest import eventually
from tests.support.event_reader import EventReader

if TYPE_CHECKING:
    from tests.conftest import Service, ServiceStarter

pytestmark = [pytest.mark.prove, pytest.mark.timeout(600)]

STREAMS = 49
RATE = 50
"""Tasks a second that are registered, claimed and delivered."""
SECONDS = 30
WARM_UP = 2 * RATE
"""Tasks at the beginning that are not counted: the page's first ones come while all streams begin."""
LIMIT = 1.0
"""Seconds from the answer to a registration until the page shows its task."""
SEEN = """
window.seen = {};
new MutationObserver(() => {
  for (const row of document.querySelectorAll("tr[data-task]"))
    window.seen[row.dataset.task] ??= (performance.timeOrigin + performance.now()) / 1000;
}).observe(document, {childList: true, subtree: true, attributeFilter: ["data-task"]});
"""
"""Notes for each task when its row was there first."""


class Flow:
    """Registers tasks at a rate, and delivers them."""

    def __init__(self, url: str) -> None:
        self.registered: dict[str, float] = {}
        """When the service had answered, by task."""
        self.delivered = 0
        self._url = url
        self._over = threading.Event()

    def run(self, seconds: float) -> None:
        """Have them flow for so long, and wait until the last is delivered."""
        agent = threading.Thread(target=self._deliver)
        agent.start()
        client, begin = ResultsClient(self._url), time.monotonic()
        for number in range(int(RATE * seconds)):
            time.sleep(max(0.0, begin + number / RATE - time.monotonic()))
            body = Registration(
                agent="flow", job_id=f"job-{number}", pipeline_id="pipeline",
                payload_id="payload", data=["PACS"], uris=["a.dcm", "b.dcm"],
            )  # fmt: skip
            (task,) = client.register(body).tasks
            self.registered[task.task_id] = time.time()  # noqa: TID251  (as the page's own clock)
        self._over.set()
        agent.join(60)

    def _deliver(self) -> None:
        client = ResultsClient(self._url)
        while self.delivered < len(self.registered) or not self._over.is_set():
            for task in client.claim("flow", size=20, wait=0.5):
                client.succeed(task.task_id, SuccessReport(lease_token=task.lease_token))
                self.delivered += 1


@pytest.fixture
def chromium(require_tool: Callable[[str], str]) -> Iterator[Browser]:
    """Run a browser."""
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(
            executable_path=require_tool("chromium"), args=["--no-sandbox"]
        )
        yield running
        running.close()


def test_a_page_shows_each_of_50_tasks_a_second_within_one(
    service: "ServiceStarter", chromium: Browser
) -> None:
    watched: Service = service()
    page = chromium.new_page(viewport={"width": 1280, "height": 800})
    page.add_init_script(SEEN)
    page.goto(watched.url + "/tasks")
    page.wait_for_selector("html[data-ready='true']", state="attached")
    flow = Flow(watched.url)
    with ExitStack() as open_streams:
        streams = [
            open_streams.enter_context(closing(EventReader(watched.url))) for _ in range(STREAMS)
        ]
        flowing = threading.Thread(target=flow.run, args=(SECONDS,))
        flowing.start()
        while flowing.is_alive():
            page.wait_for_timeout(200)  # the browser's events are taken in meanwhile
        told = 3 * len(flow.registered)  # registered, claimed, succeeded
        eventually(lambda: min(stream.count for stream in streams) >= told, "all events came", 60)
        page.wait_for_function("task => task in window.seen", arg=list(flow.registered)[-1])
        seen: dict[str, float] = page.evaluate("window.seen")
        watched.stop()
    counted = list(flow.registered.items())[WARM_UP:]
    late = sorted(seen.get(task, float("inf")) - at for task, at in counted)
    share = statistics.quantiles(late, n=100)
    print(  # noqa: T201
        f"{len(late)} tasks at {RATE}/s, {STREAMS} streams: shown after {share[49]:.2f} s (median), "
        f"{share[98]:.2f} s (99 of 100), {late[-1]:.2f} s (last; inf: gone from the page before it was drawn)"
    )
    assert flow.delivered == RATE * SECONDS
    assert share[98] <= LIMIT
