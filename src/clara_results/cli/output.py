"""What commands print: tables for people, JSON for programs, errors on stderr."""

import json
import sys
from collections.abc import Sequence
from datetime import datetime

from rich.console import Console
from rich.table import Table
from rich.text import Text

from clara_results.errors import ClaraResultsError
from clara_results.wire.codec import to_json

WIDE = 130
"""Characters from which on a terminal has room for all columns."""
STATE_STYLES = {
    "Pending": "yellow",
    "InProgress": "cyan",
    "Succeeded": "green",
    "Failed": "bold red",
    "Canceled": "dim",
}


def complain(error: ClaraResultsError) -> None:
    """Print an error and its single faults on stderr."""
    console = Console(stderr=True, soft_wrap=True)
    console.print(Text.assemble(("error: ", "bold red"), str(error), (f"  [{error.code}]", "dim")))
    for fault in error.errors:
        if fault.message in str(error):
            continue
        console.print(Text(f"  {fault.field}: {fault.message}"))


def show_json(body: object) -> None:
    """Print a wire body as indented JSON."""
    sys.stdout.write(json.dumps(json.loads(to_json(body)), indent=2, ensure_ascii=False) + "\n")


def show_table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str | Text]],
    empty: str,
    narrow: Sequence[str] | None = None,
) -> None:
    """Print a table, or what to do where there is nothing to show.

    Args:
        columns: Their names.
        rows: A cell for each column.
        empty: What to say where there is no row.
        narrow: The columns that are shown on a narrow terminal; None: all.
    """
    console = Console(soft_wrap=not rows)
    if not rows:
        console.print(Text(empty))
        return
    if not console.is_terminal:  # for grep and cut: no frame, nothing cut short
        for row in (columns, *rows):
            sys.stdout.write("\t".join(str(cell) for cell in row) + "\n")
        return
    console.print(table(columns, rows, fitting(console, narrow)))


def fitting(console: Console, narrow: Sequence[str] | None) -> Sequence[str] | None:
    """Return the columns to show: all (None), or the few for a narrow terminal."""
    return narrow if console.width < WIDE else None


def table(
    columns: Sequence[str], rows: Sequence[Sequence[str | Text]], shown: Sequence[str] | None = None
) -> Table:
    """Return a table for a terminal, of all columns or of those that are to be shown."""
    chosen = [index for index, name in enumerate(columns) if shown is None or name in shown]
    made = Table(box=None, header_style="bold", pad_edge=False)
    for index in chosen:
        made.add_column(columns[index], overflow="fold", no_wrap=index == 0)
    for row in rows:
        cells = [row[index] for index in chosen]
        made.add_row(*[cell if isinstance(cell, Text) else Text(cell) for cell in cells])
    return made


def state(name: str) -> Text:
    """Return a task's state in its colour."""
    return Text(name, STATE_STYLES.get(name, ""))


def moment(when: datetime | None) -> str:
    """Return a time for people, in their own zone."""
    return "" if when is None else when.astimezone().strftime("%Y-%m-%d %H:%M:%S")
