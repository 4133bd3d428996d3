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


def show_table(columns: Sequence[str], rows: Sequence[Sequence[str | Text]], empty: str) -> None:
    """Print a table, or what to do where there is nothing to show."""
    console = Console()
    if not rows:
        console.print(Text(empty))
        return
    if not console.is_terminal:  # for grep and cut: no frame, nothing cut short
        for row in (columns, *rows):
            sys.stdout.write("\t".join(str(cell) for cell in row) + "\n")
        return
    console.print(table(columns, rows))


def table(columns: Sequence[str], rows: Sequence[Sequence[str | Text]]) -> Table:
    """Return a table for a terminal."""
    made = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        made.add_column(column, overflow="fold")
    for row in rows:
        made.add_row(*[cell if isinstance(cell, Text) else Text(cell) for cell in row])
    return made


def state(name: str) -> Text:
    """Return a task's state in its colour."""
    return Text(name, STATE_STYLES.get(name, ""))


def moment(when: datetime | None) -> str:
    """Return a time for people, in their own zone."""
    return "" if when is None else when.astimezone().strftime("%Y-%m-%d %H:%M:%S")
