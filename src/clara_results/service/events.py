"""Events: the history of all tasks as a stream that many read at once, none of them losing an entry.

An event is an entry of the history, and its id is the entry's. One loop a process reads new entries, four times a
second while anyone listens, and keeps the last thousands of them for all streams. A stream is no more than a position: it takes
what follows from those, or, where it has fallen behind or resumes, from the database page by page. So a slow reader costs
no memory, and a stream costs no query as long as it keeps up.

On PostgreSQL an entry may come to be seen after another with a larger id. So an entry is only passed on once no smaller id
can turn up: those before it are there without a gap, or whoever might have taken the missing ids has ended. Then
positions are ids: what a stream was given is all that there is up to its position, and it can resume at any process.
"""

import asyncio
import bisect
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

import sqlalchemy as sa

from clara_results.domain import names
from clara_results.domain.tasks import State
from clara_results.errors import ServiceUnavailable
from clara_results.store import events as store
from clara_results.wire.codec import to_json
from clara_results.wire.events import TaskEvent

T = TypeVar("T")
POLL = 0.25
"""Seconds between looks for new entries."""
GAP_POLL = 0.02
"""Seconds between looks while an id is missing."""
AWAY = 1.0
"""Seconds between looks while the database is away."""
LINGER = 10.0
"""Seconds for which the loop goes on without a listener."""
PAGE = 500
KEPT = 4000
"""Entries that are kept for streams, at least."""
HEARTBEAT = 15.0
"""Seconds after which a stream that has nothing to tell says so."""
_log = logging.getLogger(__name__)


class Read(Protocol):
    """How a feed reads."""

    def __call__(self, operation: Callable[[sa.Connection], T], /) -> Awaitable[T]:
        """Run an operation on a snapshot of the database."""
        ...


@dataclass(frozen=True, slots=True)
class Entry:
    """One event.

    Attributes:
        id: The history entry's.
        event: What it tells.
        json: The same as JSON, made once for all streams.
    """

    id: int
    event: TaskEvent
    json: bytes


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a stream wants; None: any.

    Attributes:
        agent: Events of this agent's tasks, in any case.
        job_id: Of this job's.
        destination: Of those for this destination, in any case.
    """

    agent: str | None = None
    job_id: str | None = None
    destination: str | None = None

    def __call__(self, entry: Entry) -> bool:
        """Tell whether an event is wanted."""
        event = entry.event
        return (
            (self.agent is None or event.agent == names.name_key(self.agent))
            and (self.job_id is None or event.job_id == self.job_id)
            and (
                self.destination is None
                or (event.destination or "") == names.name_key(self.destination)
            )
        )


@dataclass(slots=True)
class _Gap:
    """Ids that are missing below ``top``, and which transactions may still bring them; None: not yet asked."""

    top: int
    writers: frozenset[str] | None = None


class Feed:
    """The events of one service process. Lives on one event loop."""

    def __init__(
        self, read: Read, loop: asyncio.AbstractEventLoop, heartbeat: float = HEARTBEAT
    ) -> None:
        """Make a feed; it reads nothing until someone listens.

        Args:
            read: Reads the database.
            loop: Where streams run.
            heartbeat: Seconds after which a stream that has nothing to tell says so.
        """
        self._read = read
        self._heartbeat = heartbeat
        self._loop = loop
        self._reader: asyncio.Task[None] | None = None
        self._begun: asyncio.Future[None] = loop.create_future()
        self._news = asyncio.Event()
        self._recent: list[Entry] = []
        self._floor = 0
        """Entries after this one, up to ``_final``, are in ``_recent``."""
        self._final = 0
        """No smaller id can turn up any more, and all entries up to here were passed on."""
        self._settled = 0
        """No smaller id can turn up any more."""
        self._gap: _Gap | None = None
        self._listeners = 0
        self._asked_at = 0.0
        self._ended = False

    async def open(self, after: int | None) -> int:
        """Return the position at which a stream begins.

        Args:
            after: The last event that its reader has; None: the stream is to begin with what happens from now on (it may
                begin with the last fraction of a second).

        Raises:
            ServiceUnavailable: The database does not answer.
        """
        await self._running()
        newest = await self._read(store.newest)  # also finds out whether the database answers
        # An id that was never given out comes from another database: begin at what there is.
        return self._final if after is None or after > newest else after

    async def stream(self, position: int, wanted: Wanted) -> AsyncIterator[tuple[int, list[Entry]]]:
        """Give the events that follow a position until the feed ends.

        Yields:
            The position that is reached, and the events that are wanted; none as a heartbeat.
        """
        self._listeners += 1
        try:
            said = self._loop.time()
            while not self._ended:
                try:
                    await self._running()
                    position, entries = await self._next(position, said + self._heartbeat)
                except ServiceUnavailable:
                    entries = []
                    await asyncio.sleep(AWAY)
                chosen = [entry for entry in entries if wanted(entry)]
                if chosen or self._loop.time() - said >= self._heartbeat:
                    yield position, chosen
                    said = self._loop.time()
        finally:
            self._listeners -= 1

    def end(self) -> None:
        """Let every stream end; may be called from any thread."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._end)

    @property
    def kept(self) -> int:
        """Return how many events are in memory."""
        return len(self._recent)

    def rest(self) -> None:
        """Have the loop end if nobody listens, as it does by itself after a while."""
        if self._reader is not None and not self._listeners:
            self._reader.cancel()

    def _end(self) -> None:
        self._ended = True
        self._news.set()

    async def _next(self, position: int, deadline: float) -> tuple[int, list[Entry]]:
        """Return the position reached, and the entries up to it: at least one, or time ran out or the feed ended."""
        if position < self._floor:
            final = self._final
            entries = [e for e in await self._read(partial(_page, position)) if e.id <= final]
            return (entries[-1].id if len(entries) == PAGE else final), entries
        while position >= self._final and not self._ended:
            news = self._news
            try:
                async with asyncio.timeout_at(deadline):
                    await news.wait()
            except TimeoutError:
                return position, []
        first = bisect.bisect_right(self._recent, position, key=lambda entry: entry.id)
        entries = self._recent[first : first + PAGE]
        return (entries[-1].id if len(entries) == PAGE else max(position, self._final)), entries

    async def _running(self) -> None:
        """Have the loop run, and wait until it has a beginning."""
        self._asked_at = self._loop.time()
        if self._reader is None or self._reader.done():
            self._begun = self._loop.create_future()
            self._reader = self._loop.create_task(self._run(self._begun))
        await asyncio.shield(self._begun)

    async def _run(self, begun: "asyncio.Future[None]") -> None:
        try:
            await self._begin()
        except ServiceUnavailable as error:
            begun.set_exception(error)
            return
        except Exception as error:
            begun.set_exception(error)
            raise
        begun.set_result(None)
        while not self._ended and self._wanted():
            try:
                pause = await self._look()
            except ServiceUnavailable:
                pause = AWAY  # the log has it; nothing is lost meanwhile
            except Exception:  # noqa: BLE001  (outermost loop: streams must go on)
                _log.exception("reading events failed")
                pause = AWAY
            if pause:
                await asyncio.sleep(pause)

    def _wanted(self) -> bool:
        return self._listeners > 0 or self._loop.time() - self._asked_at < LINGER

    async def _begin(self) -> None:
        """Find an id below which none can turn up any more."""
        top = await self._read(store.newest)
        writers = await self._read(store.writers)
        while writers:
            await asyncio.sleep(GAP_POLL)
            writers &= await self._read(store.writers)
        self._recent = []
        self._gap = None
        self._floor = self._final = self._settled = top

    async def _look(self) -> float:
        """Pass on what is new; return the seconds until the next look."""
        if self._gap is not None:
            # Asked before the entries are read: who has ended by now is seen there.
            writers = await self._read(store.writers)
            known = self._gap.writers
            self._gap.writers = writers if known is None else writers & known
        entries = await self._read(partial(_page, self._final))
        if self._gap is not None and not self._gap.writers:
            self._settled, self._gap = self._gap.top, None
        reached = self._final
        passed = 0
        for entry in entries:
            if entry.id > self._settled and entry.id != reached + 1:
                break
            reached = entry.id
            passed += 1
        if passed < len(entries):
            self._gap = self._gap or _Gap(entries[-1].id)
        elif len(entries) < PAGE:
            reached = max(reached, self._settled)
        if self._gap is not None and self._gap.top <= reached:
            self._gap = None  # what was missing has come
        self._pass_on(entries[:passed], reached)
        if self._gap is not None:
            return GAP_POLL
        return POLL if len(entries) < PAGE else 0.0

    def _pass_on(self, entries: list[Entry], reached: int) -> None:
        self._final = reached
        if not entries:
            return
        self._recent += entries
        if len(self._recent) > 2 * KEPT:
            del self._recent[:-KEPT]
            self._floor = self._recent[0].id - 1
        news, self._news = self._news, asyncio.Event()
        news.set()


def _page(after: int, connection: sa.Connection) -> list[Entry]:
    entries = []
    for row in store.after(connection, after, PAGE):
        event = TaskEvent(
            task_id=row.task_id,
            agent=row.agent,
            job_id=row.job_id,
            destination=row.destination or None,
            event=row.event,
            state=State(row.state),
            attempt=row.attempt,
            at=row.at,
        )
        entries.append(Entry(row.id, event, to_json(event)))
    return entries
