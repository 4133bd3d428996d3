"""The render agent beside a real service: what is registered can be looked at, whole or not at all."""

import json
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("isal", reason="clara-results[render] is not installed")
from clara_results.domain.tasks import Outcome, State
from clara_results.errors import NotFound
from clara_results.wire.datasets import Dataset
from clara_results.wire.tasks import Registration, ResultFile, Task
from tests.conftest import eventually
from tests.support.volumes import LANDMARK, labels, ras, volume, write

if TYPE_CHECKING:
    from tests.conftest import AgentStarter, CtWriter, Service, ServiceStarter

WAIT = 60.0


def register(service: "Service", folder: Path, payload: str = "pay", job_id: str = "job") -> Task:
    """Register all files of a payload's folder."""
    files = [
        ResultFile(uri=path.relative_to(folder).as_posix(), size=path.stat().st_size)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    ]
    body = Registration(
        agent="RenderServer", job_id=job_id, pipeline_id="pipe", payload_id=payload, files=files
    )  # fmt: skip
    (task,) = service.client.register(body).tasks
    return task


def ended(service: "Service", task: Task) -> Task:
    """Wait until a task has ended."""
    eventually(lambda: service.client.task(task.task_id).state.finished, "the task ends", WAIT, 0.1)
    return service.client.task(task.task_id)


def content(service: "Service", made: Dataset, uri: str) -> bytes:
    with service.client.get_dataset_file(made.dataset_id, uri) as download:
        return b"".join(download.pieces)


def outcomes(service: "Service", task: Task) -> dict[str, tuple[Outcome, str | None]]:
    return {file.uri: (file.outcome, file.code) for file in service.client.files(task.task_id).items}  # fmt: skip


def test_volumes_series_and_labels_become_datasets(
    service: "ServiceStarter", agent: "AgentStarter", write_ct: "CtWriter"
) -> None:
    running = service(retry_delay=0.1)
    folder = running.payloads / "pay"
    write(volume(), folder / "op/ct.mhd")
    write(labels(), folder / "op/ct.output.mhd")
    segments = [{"value": 2, "name": "Tumour", "color": "#aa0000"}]
    (folder / "op/ct.output.json").write_text(json.dumps({"segments": segments}))
    for number in range(3):
        write_ct(folder / f"series/{number}.dcm", number=number)
    (folder / "report.pdf").write_bytes(b"%PDF")
    originals = {path.name: path.read_bytes() for path in (folder / "op").iterdir()}
    agent(running, kind="render", payloads="")  # it fetches the files
    task = ended(running, register(running, folder))
    assert task.state == State.SUCCEEDED, task.last_error
    assert outcomes(running, task)["report.pdf"] == (Outcome.SKIPPED, "not-a-volume")
    assert task.counts.delivered == 8
    made = {one.name: one for one in running.client.datasets(taskId=task.task_id).items}
    ct, series = made["ct"], made["CT series 1"]
    assert len(made) == 2
    (label,) = ct.labels
    assert [one.name for one in label.values] == ["Label 1", "Tumour"]
    assert label.values[1].centre == pytest.approx(ras(volume(), LANDMARK), abs=1e-3)
    assert {Path(one.uri).name: content(running, ct, one.uri) for one in ct.originals} == originals
    assert content(running, ct, ct.volume.uri)[:2] == b"\x1f\x8b"
    assert content(running, ct, ct.previews.axial).startswith(b"\x89PNG")
    assert (series.modality, series.unit, series.volume.dims) == ("CT", "HU", [16, 16, 3])
    # The original's files stay where they are and as they are.
    assert {path.name: path.read_bytes() for path in (folder / "op").iterdir()} == originals
    running.client.remove_dataset(series.dataset_id)
    with pytest.raises(NotFound):
        running.client.dataset(series.dataset_id)
    what_is_bad_fails_and_the_rest_is_published(running)


def what_is_bad_fails_and_the_rest_is_published(running: "Service") -> None:
    folder = running.payloads / "bad"
    write(volume(), folder / "good.mha")
    write(volume((0, 1, 0, 1, 0, 0, 0, 0, 1)), folder / "bad.mhd")
    whole = (folder / "bad.raw").read_bytes()
    (folder / "bad.raw").write_bytes(b"short")
    task = ended(running, register(running, folder, "bad", job_id="bad"))
    assert task.state == State.FAILED
    assert outcomes(running, task) == {
        "good.mha": (Outcome.DELIVERED, None),
        "bad.mhd": (Outcome.REJECTED, "size-differs"),
        "bad.raw": (Outcome.REJECTED, "dataset-incomplete"),
    }
    (made,) = running.client.datasets(jobId="bad").items
    assert made.name == "good"
    # Mended and registered again, it is shown.
    (folder / "bad.raw").write_bytes(whole)
    again = ended(running, register(running, folder, "bad", job_id="mended"))
    assert again.state == State.SUCCEEDED
    names = {one.name for one in running.client.datasets(jobId="mended").items}
    assert names == {"good", "bad"}


def test_nothing_is_published_by_an_agent_that_is_killed_and_all_by_the_next(
    service: "ServiceStarter", agent: "AgentStarter"
) -> None:
    running = service()
    folder = running.payloads / "pay"
    write(volume(), folder / "ct.mhd")
    write(labels(), folder / "ct.output.mhd")
    first = agent(running, kind="render", lease=2)
    task = register(running, folder)
    eventually(
        lambda: running.client.task(task.task_id).state != State.PENDING, "it is begun", WAIT
    )
    os.kill(first.pid, signal.SIGKILL)
    eventually(
        lambda: running.client.task(task.task_id).state != State.IN_PROGRESS, "its lease ends", WAIT
    )
    before = running.client.datasets().items
    agent(running, kind="render")
    assert ended(running, task).state == State.SUCCEEDED
    (made,) = running.client.datasets().items
    assert before in ([], [made])  # not half
    assert len(made.labels) == 1
