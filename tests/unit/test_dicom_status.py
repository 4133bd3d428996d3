"""Every status that a C-STORE response can bear is judged by PS3.4 B.2.3 and PS3.7 Annex C."""

import pytest

from clara_results.agents.dicom.status import Kind, judge
from clara_results.domain.status_words import UNKNOWN, explained


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (0x0000, Kind.DELIVERED),
        (0x0001, Kind.DELIVERED),
        (0x0107, Kind.DELIVERED),
        (0x0116, Kind.DELIVERED),
        (0xB000, Kind.DELIVERED),
        (0xB006, Kind.DELIVERED),
        (0xB007, Kind.DELIVERED),
        (0xBFFF, Kind.DELIVERED),
        (0xA700, Kind.UNAVAILABLE),
        (0xA7FF, Kind.UNAVAILABLE),
        (0x0213, Kind.UNAVAILABLE),
        (0x0110, Kind.RETRY),
        (0x0111, Kind.DUPLICATE),
        (0x0122, Kind.REJECTED),
        (0x0124, Kind.REJECTED),
        (0xA800, Kind.REJECTED),
        (0xA900, Kind.REJECTED),
        (0xA9FF, Kind.REJECTED),
        (0xC000, Kind.REJECTED),
        (0xCFFF, Kind.REJECTED),
        (0xFE00, Kind.REJECTED),
        (0xFF00, Kind.REJECTED),
        (0x1234, Kind.REJECTED),
    ],
)
def test_what_follows_from_a_status(status: int, kind: Kind) -> None:
    assert judge(status).kind is kind


def test_only_success_and_warnings_are_delivered() -> None:
    delivered = {status for status in range(0x10000) if judge(status).kind is Kind.DELIVERED}
    assert delivered == {0x0000, 0x0001, 0x0107, 0x0116} | set(range(0xB000, 0xC000))


def test_each_status_is_shown_in_four_digits_and_in_words() -> None:
    assert judge(0).code == "0000"
    assert judge(0).words is None
    for status in range(1, 0x10000):
        verdict = judge(status)
        assert verdict.code == f"{status:04X}"
        assert verdict.words


@pytest.mark.parametrize(
    ("status", "kind", "doubt"),
    [
        (0x0000, Kind.DELIVERED, False),
        (0xB007, Kind.REJECTED, True),  # it is stored there, with a warning
        (0xB006, Kind.DELIVERED, False),
        (0x0111, Kind.RETRY, True),
        (0xC000, Kind.RETRY, False),
        (0xC001, Kind.REJECTED, False),
        (0xA700, Kind.REJECTED, False),
        (0x0110, Kind.RETRY, False),
        (0xFF00, Kind.REJECTED, True),  # who can tell
    ],
)
def test_a_destination_has_the_last_word_except_about_success(
    status: int, kind: Kind, doubt: bool
) -> None:
    verdict = judge(status, {"B007": "reject", "0111": "retry", "C000": "retry", "A7xx": "reject"})
    assert (verdict.kind, verdict.doubt) == (kind, doubt)


def test_the_words_say_where_the_destination_had_its_way() -> None:
    assert "the destination's settings say: retry" in str(judge(0xC000, {"Cxxx": "retry"}).words)


def test_nothing_makes_a_delivery_of_a_failure() -> None:
    for status in range(0x10000):
        for own in ("retry", "reject"):
            key = f"{status:04X}"
            kind = judge(status, {key: own}).kind
            assert (kind is Kind.DELIVERED) == (status == 0)


def test_every_status_that_is_judged_by_the_standard_has_words_and_no_other() -> None:
    for status in range(1, 0x10000):
        judged = judge(status)
        by_standard = status >> 12 in {0xB, 0xC} or status >> 8 in {0xA7, 0xA9} or status < 0x0300
        assert (judged.words == UNKNOWN) or by_standard, judged
        assert explained(judged.code) == judged.words


@pytest.mark.parametrize(
    ("code", "words"),
    [("0000", "stored"), ("A700", "refused: out of resources"), ("file-changed", None), ("", None)],
)
def test_a_code_is_explained_if_it_is_a_status(code: str, words: str | None) -> None:
    assert explained(code) == words
