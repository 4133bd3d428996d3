"""``clara-results destinations``: where results go."""

from collections.abc import Mapping, Sequence
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from clara_results.cli import options
from clara_results.cli.options import Config, Json, Secrets, Service, TokenFile
from clara_results.cli.output import moment, show_json, show_table
from clara_results.cli.probe import probe
from clara_results.domain.receivers import DICOM, DICOMWEB, AuthKind, Commit, Verify
from clara_results.errors import DestinationUnavailable, InvalidInput, NotFound
from clara_results.wire.destinations import (
    Auth,
    Destination,
    DestinationPage,
    DestinationView,
    TestedContext,
    TestResult,
    Tls,
)

app = typer.Typer(help="Add, list, test and remove the receivers of results.", no_args_is_help=True)
COLUMNS = ("name", "kind", "where", "waiting", "in progress", "associations", "stands")
EMPTY = (
    "No destination yet. Add one:\n"
    "  clara-results destinations add Orthanc --ae-title ORTHANC --host 127.0.0.1 --port 4242"
)
Name = Annotated[str, typer.Argument(help="The destination's name, as --data names it; compared without case.")]  # fmt: skip
_IN_SECRETS = "a file's name in the agent's folder of secrets"


@app.command("add")
def add(
    name: Name,
    ae_title: Annotated[str | None, typer.Option("--ae-title", help="DICOM: called AE title, sent as written.")] = None,
    host: Annotated[str | None, typer.Option("--host", help="DICOM: DNS name, IPv4 or IPv6 address.")] = None,
    port: Annotated[int | None, typer.Option("--port", help="DICOM: TCP port.")] = None,
    calling_ae_title: Annotated[str | None, typer.Option("--calling-ae-title", help="DICOM: calling AE title, if not the agent's own.")] = None,
    url: Annotated[str | None, typer.Option("--url", help="DICOMweb: the URL below which /studies is; makes it a DICOMweb destination.")] = None,
    max_associations: Annotated[int, typer.Option("--max-associations", help="Associations, or connections, open to it at the same time.")] = 2,
    transcode: Annotated[bool, typer.Option("--transcode/--no-transcode", help="Send in another transfer syntax, without loss, what it takes in no other way.")] = True,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Send other content under a SOP Instance UID that it was sent before, too.")] = False,
    verify: Annotated[Verify, typer.Option("--verify", help="Ask it back for what it stored, and compare.")] = Verify.OFF,
    commitment: Annotated[Commit, typer.Option("--commitment", help="DICOM: ask it to commit itself to keep what it stored.")] = Commit.OFF,
    status: Annotated[list[str] | None, typer.Option("--status", help="What a status of its means, C000=retry or Bxxx=reject; several times.")] = None,
    tls: Annotated[bool, typer.Option("--tls", help="DICOM: secure connections by TLS; the other options of TLS say so as well.")] = False,
    tls_ca: Annotated[str | None, typer.Option("--tls-ca", help=f"Authorities that are trusted, not the system's: {_IN_SECRETS}.")] = None,
    tls_certificate: Annotated[str | None, typer.Option("--tls-certificate", help=f"Our certificate, if it wants one: {_IN_SECRETS}.")] = None,
    tls_key: Annotated[str | None, typer.Option("--tls-key", help=f"Our certificate's key, if it is not with it: {_IN_SECRETS}.")] = None,
    tls_any_host: Annotated[bool, typer.Option("--tls-any-host", help="Its certificate need not name the host.")] = False,
    auth: Annotated[AuthKind | None, typer.Option("--auth", help="How it learns who we are.")] = None,
    user: Annotated[str | None, typer.Option("--user", help="The user's name, for --auth basic.")] = None,
    secret: Annotated[str | None, typer.Option("--secret", help=f"Password, token or client secret: {_IN_SECRETS}.")] = None,
    token_url: Annotated[str | None, typer.Option("--token-url", help="Where tokens come from, for --auth oauth2.")] = None,
    client_id: Annotated[str | None, typer.Option("--client-id", help="For --auth oauth2.")] = None,
    scope: Annotated[str | None, typer.Option("--scope", help="For --auth oauth2, if it wants one.")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Change it if it is there; what is not given gets its default.")] = False,
    as_json: Json = False,
    service: Service = None,
    token_file: TokenFile = None,
    config: Config = None,
) -> None:  # fmt: skip
    """Add a destination: DICOM (--ae-title, --host, --port) or DICOMweb (--url)."""
    secured = tls or tls_any_host or bool(tls_ca or tls_certificate or tls_key)
    body = Destination(
        name=name,
        kind=DICOM if url is None else DICOMWEB,
        ae_title=ae_title,
        host=host,
        port=port,
        calling_ae_title=calling_ae_title,
        url=url,
        max_associations=max_associations,
        transcode=transcode,
        overwrite=overwrite,
        verify=verify,
        commitment=commitment,
        statuses=_statuses(status or ()),
        tls=Tls(ca=tls_ca, certificate=tls_certificate, key=tls_key, check_host=not tls_any_host)
        if secured
        else None,
        auth=_auth(auth, user, secret, token_url, client_id, scope),
    )
    client = options.client(config, service, token_file)
    if replace:
        try:
            added = client.replace_destination(name, body)
        except NotFound:
            added = client.add_destination(body)
    else:
        added = client.add_destination(body)
    _show(added, as_json)


def _statuses(given: Sequence[str]) -> dict[str, str] | None:
    found: dict[str, str] = {}
    for one in given:
        status, equals, meaning = one.partition("=")
        if not equals:
            raise InvalidInput(f"--status {one}: write STATUS=retry or STATUS=reject")
        found[status] = meaning
    return found or None


def _auth(
    kind: AuthKind | None,
    user: str | None,
    secret: str | None,
    token_url: str | None,
    client_id: str | None,
    scope: str | None,
) -> Auth | None:
    if kind is not None:
        return Auth(
            kind=kind,
            user_name=user,
            secret=secret,
            token_url=token_url,
            client_id=client_id,
            scope=scope,
        )
    if user or secret or token_url or client_id or scope:
        raise InvalidInput("say by --auth how the user's name or secret is to be shown")
    return None


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
def try_out(
    name: Name,
    here: Annotated[bool, typer.Option("--here", help="From this machine, with its --secrets, not from the service's.")] = False,
    secrets: Secrets = None,
    as_json: Json = False,
    service: Service = None,
    token_file: TokenFile = None,
    config: Config = None,
) -> None:  # fmt: skip
    """Connect to a destination, ask whether it answers, and what it takes. Nothing is stored."""
    client = options.client(config, service, token_file)
    if here:
        settings = options.settings(config, secrets=secrets)
        result = probe(settings, client.destination(name))
    else:
        result = client.test_destination(name)
    if as_json:
        show_json(result)
    else:
        _show_result(result)
    if not result.ok:
        raise typer.Exit(DestinationUnavailable.exit_code)


def _show_result(result: TestResult) -> None:
    console = Console(soft_wrap=True)
    for step in result.steps:
        mark = Text("ok    ", "green") if step.ok else Text("failed", "bold red")
        console.print(mark, Text(f"{step.name:<15}{step.milliseconds:>8.1f} ms  {step.message}"))
    if result.contexts:
        console.print()
        rows = [(str(len(classes)), ", ".join(classes), ", ".join(taken) or "nothing", ", ".join(refused))
                for classes, taken, refused in _by_syntaxes(result.contexts)]  # fmt: skip
        show_table(("", "storage SOP classes", "taken in", "not taken in"), rows, "")


def _by_syntaxes(
    contexts: Sequence[TestedContext],
) -> list[tuple[list[str], tuple[str, ...], tuple[str, ...]]]:
    """Return SOP classes that are taken alike together, with the transfer syntaxes that are taken, and are not."""
    taken: dict[str, list[str]] = {}
    refused: dict[str, list[str]] = {}
    for context in contexts:
        taken.setdefault(context.sop_class, [])
        refused.setdefault(context.sop_class, [])
        chosen = taken if context.accepted else refused
        chosen[context.sop_class].append(context.transfer_syntax)
    alike: dict[tuple[tuple[str, ...], tuple[str, ...]], list[str]] = {}
    for sop_class in taken:
        key = (tuple(taken[sop_class]), tuple(refused[sop_class]))
        alike.setdefault(key, []).append(sop_class.removesuffix(" Storage"))
    return [(classes, *key) for key, classes in alike.items()]


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
        show_table(("setting", "value"), list(_settings(item).items()), EMPTY)


def _settings(item: DestinationView) -> Mapping[str, str | Text]:
    """Return all that is set for a destination and how it stands, in words, by name."""
    found: dict[str, str | Text] = {"name": item.name, "kind": item.kind}
    if item.url is not None:
        found["URL"] = item.url
    else:
        found["called AE title"] = item.ae_title or ""
        found["calling AE title"] = item.calling_ae_title or "the agent's own"
        found["host"], found["port"] = item.host or "", str(item.port)
    found["associations"] = f"{item.associations} of {item.max_associations}"
    if item.url is None:
        found["transcode"], found["commitment"] = _yes(item.transcode), item.commitment
    found["overwrite"], found["verify"] = _yes(item.overwrite), item.verify
    if item.statuses:
        found["statuses"] = ", ".join(f"{code}={what}" for code, what in item.statuses.items())
    found["TLS"] = _tls_in_words(item.tls)
    found["user"] = _auth_in_words(item.auth)
    found["waiting"], found["in progress"] = str(item.pending), str(item.in_progress)
    found["awaiting commitment"] = str(item.awaiting_commitment)
    found["stands"] = _stands(item)
    return found


def _yes(answer: bool) -> str:
    return "yes" if answer else "no"


def _tls_in_words(tls: Tls | None) -> str:
    if tls is None:
        return "no"
    words = [f"authorities {tls.ca}" if tls.ca else "the system's authorities"]
    if tls.certificate:
        words.append(f"our certificate {tls.certificate}, key {tls.key or 'with it'}")
    words.append("the host's name is checked" if tls.check_host else "for any host")
    return "; ".join(words)


def _auth_in_words(auth: Auth | None) -> str:
    if auth is None:
        return "none"
    given = (auth.user_name, auth.client_id, auth.token_url, auth.scope)
    words = [auth.kind.value, *(word for word in given if word)]
    return ", ".join([*words, f"secret {auth.secret}"] if auth.secret else words)


def _stands(item: DestinationView) -> Text:
    if item.paused_at is not None:
        return Text(f"paused since {moment(item.paused_at)}", "yellow")
    if item.down_since is not None:
        return Text(f"down since {moment(item.down_since)}: {item.down_reason}", "bold red")
    return Text("up", "green")


def _row(item: DestinationView) -> tuple[str | Text, ...]:
    host = f"[{item.host}]" if ":" in (item.host or "") else item.host
    return (
        item.name,
        item.kind,
        item.url or f"{item.ae_title} at {host}:{item.port}",
        str(item.pending),
        str(item.in_progress),
        f"{item.associations} of {item.max_associations}",
        _stands(item),
    )
