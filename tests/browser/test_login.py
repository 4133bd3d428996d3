"""Signing in: a token is pasted once, and what it allows is what the pages offer."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import expect

from clara_results.client import ResultsClient
from clara_results.errors import Refused
from tests.browser.conftest import fits, make_token, register, show
from tests.conftest import Service, eventually

if TYPE_CHECKING:
    from playwright.sync_api import Page

    from tests.browser.conftest import AxeCheck, Faults


@dataclass(frozen=True)
class Guarded:
    """A service that wants a token, and two of its tokens."""

    url: str
    operate: str
    read: str


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    service = Service(tmp_path_factory.mktemp("guarded") / "service", {})
    service.start()
    register(service, "job-1", "PACS")
    operate, read = make_token(service, "operate"), make_token(service, "read")
    for token in (operate, read):
        eventually(partial(knows, service, token), "the service knows both tokens", 30)
    yield Guarded(service.url, operate, read)
    service.kill()


def knows(service: Service, token: str) -> bool:
    try:
        ResultsClient(service.url, token=token).tasks(limit=1)
    except Refused:
        return False
    return True


def sign_in(page: "Page", token: str) -> None:
    page.get_by_label("Token").fill(token)
    page.get_by_role("button", name="Sign in").click()


def test_who_signs_in_sees_the_page_that_was_asked_for(
    guarded: Guarded, page: "Page", narrow: "Page", axe: "AxeCheck", faults: "Faults"
) -> None:
    faults.allow("401")
    show(page, f"{guarded.url}/tasks?state=Pending")
    expect(page).to_have_title("Sign in · Clara Results")
    expect(page.get_by_label("Token")).to_be_focused()
    axe(page)
    assert fits(show(narrow, page.url))
    sign_in(page, "wrong")
    expect(page.locator(".banner")).to_contain_text("Not signed in")
    axe(page)
    sign_in(page, guarded.operate)
    page.wait_for_url(f"{guarded.url}/tasks?state=Pending")
    # Ready: the stream of events is open too, by the same cookie.
    page.wait_for_selector("html[data-ready='true']", state="attached")
    expect(page.locator("#results tbody tr")).to_have_count(1)
    (cookie,) = page.context.cookies()
    assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Strict")
    page.get_by_role("button", name="Sign out").click()
    page.wait_for_url("**/login")
    assert page.context.cookies() == []


def test_who_may_only_look_is_offered_nothing_else(
    guarded: Guarded, page: "Page", faults: "Faults"
) -> None:
    faults.allow("403")
    show(page, f"{guarded.url}/login?next=/tasks")
    sign_in(page, guarded.read)
    page.wait_for_url(f"{guarded.url}/tasks")
    expect(page.locator("#results tbody tr")).to_have_count(1)
    for name in ("Retry", "Cancel"):
        expect(page.get_by_role("button", name=name)).to_have_count(0)
    show(page, f"{guarded.url}/destinations")
    expect(page.get_by_role("link", name="Add a destination")).to_have_count(0)
    show(page, f"{guarded.url}/destinations/new")
    expect(page.get_by_text("this call needs the scope operate")).to_be_visible()


def test_a_page_of_another_site_can_neither_lead_away_nor_use_the_cookie(
    guarded: Guarded, page: "Page"
) -> None:
    show(page, f"{guarded.url}/login?next=//198.51.100.1/tasks")
    sign_in(page, guarded.operate)
    page.wait_for_url(f"{guarded.url}/")
    calls = page.context.request
    body = {"jobId": "job-1"}
    there = calls.post(
        f"{guarded.url}/api/tasks/retry", data=body, headers={"Origin": "http://198.51.100.1"}
    )
    assert (there.status, there.json()["code"]) == (403, "cross-site")
    here = calls.post(f"{guarded.url}/api/tasks/retry", data=body, headers={"Origin": guarded.url})
    assert here.ok
