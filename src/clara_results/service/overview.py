"""What a person who looks after the platform is to see first: what needs him, and how the work goes."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import sqlalchemy as sa

from clara_results.domain import names
from clara_results.domain.clock import Clock
from clara_results.domain.tasks import State
from clara_results.service import destinations
from clara_results.service.census import Census
from clara_results.service.metrics import Disk, Lane, standing
from clara_results.service.trend import Course, Trend
from clara_results.store import overview as store
from clara_results.store import tasks as task_store
from clara_results.store.statements import Row
from clara_results.wire.destinations import AgentInstance, DestinationView

EVERY = 0.25
"""Seconds from one look to the next at least, however many ask."""
SILENT = timedelta(minutes=2)
"""An agent asks for tasks every few seconds; one that has not for so long, and holds none, is gone."""
STUCK = timedelta(minutes=15)
"""A task that is due for so long, though its destination takes tasks, is stuck; as the alert has it."""
DISK_SHARE = 0.1
"""A disk with less room than this share is low; as the alert has it."""
CAUSES = 50
"""Causes of dead letters that are told apart."""


@dataclass(frozen=True, slots=True)
class Cause:
    """Dead letters of one agent for one destination, of one cause.

    Attributes:
        agent: Its name.
        destination: Its name, or its key where there is none of it; empty: none was named.
        key: Its key.
        code: Why they failed.
        message: What was said of one of them.
        tasks: How many.
        latest: When the last one failed.
    """

    agent: str
    destination: str
    key: str
    code: str
    message: str
    tasks: int
    latest: datetime


@dataclass(frozen=True, slots=True)
class Agent:
    """The processes of an agent.

    Attributes:
        name: Its name.
        instances: Seen in the last day, those that live first, then the last seen.
        alive: How many live.
        waiting: Due tasks that no one has taken up yet, and those that are not due.
    """

    name: str
    instances: Sequence[AgentInstance]
    alive: int
    waiting: int


@dataclass(frozen=True, slots=True)
class Overview:
    """How everything stands.

    Attributes:
        at: When.
        counts: Tasks by state.
        causes: Dead letters by destination and cause.
        destinations: All, by name.
        stuck: Lanes whose first task is due for long, though its destination takes tasks.
        agents: By name: those seen in the last day, and those that tasks wait for.
        low_disks: Disks with little room.
        disks: All that were looked at.
        hour: How work went in the last hour, minute by minute.
        day: In the last day, by quarters of an hour.
        rates: Tasks that Succeeded and Failed in the last day, by destination's key.
    """

    at: datetime
    counts: Mapping[State, int]
    causes: Sequence[Cause]
    destinations: Sequence[DestinationView]
    stuck: Sequence[Lane]
    agents: Sequence[Agent]
    low_disks: Sequence[Disk]
    disks: Sequence[Disk]
    hour: Course
    day: Course
    rates: Mapping[str, tuple[int, int]]


class Overseer:
    """Looks at everything when somebody asks, once for all that ask at that time. Lives on one event loop."""

    def __init__(
        self,
        read: Callable[[Callable[[sa.Connection], Any]], Awaitable[Any]],
        clock: Clock,
        census: Callable[[], Awaitable[Census]],
    ) -> None:
        """Make one.

        Args:
            read: Reads the database.
            clock: The time.
            census: Tells of the room on disks, as an ``Enumerator`` does.
        """
        self._read = read
        self._clock = clock
        self._census = census
        self._trend = Trend()
        self._turn = asyncio.Lock()
        self._next: asyncio.Task[Overview] | None = None
        self._looked_at = float("-inf")

    async def overview(self) -> Overview:
        """Return how everything stands: what was committed before this was asked is in it.

        Raises:
            ServiceUnavailable: The database can't serve just now.
        """
        if self._next is None:
            self._next = asyncio.create_task(self._look())
        return await asyncio.shield(self._next)

    async def _look(self) -> Overview:
        loop = asyncio.get_running_loop()
        async with self._turn:
            await asyncio.sleep(max(0.0, self._looked_at + EVERY - loop.time()))
            self._looked_at = loop.time()
            self._next = None  # who asks from now on may know of more than this look finds
            disks = (await self._census()).disks
            look = partial(self._found, now=self._clock.now(), disks=disks)
            overview: Overview = await self._read(look)
        return overview

    def _found(self, connection: sa.Connection, now: datetime, disks: Sequence[Disk]) -> Overview:
        lanes = standing(connection, now).lanes
        all_destinations = destinations.all_destinations(connection).items
        named = {names.name_key(item.name): item for item in all_destinations}
        self._trend.look(connection, now)
        closed = {key for key, item in named.items() if item.paused_at or item.down_since}
        return Overview(
            at=now,
            counts=task_store.state_counts(connection),
            causes=[_cause(row, named) for row in store.dead_letters(connection, CAUSES)],
            destinations=all_destinations,
            stuck=[
                lane
                for lane in lanes
                if lane.pending
                and lane.due_at is not None
                and now - lane.due_at >= STUCK
                and lane.destination not in closed
            ],
            agents=_agents(destinations.agents(connection, self._clock).items, lanes, now),
            low_disks=[disk for disk in disks if disk.free < DISK_SHARE * disk.size],
            disks=disks,
            hour=self._trend.course(now, steps=60, minutes=1),
            day=self._trend.course(now, steps=96, minutes=15),
            rates=self._trend.by_destination(),
        )


def alive(instance: AgentInstance, now: datetime) -> bool:
    """Tell whether an agent process lives: it asked for tasks of late, or holds one, whose lease it renews."""
    return bool(instance.holds) or now - instance.last_seen_at < SILENT


def _cause(row: Row, named: Mapping[str, DestinationView]) -> Cause:
    known = named.get(row.destination)
    return Cause(
        agent=row.agent,
        destination=known.name if known else row.destination,
        key=row.destination,
        code=row.code or "",
        message=row.message or "",
        tasks=row.tasks,
        latest=row.latest,
    )


def _agents(
    instances: Sequence[AgentInstance], lanes: Sequence[Lane], now: datetime
) -> list[Agent]:
    waiting: dict[str, int] = {}
    for lane in lanes:
        if lane.pending:
            waiting[lane.agent] = waiting.get(lane.agent, 0) + lane.pending
    by_name: dict[str, list[AgentInstance]] = {name: [] for name in waiting}
    for instance in instances:
        by_name.setdefault(instance.agent, []).append(instance)
    return [
        Agent(
            name=name,
            instances=sorted(found, key=lambda i: (not alive(i, now), now - i.last_seen_at)),
            alive=sum(alive(instance, now) for instance in found),
            waiting=waiting.get(name, 0),
        )
        for name, found in sorted(by_name.items())
    ]
