"""``clara-results config``: what the settings are and where they come from."""

import json
import os
import sys
from pathlib import Path

import typer
from rich.console import Console
from rich.text import Text

from clara_results.cli.options import Config, Json
from clara_results.cli.output import show_table
from clara_results.settings import FIELDS, load, variable

app = typer.Typer(help="Show the settings.", no_args_is_help=True)


@app.callback()
def config() -> None:
    """Hold the commands on settings."""


@app.command("show")
def show(config: Config = None, as_json: Json = False) -> None:
    """Show each setting, its value, and where it came from."""
    loaded = load({}, os.environ, config)
    values = {name: _shown(name, getattr(loaded.settings, name)) for name in FIELDS}
    if as_json:
        body = {
            "settings": {n: {"value": values[n], "source": loaded.sources[n]} for n in FIELDS},
            "notes": list(loaded.notes),
        }
        sys.stdout.write(json.dumps(body, indent=2) + "\n")
        return
    rows = [
        (name, _cell(values[name]), loaded.sources[name], variable(name))
        for name in FIELDS
    ]  # fmt: skip
    show_table(("setting", "value", "from", "variable"), rows, "")
    for note in loaded.notes:
        Console(stderr=True).print(Text(f"note: {note}", "yellow"))


def _cell(value: object) -> str:
    if isinstance(value, list):
        return "; ".join(value) or "-"
    return "-" if value is None else str(value)


def _shown(name: str, value: object) -> object:
    if FIELDS[name].metadata["secret"] and value is not None:
        return "(set, not shown)"
    if isinstance(value, tuple):
        return list(value)
    return str(value) if isinstance(value, Path) else value
