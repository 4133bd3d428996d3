"""A pipeline as an Argo Workflow, for a cluster.

Each operator becomes a container template, their order a DAG. The payload is a folder on one persistent volume claim,
the service's own; each input and output is mounted from its place there (``subPath``), so operators find the same
folders, variables and files as on one machine.
"""

import hashlib
import re

import hera.workflows.models as argo
from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.compat import StringIO

from clara_results import settings
from clara_results.errors import InvalidInput
from clara_results.pipeline.definition import PLATFORM_VALUES, Definition, Operator
from clara_results.pipeline.environment import input_uris, platform_variables
from clara_results.pipeline.faults import Text
from clara_results.pipeline.registering import arguments
from clara_results.pipeline.source import fill

DAG = "pipeline"
VOLUME = "payloads"
PAYLOAD = "payload-id"
TOKEN_KEY = "token"  # noqa: S105  (a key's name)
GROUP = 10001
"""The group of the user that our images run as: what operators write must be readable for it."""
_TAKEN = {PAYLOAD}
_OBJECT = re.compile(r"(?=.{1,253}\Z)[a-z0-9]([a-z0-9.-]*[a-z0-9])?", re.ASCII)


def workflow(
    definition: Definition, *, service: str, claim: str, token_secret: str, timeout: float
) -> argo.Workflow:
    """Translate a pipeline.

    Args:
        definition: The pipeline.
        service: URL of the Results Service in the cluster.
        claim: Name of the persistent volume claim that holds the payloads.
        token_secret: Name of the secret whose key ``token`` is a token for the service; it need not exist.
        timeout: Seconds for which an operator may run.

    Returns:
        A workflow that Hera's models, which are made from Argo's own schema, have validated.

    Raises:
        InvalidInput: The pipeline has something that Argo can't be told of, or a name is none.
    """
    _check(definition)
    for name in (claim, token_secret, *definition.pull_secrets):
        if not _OBJECT.fullmatch(name):
            raise InvalidInput(
                f"{name!r} can't be the name of a claim or a secret: lower-case letters, digits, '-' and '.' "
                "(RFC 1123)",
                code="invalid-workflow",
            )
    names = _names(definition)
    parameters = [argo.Parameter(name=PAYLOAD)]
    parameters += [argo.Parameter(name=n, value=v) for n, v in definition.parameters.items()]
    tasks = [
        argo.DAGTask(
            name=names[operator.name],
            template=names[operator.name],
            dependencies=sorted(names[source] for source in operator.sources) or None,
        )
        for operator in definition.operators
    ]
    steps = [
        _template(definition, operator, names[operator.name], service, token_secret, timeout)
        for operator in definition.operators
    ]
    secrets = [argo.LocalObjectReference(name=str(name)) for name in definition.pull_secrets]
    volume = argo.Volume(
        name=VOLUME,
        persistent_volume_claim=argo.PersistentVolumeClaimVolumeSource(claim_name=claim),
    )
    try:
        return argo.Workflow(
            api_version="argoproj.io/v1alpha1",
            kind="Workflow",
            metadata=argo.ObjectMeta(generate_name=f"{_label(definition.name)}-"),
            spec=argo.WorkflowSpec(
                entrypoint=DAG,
                arguments=argo.Arguments(parameters=parameters),
                image_pull_secrets=secrets or None,
                security_context=argo.PodSecurityContext(fs_group=GROUP),
                templates=[argo.Template(name=DAG, dag=argo.DAGTemplate(tasks=tasks)), *steps],
                volumes=[volume],
            ),
        )
    except ValidationError as error:
        raise InvalidInput(f"that makes no Argo workflow: {error}", code="invalid-workflow") from error  # fmt: skip


def to_yaml(made: argo.Workflow) -> str:
    """Return a workflow as a manifest."""
    yaml = YAML(typ="rt", pure=True)
    yaml.width = 4096
    text = StringIO()
    yaml.dump(made.model_dump(mode="json", by_alias=True, exclude_none=True), text)
    return str(text.getvalue())


def _template(
    definition: Definition, operator: Operator, name: str, service: str, token_secret: str, timeout: float
) -> argo.Template:  # fmt: skip
    container = operator.container
    variables = platform_variables(
        definition,
        operator,
        job_id="{{workflow.name}}",
        payload_id=f"{{{{workflow.parameters.{PAYLOAD}}}}}",
        service=service,
        place=lambda mount: str(mount.path),
    ) | {key: _parameterised(value, definition) for key, value in operator.variables.items()}
    environment = [argo.EnvVar(name=key, value=value) for key, value in variables.items()]
    if arguments(operator) is not None:
        environment.append(argo.EnvVar(name=settings.INPUT_URIS, value=input_uris(operator)))
        environment.append(_token(token_secret))
    mounts = [
        argo.VolumeMount(name=VOLUME, mount_path=str(each.path), sub_path=_place(each.folder), read_only=True)
        for each in operator.inputs
    ] + [
        argo.VolumeMount(name=VOLUME, mount_path=str(each.path), sub_path=_place(each.folder))
        for each in operator.outputs
    ]  # fmt: skip
    command = [_parameterised(word, definition) for word in container.command or ()]
    return argo.Template(
        name=name,
        active_deadline_seconds=argo.IntOrString(max(1, round(timeout))),
        container=argo.Container(
            image=f"{_parameterised(container.image, definition)}:{_parameterised(container.tag, definition)}",
            command=command or None,
            env=environment,
            resources=_resources(operator),
            volume_mounts=mounts or None,
        ),
    )


def _place(folder: str) -> str:
    return f"{{{{workflow.parameters.{PAYLOAD}}}}}/{folder}"


def _token(secret: str) -> argo.EnvVar:
    source = argo.EnvVarSource(
        secret_key_ref=argo.SecretKeySelector(name=secret, key=TOKEN_KEY, optional=True)
    )
    return argo.EnvVar(name=settings.variable("token"), value_from=source)


def _resources(operator: Operator) -> argo.ResourceRequirements | None:
    asked = operator.requests
    requests = {}
    if "cpu" in asked:
        requests["cpu"] = argo.Quantity(f"{asked['cpu']:g}")
    if "memory" in asked:
        requests["memory"] = argo.Quantity(f"{asked['memory']:g}Mi")
    limits = {"nvidia.com/gpu": argo.Quantity(f"{asked['gpu']:g}")} if asked.get("gpu") else {}
    if not requests and not limits:
        return None
    return argo.ResourceRequirements(requests=requests or None, limits=limits or None)


def _parameterised(text: Text, definition: Definition) -> str:
    """Return a text in which the pipeline's parameters are those of the workflow, to be set when it is submitted."""
    values = {name: f"{{{{workflow.parameters.{name}}}}}" for name in definition.parameters}
    return fill(text.raw, PLATFORM_VALUES | values)


def _check(definition: Definition) -> None:
    """Refuse what can't be translated.

    Raises:
        InvalidInput: It has services, or texts that Argo would take for its own, or a parameter of our own name.
    """
    for operator in definition.operators:
        if operator.services:
            raise InvalidInput(
                f"the operator {operator.name} has services ({', '.join(operator.services)}): write them into the "
                "exported workflow by hand, as sidecars of its template, and leave them out here",
                code="services",
            )
        for text in (*(operator.container.command or ()), *operator.variables.values()):
            if "{{" in fill(text.raw, PLATFORM_VALUES | dict.fromkeys(definition.parameters, "")):
                raise InvalidInput(
                    f"the operator {operator.name} has {text!r}: Argo takes {{{{…}}}} for a variable of its own",
                    code="invalid-workflow",
                )
    for name in sorted(_TAKEN & set(definition.parameters)):
        raise InvalidInput(
            f"a parameter can't be named {name!r}: the workflow has one of that name already",
            code="invalid-workflow",
        )


def _names(definition: Definition) -> dict[str, str]:
    """Return each operator's name as Argo takes it: letters, digits and hyphens, first a letter or digit."""
    found: dict[str, str] = {}
    for operator in definition.operators:
        name = str(operator.name)
        made = re.sub(r"[^A-Za-z0-9-]", "-", name).lstrip("-")[:100]
        if not made or made == DAG or made in found.values():
            made = f"{made or 'operator'}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
        found[name] = made
    return found


def _label(name: str) -> str:
    """Return a pipeline's name as Kubernetes takes it (RFC 1123 label), short enough for Argo to add to it."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40].strip("-") or DAG
