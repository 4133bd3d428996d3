"""What the statuses of DICOM's storage service mean, in words.

The status of a C-STORE response (PS3.4 B.2.3, PS3.7 Annex C), and the reason in a STOW-RS answer (PS3.18 I.2.2), which
takes its values from there.
"""

_SINGLE = {
    0x0001: "stored, with a warning: optional attributes are not supported",
    0x0105: "no such attribute",
    0x0106: "invalid attribute value",
    0x0107: "stored, with a warning: attribute list error",
    0x0110: "processing failure",
    0x0111: "duplicate SOP instance: the receiver holds an instance with this UID already and "
    "did not take this one; whether both are the same it does not say",
    0x0112: "no such SOP instance",
    0x0115: "invalid argument value",
    0x0116: "stored, with a warning: attribute value out of range",
    0x0117: "invalid SOP instance: its UID breaks the rules for UIDs",
    0x0118: "no such SOP class",
    0x0119: "the SOP instance is not of the SOP class named",
    0x0120: "missing attribute",
    0x0121: "missing attribute value",
    0x0122: "SOP class not supported",
    0x0124: "not authorized to store there",
    0x0210: "duplicate invocation",
    0x0211: "unrecognized operation",
    0x0212: "mistyped argument",
    0x0213: "resource limitation",
    0xB000: "stored, with a warning: data elements were coerced",
    0xB006: "stored, with a warning: elements were discarded",
    0xB007: "stored, with a warning: the data set does not match its SOP class",
}
# PS3.4 Table B.2-1: by the high byte, or by its upper half.
_BY_HIGH_BYTE = {
    0xA7: "refused: out of resources",
    0xA9: "the data set does not match its SOP class",
}
_BY_HIGH_DIGIT = {
    0xB: "stored, with a warning of the receiver's own",
    0xC: "the receiver can't understand the instance",
}
UNKNOWN = "a status that a store can't end with"


def words(status: int) -> str | None:
    """Return what a status other than plain success says; None: it is none that a store can end with.

    Args:
        status: As it was received, 1 to FFFFH.
    """
    return _SINGLE.get(status) or _BY_HIGH_BYTE.get(status >> 8) or _BY_HIGH_DIGIT.get(status >> 12)


def explained(code: str) -> str | None:
    """Return what a file's code says if it is a status of four hexadecimal digits, as agents write it; else None."""
    try:
        status = int(code, 16) if len(code) == 4 else -1
    except ValueError:
        return None
    if status == 0:
        return "stored"
    return (words(status) or UNKNOWN) if status > 0 else None
