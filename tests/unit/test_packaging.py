"""What is shipped: lock files, licences, images, commands."""

import hashlib
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tools import third_party_licenses

ROOT = Path(__file__).parents[2]
LOCKS = sorted(path.name for path in ROOT.glob("*.lock"))
COPYLEFT = {
    # A library of its own that only [postgres] asks for, used unchanged and exchangeable: LGPL 3, section 4.
    "psycopg": "LGPL-3.0-only",
    "psycopg-binary": "LGPL-3.0-only",
}


def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def pinned(lock: str) -> dict[str, str]:
    """Return each package of a lock file and its version."""
    found = re.findall(r"^([a-z0-9-]+)==([^ ;]+)", (ROOT / lock).read_text(), re.MULTILINE)
    return dict(found)


def requirements(extras: set[str], groups: set[str]) -> list[Requirement]:
    """Return what pyproject.toml asks for directly, with the extras and groups that these include."""
    project = pyproject()["project"]
    texts = list(project["dependencies"])
    pending = [*extras]
    for extra in pending:
        for text in project["optional-dependencies"][extra]:
            requirement = Requirement(text)
            if requirement.name == project["name"]:
                pending += sorted(requirement.extras)
            else:
                texts.append(text)
    pending = [*groups]
    for group in pending:
        for item in pyproject()["dependency-groups"][group]:
            if isinstance(item, dict):
                pending.append(item["include-group"])
            else:
                texts.append(item)
    return [Requirement(text) for text in texts]


@pytest.mark.parametrize(
    ("lock", "extras", "groups"),
    [
        ("requirements-operator.lock", set(), set()),
        ("requirements.lock", {"all"}, set()),
        ("requirements-dev.lock", {"all"}, {"dev", "examples"}),
        ("requirements-bench.lock", {"all"}, {"bench"}),
    ],
)
def test_a_lock_file_pins_what_pyproject_asks_for(
    lock: str, extras: set[str], groups: set[str]
) -> None:
    versions = pinned(lock)
    for requirement in requirements(extras, groups):
        name = canonicalize_name(requirement.name)
        assert name in versions, f"{lock} lacks {name}: make lock"
        assert versions[name] in requirement.specifier, f"{lock} has another {name}: make lock"


def test_all_lock_files_pin_the_same_versions() -> None:
    everything = pinned("requirements-dev.lock")
    for lock in LOCKS:
        for name, version in pinned(lock).items():
            alone = lock == "requirements-bench.lock"  # an environment of its own
            assert everything.get(name, version if alone else None) == version, f"{lock}: make lock"


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_file_has_a_digest_for_every_package_and_no_address(lock: str) -> None:
    text = (ROOT / lock).read_text()
    assert "://" not in text
    assert "--index" not in text
    assert "--find-links" not in text
    for package in re.split(r"^(?=\S)", text, flags=re.MULTILINE)[1:]:
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", package), package


def test_the_operator_needs_urllib3_alone() -> None:
    assert set(pinned("requirements-operator.lock")) == {"urllib3"}


def test_the_licence_is_apache_2_in_full() -> None:
    digest = hashlib.sha256((ROOT / "LICENSE").read_bytes()).hexdigest()
    assert digest == "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"


def test_the_third_party_licences_are_those_of_what_is_installed() -> None:
    components = third_party_licenses.components()
    written = third_party_licenses.TARGET.read_text()
    for component in components:
        row = rf"^{re.escape(component.name)} +{re.escape(component.version)} +{re.escape(component.licence)}$"
        assert re.search(row, written, re.MULTILINE), f"{component}: make licenses"
        for text in component.texts:
            for line in text.splitlines():
                assert line.rstrip() in written, f"{component.name}: make licenses"
    table = written.split("\n\n")[1].splitlines()
    assert len(table) >= len(components)
    unknown = {re.split(r" {2,}", row)[0] for row in table} - {part.name for part in components}
    elsewhere = set(pinned("requirements.lock")) - {part.name for part in components}
    assert unknown <= elsewhere, "no longer needed: make licenses"


def test_no_package_is_under_a_licence_that_would_bind_ours() -> None:
    bound = {
        part.name: part.licence
        for part in third_party_licenses.components()
        if re.search(r"GPL|Affero|General Public|UNKNOWN", part.licence)
    }
    assert bound == COPYLEFT


def test_every_component_comes_with_its_licence_text() -> None:
    assert [part.name for part in third_party_licenses.components() if not part.texts] == []


@pytest.mark.parametrize(
    "target", ["demo", "test", "prove", "bench", "lint", "format", "lock", "licenses"]
)
def test_make_knows_and_lists_its_commands(target: str) -> None:
    listed = subprocess.run(
        ["make", "--no-print-directory"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert re.search(rf"^  {target} ", listed.stdout, re.MULTILINE)
    subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True, check=True)


def test_the_wheel_holds_package_and_licences(tmp_path: Path) -> None:
    hatchling = Path(sys.executable).with_name("hatchling")
    subprocess.run(
        [hatchling, "build", "--target", "wheel", "--directory", tmp_path],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    (wheel,) = tmp_path.iterdir()
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        entry_points = archive.read(
            next(name for name in names if name.endswith("entry_points.txt"))
        ).decode()
    sources = {
        path.relative_to(ROOT / "src").as_posix()
        for path in (ROOT / "src").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert sources <= set(names)
    assert {name.split("/")[0] for name in names} == {
        "clara_results",
        f"{wheel.name.removesuffix('-py3-none-any.whl')}.dist-info",
    }
    assert sum("licenses/LICENSE" in name for name in names) == 2
    assert "clara-results = clara_results.cli.main:main" in entry_points


def test_the_dicomweb_agent_works_without_pynetdicom() -> None:
    program = "import sys; sys.modules['pynetdicom'] = None; import clara_results.agents.dicomweb.exporter"
    subprocess.run([sys.executable, "-c", program], check=True)
