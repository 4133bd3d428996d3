"""``make demo-pipeline``: from a CT series to three receivers and a picture of the viewer."""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[2]
LIMIT = 90.0
"""Seconds of processor time that it may take: on two idle cores it is done in about half of that."""


@pytest.mark.prove
@pytest.mark.timeout(500)
def test_results_arrive_and_the_viewer_shows_them(
    tmp_path: Path, require_tool: Callable[[str], str]
) -> None:
    for tool in ("Orthanc", "dcmqrscp", "chromium"):
        require_tool(tool)
    environment = {
        **os.environ,
        "TMPDIR": str(tmp_path),
        "PATH": os.environ["PATH"] + ":/usr/sbin",
        "PYTHONPATH": str(ROOT),
    }

    done = subprocess.run(
        [sys.executable, "-m", "examples.demo_pipeline"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=400,
    )

    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    for name in ("Orthanc", "DCM4CHEE", "ImageViewer1"):
        arrived = rf"^  {name} +Succeeded +4 of 4 delivered, receiver holds 4$"
        assert len(re.findall(arrived, said, re.MULTILINE)) == 2, said
    assert len(re.findall(r"^  Render Server +Succeeded", said, re.MULTILINE)) == 2, said
    shown = re.findall(r"Lungs 4\d{3}\.\d ml, Lesion 3\d\.\d ml", said)
    assert len(shown) == 2, said
    assert len(set(shown)) == 1, said  # by the SEG as by the label map
    assert "Every receiver holds all results of both runs" in said, said
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert used.ru_utime + used.ru_stime < LIMIT
    with Image.open(tmp_path / "demo-pipeline.png") as picture:
        assert picture.size == (1280, 800)
        colours = picture.convert("RGB").getcolors(1280 * 800)
    assert colours is not None
    assert len(colours) > 500  # a volume is drawn, not an empty page
