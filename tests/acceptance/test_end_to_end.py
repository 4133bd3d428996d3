"""The whole path, with real parts: register.py → Results Service → DICOM agent → Orthanc and DCMTK."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from clara_results.domain.tasks import State
from clara_results.wire.destinations import Destination
from clara_results.wire.tasks import Task
from tests.conftest import eventually

if TYPE_CHECKING:
    from tests.conftest import (
        AgentStarter,
        CtWriter,
        Orthanc,
        Service,
        ServiceStarter,
        StoreScpStarter,
    )

REGISTER = Path(__file__).parents[2] / "register.py"


def add(service: "Service", name: str, port: int) -> None:
    body = Destination(name=name, ae_title=name.upper(), host="127.0.0.1", port=port)
    service.client.add_destination(body)


def series(service: "Service", write_ct: "CtWriter", count: int) -> set[str]:
    folder = service.payloads / "payload-1" / "dicom-writer"
    return {
        str(write_ct(folder / f"{number:03}.dcm", number=number).SOPInstanceUID)
        for number in range(1, count + 1)
    }


def register(service: "Service", *destinations: str, job: str = "job-1") -> list[Task]:
    """End a pipeline as its definition does."""
    done = subprocess.run(
        [sys.executable, str(REGISTER), "--agent", "ClaraSCU", "--data", json.dumps(destinations), "--json"],
        env=os.environ
        | {
            "NVIDIA_CLARA_JOBID": job,
            "NVIDIA_CLARA_PIPELINEID": "pipeline-1",
            "NVIDIA_CLARA_PAYLOADID": "payload-1",
            "NVIDIA_CLARA_OPERATORNAME": "register-dicom-output",
            "NVIDIA_CLARA_INPUTPATHS": f"dicom:{service.payloads / 'payload-1' / 'dicom-writer'}",
            "CLARA_RESULTS_PAYLOADS": str(service.payloads),
            "CLARA_RESULTSSERVICE_SERVICE_HOST": "127.0.0.1",
            "CLARA_RESULTSSERVICE_SERVICE_PORT": service.url.rpartition(":")[2],
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    ids = [task["taskId"] for task in json.loads(done.stdout)["tasks"]]
    return [service.client.task(task_id) for task_id in ids]


def ends(service: "Service", task: Task, state: State, timeout: float = 30.0) -> Task:
    eventually(
        lambda: service.client.task(task.task_id).state.finished, f"{task.parameters} ends", timeout
    )
    done = service.client.task(task.task_id)
    assert done.state == state, done.last_error
    return done


def test_a_registered_series_arrives_in_orthanc_and_storescp(
    service: "ServiceStarter",
    agent: "AgentStarter",
    orthanc: "Orthanc",
    storescp: "StoreScpStarter",
    write_ct: "CtWriter",
) -> None:
    served = service()
    scp = storescp()
    add(served, "Orthanc", orthanc.dicom_port)
    add(served, "DCM4CHEE", scp.port)
    uids = series(served, write_ct, 20)
    agent(served)
    first, second = register(served, "Orthanc", "dcm4chee")
    assert (first.parameters, second.parameters) == ('"Orthanc"', '"dcm4chee"')
    for task in (first, second):
        done = ends(served, task, State.SUCCEEDED)
        assert (done.counts.delivered, done.retries, done.attempt) == (20, 0, 1)
    assert orthanc.sop_instance_uids() == uids
    assert scp.sop_instance_uids() == uids
    assert served.client.job("job-1").delivered
    told = {file.sop_instance_uid for file in served.client.files(first.task_id).items}
    assert told == uids


def test_an_agent_without_the_folder_fetches_files_from_the_service(
    service: "ServiceStarter",
    agent: "AgentStarter",
    storescp: "StoreScpStarter",
    write_ct: "CtWriter",
) -> None:
    served = service()
    scp = storescp()
    add(served, "Archive", scp.port)
    uids = series(served, write_ct, 5)
    agent(served, payloads="")
    ends(served, register(served, "Archive")[0], State.SUCCEEDED)
    assert scp.sop_instance_uids() == uids


def test_orthanc_may_be_away_for_long_and_all_arrives_without_help(
    service: "ServiceStarter", agent: "AgentStarter", orthanc: "Orthanc", write_ct: "CtWriter"
) -> None:
    served = service(retry_delay=0.05, retry_delay_max=0.4)
    add(served, "Orthanc", orthanc.dicom_port)
    uids = series(served, write_ct, 5)
    orthanc.stop()
    agent(served)
    (task,) = register(served, "Orthanc")
    # Ten minutes of one try a minute, in short.
    eventually(lambda: served.client.task(task.task_id).attempt >= 10, "ten tries", 30)
    waiting = served.client.task(task.task_id)
    assert waiting.retries == 0
    assert waiting.last_error is not None
    assert waiting.last_error.code == "destination-unavailable"
    assert served.client.destination("Orthanc").down_since is not None
    orthanc.start()
    done = ends(served, task, State.SUCCEEDED)
    assert done.retries == 0
    assert orthanc.sop_instance_uids() == uids


def test_a_task_without_a_dicom_file_fails_and_says_so(
    service: "ServiceStarter", agent: "AgentStarter", free_port: Callable[[], int]
) -> None:
    served = service()
    add(served, "Archive", free_port())
    folder = served.payloads / "payload-1" / "dicom-writer"
    folder.mkdir(parents=True)
    (folder / "report.pdf").write_bytes(b"%PDF-1.7")
    agent(served)
    done = ends(served, register(served, "Archive")[0], State.FAILED)
    assert done.last_error is not None
    assert done.last_error.code == "nothing-delivered"


def test_an_unknown_destination_fails_at_once_and_says_what_there_is(
    service: "ServiceStarter", agent: "AgentStarter", write_ct: "CtWriter"
) -> None:
    served = service()
    add(served, "Archive", 104)
    series(served, write_ct, 1)
    agent(served)
    done = ends(served, register(served, "Nowhere")[0], State.FAILED)
    assert (done.attempt, done.retries) == (1, 0)
    assert done.last_error is not None
    assert done.last_error.code == "unknown-destination"
    assert "Archive" in done.last_error.message
