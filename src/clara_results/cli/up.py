"""``clara-results up``: service and agents on one machine, as child processes, each started again if it dies."""

import ctypes
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import typer

from clara_results.agents.render.exporter import check_installed
from clara_results.cli import options
from clara_results.cli.log import set_up_logging
from clara_results.cli.options import (
    AeTitle,
    Anonymous,
    Config,
    Data,
    Host,
    Insecure,
    LogFormat,
    LogLevel,
    Payloads,
    Port,
)
from clara_results.client import ResultsClient
from clara_results.errors import InvalidInput, ServiceUnavailable
from clara_results.settings import Settings, variable

PAUSES = (1.0, 30.0)
"""Seconds before a child that died is started again: at first, and at most."""
STEADY = 60.0
"""Seconds after which a child that ran counts as well again."""
START_LIMIT = 30.0
END_LIMIT = 15.0
_PR_SET_PDEATHSIG = 1
_log = logging.getLogger(__name__)


def up(
    data: Data = None,
    host: Host = None,
    port: Port = None,
    payloads: Payloads = None,
    anonymous: Anonymous = None,
    insecure: Insecure = None,
    ae_title: AeTitle = None,
    log_format: LogFormat = None,
    log_level: LogLevel = None,
    config: Config = None,
) -> None:
    """Run the Results Service and its agents on this machine until asked to end (SIGTERM, Ctrl-C).

    The agents are DICOM, DICOMweb and, where it is installed, render.

    Further settings of each come from the environment or --config.
    """
    settings = options.settings(
        config, data=data, host=host, port=port, payloads=payloads, ae_title=ae_title,
        anonymous=anonymous or None, insecure=insecure, log_format=log_format, log_level=log_level,
    )  # fmt: skip
    set_up_logging(settings)
    raise typer.Exit(_Supervisor(settings, config).run())


@dataclass(slots=True)
class _Child:
    """One program that is to run all the time."""

    name: str
    command: list[str]
    process: subprocess.Popen[str] | None = None
    started_at: float = 0.0
    start_at: float = 0.0
    pause: float = field(default=PAUSES[0])


class _Supervisor:
    def __init__(self, settings: Settings, config: Path | None) -> None:
        self._settings = settings
        self._end = threading.Event()
        self._environment = _environment(settings, config)
        self._names = {
            "dicom": settings.ae_title,
            "dicomweb": settings.agent_name,
            "render": settings.render_name,
        }

    def run(self) -> int:
        """Run all children until asked to end; return the exit code."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._asked_to_end)
        service = _Child("service", [*_PROGRAM, "serve"])
        children = [service]
        try:
            url = self._start_service(service)
            self._environment[variable("service")] = url
            self._environment[variable("port")] = url.rpartition(":")[2]
            agents = self._agents()
            for kind, name in agents.items():
                agent = _Child(f"{name} agent", [*_PROGRAM, "agent", kind])
                children.append(agent)
                self._start(agent)
            names = ", ".join(f"{name} agent {self._names[kind]}" for kind, name in agents.items())
            typer.echo(f"Clara Results is up: service {url}, {names}")
            while not self._end.wait(0.2):
                for child in children:
                    self._look_after(child)
        except _Ended as ended:
            return ended.code
        finally:
            _end_all(children[::-1])
        return 0

    def _agents(self) -> dict[str, str]:
        """Return the kinds of agents that run, and what they are called; the render agent where it is installed."""
        agents = {"dicom": "DICOM", "dicomweb": "DICOMweb"}
        try:
            check_installed()
        except ModuleNotFoundError as error:
            _log.info("no render agent: %s is not installed (clara-results[render])", error.name)
        else:
            agents["render"] = "render"
        return agents

    def _start_service(self, child: _Child) -> str:
        self._start(child, stdout=subprocess.PIPE)
        process = child.process
        if process is None or process.stdout is None:
            raise _Ended(1)
        line = process.stdout.readline()
        if not line:
            raise _Ended(process.wait() or 1)
        threading.Thread(target=_pass_on, args=(process.stdout.readline,), daemon=True).start()
        url = line.split(" on ", 1)[1].split(" ", 1)[0]
        client = ResultsClient(url)
        deadline = time.monotonic() + START_LIMIT
        while not self._end.is_set():
            try:
                client.ready()
            except ServiceUnavailable:
                if time.monotonic() > deadline:
                    raise
                self._end.wait(0.1)
            else:
                return url
        raise _Ended(0)

    def _start(self, child: _Child, stdout: int | None = None) -> None:
        child.started_at = time.monotonic()
        child.process = subprocess.Popen(  # noqa: S603  (our own program)
            child.command,
            env=self._environment,
            stdout=stdout,
            text=True,
            preexec_fn=_die_with_parent,  # noqa: PLW1509  (one prctl, before any thread could be in the way)
            start_new_session=True,  # Ctrl-C is ours to pass on, once
        )

    def _look_after(self, child: _Child) -> None:
        now = time.monotonic()
        if child.process is None:
            if now >= child.start_at:
                self._start(child)
            return
        code = child.process.poll()
        if code is None:
            if now - child.started_at > STEADY:
                child.pause = PAUSES[0]
            return
        if code == InvalidInput.exit_code:
            raise _Ended(code)  # its settings are wrong: no second start would mend that
        _log.error(
            "the %s ended with %d; it is started again in %.0f s", child.name, code, child.pause
        )
        child.process = None
        child.start_at = now + child.pause
        child.pause = min(child.pause * 2, PAUSES[1])

    def _asked_to_end(self, _signal: int, _frame: FrameType | None) -> None:
        self._end.set()


class _Ended(Exception):
    """Nothing more is to be run."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


_PROGRAM = [sys.executable, "-m", "clara_results"]


def _environment(settings: Settings, config: Path | None) -> dict[str, str]:
    """Return the environment that gives children the flags of ``up``."""
    given = {
        "data": settings.data,
        "host": settings.host,
        "port": settings.port,
        "payloads": settings.payload_folder,
        "anonymous": ";".join(settings.anonymous),
        "insecure": settings.insecure,
        "ae_title": settings.ae_title,
        "agent_name": settings.agent_name,
        "render_name": settings.render_name,
        "log_format": settings.log_format,
        "log_level": settings.log_level,
    }
    made = os.environ | {variable(name): str(value) for name, value in given.items()}
    return made | ({variable("config"): str(config)} if config else {})


def _die_with_parent() -> None:
    """Have the kernel end a child whose parent was killed, so that nothing is left running (prctl(2))."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _pass_on(readline: Callable[[], str]) -> None:
    while line := readline():
        sys.stdout.write(line)


def _end_all(children: Sequence[_Child]) -> None:
    running = [child.process for child in children if child.process is not None]
    for process in running:
        process.terminate()
        # One after the other: agents first, so that they can still give their work back.
        try:
            process.wait(END_LIMIT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
