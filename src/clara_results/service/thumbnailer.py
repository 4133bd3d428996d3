"""The child process that makes thumbnails: decoders are native code, and a damaged file may end them or have them run on.

It needs what the extra ``render`` installs; without that, no file has a picture. Nothing of a file but its picture is sent back.
"""

import io
import os
import resource
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from clara_results.payloads.child import serve

SIDE = 128
"""Pixels of a thumbnail's longer side."""
MEMORY = 1 << 30
"""Bytes that decoding may take beyond what the process has at first."""
PIXELS = 64_000_000
"""Of one frame at the most."""
NEEDED = ("numpy", "PIL.Image", "pydicom.pixels")
"""What the extra ``render`` installs."""
NICE = 10
"""Below the service's own work."""


def picture_of(path: str) -> bytes:
    """Return a file's thumbnail as PNG; empty: it has no picture that can be shown.

    A DICOM instance is shown with its own first window (PS3.3 C.11.2), else from its darkest hundredth to its brightest; of
    several frames the middle one.
    """
    from pydicom.misc import is_dicom

    frame = _of_dicom(path) if is_dicom(path) else _of_image(path)
    if frame is None:
        return b""
    frame.thumbnail((SIDE, SIDE))
    made = io.BytesIO()
    frame.save(made, "PNG")
    return made.getvalue()


def _of_image(path: str) -> Any:
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = PIXELS
    image = Image.open(path, formats=["PNG", "JPEG"])
    image.draft("RGB", (SIDE, SIDE))
    return image.convert("L" if image.mode in {"1", "L"} else "RGB")


def _of_dicom(path: str) -> Any:
    from PIL import Image
    from pydicom import dcmread

    head = dcmread(path, stop_before_pixels=True)
    if "Rows" not in head or head.Rows * head.Columns > PIXELS:
        return None
    return Image.fromarray(_shades(head, _frame(path, head)))


def _frame(path: str, head: Any) -> Any:
    """Return an instance's middle frame: rows, columns, and samples where there are three."""
    from pydicom.pixels.utils import pixel_array

    return pixel_array(path, index=int(head.get("NumberOfFrames", None) or 1) // 2)


def _shades(head: Any, frame: Any) -> Any:
    """Return a frame's pixels as 8-bit grey or RGB."""
    import numpy as np
    from pydicom.pixels.processing import apply_color_lut, apply_modality_lut, apply_voi_lut

    if head.PhotometricInterpretation == "PALETTE COLOR":
        frame = apply_color_lut(frame, head)
    if frame.ndim == 3:
        deep = frame.dtype.itemsize > 1
        return (frame >> 8).astype(np.uint8) if deep else frame.astype(np.uint8)
    values = apply_modality_lut(frame, head)
    if "WindowCenter" in head or "VOILUTSequence" in head:
        values = np.asarray(apply_voi_lut(values, head), dtype=np.float64)
        low, high = values.min(), values.max()
    else:
        values = np.asarray(values, dtype=np.float64)
        low, high = np.percentile(values, (1, 99))
        if high <= low:
            low, high = values.min(), values.max()
    shades = np.clip((values - low) / max(high - low, 1e-9), 0, 1)
    if head.PhotometricInterpretation == "MONOCHROME1":
        shades = 1 - shades
    return (shades * 255).astype(np.uint8)


def _answer(connection: Connection) -> None:
    path = connection.recv_bytes().decode()
    try:
        picture = picture_of(path)
    except Exception:  # noqa: BLE001  (outermost: whatever a file holds, and whatever its decoder raises, it has no picture)
        picture = b""
    connection.send_bytes(picture)


def main() -> None:
    """Make thumbnails until the parent has no more need of them."""
    os.nice(NICE)
    for name in NEEDED:  # with all that they map, before memory is bounded
        import_module(name)
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY, mapped + MEMORY))
    serve(_answer)


if __name__ == "__main__":
    main()
