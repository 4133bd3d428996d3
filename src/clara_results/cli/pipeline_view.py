"""What a person sees of a run: a live table on a terminal, else a line for each change; then a summary."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from clara_results.cli.output import show_table, table
from clara_results.domain.clock import Clock
from clara_results.pipeline.record import RunRecord, StepRecord, StepState

STYLES = {
    StepState.WAITING: "dim",
    StepState.RUNNING: "cyan",
    StepState.SUCCEEDED: "green",
    StepState.FAILED: "bold red",
    StepState.STOPPED: "yellow",
}
COLUMNS = ("operator", "state", "seconds", "")
TAIL = 20
"""Lines of a failed operator's log that are shown."""
_TAIL_BYTES = 8192


class View:
    """Shows steps as they change, on stderr.

    Attributes:
        live: The table on a terminal; None: there is none, a line for each change is printed.
    """

    def __init__(self, clock: Clock, logs: Path, *, quiet: bool) -> None:
        """Make one.

        Args:
            clock: Measures how long an operator has been running.
            logs: The folder of the operators' logs; each's last line is shown.
            quiet: Show nothing.
        """
        self._clock = clock
        self._logs = logs
        self._quiet = quiet
        self._console = Console(stderr=True, soft_wrap=True, highlight=False)
        self._steps: dict[str, StepRecord] = {}
        self._live: Live | None = None

    @contextmanager
    def shown(self, steps: Sequence[StepRecord]) -> Iterator[None]:
        """Show steps for as long as this is open."""
        self._steps = {step.operator: step for step in steps}
        if self._quiet or not self._console.is_terminal:
            for step in steps:
                if step.kept:
                    self.changed(step)
            yield
            return
        with Live(
            console=self._console, get_renderable=self._table, refresh_per_second=4, transient=True
        ) as live:
            self._live = live
            yield

    def changed(self, step: StepRecord) -> None:
        """Take up a change."""
        self._steps[step.operator] = step
        if not self._quiet and self._live is None:
            self._console.print(Text("  ").join(Text(cell) if isinstance(cell, str) else cell for cell in row(step) if cell))  # fmt: skip

    def _table(self) -> Table:
        return table(COLUMNS, [self._row(step) for step in list(self._steps.values())])

    def _row(self, step: StepRecord) -> Sequence[str | Text]:
        if step.state is not StepState.RUNNING or step.started_at is None:
            return row(step)
        seconds = (self._clock.now() - step.started_at).total_seconds()
        last = [step.note] if step.note else tail(self._logs / f"{step.operator}.log", 1)
        return (*row(step)[:2], f"{seconds:.1f}", Text(last[0] if last else "", "dim"))


def row(step: StepRecord) -> tuple[str | Text, ...]:
    """Return a step's cells."""
    told = "done before" if step.kept else step.reason or step.note or ""
    seconds = "" if step.seconds is None else f"{step.seconds:.2f}"
    return (step.operator, Text(step.state.value, STYLES[step.state]), seconds, told)


def tail(log: Path, lines: int) -> list[str]:
    """Return a log's last lines; nothing where there is no log yet. Nothing in them can steer a terminal."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    printable = ("".join(c if c.isprintable() else " " for c in line) for line in text.splitlines())
    return [line for line in printable if line.strip()][-lines:]


def summarise(record: RunRecord) -> None:
    """Print what became of a run, and where its time went."""
    show_table(COLUMNS, [row(step) for step in record.steps], "no operator")
    ran = [step for step in record.steps if step.seconds is not None and not step.kept]
    share = record.platform_seconds / record.seconds if record.seconds else 0.0
    Console(soft_wrap=True, highlight=False).print(
        f"{len(ran)} of {len(record.steps)} operators ran, in {record.seconds:.2f} s; for "
        f"{record.platform_seconds:.2f} s of it ({share:.1%}) none did"
    )
