"""How the DICOMweb agent gets in: credentials, tokens, TLS; and what a destination's test tells."""

from __future__ import annotations

import base64
import contextlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

import pytest

from clara_results.agents.dicomweb.connection import WebSettings
from clara_results.agents.dicomweb.exporter import DicomWebExporter
from clara_results.agents.dicomweb.probe import probe_destination
from clara_results.agents.secrets import Secrets
from clara_results.domain.clock import SystemClock
from clara_results.domain.receivers import AuthKind
from clara_results.domain.tasks import Outcome
from clara_results.errors import DestinationUnavailable
from clara_results.wire.destinations import Auth, Destination, Tls
from tests.support.certificates import Authority
from tests.support.delivery import FolderDelivery
from tests.support.web import WebPeer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.conftest import CtWriter

SHORT = WebSettings(connect=5, answer=5, pause=0.01, batch_files=1)


class Reading:
    """A clock that a test sets on."""

    def __init__(self) -> None:
        self._clock = SystemClock()
        self.ahead = 0.0
        self.now = self._clock.now

    def monotonic(self) -> float:
        return self._clock.monotonic() + self.ahead


class TokenServer:
    """An OAuth 2 server that gives one token after the other: ``token-1``, ``token-2``, …

    Attributes:
        url: Where tokens are asked for.
        asked: The requests' Authorization and form.
        answer: What is answered in place of a token: status and body.
        expires_in: What is said of a token.
    """

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, list[str]]]] = []
        self.answer: tuple[int, bytes] | None = None
        self.expires_in: float | None = 3600
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
                server.asked.append((self.headers["Authorization"], form))
                said: dict[str, Any] = {"access_token": f"token-{len(server.asked)}", "token_type": "Bearer"}  # fmt: skip
                if server.expires_in is not None:
                    said["expires_in"] = server.expires_in
                status, body = server.answer or (200, json.dumps(said).encode())
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/oauth/token"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._thread.join(10)
        self._server.server_close()


@pytest.fixture
def tokens() -> Iterator[TokenServer]:
    server = TokenServer()
    yield server
    server.stop()


@pytest.fixture
def peer() -> Iterator[Callable[..., WebPeer]]:
    """Give a function that starts scripted services for the time of the test."""
    with contextlib.ExitStack() as running:

        def start(**how: Any) -> WebPeer:
            made = WebPeer(**how)
            running.callback(made.stop)
            return made

        yield start


@pytest.fixture
def secrets(tmp_path: Path) -> Path:
    folder = tmp_path / "secrets"
    folder.mkdir()
    (folder / "password").write_text("s3cr3t: ü\n")
    return folder


@pytest.fixture
def task(tmp_path: Path, write_ct: CtWriter) -> Path:
    folder = tmp_path / "task"
    for number in range(3):
        write_ct(folder / f"{number}.dcm", number=number)
    return folder


def exporter(
    peer: WebPeer, secrets: Path, clock: Reading | None = None, **changes: Any
) -> DicomWebExporter:
    pacs = Destination(name="PACS", kind="dicomweb", url=changes.pop("url", peer.url), **changes)
    return DicomWebExporter(lambda: [pacs], Secrets(secrets), SHORT, clock or Reading())


def delivered(made: DicomWebExporter, task: Path) -> int:
    delivery = FolderDelivery(task)
    made.deliver(delivery)
    return len(delivery.codes(Outcome.DELIVERED))


def bearers(peer: WebPeer) -> list[str | None]:
    return [headers.get("Authorization") for _, _, headers in peer.requests]


def oauth(tokens: TokenServer, **changes: Any) -> Auth:
    return Auth(
        kind=AuthKind.OAUTH2,
        secret="password",
        token_url=tokens.url,
        client_id="agent@1",
        **changes,
    )


def test_basic_and_bearer(peer: Callable[..., WebPeer], secrets: Path, task: Path) -> None:
    web = peer()
    basic = Auth(kind=AuthKind.BASIC, user_name="agent", secret="password")
    assert delivered(exporter(web, secrets, auth=basic), task) == 3
    shown = "Basic " + base64.b64encode("agent:s3cr3t: ü".encode()).decode()
    assert bearers(web) == [shown] * 3
    web = peer()
    (secrets / "password").write_text("abc.def")
    bearer = Auth(kind=AuthKind.BEARER, secret="password")
    assert delivered(exporter(web, secrets, auth=bearer), task) == 3
    assert bearers(web) == ["Bearer abc.def"] * 3


def test_a_token_is_asked_for_once_and_again_shortly_before_it_expires(
    peer: Callable[..., WebPeer], secrets: Path, task: Path, tokens: TokenServer
) -> None:
    web, clock = peer(), Reading()
    made = exporter(web, secrets, clock, auth=oauth(tokens, scope="dicom.write"))
    assert delivered(made, task) == 3
    clock.ahead = 3500
    assert delivered(made, task) == 3
    assert bearers(web) == ["Bearer token-1"] * 6
    clock.ahead = 3550  # a minute before its end
    assert delivered(made, task) == 3
    assert bearers(web)[6:] == ["Bearer token-2"] * 3
    shown = "Basic " + base64.b64encode(b"agent%401:s3cr3t%3A+%C3%BC").decode()
    form = {"grant_type": ["client_credentials"], "scope": ["dicom.write"]}
    assert tokens.asked == [(shown, form)] * 2


@pytest.mark.parametrize("expires_in", [3600, None])
def test_a_token_that_is_not_taken_is_replaced_once(
    peer: Callable[..., WebPeer],
    secrets: Path,
    task: Path,
    tokens: TokenServer,
    expires_in: int | None,
) -> None:
    web = peer()
    tokens.expires_in = expires_in
    made = exporter(web, secrets, auth=oauth(tokens))
    assert delivered(made, task) == 3
    web.authorized = lambda headers: headers.get("Authorization") != "Bearer token-1"
    assert delivered(made, task) == 3
    assert len(tokens.asked) == 2
    assert web.times_stored == dict.fromkeys(web.stored, 2)
    web.authorized = lambda _: False
    with pytest.raises(DestinationUnavailable, match="does not take our credentials") as caught:
        delivered(made, task)
    assert caught.value.code == "not-authorized"
    assert len(tokens.asked) == 3


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (
            (400, b'{"error": "invalid_scope", "error_description": "Doe"}'),
            r"400 \(invalid_scope\)",
        ),
        ((401, b'{"error": "Doe^Jane"}'), "with a refusal: status 401;"),
        ((500, b"Doe"), "with a refusal: status 500;"),
        ((200, b"{}"), "with no token: status 200;"),
        ((200, b'{"access_token": "a\\r\\nb"}'), "with no token"),
        ((200, b'["Doe"]'), "with no token"),
    ],
)
def test_no_token_makes_the_task_wait(
    peer: Callable[..., WebPeer],
    secrets: Path,
    task: Path,
    tokens: TokenServer,
    answer: tuple[int, bytes],
    words: str,
) -> None:
    web = peer()
    tokens.answer = answer
    with pytest.raises(DestinationUnavailable, match=words) as caught:
        delivered(exporter(web, secrets, auth=oauth(tokens)), task)
    assert caught.value.code == "not-authorized"
    assert "Doe" not in str(caught.value)
    assert web.requests == []


def test_a_secret_that_is_not_there_makes_the_task_wait(
    peer: Callable[..., WebPeer], secrets: Path, task: Path
) -> None:
    for changes in (
        {"auth": Auth(kind=AuthKind.BEARER, secret="nowhere")},
        {"url": "https://127.0.0.1:1/", "tls": Tls(ca="nowhere")},
    ):
        with pytest.raises(DestinationUnavailable, match="'nowhere'") as caught:
            delivered(exporter(peer(), secrets, **changes), task)
        assert caught.value.code == "secret-unavailable"


# TLS


@pytest.fixture(scope="module")
def authority(
    require_tool: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory
) -> Authority:
    return Authority(require_tool("openssl"), tmp_path_factory.mktemp("authority"))


@pytest.fixture
def certified(secrets: Path, authority: Authority) -> Path:
    """The folder of secrets, with the authority's certificate and one of ours."""
    certificate, key = authority.issue("agent")
    for source, name in ((authority.certificate, "ca.pem"), (certificate, "own.pem"), (key, "own.key")):  # fmt: skip
        (secrets / name).write_bytes(source.read_bytes())
    return secrets


OWN = Tls(ca="ca.pem", certificate="own.pem", key="own.key")


def test_mutual_tls(
    peer: Callable[..., WebPeer], certified: Path, task: Path, authority: Authority
) -> None:
    web = peer(context=authority.server("mutual", mutual=True))
    assert delivered(exporter(web, certified, tls=OWN), task) == 3
    with pytest.raises(DestinationUnavailable, match=r"wants a certificate of ours|closed the connection|broke"):  # fmt: skip
        delivered(exporter(web, certified, tls=Tls(ca="ca.pem")), task)
    assert len(web.stored) == 3


def test_a_server_that_is_not_trusted_gets_nothing(
    peer: Callable[..., WebPeer], certified: Path, task: Path, authority: Authority
) -> None:
    web = peer(context=authority.server("plain"))
    with pytest.raises(DestinationUnavailable, match="not trusted"):
        delivered(exporter(web, certified), task)
    other = peer(context=authority.server("elsewhere", alternatives="DNS:elsewhere.example"))
    with pytest.raises(DestinationUnavailable, match="not for this"):
        delivered(exporter(other, certified, tls=Tls(ca="ca.pem")), task)
    assert (web.requests, other.requests) == ([], [])
    unchecked = Tls(ca="ca.pem", check_host=False)
    assert delivered(exporter(other, certified, tls=unchecked), task) == 3


def test_a_server_without_tls_is_told_apart(
    peer: Callable[..., WebPeer], certified: Path, task: Path
) -> None:
    web = peer()
    url = web.url.replace("http:", "https:")
    with pytest.raises(DestinationUnavailable, match="does not speak TLS"):
        delivered(exporter(web, certified, url=url, tls=OWN), task)


# The destination's test


def probed(web: WebPeer | str, secrets: Path, **changes: Any) -> list[tuple[str, bool, str]]:
    url = web if isinstance(web, str) else web.url
    pacs = Destination(name="PACS", kind="dicomweb", url=url, **changes)
    found = probe_destination(pacs, Secrets(secrets), SHORT)
    assert found.ok == all(step.ok for step in found.steps)
    assert all(step.milliseconds < 5000 for step in found.steps)
    return [(step.name, step.ok, step.message) for step in found.steps]


def test_a_destinations_test_goes_step_by_step(
    peer: Callable[..., WebPeer],
    certified: Path,
    authority: Authority,
    tokens: TokenServer,
    free_port: Callable[[], int],
) -> None:
    web = peer(context=authority.server("probed", mutual=True))
    web.lookups = 204
    steps = probed(web, certified, tls=OWN, auth=oauth(tokens))
    assert [step[:2] for step in steps] == [("connect", True), ("authentication", True), ("query", True)]  # fmt: skip
    assert "its certificate is trusted" in steps[0][2]
    tokens.answer = 401, b""
    steps = probed(web, certified, tls=OWN, auth=oauth(tokens))
    assert [step[:2] for step in steps] == [("connect", True), ("authentication", False)]
    steps = probed(f"http://127.0.0.1:{free_port()}", certified)
    assert [step[:2] for step in steps] == [("connect", False)]
    assert "refused" in steps[0][2]
    steps = probed(web, certified, tls=Tls(ca="nowhere"))
    assert [step[:2] for step in steps] == [("secrets", False)]


@pytest.mark.parametrize(
    ("status", "words"),
    [(200, "below which"), (401, "credentials"), (403, "may not"), (404, "below which"), (406, "below which"), (500, "failed")],
)  # fmt: skip
def test_a_destinations_test_asks_for_studies(
    peer: Callable[..., WebPeer], secrets: Path, status: int, words: str
) -> None:
    web = peer()
    web.lookups = status
    steps = probed(web, secrets)
    assert [step[:2] for step in steps] == [("connect", True), ("query", False)]
    assert words in steps[1][2]
    assert web.requests[-1][1] == "/dicom-web/studies?limit=1"
