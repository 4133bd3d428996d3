"""A step of a pipeline costs less than 30 ms beside what its operator takes."""

import statistics
from pathlib import Path

import pytest

from benchmarks.pipeline.__main__ import STEPS, Ours

MOST = 0.030
ROUNDS = 7


@pytest.mark.prove
@pytest.mark.parametrize("chain", [True, False], ids=["chain", "side by side"])
def test_twenty_steps_that_do_nothing(tmp_path: Path, chain: bool) -> None:
    ours = Ours(tmp_path / "ours", chain=chain)
    steps = [inner / STEPS for _, inner in (ours.run() for _ in range(ROUNDS))]
    assert statistics.median(steps) < MOST, [f"{step * 1000:.1f} ms" for step in steps]
