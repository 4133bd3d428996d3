"""``clara-results agent``: processes that deliver."""

import gc
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

import typer

from clara_results.agents.exporter import Exporter
from clara_results.agents.runner import Runner, instance_name
from clara_results.cli import options
from clara_results.cli.log import set_up_logging
from clara_results.cli.options import (
    AeTitle,
    AgentName,
    AnswerTimeout,
    AssociationTimeout,
    BatchBytes,
    BatchFiles,
    Config,
    ConnectTimeout,
    DimseTimeout,
    IdleTimeout,
    Lease,
    ListenCa,
    ListenCertificate,
    ListenHost,
    ListenKey,
    ListenPort,
    LogFormat,
    LogLevel,
    MaxPdu,
    Parallel,
    Payloads,
    RenderName,
    Secrets,
    Service,
    TaskTimeout,
    TokenFile,
)
from clara_results.client import ResultsClient
from clara_results.domain.clock import Clock, SystemClock
from clara_results.errors import InvalidInput
from clara_results.payloads import FolderStore
from clara_results.settings import Settings

if TYPE_CHECKING:
    from clara_results.agents.dicom.commitment import Commitments
    from clara_results.agents.secrets import Secrets as SecretsFolder

SWITCH_INTERVAL = 0.001
"""Seconds for which a thread may keep the interpreter while others want it. A sender that waits 5 ms, Python's default,
for a thread that reads an answer of the service leaves its receiver without work: measured, a fifth of the time."""
READ_TIMEOUT = 10.0
"""Seconds that an agent waits for an answer; a lease must outlast it."""

app = typer.Typer(help="Run an agent: it claims tasks, delivers them, and reports file by file.", no_args_is_help=True)  # fmt: skip


@app.callback()
def agent() -> None:
    """Hold the agents' commands, one a kind."""


@app.command("dicom")
def dicom(
    service: Service = None,
    payloads: Payloads = None,
    ae_title: AeTitle = None,
    secrets: Secrets = None,
    lease: Lease = None,
    parallel: Parallel = None,
    connect_timeout: ConnectTimeout = None,
    association_timeout: AssociationTimeout = None,
    dimse_timeout: DimseTimeout = None,
    task_timeout: TaskTimeout = None,
    idle_timeout: IdleTimeout = None,
    max_pdu: MaxPdu = None,
    listen_port: ListenPort = None,
    listen_host: ListenHost = None,
    listen_certificate: ListenCertificate = None,
    listen_key: ListenKey = None,
    listen_ca: ListenCa = None,
    token_file: TokenFile = None,
    log_format: LogFormat = None,
    log_level: LogLevel = None,
    config: Config = None,
) -> None:
    """Deliver DICOM files to DIMSE destinations by C-STORE. Its agent name is its AE title.

    Without --payloads it fetches files from the service.
    """
    settings = options.settings(
        config, service=service, payloads=payloads, ae_title=ae_title, secrets=secrets,
        lease=lease, parallel=parallel, connect_timeout=connect_timeout, association_timeout=association_timeout,
        dimse_timeout=dimse_timeout, task_timeout=task_timeout, idle_timeout=idle_timeout, max_pdu=max_pdu,
        listen_port=listen_port, listen_host=listen_host, listen_certificate=listen_certificate,
        listen_key=listen_key, listen_ca=listen_ca,
        token_file=token_file, log_format=log_format, log_level=log_level,
    )  # fmt: skip
    set_up_logging(settings)
    from clara_results.agents.dicom.frames import without_codecs

    with _installed("DICOM", "dicom"), without_codecs():
        from clara_results.agents.dicom.association import AssociationSettings
        from clara_results.agents.dicom.commitment import Commitments
        from clara_results.agents.dicom.exporter import DicomExporter
        from clara_results.agents.secrets import Secrets as SecretsFolder
    client, clock = _client(settings), SystemClock()
    waits = AssociationSettings(
        connect=settings.connect_timeout,
        association=settings.association_timeout,
        dimse=settings.dimse_timeout,
        max_pdu=settings.max_pdu,
        idle=settings.idle_timeout,
        task=settings.task_timeout,
    )
    secrets_folder = SecretsFolder(settings.secrets)
    exporter = DicomExporter(client.destinations, settings.ae_title, waits, clock, secrets_folder)
    with Commitments(
        settings.ae_title, client, client.destinations, waits, secrets_folder
    ) as commitments:
        _listen(commitments, settings, secrets_folder)
        _run(settings, settings.ae_title, exporter, client, clock)


def _listen(commitments: "Commitments", settings: Settings, secrets: "SecretsFolder") -> None:
    """Have storage commitment reports taken, if the settings say where."""
    if settings.listen_port is None:
        return
    from clara_results.agents.tls import server_tls_context

    tls = None
    if settings.listen_certificate is not None:
        tls = server_tls_context(
            settings.listen_certificate, settings.listen_key, settings.listen_ca, secrets
        )
    commitments.listen(settings.listen_host, settings.listen_port, tls)


@app.command("dicomweb")
def dicomweb(
    service: Service = None,
    payloads: Payloads = None,
    agent_name: AgentName = None,
    secrets: Secrets = None,
    lease: Lease = None,
    parallel: Parallel = None,
    connect_timeout: ConnectTimeout = None,
    answer_timeout: AnswerTimeout = None,
    task_timeout: TaskTimeout = None,
    batch_files: BatchFiles = None,
    batch_bytes: BatchBytes = None,
    token_file: TokenFile = None,
    log_format: LogFormat = None,
    log_level: LogLevel = None,
    config: Config = None,
) -> None:
    """Deliver DICOM files to DICOMweb destinations by STOW-RS.

    Without --payloads it fetches files from the service.
    """
    settings = options.settings(
        config, service=service, payloads=payloads, agent_name=agent_name, secrets=secrets,
        lease=lease, parallel=parallel, connect_timeout=connect_timeout, answer_timeout=answer_timeout,
        task_timeout=task_timeout, batch_files=batch_files, batch_bytes=batch_bytes,
        token_file=token_file, log_format=log_format, log_level=log_level,
    )  # fmt: skip
    set_up_logging(settings)
    from clara_results.agents.dicom.frames import without_codecs

    with _installed("DICOMweb", "dicomweb"), without_codecs():
        from clara_results.agents.dicomweb.connection import WebSettings
        from clara_results.agents.dicomweb.exporter import DicomWebExporter
        from clara_results.agents.secrets import Secrets as SecretsFolder
    client, clock = _client(settings), SystemClock()
    waits = WebSettings(
        connect=settings.connect_timeout,
        answer=settings.answer_timeout,
        task=settings.task_timeout,
        batch_files=settings.batch_files,
        batch_bytes=settings.batch_bytes,
    )
    secrets_folder = SecretsFolder(settings.secrets)
    exporter = DicomWebExporter(client.destinations, secrets_folder, waits, clock)
    _run(settings, settings.agent_name, exporter, client, clock)


@app.command("render")
def render(
    service: Service = None,
    payloads: Payloads = None,
    render_name: RenderName = None,
    lease: Lease = None,
    parallel: Parallel = None,
    token_file: TokenFile = None,
    log_format: LogFormat = None,
    log_level: LogLevel = None,
    config: Config = None,
) -> None:
    """Publish volumes (MetaImage, NIfTI, DICOM series and SEG) as datasets for the viewer.

    Without --payloads it fetches files from the service. TMPDIR must have room for a task's files.
    """
    settings = options.settings(
        config, service=service, payloads=payloads, render_name=render_name, lease=lease, parallel=parallel,
        token_file=token_file, log_format=log_format, log_level=log_level,
    )  # fmt: skip
    set_up_logging(settings)
    from clara_results.agents.render.exporter import RenderExporter, check_installed

    with _installed("render", "render"):
        check_installed()
    client, clock = _client(settings), SystemClock()
    _run(settings, settings.render_name, RenderExporter(client, clock), client, clock)


@contextmanager
def _installed(name: str, extra: str) -> Iterator[None]:
    """Say what to install where a package is missing that an agent imports."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise InvalidInput(
            f"the {name} agent is not installed here ({error.name} is missing): install "
            f"clara-results[{extra}]",
            code="not-installed",
        ) from error


def _client(settings: Settings) -> ResultsClient:
    return ResultsClient(
        settings.service_url,
        token=settings.bearer_token(),
        instance=instance_name(),
        connections=4 * settings.parallel,
        read_timeout=READ_TIMEOUT,
    )


def _run(
    settings: Settings, name: str, exporter: Exporter, client: ResultsClient, clock: Clock
) -> None:
    """Run an agent until it is asked to end (SIGTERM, Ctrl-C)."""
    runner = Runner(
        name,
        exporter,
        client,
        clock,
        lease=settings.lease,
        parallel=settings.parallel,
        payloads=FolderStore(settings.payloads) if settings.payloads else None,
    )

    def end(_signal: int, _frame: FrameType | None) -> None:
        runner.stop()

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    sys.setswitchinterval(SWITCH_INTERVAL)
    gc.collect()
    gc.freeze()  # DICOM's dictionaries stay anyway; looking through them takes 50 ms each time
    runner.run()
