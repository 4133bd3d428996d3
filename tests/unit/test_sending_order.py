"""Who sends what when: stages, what comes again, and the end."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from clara_results.agents.order import SendingOrder

if TYPE_CHECKING:
    from collections.abc import Iterator

LIMIT = 10.0


def order(*items: str) -> SendingOrder[str]:
    """An order of items whose stage is their first letter."""
    return SendingOrder(iter(items), lambda item: item[0])


def take(of: SendingOrder[str]) -> str | None:
    return of.take(lambda: True)


def now(of: SendingOrder[str]) -> str | None:
    """Take what is to be had without waiting for others."""
    looks = iter([True, True, True, False])
    return of.take(lambda: next(looks))


def test_items_of_a_stage_are_given_out_side_by_side() -> None:
    line = order("a1", "a2", "a3")
    assert [take(line), take(line), take(line)] == ["a1", "a2", "a3"]


def test_a_stage_waits_for_the_one_before_it() -> None:
    line = order("a1", "a2", "b1")
    take(line)
    take(line)
    assert now(line) is None
    line.settle()
    assert now(line) is None
    line.settle()
    assert take(line) == "b1"


def test_what_comes_again_is_last_of_its_stage_and_alone() -> None:
    line = order("a1", "a2", "a3", "b1")
    take(line)
    line.settle(["a1"])
    assert [take(line), take(line)] == ["a2", "a3"]
    assert now(line) is None
    line.settle()
    assert now(line) is None
    line.settle()
    assert take(line) == "a1"
    assert now(line) is None
    line.settle()
    assert take(line) == "b1"


def test_other_items_may_come_again_than_the_one_taken() -> None:
    line = order("a12", "b1")
    take(line)
    line.settle(["a1", "a2"])
    seen = []
    while (item := take(line)) is not None:
        seen.append(item)
        line.settle()
    assert seen == ["a1", "a2", "b1"]


def test_what_is_handed_back_is_next_and_keeps_its_place() -> None:
    line = order("a1", "a2")
    line.hand_back(str(take(line)))
    assert take(line) == "a1"
    line.settle(["a1"])
    assert take(line) == "a2"
    line.settle()
    line.hand_back(str(take(line)))
    assert take(line) == "a1"


def test_it_ends_when_all_is_settled() -> None:
    line = order("a1")
    take(line)
    found: list[str | None] = []
    waiting = threading.Thread(target=lambda: found.append(take(line)))
    waiting.start()
    line.settle()
    waiting.join(LIMIT)
    assert found == [None]
    assert line.over
    assert take(line) is None


def test_it_ends_when_it_is_ended() -> None:
    line = order("a1", "b1")
    take(line)
    found: list[str | None] = []
    waiting = threading.Thread(target=lambda: found.append(take(line)))
    waiting.start()
    line.end()
    waiting.join(LIMIT)
    assert found == [None]


def test_who_is_not_wanted_gets_nothing() -> None:
    assert order("a1").take(lambda: False) is None


def test_what_the_source_raises_is_raised_to_each() -> None:
    class Broken:
        def __iter__(self) -> Iterator[str]:
            return self

        def __next__(self) -> str:
            raise RuntimeError("no more")

    line: SendingOrder[str] = SendingOrder(Broken(), lambda item: item)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="no more"):
            take(line)


def test_many_threads_get_each_item_once_and_stages_never_mix() -> None:
    items = [f"{stage}{number}" for stage in "abc" for number in range(200)]
    line = order(*items)
    lock, seen, open_now, again = threading.Lock(), list[str](), list[str](), {"a7", "b9"}

    def work() -> None:
        while (item := take(line)) is not None:
            with lock:
                open_now.append(item[0])
                assert len(set(open_now)) == 1
                seen.append(item)
                open_now.remove(item[0])
                back = [item] if item in again else []
                again.discard(item)
            line.settle(back)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    assert sorted(seen) == sorted([*items, "a7", "b9"])
    assert [item[0] for item in seen] == sorted(item[0] for item in seen)
