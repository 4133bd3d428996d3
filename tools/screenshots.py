"""Take the pictures of the console that the documentation shows: ``make screenshots``.

It runs the liver-tumour pipeline as ``make demo-pipeline`` does, adds what goes wrong on a day at work (a receiver that
is off, one that is paused, a damaged file), and takes every page light, dark and narrow into ``docs/images``.
"""

import io
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from clara_results.domain.tasks import State
from clara_results.wire.destinations import Destination
from clara_results.wire.tasks import Registration, ResultFile
from examples.demo import (
    CLARA_RESULTS,
    ROOT,
    Product,
    choose_receivers,
    main,
    run,
    show,
    start_product,
    start_receivers,
)
from examples.demo_pipeline import AGENTS, agents_of, deliver
from examples.demo_receivers import Deadline, DemoFailed
from examples.make_dicom import make_study
from tools.ports import free_port

if TYPE_CHECKING:
    from playwright.sync_api import ViewportSize

IMAGES = ROOT / "docs" / "images"
CHROMIUM = "/usr/bin/chromium"
LIMIT = 60_000.0
"""Milliseconds that a page may take."""
OFF, PAUSED, DAMAGED = "Ward-3", "Research", "scan-0412"
_ARGUMENTS = [
    "--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Look:
    """A way to look at a page: how wide and high in CSS pixels, and in which colours."""

    name: str
    width: int
    height: int
    dark: bool = False


LOOKS = (
    Look("light", 1280, 800),
    Look("dark", 1280, 800, dark=True),
    Look("narrow", 390, 844),
)


@dataclass(frozen=True, slots=True)
class Shot:
    """A page to take.

    Attributes:
        name: Of the picture.
        place: Path of the page.
        act: What is done on it before; None: nothing.
        ready: Selector of what must be there.
    """

    name: str
    place: str
    act: Callable[[Page], None] | None = None
    ready: str = "html[data-ready='true']"


def register(product: Product, job: str, payload: str, uris: list[str], *to: str) -> None:
    """Register files of a payload as a pipeline's step does."""
    folder = product.payloads / payload
    product.client.register(
        Registration(
            agent="ClaraSCU",
            job_id=job,
            pipeline_id="liver-tumor",
            payload_id=payload,
            operator="register-dicom-output",
            data=list(to),
            files=[ResultFile(uri=uri, size=(folder / uri).stat().st_size) for uri in uris],
            verify=True,
        )
    )


def have_trouble(product: Product, deadline: Deadline) -> None:
    """Have a receiver that is off, one that is paused, a damaged file, and some that just arrive.

    Raises:
        DemoFailed: It did not come about in time.
    """
    client = product.client
    for name in (OFF, PAUSED):
        client.add_destination(
            Destination(name=name, ae_title=name.upper(), host="127.0.0.1", port=free_port())
        )
    client.pause_destination(PAUSED)
    make_study(product.payloads / DAMAGED)
    uris = [f"ct/{path.name}" for path in sorted((product.payloads / DAMAGED / "ct").iterdir())]
    broken = product.payloads / DAMAGED / uris[4]
    broken.write_bytes(broken.read_bytes()[:2000])
    for number, uri in enumerate(uris[8:], start=413):
        register(product, f"scan-{number:04}", DAMAGED, [uri], "Orthanc", "ImageViewer1")
    register(product, DAMAGED, DAMAGED, uris[:8], "Orthanc", OFF, PAUSED)

    def came_about() -> bool:
        failed = client.tasks(jobId=DAMAGED, state=State.FAILED.value).items
        return bool(failed) and client.destination(OFF).down_since is not None

    deadline.wait_for(came_about, "one task Failed and one destination is down")
    deadline.wait_for(
        lambda: not client.tasks(state=State.PENDING.value, destination="Orthanc").items,
        "what can be delivered is delivered",
    )


def shots(product: Product, dataset_id: str) -> Iterator[Shot]:
    """Return the pages, and what is done on them."""
    (failed,) = product.client.tasks(jobId=DAMAGED, state=State.FAILED.value).items

    def test(page: Page) -> None:
        page.get_by_role("button", name="Test", exact=True).click()
        page.locator("#tested").wait_for()

    def fill(page: Page) -> None:
        page.get_by_label("Name", exact=True).fill("PACS")
        page.get_by_label("AE title", exact=True).fill("PACS")

    def choose(page: Page) -> None:
        for box in page.locator("tbody input[type=checkbox]").all()[:3]:
            box.check()

    yield Shot("overview", "/")
    yield Shot("tasks", "/tasks", choose)
    yield Shot("task", f"/tasks/{failed.task_id}")
    yield Shot("job", f"/jobs/{DAMAGED}")
    yield Shot("destinations", "/destinations")
    yield Shot("destination", "/destinations/Orthanc", test)
    yield Shot("destination-down", f"/destinations/{OFF}")
    yield Shot("destination-new", "/destinations/new", fill)
    yield Shot("agents", "/agents")
    yield Shot("viewer", f"/viewer/{dataset_id}", ready="html[data-viewer='ready']")


def take(browser: Browser, url: str, shot: Shot) -> None:
    """Take a page in every way.

    Raises:
        DemoFailed: The service does not show it.
    """
    for look in LOOKS:
        size: ViewportSize = {"width": look.width, "height": look.height}
        context = browser.new_context(
            viewport=size, color_scheme="dark" if look.dark else "light", reduced_motion="reduce"
        )
        context.set_default_timeout(LIMIT)
        page = context.new_page()
        answer = page.goto(url + shot.place)
        if answer is None or not answer.ok:
            raise DemoFailed(f"the service does not show {shot.place}")
        page.wait_for_selector(shot.ready, state="attached")
        if shot.act is not None:
            shot.act(page)
            page.evaluate("scrollTo(0, 0)")
        keep(page.screenshot(), IMAGES / f"{shot.name}-{look.name}.webp")
        context.close()
    show(f"  {shot.name}")


def keep(picture: bytes, path: Path) -> None:
    """Write a picture without loss, in fewer bytes than the browser does."""
    with Image.open(io.BytesIO(picture)) as whole:
        whole.convert("RGB").save(path, lossless=True, method=6)


def need_token(product: Product, data: Path) -> None:
    """Make a token: from then on people sign in."""
    command = [str(CLARA_RESULTS), "tokens", "create", "night-shift", "--scope", "operate"]
    run([*command, "--data", str(data)], product.environment, silent=True)


def take_all(deadline: Deadline, running: ExitStack) -> None:
    """Run everything and take all pages.

    Args:
        deadline: By when it must be done.
        running: Gets all that has to be ended and removed afterwards.

    Raises:
        DemoFailed: Something did not go as it must.
    """
    folder = Path(running.enter_context(tempfile.TemporaryDirectory(prefix="clara-results-demo-")))
    study = make_study(folder / "study")
    receivers = choose_receivers(folder, study.study_instance_uid)
    start_receivers(receivers, folder, running, deadline)
    product = start_product(folder, receivers, running, deadline)
    IMAGES.mkdir(parents=True, exist_ok=True)
    with product.up.last_words():
        deadline.wait_for(lambda: agents_of(product) >= AGENTS, "both agents ask for tasks")
        ct, data = folder / "study" / "ct", folder / "data"
        dataset = deliver(product, "pipeline-volume.yaml", ct, data, receivers, deadline)
        have_trouble(product, deadline)
        show(f"taking pictures into {IMAGES.relative_to(ROOT)}")
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=_ARGUMENTS)
            for shot in shots(product, dataset.dataset_id):
                take(browser, product.url, shot)
            need_token(product, data)
            deadline.wait_for(lambda: _asks_for_a_token(browser, product.url), "tokens are needed")
            take(browser, product.url, Shot("login", "/"))
            browser.close()


def _asks_for_a_token(browser: Browser, url: str) -> bool:
    page = browser.new_page()
    page.goto(url)
    needed = page.url.startswith(f"{url}/login")
    page.close()
    return needed


if __name__ == "__main__":
    sys.exit(main("Take the pictures of the console that the documentation shows.", take_all))
