"""The steps of a pipeline that register results: found, and checked before anything runs."""

import posixpath
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from clara_results.client import ResultsClient
from clara_results.domain import names
from clara_results.errors import ClaraResultsError, InvalidInput
from clara_results.pipeline.definition import Definition, Operator
from clara_results.pipeline.faults import Faults, Position, Text
from clara_results.pipeline.source import guess

IMAGE = "register-results"
SIDE_BY_SIDE = 8
"""Destinations that are tested at the same time."""


@dataclass(frozen=True, slots=True)
class Registration:
    """What a register step's command line asks for.

    Attributes:
        agent: Who is to take the results up; None: it does not say.
        destinations: The elements of ``--data`` that are texts: each names a destination.
    """

    agent: str | None
    destinations: tuple[str, ...]


ReadCommand = Callable[[Sequence[str]], Registration]
"""Reads the arguments of ``register``; raises InvalidInput where they are wrong."""


def arguments(operator: Operator) -> tuple[Text, ...] | None:
    """Return the arguments that an operator gives to ``register``; None: it is another kind of step."""
    command = operator.container.command or ()
    for index, word in enumerate(command):
        program = posixpath.basename(word)
        if program == "register.py":
            return command[index + 1 :]
        if program == "register" and posixpath.basename(command[index - 1]) == "clara-results":
            return command[index + 1 :]
    return () if posixpath.basename(operator.container.image) == IMAGE else None


def check_register_steps(
    definition: Definition, read: ReadCommand, faults: Faults
) -> dict[str, Registration]:
    """Check the command line of each register step.

    Args:
        definition: The pipeline.
        read: Reads the arguments.
        faults: Gathers what is wrong.

    Returns:
        What each asks for, by operator; those that are wrong are left out.
    """
    found = {}
    for operator in definition.operators:
        given = arguments(operator)
        if given is None:
            continue
        where = f"operator {operator.name}"
        if not operator.inputs:
            faults.add(
                operator.name.at, where, "missing", "a register step without input registers nothing: map one"
            )  # fmt: skip
        try:
            asked = read(given)
            if asked.agent is None:
                at = given[0].at if given else operator.container.image.at
                faults.add(
                    at, where, "missing", "--agent is missing: who is to take the results up"
                )
            else:
                _check_agent(asked.agent)
                found[str(operator.name)] = asked
        except InvalidInput as error:
            at = _culprit(given, error.code) or operator.container.image.at
            faults.add(at, where, error.code, str(error))
    return found


def _check_agent(name: str) -> None:
    try:
        names.agent_name(name)
    except InvalidInput as error:
        raise InvalidInput(f"{name!r}: {error}", code=error.code) from error


def _culprit(given: Sequence[Text], code: str) -> Position | None:
    """Return where the flag's value stands that an error is about, else where the arguments begin."""
    flag = {"invalid-data": "--data", "invalid-agent-name": "--agent"}.get(code)
    for index, word in enumerate(given):
        if flag is not None and word == flag and index + 1 < len(given):
            return given[index + 1].at
        if flag is not None and word.startswith(f"{flag}="):
            return word.at
    return given[0].at if given else None


def check_with_service(
    definition: Definition,
    asked: dict[str, Registration],
    client: ResultsClient,
    faults: Faults,
) -> None:
    """Ask the service whether it knows the agents, and whether each destination exists and answers.

    Args:
        definition: The pipeline.
        asked: What its register steps ask for, by operator.
        client: Of the service.
        faults: Gathers what is wrong.

    Raises:
        ServiceUnavailable: The service does not answer.
        ClaraResultsError: It refuses to say.
    """
    agents = {each.agent for each in client.agents().items}
    known = {names.name_key(each.name): each.name for each in client.destinations()}
    wanted = {names.name_key(name) for each in asked.values() for name in each.destinations}
    with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        chosen = sorted(wanted & set(known))
        answers = dict(zip(chosen, pool.map(lambda key: _answers(client, known[key]), chosen), strict=True))  # fmt: skip
    for operator in definition.operators:
        if operator.name not in asked:
            continue
        agent, destinations = asked[operator.name].agent or "", asked[operator.name].destinations
        given = arguments(operator) or ()
        where = f"operator {operator.name}"
        if agent.lower() not in agents:
            faults.add(
                _culprit(given, "invalid-agent-name") or operator.name.at, where, "unknown-agent",
                f"no agent {agent!r} has asked {client.url} for tasks in the last day"
                f"{guess(agent.lower(), agents)}; seen: {', '.join(sorted(agents)) or 'none'}",
            )  # fmt: skip
        at = _culprit(given, "invalid-data") or operator.name.at
        for name in destinations:
            key = names.name_key(name)
            if key not in known:
                faults.add(
                    at, where, "unknown-destination",
                    f"{client.url} has no destination {name!r}{guess(name, known.values())}: add it, or name another",
                )  # fmt: skip
            elif answers[key] is not None:
                faults.add(
                    at, where, "destination-unavailable", f"the destination {name!r} does not answer: {answers[key]}"
                )  # fmt: skip


def _answers(client: ResultsClient, name: str) -> str | None:
    """Return why a destination can't be reached; None: it answers."""
    try:
        result = client.test_destination(name)
    except ClaraResultsError as error:
        return str(error)
    failed = [step for step in result.steps if not step.ok]
    if result.ok:
        return None
    return f"{failed[-1].name}: {failed[-1].message}" if failed else "its test failed"
