"""Secrets come from one folder, and errors name them without showing them."""

from __future__ import annotations

import ssl
import subprocess
from typing import TYPE_CHECKING

import pytest

from clara_results.agents.dicom.association import IDENTITY_LIMIT, Identity, Peer
from clara_results.agents.secrets import SIZE_LIMIT, Secrets
from clara_results.agents.tls import SUITES, tls_context
from clara_results.domain.receivers import AuthKind
from clara_results.errors import DestinationUnavailable
from clara_results.wire.destinations import Auth, Destination, Tls
from tests.support.certificates import Authority

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def unavailable(act: Callable[[], object]) -> str:
    with pytest.raises(DestinationUnavailable) as caught:
        act()
    assert caught.value.code == "secret-unavailable"
    return str(caught.value)


def test_a_secret_is_text_without_the_end_of_its_line(tmp_path: Path) -> None:
    for content in (b"geheim ", b"geheim \n", b"geheim \r\n"):
        (tmp_path / "pacs").write_bytes(content)
        assert Secrets(tmp_path).text("pacs") == "geheim "


def test_without_a_folder_the_setting_is_named() -> None:
    message = unavailable(lambda: Secrets(None).text("pacs-password"))
    assert "'pacs-password'" in message
    assert "--secrets (CLARA_RESULTS_SECRETS)" in message


@pytest.mark.parametrize("name", ["", ".", "..", "../pacs", "a/b", "/etc/passwd", "a\0b"])
def test_a_name_is_one_of_a_file_in_the_folder(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "secrets"
    folder.mkdir()
    (tmp_path / "pacs").write_text("outside")
    assert "is not the name of a secret" in unavailable(lambda: Secrets(folder).text(name))


def test_links_lead_within_the_folder_or_nowhere(tmp_path: Path) -> None:
    """Kubernetes puts secrets there as links: NAME, to ..data/NAME, which is a link itself."""
    folder = tmp_path / "secrets"
    (folder / "..2026").mkdir(parents=True)
    (folder / "..2026" / "pacs").write_text("geheim")
    (folder / "..data").symlink_to("..2026")
    (folder / "pacs").symlink_to("..data/pacs")
    (tmp_path / "outside").write_text("outside")
    (folder / "leads-out").symlink_to("../outside")
    (tmp_path / "link").symlink_to(folder)
    for way in (folder, tmp_path / "link"):
        assert Secrets(way).text("pacs") == "geheim"
        with pytest.raises(DestinationUnavailable, match="leads out of"):
            Secrets(way).text("leads-out")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, "can't be read: no such file"),
        (lambda path: path.mkdir(), "can't be read: is a directory"),
        (lambda path: path.symlink_to(path), "can't be read: "),
        (lambda path: path.write_bytes(b""), "not a text of 1 to"),
        (lambda path: path.write_bytes(b"\n"), "not a text of 1 to"),
        (lambda path: path.write_bytes(b"SECRET\xff"), "not a text of 1 to"),
        (lambda path: path.write_bytes(b"SECRET" * SIZE_LIMIT), "not a text of 1 to"),
    ],
    ids=["absent", "folder", "loop", "empty", "a line's end", "no text", "too large"],
)
def test_what_can_not_be_read_is_named_and_not_shown(
    tmp_path: Path, make: Callable[[Path], object], words: str
) -> None:
    make(tmp_path / "pacs")
    message = unavailable(lambda: Secrets(tmp_path).text("pacs"))
    assert words in message
    assert "'pacs'" in message
    assert "SECRET" not in message


# Certificates


@pytest.fixture(scope="module")
def authority(
    require_tool: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory
) -> Authority:
    made = Authority(require_tool("openssl"), tmp_path_factory.mktemp("authority"))
    made.issue("client")
    return made


def test_a_context_is_as_the_profile_wants_it(authority: Authority) -> None:
    secrets = Secrets(authority.certificate.parent)
    context = tls_context(Tls(ca="ca.pem", certificate="client.pem", key="client.key"), secrets)
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert context.maximum_version == ssl.TLSVersion.MAXIMUM_SUPPORTED
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert context.check_hostname
    offered = [suite["name"] for suite in context.get_ciphers()]
    assert {name for name in offered if not name.startswith("TLS_")} == set(SUITES.split(":"))
    assert len(context.get_ca_certs()) == 1
    assert not tls_context(Tls(ca="ca.pem", check_host=False), secrets).check_hostname


def test_without_authorities_of_its_own_the_systems_are_trusted() -> None:
    system = ssl.create_default_context()
    assert tls_context(Tls(), Secrets(None)).cert_store_stats() == system.cert_store_stats()


@pytest.mark.parametrize(
    ("tls", "words"),
    [
        (Tls(ca="absent"), "'absent'.*no such file"),
        (Tls(ca="junk"), "'junk' can't be used: it must hold certificates"),
        (Tls(ca="ca.key"), "'ca.key' can't be used: it must hold certificates"),
        (Tls(ca="ca.pem", certificate="junk"), "'junk' can't be used: a certificate and its key"),
        (Tls(certificate="client.pem"), "'client.pem' can't be used: a certificate and its key"),
        (Tls(certificate="client.pem", key="junk"), "'client.pem' or 'junk' can't be used"),
        (Tls(certificate="client.pem", key="ca.key"), "the key is not the certificate's"),
        (Tls(certificate="client.pem", key="locked.key"), "the key without a passphrase"),
        (Tls(certificate="client.pem", key="../ca.key"), "is not the name of a secret"),
    ],
)
def test_certificates_that_can_not_be_used(
    authority: Authority, require_tool: Callable[[str], str], tls: Tls, words: str
) -> None:
    folder = authority.certificate.parent
    (folder / "junk").write_text("SECRET")
    subprocess.run(
        [require_tool("openssl"), "pkey", "-aes256", "-passout", "pass:SECRET",
         "-in", str(folder / "client.key"), "-out", str(folder / "locked.key")],
        check=True, capture_output=True,
    )  # fmt: skip
    with pytest.raises(DestinationUnavailable, match=words) as caught:
        tls_context(tls, Secrets(folder))
    assert caught.value.code == "secret-unavailable"
    assert "SECRET" not in str(caught.value)


# Who we say we are, to a DICOM receiver


@pytest.mark.parametrize(
    ("auth", "identity"),
    [
        (Auth(kind=AuthKind.BASIC, user_name="ward"), Identity(1, b"ward")),
        (
            Auth(kind=AuthKind.BASIC, user_name="w\u00e4rd", secret="pacs"),
            Identity(2, "w\u00e4rd".encode(), b"a.b.c"),
        ),
        (Auth(kind=AuthKind.BEARER, secret="pacs"), Identity(5, b"a.b.c")),
    ],
)
def test_an_identity_is_made_of_what_the_destination_says(
    tmp_path: Path, auth: Auth, identity: Identity
) -> None:
    (tmp_path / "pacs").write_text("a.b.c\n")
    destination = Destination(name="Pacs", ae_title="PACS", host="pacs", port=104, auth=auth)
    peer = Peer.of(destination, "ClaraSCU", Secrets(tmp_path))
    assert peer == Peer("pacs", 104, "PACS", "ClaraSCU", None, identity)


def test_a_token_that_no_association_request_has_room_for(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("t" * (IDENTITY_LIMIT + 1))
    auth = Auth(kind=AuthKind.BEARER, secret="token")
    assert f"more than {IDENTITY_LIMIT} bytes" in unavailable(
        lambda: Identity.of(auth, Secrets(tmp_path))
    )
