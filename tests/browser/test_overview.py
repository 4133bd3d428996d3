"""The first page: what needs a person now, and how the work goes."""

import re
from typing import TYPE_CHECKING

from playwright.sync_api import expect

from clara_results.wire.destinations import Destination
from clara_results.wire.tasks import FailureReport
from tests.browser.conftest import agent_of, deliver, fits, refuse, register, show

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

    from tests.browser.conftest import AxeCheck
    from tests.conftest import Service, ServiceStarter


def alarm(page: "Page", text: str) -> "Locator":
    return page.locator(".alarms li").filter(has_text=text)


def painted(page: "Page", colour: str) -> int:
    """Return how many pixels of the first chart have a colour of the theme."""
    found: int = page.evaluate(
        """(name) => {
            const probe = document.createElement("i");
            probe.style.color = `var(--${name})`;
            document.body.append(probe);
            const wanted = getComputedStyle(probe).color.match(/[\\d.]+/g).map(Number);
            probe.remove();
            const canvas = document.querySelector("#ended canvas");
            const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
            let count = 0;
            for (let at = 0; at < data.length; at += 4)
                if (data[at + 3] > 200 && wanted.every((part, place) => Math.abs(data[at + place] - part) < 4)) count++;
            return count;
        }""",
        colour,
    )
    return found


def test_a_newcomer_is_told_three_steps(
    service: "ServiceStarter", page: "Page", axe: "AxeCheck"
) -> None:
    console = service()
    show(page, console.url)
    steps = page.get_by_role("region", name="Nothing was registered yet").get_by_role("listitem")
    expect(steps).to_have_count(3)
    expect(steps.nth(0)).to_have_attribute("data-done", "false")
    expect(steps.nth(1)).to_contain_text(f"--service {console.url}")
    expect(page.get_by_role("heading", name="Needs a person now: nothing")).to_be_visible()
    axe(page)
    body = Destination(name="PACS", ae_title="PACS", host="127.0.0.1", port=104)
    console.client.add_destination(body)
    show(page, console.url)
    expect(steps.nth(0)).to_have_attribute("data-done", "true")
    register(console, "first")
    deliver(console, "first")
    expect(page.get_by_text("Everything that was registered is delivered.")).to_be_visible()
    expect(steps).to_have_count(0)


def test_what_needs_a_person_is_said_live_with_what_to_do(
    console: "Service", page: "Page", axe: "AxeCheck"
) -> None:
    body = Destination(name="Down", ae_title="DOWN", host="127.0.0.1", port=104)
    console.client.add_destination(body)
    show(page, console.url)
    register(console, "refused-1", "Archive")
    register(console, "nobody", "Archive")
    refuse(console, "refused-1")
    failed = alarm(page, "to archive")
    expect(failed).to_contain_text("1 task to archive")
    expect(alarm(page, agent_of("nobody"))).to_contain_text("was never seen; 1 task waits for it")
    register(console, "down-1", "Down")
    (held,) = console.client.claim(agent_of("down-1"), size=1)
    report = FailureReport(
        retry_later=True, lease_token=held.lease_token, unavailable=True,
        code="unreachable", message="nobody listens at 127.0.0.1:104",
    )  # fmt: skip
    console.client.fail(held.task_id, report)
    expect(alarm(page, "can't be reached")).to_contain_text("obody listens at 127.0.0.1:104")
    expect(alarm(page, "can't be reached").get_by_role("link", name="Down")).to_be_visible()
    axe(page)
    console.client.pause_destination("Down")
    show(page, console.url)
    expect(alarm(page, "can't be reached")).to_have_count(0)
    expect(page.locator(".needs")).to_contain_text("Paused Down")
    failed.get_by_role("link", name="1 task").click()
    expect(page).to_have_url(re.compile(r"/tasks\?state=Failed"))
    expect(page.locator("#results tbody tr")).to_have_count(1)


def test_how_the_work_goes_is_drawn(
    service: "ServiceStarter", page: "Page", axe: "AxeCheck"
) -> None:
    console = service()
    register(console, "early")
    deliver(console, "early")
    show(page, console.url)
    expect(page.locator("#told-ended")).to_have_text("1 delivered, 0 failed")
    expect(page.locator("#told-took")).to_contain_text("half within")
    assert painted(page, "accent") > 50
    assert painted(page, "bad") == 0
    register(console, "late")
    refuse(console, "late")
    expect(page.locator("#told-ended")).to_have_text("1 delivered, 1 failed")
    page.wait_for_function(
        "JSON.parse(document.querySelector('#course').dataset.course).data[2].includes(1)"
    )
    assert painted(page, "bad") > 50
    page.get_by_role("button", name="Theme").click()
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")
    assert painted(page, "accent") > 50
    page.reload()
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")
    page.get_by_role("button", name="Theme").click()
    page.get_by_role("link", name="Last day").click()
    expect(page.get_by_role("link", name="Last day")).to_have_attribute("aria-current", "true")
    expect(page.locator("#told-ended")).to_have_text("1 delivered, 1 failed")
    axe(page)


def test_states_are_counted_and_lead_to_their_tasks(console: "Service", page: "Page") -> None:
    register(console, "counted")
    show(page, console.url)
    figures = page.get_by_role("list", name="Tasks by state")
    succeeded = figures.get_by_role("link", name=re.compile("succeeded"))
    before = int(succeeded.locator("strong").inner_text())
    deliver(console, "counted")
    expect(succeeded.locator("strong")).to_have_text(str(before + 1))
    succeeded.click()
    expect(page).to_have_url(console.url + "/tasks?state=Succeeded")


def test_it_fits_a_phone_and_says_exact_times(
    console: "Service", narrow: "Page", axe: "AxeCheck"
) -> None:
    register(console, "phone", "A destination with a name that is rather long for a phone")
    refuse(console, "phone")
    show(narrow, console.url)
    expect(alarm(narrow, "rather long")).to_be_visible()
    shown = alarm(narrow, "rather long").locator("time")
    expect(shown).to_have_attribute("title", re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC$"))
    assert fits(narrow)
    axe(narrow)
