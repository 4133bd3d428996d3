"""Storage commitment, whole: service, agent with its listener, and Orthanc, which reports over an association of its own."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from clara_results.domain.receivers import Commit
from clara_results.domain.tasks import State
from clara_results.wire.destinations import Destination, Tls
from clara_results.wire.tasks import Registration, Task
from tests.conftest import Orthanc, eventually
from tests.support.certificates import RSA, Authority

if TYPE_CHECKING:
    from tests.conftest import AgentStarter, CtWriter, Service, ServiceStarter, StoreScpStarter

_LOSES_THE_FIRST = """
function OnStoredInstance(instance, tags, metadata, origin)
    count = (count or 0) + 1
    if count == 1 then RestApiDelete('/instances/' .. instance) end
end
"""


ArchiveStarter = Callable[..., Orthanc]


@pytest.fixture
def archive(require_tool: Callable[[str], str], tmp_path: Path) -> Iterator[ArchiveStarter]:
    """Give a function that starts an Orthanc that knows the agent; with a Lua script, or with TLS both
    ways, if it is given one or certificates."""
    program = require_tool("Orthanc")
    running = []

    def start(port: int, script: str | None = None, secrets: Path | None = None) -> Orthanc:
        folder = tmp_path / "orthanc"
        folder.mkdir()
        scripts = []
        if script is not None:
            scripts = [str(folder / "script.lua")]
            Path(scripts[0]).write_text(script)
        known = {"AET": "ClaraSCU", "Host": "127.0.0.1", "Port": port, "UseDicomTls": bool(secrets)}
        tls: dict[str, Any] = {}
        if secrets is not None:
            tls = {
                "DicomTlsEnabled": True,
                "DicomTlsCertificate": str(secrets / "pacs.pem"),
                "DicomTlsPrivateKey": str(secrets / "pacs.key"),
                "DicomTlsTrustedCertificates": str(secrets / "ca.pem"),
                "DicomTlsRemoteCertificateRequired": True,
            }
        made = Orthanc(program, folder, DicomModalities={"agent": known}, LuaScripts=scripts, **tls)
        running.append(made)
        made.start()
        return made

    yield start
    for each in running:
        each.kill()


def register(
    service: "Service",
    write_ct: "CtWriter",
    port: int,
    commitment: Commit,
    tls: Tls | None = None,
) -> Task:
    """Register two instances for a destination that is to commit itself."""
    body = Destination(
        name="PACS", ae_title="PACS", host="127.0.0.1", port=port, commitment=commitment, tls=tls
    )
    service.client.add_destination(body)
    for number in (1, 2):
        write_ct(service.payloads / "payload-1" / f"{number}.dcm", number=number)
    registration = Registration(
        agent="ClaraSCU",
        job_id="job-1",
        pipeline_id="pipeline-1",
        payload_id="payload-1",
        operator="writer",
        data=["PACS"],
        uris=["1.dcm", "2.dcm"],
    )
    return service.client.register(registration).tasks[0]


def ended(service: "Service", task: Task) -> Task:
    eventually(lambda: service.client.task(task.task_id).state.finished, "the task's end", 40)
    return service.client.task(task.task_id)


def codes(service: "Service", task: Task) -> set[str | None]:
    return {file.code for file in service.client.files(task.task_id).items}


def test_orthanc_commits_itself_over_tls_both_ways(
    service: "ServiceStarter",
    agent: "AgentStarter",
    archive: ArchiveStarter,
    write_ct: "CtWriter",
    free_port: Callable[[], int],
    require_tool: Callable[[str], str],
    tmp_path: Path,
) -> None:
    secrets = tmp_path / "secrets"
    authority = Authority(require_tool("openssl"), secrets, key=RSA)
    for name in ("pacs", "ours"):
        authority.issue(name)
    served, port = service(), free_port()
    pacs = archive(port, secrets=secrets)
    tls = Tls(ca="ca.pem", certificate="ours.pem", key="ours.key")
    task = register(served, write_ct, pacs.dicom_port, Commit.REQUIRE, tls)
    agent(
        served, secrets=secrets, listen_port=port, listen_host="127.0.0.1", listen_certificate="ours.pem",
        listen_key="ours.key", listen_ca="ca.pem",
    )  # fmt: skip
    done = ended(served, task)
    assert done.state is State.SUCCEEDED, done.last_error
    assert codes(served, task) == {"committed"}
    shown = served.client.task(task.task_id)
    events = [entry.event for entry in shown.history or ()]
    assert events.index("sent") < events.index("succeeded")
    assert pacs.count() == 2


def test_what_orthanc_has_lost_it_is_sent_again(
    service: "ServiceStarter",
    agent: "AgentStarter",
    archive: ArchiveStarter,
    write_ct: "CtWriter",
    free_port: Callable[[], int],
) -> None:
    served, port = service(retry_delay=0.1), free_port()
    pacs = archive(port, _LOSES_THE_FIRST)
    task = register(served, write_ct, pacs.dicom_port, Commit.REQUIRE)
    agent(served, listen_port=port, listen_host="127.0.0.1")
    done = ended(served, task)
    assert done.state is State.SUCCEEDED, done.last_error
    assert done.retries == 1
    assert codes(served, task) == {"committed"}
    assert pacs.count() == 2


@pytest.mark.parametrize(
    ("commitment", "state"),
    [(Commit.ASK, State.SUCCEEDED), (Commit.REQUIRE, State.FAILED)],
)
def test_storescp_does_not_offer_it(
    commitment: Commit,
    state: State,
    service: "ServiceStarter",
    agent: "AgentStarter",
    storescp: "StoreScpStarter",
    write_ct: "CtWriter",
) -> None:
    served = service()
    scp = storescp()
    task = register(served, write_ct, scp.port, commitment)
    agent(served)
    assert ended(served, task).state is state
    assert codes(served, task) == {"commitment-unsupported"}
    assert len(scp.files()) == 2
