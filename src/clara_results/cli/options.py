"""Options that commands share; each is a setting, and its help is the setting's own."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from clara_results.client import ResultsClient
from clara_results.settings import FIELDS, Settings, load, variable


def setting(name: str, *names: str) -> Any:
    """Return a setting's option: its flag, its help, and the variable that it may come from."""
    flags = names or (f"--{name.replace('_', '-')}",)
    default = FIELDS[name].default
    shown = "" if default in {None, ()} or isinstance(default, bool) else f"; default {default}"
    return typer.Option(
        *flags,
        help=f"{FIELDS[name].metadata['help']} ({variable(name)}{shown})",
        show_default=False,
    )


Config = Annotated[
    Path | None,
    typer.Option(
        "--config", help="TOML file of settings (CLARA_RESULTS_CONFIG)", show_default=False
    ),
]
Service = Annotated[str | None, setting("service")]
TokenFile = Annotated[Path | None, setting("token_file")]
Data = Annotated[Path | None, setting("data")]
Host = Annotated[str | None, setting("host")]
Port = Annotated[int | None, setting("port")]
Database = Annotated[str | None, setting("database")]
Payloads = Annotated[Path | None, setting("payloads")]
Anonymous = Annotated[list[str] | None, setting("anonymous")]
Insecure = Annotated[bool | None, setting("insecure", "--insecure")]
RetryDelay = Annotated[float | None, setting("retry_delay")]
MaxRetries = Annotated[int | None, setting("max_retries")]
GiveUp = Annotated[float | None, setting("give_up")]
Retention = Annotated[float | None, setting("retention")]
RetentionFailed = Annotated[float | None, setting("retention_failed")]
OwnPayloads = Annotated[bool | None, setting("own_payloads", "--own-payloads")]
KeepTasks = Annotated[float | None, setting("keep_tasks")]
DiskLow = Annotated[int | None, setting("disk_low")]
Lease = Annotated[int | None, setting("lease")]
Parallel = Annotated[int | None, setting("parallel")]
AeTitle = Annotated[str | None, setting("ae_title")]
ListenPort = Annotated[int | None, setting("listen_port")]
ListenHost = Annotated[str | None, setting("listen_host")]
ListenCertificate = Annotated[str | None, setting("listen_certificate")]
ListenKey = Annotated[str | None, setting("listen_key")]
ListenCa = Annotated[str | None, setting("listen_ca")]
Secrets = Annotated[Path | None, setting("secrets")]
ConnectTimeout = Annotated[float | None, setting("connect_timeout")]
AssociationTimeout = Annotated[float | None, setting("association_timeout")]
DimseTimeout = Annotated[float | None, setting("dimse_timeout")]
TaskTimeout = Annotated[float | None, setting("task_timeout")]
IdleTimeout = Annotated[float | None, setting("idle_timeout")]
AgentName = Annotated[str | None, setting("agent_name")]
RenderName = Annotated[str | None, setting("render_name")]
AnswerTimeout = Annotated[float | None, setting("answer_timeout")]
BatchFiles = Annotated[int | None, setting("batch_files")]
BatchBytes = Annotated[int | None, setting("batch_bytes")]
MaxPdu = Annotated[int | None, setting("max_pdu")]
LogFormat = Annotated[str | None, setting("log_format")]
LogLevel = Annotated[str | None, setting("log_level")]
Json = Annotated[bool, typer.Option("--json", help="JSON instead of a table, for programs.")]


def settings(config: Path | None, **flags: Any) -> Settings:
    """Return the settings of a command from its flags and all other sources."""
    return load(flags, os.environ, config).settings


def client(config: Path | None, service: str | None, token_file: Path | None) -> ResultsClient:
    """Return a client as a command's flags ask for it."""
    found = settings(config, service=service, token_file=token_file)
    return ResultsClient(found.service_url, token=found.bearer_token())
