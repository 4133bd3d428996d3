"""What is wrong in a file that a person wrote, and where."""

from collections.abc import Sequence
from dataclasses import dataclass

from clara_results.errors import FieldError, InvalidInput


@dataclass(frozen=True, slots=True)
class Position:
    """A place in a text.

    Attributes:
        line: Counted from 1.
        column: Counted from 1, in characters.
    """

    line: int
    column: int


START = Position(1, 1)


class Text(str):
    """A text of a file that knows where it stands there.

    Attributes:
        at: Where its first character (or quotation mark) is.
        raw: As it is written, with ``${{…}}`` in it; the text itself has them filled in.
    """

    __slots__ = ("at", "raw")

    at: Position
    raw: str

    def __new__(cls, text: str, at: Position = START, raw: str | None = None) -> "Text":
        """Make one."""
        made = super().__new__(cls, text)
        made.at = at
        made.raw = text if raw is None else raw
        return made


@dataclass(frozen=True, slots=True, order=True)
class Fault:
    """One thing that is wrong.

    Attributes:
        file: The file's name as it was given.
        line: Counted from 1; likewise the column.
        field: Where it is in the structure: ``operators[2].input[0].from``.
        code: Stable name of the kind of fault, for programs.
        message: What is wrong and what would be right.
    """

    file: str
    line: int
    column: int
    field: str
    code: str
    message: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}: {self.message} [{self.code}]"


class Faults:
    """Gathers what is wrong in one file."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.found: list[Fault] = []

    def add(self, at: Position, field: str, code: str, message: str) -> None:
        """Note one more."""
        self.found.append(Fault(self.file, at.line, at.column, field, code, message))


def refuse(faults: Sequence[Fault]) -> None:
    """Raise if there is any fault.

    Raises:
        InvalidInput: Code ``invalid-pipeline``; the message has one line for each fault, in the order of the file.
    """
    if faults:
        listing = "\n".join(f"  {fault}" for fault in sorted(faults))
        raise InvalidInput(
            f"{len(faults)} fault{'' if len(faults) == 1 else 's'}; nothing was done\n{listing}",
            code="invalid-pipeline",
            errors=[FieldError(fault.field, fault.message) for fault in sorted(faults)],
        )
