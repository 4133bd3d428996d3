"""How many tasks ended of late, how, and how long they took, by minute.

What ended in a minute that has passed does not change any more, so it is counted once and kept: a page that shows the
last hour or day costs the database the last minutes alone. (A task that a person retries later did end then.)
"""

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import sqlalchemy as sa

from clara_results.domain.tasks import State
from clara_results.store import overview as store
from clara_results.store.schema import EPOCH

DAY = 24 * 60
"""Minutes that are known."""
OPEN = 3
"""Minutes that may still change: a transaction notes its time before it is committed, and clocks differ."""
AT_ONCE = 10
"""Minutes that are read by one statement."""
BUDGET = 0.3
"""Seconds after which what lies further back is left to the next look."""


@dataclass(frozen=True, slots=True)
class Minute:
    """What ended in a minute.

    Attributes:
        ended: Tasks by destination (key) and state.
        took: Tasks that Succeeded by how long they took, in microseconds.
    """

    ended: Counter[tuple[str, str]] = field(default_factory=Counter)
    took: Counter[int] = field(default_factory=Counter)


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
        self._minutes: dict[int, Minute] = {}
        self._ended: Counter[tuple[str, str]] = Counter()

    def look(self, connection: sa.Connection, now: datetime) -> None:
        """Count what is not known yet, the newest first."""
        last = _minute(now)
        self._forget([minute for minute in self._minutes if minute > last - OPEN])
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
        self._forget([minute for minute in self._minutes if minute <= last - DAY])

    def _count(self, connection: sa.Connection, since: int, until: int) -> None:
        self._forget([minute for minute in range(since, until) if minute in self._minutes])
        found = {minute: Minute() for minute in range(since, until)}
        for row in store.ended_by_minute(connection, _moment(since), _moment(until)):
            found[row.minute].ended[row.destination, row.state] += row.tasks
            self._ended[row.destination, row.state] += row.tasks
            if row.state == State.SUCCEEDED:
                found[row.minute].took[row.took] += row.tasks
        self._minutes |= found

    def _forget(self, minutes: Iterable[int]) -> None:
        for minute in minutes:
            self._ended.subtract(self._minutes.pop(minute).ended)

    def course(self, now: datetime, steps: int, minutes: int) -> Course:
        """Return how work went in the last ``steps`` times ``minutes`` minutes, the present one included."""
        last = _minute(now) // minutes
        shown = range(last - steps + 1, last + 1)
        took = [self._took(step * minutes, minutes) for step in shown]
        together = _sum(took)
        return Course(
            since=_moment(shown[0] * minutes),
            step=timedelta(minutes=minutes),
            delivered=[each.total() for each in took],
            failed=[self._failed(step * minutes, minutes) for step in shown],
            median=[quantile(each, 0.5) for each in took],
            slowest=[quantile(each, 0.95) for each in took],
            whole=(quantile(together, 0.5), quantile(together, 0.95)),
        )

    def by_destination(self) -> Mapping[str, tuple[int, int]]:
        """Return how many tasks Succeeded and Failed in the time that is known, by destination's key."""
        named = {key for (key, _), number in self._ended.items() if number}
        return {
            key: (self._ended[key, State.SUCCEEDED], self._ended[key, State.FAILED])
            for key in named
        }

    def _known(self, since: int, minutes: int) -> list[Minute]:
        return [self._minutes[m] for m in range(since, since + minutes) if m in self._minutes]

    def _took(self, since: int, minutes: int) -> Counter[int]:
        return _sum(minute.took for minute in self._known(since, minutes))

    def _failed(self, since: int, minutes: int) -> int:
        return sum(
            number
            for minute in self._known(since, minutes)
            for (_, state), number in minute.ended.items()
            if state == State.FAILED
        )


def quantile(took: Mapping[int, int], share: float) -> float | None:
    """Return the seconds that a share of tasks took at most, of which these many took these microseconds; None: none."""
    wanted = share * sum(took.values())
    passed = 0
    for duration, number in sorted(took.items()):
        passed += number
        if passed >= wanted:
            return duration / 1_000_000
    return None


def _sum(each: Iterable[Counter[int]]) -> Counter[int]:
    total: Counter[int] = Counter()
    for counts in each:
        total.update(counts)
    return total


def _minute(moment: datetime) -> int:
    return (moment - EPOCH) // timedelta(minutes=1)


def _moment(minute: int) -> datetime:
    return EPOCH + timedelta(minutes=minute)
