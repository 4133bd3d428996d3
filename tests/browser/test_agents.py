"""The page of agents, as a person uses it."""

import re
from typing import TYPE_CHECKING

from playwright.sync_api import expect

from clara_results.wire.tasks import Progress, Renewal
from tests.browser.conftest import agent_of, deliver, fits, register, show

if TYPE_CHECKING:
    from playwright.sync_api import Page

    from tests.browser.conftest import AxeCheck
    from tests.conftest import Service, ServiceStarter


def test_without_agents_it_says_how_to_start_one(
    service: "ServiceStarter", page: "Page", axe: "AxeCheck"
) -> None:
    running = service()
    show(page, running.url + "/agents")
    expect(page.get_by_role("heading", name="No agent has asked")).to_be_visible()
    expect(page.locator("pre")).to_contain_text(
        f"clara-results agent dicom --service {running.url}"
    )
    axe(page)


def test_what_an_agent_holds_and_how_far_it_is_are_shown_live(
    console: "Service", page: "Page", axe: "AxeCheck"
) -> None:
    (task,) = register(console, "holds-1", "PACS", files=4)
    agent = show(page, console.url + "/agents").locator(f"#agent-{agent_of('holds-1')}")
    expect(agent).to_contain_text("Never seen")
    expect(agent).to_contain_text("1 task waits")
    expect(agent).to_contain_text("Nobody delivers its tasks")

    (claimed,) = console.client.claim(agent_of("holds-1"), size=1)
    expect(agent).to_contain_text("1 at work")
    expect(agent).to_contain_text("0 tasks wait")
    held = agent.locator(f"#held-{task.task_id}")
    expect(held).to_contain_text("0/4")
    progress = Progress(files_delivered=3, bytes_delivered=2000)
    console.client.renew(
        task.task_id, Renewal(lease_token=claimed.lease_token or "", progress=progress)
    )
    expect(held).to_contain_text("3/4")
    expect(held).to_contain_text("2 kB")
    expect(held.get_by_role("progressbar", name="files delivered")).to_have_attribute("value", "3")
    expect(agent.get_by_role("cell", name=re.compile("clara-results"))).to_be_visible()
    axe(page)
    held.get_by_role("link", name="PACS").click()
    expect(page).to_have_url(re.compile(task.task_id))


def test_on_a_phone_each_process_is_a_card(
    console: "Service", narrow: "Page", axe: "AxeCheck"
) -> None:
    register(console, "phone-1", "PACS")
    deliver(console, "phone-1")
    show(narrow, console.url + "/agents")
    agent = narrow.locator(f"#agent-{agent_of('phone-1')}")
    expect(agent).to_contain_text("Waits for tasks")
    assert fits(narrow)
    axe(narrow)
