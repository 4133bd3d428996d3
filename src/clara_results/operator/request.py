"""Who registers what, for whom, and from where: of flags, environment and settings."""

import os
from argparse import Namespace
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from clara_results import settings
from clara_results.domain import names, platform
from clara_results.domain.platform import INPUT_PATHS
from clara_results.errors import ClaraResultsError, FieldError, InvalidInput
from clara_results.operator import data
from clara_results.operator.scan import Input

T = TypeVar("T")

DEFAULT_INPUT = "/input"

IDS = {
    "job": (platform.JOB_ID, "the platform's job"),
    "pipeline": (platform.PIPELINE_ID, "the platform's pipeline"),
    "payload": (platform.PAYLOAD_ID, "the payload that the files belong to"),
    "operator": (platform.OPERATOR_NAME, "this step's name in the pipeline"),
}
"""For each id that a registration needs: its environment variable, and what it is."""

_SETTINGS = ("service", "token_file", "payloads", "timeout")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A registration that is asked for; nothing has been read yet.

    Attributes:
        agent: The agent's name, in lower case.
        data: One element a task; None: one task without parameters.
        job_id: The platform's job; likewise pipeline and payload.
        operator: The pipeline step.
        inputs: The folders whose files are results.
        service: URL of the service; None only in a dry run.
        token: Bearer token.
        timeout: Seconds for which to try while the service is away.
    """

    agent: str
    data: list[Any] | None
    job_id: str
    pipeline_id: str
    payload_id: str
    operator: str
    inputs: tuple[Input, ...]
    service: str | None
    token: str | None
    timeout: float


class _Faults:
    """Gathers all that is wrong, to say it at once."""

    def __init__(self) -> None:
        self.missing: list[FieldError] = []
        self.wrong: list[ClaraResultsError] = []

    def check(self, action: Callable[[], T], otherwise: T) -> T:
        try:
            return action()
        except ClaraResultsError as error:
            self.wrong.append(error)
            return otherwise

    def raise_any(self) -> None:
        if self.missing:
            listing = "\n".join(f"  {fault.field}: {fault.message}" for fault in self.missing)
            self.wrong.insert(
                0,
                InvalidInput(f"this is missing:\n{listing}", code="missing", errors=self.missing),
            )
        if len(self.wrong) == 1:
            raise self.wrong[0]
        if self.wrong:
            raise InvalidInput(
                "\n".join(map(str, self.wrong)),
                errors=[f for e in self.wrong for f in e.errors or [FieldError(e.code, str(e))]],
            )


def resolve(flags: Namespace, environment: Mapping[str, str]) -> Request:
    """Gather a request: flag, else environment, else settings file.

    Raises:
        InvalidInput: Something is missing or wrong; the message says all of it at once.
    """
    faults = _Faults()
    loaded = faults.check(lambda: _load(flags, environment), None)
    values = loaded or settings.Settings()
    ids = {
        name: getattr(flags, name) or environment.get(variable, "").strip()
        for name, (variable, _) in IDS.items()
    }
    faults.missing += [
        FieldError(name, f"--{name} or {variable} ({meaning})")
        for name, (variable, meaning) in IDS.items()
        if not ids[name]
    ]
    if loaded and not values.service and not flags.dry_run:
        faults.missing.append(
            FieldError(
                "service",
                f"--service, {settings.variable('service')}, or the platform's "
                f"{settings.SERVICE_HOST} and {settings.SERVICE_PORT} (URL of the Results Service)",
            )
        )
    agent = flags.agent
    if agent is None:
        faults.missing.append(FieldError("agent", "--agent (who is to take the results up)"))
    else:
        agent = faults.check(lambda: _given(agent, names.agent_name), "")
    if ids["payload"]:
        faults.check(lambda: _given(ids["payload"], names.payload_id), "")
    if ids["operator"]:
        faults.check(lambda: _name(ids["operator"], "operator"), "")
    elements = faults.check(lambda: None if flags.data is None else data.parse(flags.data), None)
    inputs: tuple[Input, ...] = faults.check(lambda: _inputs(flags, environment), ())
    token = faults.check(values.bearer_token, None)
    faults.raise_any()
    return Request(
        agent=agent,
        data=elements,
        job_id=ids["job"],
        pipeline_id=ids["pipeline"],
        payload_id=ids["payload"],
        operator=ids["operator"],
        inputs=_in_payload(inputs, values.payloads, ids["payload"]),
        service=values.service,
        token=token,
        timeout=values.timeout,
    )


def _load(flags: Namespace, environment: Mapping[str, str]) -> settings.Settings:
    given = {name: getattr(flags, name) for name in _SETTINGS}
    config = Path(flags.config) if flags.config else None
    return settings.load(given, environment, config).settings


def _inputs(flags: Namespace, environment: Mapping[str, str]) -> tuple[Input, ...]:
    """Return the inputs with the prefixes that were given for them."""
    variable = environment.get(INPUT_PATHS, "")
    if flags.input:
        pairs = [_flag_input(text) for text in flags.input]
    elif variable.strip(" ;"):
        pairs = [_mapped_input(text) for text in _parts(variable)]
    else:
        pairs = [_flag_input(DEFAULT_INPUT)]
    inputs: dict[str, Input] = {}
    for name, path in pairs:
        if name.casefold() in inputs:
            raise InvalidInput(
                f"two inputs are named {name}: names differ, without regard to case",
                code="duplicate-input",
            )
        inputs[name.casefold()] = Input(name, os.path.abspath(path))  # noqa: PTH100
    for name, prefix in _prefixes(
        flags.input_uri or _parts(environment.get(settings.INPUT_URIS, ""))
    ):
        if name.casefold() not in inputs:
            known = ", ".join(each.name for each in inputs.values())
            raise InvalidInput(
                f"--input-uri (or {settings.INPUT_URIS}) names the input {name!r}, which is not mapped; "
                f"mapped: {known}",
                code="unknown-input",
            )
        if inputs[name.casefold()].prefix is not None:
            raise InvalidInput(f"--input-uri for {name} is given twice", code="duplicate-input")
        each = inputs[name.casefold()]
        inputs[name.casefold()] = Input(each.name, each.path, prefix)
    return tuple(inputs.values())


def _parts(variable: str) -> list[str]:
    return [part.strip() for part in variable.split(";") if part.strip()]


def _flag_input(text: str) -> tuple[str, str]:
    """Split ``[NAME=]PATH``; a path without a name is named for its last part."""
    name, equals, path = text.partition("=")
    if not equals or "/" in name:
        name, path = os.path.basename(os.path.abspath(text)), text  # noqa: PTH100, PTH119
    if not path:
        raise InvalidInput(f"--input {text!r} has no path: --input NAME=PATH", code="invalid-input")
    return _name(name, f"input of --input {text!r}", "; name it: --input NAME=PATH"), path


def _mapped_input(text: str) -> tuple[str, str]:
    name, _, path = (part.strip() for part in text.partition(":"))
    if not path.startswith("/"):
        raise InvalidInput(
            f"{INPUT_PATHS} has {text!r}: each entry is NAME:/PATH, several joined by ';'",
            code="invalid-input-paths",
        )
    return _name(name, f"input in {INPUT_PATHS}"), path


def _prefixes(texts: Iterable[str]) -> Sequence[tuple[str, str]]:
    found = []
    for text in texts:
        name, equals, prefix = (part.strip() for part in text.partition("="))
        if not equals or not name:
            raise InvalidInput(
                f"--input-uri (or {settings.INPUT_URIS}) has {text!r}: each entry is NAME=PREFIX, where "
                "PREFIX is the input's folder within the payload ('.': the whole payload)",
                code="invalid-input-uri",
            )
        prefix = "" if prefix == "." else prefix.removesuffix("/") if prefix != "/" else prefix
        found.append((name, _given(prefix, names.file_uri) if prefix else ""))
    return found


def _given(value: str, check: Callable[[str], str]) -> str:
    """Check a value; a message shows it, as it was given on this very command line."""
    try:
        return check(value)
    except InvalidInput as error:
        raise type(error)(f"{value!r}: {error}", code=error.code) from error


def _name(name: str, what: str, remedy: str = "") -> str:
    try:
        return platform.pipeline_name(name)
    except InvalidInput as error:
        raise InvalidInput(
            f"{name!r} is not a name for the {what}: {platform.PIPELINE_NAME_RULE}{remedy}",
            code=error.code,
        ) from error


def _in_payload(
    inputs: Iterable[Input], payloads: Path | None, payload_id: str
) -> tuple[Input, ...]:
    """Give every input that really lies in the payload's folder its place there."""
    if payloads is None:
        return tuple(inputs)
    folder = os.path.realpath(payloads / payload_id)
    placed = []
    for each in inputs:
        below = os.path.relpath(os.path.realpath(each.path), folder)
        if each.prefix is None and below.split("/")[0] != "..":
            each = Input(each.name, each.path, "" if below == "." else below)  # noqa: PLW2901
        placed.append(each)
    return tuple(placed)
