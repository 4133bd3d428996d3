"""A DICOMweb service that does anything at any time: what is told of an instance must be true all the same."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from clara_results.agents.dicomweb.connection import WebSettings
from clara_results.agents.dicomweb.exporter import DicomWebExporter
from clara_results.agents.secrets import Secrets
from clara_results.domain.clock import SystemClock
from clara_results.domain.tasks import Outcome
from clara_results.errors import DestinationUnavailable
from clara_results.wire.destinations import Destination
from tests.support.delivery import FolderDelivery
from tests.support.web import Exchange, WebPeer, as_xml, references

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from clara_results.wire.tasks import FileOutcome
    from tests.conftest import CtWriter

INSTANCES = 24
ATTEMPTS = 40
SETTINGS = WebSettings(connect=5, answer=10, pause=0.001, batch_files=5)
FINAL = {Outcome.DELIVERED, Outcome.REJECTED}


class Chaos:
    """A script that keeps some of what comes, and then does something or other; it never says what is not so."""

    def __init__(self, seed: int) -> None:
        self._dice = random.Random(seed)  # noqa: S311  (a game)

    def __call__(self, exchange: Exchange) -> None:
        act: Callable[[Exchange, random.Random, list[str], list[str]], None]
        with exchange.peer.lock:
            act = self._dice.choice(
                [self._answers, self._answers, self._answers, self._breaks, self._refuses, self._says_nothing]
            )  # fmt: skip
            share, seed = self._dice.choice([0.0, 0.5, 1.0, 1.0]), self._dice.random()
        dice = random.Random(seed)  # noqa: S311
        if act is self._breaks and dice.random() < 0.3:
            exchange.reset()  # before anything is read
            return
        sent = list(exchange.instances())
        chosen = [uid for uid in sent if dice.random() < share]
        kept = exchange.keep(*(chosen or ["none"]))
        act(exchange, dice, sent, kept)

    def _answers(
        self, exchange: Exchange, dice: random.Random, sent: list[str], kept: list[str]
    ) -> None:
        reasons = [0x0110, 0xA700, 0xA900, 0xC000, 0xFE00, None]
        stored = {uid: dice.choice([None, None, 0xB000]) for uid in kept}
        failed = {uid: dice.choice(reasons) for uid in sent if uid not in kept}
        body = references(stored, failed)
        exchange.answer(dice.choice([200, 202, 409]), dice.choice([body, as_xml(body)]))

    def _breaks(
        self, exchange: Exchange, dice: random.Random, sent: list[str], kept: list[str]
    ) -> None:
        how = dice.choice(["drop", "reset", "cut"])
        if how == "drop":
            exchange.drop()
        elif how == "reset":
            exchange.reset()
        else:
            exchange.raw(b"HTTP/1.1 200 OK\r\nContent-L")

    def _refuses(
        self, exchange: Exchange, dice: random.Random, sent: list[str], kept: list[str]
    ) -> None:
        status = dice.choice([400, 409, 413, 415, 429, 500, 502, 503, 507])
        if status in {413, 415, 429}:  # said before anything is stored
            for uid in kept:
                exchange.peer.forget(uid)
        exchange.answer(status, headers=dice.choice([{}, {"Retry-After": "0"}]))

    def _says_nothing(
        self, exchange: Exchange, dice: random.Random, sent: list[str], kept: list[str]
    ) -> None:
        exchange.answer(dice.choice([200, 202]), dice.choice([b"", b"{}", references(kept[:1])]))


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("asked", [True, False])
def test_what_is_told_is_true(tmp_path: Path, write_ct: CtWriter, seed: int, asked: bool) -> None:
    folder = tmp_path / "task"
    files = {}
    for number in range(INSTANCES):
        name = f"{number:02}.dcm"
        files[name] = str(write_ct(folder / name, number=number).SOPInstanceUID)
    peer = WebPeer(Chaos(seed))
    peer.lookups = None if asked else 501
    pacs = Destination(name="PACS", kind="dicomweb", url=peer.url)
    exporter = DicomWebExporter(lambda: [pacs], Secrets(None), SETTINGS, SystemClock())
    told: dict[str, FileOutcome] = {}
    for attempt in range(1, ATTEMPTS + 1):
        left = [name for name in files if name not in told or told[name].outcome not in FINAL]
        if not left:
            break
        delivery = FolderDelivery(folder, associations=3)
        files_left = [file for file in delivery.task.files or () if file.uri in left]
        delivery.task = replace(delivery.task, attempt=attempt, files=files_left)
        try:
            exporter.deliver(delivery)
        except DestinationUnavailable:
            assert set(delivery.outcomes) <= set(left)
        else:
            assert set(delivery.outcomes) == set(left)
        told |= delivery.outcomes
    peer.stop()
    exporter.close()
    outcomes = {name: one.outcome for name, one in told.items()}
    assert set(outcomes) == set(files)
    assert set(outcomes.values()) <= FINAL
    for name, uid in files.items():
        if outcomes[name] is Outcome.DELIVERED:
            assert peer.stored[uid] == (folder / name).read_bytes()
        elif not told[name].doubt:
            assert uid not in peer.stored
    if asked:
        assert set(peer.times_stored.values()) == {1}
