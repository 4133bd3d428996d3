"""Access as people set it up: tokens made by the command, services and agents in processes of their own."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import urllib3

from clara_results.cli.app import run
from clara_results.client import ResultsClient
from clara_results.errors import NotFound, Refused, ServiceUnavailable
from tests.conftest import ServerProcess, eventually

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import ServiceStarter

TAKES_EFFECT = 5.0
"""Seconds within which what is made or revoked counts."""
EVERYWHERE = "0.0.0.0"  # noqa: S104  (what is tested)
PROGRAM = [sys.executable, "-m", "clara_results"]


class Tokens:
    """``clara-results tokens`` on one database."""

    def __init__(self, capsys: pytest.CaptureFixture[str], *where: str) -> None:
        self._capsys = capsys
        self._where = where

    def __call__(self, *arguments: str, exit_code: int = 0) -> tuple[str, str]:
        """Run a command; return what it printed on stdout and stderr."""
        self._capsys.readouterr()
        assert run(["tokens", *arguments, *self._where]) == exit_code
        printed = self._capsys.readouterr()
        return printed.out, printed.err

    def create(self, name: str, *scopes: str) -> str:
        return self("create", name, "--scope", ",".join(scopes))[0].strip()

    def listed(self) -> dict[str, dict[str, Any]]:
        items = json.loads(self("list", "--json")[0])["items"]
        return {item["name"]: item for item in items}


@pytest.fixture
def tokens(capsys: pytest.CaptureFixture[str], database_url: str) -> Tokens:
    return Tokens(capsys, "--database", database_url)


# The command


def test_a_token_is_shown_once_and_kept_as_a_digest(tokens: Tokens, tmp_path: Path) -> None:
    out, err = tokens(
        "create", "ward-3", "--scope", "register", "--scope", "agent:ClaraSCU", "--expires", "90d"
    )
    assert re.fullmatch(r"crt_[A-Za-z0-9_-]{43}\n", out)
    assert out.strip() not in err
    assert "only time" in err
    listed = tokens("list", "--json")[0]
    assert out.strip() not in listed
    item = json.loads(listed)["items"][0]
    assert item["scopes"] == ["agent:clarascu", "register"]
    assert item["expiresAt"][:4] > item["createdAt"][:4] or item["expiresAt"] > item["createdAt"]
    assert "lastUsedAt" not in item
    assert "revokedAt" not in item
    secret = out.strip().encode()
    held = [path for path in (tmp_path / "database").glob("*") if secret in path.read_bytes()]
    assert held == []  # on PostgreSQL there is no such folder


def test_tokens_as_a_table_and_as_json(tokens: Tokens) -> None:
    assert "No token yet" in tokens("list")[0]
    made = json.loads(tokens("create", "a", "--scope", "read,operate", "--json")[0])
    assert made["scopes"] == ["operate", "read"]
    assert made["token"].startswith("crt_")
    assert "expiresAt" not in made
    tokens.create("b", "admin")
    tokens("revoke", "b")
    rows = [line.split("\t") for line in tokens("list")[0].splitlines()]
    assert rows[0] == ["name", "scopes", "created", "expires", "last used", "stands"]
    assert [(row[0], row[1], row[3], row[4]) for row in rows[1:]] == [
        ("a", "operate, read", "never", "never"),
        ("b", "admin", "never", "never"),
    ]
    assert rows[1][5] == "counts"
    assert rows[2][5].startswith("revoked ")


def test_names_are_taken_until_their_token_is_revoked(tokens: Tokens) -> None:
    first = tokens.create("a", "read")
    _, err = tokens("create", "a", "--scope", "read", exit_code=7)
    assert "token-exists" in err
    assert "last token" in tokens("revoke", "a")[1]
    assert tokens.create("a", "read") != first
    assert "last token" in tokens("revoke", "a")[1]
    assert "token-not-found" in tokens("revoke", "a", exit_code=7)[1]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("a b", "--scope", "read"), "invalid-name"),
        (("a", "--scope", "all"), "invalid-scope"),
        (("a", "--scope", ""), "invalid-scope"),
        (("a", "--scope", "read", "--expires", "soon"), "invalid-age"),
    ],
)
def test_what_can_not_be_made(tokens: Tokens, arguments: tuple[str, ...], code: str) -> None:
    assert code in tokens("create", *arguments, exit_code=2)[1]
    assert tokens.listed() == {}


# A service that runs


def test_tokens_made_and_revoked_beside_a_running_service_count_within_five_seconds(
    service: "ServiceStarter", tokens: Tokens, database_url: str
) -> None:
    running = service(database=database_url)
    running.client.destinations()
    first = tokens.create("first", "admin")
    eventually(lambda: status(running.url) == 401, "a token is needed", TAKES_EFFECT)
    client = ResultsClient(running.url, token=first)
    client.destinations()
    eventually(lambda: "lastUsedAt" in tokens.listed()["first"], "its use is noted", TAKES_EFFECT)
    tokens.create("second", "read")
    tokens("revoke", "first")
    eventually(lambda: status(running.url, first) == 401, "it is revoked", TAKES_EFFECT)
    with pytest.raises(Refused, match="unknown or was revoked"):
        client.destinations()
    client.ready()


def status(url: str, token: str | None = None, headers: dict[str, str] | None = None) -> int:
    shown = {} if token is None else {"Authorization": f"Bearer {token}"}
    return urllib3.request(
        "GET", f"{url}/api/tasks", headers=shown | (headers or {}), retries=False
    ).status


def test_a_caller_can_not_say_where_it_comes_from(service: "ServiceStarter") -> None:
    running = service(anonymous="read@10.9.8.0/24; register@127.0.0.1")
    assert status(running.url) == 401
    for header in ("X-Forwarded-For", "Forwarded", "X-Real-IP"):
        value = "for=10.9.8.7" if header == "Forwarded" else "10.9.8.7"
        assert status(running.url, headers={header: value}) == 401


# Beyond loopback


def test_beyond_loopback_a_service_does_not_start_without_tokens(tmp_path: Path) -> None:
    ended = subprocess.run(
        [*PROGRAM, "serve", "--host", EVERYWHERE, "--port", "0", "--data", str(tmp_path / "data")],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert "[insecure]" in ended.stderr
    for way_out in ("tokens create", "--anonymous", "127.0.0.1", "--insecure"):
        assert way_out in ended.stderr


def test_beyond_loopback_insecure_is_open_and_says_so_at_each_start(
    service: "ServiceStarter",
) -> None:
    running = service(host=EVERYWHERE, insecure=True)
    assert status(running.url) == 200
    assert running.log().count(f"insecure: whoever reaches {EVERYWHERE}") == 1
    running.stop()
    running.start()
    assert running.log().count(f"insecure: whoever reaches {EVERYWHERE}") == 2


def test_beyond_loopback_with_a_token_a_service_is_closed_for_good(
    service: "ServiceStarter", tokens: Tokens, database_url: str
) -> None:
    token = tokens.create("only", "read")
    running = service(host=EVERYWHERE, database=database_url)
    assert status(running.url) == 401
    assert status(running.url, token) == 200
    tokens("revoke", "only")
    eventually(lambda: status(running.url, token) == 401, "it is revoked", TAKES_EFFECT)
    assert status(running.url) == 401
    assert "insecure" not in running.log()


def test_beyond_loopback_a_grant_is_enough_to_start(service: "ServiceStarter") -> None:
    running = service(host=EVERYWHERE, anonymous="read@127.0.0.1")
    assert status(running.url) == 200
    assert "insecure" not in running.log()


# All on one machine


@pytest.fixture
def up(tmp_path: Path, free_port: "Callable[[], int]") -> Iterator[tuple[ServerProcess, str, Path]]:
    """Give ``clara-results up``, not started yet, its URL and its data folder."""
    port, data = free_port(), tmp_path / "data"
    process = ServerProcess(
        [*PROGRAM, "up", "--port", str(port), "--data", str(data)],
        tmp_path / "up.log",
        {"CLARA_RESULTS_TOKEN_FILE": str(tmp_path / "token")},
    )
    yield process, f"http://127.0.0.1:{port}", data
    process.stop()


def test_up_works_with_tokens(
    up: tuple[ServerProcess, str, Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    process, url, data = up
    tokens = Tokens(capsys, "--data", str(data))
    (tmp_path / "token").write_text(tokens.create("agent", "agent:clarascu"))
    reads = ResultsClient(url, token=tokens.create("reader", "read"))
    process.start(lambda: serves(reads))
    eventually(lambda: len(reads.agents().items) == 1, "the agent claims", 20)
    assert status(url) == 401
    assert "lastUsedAt" in tokens.listed()["agent"]


def serves(client: ResultsClient) -> bool:
    try:
        client.agents()
    except (ServiceUnavailable, NotFound):
        return False
    return True
