"""``clara-results backup``: a copy of the database, whether the service runs or not."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from clara_results.cli import options
from clara_results.cli.options import Config, Data, Database
from clara_results.errors import InvalidInput


def backup(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where the copy goes.", show_default=False)],
    force: Annotated[bool, typer.Option("--force", help="Replace FILE if it is there.")] = False,
    data: Data = None,
    database: Database = None,
    config: Config = None,
) -> None:  # fmt: skip
    """Copy the database (SQLite) to FILE as it is now, checked, while the service goes on; payloads are not in it."""
    settings = options.settings(config, data=data, database=database)
    try:
        from clara_results.store.backup import back_up, sqlite_file
    except ModuleNotFoundError as error:
        raise InvalidInput(
            f"the service is not installed here ({error.name} is missing): install "
            "clara-results[service]",
            code="not-installed",
        ) from error
    source = sqlite_file(settings.database_url, file)
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        copied = bar.add_task(f"copying {source.name}", total=None)
        size = back_up(
            source,
            file,
            replace=force,
            progress=lambda done, total: bar.update(copied, completed=done, total=total),
        )
    sys.stdout.write(f"{file}: a copy of {source}, {size:,} bytes, checked\n")
