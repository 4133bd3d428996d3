"""``clara-results pipeline check``: every fault of a definition, in its place, in words that help."""

import contextlib
import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from clara_results.cli.pipeline import app
from clara_results.pipeline.checking import parse_definition, read_definition
from clara_results.pipeline.definition import Definition

BROKEN = sorted((Path(__file__).parents[1] / "support" / "broken_pipelines").glob("*.yaml"))
ROOT = Path(__file__).parents[2]
LIVER = ROOT / "examples" / "liver-tumor"
PAGE = (ROOT / "docs" / "pipelines.md").read_text()
EXPECTED = "# expected: "


def check(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["check", *map(str, arguments)])


def parsed(text: str, **given: str) -> Definition:
    definition, faults = parse_definition("p.yaml", text, given)
    assert not faults
    assert definition is not None
    return definition


@pytest.mark.parametrize("file", BROKEN, ids=[file.stem for file in BROKEN])
def test_a_broken_definition_is_told_all_its_faults(file: Path) -> None:
    lines = file.read_text().splitlines()
    expected = [line.removeprefix(EXPECTED) for line in lines if line.startswith(EXPECTED)]
    assert expected, "a broken definition says what is to be said of it"
    result = check(file, "--json")
    assert result.exit_code == 2
    told = json.loads(result.stdout)
    found = [
        f"{fault['line']}:{fault['column']} {fault['code']}: {fault['message'].splitlines()[0]}"
        for fault in told["faults"]
    ]
    assert found == expected
    assert not told["ok"]
    assert {fault["file"] for fault in told["faults"]} == {str(file)}


def test_there_are_as_many_broken_definitions_as_kinds_of_faults_that_people_make() -> None:
    assert len(BROKEN) >= 25


def test_faults_are_printed_one_a_line_as_compilers_do(tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    file.write_text("api-version: 0.4.0\nname: a b\noperators: []\n")
    result = check(file)
    assert result.exit_code == 2
    assert result.stdout.splitlines() == [
        f"{file}:2:7: 'a b' is no name: 1 to 255 letters, digits, '-' or '_' [invalid-name]",
        f"{file}:3:12: there is no operator [missing]",
        "2 faults",
    ]


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    result = check(tmp_path / "none.yaml")
    assert "none.yaml can't be read: No such file" in str(result.exception)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    assert "is no text in UTF-8" in str(check(tmp_path / "binary").exception)
    (tmp_path / "large").write_bytes(b" " * (1 << 20) + b" ")
    assert "more than 1048576 bytes" in str(check(tmp_path / "large").exception)


def test_the_liver_tumour_pipeline_is_wired_as_on_the_original_page() -> None:
    definition, faults = read_definition(LIVER / "pipeline.yaml")
    assert not faults
    assert definition is not None
    wiring = {
        str(operator.name): [(i.name, i.path, i.folder) for i in operator.inputs]
        for operator in definition.operators
    }
    assert wiring == {
        "dicom-reader": [("input", "/input", "input")],
        "liver-tumor-segmentation": [("output", "/input", "dicom-reader/output")],
        "dicom-writer": [
            ("segmentation", "/input", "liver-tumor-segmentation/segmentation"),
            ("input", "/dicom", "input"),
        ],
        "register-mhd-output": [("dicom", "/input", "dicom-writer/dicom")],
        "register-dicom-output": [("dicom", "/input", "dicom-writer/dicom")],
    }
    commands = {str(o.container.image): o.container.command for o in definition.operators}
    assert commands["clara/register-results"] == (
        "python", "register.py", "--agent", "ClaraSCU", "--data", '["Orthanc","DCM4CHEE","ImageViewer1"]',
    )  # fmt: skip


@pytest.mark.parametrize("name", ["pipeline.yaml", "pipeline-volume.yaml"])
def test_the_examples_are_without_fault(name: str) -> None:
    result = check(LIVER / name)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(f"{LIVER / name}: liver-tumor-")
    assert json.loads(check(LIVER / name, "--json").stdout)["operators"][0] == "dicom-reader"


@pytest.mark.parametrize(
    "text", ["[" * 5000, "a: \0", "a: &x [*x]\nb: *y", "? [a]\n: b", "<<: {a: b}"]
)
def test_strange_yaml_is_a_fault(text: str) -> None:
    definition, faults = parse_definition("p.yaml", text, {})
    assert definition is None
    assert faults


PARAMETERS = """\
api-version: 0.4.0
name: parameters
parameters:
  threshold: 0.50
  agent: ClaraSCU
operators:
- name: one
  container:
    image: clara/one
    tag: 0.10
    command: ["one", "--threshold=${{ threshold }}", "${{agent}}-${{agent}}", "$${x}"]
"""


def test_texts_stay_as_they_are_written_and_parameters_are_filled_in() -> None:
    container = parsed(PARAMETERS, agent="other").operators[0].container
    assert container.command == ("one", "--threshold=0.50", "other-other", "$${x}")
    assert container.reference == "clara/one:0.10"


def test_a_value_for_no_parameter_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    file.write_text(PARAMETERS)
    assert check(file, "--set", "threshold=1").exit_code == 0
    result = check(file, "--set", "treshold=1")
    assert "no parameter 'treshold' (did you mean threshold?)" in result.stdout
    assert "write NAME=VALUE" in str(check(file, "--set", "threshold").exception)


def test_names_compare_without_regard_to_case_and_are_the_sources_own() -> None:
    operators = parsed("""\
api-version: 0.4.0
name: cases
operators:
- name: Reader
  container: {image: clara/a}
  output: [{name: Volume, path: /output}]
- name: other
  container: {image: clara/b}
  output: [{name: volume, path: /output}]
- name: writer
  container: {image: clara/c}
  input:
  - {from: READER, name: VOLUME, path: /a/}
  - {from: other, path: /b}
""").operators
    assert [(i.source, i.name, i.path, i.folder) for i in operators[2].inputs] == [
        ("Reader", "Reader-Volume", "/a", "Reader/Volume"),
        ("other", "other-volume", "/b", "other/volume"),
    ]


IMAGES = """\
images:
  clara/one: {folder: nowhere, command: []}
  clara/two: {folder: ., comand: [x], timeout: soon}
"""


def test_images_are_checked_with_the_definition(tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    file.write_text(
        "api-version: 0.4.0\nname: images\noperators:\n"
        + "".join(
            f"- name: {name}\n  container:\n    image: {image}\n{more}"
            for name, image, more in (
                ("a", "clara/one", ""),
                ("b", "clara/two", "    command: [no-such-program]\n"),
                ("c", "clara/tow", "    command: ['true']\n"),
                (
                    "d",
                    "clara/three",
                    "  services:\n  - name: triton\n    container: {image: t}\n",
                ),
            )
        )
    )
    assert check(file).exit_code == 0  # for a cluster it is right
    images = tmp_path / "images.yaml"
    images.write_text(IMAGES)
    faulty = check(file).stdout.splitlines()
    assert faulty == [
        f"{images}:2:23: there is no folder {tmp_path}/nowhere [missing-folder]",
        f"{images}:2:41: the command is empty [missing]",
        f"{images}:3:26: there is no key 'comand' here (did you mean command?); known: command, folder, timeout [unknown-key]",
        f"{images}:3:48: 'soon' is not a number that is at least 0.001 [number]",
        "4 faults",
    ]
    images.write_text("images:\n  clara/one: {}\n  clara/two: {}\n  clara/three: {command: ['true']}\n")  # fmt: skip
    assert check(file).stdout.splitlines() == [
        f"{file}:6:12: neither the definition nor {images} has a command for 'clara/one' [missing-command]",
        f"{file}:10:15: there is no program 'no-such-program' on this machine (looked from {tmp_path}) [missing-program]",
        f"{file}:13:12: {images} has no command for the image 'clara/tow' (did you mean clara/two?) [missing-image]",
        f"{file}:19:11: the service 'triton' can't be started here: only a cluster can run services [services]",
        "4 faults",
    ]


def test_the_page_shows_a_definition_without_fault_and_names_every_code(tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    file.write_text(re.findall(r"```yaml\n(api-version.*?)```", PAGE, re.DOTALL)[0])
    assert check(file).exit_code == 0
    source = "".join(path.read_text() for path in (ROOT / "src/clara_results/pipeline").glob("*.py"))  # fmt: skip
    codes = set(re.findall(r'where\}?\"?, "([a-z-]+)",', source)) | {
        line.split(" ")[3].removesuffix(":")
        for broken in BROKEN
        for line in broken.read_text().splitlines()
        if line.startswith(EXPECTED)
    }
    assert len(codes) > 20
    assert not {code for code in codes if f"`{code}`" not in PAGE}


WHOLE = {
    "api-version": "0.4.0",
    "name": "whole",
    "orchestrator": "argo",
    "pull-secrets": ["registry"],
    "parameters": {"a": "1"},
    "operators": [
        {
            "name": "reader",
            "description": "reads",
            "container": {"image": "clara/reader", "tag": "1", "command": ["read", "${{a}}"]},
            "variables": {"A": "b"},
            "requests": {"gpu": 1, "cpu": 0.5, "memory": 512},
            "input": [{"path": "/input"}],
            "output": [{"name": "a", "path": "/a"}, {"name": "b", "path": "/b"}],
        },
        {
            "name": "register",
            "container": {
                "image": "x",
                "command": ["register.py", "--agent", "A", "--data", "[1]"],
            },
            "input": [{"from": "reader", "name": "a", "path": "/input"}],
            "services": [{"name": "s", "container": {"image": "t"}}],
        },
    ],
}
ODD: st.SearchStrategy[Any] = st.sampled_from(
    [None, "", 0, -1, 1.5, True, "reader", "register", "a", "/", "/a", "a b", "${{a}}", "${{", "${{b}}", "x" * 300, [], {}, [None],
     [[]], {"a": []}, {"from": "register", "path": "/x"}, ["/a"], "\u2028", "\ud7ff\x7f"],
)  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Return where a value stands in a structure, for each that it holds."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()  # fmt: skip
    for key, inner in items:
        yield (*path, key)
        yield from places(inner, (*path, key))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(list(places(WHOLE))), ODD), min_size=1, max_size=3))
def test_whatever_is_odd_is_a_fault_in_its_place_or_none_at_all(
    changes: list[tuple[tuple[Any, ...], Any]],
) -> None:
    changed = copy.deepcopy(WHOLE)
    for path, odd in changes:
        with contextlib.suppress(KeyError, IndexError, TypeError):
            inner: Any = changed
            for key in path[:-1]:
                inner = inner[key]
            inner[path[-1]] = odd
    text = json.dumps(changed, indent=1)
    definition, faults = parse_definition("p.yaml", text, {})
    lines = text.splitlines()
    for fault in faults:
        assert 1 <= fault.line <= len(lines)
        assert 1 <= fault.column <= len(lines[fault.line - 1]) + 1
        assert fault.message
    assert (definition is None) == bool(faults)
    if definition is not None:
        done: set[str] = set()
        for operator in definition.operators:
            assert operator.sources <= done
            done.add(str(operator.name))
