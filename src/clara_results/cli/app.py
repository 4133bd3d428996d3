"""All commands but ``register``, as one Typer application."""

from collections.abc import Sequence
from importlib import import_module
from typing import Annotated

import typer

from clara_results import __version__
from clara_results.cli.output import complain
from clara_results.errors import ClaraResultsError

_COMMANDS = ("up", "serve", "agent", "destinations", "tasks", "tokens", "pipeline", "backup", "config")  # fmt: skip
"""Each is a module of this package: with an ``app`` of several commands, or with one function of its name."""


def _application(arguments: Sequence[str]) -> typer.Typer:
    """Return the application, with the one command that is called; with all where none is.

    A command so does not wait for what only others import.
    """
    made = typer.Typer(
        name="clara-results",
        help="Carry what an imaging pipeline produced to where people use it, and prove that it arrived.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    made.callback()(_root)
    for name in [each for each in _COMMANDS if each in arguments[:1]] or _COMMANDS:
        module = import_module(f"clara_results.cli.{name}")
        if hasattr(module, "app"):
            made.add_typer(module.app, name=name)
        else:
            made.command(name)(getattr(module, name))
    made.command("register", context_settings={"ignore_unknown_options": True}, add_help_option=False)(_register)  # fmt: skip
    return made


def _register() -> None:
    """Register result files with the Results Service (the last step of a pipeline)."""


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"clara-results {__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Take options that stand before the command."""


def run(arguments: list[str]) -> int:
    """Run a command; return its exit code."""
    try:
        _application(arguments)(arguments)
    except ClaraResultsError as error:
        complain(error)
        return error.exit_code
    except SystemExit as ended:  # so Typer ends, once it has said what was wrong with the arguments
        return ended.code if isinstance(ended.code, int) else 0
    return 0
