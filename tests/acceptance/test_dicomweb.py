"""The DICOMweb agent with a real archive: Orthanc and its DICOMweb plugin."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pydicom import dcmread
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
)

from clara_results.agents.dicomweb.connection import WebSettings
from clara_results.agents.dicomweb.exporter import DicomWebExporter
from clara_results.agents.dicomweb.probe import probe_destination
from clara_results.agents.secrets import Secrets
from clara_results.domain.clock import SystemClock
from clara_results.domain.receivers import AuthKind, Verify
from clara_results.domain.tasks import Outcome, State
from clara_results.errors import DestinationUnavailable
from clara_results.wire.destinations import Auth, Destination
from clara_results.wire.tasks import Registration
from tests.conftest import Orthanc, eventually
from tests.support.delivery import FolderDelivery

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.conftest import AgentStarter, CtWriter, ServiceStarter

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")


@pytest.fixture
def web_orthanc(
    require_tool: Callable[[str], str], tmp_path: Path
) -> Iterator[Callable[..., Orthanc]]:
    """Give a function that starts an Orthanc with its DICOMweb plugin for the time of the test."""
    if not PLUGIN.exists():
        if os.environ.get("CLARA_RESULTS_REQUIRE_TOOLS") == "1":
            pytest.fail("Orthanc's DICOMweb plugin is not installed")
        pytest.skip("Orthanc's DICOMweb plugin is not installed")
    made: list[Orthanc] = []

    def start(**settings: Any) -> Orthanc:
        folder = tmp_path / f"orthanc-{len(made)}"
        folder.mkdir()
        server = Orthanc(require_tool("Orthanc"), folder, Plugins=[str(PLUGIN)], **settings)
        made.append(server)
        server.start()
        return server

    yield start
    for server in made:
        server.kill()


def url(server: Orthanc) -> str:
    return f"{server.http_url}/dicom-web"


def deliver(
    server: Orthanc,
    folder: Path,
    associations: int = 1,
    settings: WebSettings | None = None,
    delivery: FolderDelivery | None = None,
    **changes: Any,
) -> FolderDelivery:
    delivery = delivery or FolderDelivery(folder, associations=associations)
    pacs = Destination(name="PACS", kind="dicomweb", url=url(server), **changes)
    DicomWebExporter(
        lambda: [pacs], Secrets(folder.parent), settings or WebSettings(), SystemClock()
    ).deliver(delivery)
    return delivery


def test_orthanc_gets_every_encoding_byte_by_byte(
    web_orthanc: Callable[..., Orthanc], tmp_path: Path, write_ct: CtWriter
) -> None:
    folder = tmp_path / "series"
    sent = {}
    syntaxes = [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian]  # fmt: skip
    for number, syntax in enumerate(syntaxes):
        path = folder / f"{number}.dcm"
        image = write_ct(path, number=number, size=400, transfer_syntax=str(syntax))
        sent[str(image.SOPInstanceUID)] = path
    path = folder / "compressed.dcm"
    write_ct(path, number=9)
    image = dcmread(path)
    image.PixelData = encapsulate([b"\xff\x4f\xff\x51 not a picture \xff\xd9"])
    image["PixelData"].VR = "OB"
    image["PixelData"].is_undefined_length = True
    image.file_meta.TransferSyntaxUID = JPEG2000Lossless
    image.save_as(path, enforce_file_format=True)
    sent[str(image.SOPInstanceUID)] = path
    server = web_orthanc()
    delivery = deliver(server, folder, associations=3, settings=WebSettings(batch_files=2))
    assert set(delivery.codes(Outcome.DELIVERED).values()) == {"stored"}
    assert len(delivery.outcomes) == 5
    assert server.sop_instance_uids() == set(sent)
    for uid, path in sent.items():
        assert server.dicom_file(uid) == path.read_bytes()


@pytest.mark.parametrize("verify", [Verify.METADATA, Verify.FULL])
def test_verification_by_orthanc_that_keeps_the_first_of_two_objects(
    web_orthanc: Callable[..., Orthanc], tmp_path: Path, write_ct: CtWriter, verify: Verify
) -> None:
    """Orthanc, as it is shipped, answers that it stored the second one too."""
    server = web_orthanc()
    first = write_ct(tmp_path / "first" / "1.dcm", number=1)
    uid = first.SOPInstanceUID
    assert set(deliver(server, tmp_path / "first", verify=verify).codes().values()) == {"stored"}
    write_ct(tmp_path / "second" / "1.dcm", number=2, SOPInstanceUID=uid)
    assert set(deliver(server, tmp_path / "second").codes(Outcome.DELIVERED).values()) == {"stored"}
    found = deliver(server, tmp_path / "second", verify=verify)
    assert set(found.codes(Outcome.REJECTED).values()) == {"verify-mismatch"}
    assert server.dicom_file(uid) == (tmp_path / "first" / "1.dcm").read_bytes()


def test_orthanc_that_was_not_able_to_read_one_has_the_others(
    web_orthanc: Callable[..., Orthanc], tmp_path: Path, write_ct: CtWriter
) -> None:
    folder = tmp_path / "series"
    uids = [str(write_ct(folder / f"{n}.dcm", number=n).SOPInstanceUID) for n in range(6)]
    write_ct(folder / "2.dcm", number=2, StudyInstanceUID=None, PatientID=None)
    server = web_orthanc()
    delivery = deliver(server, folder)
    assert delivery.codes(Outcome.REJECTED) == {"2.dcm": "C000"}
    assert delivery.codes(Outcome.DELIVERED) == {f"{n}.dcm": "stored" for n in (0, 1, 3, 4, 5)}
    assert server.sop_instance_uids() == {uid for uid in uids if uid != uids[2]}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Give a folder on a disk of 6 MB; needs root."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("no disk can be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_orthanc_with_a_full_disk_has_what_was_told_and_the_task_waits(
    web_orthanc: Callable[..., Orthanc], small_disk: Path, tmp_path: Path, write_ct: CtWriter
) -> None:
    """Orthanc answers 200 to what it could not write, and names nothing."""
    folder = tmp_path / "series"
    for number in range(12):
        write_ct(folder / f"{number:02}.dcm", number=number, size=700)
    server = web_orthanc(StorageDirectory=str(small_disk))
    delivery = FolderDelivery(folder)
    with pytest.raises(DestinationUnavailable, match="whether it has room"):
        deliver(server, folder, delivery=delivery, settings=WebSettings(batch_files=2))
    assert 0 < server.count() < 12
    assert len(delivery.codes(Outcome.DELIVERED)) == server.count()


def test_basic_authentication_by_orthanc_and_the_destinations_test(
    web_orthanc: Callable[..., Orthanc], tmp_path: Path, write_ct: CtWriter
) -> None:
    write_ct(tmp_path / "series" / "1.dcm")
    (tmp_path / "password").write_text("secret")
    (tmp_path / "guess").write_text("guess")
    server = web_orthanc(AuthenticationEnabled=True, RegisteredUsers={"agent": "secret"})
    right, wrong = (
        Auth(kind=AuthKind.BASIC, user_name="agent", secret=name) for name in ("password", "guess")
    )

    def probed(path: str, auth: Auth) -> list[tuple[str, bool]]:
        pacs = Destination(name="PACS", kind="dicomweb", url=server.http_url + path, auth=auth)
        return [(step.name, step.ok) for step in probe_destination(pacs, Secrets(tmp_path)).steps]

    before = [("connect", True), ("authentication", True)]
    assert probed("/dicom-web", right) == [*before, ("query", True)]
    assert probed("/dicom-web", wrong) == [*before, ("query", False)]
    assert probed("/elsewhere", right) == [*before, ("query", False)]
    assert len(deliver(server, tmp_path / "series", auth=right).codes(Outcome.DELIVERED)) == 1
    with pytest.raises(DestinationUnavailable, match="does not take our credentials"):
        deliver(server, tmp_path / "series", auth=wrong)


def test_two_destinations_both_get_everything(
    service: ServiceStarter,
    agent: AgentStarter,
    web_orthanc: Callable[..., Orthanc],
    write_ct: CtWriter,
) -> None:
    """The whole path, with real parts: register, Results Service, DICOMweb agent, two archives; one is away at first."""
    served = service(retry_delay=0.05, retry_delay_max=0.4)
    servers = {"First": web_orthanc(), "Second": web_orthanc()}
    for name, server in servers.items():
        served.client.add_destination(Destination(name=name, kind="dicomweb", url=url(server)))
    folder = served.payloads / "payload-1" / "dicom-writer"
    uids = {str(write_ct(folder / f"{n:03}.dcm", number=n).SOPInstanceUID) for n in range(1, 61)}
    servers["Second"].kill()
    agent(served, kind="dicomweb", batch_files=7)
    registered = served.client.register(
        Registration(
            agent="DICOMweb",
            job_id="job-1",
            pipeline_id="pipeline-1",
            payload_id="payload-1",
            data=list(servers),
            uris=[f"dicom-writer/{n:03}.dcm" for n in range(1, 61)],
        )
    )
    first, second = registered.tasks
    eventually(lambda: served.client.task(first.task_id).state.finished, "the first ends", 30)
    eventually(lambda: served.client.task(second.task_id).attempt >= 3, "three tries", 30)
    servers["Second"].start()
    eventually(lambda: served.client.task(second.task_id).state.finished, "the second ends", 30)
    for task, server in zip(registered.tasks, servers.values(), strict=True):
        done = served.client.task(task.task_id)
        assert (done.state, done.counts.delivered, done.retries) == (State.SUCCEEDED, 60, 0)
        assert server.sop_instance_uids() == uids
    assert served.client.job("job-1").delivered
    files = served.client.files(first.task_id).items
    assert {file.sop_instance_uid for file in files} == uids


def test_what_a_killed_agent_had_sent_is_not_sent_again(
    service: ServiceStarter,
    agent: AgentStarter,
    web_orthanc: Callable[..., Orthanc],
    write_ct: CtWriter,
) -> None:
    served = service()
    server = web_orthanc(OverwriteInstances=True)
    served.client.add_destination(Destination(name="PACS", kind="dicomweb", url=url(server)))
    folder = served.payloads / "payload-1"
    count = 150
    for number in range(count):
        write_ct(folder / f"{number:03}.dcm", number=number, size=128)
    running = agent(served, kind="dicomweb", batch_files=1, lease=1)
    (task,) = served.client.register(
        Registration(
            agent="dicomweb",
            job_id="job-1",
            pipeline_id="pipeline-1",
            payload_id="payload-1",
            data=["PACS"],
            uris=[f"{number:03}.dcm" for number in range(count)],
        )
    ).tasks
    eventually(lambda: server.count() > 20, "some arrive", 30)
    running.kill()
    agent(served, kind="dicomweb", batch_files=1)
    eventually(lambda: served.client.task(task.task_id).state.finished, "it ends", 60)
    assert server.count() == count
    codes = [file.code for file in served.client.files(task.task_id, limit=count).items]
    assert set(codes) <= {"stored", "already-stored"}
    # Orthanc notes each time that an instance comes.
    changes = server.get("/changes?limit=10000")["Changes"]
    assert sum(change["ChangeType"] == "NewInstance" for change in changes) == count
