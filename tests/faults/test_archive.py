"""A real archive, restarted and full in between, and an agent that is killed: it ends with what was registered."""

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.archive import started_run

if TYPE_CHECKING:
    from tests.conftest import AgentStarter, ServiceStarter

COUNT = 400


@pytest.mark.timeout(110)
def test_orthanc_ends_with_what_was_registered(
    require_tool: Callable[[str], str], tmp_path: Path, service: "ServiceStarter", agent: "AgentStarter"
) -> None:  # fmt: skip
    with started_run(
        require_tool, tmp_path, service, agent, COUNT, 90, retry_delay=0.3, retry_delay_max=0.5
    ) as (run, instances):
        try:
            run.reach(0.1)
            run.kill_agent()
            run.reach(0.3)
            run.fill_storage(3)
            run.reach(0.6)
            run.restart_archive(signal.SIGKILL)
            run.finish(instances.digests)
        finally:
            sys.stdout.write("\n" + "\n".join(run.facts) + "\n")  # to be seen if it fails
