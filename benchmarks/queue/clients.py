"""Clients of the queues that are measured, all of one shape: coroutines that register, or claim and report.

Each knows how to ``produce`` tasks and to ``consume`` them with a number of clients of its own side by side, and is
no heavier than it must be: what a client costs is taken from the servers on the same machine.
"""

import asyncio
import contextlib
import importlib
import json
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol, cast
from urllib.parse import urlsplit

from benchmarks.queue.errors import BenchmarkFailed

TASK_BYTES = 500
"""Bytes of a task as it is handed over: our registration's body, RabbitMQ's message, procrastinate's arguments."""
QUEUE = "bench"
LEASE = 600
PREPARE_SECONDS = 30.0

Mark = Callable[[], Awaitable[str]]
"""Gives a mark for the next task, 36 characters that no other has; it may take its time to set a pace."""
Seen = Callable[[str], None]
"""Called with a task's mark when a client has been given it."""


class Stop(Protocol):
    """Says how many tasks are done over all processes, and when that is enough."""

    def done(self, number: int) -> None:
        """Count tasks that were reported."""
        ...

    @property
    def reached(self) -> bool:
        """Whether enough are done."""
        ...


class Client(Protocol):
    """What can be measured."""

    async def produce(self, clients: int, tasks: int, mark: Mark) -> None:
        """Hand over tasks; each is durable before its client goes on."""
        ...

    async def consume(self, clients: int, size: int, wait: bool, stop: Stop, seen: Seen) -> None:
        """Take tasks, up to ``size`` at once for each client, and report each, until enough are done.

        Without ``wait`` the tasks are all there.
        """
        ...


@dataclass(frozen=True, slots=True)
class Target:
    """What to measure: picklable, so that it can be told to another process.

    Attributes:
        kind: ``http``, ``amqp`` or ``procrastinate``.
        urls: Its servers; clients spread over them.
        destination: For ``http``: what tasks name; None: no destination.
    """

    kind: str
    urls: tuple[str, ...]
    destination: str | None = None

    def client(self) -> Client:
        """Return a client of it, its library loaded."""
        if self.kind == "http":
            return ResultsService(self.urls, self.destination)
        if self.kind == "amqp":
            importlib.import_module("aio_pika")
            return QuorumQueue(self.urls[0])
        importlib.import_module("procrastinate")
        return Procrastinate(self.urls[0])


class Connection(asyncio.Protocol):
    """An HTTP/1.1 connection that is kept, for one request at a time to a server that tells Content-Length."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._buffer = b""
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, url: str) -> "AsyncIterator[Connection]":
        """Connect to a server; whoever waits for an answer no more must close, or it goes to nobody."""
        host, _, port = urlsplit(url).netloc.partition(":")
        transport, made = await asyncio.get_running_loop().create_connection(cls, host, int(port))
        try:
            yield made
        finally:
            transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport (asyncio calls this)."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell who waits (asyncio calls this)."""
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(BenchmarkFailed(f"the connection broke: {exc}"))

    def data_received(self, data: bytes) -> None:
        """Look whether the answer is whole (asyncio calls this)."""
        self._buffer = self._buffer + data if self._buffer else data
        head, found, body = self._buffer.partition(b"\r\n\r\n")
        if not found or self._answer is None:
            return
        at = head.lower().find(b"\r\ncontent-length:")
        length = int(head[at + 17 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
        if len(body) < length:
            return
        self._buffer = b""
        if not self._answer.done():
            self._answer.set_result((int(head[9:12]), body))

    async def request(
        self, method: str, path: str, body: bytes = b"", headers: str = ""
    ) -> tuple[int, bytes]:
        """Send a request; return the answer's status and body."""
        if self._transport is None:
            raise BenchmarkFailed("the connection was not opened")
        self._answer = asyncio.get_running_loop().create_future()
        kind = "Content-Type: application/json\r\n" if body else ""
        head = f"{method} {path} HTTP/1.1\r\nHost: bench\r\n{kind}{headers}Content-Length: {len(body)}\r\n\r\n"
        self._transport.write(head.encode() + body)
        return await self._answer

    async def expect(self, status: int, method: str, path: str, body: bytes = b"", headers: str = "") -> bytes:  # fmt: skip
        """Send a request; return the answer's body.

        Raises:
            BenchmarkFailed: The answer has another status.
        """
        answered, said = await self.request(method, path, body, headers)
        if answered != status:
            raise BenchmarkFailed(f"{method} {path}: {answered} {said[:500].decode()}")
        return said


class ResultsService:
    """Clients of the Results Service: registrations with a key of their own each, claims, reports of success."""

    def __init__(self, urls: tuple[str, ...], destination: str | None) -> None:
        """Take the URLs of all replicas."""
        self._urls = urls
        self._destination = destination

    def body(self, mark: str) -> bytes:
        """Return a registration's body, of ``TASK_BYTES`` bytes."""
        told = {
            "agent": QUEUE,
            "jobId": mark,
            "pipelineId": "pipeline-1",
            "payloadId": f"payload-{mark[:4]}",
            "operator": "segmentation",
            "data": [self._destination or {}],
            "files": [{"uri": "segmentation/result-000.dcm", "size": 524_288}],
        }
        missing = TASK_BYTES - len(json.dumps(told))
        if self._destination is None:
            told["data"] = [{"notes": "x" * (missing - len('"notes": ""'))}]
        else:
            told["pipelineId"] = "p" * min(255, missing + len("pipeline-1"))
        return json.dumps(told).encode()

    async def produce(self, clients: int, tasks: int, mark: Mark) -> None:
        """Register tasks, each with an Idempotency-Key as the operator does."""
        await _share(clients, tasks, lambda turn, number: self._produce(turn, number, mark))

    async def _produce(self, turn: int, tasks: int, mark: Mark) -> None:
        async with Connection.open(self._urls[turn % len(self._urls)]) as connection:
            for _ in range(tasks):
                made = await mark()
                await connection.expect(201, "POST", "/api/tasks", self.body(made), f"Idempotency-Key: {made}\r\n")  # fmt: skip

    async def consume(self, clients: int, size: int, wait: bool, stop: Stop, seen: Seen) -> None:
        """Claim tasks, and report each by a request of its own before the next."""
        await _until(stop, [self._consume(turn, size, wait, stop, seen) for turn in range(clients)])

    async def _consume(self, turn: int, size: int, wait: bool, stop: Stop, seen: Seen) -> None:
        path = f"/api/tasks/{QUEUE}/pending?size={size}&lease={LEASE}" + (
            "&wait=30" if wait else ""
        )
        async with Connection.open(self._urls[turn % len(self._urls)]) as connection:
            while not stop.reached:
                claimed = json.loads(await connection.expect(200, "GET", path))
                for task in claimed:
                    seen(task["jobId"])
                    report = b'{"leaseToken":"%s"}' % task["leaseToken"].encode()
                    await connection.expect(200, "PUT", f"/api/tasks/success/{task['taskId']}", report)  # fmt: skip
                    stop.done(1)
                if not claimed and not wait:
                    break


class QuorumQueue:
    """Clients of RabbitMQ: a durable quorum queue, persistent messages, publisher confirms, acknowledgements by hand."""

    def __init__(self, url: str) -> None:
        """Take the server's URL."""
        self._url = url

    async def prepare(self) -> None:
        """Declare the queue, and wait until it takes messages: it has to find its leader first.

        Raises:
            TimeoutError: It does not within ``PREPARE_SECONDS``.
        """
        import aio_pika

        async with (
            asyncio.timeout(PREPARE_SECONDS),
            await aio_pika.connect(self._url) as connection,
        ):
            channel = await connection.channel(publisher_confirms=True)
            queue = await _declare(channel)
            taken = False
            while not taken:
                try:
                    await channel.default_exchange.publish(
                        aio_pika.Message(b"first"), routing_key=QUEUE
                    )
                    taken = True
                except aio_pika.exceptions.DeliveryError:
                    await asyncio.sleep(0.1)
            await queue.purge()

    async def produce(self, clients: int, tasks: int, mark: Mark) -> None:
        """Publish messages; each is confirmed before its client's next."""
        await _share(clients, tasks, lambda _turn, number: self._produce(number, mark))

    async def _produce(self, tasks: int, mark: Mark) -> None:
        import aio_pika

        async with await aio_pika.connect(self._url) as connection:
            channel = await connection.channel(publisher_confirms=True)
            await _declare(channel)
            for _ in range(tasks):
                message = aio_pika.Message(
                    (await mark()).ljust(TASK_BYTES, "x").encode(),
                    delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
                )
                await channel.default_exchange.publish(message, routing_key=QUEUE, mandatory=True)

    async def consume(
        self,
        clients: int,
        size: int,
        wait: bool,  # noqa: ARG002  (its consumers always wait)
        stop: Stop,
        seen: Seen,
    ) -> None:
        """Take messages, ``size`` at most unacknowledged for each client, and acknowledge each."""
        await _until(stop, [self._consume(size, stop, seen) for _ in range(clients)])

    async def _consume(self, size: int, stop: Stop, seen: Seen) -> None:
        import aio_pika

        async with await aio_pika.connect(self._url) as connection:
            channel = await connection.channel()
            await channel.set_qos(prefetch_count=size)
            queue = await _declare(channel)

            async def taken(message: Any) -> None:
                seen(message.body[:36].decode())
                await message.ack()
                stop.done(1)

            await queue.consume(taken, no_ack=False)
            while not stop.reached:
                await asyncio.sleep(0.005)


async def _declare(channel: Any) -> Any:
    return await channel.declare_queue(QUEUE, durable=True, arguments={"x-queue-type": "quorum"})


async def waiting_messages(url: str) -> int:
    """Return how many messages RabbitMQ's queue still has."""
    import aio_pika

    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        queue = await channel.declare_queue(QUEUE, passive=True)
        return int(queue.declaration_result.message_count or 0)


class Procrastinate:
    """procrastinate: tasks are deferred one at a time; its own worker runs them, as many at once as clients."""

    def __init__(self, url: str) -> None:
        """Take the database's URL."""
        self._url = url

    async def prepare(self) -> None:
        """Make its tables in an empty database."""
        async with self._app(2, lambda _mark: None).open_async() as app:
            await app.schema_manager.apply_schema_async()

    def _app(self, clients: int, ran: Callable[[str], None]) -> Any:
        import procrastinate

        app = procrastinate.App(
            connector=procrastinate.PsycopgConnector(
                conninfo=self._url, min_size=clients, max_size=clients
            )
        )

        @app.task(name="deliver", queue=QUEUE)  # type: ignore[untyped-decorator]
        async def deliver(text: str) -> None:
            ran(text[:36])

        return app

    async def produce(self, clients: int, tasks: int, mark: Mark) -> None:
        """Defer tasks; each is committed before its client's next."""
        async with self._app(clients, lambda _mark: None).open_async() as app:
            deliver = app.tasks["deliver"]

            async def some(number: int) -> None:
                for _ in range(number):
                    text = (await mark()).ljust(TASK_BYTES - len('{"text": ""}'), "x")
                    await deliver.defer_async(text=text)

            await _share(clients, tasks, lambda _turn, number: some(number))

    async def consume(
        self,
        clients: int,
        size: int,  # noqa: ARG002
        wait: bool,
        stop: Stop,
        seen: Seen,
    ) -> None:
        """Run a worker. It fetches jobs one at a time, whatever ``size`` is."""

        def ran(mark: str) -> None:
            seen(mark)
            stop.done(1)

        async with self._app(clients + 1, ran).open_async() as app:
            worker = asyncio.create_task(
                app.run_worker_async(
                    queues=[QUEUE], concurrency=clients, wait=wait, install_signal_handlers=False
                )
            )
            while not worker.done() and not stop.reached:
                await asyncio.sleep(0.005)
            if wait:
                worker.cancel()  # it ends what it has begun
            with contextlib.suppress(asyncio.CancelledError):
                await worker


async def _share(clients: int, tasks: int, produce: Callable[[int, int], Awaitable[None]]) -> None:
    """Have clients produce a number of tasks together."""
    shares = [tasks // clients + (turn < tasks % clients) for turn in range(clients)]
    await asyncio.gather(*(produce(turn, share) for turn, share in enumerate(shares)))


async def _until(stop: Stop, clients: list[Any]) -> None:
    """Run clients until all have ended or enough is done; then let those go that still wait."""
    running = [asyncio.create_task(client) for client in clients]
    while not stop.reached and not all(client.done() for client in running):
        await asyncio.sleep(0.005)
        for client in running:
            if client.done() and not client.cancelled() and (fault := client.exception()):
                raise fault
    for client in running:
        client.cancel()
    for ended in await asyncio.gather(*running, return_exceptions=True):
        if isinstance(ended, Exception):
            raise ended


async def new_mark() -> str:
    """Return a mark at once."""
    return str(uuid.uuid4())


def now() -> float:
    """Return seconds on a clock that all processes of the machine share."""
    return time.clock_gettime(time.CLOCK_MONOTONIC)
