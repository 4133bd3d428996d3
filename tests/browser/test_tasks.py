"""The list of tasks: finding, watching, retrying and canceling, as a person does it."""

import re
from typing import TYPE_CHECKING

from playwright.sync_api import expect

from clara_results.api.access import COOKIE
from clara_results.domain.tasks import State
from clara_results.wire.instances import Announced, Announcement
from tests.browser.conftest import deliver, fits, make_token, refuse, register, show

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

    from clara_results.client import ResultsClient
    from tests.browser.conftest import AxeCheck, Faults
    from tests.conftest import Service, ServiceStarter

PAGE = 50
STUDY, ACCESSION = "1.2.826.0.1.3680043.10.1.77", "ACC-77"


def rows(page: "Page") -> "Locator":
    return page.locator("#results tbody tr")


def chosen(page: "Page") -> "Locator":
    return page.locator("#selected")


def states(client: "ResultsClient", job: str) -> list[State]:
    return sorted(task.state for task in client.tasks(jobId=job, limit=1000).items)


def act(page: "Page", name: str) -> None:
    """Press the button of an act on what is selected."""
    page.locator("#selection").get_by_role("button", name=name, exact=True).click()


def test_without_tasks_it_says_what_to_do(
    service: "ServiceStarter", page: "Page", axe: "AxeCheck"
) -> None:
    show(page, service().url + "/tasks")
    expect(page.get_by_text("No results were registered yet")).to_be_visible()
    expect(page.locator("code", has_text="python register.py --agent")).to_be_visible()
    axe(page)


def test_tasks_are_found_by_what_a_person_knows(console: "Service", page: "Page") -> None:
    register(console, "find-1", "PACS", "Archive")
    (task,) = register(console, "find-2", "Archive")
    (claimed,) = console.client.claim("agent-find-2", size=1)
    announced = Announced(
        uri="dicom/0.dcm", sop_instance_uid=f"{STUDY}.1.1", sop_class_uid="1.2.840.10008.5.1.4.1.1.2",
        study_instance_uid=STUDY, series_instance_uid=f"{STUDY}.1", accession_number=ACCESSION,
        patient_id="PAT-77", sha256="0" * 64,
    )  # fmt: skip
    body = Announcement(
        lease_token=claimed.lease_token or "", receiver="dicom A h port 1", instances=[announced]
    )
    console.client.announce(task.task_id, body)
    show(page, console.url + "/tasks")
    find = page.get_by_role("searchbox", name="Find")
    for text in (ACCESSION, "PAT-77", STUDY, f"{STUDY}.1.1", task.task_id, "find-2"):
        find.fill(text)
        find.press("Enter")
        expect(rows(page)).to_have_count(1)
        expect(rows(page).get_by_role("link", name="Archive")).to_have_attribute(
            "href", f"/tasks/{task.task_id}"
        )
    page.get_by_role("link", name="Clear").click()
    page.get_by_label("Job").fill("find-1")
    page.get_by_label("Destination").fill("archive")
    page.get_by_role("button", name="Find").click()
    expect(rows(page)).to_have_count(1)
    assert "jobId=find-1" in page.url
    page.locator("#states").get_by_role("link", name=re.compile("Failed")).click()
    expect(page.get_by_text("No task matches")).to_be_visible()
    assert "state=Failed" in page.url
    assert "jobId=find-1" in page.url


def test_tasks_are_found_by_the_time_of_registration(console: "Service", page: "Page") -> None:
    register(console, "when")
    show(page, console.url + "/tasks?jobId=when")
    page.get_by_label("Registered").select_option("between …")
    page.get_by_label("Until").fill("2026-01-02T03:04:05")
    page.get_by_role("button", name="Find").click()
    expect(page.get_by_text("No task matches")).to_be_visible()
    assert re.search(r"until=2026-01-0[123]T", page.url)
    expect(page.get_by_label("Until")).to_have_value("2026-01-02T03:04:05")
    page.get_by_label("Registered").select_option("last hour")
    page.get_by_role("button", name="Find").click()
    expect(rows(page)).to_have_count(1)
    show(page, console.url + "/tasks?jobId=when&state=Lost&since=yesterday")
    expect(page.get_by_text("there is no state of that name")).to_be_visible()
    expect(page.get_by_text("since: that is not a time")).to_be_visible()
    expect(rows(page)).to_have_count(1)


def test_what_happens_shows_at_once_and_disturbs_nobody(console: "Service", page: "Page") -> None:
    register(console, "live", "One", "Two")
    show(page, console.url + "/tasks?jobId=live")
    box = rows(page).filter(has_text="Two").get_by_role("checkbox")
    box.check()
    box.focus()
    register(console, "live", "Three")
    expect(rows(page)).to_have_count(3)
    deliver(console, "live")
    expect(rows(page).filter(has_text="Succeeded")).to_have_count(1)
    expect(box).to_be_checked()
    expect(box).to_be_focused()
    expect(chosen(page)).to_have_text("1 task selected")
    rows(page).first.locator("td").nth(4).click()  # where there is no link
    page.wait_for_url("**/tasks/*-*")


def test_a_retry_says_how_many_it_really_concerns(console: "Service", page: "Page") -> None:
    register(console, "retry", *[f"D{number}" for number in range(5)])
    for _ in range(3):
        refuse(console, "retry")
    show(page, console.url + "/tasks?jobId=retry")
    boxes = rows(page).get_by_role("checkbox")
    boxes.nth(0).click()
    boxes.nth(3).click(modifiers=["Shift"])
    expect(chosen(page)).to_have_text("4 tasks selected")
    page.get_by_label("Select all tasks of this page").check()
    expect(chosen(page)).to_have_text("5 tasks selected")
    act(page, "Retry")
    dialog = page.locator("#act")
    expect(dialog.get_by_role("heading")).to_have_text("Retry 3 tasks?")
    expect(dialog).to_contain_text("2 tasks of the selection are not Failed")
    dialog.get_by_role("button", name="Keep as it is").click()
    assert states(console.client, "retry").count(State.FAILED) == 3
    act(page, "Retry")
    dialog.get_by_role("button", name="Retry").click()
    expect(page.locator("#told")).to_have_text("3 tasks put back to Pending.")
    assert states(console.client, "retry") == [State.PENDING] * 5
    expect(rows(page).filter(has_text="Pending")).to_have_count(5)
    expect(chosen(page)).to_have_text("No task selected")
    boxes.nth(0).click()
    act(page, "Retry")
    expect(dialog).to_contain_text("None of them is Failed")
    expect(dialog.get_by_role("button", name="Retry")).to_be_hidden()


def test_all_that_match_are_canceled_beyond_the_page(console: "Service", page: "Page") -> None:
    many = PAGE + 10
    register(console, "many", *[f"D{number}" for number in range(many)])
    deliver(console, "many")
    register(console, "other")
    show(page, console.url + "/tasks?jobId=many")
    expect(rows(page)).to_have_count(PAGE)
    page.get_by_role("button", name="Select all that match").click()
    expect(chosen(page)).to_have_text("All that match are selected")
    act(page, "Cancel")
    dialog = page.locator("#act")
    expect(dialog.get_by_role("heading")).to_have_text(f"Cancel {many - 1} tasks?")
    dialog.get_by_role("button", name="Cancel the delivery").click()
    expect(page.locator("#told")).to_have_text(f"{many - 1} tasks canceled.")
    assert states(console.client, "many").count(State.CANCELED) == many - 1
    assert states(console.client, "other") == [State.PENDING]


def test_pages_go_both_ways(console: "Service", page: "Page") -> None:
    made = register(console, "pages", *[f"D{number}" for number in range(2 * PAGE + 5)])
    newest_first = [task.task_id for task in made[::-1]]

    def shown() -> list[str]:
        return [row.get_attribute("data-task") or "" for row in rows(page).all()]

    show(page, console.url + "/tasks?jobId=pages")
    assert shown() == newest_first[:PAGE]
    expect(page.get_by_role("link", name="Newer")).to_have_count(0)
    page.get_by_role("link", name="Older").click()
    page.wait_for_url("**before=*")
    assert shown() == newest_first[PAGE : 2 * PAGE]
    page.get_by_role("link", name="Older").click()
    expect(rows(page)).to_have_count(5)
    expect(page.get_by_role("link", name="Older")).to_have_count(0)
    page.get_by_role("link", name="Newer").click()
    page.wait_for_url("**after=*")
    assert shown() == newest_first[PAGE : 2 * PAGE]
    page.get_by_role("link", name="Newer").click()
    expect(rows(page).first).to_have_attribute("data-task", newest_first[0])
    assert shown() == newest_first[:PAGE]


def test_it_is_used_from_the_keyboard(console: "Service", page: "Page") -> None:
    made = register(console, "keys", "One", "Two")
    show(page, console.url + "/tasks?jobId=keys")
    first = rows(page).first.get_by_role("link", name="Two")
    first.focus()
    page.keyboard.press("ArrowDown")
    expect(rows(page).nth(1).get_by_role("link", name="One")).to_be_focused()
    page.keyboard.press("ArrowUp")
    expect(first).to_be_focused()
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Space")
    expect(chosen(page)).to_have_text("1 task selected")
    page.locator("#selection").get_by_role("button", name="Cancel", exact=True).focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Keep as it is").first).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.locator("#act")).to_be_hidden()
    first.press("Enter")
    page.wait_for_url(f"**/tasks/{made[1].task_id}")


def test_it_can_be_read_by_all(
    console: "Service", page: "Page", narrow: "Page", axe: "AxeCheck"
) -> None:
    register(console, "read", "PACS", "Archive", "Research")
    deliver(console, "read")
    refuse(console, "read")
    for one in (page, narrow):
        show(one, console.url + "/tasks?jobId=read")
        rows(one).first.get_by_role("checkbox").check()
        axe(one)
        assert fits(one)
        act(one, "Cancel")
        expect(one.locator("#act-yes")).to_be_visible()
        axe(one, "#act")
        assert fits(one)


def test_a_service_that_is_gone_is_said_in_words(
    service: "ServiceStarter", page: "Page", faults: "Faults"
) -> None:
    own = service()
    register(own, "gone")
    show(page, own.url + "/tasks")
    rows(page).get_by_role("checkbox").check()
    faults.allow("ERR_")
    own.kill()
    act(page, "Cancel")
    expect(page.locator("#act")).to_contain_text("The service can't be reached")
    expect(page.locator("#live")).to_contain_text("not live")


def test_who_may_only_read_sees_no_way_to_act(service: "ServiceStarter", page: "Page") -> None:
    own = service()
    (task,) = register(own, "reader")
    token = make_token(own, "read")
    page.context.add_cookies([{"name": COOKIE, "value": token, "url": own.url}])
    show(page, own.url + "/tasks")
    expect(rows(page)).to_have_count(1)
    expect(page.get_by_role("checkbox")).to_have_count(0)
    expect(page.get_by_role("button", name="Cancel")).to_have_count(0)
    show(page, f"{own.url}/tasks/{task.task_id}")
    expect(page.get_by_role("button", name="Cancel")).to_have_count(0)
