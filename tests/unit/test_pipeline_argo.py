"""``clara-results pipeline export --to argo``: a workflow that Argo takes, with the same folders and variables."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import hera.workflows.models as argo
import pytest
from ruamel.yaml import YAML
from typer.testing import CliRunner, Result

from clara_results.cli.pipeline import app
from clara_results.errors import InvalidInput

LIVER = Path(__file__).parents[2] / "examples" / "liver-tumor"


def export(file: Path, *flags: str) -> Result:
    return CliRunner().invoke(app, ["export", str(file), "--to", "argo", *flags])


def exported(file: Path, *flags: str) -> Any:
    result = export(file, *flags)
    assert result.exit_code == 0, result.exception
    return YAML(typ="safe", pure=True).load(result.stdout)


def template(workflow: Any, name: str) -> Any:
    return next(each for each in workflow["spec"]["templates"] if each["name"] == name)


def variables(made: Any) -> dict[str, str]:
    return {each["name"]: each.get("value") for each in made["container"]["env"]}


@pytest.mark.parametrize("name", ["pipeline.yaml", "pipeline-volume.yaml"])
def test_the_examples_become_workflows_that_refer_to_nothing_that_is_not_there(name: str) -> None:
    workflow = exported(LIVER / name)
    again = argo.Workflow.model_validate(workflow)
    assert again.model_dump(mode="json", by_alias=True, exclude_none=True) == workflow
    assert set(workflow) == {"apiVersion", "kind", "metadata", "spec"}
    spec = workflow["spec"]
    names = {each["name"] for each in spec["templates"]}
    tasks = template(workflow, spec["entrypoint"])["dag"]["tasks"]
    assert names == {spec["entrypoint"]} | {task["template"] for task in tasks}
    assert {before for task in tasks for before in task.get("dependencies", ())} < names
    parameters = {each["name"] for each in spec["arguments"]["parameters"]}
    used = set(re.findall(r"\{\{workflow\.parameters\.([\w-]+)\}\}", json.dumps(workflow)))
    assert used == parameters == {"payload-id"}
    volumes = {each["name"] for each in spec["volumes"]}
    assert volumes == {
        mount["name"] for each in spec["templates"] if "container" in each for mount in each["container"]["volumeMounts"]
    }  # fmt: skip
    for each in names:
        assert re.fullmatch(r"[a-zA-Z0-9][-a-zA-Z0-9]*", each)


def test_an_operator_has_its_folders_of_the_payload_and_the_platforms_environment() -> None:
    workflow = exported(LIVER / "pipeline.yaml", "--claim", "ours", "--timeout", "600")
    writer = template(workflow, "dicom-writer")
    assert writer["container"]["image"] == "clara/dicom-writer:0.1.0"
    assert "command" not in writer["container"]  # the image's own
    assert writer["activeDeadlineSeconds"] == 600
    mounts = {
        mount["mountPath"]: (mount["subPath"], mount.get("readOnly", False))
        for mount in writer["container"]["volumeMounts"]
    }
    payload = "{{workflow.parameters.payload-id}}"
    assert mounts == {
        "/input": (f"{payload}/liver-tumor-segmentation/segmentation", True),
        "/dicom": (f"{payload}/input", True),
        "/output": (f"{payload}/dicom-writer/dicom", False),
    }
    assert variables(writer) == {
        "NVIDIA_CLARA_JOBID": "{{workflow.name}}", "NVIDIA_CLARA_PIPELINEID": "liver-tumor-example",
        "NVIDIA_CLARA_PAYLOADID": payload, "NVIDIA_CLARA_OPERATORNAME": "dicom-writer",
        "NVIDIA_CLARA_INPUTPATHS": "segmentation:/input;input:/dicom",
        "NVIDIA_CLARA_OUTPUTPATHS": "dicom:/output",
        "CLARA_RESULTSSERVICE_SERVICE_HOST": "clara-results",
        "CLARA_RESULTSSERVICE_SERVICE_PORT": "8088",
        "CLARA_RESULTS_SERVICE": "http://clara-results:8088",
    }  # fmt: skip
    [volume] = workflow["spec"]["volumes"]
    assert volume["persistentVolumeClaim"] == {"claimName": "ours"}


def test_a_register_step_knows_which_part_of_the_payload_its_inputs_are() -> None:
    workflow = exported(LIVER / "pipeline-volume.yaml", "--service", "https://results.example", "--token-secret", "key")  # fmt: skip
    step = template(workflow, "register-mhd-output")
    assert variables(step)["CLARA_RESULTS_INPUT_URIS"] == (
        "output=dicom-reader/output;segmentation=liver-tumor-segmentation/segmentation"
    )
    assert variables(step)["CLARA_RESULTSSERVICE_SERVICE_PORT"] == "443"
    token = next(e for e in step["container"]["env"] if e["name"] == "CLARA_RESULTS_TOKEN")
    assert token["valueFrom"]["secretKeyRef"] == {"name": "key", "key": "token", "optional": True}
    assert step["container"]["command"] == ["python", "register.py", "--agent", "renderserver"]
    assert "CLARA_RESULTS_INPUT_URIS" not in variables(template(workflow, "dicom-writer"))
    order = {t["name"]: t.get("dependencies") for t in template(workflow, "pipeline")["dag"]["tasks"]}  # fmt: skip
    assert order == {
        "dicom-reader": None,
        "liver-tumor-segmentation": ["dicom-reader"],
        "register-mhd-output": ["dicom-reader", "liver-tumor-segmentation"],
        "dicom-writer": ["liver-tumor-segmentation"],
        "register-dicom-output": ["dicom-writer"],
    }


WHOLE = """\
api-version: 0.4.0
name: Liver_Tumor
pull-secrets: [registry]
parameters: {threshold: 0.5, release: 1.2}
operators:
- name: pipeline
  container: {image: clara/a, tag: "${{release}}", command: ["a", "--threshold=${{threshold}}"]}
  variables: {LEVEL: "${{threshold}}"}
  requests: {gpu: 1, cpu: 0.5, memory: 4096}
  output: [{path: /output}]
- name: a_b
  container: {image: clara/b}
- name: a-b
  container: {image: clara/b}
"""


def test_parameters_requests_secrets_and_names(tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    file.write_text(WHOLE)
    target = tmp_path / "workflow.yaml"
    assert export(file, "--set", "threshold=0.7", "--output", str(target)).stdout == ""
    workflow = YAML(typ="safe", pure=True).load(target.read_text())
    spec = workflow["spec"]
    assert workflow["metadata"]["generateName"] == "liver-tumor-"
    assert spec["imagePullSecrets"] == [{"name": "registry"}]
    assert spec["arguments"]["parameters"] == [
        {"name": "payload-id"}, {"name": "threshold", "value": "0.7"}, {"name": "release", "value": "1.2"},
    ]  # fmt: skip
    dag, first, *others = (each["name"] for each in spec["templates"])
    assert dag == "pipeline"
    assert first.startswith("pipeline-")
    assert others[0] == "a-b"
    assert others[1].startswith("a-b-")
    container = template(workflow, first)["container"]
    assert container["image"] == "clara/a:{{workflow.parameters.release}}"
    assert container["command"] == ["a", "--threshold={{workflow.parameters.threshold}}"]
    assert {"name": "LEVEL", "value": "{{workflow.parameters.threshold}}"} in container["env"]
    assert container["resources"] == {
        "requests": {"cpu": "0.5", "memory": "4096Mi"},
        "limits": {"nvidia.com/gpu": "1"},
    }


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("  services: [{name: triton, container: {image: t}}]\n", "as sidecars of its template"),
        ("  variables: {A: '{{workflow.name}}'}\n", "Argo takes {{…}} for a variable of its own"),
    ],
)
def test_what_argo_cannot_be_told_of_is_refused(tmp_path: Path, more: str, message: str) -> None:
    file = tmp_path / "p.yaml"
    file.write_text(f"api-version: 0.4.0\nname: a\noperators:\n- name: a\n  container: {{image: b}}\n{more}")  # fmt: skip
    error = export(file).exception
    assert isinstance(error, InvalidInput)
    assert message in str(error)


def test_a_parameter_of_the_workflows_own_name_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    file.write_text("api-version: 0.4.0\nname: a\nparameters: {payload-id: x}\noperators:\n- name: a\n  container: {image: b}\n")  # fmt: skip
    assert "can't be named 'payload-id'" in str(export(file).exception)


def test_a_faulty_definition_is_not_exported(tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    file.write_text("api-version: 0.4.0\nname: a\noperators: []\n")
    result = export(file)
    assert isinstance(result.exception, InvalidInput)
    assert "p.yaml:3:12: there is no operator" in str(result.exception)
    assert not result.stdout


def test_a_name_that_kubernetes_does_not_take_is_refused() -> None:
    result = export(LIVER / "pipeline.yaml", "--claim", "Payloads_1")
    assert "'Payloads_1' can't be the name of a claim" in str(result.exception)
