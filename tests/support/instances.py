"""Series of small CT instances, and a receiver that takes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import CtWriter
    from tests.faults.conftest import Conversation


def series(folder: Path, write_ct: CtWriter, count: int, **changes: Any) -> list[str]:
    """Write a series ``000.dcm``, …; return its SOP Instance UIDs in order."""
    return [
        str(write_ct(folder / f"{number:03}.dcm", number=number, **changes).SOPInstanceUID)
        for number in range(count)
    ]


def takes_all(talk: Conversation) -> None:
    """Take every instance, as a receiver's script."""
    talk.accept()
    talk.store_all()
