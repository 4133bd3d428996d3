"""``clara-results destinations``: where results go."""

from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from clara_results.cli import options
from clara_results.cli.options import Config, Json, Service, TokenFile
from clara_results.cli.output import moment, show_json, show_table
from clara_results.errors import DestinationUnavailable, NotFound
from clara_results.wire.destinations import Destination, DestinationPage, DestinationView

app = typer.Typer(help="Add, list, test and remove the receivers of results.", no_args_is_help=True)
COLUMNS = ("name", "kind", "AE title", "host", "port", "waiting", "in progress", "stands")
EMPTY = (
    "No destination yet. Add one:\n"
    "  clara-results destinations add Orthanc --ae-title ORTHANC --host 127.0.0.1 --port 4242"
)
Name = Annotated[str, typer.Argument(help="The destination's name, as --data names it; compared without case.")]  # fmt: skip


@app.command("add")
def add(
    name: Name,
    ae_title: Annotated[str, typer.Option("--ae-title", help="Called AE title, sent as written.")],
    host: Annotated[str, typer.Option("--host", help="DNS name, IPv4 or IPv6 address.")],
    port: Annotated[int, typer.Option("--port", help="TCP port.")],
    calling_ae_title: Annotated[
        str | None,
        typer.Option("--calling-ae-title", help="Calling AE title, if not the agent's own."),
    ] = None,
    max_tasks: Annotated[
        int, typer.Option("--max-tasks", help="Tasks in progress to it at the same time.")
    ] = 2,
    replace: Annotated[bool, typer.Option("--replace", help="Change it if it is there.")] = False,
    as_json: Json = False,
    service: Service = None,
    token_file: TokenFile = None,
    config: Config = None,
) -> None:
    """Add a DIMSE destination."""
    client = options.client(config, service, token_file)
    body = Destination(
        name=name,
        ae_title=ae_title,
        host=host,
        port=port,
        calling_ae_title=calling_ae_title,
        max_tasks=max_tasks,
    )
    if replace:
        try:
            added = client.replace_destination(name, body)
        except NotFound:
            added = client.add_destination(body)
    else:
        added = client.add_destination(body)
    _show(added, as_json)


@app.command("list")
def listing(as_json: Json = False, service: Service = None, token_file: TokenFile = None, config: Config = None) -> None:  # fmt: skip
    """List all destinations."""
    items = options.client(config, service, token_file).destinations()
    if as_json:
        show_json(DestinationPage(items=items))
    else:
        show_table(COLUMNS, [_row(item) for item in items], EMPTY)


@app.command("show")
def show(name: Name, as_json: Json = False, service: Service = None, token_file: TokenFile = None, config: Config = None) -> None:  # fmt: skip
    """Show one destination."""
    _show(options.client(config, service, token_file).destination(name), as_json)


@app.command("test")
def probe(name: Name, as_json: Json = False, service: Service = None, token_file: TokenFile = None, config: Config = None) -> None:  # fmt: skip
    """Have the service connect to a destination and ask whether it answers (C-ECHO)."""
    result = options.client(config, service, token_file).test_destination(name)
    if as_json:
        show_json(result)
    else:
        console = Console()
        for step in result.steps:
            mark = Text("ok    ", "green") if step.ok else Text("failed", "bold red")
            console.print(
                mark, Text(f"{step.name:<12}{step.milliseconds:>8.1f} ms  {step.message}")
            )
    if not result.ok:
        raise typer.Exit(DestinationUnavailable.exit_code)


@app.command("pause")
def pause(name: Name, as_json: Json = False, service: Service = None, token_file: TokenFile = None, config: Config = None) -> None:  # fmt: skip
    """Let no more tasks for a destination go out; what is in progress goes on."""
    _show(options.client(config, service, token_file).pause_destination(name), as_json)


@app.command("resume")
def resume(name: Name, as_json: Json = False, service: Service = None, token_file: TokenFile = None, config: Config = None) -> None:  # fmt: skip
    """Let tasks for a destination go out again."""
    _show(options.client(config, service, token_file).resume_destination(name), as_json)


@app.command("remove")
def remove(name: Name, service: Service = None, token_file: TokenFile = None, config: Config = None) -> None:  # fmt: skip
    """Remove a destination; tasks for it fail from then on, until it is added again."""
    options.client(config, service, token_file).remove_destination(name)
    typer.echo(f"removed {name}")


def _show(item: DestinationView, as_json: bool) -> None:
    if as_json:
        show_json(item)
    else:
        show_table(COLUMNS, [_row(item)], EMPTY)


def _row(item: DestinationView) -> tuple[str | Text, ...]:
    if item.paused_at is not None:
        stands = Text(f"paused since {moment(item.paused_at)}", "yellow")
    elif item.down_since is not None:
        stands = Text(f"down since {moment(item.down_since)}: {item.down_reason}", "bold red")
    else:
        stands = Text("up", "green")
    return (
        item.name,
        item.kind,
        item.ae_title,
        item.host,
        str(item.port),
        str(item.pending),
        f"{item.in_progress} of {item.max_tasks}",
        stands,
    )
