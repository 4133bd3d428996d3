"""Small pictures of payloads' files: made of what has one, and nothing else happens at what has none."""

import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image
from pydicom.pixels.utils import compress
from pydicom.uid import JPEG2000Lossless

from clara_results.service.thumbnails import Thumbnails

if TYPE_CHECKING:
    from tests.conftest import CtWriter
    from tests.integration.conftest import Answer, LocalService

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
SIZE = 256


def thumbnail(local: "LocalService", uri: str) -> "Answer":
    return local.call("GET", f"/thumbnails/pay/{uri}")


def pixels(answer: "Answer") -> np.ndarray:
    assert (answer.status, answer.headers["Content-Type"]) == (200, "image/png"), answer.data
    image = Image.open(io.BytesIO(answer.data))
    image.load()
    return np.asarray(image)


def half_bright() -> bytes:
    """Return pixels whose right half is bright."""
    frame = np.zeros((SIZE, SIZE), np.int16)
    frame[:, SIZE // 2 :] = 1000
    return frame.tobytes()


def check_halves(picture: np.ndarray) -> None:
    assert picture.shape == (128, 128)
    assert picture[:, :60].max() < 30
    assert picture[:, 68:].min() > 220


def test_a_dicom_instance_has_a_picture(local: "LocalService", write_ct: "CtWriter") -> None:
    write_ct(local.payloads / "pay" / "a b.dcm", size=SIZE, PixelData=half_bright())
    check_halves(pixels(thumbnail(local, "a%20b.dcm")))


def test_a_compressed_instance_has_one_too(local: "LocalService", write_ct: "CtWriter") -> None:
    path = local.payloads / "pay" / "a.dcm"
    image = write_ct(path, size=SIZE, PixelData=half_bright())
    compress(image, JPEG2000Lossless)
    image.save_as(path, enforce_file_format=True)
    check_halves(pixels(thumbnail(local, "a.dcm")))


def test_the_instance_s_own_window_counts(local: "LocalService", write_ct: "CtWriter") -> None:
    path = local.payloads / "pay" / "a.dcm"
    write_ct(path, size=SIZE, PixelData=half_bright(), WindowCenter=1000, WindowWidth=2000)
    picture = pixels(thumbnail(local, "a.dcm"))
    assert picture[:, :60].max() < 30
    write_ct(path, size=SIZE, PixelData=half_bright(), PhotometricInterpretation="MONOCHROME1")
    assert pixels(thumbnail(local, "a.dcm"))[:, :60].min() > 220


def test_a_png_has_a_picture_in_colour(local: "LocalService") -> None:
    content = io.BytesIO()
    Image.new("RGB", (300, 150), (200, 20, 20)).save(content, "PNG")
    local.put_file("a.png", content.getvalue())
    picture = pixels(thumbnail(local, "a.png"))
    assert picture.shape == (64, 128, 3)
    assert tuple(picture[30, 60]) == (200, 20, 20)


def test_what_has_no_picture_shows_as_an_icon(local: "LocalService", write_ct: "CtWriter") -> None:
    folder = local.payloads / "pay"
    local.put_file("a.txt", b"no picture")
    write_ct(folder / "report.dcm", PixelData=None, Rows=None, Columns=None)
    write_ct(folder / "damaged.dcm", size=SIZE)
    damaged = (folder / "damaged.dcm").read_bytes()
    (folder / "damaged.dcm").write_bytes(damaged[:2000])
    for uri in ("a.txt", "report.dcm", "damaged.dcm", "nothing.dcm"):
        answer = thumbnail(local, uri)
        assert (answer.status, answer.headers["Content-Type"]) == (200, "image/svg+xml"), uri
    thumbnail(local, "..%2F..%2Fetc%2Fpasswd").problem(422, "unsafe-uri")


def test_a_file_that_takes_too_long_or_ends_the_child_costs_only_its_own_picture(
    local: "LocalService", write_ct: "CtWriter", tmp_path: Path
) -> None:
    path = tmp_path / "a.dcm"
    write_ct(path, size=SIZE, PixelData=half_bright())
    hasty = Thumbnails(limit=0.0)
    with path.open("rb") as file:
        assert hasty.of(file, "one") == b""
    hasty.close()
    patient = Thumbnails(limit=60.0)
    with path.open("rb") as file:
        made = patient.of(file, "one")
        assert made.startswith(b"\x89PNG")
        assert patient._child is not None
        patient._child.close()  # as at a crash
        assert patient.of(file, "one") == made  # kept
        assert patient.of(file, "two") == b""
        assert patient.of(file, "three") == made
    patient.close()
