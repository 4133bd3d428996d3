"""What the status of a C-STORE response means, and what follows from it for the file."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto
from types import MappingProxyType

from clara_results.domain.status_words import UNKNOWN, words
from clara_results.domain.statuses import REJECT, RETRY, judged
from clara_results.domain.tasks import Outcome


class Kind(Enum):
    """What follows from a status."""

    DELIVERED = auto()
    """The receiver has the instance, perhaps with a warning."""
    UNAVAILABLE = auto()
    """The receiver has no room now, for this instance or any: the attempt ends."""
    DUPLICATE = auto()
    """The receiver has an instance of that UID already; whether it is this one, it has to be asked."""
    RETRY = auto()
    """Not this instance, this time."""
    REJECTED = auto()
    """Not this instance, ever."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """A status, judged.

    Attributes:
        kind: What follows.
        code: The status, as four upper-case hexadecimal digits.
        words: What it means; None for plain success.
        doubt: It does not count as delivered, but the receiver has, or may have, the instance.
    """

    kind: Kind
    code: str
    words: str | None
    doubt: bool = False


# PS3.7 Annex C; PS3.4 B.2.3 says which of them a C-STORE response can bear.
_SINGLE = {
    0x0001: Kind.DELIVERED,
    0x0105: Kind.REJECTED,
    0x0106: Kind.REJECTED,
    0x0107: Kind.DELIVERED,
    0x0110: Kind.RETRY,
    0x0111: Kind.DUPLICATE,
    0x0112: Kind.REJECTED,
    0x0115: Kind.REJECTED,
    0x0116: Kind.DELIVERED,
    0x0117: Kind.REJECTED,
    0x0118: Kind.REJECTED,
    0x0119: Kind.REJECTED,
    0x0120: Kind.REJECTED,
    0x0121: Kind.REJECTED,
    0x0122: Kind.REJECTED,
    0x0124: Kind.REJECTED,
    0x0210: Kind.REJECTED,
    0x0211: Kind.REJECTED,
    0x0212: Kind.REJECTED,
    0x0213: Kind.UNAVAILABLE,
    0xB000: Kind.DELIVERED,
    0xB006: Kind.DELIVERED,
    0xB007: Kind.DELIVERED,
}

# PS3.4 Table B.2-1: by the high byte, or by its upper half.
_BY_HIGH_BYTE = {0xA7: Kind.UNAVAILABLE, 0xA9: Kind.REJECTED}
_BY_HIGH_DIGIT = {0xB: Kind.DELIVERED, 0xC: Kind.REJECTED}


_BY_DESTINATION = {RETRY: Kind.RETRY, REJECT: Kind.REJECTED}
_NO_STATUSES: Mapping[str, str] = MappingProxyType({})


OUTCOMES = {
    Kind.DELIVERED: Outcome.DELIVERED,
    Kind.RETRY: Outcome.RETRY,
    Kind.DUPLICATE: Outcome.REJECTED,
    Kind.REJECTED: Outcome.REJECTED,
}
"""What becomes of a file by what its status means; UNAVAILABLE ends the attempt instead."""


def judge(status: int, statuses: Mapping[str, str] = _NO_STATUSES) -> Verdict:
    """Return what a C-STORE response's status means (PS3.4 B.2.3, PS3.7 Annex C).

    Args:
        status: As it was received, 0 to FFFFH.
        statuses: What the destination makes of its receiver's statuses; see ``domain.statuses``.
    """
    code = f"{status:04X}"
    if status == 0:
        return Verdict(Kind.DELIVERED, code, None)
    known = (
        _SINGLE.get(status) or _BY_HIGH_BYTE.get(status >> 8) or _BY_HIGH_DIGIT.get(status >> 12)
    )
    kind, said = known or Kind.REJECTED, words(status) or UNKNOWN
    has_it = known is None or kind in {Kind.DELIVERED, Kind.DUPLICATE}
    own = judged(statuses, status)
    if own is not None:
        kind = _BY_DESTINATION[own]
        said += f"; the destination's settings say: {own}"
    return Verdict(kind, code, said, has_it and kind is not Kind.DELIVERED)
