"""All commands but ``register``, as one Typer application."""

import sys
from typing import Annotated

import click
import typer

from clara_results import __version__
from clara_results.cli import (
    agent,
    backup,
    config,
    destinations,
    pipeline,
    serve,
    tasks,
    tokens,
    up,
)
from clara_results.cli.output import complain
from clara_results.errors import ClaraResultsError

app = typer.Typer(
    name="clara-results",
    help="Carry what an imaging pipeline produced to where people use it, and prove that it arrived.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("up")(up.up)
app.command("serve")(serve.serve)
app.add_typer(agent.app, name="agent")
app.add_typer(destinations.app, name="destinations")
app.add_typer(tasks.app, name="tasks")
app.add_typer(tokens.app, name="tokens")
app.add_typer(pipeline.app, name="pipeline")
app.command("backup")(backup.backup)
app.add_typer(config.app, name="config")


@app.command("register", context_settings={"ignore_unknown_options": True}, add_help_option=False)
def register() -> None:
    """Register result files with the Results Service (the last step of a pipeline)."""


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"clara-results {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Take options that stand before the command."""


def run(arguments: list[str]) -> int:
    """Run a command; return its exit code."""
    try:
        result = app(arguments, standalone_mode=False)
    except ClaraResultsError as error:
        complain(error)
        return error.exit_code
    except click.exceptions.Abort:
        return 130
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    return result if isinstance(result, int) else 0
