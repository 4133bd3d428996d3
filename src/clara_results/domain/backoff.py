"""How long a task waits before it is tried again."""

from collections.abc import Callable
from datetime import timedelta

JITTER = 0.2
"""Each delay is spread by up to this share, so that tasks that failed together don't come back together."""


def backoff(times: int, first: timedelta, cap: timedelta, random: Callable[[], float]) -> timedelta:
    """Return the delay after the ``times``-th failure in a row: exponential, capped, jittered.

    Args:
        times: Failures so far in a row, from 0.
        first: The delay after the first.
        cap: The longest delay, before jitter.
        random: Source of numbers from 0 up to 1.
    """
    doublings = min(times, 20)  # far past any cap, far below what a timedelta can't hold
    plain = min(first * (1 << doublings), cap)
    return plain * (1 + JITTER * (2 * random() - 1))
