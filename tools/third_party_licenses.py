"""Write LICENSE-3rdParty: what the product is made of besides its own code, under which licence, with every text.

The packages are those of ``requirements.lock`` that apply to this platform, as they are installed; their licences are
what pip-licenses finds, their texts the licence and notice files that each package carries. The sample volume,
swagger-ui, which is inside a package, and what the console's pages load are added.
"""

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from importlib import resources
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import NormalizedName, canonicalize_name

from tools.assets import VENDOR

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "LICENSE-3rdParty"
APACHE = ROOT / "LICENSE"
SAMPLE_DATA = ROOT / "examples" / "data" / "LICENSE-pyradiomics.txt"
_LICENCE_FILE = re.compile(r"(licen[cs]e|notice|copying|authors)", re.IGNORECASE)
_PIN = re.compile(r"^(?P<pin>[A-Za-z0-9][^\\\n]*?)\s*\\?$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Component:
    """Something that is not ours.

    Attributes:
        name: Its name in lower case.
        version: Its version.
        licence: The licence's name, as its maker states it.
        texts: The licence and notice files that come with it.
        libraries: Shared libraries of others that its wheel carries.
    """

    name: str
    version: str
    licence: str
    texts: tuple[str, ...]
    libraries: tuple[str, ...] = ()


def runtime_packages(lock: str) -> list[NormalizedName]:
    """Return the names of a lock file's packages that apply to this platform and Python."""
    pins = (Requirement(match["pin"]) for match in _PIN.finditer(lock))
    return [canonicalize_name(pin.name) for pin in pins if not pin.marker or pin.marker.evaluate()]


def components() -> list[Component]:
    """Return everything that is not ours, by name.

    Raises:
        subprocess.CalledProcessError: pip-licenses failed.
        importlib.metadata.PackageNotFoundError: A package of the lock file is not installed.
    """
    names = runtime_packages((ROOT / "requirements.lock").read_text(encoding="utf-8"))
    told = subprocess.run(
        [sys.executable, "-m", "piplicenses", "--from=mixed", "--format=json"],
        check=True,
        capture_output=True,
        text=True,
    )
    licences = {canonicalize_name(row["Name"]): row["License"] for row in json.loads(told.stdout)}
    found = [
        Component(name, distribution(name).version, licences[name], _texts(name), _libraries(name))
        for name in names
    ]
    return sorted(
        [*found, *_vendored(), _swagger_ui(), _sample_volume()],
        key=lambda component: component.name,
    )


def _texts(name: str) -> tuple[str, ...]:
    files = [
        path
        for path in distribution(name).files or ()
        if ".dist-info" in path.parts[0] and _LICENCE_FILE.match(path.name)
    ]
    return tuple(path.read_text(encoding="utf-8").strip() for path in sorted(files))


def _libraries(name: str) -> tuple[str, ...]:
    """Return the shared libraries that auditwheel put beside a package: ``libpq`` of ``libpq-e9b5c9ac.so.5.18``."""
    files = distribution(name).files or ()
    found = {path.name.partition(".so")[0] for path in files if path.parts[0].endswith(".libs")}
    return tuple(sorted({library.rpartition("-")[0] or library for library in found}))


def _swagger_ui() -> Component:
    script = resources.files("fastapi_swagger.resources").joinpath("swagger-ui-bundle.js")
    version = re.search(r'PACKAGE_VERSION:"([\d.]+)"', script.read_text(encoding="utf-8"))
    if version is None:
        raise ValueError("the version of swagger-ui is not where it was")
    notice = "Copyright 2020-2021 SmartBear Software Inc."
    return Component(
        "swagger-ui", version[1], "Apache-2.0", (notice, APACHE.read_text(encoding="utf-8").strip())
    )


def _vendored() -> list[Component]:
    """Return what the console's pages load; see ``tools.assets``."""
    packages = json.loads((VENDOR / "packages.json").read_text(encoding="utf-8"))
    return [Component(p["name"], p["version"], p["licence"], (p["text"],)) for p in packages]


def _sample_volume() -> Component:
    text = SAMPLE_DATA.read_text(encoding="utf-8").strip()
    return Component("pyradiomics sample case lung2", "3.0.1", "BSD-3-Clause", (text,))


def render(parts: list[Component]) -> str:
    """Return the file's text: a table of everything, then every licence text once."""
    width = max(len(part.name) for part in parts)
    lines = [
        "Clara Results is made of its own code (LICENSE) and of the following, each under its own licence.",
        "The tool that writes this file: make licenses.",
        "",
        *(f"{part.name:{width}}  {part.version:10}  {part.licence}" for part in parts),
    ]
    for part in parts:
        if part.libraries:
            lines += ["", f"{part.name} carries shared libraries, each under its own licence:"]
            lines += [f"  {library}" for library in part.libraries]
    owners: dict[str, list[str]] = {}
    for part in parts:
        for text in part.texts:
            owners.setdefault(text, []).append(f"{part.name} {part.version}")
    for text, names in owners.items():
        lines += ["", "", "-" * 100, ", ".join(names), "-" * 100, "", text]
    return "\n".join(line.rstrip() for line in "\n".join(lines).splitlines()) + "\n"


if __name__ == "__main__":
    TARGET.write_text(render(components()), encoding="utf-8")
    print(f"wrote {TARGET.name}")
