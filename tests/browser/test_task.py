"""The page of a task: what happened to it, its files, and what can be done about it."""

from typing import TYPE_CHECKING

from playwright.sync_api import expect

from clara_results.domain.tasks import Outcome, State
from clara_results.wire.destinations import Destination
from clara_results.wire.tasks import FailureReport, FileOutcome, Progress, Renewal
from tests.browser.conftest import deliver, fits, refuse, register, show

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

    from tests.browser.conftest import AxeCheck, Faults
    from tests.conftest import CtWriter, Service

A700 = "refused: out of resources"
A900 = "the data set does not match its SOP class"


def files(page: "Page") -> "Locator":
    return page.locator("#files tbody tr")


def test_a_failed_task_says_why_and_is_retried(
    console: "Service", page: "Page", narrow: "Page", axe: "AxeCheck", write_ct: "CtWriter"
) -> None:
    (task,) = register(console, "failed")
    for number in range(2):
        write_ct(console.payloads / "failed" / "dicom" / f"{number}.dcm", size=64)
    refuse(console, "failed")
    for one in (page, narrow):
        show(one, f"{console.url}/tasks/{task.task_id}")
        expect(one.locator("#summary h1")).to_contain_text("PACS")
        expect(one.locator("#summary .badge")).to_have_text("Failed")
        expect(one.locator("#summary")).to_contain_text("Some files were rejected.")
        expect(one.locator(".timeline li strong")).to_have_text(
            ["Failed", "Taken up", "Registered"]
        )
        expect(files(one).first).to_contain_text(f"A900 {A900}")
        assert fits(one)
        picture = files(one).first.locator("img")
        picture.scroll_into_view_if_needed()
        one.wait_for_function(
            "image => image.complete && image.naturalWidth > 0", arg=picture.element_handle()
        )
        axe(one)
    page.get_by_role("button", name="Retry", exact=True).click()
    dialog = page.locator("#act")
    expect(dialog.get_by_role("heading")).to_have_text("Retry 1 task?")
    axe(page, "#act")
    dialog.get_by_role("button", name="Retry").click()
    expect(page.locator("#summary .badge")).to_have_text("Pending")
    expect(narrow.locator("#summary .badge")).to_have_text("Pending")
    expect(page.locator(".timeline li").first).to_contain_text("Retried by a person")
    assert console.client.task(task.task_id).state == State.PENDING


def test_what_an_agent_does_shows_while_it_does_it(console: "Service", page: "Page") -> None:
    (task,) = register(console, "busy", files=3)
    show(page, f"{console.url}/tasks/{task.task_id}")
    expect(page.locator("#summary")).to_contain_text("It waits for its agent, agent-busy")
    (claimed,) = console.client.claim("agent-busy", size=1)
    expect(page.locator("#summary .badge")).to_have_text("In progress")
    renewal = Renewal(
        lease_token=claimed.lease_token or "",
        files=[
            FileOutcome(
                uri="dicom/0.dcm", outcome=Outcome.DELIVERED, code="B007", sop_instance_uid="1.2.3"
            )
        ],
        progress=Progress(files_delivered=1, bytes_delivered=1_234_000),
    )
    console.client.renew(task.task_id, renewal)
    expect(page.locator("#summary")).to_contain_text("1 files, 1.23 MB in this attempt")
    expect(page.locator(".counts")).to_contain_text("1 delivered")
    expect(files(page).first).to_contain_text("B007 stored, with a warning")
    files(page).first.get_by_text("Identifiers").click()
    progress = Progress(files_delivered=2, bytes_delivered=2_468_000)
    again = Renewal(lease_token=claimed.lease_token or "", progress=progress)
    console.client.renew(task.task_id, again)
    expect(page.locator("#summary")).to_contain_text("2.47 MB")
    expect(files(page).first.get_by_text("1.2.3", exact=True)).to_be_visible()
    page.get_by_role("button", name="Cancel", exact=True).click()
    page.locator("#act").get_by_role("button", name="Cancel the delivery").click()
    expect(page.locator("#summary .badge")).to_have_text("Canceled")
    expect(page.locator("#summary")).to_contain_text("1 of 3 files were delivered before")
    expect(page.get_by_role("button", name="Cancel", exact=True)).to_have_count(0)


def test_its_files_are_sent_once_more_elsewhere(console: "Service", page: "Page") -> None:
    (task,) = register(console, "again", "PACS")
    for number in range(2):
        path = console.payloads / "again" / "dicom" / f"{number}.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * 1000)
    deliver(console, "again")
    console.client.add_destination(
        Destination(name="Research", ae_title="RESEARCH", host="127.0.0.1", port=104)
    )
    show(page, f"{console.url}/tasks/{task.task_id}")
    expect(page.locator("#summary")).to_contain_text("The receiver has all 2 files.")
    page.get_by_role("button", name="Redeliver …").click()
    page.get_by_label("Destination").select_option("Research")
    page.get_by_role("button", name="Redeliver", exact=True).click()
    expect(page.locator("#summary h1")).to_contain_text("Research")
    page.get_by_role("link", name=task.task_id).first.click()
    expect(page.locator(".timeline li").first).to_contain_text("Sent once more, as a new task")


def test_files_that_are_gone_are_said_in_words(
    console: "Service", page: "Page", faults: "Faults"
) -> None:
    (task,) = register(console, "no-files")
    deliver(console, "no-files")
    show(page, f"{console.url}/tasks/{task.task_id}")
    page.get_by_role("button", name="Redeliver …").click()
    page.get_by_role("button", name="Redeliver", exact=True).click()
    expect(page.locator("#redeliver-fault")).not_to_be_empty()
    faults.allow("status of 4")


def test_many_files_are_paged_and_chosen_by_outcome(console: "Service", page: "Page") -> None:
    (task,) = register(console, "files", files=60)
    (claimed,) = console.client.claim("agent-files", size=1)
    outcomes = [FileOutcome(uri=f"dicom/{n}.dcm", outcome=Outcome.DELIVERED) for n in range(58)]
    outcomes += [
        FileOutcome(uri=f"dicom/{n}.dcm", outcome=Outcome.RETRY, code="A700") for n in (58, 59)
    ]
    report = FailureReport(retry_later=True, lease_token=claimed.lease_token, files=outcomes)
    console.client.fail(task.task_id, report)
    show(page, f"{console.url}/tasks/{task.task_id}")
    expect(page.locator("#summary")).to_contain_text("To be tried again")
    expect(files(page)).to_have_count(50)
    page.get_by_role("link", name="More files").click()
    expect(files(page)).to_have_count(10)
    page.get_by_role("link", name="To be sent again").click()
    expect(files(page)).to_have_count(2)
    expect(files(page).first).to_contain_text(f"A700 {A700}")
    raw = page.get_by_text("The raw record")
    raw.click()
    expect(page.locator("#raw code")).to_contain_text('"state": "Pending"')
