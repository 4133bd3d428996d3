"""schemathesis against a running service: no answer is a fault of its own, each is as the OpenAPI document says.

It makes calls of all kinds from the document alone, valid and invalid. Names and ids of what is there are given to it, so
that it comes past "not found". What it found is in its output: the call as a curl command.
"""

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from clara_results.wire.destinations import Destination
from clara_results.wire.tasks import FailureReport, Registration, SuccessReport

if TYPE_CHECKING:
    from tests.conftest import Service, ServiceStarter

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
)
"""Not that all is refused which breaks the document: ``0`` for ``false`` is taken, as the original took it."""
CONFIGURATION = """
[dictionaries.task_ids]
values = {task_ids}
[dictionaries.agents]
values = ["ClaraSCU", "clarascu"]
[dictionaries.names]
values = ["Receiver", "receiver", "Paused"]
[dictionaries.jobs]
values = ["job"]
[dictionaries.payloads]
values = ["pay"]
[dictionaries.uris]
values = ["op/a.dcm", "op/b.dcm"]

[parameters]
"path.task_id" = {{ dictionary = "task_ids", probability = 0.7 }}
"path.agent" = {{ dictionary = "agents", probability = 0.7 }}
"path.name" = {{ dictionary = "names", probability = 0.7 }}
"path.job_id" = {{ dictionary = "jobs", probability = 0.7 }}
"path.payload_id" = {{ dictionary = "payloads", probability = 0.7 }}
"path.uri" = {{ dictionary = "uris", probability = 0.7 }}

[[operations]]
include-path = "/api/tasks/{{agent}}/pending"
parameters = {{ "query.wait" = 0 }}
"""
"""What is there; and no call is to wait for a minute."""


def fill(served: "Service") -> list[str]:
    """Put something of each kind into a service; return the ids of its tasks."""
    client = served.client
    for name in ("Receiver", "Paused"):
        client.add_destination(
            Destination(name=name, ae_title="X", host="127.0.0.1", port=1, max_associations=100)
        )
    client.pause_destination("Paused")
    for uri in ("op/a.dcm", "op/b.dcm"):
        path = served.payloads / "pay" / uri
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    body = Registration(
        agent="ClaraSCU", job_id="job", pipeline_id="p", payload_id="pay",
        data=["Receiver"] * 8 + ["Paused"] * 4, uris=["op/a.dcm", "op/b.dcm"],
    )  # fmt: skip
    tasks = client.register(body, "key").tasks
    for number, task in enumerate(client.claim("ClaraSCU", size=8)):
        if number < 2:
            client.succeed(task.task_id, SuccessReport(lease_token=task.lease_token))
        elif number < 4:
            report = FailureReport(retry_later=False, lease_token=task.lease_token)
            client.fail(task.task_id, report)
    client.cancel(tasks[-1].task_id)
    return [task.task_id for task in tasks]


def explore(served: "Service", folder: Path, seed: int, *options: str) -> None:
    """Have schemathesis call a service; fail with what it says if it found anything."""
    configuration = folder / "schemathesis.toml"
    configuration.write_text(CONFIGURATION.format(task_ids=json.dumps(fill(served))))
    program = Path(sys.executable).with_name("schemathesis")
    done = subprocess.run(
        [
            str(program), "--no-color", "--config-file", str(configuration),
            "run", f"{served.url}/openapi.json",
            "--checks", ",".join(CHECKS), "--mode", "all",
            "--seed", str(seed), "--continue-on-failure",
            "--exclude-path", "/api/events",  # it goes on for ever
            "--request-timeout", "30", "--warnings", "off", "--suppress-health-check", "all", *options,
        ],
        capture_output=True, text=True, cwd=folder, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in served.log()


@pytest.mark.timeout(300)
def test_every_part_of_every_call_is_answered_as_documented(
    service: "ServiceStarter", tmp_path: Path
) -> None:
    """Its coverage phase: each part of each call at its bounds and past them."""
    explore(service(), tmp_path, random.getrandbits(32), "--phases", "coverage")


@pytest.mark.prove
@pytest.mark.timeout(1800)
def test_a_great_many_calls_are_answered_as_documented(
    service: "ServiceStarter", database_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seed = int(os.environ.get("PROVE_SEED") or random.SystemRandom().getrandbits(32))
    with capsys.disabled():
        sys.stdout.write(f"\nPROVE_SEED={seed}\n")
    options = ("--phases", "coverage,fuzzing", "--max-examples", "150")
    explore(service(database=database_url), tmp_path, seed, *options)
