"""How many tasks ended of late, how, and how long they took, by minute.

What ended in a minute that has passed does not change any more, so it is counted once and kept: a page that shows the
last hour or day costs the database the last minutes alone. (A task that a person retries later did end then.)
"""

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import sqlalchemy as sa

from clara_results.domain.tasks import State
from clara_results.store import overview as store
from clara_results.store.schema import EPOCH

DAY = 24 * 60
"""Minutes that are known."""
OPEN = 3
"""Minutes that may still change: a transaction notes its time before it is committed, and clocks differ."""
AT_ONCE = 60
"""Minutes that are read by one statement."""
BUDGET = 0.3
"""Seconds after which what lies further back is left to the next look."""


@dataclass(frozen=True, slots=True)
class Ended:
    """Tasks that ended alike: where they were to go (key), their state, and how long they took in microseconds."""

    destination: str
    state: str
    took: int


@dataclass(frozen=True, slots=True)
class Course:
    """How work went over some time, in steps of one length.

    Attributes:
        since: When the first step begins.
        step: How long one is.
        delivered: Tasks that Succeeded, in each.
        failed: Tasks that Failed.
        median: Seconds from registration to success that half of them took at most; None: there were none.
        slowest: The same for 95 of a hundred.
        whole: ``median`` and ``slowest`` of the whole time.
    """

    since: datetime
    step: timedelta
    delivered: Sequence[int]
    failed: Sequence[int]
    median: Sequence[float | None]
    slowest: Sequence[float | None]
    whole: tuple[float | None, float | None]


class Trend:
    """What is known of the last day. Used by one thread at a time."""

    def __init__(self) -> None:
        self._minutes: dict[int, Counter[Ended]] = {}

    def look(self, connection: sa.Connection, now: datetime) -> None:
        """Count what is not known yet, the newest first."""
        last = _minute(now)
        for minute in [minute for minute in self._minutes if minute > last - OPEN]:
            del self._minutes[minute]
        give_up = time.monotonic() + BUDGET
        until = last + 1
        while until > last - DAY:
            since = until - AT_ONCE
            lacking = [m for m in range(since, until) if m not in self._minutes]
            if lacking:
                self._count(connection, lacking[0], lacking[-1] + 1)
                if time.monotonic() > give_up:
                    break
            until = since
        for minute in [minute for minute in self._minutes if minute <= last - DAY]:
            del self._minutes[minute]

    def _count(self, connection: sa.Connection, since: int, until: int) -> None:
        found: dict[int, Counter[Ended]] = {minute: Counter() for minute in range(since, until)}
        for row in store.ended_by_minute(connection, _moment(since), _moment(until)):
            found[row.minute][Ended(row.destination, row.state, row.took)] += row.tasks
        self._minutes |= found

    def course(self, now: datetime, steps: int, minutes: int) -> Course:
        """Return how work went in the last ``steps`` times ``minutes`` minutes, the present one included."""
        last = _minute(now) // minutes
        each = [
            self._sum(range(step * minutes, (step + 1) * minutes))
            for step in range(last - steps + 1, last + 1)
        ]
        together = self._sum(range((last - steps + 1) * minutes, (last + 1) * minutes))
        return Course(
            since=_moment((last - steps + 1) * minutes),
            step=timedelta(minutes=minutes),
            delivered=[_number(ended, State.SUCCEEDED) for ended in each],
            failed=[_number(ended, State.FAILED) for ended in each],
            median=[quantile(ended, 0.5) for ended in each],
            slowest=[quantile(ended, 0.95) for ended in each],
            whole=(quantile(together, 0.5), quantile(together, 0.95)),
        )

    def by_destination(self) -> Mapping[str, tuple[int, int]]:
        """Return how many tasks Succeeded and Failed in the time that is known, by destination's key."""
        found: dict[str, list[int]] = {}
        for ended, number in self._sum(self._minutes).items():
            if ended.state != State.CANCELED:
                counts = found.setdefault(ended.destination, [0, 0])
                counts[ended.state == State.FAILED] += number
        return {key: (succeeded, failed) for key, (succeeded, failed) in found.items()}

    def _sum(self, minutes: Iterable[int]) -> Counter[Ended]:
        total: Counter[Ended] = Counter()
        for minute in minutes:
            total.update(self._minutes.get(minute, {}))
        return total


def quantile(ended: Mapping[Ended, int], share: float) -> float | None:
    """Return the seconds that a share of the tasks that Succeeded took at most; None: there are none."""
    times = sorted((e.took, number) for e, number in ended.items() if e.state == State.SUCCEEDED)
    wanted = share * sum(number for _, number in times)
    passed = 0
    for took, number in times:
        passed += number
        if passed >= wanted:
            return took / 1_000_000
    return None


def _number(ended: Mapping[Ended, int], state: State) -> int:
    return sum(number for e, number in ended.items() if e.state == state)


def _minute(moment: datetime) -> int:
    return (moment - EPOCH) // timedelta(minutes=1)


def _moment(minute: int) -> datetime:
    return EPOCH + timedelta(minutes=minute)
