"""What the status of a C-STORE response means, and what follows from it for the file."""

from dataclasses import dataclass
from enum import Enum, auto


class Kind(Enum):
    """What follows from a status."""

    DELIVERED = auto()
    """The receiver has the instance, perhaps with a warning."""
    UNAVAILABLE = auto()
    """The receiver has no room now, for this instance or any: the attempt ends."""
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
    """

    kind: Kind
    code: str
    words: str | None


# PS3.7 Annex C; PS3.4 B.2.3 says which of them a C-STORE response can bear.
_SINGLE = {
    0x0001: (Kind.DELIVERED, "stored, with a warning: optional attributes are not supported"),
    0x0105: (Kind.REJECTED, "no such attribute"),
    0x0106: (Kind.REJECTED, "invalid attribute value"),
    0x0107: (Kind.DELIVERED, "stored, with a warning: attribute list error"),
    0x0110: (Kind.RETRY, "processing failure"),
    0x0111: (
        Kind.REJECTED,
        "duplicate SOP instance: the receiver holds an instance with this UID already and did not take this one; "
        "whether both are the same it does not say",
    ),
    0x0112: (Kind.REJECTED, "no such SOP instance"),
    0x0115: (Kind.REJECTED, "invalid argument value"),
    0x0116: (Kind.DELIVERED, "stored, with a warning: attribute value out of range"),
    0x0117: (Kind.REJECTED, "invalid SOP instance: its UID breaks the rules for UIDs"),
    0x0118: (Kind.REJECTED, "no such SOP class"),
    0x0119: (Kind.REJECTED, "the SOP instance is not of the SOP class named"),
    0x0120: (Kind.REJECTED, "missing attribute"),
    0x0121: (Kind.REJECTED, "missing attribute value"),
    0x0122: (Kind.REJECTED, "SOP class not supported"),
    0x0124: (Kind.REJECTED, "not authorized to store there"),
    0x0210: (Kind.REJECTED, "duplicate invocation"),
    0x0211: (Kind.REJECTED, "unrecognized operation"),
    0x0212: (Kind.REJECTED, "mistyped argument"),
    0x0213: (Kind.UNAVAILABLE, "resource limitation"),
    0xB000: (Kind.DELIVERED, "stored, with a warning: data elements were coerced"),
    0xB006: (Kind.DELIVERED, "stored, with a warning: elements were discarded"),
    0xB007: (
        Kind.DELIVERED,
        "stored, with a warning: the data set does not match its SOP class",
    ),
}

# PS3.4 Table B.2-1: by the high byte, or by its upper half.
_BY_HIGH_BYTE = {
    0xA7: (Kind.UNAVAILABLE, "refused: out of resources"),
    0xA9: (Kind.REJECTED, "the data set does not match its SOP class"),
}
_BY_HIGH_DIGIT = {
    0xB: (Kind.DELIVERED, "stored, with a warning of the receiver's own"),
    0xC: (Kind.REJECTED, "the receiver can't understand the instance"),
}


def judge(status: int) -> Verdict:
    """Return what a C-STORE response's status means (PS3.4 B.2.3, PS3.7 Annex C).

    Args:
        status: As it was received, 0 to FFFFH.
    """
    code = f"{status:04X}"
    if status == 0:
        return Verdict(Kind.DELIVERED, code, None)
    kind, words = (
        _SINGLE.get(status)
        or _BY_HIGH_BYTE.get(status >> 8)
        or _BY_HIGH_DIGIT.get(status >> 12)
        or (Kind.REJECTED, "a status that a store can't end with")
    )
    return Verdict(kind, code, words)
