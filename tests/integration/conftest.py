"""Fixtures for tests of the Results Service as a whole.

``clock``
    A ``FakeClock`` that stands still until a test moves it on.
``local``
    A Results Service inside the test's own process, over real HTTP, whose time is ``clock``: a ``LocalService``.
    Its settings are the defaults; mark a test with ``@pytest.mark.parametrize("policy", [{"max_retries": 0}])`` for others.
"""

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

import pytest
import urllib3
import uvicorn

from clara_results.api.app import create_app
from clara_results.client import ResultsClient
from clara_results.domain.scopes import parse_scopes
from clara_results.domain.tasks import Outcome
from clara_results.service import access
from clara_results.service.engine import Engine
from clara_results.settings import Settings
from clara_results.store.database import Database
from clara_results.wire.destinations import Destination, TestResult, TestStep
from clara_results.wire.tasks import FileOutcome, Registration, ResultFile, Task
from tests.conftest import eventually


class FakeClock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self._now = datetime(2026, 1, 2, 3, 4, 5, 678_901, tzinfo=UTC)

    def now(self) -> datetime:
        return self._now

    def monotonic(self) -> float:
        return self._now.timestamp()

    def advance(self, seconds: float) -> None:
        self._now += timedelta(seconds=seconds)


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer as it came over the wire."""

    status: int
    headers: urllib3.HTTPHeaderDict
    data: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.data)

    def problem(self, status: int, code: str) -> dict[str, Any]:
        """Check that it is an RFC 9457 problem of that status and code, and return it."""
        assert self.status == status, self.data
        assert self.headers["Content-Type"] == "application/problem+json"
        body: dict[str, Any] = self.json
        assert body["code"] == code, body
        assert body["status"] == status
        assert body["type"] == f"urn:clara-results:error:{code}"
        assert body["title"]
        assert body["detail"]
        return body


class LocalService:
    """A Results Service in this process.

    Attributes:
        url: Where it answers.
        clock: Its time.
        payloads: Its payload folder.
        client: Our client of it.
        engine: What is behind its routes.
        tested: The destinations that it was asked to test.
    """

    def __init__(self, url: str, engine: Engine, clock: FakeClock, tested: list[Destination]):
        self.url = url
        self.engine = engine
        self.clock = clock
        self.payloads = engine.payloads.root
        self.client = ResultsClient(url, read_timeout=20)
        self.tested = tested
        self._pool = urllib3.PoolManager(retries=False, timeout=20, maxsize=4)

    def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: dict[str, str] | None = None,
        *,
        raw: bytes | None = None,
    ) -> Answer:
        """Send a request: ``body`` as JSON, or ``raw`` bytes as they are."""
        if body is not None:
            raw = json.dumps(body).encode()
            headers = {"Content-Type": "application/json"} | (headers or {})
        answer = self._pool.request(
            method, self.url + path, body=raw, headers=headers, redirect=False
        )
        return Answer(answer.status, answer.headers, answer.data)

    def register(
        self, *uris: str, key: str | None = None, agent: str = "ClaraSCU", **more: Any
    ) -> list[Task]:
        """Register files by name (two if none is given) for the job ``job`` unless told otherwise."""
        files = [ResultFile(uri=uri) for uri in uris or ("op/a.dcm", "op/b.dcm")]
        ids = {"job_id": "job", "pipeline_id": "pipe", "payload_id": "pay"}
        body = Registration(**{"agent": agent, "files": files} | ids | more)
        return self.client.register(body, key).tasks

    def claim(self, agent: str = "clarascu", **more: Any) -> Task:
        """Claim one task that must be due."""
        (task,) = self.client.claim(agent, **more)
        return task

    def put_file(self, uri: str, content: bytes, payload_id: str = "pay") -> Path:
        """Lay a file into the payload folder."""
        path = self.payloads / payload_id / uri
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    def close(self) -> None:
        self._pool.clear()


def told(uri: str, outcome: Outcome = Outcome.DELIVERED, **more: Any) -> FileOutcome:
    """Return what became of a file."""
    return FileOutcome(uri=uri, outcome=outcome, **more)


class _Host:
    """One HTTP server for all tests of a process; each test puts an engine of its own behind it."""

    def __init__(self) -> None:
        self.tested: list[Destination] = []
        self._app = create_app(self._no_engine, self._test)
        config = uvicorn.Config(self._app, lifespan="off", log_config=None, access_log=False)
        self._server = uvicorn.Server(config)
        # Named TCP outright: else asyncio leaves Nagle's algorithm on, and each answer takes 40 ms.
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        self._socket.bind(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._begun = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))
        self._thread.start()
        assert self._begun.wait(10)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._begun.set()
        await self._server.serve(sockets=[self._socket])

    def open(self, settings: Settings, clock: FakeClock) -> Engine:
        async def make() -> Engine:
            return Engine(settings, clock)

        engine = asyncio.run_coroutine_threadsafe(make(), self._loop).result(20)
        self._app.state.engine = engine
        self.tested.clear()
        return engine

    def close(self) -> None:
        self._server.should_exit = True
        self._thread.join(20)
        assert not self._thread.is_alive()

    @staticmethod
    def _no_engine() -> Engine:
        raise AssertionError("each test opens its own")

    def _test(self, destination: Destination) -> TestResult:
        self.tested.append(destination)
        step = TestStep(name="connect", ok=True, milliseconds=1.5, message="connected")
        return TestResult(destination=destination.name, ok=True, steps=[step])


@pytest.fixture(scope="session")
def host() -> Iterator[_Host]:
    """Run the HTTP server that ``local`` uses."""
    host = _Host()
    yield host
    host.close()


@pytest.fixture
def clock() -> FakeClock:
    """Give a clock that stands still until it is moved."""
    return FakeClock()


@pytest.fixture
def policy() -> dict[str, Any]:
    """Give the settings of ``local`` other than where things are."""
    return {}


@pytest.fixture
def local(
    host: _Host, clock: FakeClock, policy: dict[str, Any], database_url: str, tmp_path: Path
) -> Iterator[LocalService]:
    """Run a Results Service in this process."""
    settings = Settings(data=tmp_path, database=database_url, **policy)
    engine = host.open(settings, clock)
    service = LocalService(host.url, engine, clock, host.tested)
    # What it removes at its start is over, so that a test's own rounds are the only ones.
    eventually(lambda: engine.pruner._swept_at is not None, "the first round has begun")
    engine.pruner.round()
    yield service
    service.close()
    engine.close()


class TokenMaker(Protocol):
    """Makes a token; the service knows it at the next call."""

    def __call__(self, *scopes: str, name: str = ..., age: timedelta | None = ...) -> str: ...


@pytest.fixture
def beside(database_url: str, local: LocalService) -> Iterator[Database]:
    """Open the service's database beside it, as the command does."""
    with access.opened(database_url) as database:
        yield database


@pytest.fixture
def make_token(beside: Database, local: LocalService) -> TokenMaker:
    """Give what makes tokens."""

    def make(*scopes: str, name: str = "one", age: timedelta | None = None) -> str:
        allowed, now = parse_scopes(scopes), local.clock.now()
        made = beside.write(lambda tx: access.create(tx, name, allowed, age, now)).result()
        local.clock.advance(access.REFRESH)
        return made.token

    return make
