"""Waiting for tasks without a thread: futures of an event loop, set when a task becomes Pending."""

import asyncio
from collections import defaultdict, deque


class Wakeups:
    """Who waits for which agent's tasks. Lives on one event loop; ``wake`` may be called from any thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Take the loop on which the waiters run."""
        self._loop = loop
        self._waiting: defaultdict[str, deque[asyncio.Future[None]]] = defaultdict(deque)

    def wake(self, agent: str) -> None:
        """Wake who has waited longest for an agent's tasks, if anyone does."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._wake, agent)

    def wake_all(self) -> None:
        """Wake everyone: the service ends."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._wake_all)

    def ticket(self, agent: str) -> "asyncio.Future[None]":
        """Join the line for an agent's tasks. Take it before looking, so that nothing falls in between."""
        future = self._loop.create_future()
        self._waiting[agent].append(future)
        return future

    def drop(self, agent: str, ticket: "asyncio.Future[None]") -> None:
        """Leave the line."""
        if not ticket.done():
            ticket.cancel()
            self._waiting[agent].remove(ticket)
        if not self._waiting[agent]:
            del self._waiting[agent]

    def _wake(self, agent: str) -> None:
        waiting = self._waiting.get(agent)
        while waiting:
            future = waiting.popleft()
            if not future.done():
                future.set_result(None)
                return

    def _wake_all(self) -> None:
        for waiting in self._waiting.values():
            for future in waiting:
                if not future.done():
                    future.set_result(None)
            waiting.clear()
