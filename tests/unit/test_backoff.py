"""How long a task waits before it is tried again."""

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clara_results.domain.backoff import JITTER, backoff

FIRST, CAP = timedelta(seconds=30), timedelta(hours=1)


def middle() -> float:
    return 0.5


@pytest.mark.parametrize(
    ("times", "seconds"),
    [(0, 30), (1, 60), (2, 120), (6, 1920), (7, 3600), (8, 3600), (10**9, 3600)],
)
def test_it_doubles_up_to_the_cap(times: int, seconds: float) -> None:
    assert backoff(times, FIRST, CAP, middle) == timedelta(seconds=seconds)


@pytest.mark.parametrize(("random", "share"), [(0.0, 0.8), (0.25, 0.9), (0.75, 1.1)])
def test_jitter_spreads_it_evenly_around_the_plain_delay(random: float, share: float) -> None:
    assert backoff(0, FIRST, CAP, lambda: random) == FIRST * share


@given(
    times=st.integers(0, 10**6),
    first=st.timedeltas(timedelta(0), timedelta(days=365)),
    cap=st.timedeltas(timedelta(0), timedelta(days=365)),
    random=st.floats(0, 1, exclude_max=True),
)
def test_it_never_leaves_its_bounds(
    times: int, first: timedelta, cap: timedelta, random: float
) -> None:
    delay = backoff(times, first, cap, lambda: random)
    tick = timedelta(microseconds=1)
    assert timedelta(0) <= delay <= cap * (1 + JITTER) + tick
    assert delay >= min(first, cap) * (1 - JITTER) - tick


@given(st.integers(0, 100))
def test_it_never_shrinks_with_more_failures(times: int) -> None:
    assert backoff(times, FIRST, CAP, middle) <= backoff(times + 1, FIRST, CAP, middle)
