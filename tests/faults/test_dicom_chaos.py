"""A receiver that does something else each time, wrong things often: whatever it does, the books are right."""

from __future__ import annotations

import random
import threading
from typing import TYPE_CHECKING

import pytest

from clara_results.agents.dicom.association import AssociationSettings
from clara_results.agents.dicom.exporter import DicomExporter
from clara_results.agents.secrets import Secrets
from clara_results.domain.clock import SystemClock
from clara_results.domain.tasks import Outcome
from clara_results.errors import DestinationUnavailable
from clara_results.wire.destinations import Destination, Tls
from tests.support.certificates import Authority
from tests.support.delivery import FolderDelivery

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.conftest import CtWriter
    from tests.faults.conftest import Conversation, ReceiverStarter, Script

COUNT = 24
ATTEMPTS = 60
SHORT = AssociationSettings(
    connect=2, association=0.3, dimse=0.3, release=0.3, pause=0.01, idle=0.2
)
ACTS = {
    "takes it": 60,
    "takes it with a warning": 6,
    "takes it and aborts": 3,
    "takes it and resets": 3,
    "takes it and is silent": 1,
    "aborts": 4,
    "resets": 4,
    "is silent": 1,
    "breaks the protocol": 3,
    "is full": 2,
    "fails": 4,
    "refuses it": 2,
    "ends the association": 4,
}
"""What it may do with an instance, and how often of a hundred or so."""


class Chaos:
    """Plays with all who connect; what it takes stays taken."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)  # noqa: S311  (a game)
        self._lock = threading.Lock()
        self.held: set[str] = set()

    def _draw(self, choices: dict[str, int]) -> str:
        with self._lock:
            return self._chance.choices(list(choices), list(choices.values()))[0]

    def __call__(self, talk: Conversation) -> None:
        if self._draw({"accept": 9, "reject": 1}) == "reject":
            talk.reject(2, 3, 2)
            return
        talk.accept()
        while True:
            context, command, _ = talk.read_message()
            act = self._draw(ACTS)
            if act.startswith("takes it"):
                self.held.add(str(command.AffectedSOPInstanceUID))
            answers = {"takes it": 0, "takes it with a warning": 0xB000, "is full": 0xA700, "fails": 0x0110, "refuses it": 0xC001}  # fmt: skip
            if act in answers:
                talk.respond(context, command, answers[act])
                continue
            if act.endswith("aborts"):
                talk.abort()
            elif act.endswith("resets"):
                talk.reset()
            elif act.endswith("is silent"):
                talk.wait_for_end()
            elif act == "breaks the protocol":
                talk.respond(context, command, message_id=command.MessageID ^ 1)
                talk.wait_for_end()
            return


@pytest.fixture(scope="module")
def authority(
    require_tool: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory
) -> Authority:
    return Authority(require_tool("openssl"), tmp_path_factory.mktemp("authority"))


@pytest.mark.parametrize(
    ("seed", "associations", "secured"),
    [(0, 1, False), (8, 1, False), (17, 1, True), (0, 4, False), (1, 4, False), (2, 4, True)],
)
def test_the_books_are_right(
    receiver: ReceiverStarter,
    authority: Authority,
    tmp_path: Path,
    write_ct: CtWriter,
    seed: int,
    associations: int,
    secured: bool,
) -> None:
    by_uri = {
        f"{number:02}.dcm": str(
            write_ct(tmp_path / f"{number:02}.dcm", number=number).SOPInstanceUID
        )
        for number in range(COUNT)
    }
    chaos = Chaos(seed)
    script: Script = chaos
    peer = receiver(script, tls=authority.server() if secured else None)
    tls = Tls(ca="ca.pem") if secured else None
    pacs = Destination(name="Pacs", ae_title="PACS", host="127.0.0.1", port=peer.port, tls=tls)
    secrets = Secrets(authority.certificate.parent)
    sender = DicomExporter(lambda: [pacs], "ClaraSCU", SHORT, SystemClock(), secrets)
    settled: dict[str, Outcome] = {}
    for _ in range(ATTEMPTS):
        if len(settled) == COUNT:
            break
        delivery = FolderDelivery(tmp_path, associations=associations)
        try:
            sender.deliver(delivery)
        except DestinationUnavailable:
            pass  # it is tried again
        else:
            assert set(delivery.outcomes) == {file.uri for file in delivery.task.files or ()}
        for uri, told in delivery.outcomes.items():
            if told.outcome is Outcome.DELIVERED:
                assert by_uri[uri] in chaos.held, f"{told.code} made it delivered"
            if told.outcome is Outcome.REJECTED and not told.doubt:
                assert by_uri[uri] not in chaos.held, f"{told.code} came without a doubt"
            if told.outcome is not Outcome.RETRY:
                settled[uri] = told.outcome
                (tmp_path / uri).unlink()
        assert max(delivery.used, default=0) <= associations
    sender.close()
    peer.stop()
    assert len(settled) == COUNT
    assert Outcome.DELIVERED in settled.values()
