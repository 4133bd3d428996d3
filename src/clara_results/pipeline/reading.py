"""From a definition's text to what each of its parts says; how they fit together is ``wiring``'s."""

import posixpath
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field

from ruamel.yaml.nodes import Node, ScalarNode

from clara_results.domain.platform import PIPELINE_NAME_RULE, pipeline_name
from clara_results.errors import InvalidInput
from clara_results.pipeline.definition import API_VERSION, PLATFORM_VALUES, Container
from clara_results.pipeline.faults import START, Text
from clara_results.pipeline.source import Source, guess, position, used

_TOP = ("api-version", "name", "orchestrator", "pull-secrets", "parameters", "operators")
_OPERATOR = ("name", "description", "container", "variables", "requests", "input", "output", "services")  # fmt: skip
_CONTAINER = ("image", "tag", "command")
_SERVICE = ("name", "container", "variables", "requests", "connections")
_REQUESTS = {"gpu": True, "cpu": False, "memory": True}
"""What can be asked for, and whether it is a whole number."""

ELSEWHERE = dict.fromkeys(
    ("container", "input", "output", "requests", "variables", "services"), "an operator"
)
ELSEWHERE |= dict.fromkeys(("image", "tag", "command"), "an operator's container")
ELSEWHERE |= {"from": "an operator's input", "path": "an input or output"}
"""What has which key, for who lost the indentation."""

_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_IMAGE = re.compile(rf"(?:[A-Za-z0-9.-]+(?::\d+)?/)?{_PART}(?:/{_PART})*", re.ASCII)
_TAG = re.compile(r"\w[\w.-]{0,127}", re.ASCII)
"""Grammar of the OCI distribution specification (1.1, "Pulling manifests")."""
_ENVIRONMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_FORBIDDEN_IN_PATHS = re.compile(r"[:;\x00-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class Mount:
    """An input or output as it is written.

    Attributes:
        where: Its place in the structure: ``operators[0].input[1]``.
        at: Stands for the whole entry.
        path: Where it is mounted.
        name: The output's name.
        source: For an input: the operator that it is from.
    """

    where: str
    at: Text
    path: Text
    name: Text | None = None
    source: Text | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """An operator as it is written.

    Attributes:
        where: Its place in the structure: ``operators[0]``.
        name: Its name; None: it has none that can be used.
    """

    where: str
    name: Text | None
    container: Container | None
    variables: Mapping[str, Text]
    requests: Mapping[str, float]
    inputs: tuple[Mount, ...]
    outputs: tuple[Mount, ...]
    services: tuple[Text, ...]


@dataclass(slots=True)
class Written:
    """A definition as it is written."""

    name: Text | None = None
    parameters: dict[str, str] = field(default_factory=dict)
    pull_secrets: tuple[Text, ...] = ()
    steps: tuple[Step, ...] = ()


def read(source: Source, text: str, given: Mapping[str, str]) -> Written:
    """Read a definition. What is wrong is noted in ``source.faults``.

    Args:
        source: Reads the YAML.
        text: The file's.
        given: Values of parameters instead of their defaults.
    """
    written = Written()
    node = source.document(text)
    if node is None:
        return written
    top = source.mapping(node, "", _TOP)
    source.require(top, ("api-version", "name", "operators"), node, "")
    if "parameters" in top:
        written.parameters = _parameters(source, top["parameters"])
    for name in sorted(set(given) - set(written.parameters)):
        source.faults.add(
            position(top.get("parameters", node)), "parameters", "undeclared",
            f"the pipeline has no parameter {name!r}{guess(name, written.parameters)}, which a value is given for",
        )  # fmt: skip
    written.parameters |= {name: given[name] for name in written.parameters if name in given}
    source.values = PLATFORM_VALUES | written.parameters
    _version(source, top)
    if "name" in top:
        written.name = _name(source, top["name"], "name")
    if "orchestrator" in top:
        source.text(top["orchestrator"], "orchestrator")
    if "pull-secrets" in top:
        items = source.items(top["pull-secrets"], "pull-secrets")
        written.pull_secrets = tuple(t for item, at in items if (t := source.text(item, at)))
    if "operators" in top:
        items = source.items(top["operators"], "operators")
        written.steps = tuple(_step(source, item, where) for item, where in items)
        if not items:
            source.faults.add(
                position(top["operators"]), "operators", "missing", "there is no operator"
            )
    return written


def _version(source: Source, top: Mapping[str, Node]) -> None:
    if "api-version" not in top:
        return
    version = source.text(top["api-version"], "api-version")
    if version is not None and version != API_VERSION:
        source.faults.add(
            version.at, "api-version", "api-version",
            f"this reads definitions of api-version {API_VERSION}, not {version!r}",
        )  # fmt: skip


def _parameters(source: Source, node: Node) -> dict[str, str]:
    """Return the parameters' defaults, which are plain texts."""
    found = {}
    for key, value, where in source.entries(node, "parameters"):
        default = source.text(value, where)
        if _checked_name(source, key, where) and default is not None:
            if key in PLATFORM_VALUES or used(default):
                source.faults.add(
                    key.at, where, "parameter",
                    "that is the platform's own variable" if key in PLATFORM_VALUES
                    else "a parameter's default is a plain text, without ${{…}}",
                )  # fmt: skip
            found[str(key)] = str(default)
    return found


def _name(source: Source, node: Node, where: str) -> Text | None:
    name = source.text(node, where)
    return name if name is not None and _checked_name(source, name, where) else None


def _checked_name(source: Source, name: Text, where: str) -> bool:
    try:
        pipeline_name(name)
    except InvalidInput:
        source.faults.add(
            name.at, where, "invalid-name", f"{name!r} is no name: {PIPELINE_NAME_RULE}"
        )
        return False
    return True


def _step(source: Source, node: Node, where: str) -> Step:
    keys = source.mapping(node, where, _OPERATOR)
    source.require(keys, ("name", "container"), node, where)
    if "description" in keys:
        source.text(keys["description"], f"{where}.description")
    container = keys.get("container")
    return Step(
        where=where,
        name=_name(source, keys["name"], f"{where}.name") if "name" in keys else None,
        container=_container(source, container, f"{where}.container") if container else None,
        variables=_variables(source, keys.get("variables"), f"{where}.variables"),
        requests=_requests(source, keys.get("requests"), f"{where}.requests"),
        inputs=_mounts(source, keys.get("input"), f"{where}.input", ("from", "name", "path")),
        outputs=_mounts(source, keys.get("output"), f"{where}.output", ("name", "path")),
        services=_services(source, keys.get("services"), f"{where}.services"),
    )


def _container(source: Source, node: Node, where: str) -> Container | None:
    keys = source.mapping(node, where, _CONTAINER)
    source.require(keys, ("image",), node, where)
    image = source.text(keys["image"], f"{where}.image") if "image" in keys else None
    tag = source.text(keys["tag"], f"{where}.tag") if "tag" in keys else Text("latest")
    command = _command(source, keys["command"], f"{where}.command") if "command" in keys else None
    if image is not None and not _IMAGE.fullmatch(image):
        name, colon, _ = image.rpartition(":")
        remedy = "; its tag goes to the key tag" if colon and _IMAGE.fullmatch(name) else ""
        source.faults.add(
            image.at, f"{where}.image", "invalid-image",
            f"{image!r} is no image: lower-case letters, digits, '.', '_' and '-', in parts joined by '/'{remedy}",
        )  # fmt: skip
    if tag is not None and not _TAG.fullmatch(tag):
        source.faults.add(
            tag.at, f"{where}.tag", "invalid-tag",
            f"{tag!r} is no tag: 1 to 128 letters, digits, '_', '.' or '-', not beginning with '.' or '-'",
        )  # fmt: skip
    return Container(image, tag, command) if image is not None and tag is not None else None


def _command(source: Source, node: Node, where: str) -> tuple[Text, ...] | None:
    if isinstance(node, ScalarNode):
        try:
            words = ", ".join(f'"{word}"' for word in shlex.split(node.value))
        except ValueError:
            words = '"program", "argument"'
        source.faults.add(
            position(node), where, "wrong-kind",
            f"a list is wanted here, not a text: no shell splits it. Write [{words}]",
        )  # fmt: skip
        return None
    items = source.items(node, where)
    words_ = [source.text(item, at) for item, at in items]
    if not items:
        source.faults.add(position(node), where, "missing", "the command is empty")
    return tuple(word for word in words_ if word is not None)


def _variables(source: Source, node: Node | None, where: str) -> dict[str, Text]:
    found = {}
    for key, value, at in source.entries(node, where) if node else ():
        text = source.text(value, at)
        if not _ENVIRONMENT.fullmatch(key):
            source.faults.add(
                key.at, at, "invalid-name",
                f"{key!r} is no environment variable: letters, digits and '_', not beginning with a digit",
            )  # fmt: skip
        elif text is not None:
            found[str(key)] = text
    return found


def _requests(source: Source, node: Node | None, where: str) -> dict[str, float]:
    keys = source.mapping(node, where, _REQUESTS) if node else {}
    found = {}
    for key, value in keys.items():
        number = source.number(value, f"{where}.{key}", 0, whole=_REQUESTS[key])
        if number is not None:
            found[key] = number
    return found


def _services(source: Source, node: Node | None, where: str) -> tuple[Text, ...]:
    found = []
    for item, at in source.items(node, where) if node else ():
        keys = source.mapping(item, at, _SERVICE)
        source.require(keys, ("name", "container"), item, at)
        name = _name(source, keys["name"], f"{at}.name") if "name" in keys else None
        if "container" in keys:
            _container(source, keys["container"], f"{at}.container")
        if name is not None:
            found.append(name)
    return tuple(found)


def _mounts(source: Source, node: Node | None, where: str, known: tuple[str, ...]) -> tuple[Mount, ...]:  # fmt: skip
    found = []
    for item, at in source.items(node, where) if node else ():
        keys = source.mapping(item, at, known)
        source.require(keys, ("path",), item, at)
        path = source.text(keys["path"], f"{at}.path") if "path" in keys else None
        if path is not None:
            path = _path(source, path, f"{at}.path")
        name = _name(source, keys["name"], f"{at}.name") if "name" in keys else None
        origin = source.text(keys["from"], f"{at}.from") if "from" in keys else None
        start = Text("", position(item))
        found.append(Mount(at, start, path or Text("", START), name, origin or None))
    return tuple(found)


def _path(source: Source, path: Text, where: str) -> Text | None:
    """Check a mount point: absolute, in its shortest form, not the root itself."""
    plain = posixpath.normpath(path)
    wrong = (
        f"{path!r} is not absolute: a mount's path begins with '/', such as /{plain.lstrip('./')}"
        if not path.startswith("/")
        else f"{path!r} has a character that a mount's path can't have: ':', ';' or a control character"
        if _FORBIDDEN_IN_PATHS.search(path)
        else "'/' itself can't be a mount: name a folder, such as /input"
        if plain in {"/", "//"}
        else f"{path!r} is not in its shortest form: write {plain}"
        if path.removesuffix("/") != plain
        else None
    )
    if wrong is not None:
        source.faults.add(path.at, where, "invalid-path", wrong)
        return None
    return Text(plain, path.at, path.raw)
