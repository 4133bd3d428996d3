"""``clara-results pipeline``: check, run and translate pipeline definitions."""

import json
import os
import secrets
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from clara_results.cli import options
from clara_results.cli.options import Config, Data, Json, Payloads, Service, TokenFile
from clara_results.cli.output import show_json
from clara_results.client import ResultsClient
from clara_results.domain import names
from clara_results.domain.clock import SystemClock
from clara_results.errors import (
    ClaraResultsError,
    FieldError,
    InvalidInput,
    OperatorFailed,
    Stopping,
)
from clara_results.settings import Settings, variable

if TYPE_CHECKING:
    from clara_results.pipeline.definition import Definition
    from clara_results.pipeline.faults import Fault
    from clara_results.pipeline.images import LocalImage
    from clara_results.pipeline.record import RunFolder, RunRecord
    from clara_results.pipeline.registering import Registration
    from clara_results.pipeline.running import RunPlan

app = typer.Typer(help="Check pipeline definitions, run them here, and translate them for a cluster.", no_args_is_help=True)  # fmt: skip
TIMEOUT = 3600.0
"""Seconds for which an operator may run."""
IMAGES = "images.yaml"

File = Annotated[Path, typer.Argument(help="The pipeline definition (api-version 0.4.0).", show_default=False)]  # fmt: skip
Images = Annotated[
    Path | None,
    typer.Option("--images", help="File that says which command stands for each image on this machine; default: images.yaml beside the definition.", show_default=False),
]  # fmt: skip
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Value of a parameter of the pipeline, instead of its default; repeatable.", show_default=False),
]  # fmt: skip
Timeout = Annotated[float, typer.Option("--timeout", min=0.001, help="Seconds for which an operator may run.")]  # fmt: skip


class Target(StrEnum):
    """What a definition can be translated to."""

    ARGO = "argo"


@app.command("check")
def check(
    file: File,
    images: Images = None,
    values: Set = None,
    service: Annotated[
        str | None,
        typer.Option("--service", help="URL of a Results Service: ask it whether it knows the agents, and whether each destination exists and answers.", show_default=False),
    ] = None,
    as_json: Json = False,
    token_file: TokenFile = None,
    config: Config = None,
) -> None:  # fmt: skip
    """Say all that is wrong with a pipeline definition, with line and column. Exit code 2 if anything is."""
    with _installed():
        from clara_results.pipeline.checking import read_definition
        from clara_results.pipeline.faults import Faults
        from clara_results.pipeline.registering import check_register_steps, check_with_service

    definition, faults = read_definition(file, _values(values))
    where = images or file.parent / IMAGES
    if images is not None or where.is_file():
        faults += _images(file, definition, where)[1]
    unanswered: ClaraResultsError | None = None
    if definition is not None:
        found = Faults(str(file))
        asked = check_register_steps(definition, _register_command, found)
        if service is not None and asked:
            client = options.client(config, service, token_file)
            try:
                check_with_service(definition, asked, client, found)
            except ClaraResultsError as error:
                unanswered = error
        faults += found.found
    _tell(file, definition, sorted(faults), as_json)
    if faults:
        raise typer.Exit(InvalidInput.exit_code)
    if unanswered is not None:
        raise unanswered


def _tell(
    file: Path, definition: "Definition | None", faults: Sequence["Fault"], as_json: bool
) -> None:
    if as_json:
        operators = [str(each.name) for each in definition.operators] if definition else None
        told = {"file": str(file), "ok": not faults, "operators": operators, "faults": [asdict(fault) for fault in faults]}  # fmt: skip
        sys.stdout.write(json.dumps(told, indent=2, ensure_ascii=False) + "\n")
        return
    console = Console(soft_wrap=True, highlight=False)
    for fault in faults:
        place, _, rest = str(fault).partition(": ")
        console.print(Text.assemble((place, "bold"), ": ", rest))
    if faults:
        console.print(f"{len(faults)} fault{'' if len(faults) == 1 else 's'}")
    elif definition is not None:
        console.print(f"{file}: {definition.name}, {len(definition.operators)} operators, no fault")


@app.command("run")
def run(
    file: File,
    source: Annotated[
        Path | None,
        typer.Option("--input", help="Folder of the pipeline's input; it is copied into the payload.", show_default=False),
    ] = None,
    images: Images = None,
    values: Set = None,
    job: Annotated[
        str | None, typer.Option("--job", help="The job's id, and the payload's; default: made of the pipeline's name and the time.", show_default=False)
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option("--resume", metavar="JOB", help="Go on with a job that failed or was ended: what succeeded, and is still the same, is not run again.", show_default=False),
    ] = None,
    jobs: Annotated[int | None, typer.Option("--jobs", min=1, help="Operators that run side by side, at most; default: one for each processor.", show_default=False)] = None,
    timeout: Timeout = TIMEOUT,
    upload: Annotated[bool, typer.Option("--upload", help="The service does not see the payloads' folder: register steps upload their files.")] = False,
    as_json: Json = False,
    data: Data = None,
    payloads: Payloads = None,
    service: Service = None,
    token_file: TokenFile = None,
    config: Config = None,
) -> None:  # fmt: skip
    """Run a pipeline on this machine, without a container engine."""
    with _installed():
        from clara_results.pipeline.record import RunFolder
        from clara_results.pipeline.running import RunPlan

    if (source is None) == (resume is None):
        raise InvalidInput("give either --input, to begin a run, or --resume, to go on with one")
    if resume is not None and job is not None:
        raise InvalidInput("--job can't be given with --resume, which names the job itself")
    settings = options.settings(config, data=data, payloads=payloads, service=service, token_file=token_file)  # fmt: skip
    given_job = resume or job
    chosen = names.payload_id(given_job) if given_job else None
    runs = settings.data.absolute() / "runs"
    folder = RunFolder.open(runs / chosen) if resume and chosen else None
    try:
        earlier = folder.load() if folder else None
        given = (earlier.parameters if earlier else {}) | _values(values)
        definition, stand_ins = _runnable(file, images or file.parent / IMAGES, given)
        plan = RunPlan(
            definition=definition,
            images=stand_ins,
            job_id=chosen or _new_job(definition),
            payloads=settings.payload_folder.absolute(),
            service=settings.service_url,
            jobs=jobs or os.cpu_count() or 1,
            timeout=timeout,
            upload=upload,
            environment=_environment(settings, config),
        )
        _require_service(plan, settings)
        if folder is None:
            folder = _begin(plan, runs, source)
        record = _execute(plan, folder, earlier, as_json)
    finally:
        if folder is not None:
            folder.close()
    _end(plan, record, as_json)


def _runnable(
    file: Path, images: Path, given: Mapping[str, str]
) -> tuple["Definition", dict[str, "LocalImage"]]:
    """Return a definition that can be run here, and what stands for its images.

    Raises:
        InvalidInput: It can't; the message says all that is wrong.
    """
    from clara_results.pipeline.checking import read_definition
    from clara_results.pipeline.faults import Faults, refuse
    from clara_results.pipeline.registering import check_register_steps

    definition, faults = read_definition(file, given)
    found, wrong = _images(file, definition, images)
    if definition is not None:
        steps = Faults(str(file))
        check_register_steps(definition, _register_command, steps)
        wrong += steps.found
    refuse([*faults, *wrong])
    assert definition is not None, "without a fault there is a definition"  # noqa: S101
    return definition, found


def _images(
    file: Path, definition: "Definition | None", path: Path
) -> tuple[dict[str, "LocalImage"], list["Fault"]]:
    """Return what stands for a definition's images, and what is wrong with that."""
    from clara_results.pipeline.images import image_faults, read_images

    found, faults = read_images(path)
    if definition is not None and not faults:
        faults = image_faults(str(file), definition, str(path), found)
    return found, faults


def _require_service(plan: "RunPlan", settings: Settings) -> None:
    """Find out at the beginning, not after hours, that results could not be registered.

    Raises:
        ServiceUnavailable: The service does not answer.
    """
    if _registers(plan):
        ResultsClient(settings.service_url, token=settings.bearer_token()).ready()


def _begin(plan: "RunPlan", runs: Path, source: Path | None) -> "RunFolder":
    """Make a new run's folder and payload; nothing is left of them if they can't be made."""
    from clara_results.pipeline.payload import make_payload
    from clara_results.pipeline.record import RunFolder

    folder = RunFolder.make(runs / plan.job_id)
    try:
        make_payload(plan.payload, source or Path())
    except BaseException:
        folder.close()
        shutil.rmtree(folder.path)
        raise
    return folder


def _execute(
    plan: "RunPlan", folder: "RunFolder", earlier: "RunRecord | None", quiet: bool
) -> "RunRecord":
    """Run what is to be run, and show it.

    Raises:
        Stopping: A signal ended it.
    """
    from clara_results.cli.pipeline_view import View, summarise
    from clara_results.pipeline.running import Run

    clock = SystemClock()
    view = View(clock, folder.path / "logs", quiet=quiet)
    made = Run(plan, folder, clock, view.changed, earlier)
    if not quiet:
        Console(stderr=True, soft_wrap=True, highlight=False).print(f"job {plan.job_id}, payload {plan.payload}, logs {folder.path / 'logs'}")  # fmt: skip
    with view.shown(made.record.steps):
        record = made.execute()
    if quiet:
        show_json(record)
    else:
        summarise(record)
    if made.stopped_by is not None:
        error = Stopping(
            f"ended by {made.stopped_by.name}; --resume {plan.job_id} instead of --input goes on with it"
        )
        error.exit_code = 128 + made.stopped_by
        raise error
    return record


def _end(plan: "RunPlan", record: "RunRecord", quiet: bool) -> None:
    """Say how to go on.

    Raises:
        OperatorFailed: An operator did not end well.
    """
    from clara_results.cli.pipeline_view import TAIL, tail
    from clara_results.pipeline.record import StepState

    failed = record.those(StepState.FAILED)
    if failed:
        lines = []
        for step in failed:
            log = Path(record.logs) / f"{step.operator}.log"
            lines.append(f"the operator {step.operator} failed: {step.reason}; its log is {log}")
            lines += [f"    {line}" for line in tail(log, TAIL)]
        if left := [step.operator for step in record.those(StepState.WAITING)]:
            lines.append(f"not run: {', '.join(left)}")
        lines.append(f"once that is mended, go on by the same command with --resume {record.job_id} instead of --input")  # fmt: skip
        raise OperatorFailed(
            "\n".join(lines),
            errors=[FieldError(step.operator, step.reason or "") for step in failed],
        )
    if not quiet and _registers(plan):
        Console(stderr=True, soft_wrap=True, highlight=False).print(f"what was registered: clara-results tasks list --job {record.job_id}")  # fmt: skip


def _registers(plan: "RunPlan") -> bool:
    from clara_results.pipeline.registering import arguments

    return any(arguments(operator) is not None for operator in plan.definition.operators)


def _environment(settings: Settings, config: Path | None) -> dict[str, str]:
    """Return what operators inherit: this process's environment, and what its flags say of the service."""
    made = dict(os.environ)
    if config is not None:
        made[variable("config")] = str(config.absolute())
    if settings.token_file is not None:
        made[variable("token_file")] = str(settings.token_file.absolute())
    return made


def _new_job(definition: "Definition") -> str:
    moment = SystemClock().now().strftime("%Y%m%d-%H%M%S")
    return names.payload_id(f"{definition.name[:100]}-{moment}-{secrets.token_hex(2)}")


@app.command("export")
def export(
    file: File,
    to: Annotated[Target, typer.Option("--to", help="What for.")],
    values: Set = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File to write; default: stdout.", show_default=False)] = None,
    service: Annotated[str, typer.Option("--service", help="URL of the Results Service, as the cluster's pods see it.")] = "http://clara-results:8088",
    claim: Annotated[str, typer.Option("--claim", help="Persistent volume claim of the payloads: the service's own.")] = "clara-results-payloads",
    token_secret: Annotated[str, typer.Option("--token-secret", help="Secret whose key token is a token for the service; where there is none, register steps show none.")] = "clara-results-register",  # noqa: S107  (the name of one)
    timeout: Timeout = TIMEOUT,
) -> None:  # fmt: skip
    """Translate a pipeline for a cluster: a manifest that Argo Workflows runs."""
    with _installed():
        from clara_results.pipeline import argo
        from clara_results.pipeline.checking import read_definition
        from clara_results.pipeline.faults import Faults, refuse
        from clara_results.pipeline.registering import check_register_steps

    assert to is Target.ARGO, "there is one target"  # noqa: S101
    definition, faults = read_definition(file, _values(values))
    if definition is not None:
        found = Faults(str(file))
        check_register_steps(definition, _register_command, found)
        faults += found.found
    refuse(faults)
    assert definition is not None, "without a fault there is a definition"  # noqa: S101
    made = argo.workflow(
        definition,
        service=names.http_url(service).rstrip("/"),
        claim=claim,
        token_secret=token_secret,
        timeout=timeout,
    )
    text = argo.to_yaml(made)
    if output is None:
        sys.stdout.write(text)
        return
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InvalidInput(f"--output {output}: {error.strerror or error}") from error


def _values(given: Iterable[str] | None) -> dict[str, str]:
    found = {}
    for text in given or ():
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise InvalidInput(f"--set {text!r}: write NAME=VALUE")
        found[name] = value
    return found


def _register_command(words: Sequence[str]) -> "Registration":
    """Read a register step's arguments as ``register`` itself would.

    Raises:
        InvalidInput: It would refuse them.
    """
    from clara_results.operator import arguments, data
    from clara_results.pipeline.registering import Registration

    if {"-h", "--help"} & set(words):
        raise InvalidInput("--help registers nothing", code="usage")
    flags = arguments.parse(words, "register.py")
    elements = [] if flags.data is None else data.parse(flags.data)
    return Registration(flags.agent, tuple(each for each in elements if isinstance(each, str)))


@contextmanager
def _installed() -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        raise InvalidInput(
            f"pipelines need the package {error.name}: install clara-results[pipeline]",
            code="not-installed",
        ) from error
