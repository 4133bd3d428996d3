"""What a destination makes of its receiver's statuses."""

import pytest

from clara_results.domain.statuses import checked, judged
from clara_results.errors import InvalidInput

STATUSES = checked({"C000": "retry", "cXXX": "reject", "C1xx": "retry", "b007": "reject"})


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (0xC000, "retry"),
        (0xC001, "reject"),
        (0xC123, "retry"),
        (0xCFFF, "reject"),
        (0xB007, "reject"),
        (0xB006, None),
        (0x0000, None),
        (0xA700, None),
    ],
)
def test_the_key_with_the_most_digits_wins(status: int, expected: str | None) -> None:
    assert judged(STATUSES, status) == expected


def test_case_is_folded() -> None:
    assert STATUSES == {"C000": "retry", "Cxxx": "reject", "C1xx": "retry", "B007": "reject"}
    assert checked({}) == {}


@pytest.mark.parametrize(
    ("statuses", "words"),
    [
        ({"C00": "retry"}, "not a status of four"),
        ({"xxxx": "retry"}, "not a status of four"),
        ({"CxxC": "retry"}, "not a status of four"),
        ({"C00G": "retry"}, "not a status of four"),
        ({"\uff23000": "retry"}, "not a status of four"),
        ({"0000": "retry"}, "0000 is success"),
        ({"0xxx": "reject"}, "0000 is success"),
        ({"C000": "deliver"}, "not retry or reject"),
        ({"C000": "retry", "c000": "reject"}, "there twice"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(statuses: dict[str, str], words: str) -> None:
    with pytest.raises(InvalidInput, match=words) as caught:
        checked({"B006": "reject", **statuses})
    assert caught.value.code == "invalid-destination"
    assert [fault.field for fault in caught.value.errors] == [f"statuses[{len(statuses)}]"]


def test_all_faults_are_said_at_once() -> None:
    with pytest.raises(InvalidInput) as caught:
        checked({"1": "retry", "C000": "retry", "B000": ""})
    assert [fault.field for fault in caught.value.errors] == ["statuses[0]", "statuses[2]"]
