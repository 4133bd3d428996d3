"""The liver-tumour pipeline from a CT series to three receivers and the viewer: ``make demo-pipeline``.

In a temporary folder it starts the product (``clara-results up``) and three DICOM receivers, makes a CT series of the
sample volume, and runs both definitions of ``examples/liver-tumor`` on it with ``clara-results pipeline run``: the original
page's own, and the one that gives the volume with its label map to the Render Server. It ends by itself; exit 0 only if every
receiver holds all results, asked of itself, and the volume with its labels is shown by the viewer, of which it leaves a
picture in ``demo-pipeline.png``.

The segmentation is a classical stand-in: not AI, not a medical device. The sample is a chest CT, and what it finds there is
the lungs and a lesion, not a liver and its tumour.
"""

import shutil
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from playwright.sync_api import Error as BrowserError
from playwright.sync_api import sync_playwright

from clara_results.domain.tasks import State
from clara_results.wire.datasets import Dataset
from clara_results.wire.tasks import Task
from examples.demo import (
    CLARA_RESULTS,
    LOOK,
    ROOT,
    Product,
    choose_receivers,
    main,
    run,
    show,
    sop_instance_uids,
    start_product,
    start_receivers,
    watch,
)
from examples.demo_receivers import Deadline, DemoFailed, Receiver
from examples.make_dicom import make_study

DEFINITIONS = ROOT / "examples" / "liver-tumor"
AGENTS = {"clarascu", "renderserver"}
"""Whom the definitions register results for."""
PICTURE = Path("demo-pipeline.png")
BROWSER_LIMIT = 60_000
"""Milliseconds that the browser may take to show the volume."""


def run_pipeline(product: Product, definition: Path, job: str, ct: Path, data: Path) -> set[str]:
    """Check and run a definition; return the SOP Instance UIDs of the DICOM results.

    Args:
        product: The product.
        definition: The pipeline.
        job: What the run is called.
        ct: Folder of the series.
        data: The service's own folder.

    Raises:
        DemoFailed: The definition is not right, or an operator failed.
    """
    pipeline = [str(CLARA_RESULTS), "pipeline"]
    run([*pipeline, "check", str(definition), "--service", product.url], product.environment)
    run(
        [*pipeline, "run", str(definition), "--input", str(ct), "--data", str(data), "--job", job],
        product.environment,
    )
    return sop_instance_uids((product.payloads / job / "dicom-writer" / "dicom").glob("*.dcm"))


def agents_of(product: Product) -> set[str]:
    """Return the names of the agents that have asked for tasks."""
    product.up.check()
    return {each.agent for each in product.client.agents().items}


def rendered(product: Product, job: str, deadline: Deadline) -> Task:
    """Wait until the Render Server has taken a job's results up.

    Raises:
        DemoFailed: It failed, or time is up.
    """
    while True:
        product.up.check()
        (task,) = (task for task in product.client.job(job).tasks if task.agent == "renderserver")
        if task.state.finished:
            break
        deadline.pause(LOOK, "the Render Server has taken the results up")
    show(f"  {'Render Server':14}{task.state.value:12}{task.counts.delivered:3} files delivered")
    if task.state is not State.SUCCEEDED:
        reason = task.last_error.message if task.last_error else ""
        raise DemoFailed(f"the Render Server's task {task.state.value}: {reason}")
    return task


def dataset_of(product: Product, task: Task) -> Dataset:
    """Return the volume with labels that a task has published.

    Raises:
        DemoFailed: There is none.
    """
    for dataset in product.client.datasets(taskId=task.task_id).items:
        if dataset.labels:
            named = [
                f"{value.name} {value.volume_ml:.1f} ml"
                for label in dataset.labels
                for value in label.values
            ]
            show(f"  the viewer has a volume of {dataset.volume.dims} voxels: {', '.join(named)}")
            return dataset
    raise DemoFailed("the Render Server published no volume with labels")


def take_picture(url: str, picture: Path) -> None:
    """Leave a picture of a page of the viewer, once it has drawn; without a browser, say so.

    Raises:
        DemoFailed: The page shows nothing in time.
    """
    program = shutil.which("chromium")
    if program is None:
        show(f"Chromium is not installed: no picture is taken of {url}")
        return
    arguments = ["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader"]
    arguments += ["--enable-unsafe-swiftshader"]
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=program, args=arguments)
            page = browser.new_page(viewport={"width": 1280, "height": 800})
            answer = page.goto(url, timeout=BROWSER_LIMIT)
            if answer is None or not answer.ok:
                raise DemoFailed(f"the service has no viewer at {url}")
            page.wait_for_selector("html[data-viewer='ready']", timeout=BROWSER_LIMIT)
            page.screenshot(path=picture)
            browser.close()
    except BrowserError as error:
        raise DemoFailed(f"the viewer shows nothing at {url}: {error}") from error
    show(f"  a picture of the viewer is in {picture}")


def deliver(
    product: Product,
    definition: str,
    ct: Path,
    data: Path,
    receivers: dict[str, Receiver],
    deadline: Deadline,
) -> Dataset:
    """Run a definition, and wait until its results are where they are to go; return what the viewer has of them.

    Raises:
        DemoFailed: They did not all arrive.
    """
    job = f"demo-{definition.removesuffix('.yaml')}"
    wanted = run_pipeline(product, DEFINITIONS / definition, job, ct, data)
    watch(product, job, receivers, wanted, deadline)
    return dataset_of(product, rendered(product, job, deadline))


def demo(deadline: Deadline, running: ExitStack) -> None:
    """Run the demo.

    Args:
        deadline: By when it must be done.
        running: Gets all that has to be ended and removed afterwards.

    Raises:
        DemoFailed: Something did not go as it must.
    """
    began = time.monotonic()
    folder = Path(running.enter_context(tempfile.TemporaryDirectory(prefix="clara-results-demo-")))
    study = make_study(folder / "study")
    ct = folder / "study" / "ct"
    show(f"made a CT series of {len(list(ct.iterdir()))} slices")

    show("starting the receivers")
    receivers = choose_receivers(folder, study.study_instance_uid)
    start_receivers(receivers, folder, running, deadline)
    show("starting the Results Service and its agents")
    product = start_product(folder, receivers, running, deadline)

    with product.up.last_words():
        deadline.wait_for(lambda: agents_of(product) >= AGENTS, "both agents ask for tasks")
        deliver(product, "pipeline.yaml", ct, folder / "data", receivers, deadline)
        dataset = deliver(product, "pipeline-volume.yaml", ct, folder / "data", receivers, deadline)
        take_picture(f"{product.url}/viewer/{dataset.dataset_id}", PICTURE)
    seconds = time.monotonic() - began
    show(
        "Every receiver holds all results of both runs, by its own account, and the viewer shows the volume with its "
        f"labels ({seconds:.1f} s). The segmentation is a stand-in: not AI, not a medical device."
    )


if __name__ == "__main__":
    sys.exit(main("Run the liver-tumour pipeline, deliver its results, and watch.", demo, 300.0))
