"""The table of how a task moves, row by row, and what must hold whatever happens."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clara_results.domain.tasks import Counts, Outcome, State
from clara_results.domain.transitions import (
    UNAVAILABLE_CAP,
    Decision,
    Event,
    RetryPolicy,
    Situation,
    decide,
)
from clara_results.errors import FilesUnaccounted, IllegalTransition

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
FIRST = timedelta(seconds=30)
POLICY = RetryPolicy(
    first_delay=FIRST,
    max_delay=timedelta(hours=1),
    give_up=timedelta(hours=72),
    commitment=timedelta(hours=24),
    random=lambda: 0.5,
)
RUNNING = Situation(State.IN_PROGRESS, retries=1, max_retries=3, counts=Counts(pending=2))
ALLOWED = {
    Event.CLAIMED: {State.PENDING},
    Event.SETTLED: {State.IN_PROGRESS},
    Event.UNAVAILABLE: {State.IN_PROGRESS},
    Event.GAVE_UP: {State.PENDING},
    Event.LEASE_EXPIRED: {State.IN_PROGRESS},
    Event.RELEASED: {State.IN_PROGRESS},
    Event.RETRIED: {State.FAILED},
    Event.CANCELED: {State.PENDING, State.IN_PROGRESS, State.AWAITING_COMMITMENT},
    Event.COMMITTED: {State.AWAITING_COMMITMENT},
    Event.UNCOMMITTED: {State.AWAITING_COMMITMENT},
}


def settled(retries: int = 1, max_retries: int = 3, **counts: int) -> Decision:
    situation = Situation(State.IN_PROGRESS, retries, max_retries, Counts(**counts))
    return decide(situation, Event.SETTLED, NOW, POLICY)


def test_a_claim_makes_a_pending_task_in_progress() -> None:
    since = NOW - timedelta(hours=1)
    pending = replace(RUNNING, state=State.PENDING, unavailable_since=since, unavailable_times=4)
    assert decide(pending, Event.CLAIMED, NOW, POLICY) == Decision(
        State.IN_PROGRESS, 1, unavailable_since=since, unavailable_times=4
    )


@pytest.mark.parametrize("counts", [{"delivered": 2}, {"delivered": 1, "skipped": 5}])
def test_all_delivered_or_skipped_and_one_delivered_is_success(counts: dict[str, int]) -> None:
    assert settled(**counts) == Decision(State.SUCCEEDED, 1)


def test_nothing_delivered_is_failure() -> None:
    assert settled(skipped=3) == Decision(State.FAILED, 1, why="nothing-delivered")


@pytest.mark.parametrize("counts", [{"retry": 1}, {"retry": 1, "rejected": 1, "delivered": 3}])
def test_files_to_retry_put_it_back_after_a_back_off(counts: dict[str, int]) -> None:
    assert settled(**counts) == Decision(
        State.PENDING, 2, due_at=NOW + FIRST * 2, why="files-to-retry"
    )


def test_files_to_retry_and_no_retry_left_is_failure() -> None:
    assert settled(3, 3, retry=1, delivered=9) == Decision(State.FAILED, 3, why="files-to-retry")
    assert settled(0, 0, retry=1) == Decision(State.FAILED, 0, why="files-to-retry")


def test_any_rejected_file_and_nothing_to_retry_is_failure() -> None:
    assert settled(rejected=1, delivered=99, skipped=1) == Decision(
        State.FAILED, 1, why="files-rejected"
    )


def test_a_file_without_an_outcome_leaves_it_undecided() -> None:
    with pytest.raises(FilesUnaccounted, match="1 of the task's 3"):
        settled(pending=1, delivered=2)


def test_an_unavailable_destination_costs_no_retry_and_it_is_due_soon() -> None:
    decision = decide(RUNNING, Event.UNAVAILABLE, NOW, POLICY)
    assert decision == Decision(
        State.PENDING,
        1,
        due_at=NOW + FIRST,
        unavailable_since=NOW,
        unavailable_times=1,
        why="destination-unavailable",
    )


def test_however_long_it_is_unavailable_it_is_due_within_a_minute() -> None:
    since = NOW - timedelta(hours=50)
    situation = replace(RUNNING, unavailable_since=since, unavailable_times=3000)
    decision = decide(situation, Event.UNAVAILABLE, NOW, POLICY)
    assert decision.due_at == NOW + UNAVAILABLE_CAP
    assert (decision.unavailable_since, decision.unavailable_times) == (since, 3001)
    assert decision.retries == 1


def test_it_fails_once_its_destination_was_unavailable_for_the_whole_time() -> None:
    almost = replace(RUNNING, unavailable_since=NOW - POLICY.give_up + timedelta(seconds=1))
    decision = decide(almost, Event.UNAVAILABLE, NOW, POLICY)
    assert decision.state == State.PENDING
    assert decision.due_at == NOW + timedelta(seconds=1)  # the last try comes at the very end
    over = replace(RUNNING, unavailable_since=NOW - POLICY.give_up)
    assert decide(over, Event.UNAVAILABLE, NOW, POLICY) == Decision(
        State.FAILED, 1, why="destination-unavailable"
    )


def test_a_lease_that_ran_out_puts_it_back_at_once_and_costs_a_retry() -> None:
    assert decide(RUNNING, Event.LEASE_EXPIRED, NOW, POLICY) == Decision(
        State.PENDING, 2, due_at=NOW, why="lease-expired"
    )


def test_a_lease_that_ran_out_and_no_retry_left_is_failure() -> None:
    last = replace(RUNNING, retries=3)
    assert decide(last, Event.LEASE_EXPIRED, NOW, POLICY) == Decision(
        State.FAILED, 3, why="lease-expired"
    )


def test_a_release_puts_it_back_at_once_and_costs_nothing() -> None:
    since = NOW - timedelta(hours=1)
    situation = replace(RUNNING, retries=3, unavailable_since=since, unavailable_times=2)
    assert decide(situation, Event.RELEASED, NOW, POLICY) == Decision(
        State.PENDING, 3, due_at=NOW, unavailable_since=since, unavailable_times=2
    )


@pytest.mark.parametrize("event", [Event.UNAVAILABLE, Event.LEASE_EXPIRED, Event.RELEASED], ids=str)
def test_with_nothing_left_to_send_it_is_decided_however_the_attempt_ended(event: Event) -> None:
    done = replace(RUNNING, counts=Counts(delivered=2))
    assert decide(done, event, NOW, POLICY).state == State.SUCCEEDED
    refused = replace(RUNNING, counts=Counts(delivered=2, rejected=1))
    assert decide(refused, event, NOW, POLICY).state == State.FAILED


def test_a_person_retries_a_failed_task_from_the_start() -> None:
    failed = Situation(
        State.FAILED, 3, 3, Counts(delivered=1, rejected=1), NOW - timedelta(days=9), 7
    )
    assert decide(failed, Event.RETRIED, NOW, POLICY) == Decision(State.PENDING, 0, due_at=NOW)


def test_what_was_sent_awaits_the_receivers_commitment() -> None:
    deadline = NOW + POLICY.commitment
    awaited = Decision(State.AWAITING_COMMITMENT, 1, commit_at=NOW, commit_by=deadline)
    assert settled(awaiting=2, rejected=1) == awaited
    assert settled(awaiting=2, retry=1).state == State.PENDING  # what is to be sent goes first


def committed(**counts: int) -> Decision:
    deadline = NOW + timedelta(hours=1)
    situation = Situation(
        State.AWAITING_COMMITMENT, 1, 3, Counts(**counts), commit_at=NOW, commit_by=deadline
    )
    return decide(situation, Event.COMMITTED, NOW, POLICY)


def test_a_commitment_ends_it_and_one_in_part_leaves_the_deadline() -> None:
    assert committed(delivered=2).state == State.SUCCEEDED
    assert committed(delivered=1, rejected=1).state == State.FAILED
    assert committed(delivered=1, retry=1) == Decision(
        State.PENDING, 2, due_at=NOW + FIRST * 2, why="files-to-retry"
    )
    partly = committed(delivered=1, awaiting=1)
    assert partly.state == State.AWAITING_COMMITMENT
    assert partly.commit_by == NOW + timedelta(hours=1)


def test_a_receiver_that_stays_silent_makes_it_fail_and_a_retry_asks_again() -> None:
    waiting = Situation(State.AWAITING_COMMITMENT, 1, 3, Counts(awaiting=2), commit_at=NOW, commit_by=NOW)  # fmt: skip
    assert decide(waiting, Event.UNCOMMITTED, NOW, POLICY) == Decision(
        State.FAILED, 1, why="commitment-timeout"
    )
    failed = Situation(State.FAILED, 3, 3, Counts(awaiting=2))
    again = decide(failed, Event.RETRIED, NOW, POLICY)
    assert (again.state, again.commit_at) == (State.AWAITING_COMMITMENT, NOW)
    late = Situation(State.FAILED, 3, 3, Counts(delivered=2))  # it committed itself after all
    assert decide(late, Event.RETRIED, NOW, POLICY).state == State.SUCCEEDED


@pytest.mark.parametrize("state", [State.PENDING, State.IN_PROGRESS, State.AWAITING_COMMITMENT])
def test_a_person_cancels_an_unfinished_task(state: State) -> None:
    decision = decide(replace(RUNNING, state=state), Event.CANCELED, NOW, POLICY)
    assert decision == Decision(State.CANCELED, 1)


@pytest.mark.parametrize("event", Event, ids=str)
@pytest.mark.parametrize("state", State, ids=str)
def test_every_event_is_allowed_from_the_tables_states_only(state: State, event: Event) -> None:
    situation = Situation(state, 0, 3, Counts(delivered=1))
    if state in ALLOWED[event]:
        decide(situation, event, NOW, POLICY)
    else:
        with pytest.raises(IllegalTransition, match=f"the task is {state}") as raised:
            decide(situation, event, NOW, POLICY)
        assert raised.value.code == "illegal-transition"


def test_states_know_whether_they_are_finished_and_outcomes_whether_they_are_open() -> None:
    assert {s for s in State if s.finished} == {State.SUCCEEDED, State.FAILED, State.CANCELED}
    assert {o for o in Outcome if o.open} == {Outcome.PENDING, Outcome.RETRY}


small = st.integers(0, 3)
situations = st.builds(
    lambda state, used, left, counts, hours, times: Situation(
        state,
        used,
        used + left,
        counts,
        None if hours is None else NOW - timedelta(hours=hours),
        times,
    ),
    st.sampled_from(State),
    small,
    small,
    st.builds(Counts, small, small, small, small, small, small),
    st.none() | st.floats(0, 100),
    st.integers(0, 10_000),
)
policies = st.builds(
    RetryPolicy,
    first_delay=st.timedeltas(timedelta(0), timedelta(hours=1)),
    max_delay=st.timedeltas(timedelta(hours=1), timedelta(days=1)),
    give_up=st.timedeltas(timedelta(0), timedelta(days=3)),
    commitment=st.timedeltas(timedelta(0), timedelta(days=3)),
    random=st.floats(0, 1, exclude_max=True).map(lambda value: lambda: value),
)


@given(situations, st.sampled_from(Event), policies)
def test_whatever_happens_the_promise_is_kept(
    situation: Situation, event: Event, policy: RetryPolicy
) -> None:
    counts = situation.counts
    try:
        decision = decide(situation, event, NOW, policy)
    except IllegalTransition:
        assert situation.state not in ALLOWED[event]
        return
    except FilesUnaccounted:
        assert event in {Event.SETTLED, Event.COMMITTED}
        assert counts.pending
        return
    assert 0 <= decision.retries <= situation.max_retries
    assert decision.retries in {0, situation.retries, situation.retries + 1}
    assert (decision.due_at is not None) == (decision.state == State.PENDING)
    assert decision.due_at is None or decision.due_at >= NOW
    if decision.state == State.SUCCEEDED:
        assert counts.delivered
        assert not counts.pending + counts.awaiting + counts.retry + counts.rejected
    awaited = decision.state == State.AWAITING_COMMITMENT
    assert (decision.commit_at is not None) == (decision.commit_by is not None) == awaited
    if decision.state == State.FAILED:
        assert decision.why is not None
    if event == Event.UNAVAILABLE and decision.state == State.PENDING:
        assert decision.retries == situation.retries
        assert decision.unavailable_since is not None
        assert decision.due_at is not None
        assert decision.due_at - NOW <= UNAVAILABLE_CAP * 1.2 + timedelta(microseconds=1)
    if event != Event.RETRIED:
        assert decision.retries >= situation.retries


@given(
    st.integers(0, 5),
    st.lists(
        st.tuples(
            st.sampled_from(
                [Event.SETTLED, Event.UNAVAILABLE, Event.LEASE_EXPIRED, Event.RELEASED]
            ),
            st.integers(0, 3),
        ),
        max_size=30,
    ),
)
def test_a_task_that_runs_again_and_again_ends_within_its_retries(
    max_retries: int, story: list[tuple[Event, int]]
) -> None:
    total, delivered, used = 5, 0, 0
    state, since, times, now = State.PENDING, None, 0, NOW
    for event, more in story:
        if state != State.PENDING:
            break
        claimed = decide(
            Situation(state, used, max_retries, Counts(retry=total - delivered), since, times),
            Event.CLAIMED, now, POLICY,
        )  # fmt: skip
        delivered = min(total, delivered + more)
        counts = Counts(delivered=delivered, retry=total - delivered)
        decision = decide(
            Situation(claimed.state, claimed.retries, max_retries, counts,
                      claimed.unavailable_since, claimed.unavailable_times),
            event, now, POLICY,
        )  # fmt: skip
        costs = event in {Event.SETTLED, Event.LEASE_EXPIRED} and decision.state == State.PENDING
        assert decision.retries == used + costs
        state, used = decision.state, decision.retries
        since, times = decision.unavailable_since, decision.unavailable_times
        now = decision.due_at or now
    assert used <= max_retries
    assert (state == State.SUCCEEDED) <= (delivered == total)
