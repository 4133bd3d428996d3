"""A census: how the work stands, taken when somebody asks, at most once a second, and never for long in his way."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import sqlalchemy as sa

from clara_results.domain.clock import Clock
from clara_results.errors import ServiceUnavailable
from clara_results.service.metrics import Disk, Standing, standing

FRESH = 1.0
"""Seconds for which a census is as good as a new one."""
BLINK = 0.05
"""Seconds for which who asks waits for a new one where there is an old one."""
STALE = 60.0
"""Seconds after which an old one is none."""
PATIENCE = 2.0
"""Seconds for which who asks waits where there is none."""


class Read(Protocol):
    """Runs an operation on a snapshot of the database."""

    def __call__(self, operation: Callable[[sa.Connection], Any], /) -> Awaitable[Any]:
        """Run it."""
        ...


@dataclass(frozen=True, slots=True)
class Census:
    """What was found.

    Attributes:
        standing: How the work stands; None: the database did not say.
        disks: Room on disks.
    """

    standing: Standing | None = None
    disks: Sequence[Disk] = ()


class Enumerator:
    """Takes censuses, one at a time. Lives on one event loop.

    Attributes:
        taken: How many so far.
    """

    def __init__(self, read: Read, clock: Clock, disks: Callable[[], Sequence[Disk]]) -> None:
        """Make one.

        Args:
            read: Reads the database.
            clock: The time.
            disks: Looks at the disks; may take long where one is on a network.
        """
        self._read = read
        self._clock = clock
        self._disks = disks
        self.taken = 0
        self._taking: asyncio.Task[None] | None = None
        self._last = Census()
        self._taken_at = float("-inf")

    async def census(self) -> Census:
        """Return a census that is a second old at most, or else, while a new one takes its time, the last one."""
        loop = asyncio.get_running_loop()
        age = loop.time() - self._taken_at
        if age < FRESH:
            return self._last
        if self._taking is None or self._taking.done():
            self._taking = loop.create_task(self._take())
        await asyncio.wait([self._taking], timeout=BLINK if age < STALE else PATIENCE)
        return self._last if loop.time() - self._taken_at < STALE else Census()

    async def _take(self) -> None:
        now = self._clock.now()
        found: Standing | None
        try:
            found = await self._read(partial(standing, now=now))
        except ServiceUnavailable:
            found = None
        disks = await asyncio.to_thread(self._disks)
        self._last = Census(found, disks)
        self._taken_at = asyncio.get_running_loop().time()
        self.taken += 1
