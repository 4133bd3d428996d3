"""The viewer: what people see of a dataset is where it is in the patient, and every control does what it says."""

import dataclasses
import hashlib
import io
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import SimpleITK
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Page, expect

pytest.importorskip("isal", reason="clara-results[render] is not installed")
from clara_results.domain import datasets as domain
from clara_results.wire.datasets import Dataset, DatasetFile, Publication, Volume
from clara_results.wire.tasks import Registration, ResultFile
from tests.browser.conftest import LIMIT, fits
from tests.conftest import Service, eventually, start_agent
from tests.support import volumes

if TYPE_CHECKING:
    from tests.browser.conftest import AxeCheck, Faults

Pixels = NDArray[np.int16]
DIMS, SPACING = (64, 48, 40), (2.0, 2.5, 3.0)
BODY, LESION, VESSEL = 40, 90, 250
"""Hounsfield units of what the CT shows, in air."""
LESION_AT, VESSEL_AT = (44, 30, 18), (16, 20, 25)
"""Voxels in the middle of the two; the lesion is on the patient's left."""
LESION_COLOR, VESSEL_COLOR = "#e02040", "#2060f0"
FILES: dict[str, tuple[str, ...]] = {
    "flipped": (),
    "oblique": (),
    "no-matrix": ("TransformMatrix",),
}
DIRECTIONS = {"flipped": volumes.FLIPPED, "oblique": volumes.OBLIQUE}


def ct() -> tuple[SimpleITK.Image, SimpleITK.Image]:
    """Return a CT with a lesion and a vessel, and the label map that marks both."""
    k, j, i = np.indices(DIMS[::-1])
    values = np.full(DIMS[::-1], -1000, np.int16)
    values[((i - 31.5) / 28) ** 2 + ((j - 23.5) / 20) ** 2 < 1] = BODY
    marked = np.zeros(DIMS[::-1], np.uint8)
    for value, place, radius, units in ((1, LESION_AT, 6, LESION), (2, VESSEL_AT, 3, VESSEL)):
        inside = (i - place[0]) ** 2 + (j - place[1]) ** 2 + (k - place[2]) ** 2 <= radius**2
        values[inside], marked[inside] = units, value
    made = []
    for array in (values, marked):
        image = SimpleITK.GetImageFromArray(array)
        image.SetSpacing(SPACING)
        image.SetOrigin((-64.0, -60.0, 100.0))
        made.append(image)
    return made[0], made[1]


def write_ct(folder: Path) -> None:
    """Write the CT as a pipeline does: MetaImage with modality, label map, names and colours."""
    image, marked = ct()
    path = volumes.write(image, folder / "chest.mhd")
    header = path.read_text("ascii").replace("ElementType", "Modality = MET_MOD_CT\nElementType")
    path.write_text(header, "ascii")
    volumes.write(marked, folder / "chest.output.mhd")
    segments = [
        {"value": 1, "name": "Lesion <1>", "color": LESION_COLOR},
        {"value": 2, "name": "Vessel", "color": VESSEL_COLOR},
    ]
    (folder / "chest.output.json").write_text(json.dumps({"segments": segments}))


@pytest.fixture(scope="module")
def datasets(console: Service, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Dataset]:
    """Have the render agent publish the CT, and volumes with a landmark whose geometry differs; by name."""
    folder = console.payloads / "pay"
    write_ct(folder / "chest")
    for name, drop in FILES.items():
        direction = DIRECTIONS.get(name, volumes.IDENTITY)
        if drop:
            volumes.mhd(folder / name / f"{name}.mhd", drop=drop)
        else:
            volumes.write(volumes.volume(direction), folder / name / f"{name}.mhd")
        volumes.write(volumes.labels(direction), folder / name / f"{name}.output.mhd")
    running = start_agent(console, tmp_path_factory.mktemp("agent") / "agent.log", "render")
    try:
        task = register(console, "renderserver", folder)
        eventually(lambda: console.client.task(task).state.finished, "it is published", 90, 0.1)
    finally:
        running.stop()
    found = {made.name: made for made in console.client.datasets(taskId=task).items}
    assert set(found) == {"chest", *FILES}, console.client.task(task)
    return found


def register(service: Service, agent: str, folder: Path) -> str:
    """Register all files of a payload's folder."""
    files = [
        ResultFile(uri=path.relative_to(folder).as_posix(), size=path.stat().st_size)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    ]
    body = Registration(
        agent=agent, job_id="job", pipeline_id="pipe", payload_id=folder.name, files=files
    )
    return service.client.register(body).tasks[0].task_id


def publish_reduced(service: Service, made: Dataset, folder: Path) -> Dataset:
    """Publish a dataset's images once more, with a first look: every second voxel, which begin half a voxel further."""
    folder.mkdir()
    density = volumes.write(ct()[0], folder / "chest.mha")
    service.payloads.joinpath("by-hand").mkdir()
    (service.payloads / "by-hand" / "chest.mha").write_bytes(density.read_bytes())
    register(service, "by-hand", service.payloads / "by-hand")
    (task,) = service.client.claim("by-hand")
    dataset_id = domain.dataset_id(task.task_id, "chest.mha")

    def put(kind: str, path: Path) -> DatasetFile:
        content = path.read_bytes()
        sha256 = hashlib.sha256(content).hexdigest()
        uri = domain.file_uri(kind, sha256, path.name)
        file = DatasetFile(uri=uri, size=len(content), sha256=sha256)
        assert task.lease_token is not None
        service.client.put_dataset_file(
            task.task_id, dataset_id, task.lease_token, file, io.BytesIO(content)
        )
        return file

    def fetched(kind: str, uri: str) -> DatasetFile:
        with service.client.get_dataset_file(made.dataset_id, uri) as download:
            path = folder / uri.rpartition("/")[2]
            path.write_bytes(b"".join(download.pieces))
        return put(kind, path)

    looks = []
    for image, name in zip(ct(), ("look.nii.gz", "look-label.nii.gz"), strict=True):
        looks.append(put("look", volumes.write(SimpleITK.BinShrink(image, (2, 2, 2)) if name == "look.nii.gz" else image[::2, ::2, ::2], folder / name)))  # fmt: skip
    look = Volume(
        **dataclasses.asdict(looks[0]), dims=[32, 24, 20], spacing=[4, 5, 6], value_range=[-1000, 250], dtype="int16"
    )  # fmt: skip
    label = dataclasses.replace(made.labels[0], first_look_uri=looks[1].uri)
    for file in (made.volume, label):
        fetched(file.uri.split("/")[0], file.uri)
    png = fetched("preview", made.previews.axial).uri
    previews = dataclasses.replace(made.previews, axial=png, coronal=png, sagittal=png)
    assert task.lease_token is not None
    body = Publication(
        lease_token=task.lease_token, density="chest.mha", files=["chest.mha"], name="by hand", modality="CT", unit="HU",
        volume=made.volume, first_look=look, labels=[label], largest_label=made.largest_label, previews=previews,
        originals=[put("original", density)],
    )  # fmt: skip
    return service.client.publish(task.task_id, dataset_id, body)


# What the browser shows


def start(page: Page, service: Service, dataset: Dataset) -> Page:
    """Open a dataset and wait until its images are drawn."""
    page.goto(f"{service.url}/viewer/{dataset.dataset_id}")
    page.wait_for_selector(
        "html:not([data-viewer='loading'])[data-ready='true']", state="attached", timeout=2 * LIMIT
    )
    words = page.locator("#failure").text_content() or ""
    assert page.locator("html").get_attribute("data-viewer") == "ready", words
    return page


def pixels(page: Page) -> Pixels:
    """Return what the canvas shows: rows from the top, columns from the left, red, green and blue."""
    image = Image.open(io.BytesIO(page.locator("#viewer").screenshot())).convert("RGB")
    return np.asarray(image).astype(np.int16)


def tile(page: Page, kind: int) -> dict[str, Any]:
    """Return where on the canvas a plane is (0 axial, 1 coronal, 2 sagittal), in pixels, and how many mm it spans."""
    found: list[dict[str, Any]] = page.evaluate(
        "nv.screenSlices.map((s) => ({kind: s.axCorSag, box: [...s.leftTopWidthHeight], "
        "fov: [...s.fovMM].map(Math.abs)}))"
    )
    return next(shown for shown in found if shown["kind"] == kind)


def part(image: Pixels, box: list[float]) -> Pixels:
    left, top, width, height = (round(value) for value in box)
    return image[top : top + height, left : left + width]


def is_red(image: Pixels) -> NDArray[np.bool_]:
    return (image[..., 0] - image[..., 1] > 40) & (image[..., 0] - image[..., 2] > 25)


def redness(image: Pixels) -> int:
    return int((image[..., 0] - image[..., 1]).max())


def is_blue(image: Pixels) -> NDArray[np.bool_]:
    return (image[..., 2] - image[..., 0] > 40) & (image[..., 2] - image[..., 1] > 25)


def middle(mask: NDArray[np.bool_]) -> tuple[float, float]:
    """Return the column and the row in the middle of what a mask marks."""
    rows, columns = np.nonzero(mask)
    assert len(rows) > 0, "nothing is there"
    return float(columns.mean()), float(rows.mean())


def crosshair(page: Page) -> list[float]:
    found: list[float] = page.evaluate(
        "[...nv.frac2mm(nv.scene.crosshairPos, 0, true)].slice(0, 3)"
    )
    return found


def window(page: Page) -> tuple[float, float]:
    low, high = page.evaluate("[nv.volumes[0].cal_min, nv.volumes[0].cal_max]")
    return low, high


def near(one: list[float], other: list[float], limit: float = 0.05) -> bool:
    return math.dist(one, other) <= limit


@pytest.fixture
def viewer(
    new_page: Callable[[int, int], Page], console: Service, datasets: dict[str, Dataset]
) -> Page:
    """Open the CT; a small page, as every pixel is drawn in software."""
    return start(new_page(1024, 640), console, datasets["chest"])


def test_it_opens_at_the_largest_label_and_shows_it_on_its_side(
    viewer: Page, datasets: dict[str, Dataset], axe: "AxeCheck"
) -> None:
    lesion = volumes.ras(ct()[0], LESION_AT)
    assert near(crosshair(viewer), lesion)
    assert viewer.evaluate("nv.volumes.length") == 2
    assert viewer.evaluate("nv.getRadiologicalConvention()")
    assert window(viewer) == (-160, 240)  # soft tissue, as it is a CT
    expect(viewer.locator("#at-value")).to_have_text(f"{LESION} HU")
    expect(viewer.locator("#at-label")).to_have_text("Lesion <1>")
    expect(viewer.locator("#at-voxel")).to_have_text(", ".join(map(str, LESION_AT)))
    sides = [
        ("RL"[lesion[0] < 0], lesion[0]),
        ("AP"[lesion[1] < 0], lesion[1]),
        ("SI"[lesion[2] < 0], lesion[2]),
    ]
    expect(viewer.locator("#at-mm")).to_have_text(
        re.compile(r"\s+".join(f"{side} {abs(at):.1f}" for side, at in sides))
    )
    legend = viewer.locator(".legend")
    for value in datasets["chest"].labels[0].values:
        shown = f"{value.volume_ml:.2f} ml" if value.volume_ml < 10 else f"{value.volume_ml:.0f} ml"
        expect(legend).to_contain_text(value.name)
        expect(legend).to_contain_text(shown)
    image = pixels(viewer)
    for kind in (0, 1, 2):
        box = tile(viewer, kind)["box"]
        plane = part(image, box)
        column, _ = middle(is_red(plane))
        across = lesion[0] if kind < 2 else lesion[1]
        # The patient's left, and the back, are right on the screen; the lesion lies left and in the back.
        assert across < 0
        assert column > box[2] / 2
        body = (abs(plane[..., 0] - plane[..., 2]) < 12) & (plane[..., 0] > 90)
        assert body.mean() > 0.2, "the body is not seen"
    assert viewer.evaluate("[...document.querySelectorAll('.swatch')].map((s) => getComputedStyle(s).backgroundColor)") == [
        "rgb(224, 32, 64)", "rgb(32, 96, 240)",
    ]  # fmt: skip
    axe(viewer)
    viewer.locator("[data-do=help]").click()
    axe(viewer, "#help")


def test_labels_are_hidden_faded_and_gone_to(viewer: Page) -> None:
    red = is_red(pixels(viewer)).sum()
    viewer.get_by_label("Show Lesion <1>").uncheck()
    assert is_red(pixels(viewer)).sum() < red / 50
    viewer.get_by_label("Show Lesion <1>").check()
    assert is_red(pixels(viewer)).sum() > red * 0.9
    box = tile(viewer, 0)["box"]
    full = redness(part(pixels(viewer), box))
    viewer.locator("#opacity").fill("20")
    expect(viewer.locator("#opacity-words")).to_have_text("20 %")
    viewer.wait_for_function("nv.volumes[1].opacity === 0.2")
    assert 0.2 * full < redness(part(pixels(viewer), box)) < 0.6 * full
    viewer.locator("#viewer").focus()
    viewer.keyboard.press("r")
    viewer.get_by_role("button", name="Vessel").click()
    assert near(crosshair(viewer), volumes.ras(ct()[0], VESSEL_AT))
    expect(viewer.locator("#at-value")).to_have_text(f"{VESSEL} HU")
    column, _ = middle(is_blue(part(pixels(viewer), box)))
    assert column < box[2] / 2  # the patient's right is left on the screen
    viewer.locator("#viewer").focus()
    viewer.keyboard.press("l")
    shown = pixels(viewer)
    assert is_blue(part(shown, box)).sum() == is_red(part(shown, box)).sum() == 0


def test_the_window_is_set_by_presets_numbers_and_dragging(viewer: Page) -> None:
    def body() -> float:
        left, top, width, height = tile(viewer, 0)["box"]
        near_front = pixels(viewer)[round(top + height * 0.25), round(left + width * 0.4)]
        return float(near_front.mean())

    before = body()
    viewer.locator("#preset").select_option(label="Lung (2)")
    assert window(viewer) == (-1350, 150)
    expect(viewer.locator("#level")).to_have_value("-600")
    assert body() > before + 40  # soft tissue is nearly white there
    viewer.locator("#level").fill("300")
    viewer.locator("#level").press("Enter")
    assert window(viewer) == (-450, 1050)
    expect(viewer.locator("#preset")).to_have_value("-1")
    viewer.locator("#width").fill("-5")
    viewer.locator("#width").press("Enter")
    expect(viewer.locator("#width")).to_have_value("1500")  # refused: as it was
    viewer.locator("#viewer").focus()
    viewer.keyboard.press("5")
    assert window(viewer) == (-500, 1300)
    place = viewer.locator("#viewer").bounding_box()
    assert place is not None
    x, y = place["x"] + 100, place["y"] + 200
    viewer.mouse.move(x, y)
    viewer.mouse.down(button="right")
    viewer.mouse.move(x - 40, y - 20)
    viewer.mouse.up(button="right")
    low, high = window(viewer)
    assert high - low == pytest.approx(1800 - 40 * 1250 / 500)
    assert (high + low) / 2 == pytest.approx(400 + 20 * 1250 / 500)
    assert near(crosshair(viewer), volumes.ras(ct()[0], LESION_AT))


def test_keys_and_mouse_move_through_the_volume(viewer: Page) -> None:
    lesion = volumes.ras(ct()[0], LESION_AT)
    viewer.locator("#viewer").focus()
    for key, axis, step in (
        ("ArrowLeft", 0, 2.0),
        ("PageDown", 1, -2.5),
        ("Shift+ArrowUp", 2, 30.0),
    ):
        before = crosshair(viewer)
        viewer.keyboard.press(key)
        moved = [after - was for after, was in zip(crosshair(viewer), before, strict=True)]
        assert near(moved, [step if number == axis else 0.0 for number in range(3)]), key
    viewer.keyboard.press("r")
    assert near(crosshair(viewer), lesion)
    place = viewer.locator("#viewer").bounding_box()
    assert place is not None
    shown = tile(viewer, 0)
    left, top, width, height = shown["box"]
    # A quarter from the left and a third from the top: there the crosshair is to be.
    viewer.mouse.click(place["x"] + left + width / 4, place["y"] + top + height / 3)
    x, y, z = crosshair(viewer)
    greatest = volumes.ras(ct()[0], (0, 0, 0))  # the voxel most to the right and in front
    fov = [size * step for size, step in zip(DIMS, SPACING, strict=True)]
    assert x == pytest.approx(greatest[0] + SPACING[0] / 2 - fov[0] / 4, abs=SPACING[0])
    assert y == pytest.approx(greatest[1] + SPACING[1] / 2 - fov[1] / 3, abs=SPACING[1])
    viewer.mouse.wheel(0, 100)
    viewer.wait_for_function(f"Math.abs(nv.frac2mm(nv.scene.crosshairPos, 0, true)[2] - ({z})) > 1")
    viewer.mouse.dblclick(place["x"] + left + width / 4, place["y"] + top + height / 3)
    expect(viewer.locator("[data-layout=axial]")).to_have_attribute("aria-pressed", "true")
    assert viewer.evaluate("nv.screenSlices.length") == 1
    assert window(viewer) == (-160, 240)


def test_3d_is_cut_and_zoomed_and_a_picture_taken(viewer: Page) -> None:
    viewer.locator("#viewer").focus()
    viewer.keyboard.press("d")
    assert viewer.evaluate("nv.screenSlices[0].axCorSag") == 4
    viewer.locator("#cut").fill("100")
    alone = pixels(viewer)
    assert is_red(alone).sum() > 50
    gray = (alone.min(axis=2) > 60) & (np.ptp(alone, axis=2) < 12)
    assert gray.mean() < 0.01, "the image is cut away, the labels stand alone"
    viewer.keyboard.press("m")
    viewer.keyboard.press("=")
    assert viewer.evaluate("nv.scene.pan2Dxyzmm[3]") == 1.25
    viewer.keyboard.press("0")
    assert viewer.evaluate("[...nv.scene.pan2Dxyzmm]") == [0, 0, 0, 1]
    with viewer.expect_download() as saving:
        viewer.keyboard.press("p")
    assert saving.value.suggested_filename == "chest-multi.png"
    picture = np.asarray(Image.open(saving.value.path()).convert("RGB")).astype(np.int16)
    assert is_red(picture).sum() > 500


@pytest.mark.parametrize("name", FILES)
def test_a_landmark_is_seen_where_it_is(
    new_page: Callable[[int, int], Page], console: Service, datasets: dict[str, Dataset], name: str
) -> None:
    page = new_page(960, 640)
    image = volumes.volume(DIRECTIONS.get(name, volumes.IDENTITY))
    landmark = volumes.ras(image, volumes.LANDMARK)
    start(page, console, datasets[name])
    assert near(crosshair(page), landmark)
    expect(page.locator("#at-value")).to_have_text("2000")
    expect(page.locator("#at-voxel")).to_have_text(", ".join(map(str, volumes.LANDMARK)))
    page.locator("#preset").select_option(label="All values (2)")
    page.locator("#viewer").focus()
    page.keyboard.press("l")  # only the landmark itself is bright then
    page.evaluate("nv.opts.isOrientationTextVisible = false; nv.setCrosshairWidth(0)")
    corners = np.array([volumes.ras(image, corner) for corner in volumes.corners()])
    shown = pixels(page)
    for kind, across, up in ((0, 0, 1), (1, 0, 2), (2, 1, 2)):
        box, fov = tile(page, kind)["box"], tile(page, kind)["fov"]
        column, row = middle(part(shown, box).min(axis=2) > 180)
        # Left on the screen are the patient's right and front, on top front and head: where coordinates are greatest.
        middle_across = (corners[:, across].max() + corners[:, across].min()) / 2
        middle_up = (corners[:, up].max() + corners[:, up].min()) / 2
        assert (box[2] / 2 - column) * fov[0] / box[2] == pytest.approx(
            landmark[across] - middle_across, abs=1.0
        ), kind
        assert (box[3] / 2 - row) * fov[1] / box[3] == pytest.approx(
            landmark[up] - middle_up, abs=1.0
        ), kind


def test_a_first_look_comes_first_and_a_view_is_saved(
    page: Page, console: Service, datasets: dict[str, Dataset], tmp_path: Path
) -> None:
    made = publish_reduced(console, datasets["chest"], tmp_path / "reduced")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    start(page, console, made)
    assert page.locator("html").get_attribute("data-resolution") == "first-look"
    assert not [url for url in asked if made.volume.uri in url or made.labels[0].uri in url]
    assert page.evaluate("nv.volumes[0].dims.slice(1, 4)") == [32, 24, 20]
    expect(page.locator("#at-value")).to_contain_text("about")
    page.locator("[data-do=full]").click()
    expect(page.locator("html")).to_have_attribute("data-resolution", "full")
    expect(page.locator("#reduced")).to_be_hidden()
    expect(page.locator("#at-value")).to_have_text(f"{LESION} HU")
    assert near(crosshair(page), volumes.ras(ct()[0], LESION_AT))
    assert page.evaluate("nv.volumes[0].dims.slice(1, 4)") == list(DIMS)
    assert is_red(pixels(page)).sum() > 500
    page.get_by_label("Show Lesion <1>").uncheck()
    page.get_by_role("button", name="Vessel").click()
    page.locator("#preset").select_option(label="Bone (5)")
    page.locator("[data-layout=coronal]").click()
    page.locator("[data-do=save]").click()
    expect(page.locator("#view-words")).to_contain_text("Saved.")
    view = console.client.dataset(made.dataset_id).view
    assert view is not None
    assert view["window"] == [-500, 1300]
    start(page, console, made)
    expect(page.locator("#view-words")).to_contain_text("as it was saved")
    expect(page.locator("[data-layout=coronal]")).to_have_attribute("aria-pressed", "true")
    assert near(crosshair(page), volumes.ras(ct()[0], VESSEL_AT), 3.0)
    assert window(page) == (-500, 1300)
    shown = pixels(page)
    assert is_red(shown).sum() == 0
    assert is_blue(shown).sum() > 500
    page.locator("[data-do=reset]").click()
    assert is_red(pixels(page)).sum() > 500


def test_it_serves_on_a_phone(
    narrow: Page, console: Service, datasets: dict[str, Dataset], axe: "AxeCheck"
) -> None:
    start(narrow, console, datasets["chest"])
    assert fits(narrow)
    assert is_red(pixels(narrow)).sum() > 100
    narrow.locator("[data-layout=axial]").click()
    assert is_red(pixels(narrow)).sum() > 300
    axe(narrow)


def test_what_goes_wrong_is_said_in_words(
    new_page: Callable[[int, int], Page],
    console: Service,
    datasets: dict[str, Dataset],
    faults: "Faults",
    axe: "AxeCheck",
) -> None:
    faults.allow("404")
    url = f"{console.url}/viewer/{datasets['chest'].dataset_id}"
    page = new_page(1280, 800)
    page.route(
        "**/volume/**", lambda route: route.fulfill(status=404, json={"code": "file-not-found"})
    )
    page.goto(url)
    expect(page.locator("#failure")).to_contain_text("The dataset's file is gone")
    expect(page.locator("html")).to_have_attribute("data-viewer", "failed")
    axe(page)
    page.unroute("**/volume/**")
    page.get_by_role("button", name="Try again").click()
    expect(page.locator("html")).to_have_attribute("data-viewer", "ready", timeout=2 * LIMIT)
    page.add_init_script(
        "const get = HTMLCanvasElement.prototype.getContext;"
        "HTMLCanvasElement.prototype.getContext = function (kind, ...more) {"
        "  return kind === 'webgl2' ? null : get.call(this, kind, ...more); };"
    )
    page.goto(url)
    expect(page.locator("#failure")).to_contain_text("This browser can't draw volumes")
    assert page.locator("#poster img").first.is_visible()
    page.goto(f"{console.url}/viewer/none")
    expect(page.locator("main")).to_contain_text("no such dataset")
