"""20,000 instances into an Orthanc that is restarted three times and full once, by an agent that is killed twice.

``PROVE_INSTANCES=5000`` makes it a shorter run; with many fewer all is delivered before anything happens to it.
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.archive import started_run

if TYPE_CHECKING:
    from tests.conftest import AgentStarter, ServiceStarter

pytestmark = [pytest.mark.prove, pytest.mark.timeout(1000)]

COUNT = int(os.environ.get("PROVE_INSTANCES") or 20_000)
WITHIN = 900.0
"""Seconds for the whole run."""
PROBES = 6
"""Instances that the archive refuses while it is full, after it was found to be so."""


def test_orthanc_ends_with_what_was_registered_whatever_happens(
    require_tool: Callable[[str], str], tmp_path: Path, service: "ServiceStarter", agent: "AgentStarter",
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    with started_run(
        require_tool, tmp_path, service, agent, COUNT, WITHIN, retry_delay=1, retry_delay_max=2
    ) as (run, instances):
        try:
            run.reach(0.10)
            run.kill_agent()
            run.reach(0.25)
            run.restart_archive(signal.SIGTERM)
            run.reach(0.40)
            run.fill_storage(PROBES)
            run.reach(0.55)
            run.restart_archive(signal.SIGKILL)
            run.reach(0.70)
            run.kill_agent()
            run.reach(0.85)
            run.restart_archive(signal.SIGKILL)
            run.finish(instances.digests)
        finally:
            with capsys.disabled():
                sys.stdout.write("\n" + "\n".join(run.facts) + "\n")
