"""The test of a destination says at which step it fails, and what the receiver takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from clara_results.agents.dicom.association import CONTEXT_LIMIT, AssociationSettings
from clara_results.agents.dicom.echo import IMAGES, OTHERS, SYNTAXES, echo_destination
from clara_results.agents.secrets import Secrets
from clara_results.domain.receivers import AuthKind
from clara_results.wire.destinations import Auth, Destination, TestResult, Tls

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.faults.conftest import Conversation, ReceiverStarter, Script

SHORT = AssociationSettings(connect=2, association=0.5, dimse=0.5, release=0.5)
TRIED = len(IMAGES) * len(SYNTAXES) + len(OTHERS) * 3


def probe(
    port: int, tls: Tls | None = None, auth: Auth | None = None, secrets: Path | None = None
) -> TestResult:
    destination = Destination(
        name="Pacs", ae_title="ARCHIVE", host="127.0.0.1", port=port, tls=tls, auth=auth
    )
    return echo_destination(destination, Secrets(secrets), settings=SHORT)


def answers_echo(talk: Conversation) -> None:
    talk.accept()
    context, command, _ = talk.read_message()
    talk.respond(context, command)
    talk.read_message()


def takes(refuse: dict[str, int]) -> Script:
    """Accept an association for all but these SOP classes, which are refused with a result."""

    def script(talk: Conversation) -> None:
        talk.accept(refuse=refuse)
        talk.read_message()

    return script


def test_a_destination_that_answers(receiver: ReceiverStarter) -> None:
    peer = receiver(answers_echo, takes({OTHERS[0]: 3, IMAGES[1]: 4}))
    result = probe(peer.port)
    assert result.ok
    assert [(step.name, step.ok) for step in result.steps] == [
        (name, True) for name in ("connect", "association", "echo", "contexts")
    ]
    assert all(0 <= step.milliseconds < 5000 for step in result.steps)
    assert peer.connections == 1 + -(-TRIED // CONTEXT_LIMIT)
    assert result.contexts is not None
    assert len(result.contexts) == TRIED
    refused = [context for context in result.contexts if not context.accepted]
    assert {(context.sop_class_uid, context.reason) for context in refused} == {
        (IMAGES[1], "the receiver does not take this SOP class in this transfer syntax"),
        (OTHERS[0], "the receiver does not take this SOP class"),
    }
    assert len(refused) == len(SYNTAXES) + 3
    assert f"it takes {TRIED - len(refused)} of {TRIED} pairs" in result.steps[-1].message
    first = result.contexts[0]
    assert (first.sop_class, first.transfer_syntax) == (
        "CT Image Storage",
        "Implicit VR Little Endian",
    )


def echo_answers(status: int) -> Script:
    def script(talk: Conversation) -> None:
        talk.accept()
        context, command, _ = talk.read_message()
        talk.respond(context, command, status)
        talk.wait_for_end()

    return script


def echo_aborts(talk: Conversation) -> None:
    talk.accept()
    talk.read_message()
    talk.abort()


def refuses_echo(talk: Conversation) -> None:
    talk.accept(refuse={"1.2.840.10008.1.1": 3})
    talk.wait_for_end()


@pytest.mark.parametrize(
    ("scripts", "failed", "words"),
    [
        ([lambda talk: talk.reject(1, 1, 7)], "association", "called AE title not recognized"),
        ([lambda talk: talk.wait_for_end()], "association", "did not answer"),
        ([refuses_echo], "echo", "does not take C-ECHO"),
        ([echo_answers(0x0122)], "echo", "status 0122"),
        ([echo_aborts], "echo", "aborted the association"),
        ([answers_echo, lambda talk: talk.reject(2, 3, 2)], "contexts", "local limit exceeded"),
    ],
)
def test_a_destination_that_fails_says_at_which_step(
    receiver: ReceiverStarter, scripts: list[Script], failed: str, words: str
) -> None:
    result = probe(receiver(*scripts).port)
    assert not result.ok
    assert [step.ok for step in result.steps] == [True] * (len(result.steps) - 1) + [False]
    assert result.steps[-1].name == failed
    assert words in result.steps[-1].message
    assert result.contexts is None


def test_a_destination_that_is_not_there(free_port: Callable[[], int]) -> None:
    result = probe(free_port())
    assert [(step.name, step.ok) for step in result.steps] == [("connect", False)]
    assert "connection refused" in result.steps[0].message


def test_a_secret_that_is_not_there(free_port: Callable[[], int]) -> None:
    for result in (
        probe(free_port(), Tls(ca="authority")),
        probe(free_port(), auth=Auth(kind=AuthKind.BEARER, secret="authority")),
    ):
        assert [(step.name, step.ok) for step in result.steps] == [("secrets", False)]
        assert "'authority'" in result.steps[0].message


def test_a_receiver_without_tls(receiver: ReceiverStarter) -> None:
    result = probe(receiver(lambda talk: talk.wait_for_end()).port, Tls())
    assert [(step.name, step.ok) for step in result.steps] == [("connect", True), ("tls", False)]
    assert "no answer within 0.5 s; does the receiver speak TLS" in result.steps[1].message


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (answers_echo, "it says nothing"),
        (lambda talk: talk.reject(1, 2, 1), "may not take the user"),
    ],
)
def test_what_becomes_of_the_identity_is_said(
    receiver: ReceiverStarter, script: Script, words: str
) -> None:
    auth = Auth(kind=AuthKind.BASIC, user_name="ward")
    result = probe(receiver(script, takes({})).port, auth=auth)
    (step,) = [step for step in result.steps if step.name == "association"]
    assert words in step.message
