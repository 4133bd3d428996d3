"""Where time comes from, and which times can be used. Everything that asks the time takes a Clock, so that tests can own it."""

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


def time_fault(moment: datetime) -> str | None:
    """Return what a time should be like if it can't be used; None: it can."""
    if moment.tzinfo is None:
        return "a time with its offset from UTC, such as 2026-11-22T08:30:00Z"
    try:
        moment.astimezone(UTC)
    except OverflowError:
        return "a time in the years 1 to 9999 of UTC"
    return None
