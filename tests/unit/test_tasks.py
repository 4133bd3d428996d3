"""Task ids."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

from clara_results.domain.tasks import new_task_id

NOW = datetime(2026, 11, 22, 8, 30, tzinfo=UTC)


def test_an_id_is_a_uuid_of_version_7_that_begins_with_the_time() -> None:
    made = UUID(new_task_id(NOW))
    assert (made.version, made.variant) == (7, "specified in RFC 4122")
    assert made.int >> 80 == int(NOW.timestamp() * 1000)


def test_ids_are_all_different_and_in_the_order_of_time() -> None:
    assert len({new_task_id(NOW) for _ in range(1000)}) == 1000
    later = [new_task_id(NOW + timedelta(milliseconds=number)) for number in range(100)]
    assert later == sorted(later)
