"""Associations over TLS: what arrives, and what is said of all that can be wrong with certificates and connections."""

from __future__ import annotations

import mmap
import os
import re
import socket
import ssl
import struct
import threading
import time
from typing import TYPE_CHECKING

import pytest

from clara_results.agents.dicom.association import Association, AssociationSettings, Peer
from clara_results.agents.dicom.connection import AssociationAborted, Interrupted
from clara_results.agents.secrets import Secrets
from clara_results.domain.clock import SystemClock
from clara_results.errors import DestinationUnavailable, UnreadableInput
from clara_results.wire.destinations import Destination, Tls
from tests.support.certificates import Authority

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.faults.conftest import Conversation, ReceiverStarter, Script, ScriptedReceiver

CLOCK = SystemClock()
CT = ("1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.1.2")
SHORT = AssociationSettings(connect=2, association=0.5, dimse=0.5, release=0.5)
UID = "1.2.3.4"
LARGE = os.urandom(1 << 20) * 24
"""More than the socket buffers of both sides hold."""


@pytest.fixture(scope="module")
def openssl(require_tool: Callable[[str], str]) -> str:
    return require_tool("openssl")


@pytest.fixture(scope="module")
def authority(openssl: str, tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(openssl, tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def server(authority: Authority) -> ssl.SSLContext:
    return authority.server()


@pytest.fixture(scope="module")
def secrets(authority: Authority) -> Secrets:
    """The authority's folder is the agent's of secrets as well; ``ca.pem`` is in it."""
    authority.issue("client")
    return Secrets(authority.certificate.parent)


OWN = Tls(ca="ca.pem")


def peer_of(receiver: ScriptedReceiver, secrets: Secrets, tls: Tls, host: str) -> Peer:
    destination = Destination(name="Pacs", ae_title="PACS", host=host, port=receiver.port, tls=tls)
    return Peer.of(destination, "ClaraSCU", secrets)


def associate(
    receiver: ScriptedReceiver,
    secrets: Secrets,
    tls: Tls = OWN,
    settings: AssociationSettings = SHORT,
    host: str = "127.0.0.1",
) -> Association:
    return Association(peer_of(receiver, secrets, tls, host), [CT], settings, CLOCK).open()


def takes_all(talk: Conversation) -> None:
    talk.accept()
    talk.store_all()


def test_every_byte_arrives(
    receiver: ReceiverStarter, server: ssl.SSLContext, secrets: Secrets
) -> None:
    def script(talk: Conversation) -> None:
        talk.accept(131_072)
        talk.store_all()

    peer = receiver(script, tls=server)
    odd = LARGE[: (3 << 20) + 1]
    with associate(peer, secrets, settings=AssociationSettings(dimse=20)) as association:
        for data in (b"", b"1", odd, LARGE):
            assert association.store(UID, CT, memoryview(data)) == 0
            assert association.idles()
        association.release()
    peer.stop()
    assert [data for _, data in peer.stored] == [b"", b"1", odd, LARGE]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_the_host_is_the_one_that_the_certificate_names(
    receiver: ReceiverStarter, server: ssl.SSLContext, secrets: Secrets, host: str
) -> None:
    associate(receiver(takes_all, tls=server), secrets, host=host).release()


def test_a_certificate_of_ours_is_shown(
    receiver: ReceiverStarter, authority: Authority, secrets: Secrets
) -> None:
    shown = []

    def script(talk: Conversation) -> None:
        assert isinstance(talk.socket, ssl.SSLSocket)
        shown.append(talk.socket.getpeercert())
        takes_all(talk)

    tls = Tls(ca="ca.pem", certificate="client.pem", key="client.key")
    peer = receiver(script, tls=authority.server("wants", mutual=True))
    associate(peer, secrets, tls).release()
    assert shown[0]
    assert shown[0]["subject"] == ((("commonName", "client"),),)


def test_a_certificate_and_its_key_in_one_file(
    receiver: ReceiverStarter, authority: Authority, secrets: Secrets
) -> None:
    certificate, key = authority.issue("both")
    certificate.write_bytes(certificate.read_bytes() + key.read_bytes())
    tls = Tls(ca="ca.pem", certificate="both.pem")
    peer = receiver(takes_all, tls=authority.server("wants-both", mutual=True))
    associate(peer, secrets, tls).release()


def test_the_receivers_very_own_certificate_may_be_the_one_that_is_trusted(
    receiver: ReceiverStarter, authority: Authority, secrets: Secrets
) -> None:
    peer = receiver(takes_all, tls=authority.server("pinned"))
    associate(peer, secrets, Tls(ca="pinned.pem")).release()


# Certificates that are not as they must be


def refused(
    receiver: ScriptedReceiver, secrets: Secrets, tls: Tls = OWN, host: str = "127.0.0.1"
) -> str:
    begun = time.monotonic()
    with pytest.raises(DestinationUnavailable) as caught:
        associate(receiver, secrets, tls, host=host)
    assert time.monotonic() - begun < 5
    return str(caught.value)


def test_an_expired_certificate(
    receiver: ReceiverStarter, authority: Authority, secrets: Secrets
) -> None:
    peer = receiver(takes_all, tls=authority.server("expired", days=-1))
    assert "certificate has expired" in refused(peer, secrets)


def test_an_authority_that_is_not_known(
    receiver: ReceiverStarter, openssl: str, secrets: Secrets, tmp_path: Path
) -> None:
    other = Authority(openssl, tmp_path, "Other")
    message = refused(receiver(takes_all, tls=other.server()), secrets)
    assert "an authority that is not trusted: name it by tls.ca" in message


def test_the_system_does_not_trust_an_authority_of_ours(
    receiver: ReceiverStarter, server: ssl.SSLContext, secrets: Secrets
) -> None:
    assert "not trusted" in refused(receiver(takes_all, tls=server), secrets, Tls())


def test_another_host(receiver: ReceiverStarter, authority: Authority, secrets: Secrets) -> None:
    elsewhere = authority.server("elsewhere", alternatives="DNS:pacs.example")
    peer = receiver(takes_all, tls=elsewhere)
    for host in ("127.0.0.1", "localhost"):
        message = refused(peer, secrets, host=host)
        assert "certificate is not for this" in message
        assert "tls.checkHost" in message
    associate(peer, secrets, Tls(ca="ca.pem", check_host=False)).release()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_receiver_that_wants_a_certificate_of_ours(
    receiver: ReceiverStarter, authority: Authority, secrets: Secrets, version: ssl.TLSVersion
) -> None:
    wants = authority.server(f"wants-{version.name}", mutual=True)
    wants.maximum_version = version
    message = refused(receiver(takes_all, tls=wants), secrets)
    assert "a certificate of ours" in message


def test_a_receiver_that_does_not_trust_our_certificate(
    receiver: ReceiverStarter, authority: Authority, openssl: str, tmp_path: Path
) -> None:
    other = Authority(openssl, tmp_path, "Other")
    other.issue("client")
    (tmp_path / "theirs.pem").write_bytes(authority.certificate.read_bytes())
    peer = receiver(takes_all, tls=authority.server("wants-own", mutual=True))
    tls = Tls(ca="theirs.pem", certificate="client.pem", key="client.key")
    message = refused(peer, Secrets(tmp_path), tls)
    assert re.search(
        "does not trust the authority of our certificate|does not take the one", message
    )


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_a_receiver_of_old_versions_only(
    receiver: ReceiverStarter, authority: Authority, secrets: Secrets
) -> None:
    old = authority.server("old")
    old.set_ciphers("ALL:@SECLEVEL=0")
    old.minimum_version = ssl.TLSVersion.TLSv1
    old.maximum_version = ssl.TLSVersion.TLSv1_1
    assert "no TLS 1.2 or later" in refused(receiver(takes_all, tls=old), secrets)


# Connections that are not as they must be


def aborts(talk: Conversation) -> None:
    talk.socket.recv(6)
    talk.abort()
    talk.wait_for_end()


def resets(talk: Conversation) -> None:
    talk.socket.recv(1)
    talk.reset()


def closes(talk: Conversation) -> None:
    talk.socket.recv(1 << 16)


def is_silent(talk: Conversation) -> None:
    talk.wait_for_end()


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (aborts, "does not speak TLS on this port"),
        (closes, "closed the connection"),
        (resets, "does the receiver speak TLS"),
        (is_silent, r"no answer within 0.5 s; does the receiver speak TLS"),
    ],
)
def test_a_receiver_without_tls(
    receiver: ReceiverStarter, secrets: Secrets, script: Script, words: str
) -> None:
    assert words in refused(receiver(script), secrets)


def test_a_handshake_that_never_comes_to_its_end(
    receiver: ReceiverStarter, secrets: Secrets
) -> None:
    """Each byte comes soon enough; the deadline is for the whole."""

    def drip(talk: Conversation) -> None:
        try:
            for byte in struct.pack(">BHH", 22, 0x0303, 16_000) + bytes(1000):
                talk.socket.sendall(bytes([byte]))
                time.sleep(0.02)
        except OSError:
            return

    assert "no answer within 0.5 s" in refused(receiver(drip), secrets)


def test_a_receiver_that_takes_secured_connections_only(
    receiver: ReceiverStarter, server: ssl.SSLContext
) -> None:
    peer = receiver(takes_all, tls=server)
    with pytest.raises(DestinationUnavailable, match=r"TLS|closed the connection|reset"):
        Association(Peer("127.0.0.1", peer.port, "PACS", "ClaraSCU"), [CT], SHORT, CLOCK).open()


def test_a_tls_alert_where_no_tls_is_set_is_understood(receiver: ReceiverStarter) -> None:
    def script(talk: Conversation) -> None:
        talk.read_request()
        talk.socket.sendall(bytes([0x15, 3, 1, 0, 2, 2, 70]))
        talk.wait_for_end()

    peer = receiver(script)
    with pytest.raises(
        DestinationUnavailable, match="secured connections only; give the destination tls"
    ):
        Association(Peer("127.0.0.1", peer.port, "PACS", "ClaraSCU"), [CT], SHORT, CLOCK).open()


def test_no_answer_in_time(
    receiver: ReceiverStarter, server: ssl.SSLContext, secrets: Secrets
) -> None:
    def script(talk: Conversation) -> None:
        talk.accept()
        talk.read_store()
        talk.wait_for_end()

    begun = time.monotonic()
    with (
        associate(receiver(script, tls=server), secrets) as association,
        pytest.raises(DestinationUnavailable, match="did not answer message 1"),
    ):
        association.store(UID, CT, memoryview(b"data"))
    assert time.monotonic() - begun < 5


def test_a_receiver_that_reads_nothing(
    receiver: ReceiverStarter, server: ssl.SSLContext, secrets: Secrets
) -> None:
    over = threading.Event()

    def script(talk: Conversation) -> None:
        talk.accept()
        over.wait(10)

    begun = time.monotonic()
    try:
        with (
            associate(receiver(script, tls=server), secrets) as association,
            pytest.raises(DestinationUnavailable, match="it takes no more data"),
        ):
            association.store(UID, CT, memoryview(LARGE))
        assert time.monotonic() - begun < 5
    finally:
        over.set()


@pytest.mark.parametrize(
    "end",
    [lambda talk: talk.reset(), lambda talk: talk.socket.shutdown(socket.SHUT_WR)],
    ids=["reset", "close"],
)
@pytest.mark.parametrize("data", [b"data", LARGE], ids=["small", "large"])
def test_a_connection_that_breaks_at_an_instance(
    receiver: ReceiverStarter,
    server: ssl.SSLContext,
    secrets: Secrets,
    data: bytes,
    end: Callable[[Conversation], None],
) -> None:
    def script(talk: Conversation) -> None:
        talk.accept()
        talk.read_pdu()
        end(talk)

    with (
        associate(receiver(script, tls=server), secrets) as association,
        pytest.raises(AssociationAborted, match=r"broke|closed"),
    ):
        association.store(UID, CT, memoryview(data))


def test_a_file_that_becomes_shorter_while_it_is_sent(
    receiver: ReceiverStarter, server: ssl.SSLContext, secrets: Secrets, tmp_path: Path
) -> None:
    """Its mapped pages are gone: to touch them would end the process."""
    path = tmp_path / "image"
    path.write_bytes(LARGE)
    with path.open("r+b") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        file.truncate(400_000)
        with (
            associate(receiver(takes_all, tls=server), secrets) as association,
            pytest.raises(UnreadableInput, match="shorter"),
        ):
            association.store(UID, CT, memoryview(mapped))


@pytest.mark.parametrize("data", [b"data", LARGE], ids=["waiting", "sending"])
def test_it_is_interrupted_from_another_thread(
    receiver: ReceiverStarter, server: ssl.SSLContext, secrets: Secrets, data: bytes
) -> None:
    waits, over = threading.Event(), threading.Event()

    def script(talk: Conversation) -> None:
        talk.accept()
        talk.read_pdu()
        waits.set()
        over.wait(10)

    patient = AssociationSettings(dimse=30)
    with associate(receiver(script, tls=server), secrets, settings=patient) as association:

        def interrupt() -> None:
            assert waits.wait(10)
            time.sleep(0.1)
            association.interrupt()

        thread = threading.Thread(target=interrupt)
        thread.start()
        begun = time.monotonic()
        with pytest.raises(Interrupted):
            association.store(UID, CT, memoryview(data))
        assert time.monotonic() - begun < 5
        assert association.ended
        over.set()
        thread.join()


def test_the_handshake_is_interrupted(receiver: ReceiverStarter, secrets: Secrets) -> None:
    peer = receiver(is_silent)
    association = Association(
        peer_of(peer, secrets, OWN, "127.0.0.1"), [CT], AssociationSettings(), CLOCK
    )
    threading.Timer(0.3, association.interrupt).start()
    begun = time.monotonic()
    with pytest.raises(Interrupted):
        association.open()
    assert time.monotonic() - begun < 5
