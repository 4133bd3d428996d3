"""How a definition's operators fit together: who reads what from whom."""

import graphlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from clara_results.pipeline.definition import (
    DEFAULT_OUTPUT,
    PAYLOAD_FOLDER,
    Definition,
    Input,
    Operator,
    Output,
)
from clara_results.pipeline.faults import Faults, Text
from clara_results.pipeline.reading import Mount, Step, Written
from clara_results.pipeline.source import guess


@dataclass(frozen=True, slots=True)
class _Resolved:
    """An input whose source is known: the operator's name as it writes it itself, and the folder."""

    mount: Mount
    source: str | None
    name: str
    folder: str


def wire(written: Written, faults: Faults) -> Definition | None:
    """Resolve a definition's inputs and order its operators.

    Returns:
        The definition; None where anything at all is wrong with it, which is noted.
    """
    steps = _named(written.steps, faults)
    outputs = {key: _outputs(step, faults) for key, step in steps.items()}
    resolved = {}
    for key, step in steps.items():
        found = (_resolve(mount, steps, outputs, faults) for mount in step.inputs)
        resolved[key] = [each for each in found if each is not None]
    order = _order(resolved, faults)
    operators = []
    for step in written.steps:
        _check_mounts(step, faults)
    for key in order:
        step = steps[key]
        inputs = _inputs(resolved[key], faults)
        if step.name is not None and step.container is not None:
            operators.append(
                Operator(
                    name=step.name,
                    container=step.container,
                    variables=step.variables,
                    requests=step.requests,
                    inputs=inputs,
                    outputs=tuple(outputs[key].values()),
                    services=step.services,
                )
            )
    if faults.found or written.name is None:
        return None
    return Definition(written.name, written.parameters, written.pull_secrets, tuple(operators))


def _named(steps: Iterable[Step], faults: Faults) -> dict[str, Step]:
    """Return the operators by their names' folded form, the first of each name; nameless ones by their place."""
    found: dict[str, Step] = {}
    for step in steps:
        name = step.name
        if name is None:
            found[step.where] = step
            continue
        first = found.setdefault(name.casefold(), step)
        if first is not step and first.name is not None:
            faults.add(
                name.at, f"{step.where}.name", "duplicate-name",
                f"two operators are named {name!r} (the first in line {first.name.at.line}): names differ, "
                "without regard to case",
            )  # fmt: skip
        if name.casefold() == PAYLOAD_FOLDER:
            faults.add(
                name.at, f"{step.where}.name", "invalid-name",
                f"an operator can't be named {name!r}: so is the folder of the pipeline's own input",
            )  # fmt: skip
    return found


def _outputs(step: Step, faults: Faults) -> dict[str, Output]:
    """Return an operator's outputs by their names' folded form."""
    found: dict[str, Output] = {}
    for mount in step.outputs:
        if mount.name is None and len(step.outputs) > 1:
            faults.add(
                mount.at.at, f"{mount.where}.name", "missing",
                "name is missing here: of several outputs each needs one",
            )  # fmt: skip
            continue
        name = mount.name or Text(DEFAULT_OUTPUT, mount.at.at)
        if name.casefold() in found:
            faults.add(
                name.at, f"{mount.where}.name", "duplicate-name",
                f"two outputs of this operator are named {name!r}",
            )  # fmt: skip
            continue
        found[name.casefold()] = Output(name, mount.path, f"{step.name}/{name}")
    return found


def _resolve(
    mount: Mount,
    steps: Mapping[str, Step],
    outputs: Mapping[str, Mapping[str, Output]],
    faults: Faults,
) -> _Resolved | None:
    if mount.source is None:
        return _Resolved(mount, None, str(mount.name or PAYLOAD_FOLDER), PAYLOAD_FOLDER)
    key = mount.source.casefold()
    if key not in steps:
        names = [str(step.name) for step in steps.values() if step.name]
        faults.add(
            mount.source.at, f"{mount.where}.from", "unknown-operator",
            f"there is no operator {mount.source!r}{guess(mount.source, names)}",
        )  # fmt: skip
        return None
    found = _output_of(mount, outputs[key], faults)
    return (
        None
        if found is None
        else _Resolved(mount, str(steps[key].name), str(found.name), found.folder)
    )


def _output_of(mount: Mount, outputs: Mapping[str, Output], faults: Faults) -> Output | None:
    names = [str(each.name) for each in outputs.values()]
    at, where, source = mount.at.at, f"{mount.where}.name", str(mount.source)
    if not outputs:
        at, where = (mount.source or mount.at).at, f"{mount.where}.from"
        wrong = f"the operator {source!r} has no output that could be read"
    elif mount.name is not None and mount.name.casefold() not in outputs:
        at = mount.name.at
        wrong = (
            f"the operator {source!r} has no output {mount.name!r}{guess(mount.name, names)}; "
            f"it has {', '.join(names)}"
        )
    elif mount.name is None and len(outputs) > 1:
        wrong = f"name is missing here: {source!r} has several outputs: {', '.join(names)}"
    else:
        return outputs[mount.name.casefold()] if mount.name else next(iter(outputs.values()))
    faults.add(at, where, "unknown-output", wrong)
    return None


def _order(resolved: Mapping[str, list[_Resolved]], faults: Faults) -> list[str]:
    """Return the operators, each after those that it reads from; every cycle is noted."""
    reads = {
        key: {each.source.casefold(): each for each in inputs if each.source is not None}
        for key, inputs in resolved.items()
    }
    while True:
        try:
            return list(graphlib.TopologicalSorter(reads).static_order())
        except graphlib.CycleError as error:
            cycle = list(error.args[1])  # each is read by the next; the first is the last again
            names = {
                each.source.casefold(): each.source for of in reads.values() for each in of.values() if each.source
            }  # fmt: skip
            closing = reads[cycle[1]].pop(cycle[0])
            origin = closing.mount.source or closing.mount.at
            told = " → ".join(names[key] for key in cycle)
            faults.add(
                origin.at, f"{closing.mount.where}.from", "cycle",
                f"{names[cycle[0]]!r} reads from itself" if len(cycle) == 2
                else f"the operators wait for each other: {told}",
            )  # fmt: skip


def _check_mounts(step: Step, faults: Faults) -> None:
    """Note paths on which two folders would be mounted."""
    seen: dict[str, Text] = {}
    for mount in (*step.inputs, *step.outputs):
        first = seen.setdefault(mount.path, mount.path)
        if mount.path and first is not mount.path:
            faults.add(
                mount.path.at, f"{mount.where}.path", "duplicate-path",
                f"two folders of this operator are mounted on {mount.path} (the first in line {first.at.line})",
            )  # fmt: skip


def _inputs(resolved: Iterable[_Resolved], faults: Faults) -> tuple[Input, ...]:
    """Return an operator's inputs, with names of which no two are alike."""
    resolved = list(resolved)
    plain = [each.name.casefold() for each in resolved]
    found: dict[str, Input] = {}
    for each in resolved:
        alike = plain.count(each.name.casefold()) > 1
        name = f"{each.source or PAYLOAD_FOLDER}-{each.name}" if alike else each.name
        if name.casefold() in found:
            faults.add(
                each.mount.at.at, each.mount.where, "duplicate-input",
                f"this operator takes {each.name!r} of {each.source or 'the payload'!r} twice",
            )  # fmt: skip
        found[name.casefold()] = Input(name, each.mount.path, each.source, each.folder)
    return tuple(found.values())
