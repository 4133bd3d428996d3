"""A CT of 512 x 512 x 300 voxels can be looked at within 10 s, and takes the agent less than 2 GB of memory."""

from pathlib import Path

import pytest

pytest.importorskip("isal", reason="clara-results[render] is not installed")
from benchmarks.render.__main__ import measure, tabled

pytestmark = [pytest.mark.prove, pytest.mark.timeout(600)]


def test_a_large_ct_is_published_in_seconds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = measure(tmp_path, (512, 512, 300), rounds=2)
    with capsys.disabled():
        print("\n" + tabled(found))  # noqa: T201  (the figures are what this is for)
    for form, one in found.items():
        assert min(one.ours) < 10, form
        assert max(one.memory) < 2_000_000, form
