"""The page of a job: delivered, or what is missing."""

from typing import TYPE_CHECKING

from playwright.sync_api import expect

from clara_results.domain.tasks import State
from tests.browser.conftest import deliver, fits, refuse, register, show

if TYPE_CHECKING:
    from playwright.sync_api import Page

    from tests.browser.conftest import AxeCheck, Faults
    from tests.conftest import Service


def test_it_says_whether_a_job_is_delivered_and_what_is_missing(
    console: "Service", page: "Page", narrow: "Page", axe: "AxeCheck"
) -> None:
    job = "ward 3/№ 7"
    made = register(console, job, "PACS", "Archive")
    verdict = page.locator(".verdict")
    show(page, console.url + "/jobs/ward%203%2F%E2%84%96%207")
    expect(verdict).to_have_text("Not yet delivered: 2 of 2 tasks are not delivered: 2 Pending.")
    deliver(console, job)
    refuse(console, job)
    expect(verdict).to_have_text("Not delivered: 1 of 2 tasks are not delivered: 1 Failed.")
    expect(page.locator("#results tbody tr").first).to_contain_text("Some files were rejected.")
    show(narrow, page.url)
    for one in (page, narrow):
        axe(one)
        assert fits(one)
    page.get_by_role("button", name="Retry 1 failed").click()
    dialog = page.locator("#act")
    expect(dialog.get_by_role("heading")).to_have_text("Retry 1 task?")
    dialog.get_by_role("button", name="Retry").click()
    expect(page.locator(".badge", has_text="Pending").first).to_be_visible()
    deliver(console, job)
    expect(verdict).to_have_text("Delivered: all 2 tasks are delivered.")
    expect(narrow.locator(".verdict")).to_have_text("Delivered: all 2 tasks are delivered.")
    assert {task.state for task in console.client.job(job).tasks} == {State.SUCCEEDED}
    page.get_by_role("link", name="In the list of tasks").click()
    expect(page.locator("#results tbody tr")).to_have_count(2)
    page.get_by_role("link", name=job).first.click()
    page.get_by_role("link", name="PACS").click()
    page.wait_for_url(f"**/tasks/{made[0].task_id}")


def test_a_job_that_nobody_knows_is_said_in_words(
    console: "Service", page: "Page", faults: "Faults"
) -> None:
    faults.allow("404")
    show(page, console.url + "/jobs/nobody")
    expect(page.get_by_text("no results were registered for that job")).to_be_visible()
