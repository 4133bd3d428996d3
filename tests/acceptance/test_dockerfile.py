"""The Dockerfile's steps, done by hand in a clean folder: no container engine is needed.

Each stage that a target is made of is a folder; its COPY and RUN steps are done in it in their order, with every path that
the Dockerfile makes moved below that folder and a fresh virtual environment in the place of the base image's Python. Not
done are the base image itself, its user, and the making of that user's data folder.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import venv
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tools.third_party_licenses import runtime_packages

ROOT = Path(__file__).parents[2]
OWN_PATHS = ("/opt/clara-results", "/build", "/app")
"""Paths of the image that the Dockerfile fills."""
NEEDS_ROOT = ("groupadd", "install --directory --owner")


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage of the Dockerfile: the one that it starts from, and its steps."""

    base: str
    steps: list[tuple[str, str]] = field(default_factory=list)


def stages() -> dict[str, Stage]:
    found: dict[str, Stage] = {}
    name = ""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        word, _, rest = line.partition(" ")
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            found[name] = Stage(base)
        elif word and name:
            found[name].steps.append((word, rest))
    return found


class Image:
    """A target built in a folder.

    Attributes:
        workdir: Its working folder.
        environment: Its variables.
        command: Its ENTRYPOINT and CMD.
    """

    def __init__(self, folder: Path, target: str) -> None:
        self._folder = folder
        self._stages = stages()
        self._context = folder / "context"
        venv.create(folder / "python", with_pip=True)
        self.workdir = folder
        self.command: list[str] = []
        self.environment = {
            "PATH": f"{folder / 'python' / 'bin'}:/usr/bin:/bin",
            "HOME": str(folder),
            "UV_SYSTEM_CERTS": "1",
            # how this machine reaches a package index
            **{key: os.environ[key] for key in os.environ if re.search(r"CERT|^UV_|proxy$", key)},
        }
        self._copy_context()
        self._build(target)

    def _copy_context(self) -> None:
        """Copy what .dockerignore lets through."""
        for line in (ROOT / ".dockerignore").read_text().splitlines():
            for source in ROOT.glob(line[1:]) if line.startswith("!") else ():
                place = self._context / source.name
                if source.is_dir():
                    shutil.copytree(source, place, ignore=shutil.ignore_patterns("__pycache__"))
                else:
                    place.parent.mkdir(exist_ok=True)
                    shutil.copy(source, place)

    def _moved(self, text: str) -> str:
        for path in OWN_PATHS:
            text = re.sub(rf"(?<![\w/.]){path}(?![\w-])", f"{self._folder}{path}", text)
        return text

    def _build(self, name: str) -> None:
        stage = self._stages[name]
        if stage.base in self._stages:
            self._build(stage.base)
        for word, rest in stage.steps:
            getattr(self, f"_{word.lower()}", self._nothing)(rest)

    def _nothing(self, rest: str) -> None:
        """Pass over EXPOSE and the like: they say how an image is to be run."""

    def _env(self, rest: str) -> None:
        for item in shlex.split(rest):
            key, _, value = item.partition("=")
            self.environment[key] = self._moved(value).replace("$PATH", self.environment["PATH"])

    def _workdir(self, rest: str) -> None:
        self.workdir = Path(self._moved(rest))
        self.workdir.mkdir(parents=True, exist_ok=True)

    def _copy(self, rest: str) -> None:
        *sources, target = rest.split()
        if sources[0].startswith("--from="):
            assert sources[1:] == [target], "what another stage made stays where it lies"
            environment, workdir = dict(self.environment), self.workdir
            self._build(sources[0].removeprefix("--from="))
            self.environment, self.workdir = environment, workdir
            return
        for source in sources:
            if (self._context / source).is_dir():
                shutil.copytree(self._context / source, self.workdir / target)
            else:
                shutil.copy(self._context / source, self.workdir / target)

    def _run(self, rest: str) -> None:
        if not rest.startswith(NEEDS_ROOT):
            done = self.run("sh", "-c", self._moved(rest))
            assert done.returncode == 0, f"RUN {rest}\n{done.stdout}{done.stderr}"

    def _entrypoint(self, rest: str) -> None:
        self.command = json.loads(rest)

    def _cmd(self, rest: str) -> None:
        self.command += json.loads(rest)

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the image."""
        return subprocess.run(
            command,
            cwd=self.workdir,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=100,
        )

    def packages(self) -> set[str]:
        """Return the packages installed where its programs are."""
        code = "import importlib.metadata as m; print(*(d.name for d in m.distributions()))"
        return set(self.run("python", "-c", code).stdout.lower().replace("_", "-").split())


def locked(lock: str) -> set[str]:
    """Return the packages of a lock file that this platform needs."""
    return {*runtime_packages((ROOT / lock).read_text()), "clara-results"}


def test_the_operator_image_runs_register_py(tmp_path: Path) -> None:
    image = Image(tmp_path, "operator")

    assert image.packages() == locked("requirements-operator.lock")
    assert image.workdir == tmp_path / "app"
    assert {path.name for path in image.workdir.iterdir()} == {
        "LICENSE",
        "LICENSE-3rdParty",
        "register.py",
    }
    shown = image.run(*image.command)
    assert shown.returncode == 0, shown.stderr
    assert "--agent" in shown.stdout

    result = tmp_path / "payloads" / "payload-1" / "dicom" / "1.dcm"
    result.parent.mkdir(parents=True)
    result.write_bytes(b"content")
    image.environment |= {
        "NVIDIA_CLARA_JOBID": "job-1",
        "NVIDIA_CLARA_PIPELINEID": "pipeline-1",
        "NVIDIA_CLARA_PAYLOADID": "payload-1",
        "NVIDIA_CLARA_OPERATORNAME": "register",
        "NVIDIA_CLARA_INPUTPATHS": f"dicom:{result.parent}",
        "CLARA_RESULTSSERVICE_SERVICE_HOST": "127.0.0.1",
        "CLARA_RESULTSSERVICE_SERVICE_PORT": "8088",
        "CLARA_RESULTS_PAYLOADS": str(tmp_path / "payloads"),
    }
    command = ["python", "register.py", "--agent", "ClaraSCU", "--data", '["Orthanc"]']
    told = image.run(*command, "--dry-run")
    assert told.returncode == 0, told.stderr
    assert "dicom/1.dcm" in told.stdout


@pytest.mark.prove
@pytest.mark.timeout(300)
def test_the_service_image_has_every_command_and_stays_closed(tmp_path: Path) -> None:
    image = Image(tmp_path, "service")

    assert image.packages() == locked("requirements.lock")
    image.environment["CLARA_RESULTS_DATA"] = str(tmp_path / "data")
    assert image.run("clara-results", "agent", "dicom", "--help").returncode == 0
    assert image.command == ["clara-results", "serve"]
    refused = image.run(*image.command)
    assert refused.returncode == 2, refused.stderr
    assert "--insecure" in refused.stderr
