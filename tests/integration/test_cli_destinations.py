"""``clara-results destinations``: what is said on the command line is what the service has, and shows."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from clara_results.agents.dicom.echo import IMAGES
from clara_results.cli.destinations import app
from clara_results.errors import DestinationUnavailable, InvalidInput, NotFound, Refused
from tests.conftest import Service

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from typer.testing import Result

    from tests.conftest import Orthanc

DICOM = ("--ae-title", "PACS", "--host", "pacs.example", "--port", "104")
ALL = (
    *DICOM, "--calling-ae-title", "WARD 3", "--max-associations", "4", "--no-transcode", "--overwrite",
    "--verify", "full", "--commitment", "require", "--status", "c000=retry", "--status", "Bxxx=reject",
    "--tls-ca", "ca.pem", "--tls-certificate", "ours.pem", "--tls-key", "ours.key", "--tls-any-host",
    "--auth", "basic", "--user", "ward", "--secret", "pacs-password",
)  # fmt: skip


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Run one service for all tests here; each has destinations of its own."""
    made = Service(tmp_path_factory.mktemp("destinations") / "service", {})
    made.start()
    yield made
    made.kill()


def run(running: Service, *arguments: str) -> Result:
    return CliRunner().invoke(app, [*arguments, "--service", running.url])


def shown(running: Service, *arguments: str) -> Any:
    result = run(running, *arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_a_dicom_destination_has_all_that_was_said(running: Service) -> None:
    shown(running, "add", "Pacs", *ALL)
    there = shown(running, "show", "pacs")
    expected = {
        "name": "Pacs", "kind": "dicom", "aeTitle": "PACS", "host": "pacs.example", "port": 104,
        "callingAeTitle": "WARD 3", "maxAssociations": 4, "transcode": False, "overwrite": True,
        "verify": "full", "commitment": "require", "statuses": {"C000": "retry", "Bxxx": "reject"},
        "tls": {"ca": "ca.pem", "certificate": "ours.pem", "key": "ours.key", "checkHost": False},
    }  # fmt: skip
    assert {key: there[key] for key in expected} == expected
    auth = {key: value for key, value in there["auth"].items() if value is not None}
    assert auth == {"kind": "basic", "userName": "ward", "secret": "pacs-password"}
    words = run(running, "show", "Pacs").output
    for part in (
        "called AE title\tPACS", "calling AE title\tWARD 3", "associations\t0 of 4", "transcode\tno",
        "overwrite\tyes", "verify\tfull", "commitment\trequire", "statuses\tC000=retry, Bxxx=reject",
        "TLS\tauthorities ca.pem; our certificate ours.pem, key ours.key; for any host",
        "user\tbasic, ward, secret pacs-password", "stands\tup",
    ):  # fmt: skip
        assert part in words


def test_a_dicomweb_destination(running: Service) -> None:
    url = "https://pacs.example/dicom-web"
    shown(
        running, "add", "Web", "--url", url, "--auth", "oauth2", "--token-url", "https://idp.example/token",
        "--client-id", "results", "--secret", "client-secret", "--scope", "stow",
    )  # fmt: skip
    there = shown(running, "show", "Web")
    assert (there["kind"], there["url"], there.get("tls")) == ("dicomweb", url, None)
    assert there["auth"]["clientId"] == "results"
    assert f"URL\t{url}" in run(running, "show", "Web").output
    listing = run(running, "list").output
    assert f"Web\tdicomweb\t{url}\t0\t0\t0 of 2\tup" in listing


def test_replace_sets_what_is_not_said_to_its_default(running: Service) -> None:
    shown(running, "add", "Changed", *ALL)
    assert isinstance(run(running, "add", "Changed", *DICOM).exception, Refused)
    shown(running, "add", "Changed", "--replace", *DICOM, "--tls")
    there = shown(running, "show", "Changed")
    assert (there["maxAssociations"], there["verify"], there.get("statuses")) == (2, "off", None)
    assert there["tls"]["checkHost"]
    words = run(running, "show", "Changed").output
    assert "TLS\tthe system's authorities; the host's name is checked" in words
    assert "user\tnone" in words
    shown(running, "add", "Other", "--replace", *DICOM)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--status", "C000"), "write STATUS=retry"),
        (("--secret", "pacs-password"), "say by --auth"),
    ],
)
def test_what_can_not_be_meant(running: Service, arguments: tuple[str, ...], words: str) -> None:
    result = run(running, "add", "Unclear", *DICOM, *arguments)
    assert isinstance(result.exception, InvalidInput)
    assert words in str(result.exception)
    assert "Unclear" not in [item.name for item in running.client.destinations()]


def test_all_that_the_service_finds_wrong_is_said(running: Service) -> None:
    result = run(running, "add", "Wrong", *DICOM, "--status", "C000=deliver", "--tls-ca", "../ca")
    assert isinstance(result.exception, Refused)
    assert [fault.field for fault in result.exception.errors] == ["statuses", "tls.ca"]


def test_the_test_says_what_a_receiver_takes(running: Service, orthanc: Orthanc) -> None:
    port = str(orthanc.dicom_port)
    shown(running, "add", "Orthanc", "--ae-title", "ORTHANC", "--host", "127.0.0.1", "--port", port)
    result = run(running, "test", "Orthanc")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert [line.split()[:2] for line in lines[:4]] == [
        ["ok", name] for name in ("connect", "association", "echo", "contexts")
    ]
    (images,) = [line for line in lines if "\tCT Image, " in line]
    count, classes, taken, refused = images.split("\t")
    assert int(count) == len(IMAGES)
    assert "Segmentation" in classes
    assert "JPEG 2000 Image Compression (Lossless Only)" in taken
    assert "High-Throughput JPEG 2000" in refused
    for here in ((), ("--here",)):
        found = shown(running, "test", "Orthanc", *here)
        assert found["ok"]
        assert sum(context["accepted"] for context in found["contexts"]) > 100


def test_a_test_that_fails_ends_with_an_exit_code(
    running: Service, free_port: Callable[[], int]
) -> None:
    port = str(free_port())
    shown(running, "add", "Nobody", "--ae-title", "X", "--host", "127.0.0.1", "--port", port)
    result = run(running, "test", "Nobody")
    assert result.exit_code == DestinationUnavailable.exit_code
    assert "connection refused" in result.output


def test_a_test_from_here_has_the_secrets_that_are_here(running: Service, tmp_path: Any) -> None:
    shown(running, "add", "Secured", *DICOM, "--tls-ca", "ca.pem")
    result = run(running, "test", "Secured")
    assert "name one by --secrets" in result.output
    result = run(running, "test", "Secured", "--here", "--secrets", str(tmp_path))
    assert "'ca.pem'" in result.output
    assert "no such file" in result.output
    assert isinstance(run(running, "test", "Elsewhere", "--here").exception, NotFound | Refused)
