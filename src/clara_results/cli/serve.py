"""``clara-results serve``: the Results Service."""

import typer

from clara_results.cli import options
from clara_results.cli.log import set_up_logging
from clara_results.cli.options import (
    Anonymous,
    Config,
    Data,
    Database,
    DiskLow,
    GiveUp,
    Host,
    Insecure,
    KeepTasks,
    LogFormat,
    LogLevel,
    MaxRetries,
    OwnPayloads,
    Payloads,
    Port,
    Retention,
    RetentionFailed,
    RetryDelay,
    Secrets,
)
from clara_results.errors import InvalidInput


def serve(
    host: Host = None,
    port: Port = None,
    data: Data = None,
    database: Database = None,
    payloads: Payloads = None,
    retry_delay: RetryDelay = None,
    max_retries: MaxRetries = None,
    give_up: GiveUp = None,
    retention: Retention = None,
    retention_failed: RetentionFailed = None,
    own_payloads: OwnPayloads = None,
    keep_tasks: KeepTasks = None,
    disk_low: DiskLow = None,
    anonymous: Anonymous = None,
    insecure: Insecure = None,
    secrets: Secrets = None,
    log_format: LogFormat = None,
    log_level: LogLevel = None,
    config: Config = None,
) -> None:
    """Run the Results Service until it is asked to end (SIGTERM, Ctrl-C)."""
    settings = options.settings(
        config, host=host, port=port, data=data, database=database, payloads=payloads,
        retry_delay=retry_delay, max_retries=max_retries, give_up=give_up, retention=retention,
        retention_failed=retention_failed, own_payloads=own_payloads, keep_tasks=keep_tasks,
        disk_low=disk_low, anonymous=anonymous or None,
        insecure=insecure, secrets=secrets, log_format=log_format, log_level=log_level,
    )  # fmt: skip
    set_up_logging(settings)
    try:
        from clara_results.cli.server import run
    except ModuleNotFoundError as error:
        raise InvalidInput(
            f"the service is not installed here ({error.name} is missing): install "
            "clara-results[service]",
            code="not-installed",
        ) from error
    if not run(settings):
        raise typer.Exit(1)
