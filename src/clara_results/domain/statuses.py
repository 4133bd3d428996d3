"""What a destination is told to make of its receiver's C-STORE statuses, where that is not the standard's meaning.

A key is a status of four hexadecimal digits, or a family of them: ``C000``, ``C1xx``, ``Cxxx``, where an x stands for
any digit. The key with the most digits wins.
"""

import re
from collections.abc import Mapping

from clara_results.errors import FieldError, InvalidInput

RETRY, REJECT = "retry", "reject"
KEY_RULE = "a status of four hexadecimal digits such as C000, or a family such as Cxxx"
_KEY = re.compile(r"(?=.{4}\Z)[0-9A-F]{1,4}X{0,3}")
_SUCCESS = "0000"


def checked(statuses: Mapping[str, str]) -> dict[str, str]:
    """Check a destination's statuses and return them in the form in which ``judged`` looks them up.

    Args:
        statuses: ``retry`` or ``reject`` by status or family, in upper or lower case.

    Raises:
        InvalidInput: A key or a value is wrong; ``errors`` names each by its place, ``statuses[0]``.
    """
    faults = []
    found: dict[str, str] = {}
    for index, (key, value) in enumerate(statuses.items()):
        folded = key.upper()
        if not _KEY.fullmatch(folded):
            faults.append(FieldError(f"statuses[{index}]", f"that is not {KEY_RULE}"))
        elif _family_of(folded, _SUCCESS):
            faults.append(
                FieldError(f"statuses[{index}]", "0000 is success, whatever else is said")
            )
        elif value not in {RETRY, REJECT}:
            faults.append(FieldError(f"statuses[{index}]", f"that is not {RETRY} or {REJECT}"))
        elif folded.replace("X", "x") in found:
            faults.append(FieldError(f"statuses[{index}]", "that status is there twice"))
        else:
            found[folded.replace("X", "x")] = value
    if faults:
        raise InvalidInput(
            "; ".join(f"{fault.field}: {fault.message}" for fault in faults),
            code="invalid-destination",
            errors=faults,
        )
    return found


def judged(statuses: Mapping[str, str], status: int) -> str | None:
    """Return ``retry`` or ``reject`` where a destination's checked statuses say so, else None.

    Args:
        statuses: As ``checked`` returns them.
        status: As it was received, 0 to FFFFH.
    """
    code = f"{status:04X}"
    for digits in range(4, 0, -1):
        if (found := statuses.get(code[:digits] + "x" * (4 - digits))) is not None:
            return found
    return None


def _family_of(key: str, code: str) -> bool:
    return all(digit in {"X", other} for digit, other in zip(key, code, strict=True))
