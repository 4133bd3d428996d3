"""Real receivers over TLS: Orthanc with DicomTlsEnabled, and DCMTK's storescp."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from pydicom import dcmread

from clara_results.agents.dicom.association import Association, AssociationSettings, Peer
from clara_results.agents.dicom.echo import echo_destination
from clara_results.agents.secrets import Secrets
from clara_results.domain.clock import SystemClock
from clara_results.domain.receivers import AuthKind
from clara_results.domain.tasks import State
from clara_results.errors import DestinationUnavailable
from clara_results.wire.destinations import Auth, Destination, Tls
from clara_results.wire.tasks import Registration
from tests.conftest import Orthanc, eventually
from tests.support.certificates import RSA, Authority

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.conftest import AgentStarter, CtWriter, ServiceStarter, StoreScpStarter

OURS = Tls(ca="ca.pem", certificate="client.pem", key="client.key")


@pytest.fixture(scope="module")
def authority(
    require_tool: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory
) -> Authority:
    """One whose folder is the agent's of secrets, too."""
    made = Authority(require_tool("openssl"), tmp_path_factory.mktemp("authority"), key=RSA)
    made.issue("server")
    made.issue("client")
    made.issue("elsewhere", alternatives="DNS:pacs.example")
    return made


def files(authority: Authority, *names: str) -> list[str]:
    return [str(authority.certificate.parent / name) for name in names]


def destination(port: int, tls: Tls | None) -> Destination:
    return Destination(name="Pacs", ae_title="PACS", host="127.0.0.1", port=port, tls=tls)


def store(port: int, authority: Authority, tls: Tls, path: Path) -> int:
    """Store one instance and return the status that was answered."""
    image = dcmread(path)
    context = (str(image.SOPClassUID), str(image.file_meta.TransferSyntaxUID))
    peer = Peer.of(destination(port, tls), "ClaraSCU", Secrets(authority.certificate.parent))
    content = path.read_bytes()
    data = memoryview(content)[
        content.index(b"DICM") + 4 + 12 + image.file_meta.FileMetaInformationGroupLength :
    ]
    with Association(peer, [context], AssociationSettings(), SystemClock()).open() as association:
        status = association.store(str(image.SOPInstanceUID), context, data)
        association.release()
    return status


def refused(port: int, authority: Authority, tls: Tls | None, failed: str) -> str:
    """Test a destination and return why the step of this name failed."""
    result = echo_destination(
        destination(port, tls),
        Secrets(authority.certificate.parent),
        settings=AssociationSettings(association=5),
    )
    assert not result.ok
    assert (result.steps[-1].name, result.steps[-1].ok) == (failed, False)
    return result.steps[-1].message


@contextmanager
def secured_orthanc(
    require_tool: Callable[[str], str], folder: Path, authority: Authority, **settings: Any
) -> Iterator[Orthanc]:
    certificate, key, trusted = files(authority, "server.pem", "server.key", "ca.pem")
    folder.mkdir()
    server = Orthanc(
        require_tool("Orthanc"), folder,
        DicomTlsEnabled=True, DicomTlsCertificate=certificate, DicomTlsPrivateKey=key,
        DicomTlsTrustedCertificates=trusted, **settings,
    )  # fmt: skip
    try:
        server.start()
        yield server
    finally:
        server.kill()


def test_orthanc_takes_instances_over_tls(
    require_tool: Callable[[str], str], authority: Authority, write_ct: CtWriter, tmp_path: Path
) -> None:
    path = tmp_path / "large.dcm"
    sent = write_ct(path, size=1024)
    with secured_orthanc(
        require_tool, tmp_path / "orthanc", authority, DicomTlsRemoteCertificateRequired=False
    ) as orthanc:
        assert store(orthanc.dicom_port, authority, Tls(ca="ca.pem"), path) == 0
        stored = orthanc.dicom_file(sent.SOPInstanceUID)
        assert sent.PixelData in stored
        result = echo_destination(
            destination(orthanc.dicom_port, Tls(ca="ca.pem")), Secrets(authority.certificate.parent)
        )
        assert [(step.name, step.ok) for step in result.steps] == [
            (name, True) for name in ("connect", "tls", "association", "echo", "contexts")
        ]
        assert "TLSv1." in result.steps[1].message
        refused(orthanc.dicom_port, authority, None, "association")


def test_orthanc_wants_a_certificate_of_ours(
    require_tool: Callable[[str], str], authority: Authority, write_ct: CtWriter, tmp_path: Path
) -> None:
    path = tmp_path / "image.dcm"
    write_ct(path)
    with secured_orthanc(
        require_tool, tmp_path / "orthanc", authority, DicomTlsRemoteCertificateRequired=True
    ) as orthanc:
        assert store(orthanc.dicom_port, authority, OURS, path) == 0
        assert orthanc.count() == 1
        with pytest.raises(DestinationUnavailable, match="a certificate of ours"):
            store(orthanc.dicom_port, authority, Tls(ca="ca.pem"), path)


def test_storescp_takes_instances_over_mutual_tls(
    storescp: StoreScpStarter, authority: Authority, write_ct: CtWriter, tmp_path: Path
) -> None:
    path = tmp_path / "image.dcm"
    sent = write_ct(path, size=1024)
    key, certificate, trusted = files(authority, "server.key", "server.pem", "ca.pem")
    server = storescp("+tls", key, certificate, "+cf", trusted)
    assert store(server.port, authority, OURS, path) == 0
    (stored,) = server.folder.iterdir()
    assert dcmread(stored).PixelData == sent.PixelData
    with pytest.raises(DestinationUnavailable, match="a certificate of ours"):
        store(server.port, authority, Tls(ca="ca.pem"), path)


def test_a_storescp_that_is_not_the_one_that_was_meant(
    storescp: StoreScpStarter, authority: Authority
) -> None:
    key, certificate = files(authority, "elsewhere.key", "elsewhere.pem")
    server = storescp("+tls", key, certificate, "-ic")
    assert "not for this" in refused(server.port, authority, Tls(ca="ca.pem"), "tls")
    unchecked = Tls(ca="ca.pem", check_host=False)
    secrets = Secrets(authority.certificate.parent)
    assert echo_destination(destination(server.port, unchecked), secrets).ok


def test_a_storescp_without_tls(storescp: StoreScpStarter, authority: Authority) -> None:
    message = refused(storescp().port, authority, Tls(ca="ca.pem"), "tls")
    assert "TLS" in message


def test_an_agent_delivers_over_tls_once_it_has_the_secrets(
    service: ServiceStarter,
    agent: AgentStarter,
    storescp: StoreScpStarter,
    authority: Authority,
    write_ct: CtWriter,
    tmp_path: Path,
) -> None:
    key, certificate, trusted = files(authority, "server.key", "server.pem", "ca.pem")
    (authority.certificate.parent / "password").write_text("open-sesame")
    scp = storescp("+tls", key, certificate, "+cf", trusted)
    served = service(retry_delay=3, retry_delay_max=3)
    auth = Auth(kind=AuthKind.BASIC, user_name="ward", secret="password")
    served.client.add_destination(replace(destination(scp.port, OURS), auth=auth))
    uids = {
        str(write_ct(served.payloads / "pay" / f"{number}.dcm", number=number).SOPInstanceUID)
        for number in range(8)
    }
    body = Registration(
        agent="ClaraSCU",
        job_id="job",
        pipeline_id="pipe",
        payload_id="pay",
        data=["Pacs"],
        uris=[f"{number}.dcm" for number in range(8)],
    )
    task = served.client.register(body).tasks[0].task_id
    without = agent(served)
    eventually(lambda: served.client.task(task).last_error is not None, "the first try ends")
    error = served.client.task(task).last_error
    assert error is not None
    assert error.code == "secret-unavailable"
    assert "name one by --secrets" in error.message
    without.stop()
    agent(served, secrets=authority.certificate.parent, log_level="debug")
    eventually(lambda: served.client.task(task).state.finished, "the task ends", 30)
    done = served.client.task(task)
    assert (done.state, done.retries) == (State.SUCCEEDED, 0)
    assert scp.sop_instance_uids() == uids
    ours = [*tmp_path.glob("agent-*.log"), *served.data.glob("*.*")]
    assert len(ours) >= 4
    for path in ours:  # logs and the database
        assert b"open-sesame" not in path.read_bytes()
