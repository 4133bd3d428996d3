"""``clara-results tokens``: who may call the service. Works on the database itself, whether the service runs or not."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from clara_results.cli import options
from clara_results.cli.options import Config, Data, Database, Json
from clara_results.cli.output import moment, show_json, show_table
from clara_results.domain import scopes
from clara_results.domain.clock import SystemClock
from clara_results.errors import InvalidInput

if TYPE_CHECKING:
    from clara_results.service.access import Token
    from clara_results.store.database import Database as OpenDatabase

app = typer.Typer(help="Make, list and revoke the tokens that callers of the service show.", no_args_is_help=True)  # fmt: skip
COLUMNS = ("name", "scopes", "created", "expires", "last used", "stands")
EMPTY = (
    "No token yet. Make one:\n  clara-results tokens create ward-3 --scope register --expires 90d"
)
Name = Annotated[str, typer.Argument(help="By which people know the token.")]
EFFECT = "A service that runs takes this up within seconds."


@app.command("create")
def create(
    name: Name,
    scope: Annotated[list[str], typer.Option("--scope", help=f"What it allows; several times, or with commas: {scopes.RULE}.")],
    expires: Annotated[str | None, typer.Option("--expires", help=f"For how long it counts: {scopes.AGE_RULE}. If not given, until it is revoked.")] = None,
    as_json: Json = False,
    data: Data = None,
    database: Database = None,
    config: Config = None,
) -> None:  # fmt: skip
    """Make a token and print it on stdout, this once: the database keeps a digest only."""
    allowed = scopes.parse_scopes(",".join(scope))
    age = None if expires is None else scopes.token_age(expires)
    now = SystemClock().now()
    with _opened(config, data=data, database=database) as opened:
        from clara_results.service import access

        made = opened.write(lambda tx: access.create(tx, name, allowed, age, now)).result()
    if as_json:
        show_json(made)
    else:
        sys.stdout.write(made.token + "\n")
        _say(
            f"This is the only time that the token is shown. Keep it in a file that only its user can read, "
            f"and name that in CLARA_RESULTS_TOKEN_FILE. {EFFECT}"
        )


@app.command("list")
def listing(as_json: Json = False, data: Data = None, database: Database = None, config: Config = None) -> None:  # fmt: skip
    """List all tokens, revoked ones too."""
    with _opened(config, data=data, database=database) as opened:
        from clara_results.service import access

        found = opened.read(access.listing).result()
    if as_json:
        show_json(found)
    else:
        now = SystemClock().now()
        show_table(COLUMNS, [_row(token, now) for token in found.items], EMPTY)


@app.command("revoke")
def revoke(name: Name, data: Data = None, database: Database = None, config: Config = None) -> None:
    """Let a token count no more."""
    now = SystemClock().now()
    with _opened(config, data=data, database=database) as opened:
        from clara_results.service import access

        left = opened.write(lambda tx: access.revoke(tx, name, now)).result()
    typer.echo(f"revoked {name}")
    _say(EFFECT)
    if not left:
        _say(
            "That was the last token: a service that listens on loopback only is open to everyone on its "
            "machine again, unless it is started with --anonymous."
        )


@contextmanager
def _opened(config: Config, **flags: object) -> Iterator["OpenDatabase"]:
    settings = options.settings(config, **flags)
    try:
        from clara_results.service import access
    except ModuleNotFoundError as error:
        raise InvalidInput(
            f"tokens can't be made here ({error.name} is missing): install clara-results[service]",
            code="not-installed",
        ) from error
    with access.opened(settings.database_url) as database:
        yield database


def _row(token: "Token", now: datetime) -> tuple[str | Text, ...]:
    if token.revoked_at is not None:
        stands = Text(f"revoked {moment(token.revoked_at)}", "dim")
    elif token.expires_at is not None and token.expires_at <= now:
        stands = Text("expired", "bold red")
    else:
        stands = Text("counts", "green")
    expires = moment(token.expires_at) or "never"
    return (token.name, ", ".join(token.scopes), moment(token.created_at), expires, moment(token.last_used_at) or "never", stands)  # fmt: skip


def _say(text: str) -> None:
    Console(stderr=True, soft_wrap=True).print(Text(text))
