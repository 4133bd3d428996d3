"""A pipeline that is run here ends with results that are registered with a real service, and delivered."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typer.testing import CliRunner

from clara_results.cli.pipeline import app
from clara_results.domain.tasks import State
from clara_results.wire.destinations import Destination
from tests.conftest import eventually

if TYPE_CHECKING:
    from collections.abc import Callable

    from typer.testing import Result

    from tests.conftest import AgentStarter, CtWriter, Service, ServiceStarter, StoreScpStarter

ROOT = Path(__file__).parents[2]
PATIENCE = 90.0
PIPELINE = """\
api-version: 0.4.0
name: three-slices
operators:
- name: register
  container:
    image: clara/register-results
    command: ["python", "register.py", "--agent", "ClaraSCU", "--data", "[\\"Orthanc\\"]"]
  input:
  - from: copy
    name: dicom
    path: /dicom
- name: copy
  container:
    image: test/copy
    command: ["cp", "-r", "/input/.", "/output"]
  input:
  - from: ${{dicom-input-from-adapter}}
    name: ${{input-file-from-adapter}}
    path: /input
  output:
  - name: dicom
    path: /output
"""


def pipeline(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments)])


def files(tmp_path: Path, write_ct: CtWriter) -> tuple[Path, Path]:
    """Write the definition with its images, and an input of three slices; return both paths."""
    definition = tmp_path / "pipeline.yaml"
    definition.write_text(PIPELINE)
    (tmp_path / "images.yaml").write_text(
        f"images:\n  test/copy: {{}}\n  clara/register-results: {{folder: {ROOT}}}\n"
    )
    for number in (1, 2, 3):
        write_ct(tmp_path / "ct" / f"{number}.dcm", number=number)
    return definition, tmp_path / "ct"


def registered(running: Service, job: str) -> dict[str, Any]:
    """Return what a job's one task is of, and where its files came from."""
    [task] = running.client.job(job).tasks
    uris = sorted(file.uri for file in running.client.files(task.task_id).items)
    return {"task": task, "uris": uris}


def test_results_go_from_the_pipeline_to_the_receiver(
    tmp_path: Path,
    service: ServiceStarter,
    agent: AgentStarter,
    storescp: StoreScpStarter,
    write_ct: CtWriter,
    free_port: Callable[[], int],
) -> None:
    definition, ct = files(tmp_path, write_ct)
    running = service()
    check = ("check", definition, "--service", running.url, "--json")

    told = json.loads(pipeline(*check).stdout)["faults"]
    assert [fault["code"] for fault in told] == ["unknown-agent", "unknown-destination"]
    assert [(fault["line"], fault["column"]) for fault in told] == [(7, 51), (7, 73)]

    receiver = storescp()
    agent(running)
    eventually(lambda: bool(running.client.agents().items), "the agent's first claim", PATIENCE)
    there = Destination(name="Orthanc", ae_title="ANY", host="127.0.0.1", port=free_port())
    running.client.add_destination(there)
    checked = pipeline(*check)
    assert checked.exit_code == 2
    [fault] = json.loads(checked.stdout)["faults"]
    assert fault["code"] == "destination-unavailable"
    assert "the destination 'Orthanc' does not answer: " in fault["message"]

    running.client.replace_destination(
        "Orthanc",
        Destination(name="Orthanc", ae_title="ANY", host="127.0.0.1", port=receiver.port),
    )
    assert pipeline(*check).exit_code == 0

    begun = ("run", definition, "--input", ct, "--service", running.url, "--data", running.data)
    ran = pipeline(*begun, "--job", "job-1")
    assert ran.exit_code == 0, ran.exception
    assert "clara-results tasks list --job job-1" in ran.stderr
    found = registered(running, "job-1")
    task = found["task"]
    assert (task.agent, task.parameters) == ("clarascu", '"Orthanc"')
    assert (task.pipeline_id, task.payload_id, task.operator) == ("three-slices", "job-1", "register")  # fmt: skip
    assert found["uris"] == [f"copy/dicom/{number}.dcm" for number in (1, 2, 3)]  # in place
    eventually(lambda: running.client.job("job-1").tasks[0].state is State.SUCCEEDED, "delivery", PATIENCE)  # fmt: skip
    assert len(receiver.files()) == 3

    elsewhere = tmp_path / "elsewhere"  # a folder that the service does not see
    ran = pipeline(*begun[:-1], elsewhere, "--job", "job-2", "--upload")
    assert ran.exit_code == 0, ran.exception
    assert all(uri.startswith("register/dicom/") for uri in registered(running, "job-2")["uris"])
