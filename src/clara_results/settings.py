"""All settings, what they mean, and where their values come from: flag, else environment, else file, else default.

A setting ``retry_delay`` is the flag ``--retry-delay`` of the commands that use it, the environment variable
``CLARA_RESULTS_RETRY_DELAY``, and the key ``retry_delay`` of the TOML file that ``--config`` (or
``CLARA_RESULTS_CONFIG``) names. All are checked together, and all that is wrong is said at once.

Kubernetes gives every container variables for every service of its namespace, among them
``CLARA_RESULTS_PORT=tcp://10.0.0.1:8088`` if a service is called clara-results. They are not settings: a
value of that shape is passed over.
"""

import dataclasses
import difflib
import ipaddress
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clara_results.domain import names
from clara_results.domain.scopes import AnonymousGrant, parse_grant
from clara_results.errors import ClaraResultsError, FieldError, InvalidInput, SettingsInvalid

PREFIX = "CLARA_RESULTS_"
INPUT_URIS = PREFIX + "INPUT_URIS"
"""Which part of the payload each input of an operator is: ``name=prefix``, several joined by ``;``."""
SERVICE_HOST = "CLARA_RESULTSSERVICE_SERVICE_HOST"
SERVICE_PORT = "CLARA_RESULTSSERVICE_SERVICE_PORT"
DEFAULT_DATA = Path("~/.local/share/clara-results")
LOG_FORMATS = ("auto", "console", "json")
LOG_LEVELS = ("debug", "info", "warning", "error")

_KUBERNETES_LINK = re.compile(r"(?:tcp|udp|sctp)://", re.ASCII)
_KUBERNETES_NAME = re.compile(
    r"CLARA_RESULTS_(?:\w+_)?(?:SERVICE_HOST|SERVICE_PORT(?:_\w+)?|PORT(?:_\d+_(?:TCP|UDP|SCTP)\w*)?)"
)


YEAR = 366 * 86_400.0
"""The most seconds of any setting."""


def _setting(
    default: Any,
    text: str,
    *,
    secret: bool = False,
    least: float | None = None,
    most: float = YEAR,
) -> Any:
    return dataclasses.field(
        default=default,
        repr=not secret,
        metadata={"help": text, "secret": secret, "least": least, "most": most},
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Every setting of every command; ``load`` makes one."""

    service: str | None = _setting(
        None, "URL of the Results Service; if not given, made of the platform's "
        f"{SERVICE_HOST} and {SERVICE_PORT}, else http://127.0.0.1:8088"
    )  # fmt: skip
    token: str | None = _setting(None, "bearer token for the service", secret=True)
    token_file: Path | None = _setting(None, "file that holds the bearer token")
    data: Path = _setting(DEFAULT_DATA, "folder of the service's database and payloads")
    host: str = _setting("127.0.0.1", "address that the service listens on")
    port: int = _setting(8088, "port that the service listens on; 0: any free one", least=0)
    anonymous: tuple[str, ...] = _setting(
        (), "what callers without a token may do, by their network, such as "
        "register,agent:clarascu@10.42.0.0/16; several times, or several joined by ;"
    )  # fmt: skip
    insecure: bool = _setting(
        False, "listen beyond loopback although anyone who reaches the port may do anything"
    )
    database: str | None = _setting(
        None,
        "sqlite:///PATH or postgresql://USER@HOST/NAME; if not given, clara-results.db in the data folder",
    )
    payloads: Path | None = _setting(
        None, "folder of the payloads; the service's is in the data folder if not given"
    )
    retry_delay: float = _setting(
        30.0, "seconds before a failed delivery's first retry; doubled with each", least=0.0
    )
    retry_delay_max: float = _setting(3600.0, "longest seconds between retries", least=0.0)
    max_retries: int = _setting(3, "retries of a task that does not say", least=0, most=1000)
    give_up: float = _setting(
        259200.0, "seconds for which a destination may be unavailable before its tasks fail", least=0.0
    )  # fmt: skip
    commitment_deadline: float = _setting(
        86_400.0, "seconds for which a receiver may take to commit itself before its task fails", least=1.0
    )  # fmt: skip
    commitment_wait: float = _setting(
        600.0, "seconds of a receiver's silence after which it is asked again to commit itself", least=1.0
    )  # fmt: skip
    patient_columns: bool = _setting(
        True, "keep patient ids and accession numbers, so that results are found by them"
    )
    retention: float = _setting(
        28_800.0, "seconds after a payload's last use for which uploaded files are kept once all its tasks "
        "are Succeeded; 0: for ever", least=0.0
    )  # fmt: skip
    retention_failed: float = _setting(
        604_800.0, "the same for a payload with a Failed or Canceled task", least=0.0
    )
    own_payloads: bool = _setting(
        False, "remove files in place too, and with them the payload's whole folder"
    )
    keep_tasks: float = _setting(
        7_776_000.0, "seconds for which finished tasks stay to be read; 0: for ever", least=0.0
    )
    datasets: Path | None = _setting(
        None, "folder of the datasets that the viewer shows; in the data folder if not given"
    )
    keep_datasets: float = _setting(
        2_592_000.0, "seconds after a dataset was published, or its view saved, for which it is kept; 0: for ever",
        least=0.0
    )  # fmt: skip
    disk_low: int = _setting(
        1 << 30, "bytes of the payloads' disk that uploads leave free; 0: none", least=0, most=1 << 60
    )  # fmt: skip
    lease: int = _setting(60, "seconds of an agent's lease on a task", least=1, most=86_400)
    parallel: int = _setting(4, "tasks that an agent delivers side by side", least=1, most=100)
    ae_title: str = _setting("ClaraSCU", "the DICOM agent's calling AE title, and its agent name")
    secrets: Path | None = _setting(
        None, "folder of the certificates, passwords and tokens that destinations name"
    )
    listen_port: int | None = _setting(
        None, "port on which the DICOM agent takes reports of storage commitment; not given: it does not listen",
        least=0
    )  # fmt: skip
    listen_host: str = _setting("0.0.0.0", "address that the DICOM agent listens on, if it does")  # noqa: S104
    listen_certificate: str | None = _setting(
        None,
        "name of the secret that holds the certificate (PEM) to listen with; not given: no TLS",
    )
    listen_key: str | None = _setting(
        None, "name of the secret that holds the key of listen_certificate, if that does not"
    )
    listen_ca: str | None = _setting(
        None,
        "name of the secret that holds the authorities (PEM) of which callers must have certificates",
    )
    connect_timeout: float = _setting(
        10.0, "seconds for a TCP connection to a receiver", least=0.01
    )
    association_timeout: float = _setting(30.0, "seconds for a receiver to accept an association", least=0.01)  # fmt: skip
    dimse_timeout: float = _setting(60.0, "seconds for a receiver to answer an instance", least=0.01)  # fmt: skip
    task_timeout: float = _setting(
        21_600.0, "seconds for all instances of a task; what is left then is sent in another attempt", least=1.0
    )  # fmt: skip
    idle_timeout: float = _setting(
        1.0, "seconds for which an association is kept open for the next task; 0: none is", least=0.0, most=60.0
    )  # fmt: skip
    max_pdu: int = _setting(
        131_072, "bytes of the largest PDU that is taken, and that is sent where the receiver sets no limit",
        least=16_384, most=1 << 20
    )  # fmt: skip
    agent_name: str = _setting("DICOMweb", "the DICOMweb agent's name")
    render_name: str = _setting("renderserver", "the render agent's name")
    answer_timeout: float = _setting(
        60.0, "seconds for a DICOMweb service to answer a request", least=0.01
    )
    batch_files: int = _setting(
        50, "instances that go to a DICOMweb service in one request, at most", least=1, most=500
    )
    batch_bytes: int = _setting(
        4 << 20, "bytes that do, at most; a single instance may have more", least=1, most=1 << 40
    )  # fmt: skip
    timeout: float = _setting(
        120.0, "seconds for which a registration is tried while the service is away", least=0.0
    )
    log_format: str = _setting("auto", "json, console, or auto: console on a terminal")
    log_level: str = _setting("info", "debug, info, warning or error")

    @property
    def database_url(self) -> str:
        """The database's URL, with the default filled in."""
        return self.database or f"sqlite:///{self.data / 'clara-results.db'}"

    @property
    def payload_folder(self) -> Path:
        """The service's payload folder, with the default filled in."""
        return self.payloads or self.data / "payloads"

    @property
    def dataset_folder(self) -> Path:
        """The folder of the datasets, with the default filled in."""
        return self.datasets or self.data / "datasets"

    @property
    def service_url(self) -> str:
        """The service's URL, with the default filled in."""
        return self.service or "http://127.0.0.1:8088"

    @property
    def grants(self) -> tuple[AnonymousGrant, ...]:
        """What ``anonymous`` grants."""
        return tuple(parse_grant(text) for text in self.anonymous)

    @property
    def loopback(self) -> bool:
        """Whether only callers on this machine reach the service."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    def bearer_token(self) -> str | None:
        """Return the token for the service, from the setting or the file.

        Raises:
            SettingsInvalid: The file can't be read, or is empty.
        """
        if self.token is not None or self.token_file is None:
            return self.token
        try:
            token = self.token_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsInvalid(f"token_file {self.token_file} can't be read: {error}") from error
        if not token:
            raise SettingsInvalid(f"token_file {self.token_file} is empty")
        return token


@dataclass(frozen=True, slots=True)
class Loaded:
    """Settings, and for each where its value came from.

    Attributes:
        settings: The values.
        sources: For each setting's name: ``flag``, ``environment NAME``, ``file PATH`` or ``default``.
        notes: What was passed over, for ``config show``.
    """

    settings: Settings
    sources: Mapping[str, str]
    notes: tuple[str, ...]


FIELDS = {field.name: field for field in dataclasses.fields(Settings)}
_HINTS = typing.get_type_hints(Settings)


def load(
    flags: Mapping[str, Any], environment: Mapping[str, str], config: Path | None = None
) -> Loaded:
    """Gather the settings from all their sources and check them as a whole.

    Args:
        flags: Values given on the command line by setting's name; None: not given.
        environment: The process's environment.
        config: TOML file; None: the one that ``CLARA_RESULTS_CONFIG`` names, if any.

    Raises:
        SettingsInvalid: One or more values are wrong; ``errors`` has each, the message all of them.
    """
    faults: list[FieldError] = []
    notes: list[str] = []
    raw: dict[str, tuple[Any, str]] = {}
    path = config or (Path(p) if (p := environment.get(PREFIX + "CONFIG")) else None)
    if path is not None:
        raw.update(_from_file(path, faults))
    raw.update(_from_environment(environment, notes))
    raw.update({name: (value, "flag") for name, value in flags.items() if value is not None})
    values: dict[str, Any] = {}
    for name, (value, source) in raw.items():
        try:
            values[name] = _checked(name, value)
        except (ValueError, ClaraResultsError) as error:
            faults.append(FieldError(name, f"{error} (from {source})"))
    if faults:
        listing = "\n".join(f"  {fault.field}: {fault.message}" for fault in faults)
        raise SettingsInvalid(f"settings that can't be used:\n{listing}", errors=faults)
    values.setdefault("data", DEFAULT_DATA.expanduser())
    sources = {name: raw[name][1] if name in raw else "default" for name in FIELDS}
    return Loaded(Settings(**values), sources, tuple(notes))


def variable(name: str) -> str:
    """Return the environment variable of a setting."""
    return PREFIX + name.upper()


def _from_file(path: Path, faults: list[FieldError]) -> dict[str, tuple[Any, str]]:
    import tomllib

    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        faults.append(FieldError("config", f"{path} can't be read: {error}"))
        return {}
    found = {}
    for key, value in table.items():
        name = key.replace("-", "_")
        if name in FIELDS:
            found[name] = (value, f"file {path}")
        else:
            faults.append(
                FieldError(key, f"no such setting{_guess(name, FIELDS)} (from file {path})")
            )
    return found


def _from_environment(
    environment: Mapping[str, str], notes: list[str]
) -> dict[str, tuple[Any, str]]:
    found: dict[str, tuple[Any, str]] = {}
    host, port = environment.get(SERVICE_HOST), environment.get(SERVICE_PORT)
    if host and port:
        address = f"[{host}]" if ":" in host else host
        found["service"] = (
            f"http://{address}:{port}",
            f"environment {SERVICE_HOST}, {SERVICE_PORT}",
        )
    known = {variable(name): name for name in FIELDS}
    for key, value in sorted(environment.items()):
        if not key.startswith(PREFIX) or value == "":
            continue
        if _KUBERNETES_LINK.match(value) or (key not in known and _KUBERNETES_NAME.fullmatch(key)):
            notes.append(f"{key} is Kubernetes' own variable for a service; passed over")
        elif key in known:
            found[known[key]] = (value, f"environment {key}")
        elif key not in OTHER_VARIABLES:
            notes.append(f"{key} is not a setting{_guess(key, known)}; passed over")
    return found


OTHER_VARIABLES = frozenset({PREFIX + "CONFIG", INPUT_URIS, PREFIX + "REQUIRE_TOOLS"})
"""Variables with our prefix that are no settings."""


def _guess(name: str, known: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def _checked(name: str, value: Any) -> Any:
    kind = _HINTS[name]
    if isinstance(kind, types.UnionType):
        kind = next(option for option in typing.get_args(kind) if option is not type(None))
    if FIELDS[name].metadata["secret"] and not isinstance(value, str):
        raise ValueError("not text")
    typed = _listed(value) if typing.get_origin(kind) is tuple else _typed(kind, value)
    least, most = FIELDS[name].metadata["least"], FIELDS[name].metadata["most"]
    if least is not None and not least <= typed <= most:
        raise ValueError(f"{typed} is out of range: {least:.15g} to {most:.15g}")
    check = _CHECKS.get(name)
    return check(typed) if check else typed


def _listed(value: Any) -> tuple[str, ...]:
    """Return a list of texts: repeated flags, a list in the file, or one text with semicolons."""
    parts = value.split(";") if isinstance(value, str) else value
    if not isinstance(parts, list | tuple) or not all(isinstance(part, str) for part in parts):
        raise ValueError(f"{value!r} is not a list of texts")
    return tuple(part.strip() for part in parts if part.strip())


def _typed(kind: type, value: Any) -> Any:
    if kind is bool:
        words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
        if isinstance(value, bool):
            return value
        if str(value).lower() not in words:
            raise ValueError(f"{value!r} is neither true nor false")
        return words[str(value).lower()]
    if isinstance(value, bool) or not isinstance(value, _FROM[kind]):
        raise ValueError(f"{value!r} is not {_KINDS[kind]}")  # noqa: TRY004  (all faults are collected alike)
    if kind is Path:
        return Path(str(value)).expanduser()
    try:
        typed = kind(value)
    except (ValueError, OverflowError):
        raise ValueError(f"{value!r} is not {_KINDS[kind]}") from None
    if isinstance(value, float) and typed != value:
        raise ValueError(f"{value!r} is not {_KINDS[kind]}")
    return typed


_FROM: dict[type, tuple[type, ...]] = {
    int: (str, int, float),
    float: (str, int, float),
    str: (str,),
    Path: (str, Path),
}
_KINDS: dict[type, str] = {
    int: "a whole number",
    float: "a number",
    str: "text",
    Path: "a path",
    bool: "true or false",
}


def _one_of(allowed: tuple[str, ...]) -> Any:
    def check(value: str) -> str:
        if value not in allowed:
            raise ValueError(f"{value!r} is not one of {', '.join(allowed)}")
        return value

    return check


def _http_url(value: str) -> str:
    if "@" in value:
        raise ValueError("a URL with a password in it; give the token by token_file")
    try:
        return names.http_url(value).rstrip("/")
    except InvalidInput:
        raise ValueError(
            f"{value!r} is not an http or https URL such as http://results:8088"
        ) from None


def _database_url(value: str) -> str:
    if not re.match(r"sqlite:///.|postgres(ql)?://.", value):
        kind = value.split("://")[0]
        raise ValueError(f"{kind!r} is no kind of database: give sqlite:///PATH or postgresql://…")
    return value


def _grants(value: tuple[str, ...]) -> tuple[str, ...]:
    for text in value:
        parse_grant(text)
    return value


def _listen_port(value: int) -> int:
    return value if value == 0 else names.port(value)


def _agent_name(value: str) -> str:
    names.agent_name(value)
    return value


def _ae_title(value: str) -> str:
    names.agent_name(value)
    return names.ae_title(value)


_CHECKS: dict[str, Any] = {
    "agent_name": _agent_name,
    "render_name": _agent_name,
    "anonymous": _grants,
    "service": _http_url,
    "database": _database_url,
    "port": _listen_port,
    "listen_port": _listen_port,
    "ae_title": _ae_title,
    "log_format": _one_of(LOG_FORMATS),
    "log_level": _one_of(LOG_LEVELS),
}
