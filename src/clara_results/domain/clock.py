"""Where time comes from. Everything that asks the time takes a Clock, so that tests can own it."""

import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """The time of day and a steady counter."""

    def now(self) -> datetime:
        """Return the time of day: aware, UTC."""
        ...

    def monotonic(self) -> float:
        """Return seconds on a counter that never goes back."""
        ...


class SystemClock:
    """The machine's own clock."""

    def now(self) -> datetime:
        """Return the time of day: aware, UTC."""
        return datetime.now(UTC)  # noqa: TID251  (the one place that may)

    def monotonic(self) -> float:
        """Return seconds on a counter that never goes back."""
        return time.monotonic()
