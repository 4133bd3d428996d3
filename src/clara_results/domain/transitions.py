"""How a task moves: the one place that picks a task's next state.

The table is that of docs/reference/states.md. Every caller reads a task's Situation, asks ``decide`` what an
event makes of it, and writes the Decision under the state and attempt it read; nothing else picks a state.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum

from clara_results.domain.backoff import backoff
from clara_results.domain.tasks import Counts, State
from clara_results.errors import FilesUnaccounted, IllegalTransition

UNAVAILABLE_CAP = timedelta(seconds=60)
"""The longest wait of a task whose destination is unavailable: it is due soon after the receiver is back."""


class Event(StrEnum):
    """What can happen to a task."""

    CLAIMED = "claimed"
    SETTLED = "settled"
    """Its agent is through with it: every file has an outcome."""
    UNAVAILABLE = "unavailable"
    """Its agent could not reach the destination as a whole."""
    GAVE_UP = "gave-up"
    """It has waited too long for a destination that is down."""
    LEASE_EXPIRED = "lease-expired"
    RELEASED = "released"
    RETRIED = "retried"
    """A person asked for another try."""
    CANCELED = "canceled"
    COMMITTED = "committed"
    """The receiver said which of the instances it commits itself to keep."""
    UNCOMMITTED = "uncommitted"
    """The receiver has said nothing for too long."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How failures are repeated.

    Attributes:
        first_delay: Back-off after the first failure; it doubles with each.
        max_delay: The longest back-off.
        give_up: How long a destination may stay unavailable before its task is Failed.
        commitment: How long a receiver may take to commit itself.
        random: Source of numbers from 0 up to 1, for jitter.
    """

    first_delay: timedelta
    max_delay: timedelta
    give_up: timedelta
    commitment: timedelta
    random: Callable[[], float]


@dataclass(frozen=True, slots=True)
class Situation:
    """All that a decision depends on.

    Attributes:
        state: The task's state now.
        retries: Retries used so far.
        max_retries: Retries allowed.
        counts: Its files by outcome.
        unavailable_since: When its destination was first found unavailable in the present row of such finds.
        unavailable_times: How often in that row.
        commit_at: When the receiver is to be asked to commit itself next, if it is; ``commit_by``: by when it must have.
    """

    state: State
    retries: int
    max_retries: int
    counts: Counts
    unavailable_since: datetime | None = None
    unavailable_times: int = 0
    commit_at: datetime | None = None
    commit_by: datetime | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of the task.

    Attributes:
        state: Its next state.
        retries: Retries used from now on.
        due_at: When it may be claimed, if Pending.
        unavailable_since: As in Situation.
        unavailable_times: As in Situation.
        commit_at: As in Situation, likewise ``commit_by``; set while AwaitingCommitment.
        why: Stable code of the reason if it is Failed, or Pending again after a failure; else None.
    """

    state: State
    retries: int
    due_at: datetime | None = None
    unavailable_since: datetime | None = None
    unavailable_times: int = 0
    commit_at: datetime | None = None
    commit_by: datetime | None = None
    why: str | None = None


_FROM: dict[Event, frozenset[State]] = {
    Event.CLAIMED: frozenset({State.PENDING}),
    Event.SETTLED: frozenset({State.IN_PROGRESS}),
    Event.UNAVAILABLE: frozenset({State.IN_PROGRESS}),
    Event.GAVE_UP: frozenset({State.PENDING}),
    Event.LEASE_EXPIRED: frozenset({State.IN_PROGRESS}),
    Event.RELEASED: frozenset({State.IN_PROGRESS}),
    Event.RETRIED: frozenset({State.FAILED}),
    Event.CANCELED: frozenset({State.PENDING, State.IN_PROGRESS, State.AWAITING_COMMITMENT}),
    Event.COMMITTED: frozenset({State.AWAITING_COMMITMENT}),
    Event.UNCOMMITTED: frozenset({State.AWAITING_COMMITMENT}),
}


_ENDS_AN_ATTEMPT = frozenset({Event.UNAVAILABLE, Event.LEASE_EXPIRED, Event.RELEASED})


def decide(now_is: Situation, event: Event, now: datetime, policy: RetryPolicy) -> Decision:
    """Return what an event makes of a task.

    Args:
        now_is: The task as it stands; for SETTLED, UNAVAILABLE, RELEASED and COMMITTED with the report's outcomes
            counted.
        event: What happened.
        now: The time of day.
        policy: How failures are repeated.

    Raises:
        IllegalTransition: The task's state does not allow the event.
        FilesUnaccounted: SETTLED, but a file has no outcome.
    """
    if now_is.state not in _FROM[event]:
        allowed = " or ".join(sorted(_FROM[event]))
        raise IllegalTransition(
            f"the task is {now_is.state}; only a task that is {allowed} can be {event}"
        )
    if event in _ENDS_AN_ATTEMPT and not now_is.counts.pending + now_is.counts.retry:
        return _settled(now_is, now, policy)  # however it ended: nothing is left to be sent
    return _NEXT[event](now_is, now, policy)


def _claimed(now_is: Situation, _now: datetime, _policy: RetryPolicy) -> Decision:
    return Decision(
        State.IN_PROGRESS,
        now_is.retries,
        unavailable_since=now_is.unavailable_since,
        unavailable_times=now_is.unavailable_times,
    )


def _released(now_is: Situation, now: datetime, _policy: RetryPolicy) -> Decision:
    return Decision(
        State.PENDING,
        now_is.retries,
        due_at=now,
        unavailable_since=now_is.unavailable_since,
        unavailable_times=now_is.unavailable_times,
    )


def _settled(now_is: Situation, now: datetime, policy: RetryPolicy) -> Decision:
    counts = now_is.counts
    if counts.pending:
        raise FilesUnaccounted(
            f"{counts.pending} of the task's {counts.total} files have no outcome"
        )
    if counts.retry:
        delay = backoff(now_is.retries, policy.first_delay, policy.max_delay, policy.random)
        return _again(now_is, now + delay, "files-to-retry")
    if counts.awaiting:
        return Decision(
            State.AWAITING_COMMITMENT,
            now_is.retries,
            commit_at=now_is.commit_at or now,
            commit_by=now_is.commit_by or now + policy.commitment,
        )
    if counts.rejected:
        return Decision(State.FAILED, now_is.retries, why="files-rejected")
    if not counts.delivered:
        return Decision(State.FAILED, now_is.retries, why="nothing-delivered")
    return Decision(State.SUCCEEDED, now_is.retries)


def _retried(now_is: Situation, now: datetime, policy: RetryPolicy) -> Decision:
    counts = now_is.counts
    if counts.delivered + counts.awaiting < counts.total:
        return Decision(State.PENDING, 0, due_at=now)
    # All was sent; what was wanting is the receiver's commitment.
    return _settled(replace(now_is, retries=0), now, policy)


def _unavailable(now_is: Situation, now: datetime, policy: RetryPolicy) -> Decision:
    since = now_is.unavailable_since or now
    if now - since >= policy.give_up:
        return Decision(State.FAILED, now_is.retries, why="destination-unavailable")
    cap = min(UNAVAILABLE_CAP, policy.max_delay)
    delay = backoff(now_is.unavailable_times, policy.first_delay, cap, policy.random)
    return Decision(
        State.PENDING,
        now_is.retries,
        due_at=min(now + delay, since + policy.give_up),
        unavailable_since=since,
        unavailable_times=now_is.unavailable_times + 1,
        why="destination-unavailable",
    )


def _again(now_is: Situation, due_at: datetime, why: str) -> Decision:
    if now_is.retries >= now_is.max_retries:
        return Decision(State.FAILED, now_is.retries, why=why)
    return Decision(State.PENDING, now_is.retries + 1, due_at=due_at, why=why)


_NEXT: dict[Event, Callable[[Situation, datetime, RetryPolicy], Decision]] = {
    Event.CLAIMED: _claimed,
    Event.SETTLED: _settled,
    Event.UNAVAILABLE: _unavailable,
    Event.GAVE_UP: lambda now_is, _now, _policy: Decision(
        State.FAILED, now_is.retries, why="destination-unavailable"
    ),
    Event.LEASE_EXPIRED: lambda now_is, now, _policy: _again(now_is, now, "lease-expired"),
    Event.RELEASED: _released,
    Event.RETRIED: _retried,
    Event.CANCELED: lambda now_is, _now, _policy: Decision(State.CANCELED, now_is.retries),
    Event.COMMITTED: _settled,
    Event.UNCOMMITTED: lambda now_is, _now, _policy: Decision(
        State.FAILED, now_is.retries, why="commitment-timeout"
    ),
}
