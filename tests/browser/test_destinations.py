"""The pages of destinations: adding, testing, changing, pausing and removing one, as a person does it."""

import re
from typing import TYPE_CHECKING

from playwright.sync_api import expect

from clara_results.api.access import COOKIE
from clara_results.domain.tasks import State
from clara_results.wire.destinations import Destination
from tests.browser.conftest import agent_of, deliver, fits, make_token, refuse, register, show

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

    from tests.browser.conftest import AxeCheck, Faults
    from tests.conftest import Service, ServiceStarter, StoreScpStarter


def choose(page: "Page", label: str) -> None:
    page.get_by_label(label, exact=True).check()


def standing(page: "Page") -> "Locator":
    return page.locator("#standing")


def confirm(page: "Page", button: str) -> None:
    page.locator("#confirm").get_by_role("button", name=button).click()


def test_a_newcomer_adds_one_and_tests_it(
    service: "ServiceStarter", storescp: "StoreScpStarter", page: "Page", axe: "AxeCheck"
) -> None:
    console, receiver = service(), storescp()
    show(page, console.url + "/destinations")
    expect(page.get_by_role("heading", name="There is no destination yet")).to_be_visible()
    axe(page)
    page.get_by_role("link", name="Add a destination").click()
    expect(page.get_by_label("Name", exact=True)).to_be_focused()
    page.keyboard.type("PACS")
    page.get_by_label("AE title", exact=True).fill("STORESCP")
    page.get_by_label("Host", exact=True).fill("127.0.0.1")
    page.get_by_label("Port", exact=True).fill(str(receiver.port))
    axe(page)
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="PACS", level=1)).to_be_visible()
    (added,) = console.client.destinations()
    assert (added.name, added.ae_title, added.port) == ("PACS", "STORESCP", receiver.port)
    assert (added.transcode, added.overwrite, added.max_associations) == (True, False, 2)

    page.get_by_role("button", name="Test").click()
    tested = page.locator("#tested")
    expect(tested).to_have_attribute("data-ok", "true")
    expect(tested.get_by_role("row", name=re.compile("^echo passed [0-9.]+ ms"))).to_be_visible()
    expect(tested.locator("summary")).to_contain_text(re.compile(r"Takes \d+ of \d+"))
    if tested.locator("details").get_attribute("open") is None:
        tested.locator("summary").click()
    expect(tested.get_by_role("row", name=re.compile("CT Image Storage")).first).to_be_visible()
    axe(page)

    receiver.stop()
    page.get_by_role("button", name="Test").click()
    expect(tested).to_have_attribute("data-ok", "false")
    expect(tested.get_by_role("row", name=re.compile("^connect failed"))).to_contain_text("refused")
    axe(page)


def test_what_is_wrong_is_said_at_its_field(
    console: "Service", page: "Page", axe: "AxeCheck", faults: "Faults"
) -> None:
    faults.allow("422")
    show(page, console.url + "/destinations/new")
    page.get_by_label("Name", exact=True).fill("Wrong")
    page.get_by_label("AE title", exact=True).fill("A\\B")
    page.get_by_label("Host", exact=True).fill("127.0.0.1")
    page.get_by_label("Port", exact=True).fill("7x")
    page.get_by_role("button", name="Add it").click()
    port = page.get_by_label("Port", exact=True)
    expect(port).to_have_attribute("aria-invalid", "true")
    expect(port).to_have_value("7x")
    expect(page.locator("#fault-port")).to_contain_text("not a TCP port: 1 to 65535")
    expect(page.get_by_label("AE title", exact=True)).to_be_focused()
    expect(page.get_by_role("alert").filter(has_text="Not saved")).to_contain_text("2 things")
    axe(page)
    page.get_by_label("AE title", exact=True).fill("AB")
    port.fill("104")
    page.get_by_role("button", name="Add it").click()
    expect(page.get_by_role("heading", name="Wrong", level=1)).to_be_visible()
    show(page, console.url + "/destinations/new")
    page.get_by_label("Name", exact=True).fill("wrong")
    choose(page, "DICOMweb (STOW-RS)")
    expect(page.get_by_label("Port", exact=True)).to_be_hidden()
    page.get_by_label("URL", exact=True).fill("https://127.0.0.1/dicom-web")
    page.get_by_role("button", name="Add it").click()
    expect(page.locator("#fault-name")).to_contain_text("already")


def test_all_that_can_be_set_is_set_and_kept(console: "Service", page: "Page") -> None:
    before = Destination(
        name="Full", ae_title="FULL", host="127.0.0.1", port=104, calling_ae_title="ME"
    )
    console.client.add_destination(before)
    show(page, console.url + "/destinations/Full")
    page.get_by_role("link", name="Edit").click()
    choose(page, "DICOMweb (STOW-RS)")
    page.get_by_label("Name", exact=True).fill("Web")
    page.get_by_label("URL", exact=True).fill("https://127.0.0.1:8443/dicom-web")
    page.get_by_label("Associations or connections at the same time").fill("7")
    page.get_by_label("Send in another transfer syntax what it refuses").uncheck()
    page.get_by_label("Ask back what it stored").select_option("full")
    page.locator("form summary").click()
    choose(page, "Set up TLS here")
    page.get_by_label("Trusted authorities (PEM)").fill("ca.pem")
    page.get_by_label("Way").select_option("oauth2")
    for label, value in (
        ("Token URL", "https://127.0.0.1/token"), ("Client id", "clara"), ("Secret", "client.secret"),
    ):  # fmt: skip
        page.get_by_label(label, exact=True).fill(value)
    page.get_by_label("What its statuses mean").fill("C000 retry\nCxxx reject")
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_role("heading", name="Web", level=1)).to_be_visible()
    there = console.client.destination("Web")
    assert (there.kind, there.url) == ("dicomweb", "https://127.0.0.1:8443/dicom-web")
    assert (there.ae_title, there.host, there.port, there.calling_ae_title) == (None,) * 4
    assert (there.max_associations, there.transcode, there.verify.value) == (7, False, "full")
    assert there.tls is not None
    assert (there.tls.ca, there.tls.certificate, there.tls.check_host) == ("ca.pem", None, True)
    assert there.auth is not None
    assert (there.auth.kind.value, there.auth.client_id) == ("oauth2", "clara")
    assert (there.auth.token_url, there.auth.secret) == ("https://127.0.0.1/token", "client.secret")
    assert there.statuses == {"C000": "retry", "Cxxx": "reject"}

    page.get_by_role("link", name="Edit").click()
    expect(page.get_by_label("Client id")).to_have_value("clara")
    expect(page.get_by_label("User name")).to_be_hidden()
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_role("heading", name="Web", level=1)).to_be_visible()
    assert console.client.destination("Web") == there


def test_it_is_paused_and_resumed_and_its_work_is_counted_live(
    console: "Service", page: "Page", axe: "AxeCheck"
) -> None:
    body = Destination(name="Busy", ae_title="BUSY", host="127.0.0.1", port=104)
    console.client.add_destination(body)
    register(console, "busy-1", "Busy")
    register(console, "busy-2", "Busy")
    show(page, console.url + "/destinations/Busy")
    expect(standing(page).get_by_role("listitem").filter(has_text="waiting")).to_contain_text("2")
    page.get_by_role("button", name="Pause").click()
    expect(standing(page)).to_contain_text("its tasks wait until somebody resumes it")
    assert console.client.claim(agent_of("busy-1"), size=1) == []
    page.get_by_role("button", name="Resume").click()
    expect(page.get_by_role("button", name="Pause")).to_be_visible()
    deliver(console, "busy-1")
    refuse(console, "busy-2")
    expect(standing(page)).to_contain_text("50.0 % of 2")
    expect(standing(page)).to_contain_text("Failed: waits for a person")
    expect(standing(page).get_by_role("link", name="1 task", exact=True)).to_be_visible()
    axe(page)
    show(page, console.url + "/destinations")
    expect(page.locator("#row-busy")).to_contain_text("50.0 % of 2")
    axe(page)


def test_it_is_deleted_only_when_confirmed(
    console: "Service", page: "Page", axe: "AxeCheck"
) -> None:
    body = Destination(name="Gone", ae_title="GONE", host="127.0.0.1", port=104)
    console.client.add_destination(body)
    (task,) = register(console, "gone-1", "Gone")
    show(page, console.url + "/destinations/Gone")
    page.get_by_role("button", name="Delete").click()
    dialog = page.locator("#confirm")
    expect(dialog).to_contain_text(
        "Delete the destination Gone? 1 task to it is not finished: it will fail"
    )
    expect(dialog.get_by_role("button", name="Keep as it is")).to_be_focused()
    axe(page)
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    assert console.client.destination("Gone").name == "Gone"
    page.get_by_role("button", name="Delete").click()
    confirm(page, "Delete it")
    expect(page).to_have_url(console.url + "/destinations")
    assert "Gone" not in [item.name for item in console.client.destinations()]
    assert console.client.task(task.task_id).state is State.PENDING


def test_it_fits_a_phone(console: "Service", narrow: "Page", axe: "AxeCheck") -> None:
    body = Destination(name="Phone", kind="dicomweb", url="https://127.0.0.1/" + "long-path/" * 9)
    console.client.add_destination(body)
    for place in ("", "/Phone", "/Phone/edit"):
        show(narrow, console.url + "/destinations" + place)
        assert fits(narrow), place
        axe(narrow)


def test_who_may_only_look_is_offered_nothing_to_change(
    service: "ServiceStarter", page: "Page", faults: "Faults"
) -> None:
    console = service()
    body = Destination(name="PACS", ae_title="PACS", host="127.0.0.1", port=104)
    console.client.add_destination(body)
    token = make_token(console, "read")
    page.context.add_cookies([{"name": COOKIE, "value": token, "url": console.url}])
    show(page, console.url + "/destinations/PACS")
    expect(page.get_by_text("127.0.0.1:104")).to_be_visible()
    for name in ("Test", "Pause", "Delete"):
        expect(page.get_by_role("button", name=name)).to_have_count(0)
    expect(page.get_by_role("link", name="Edit")).to_have_count(0)
    faults.allow("403")
    show(page, console.url + "/destinations/new")
    expect(page.locator("main")).to_contain_text("operate")
