"""Fixtures for tests with a real browser.

``console``
    A Results Service that the tests of a module share: a ``Service``. A test has jobs of its own, so that they don't
    meet; one that needs an empty service, or settings, starts its own (``service``).
``page``
    A page of 1280 by 800 in Debian's Chromium. Whatever it asks of another host than this machine, every error on its
    console and every exception in its scripts fails the test; ``faults.allow("404")`` takes out what is meant to be.
``narrow``
    The same at 390 by 844, the size of a phone.
``show``
    ``show(page, url)`` goes to a page of the console and waits until it says that it is ready.
``axe``
    ``axe(page)`` checks WCAG 2.1 A and AA on what the page shows now, light and dark.

Playwright's loop runs in the test's thread from a module's first test to its last, so tests in this folder can't call
``asyncio.run``.
"""

import contextlib
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Protocol
from urllib.parse import urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, Request, expect, sync_playwright
from playwright.sync_api import Error as PlaywrightError

from clara_results.domain.clock import SystemClock
from clara_results.domain.scopes import parse_scopes
from clara_results.domain.tasks import Outcome
from clara_results.errors import Refused
from clara_results.service import access
from clara_results.wire.tasks import (
    FailureReport,
    FileOutcome,
    Registration,
    ResultFile,
    SuccessReport,
    Task,
)
from tests.conftest import Service, eventually

LIMIT = 30_000.0
"""Milliseconds that anything in the browser may take on a busy machine."""
WIDE, NARROW = (1280, 800), (390, 844)
"""Width and height of a page in CSS pixels."""
READY = "html[data-ready='true']"
expect.set_options(timeout=LIMIT)
_ARGUMENTS = [
    "--no-sandbox",  # tests may run as root
    "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]  # fmt: skip
_HOSTS = {"127.0.0.1", None}
_STANDARDS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]


class Faults:
    """What pages did that they should not have."""

    def __init__(self) -> None:
        self._found: list[str] = []
        self._allowed: list[str] = []

    def allow(self, part: str) -> None:
        """Take out what has ``part`` in its words."""
        self._allowed.append(part)

    def found(self) -> list[str]:
        """Return what was found so far."""
        return [fault for fault in self._found if not any(part in fault for part in self._allowed)]

    def watch(self, page: Page) -> None:
        """Note what a page does wrong from now on."""
        page.on("request", self._asked)
        page.on("pageerror", lambda error: self._found.append(f"exception: {error}"))
        page.on(
            "console",
            lambda message: (
                self._found.append(f"console: {message.text} at {message.location}")
                if message.type == "error"
                else None
            ),
        )

    def _asked(self, request: Request) -> None:
        parts = urlsplit(request.url)
        if parts.scheme not in {"data", "blob"} and parts.hostname not in _HOSTS:
            self._found.append(f"another host was asked: {request.url}")


class AxeCheck(Protocol):
    """Checks what a page shows now; ``within`` is a CSS selector of the part to look at."""

    def __call__(self, page: Page, within: str | None = None) -> None: ...


@pytest.fixture(scope="module")
def browser(require_tool: Callable[[str], str]) -> Iterator[Browser]:
    """Run a browser for the tests of a module."""
    program = require_tool("chromium")
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(
            executable_path=program, args=_ARGUMENTS, timeout=2 * LIMIT
        )
        yield running
        running.close()


@pytest.fixture
def faults() -> Faults:
    """Give what notes the wrong that pages do."""
    return Faults()


@pytest.fixture
def new_page(browser: Browser, faults: Faults) -> Iterator[Callable[[int, int], Page]]:
    """Give a function that opens a page of some width and height, each with cookies and storage of its own."""
    with ExitStack() as opened:

        def make(width: int, height: int) -> Page:
            context = browser.new_context(
                viewport={"width": width, "height": height},
                color_scheme="light",
                reduced_motion="reduce",
            )
            opened.callback(_close, context.close)
            context.set_default_timeout(LIMIT)
            page = context.new_page()
            faults.watch(page)
            return page

        yield make
        found = faults.found()
    assert not found, "\n".join(found)


def _close(close: Callable[[], None]) -> None:
    with contextlib.suppress(PlaywrightError):  # the browser is gone: its test has failed already
        close()


@pytest.fixture
def page(new_page: Callable[[int, int], Page]) -> Page:
    """Open a page as wide as on a desk."""
    return new_page(*WIDE)


@pytest.fixture
def narrow(new_page: Callable[[int, int], Page]) -> Page:
    """Open a page as wide as on a phone."""
    return new_page(*NARROW)


def show(page: Page, url: str) -> Page:
    """Go to a page of the console, and wait until it says that it is ready."""
    page.goto(url)
    page.wait_for_selector(READY, state="attached")
    return page


@pytest.fixture(scope="session")
def axe() -> AxeCheck:
    """Give a function that checks a page's accessibility, light and dark."""
    checker = Axe()

    def check(page: Page, within: str | None = None) -> None:
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            result = checker.run(
                page,
                context=within,
                options={
                    "resultTypes": ["violations"],
                    "runOnly": {"type": "tag", "values": _STANDARDS},
                },
            )
            assert result.violations_count == 0, f"{scheme}:\n{result.generate_report()}"
        page.emulate_media(color_scheme="light")

    return check


@pytest.fixture(scope="module")
def console(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Run a Results Service for the tests of a module."""
    running = Service(tmp_path_factory.mktemp("console") / "service", {})
    running.start()
    yield running
    running.kill()


def fits(page: Page) -> bool:
    """Tell whether nothing of a page lies beyond its right edge."""
    return bool(
        page.evaluate(
            "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
        )
    )


def agent_of(job: str) -> str:
    """Return the name of a job's own agent."""
    return "agent-" + re.sub("[^a-z0-9-]", "", job.lower())


def register(service: Service, job: str, *destinations: str, files: int = 2) -> list[Task]:
    """Register results of a job, one task for each destination, for an agent of the job's own."""
    body = Registration(
        agent=agent_of(job),
        job_id=job,
        pipeline_id="liver-tumor",
        payload_id=re.sub(r"[^\w-]", "-", job, flags=re.ASCII),
        operator="dicom-writer",
        data=list(destinations or ["PACS"]),
        files=[ResultFile(uri=f"dicom/{number}.dcm", size=1000) for number in range(files)],
    )
    return service.client.register(body).tasks


def deliver(service: Service, job: str) -> Task:
    """Have a job's agent deliver one of its tasks."""
    (task,) = service.client.claim(agent_of(job), size=1)
    return service.client.succeed(task.task_id, SuccessReport(lease_token=task.lease_token))


def refuse(service: Service, job: str) -> Task:
    """Have a receiver refuse the files of one of a job's tasks for good."""
    (task,) = service.client.claim(agent_of(job), size=1)
    outcomes = [
        FileOutcome(uri=uri, outcome=Outcome.REJECTED, code="A900") for uri in task.uris or ()
    ]
    report = FailureReport(retry_later=False, lease_token=task.lease_token, files=outcomes)
    return service.client.fail(task.task_id, report)


def make_token(service: Service, *scopes: str) -> str:
    """Make a token and wait until the service knows it; from then on callers need one."""
    url = f"sqlite:///{service.data / 'clara-results.db'}"
    allowed, now = parse_scopes(scopes), SystemClock().now()
    with access.opened(url) as database:
        made = database.write(
            lambda transaction: access.create(transaction, "-".join(scopes), allowed, None, now)
        ).result(30)

    def needed() -> bool:
        try:
            service.client.tasks(limit=1)
        except Refused:
            return True
        return False

    eventually(needed, "the service knows the token", 30)
    return made.token
