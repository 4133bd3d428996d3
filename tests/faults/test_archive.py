"""A real archive, restarted and full in between, and an agent that is killed: it ends with what was registered."""

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from clara_results.domain.receivers import Verify
from clara_results.domain.tasks import State
from clara_results.payloads import FolderStore
from clara_results.wire.destinations import Destination
from clara_results.wire.tasks import Registration, ResultFile
from tests.conftest import eventually
from tests.support.archive import Instances, held_digests, limited_archive, started_run

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


@pytest.mark.parametrize("how", [Verify.METADATA, Verify.FULL])
def test_success_is_not_believed_where_the_receiver_is_asked_back(
    how: Verify, require_tool: Callable[[str], str], tmp_path: Path, service: "ServiceStarter", agent: "AgentStarter"
) -> None:  # fmt: skip
    """Orthanc 1.10.1, its storage full, answers success to instances of up to 4,096 bytes and keeps empty files."""
    instances = Instances(rows=16)
    served = service(retry_delay=0.3, retry_delay_max=0.5)
    instances.write(Path(served.payloads) / "pay" / "operator", 8)
    files = [
        ResultFile(uri=file.uri, size=file.size, modified=file.modified)
        for file in FolderStore(served.payloads).files("pay")
    ]
    (tmp_path / "index").mkdir()
    with limited_archive(
        require_tool, tmp_path / "orthanc", 0, IndexDirectory=str(tmp_path / "index"),
        MaximumStorageCacheSize=0,  # what it has not on disk it does not give out
        OverwriteInstances=True,  # what is sent again mends what it holds
        DicomAlwaysAllowFind=True, DicomAlwaysAllowGet=True,
    ) as (archive, storage):  # fmt: skip
        storage.fill()
        served.client.add_destination(
            Destination(
                name="Archive", ae_title=archive.ae_title, host="127.0.0.1", port=archive.dicom_port, verify=how
            )
        )  # fmt: skip
        body = Registration(
            agent="ClaraSCU", job_id="job", pipeline_id="pipe", payload_id="pay", data=["Archive"], files=files,
            max_retries=1000,
        )  # fmt: skip
        task_id = served.client.register(body).tasks[0].task_id
        agent(served)
        eventually(lambda: served.client.task(task_id).retries >= 2, "it is tried again", 60)
        assert archive.count() == len(files)  # it says that it has them
        assert served.client.task(task_id).counts.delivered == 0
        storage.free()
        eventually(lambda: served.client.task(task_id).state.finished, "the task ends", 60)
        assert served.client.task(task_id).state == State.SUCCEEDED
        assert held_digests(archive) == sorted(instances.digests.items())
