"""A Results Service in the test's own process and thread, called without a network: what goes in and out is HTTP all the same."""

import asyncio
import json
from collections.abc import Iterable
from typing import Any

from starlette.types import Message

from clara_results.api.app import create_app
from clara_results.domain.clock import Clock
from clara_results.service.engine import Engine
from clara_results.settings import Settings
from clara_results.wire.destinations import Destination
from tests.support.queue_model import Answer


class InProcessService:
    """One replica: its application for good, its engine opened and closed as often as a test likes."""

    def __init__(self) -> None:
        self._app = create_app(self._nobody, self._nobody)
        self._engine: Engine | None = None

    async def open(self, settings: Settings, clock: Clock) -> None:
        """Start it."""
        self._engine = self._app.state.engine = Engine(settings, clock)

    def close(self) -> None:
        """Stop it, if it runs."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    async def rescue(self) -> None:
        """Do what the service does twice a second: look for leases that ran out and waits that took too long."""
        engine = self._engine
        assert engine is not None
        await engine.write(lambda transaction: engine.queue.rescue(transaction, 1000))
        await engine.write(lambda transaction: engine.queue.give_up(transaction, 1000))

    async def call(
        self, method: str, path: str, body: Any = None, headers: Iterable[tuple[str, str]] = ()
    ) -> Answer:
        """Send a request with ``body`` as JSON, and return the answer."""
        path, _, query = path.partition("?")
        sent = b"" if body is None else json.dumps(body).encode()
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": [
                (b"host", b"service"),
                (b"content-type", b"application/json"),
                *[(name.lower().encode(), value.encode()) for name, value in headers],
            ],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 8088),
        }
        messages: list[Message] = [{"type": "http.request", "body": sent, "more_body": False}]
        answered: list[Message] = []

        async def receive() -> Message:
            if messages:
                return messages.pop()
            await asyncio.sleep(3600)  # the caller stays
            raise AssertionError("nobody waits for so long")

        async def send(message: Message) -> None:
            answered.append(message)

        await self._app(scope, receive, send)
        data = b"".join(message.get("body", b"") for message in answered[1:])
        return Answer(answered[0]["status"], json.loads(data) if data else None)

    @staticmethod
    def _nobody(*_: Destination) -> Any:
        raise AssertionError("no test of this kind asks for that")
