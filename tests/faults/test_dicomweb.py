"""What becomes of a task when its DICOMweb service misbehaves."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from collections import Counter
from datetime import timedelta
from email.utils import format_datetime
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import pytest

from clara_results.agents.dicomweb.connection import WebSettings
from clara_results.agents.dicomweb.exporter import DicomWebExporter
from clara_results.agents.exporter import TaskRejected
from clara_results.agents.secrets import Secrets
from clara_results.domain.clock import SystemClock
from clara_results.domain.receivers import Clearance, Verify
from clara_results.domain.tasks import Outcome
from clara_results.errors import DestinationUnavailable, LeaseLost, Stopping
from clara_results.wire.destinations import Destination
from tests.support.delivery import FolderDelivery
from tests.support.web import Exchange, WebPeer, as_xml, references, takes_all

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from clara_results.wire.tasks import ResultFile
    from tests.conftest import CtWriter
    from tests.support.web import Script

SHORT = WebSettings(connect=5, answer=5, pause=0.01)
IMPATIENT = WebSettings(connect=5, answer=1, pause=0.01)
SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"
KEY_OBJECTS = "1.2.840.10008.5.1.4.1.1.88.59"

DELIVERED, REJECTED, RETRY = Outcome.DELIVERED, Outcome.REJECTED, Outcome.RETRY


@pytest.fixture
def peer() -> Iterator[Callable[..., WebPeer]]:
    """Give a function that starts scripted services for the time of the test."""
    with contextlib.ExitStack() as running:

        def start(*scripts: Script) -> WebPeer:
            made = WebPeer(*scripts)
            running.callback(made.stop)
            return made

        yield start


def deliver(
    peer: WebPeer | str,
    folder: Path,
    *,
    attempt: int = 1,
    settings: WebSettings = SHORT,
    delivery: FolderDelivery | None = None,
    exporter: DicomWebExporter | None = None,
    **changes: Any,
) -> FolderDelivery:
    """Deliver a folder to a service under the name PACS; the outcomes told so far are kept when that fails."""
    made = delivery or FolderDelivery(folder)
    made.task = dataclasses.replace(made.task, attempt=attempt)
    used = exporter or exporter_of(peer, settings, **changes)
    used.deliver(made)
    return made


def exporter_of(
    peer: WebPeer | str, settings: WebSettings = SHORT, **changes: Any
) -> DicomWebExporter:
    url = peer if isinstance(peer, str) else peer.url
    pacs = Destination(name="Pacs", kind="dicomweb", url=url, **changes)
    return DicomWebExporter(lambda: [pacs], Secrets(None), settings, SystemClock())


def series(folder: Path, write_ct: CtWriter, count: int) -> list[str]:
    """Write a series and return its SOP Instance UIDs in order; the files are 0.dcm, 1.dcm, …"""
    return [
        str(write_ct(folder / f"{number}.dcm", number=number).SOPInstanceUID)
        for number in range(count)
    ]


def told(delivery: FolderDelivery) -> dict[str, tuple[Outcome, str | None, bool]]:
    return {
        uri.removesuffix(".dcm"): (one.outcome, one.code, one.doubt)
        for uri, one in sorted(delivery.outcomes.items())
    }


def once(peer: WebPeer, uids: list[str]) -> None:
    """Check that the service has stored all of these, each once."""
    assert peer.times_stored == dict.fromkeys(uids, 1)


# What goes well


def test_all_arrive_byte_by_byte_and_are_announced_first(
    peer: Callable[..., WebPeer], tmp_path: Path, write_ct: CtWriter
) -> None:
    uids = series(tmp_path, write_ct, 5)
    delivery = FolderDelivery(tmp_path)

    def script(exchange: Exchange) -> None:
        announced.append(len(delivery.announced))
        takes_all(exchange)

    announced: list[int] = []
    web = peer(script)
    deliver(web, tmp_path, delivery=delivery)
    assert told(delivery) == dict.fromkeys("01234", (DELIVERED, "stored", False))
    assert [one.sop_instance_uid for one in delivery.outcomes.values()] == uids
    assert web.stored == {
        uid: (tmp_path / f"{number}.dcm").read_bytes() for number, uid in enumerate(uids)
    }
    assert announced == [5]
    assert delivery.bytes_told == sum(map(len, web.stored.values()))
    assert delivery.used[-1] == 0
    assert max(delivery.used) == 1


@pytest.mark.parametrize(
    ("settings", "sizes"),
    [
        (dataclasses.replace(SHORT, batch_files=3), [3, 3, 1]),
        (dataclasses.replace(SHORT, batch_bytes=4000), [2, 2, 2, 1]),
        (dataclasses.replace(SHORT, batch_bytes=1), [1] * 7),
        (SHORT, [7]),
    ],
)
def test_batches_by_count_and_bytes(
    peer: Callable[..., WebPeer],
    tmp_path: Path,
    write_ct: CtWriter,
    settings: WebSettings,
    sizes: list[int],
) -> None:
    series(tmp_path, write_ct, 7)
    seen = []

    def script(exchange: Exchange) -> None:
        seen.append(len(exchange.instances()))
        takes_all(exchange)

    deliver(peer(script), tmp_path, settings=settings)
    assert seen == sizes


def test_what_refers_to_others_waits_for_them_on_all_connections(
    peer: Callable[..., WebPeer], tmp_path: Path, write_ct: CtWriter
) -> None:
    series(tmp_path, write_ct, 6)
    for name, sop_class in (("s", SEGMENTATION), ("k", KEY_OBJECTS)):
        for number in (7, 8):
            write_ct(tmp_path / f"{name}{number}.dcm", number=number, SOPClassUID=sop_class)
    together = threading.Barrier(3)
    stages: list[tuple[int, str]] = []
    lock = threading.Lock()

    def script(exchange: Exchange) -> None:
        (file,) = exchange.instances().values()
        stage = next((n for n, uid in enumerate((SEGMENTATION, KEY_OBJECTS), 1) if uid.encode() in file), 0)  # fmt: skip
        with lock:
            stages.append((stage, "begins"))
        if stage == 0:
            together.wait(10)  # three are under way at a time
        takes_all(exchange)
        with lock:
            stages.append((stage, "ends"))

    web = peer(script)
    delivery = FolderDelivery(tmp_path, associations=3)
    settings = dataclasses.replace(SHORT, batch_files=1, answer=10)
    deliver(web, tmp_path, delivery=delivery, settings=settings)
    assert [stage for stage, _ in stages] == sorted(stage for stage, _ in stages)
    assert len(told(delivery)) == 10
    assert max(delivery.used) == 3
    assert web.most_connections == 3


def test_fewer_connections_when_the_task_may_have_fewer(
    peer: Callable[..., WebPeer], tmp_path: Path, write_ct: CtWriter
) -> None:
    series(tmp_path, write_ct, 40)
    delivery = FolderDelivery(tmp_path, associations=4)
    open_at_the_end = []

    def script(exchange: Exchange) -> None:
        if exchange.peer.stows > 10:
            delivery.associations = 1
        if exchange.peer.stows > 20:
            open_at_the_end.append(exchange.peer.open_connections)
        takes_all(exchange)

    deliver(peer(script), tmp_path, delivery=delivery, settings=dataclasses.replace(SHORT, batch_files=1))  # fmt: skip
    assert delivery.used.count(4) == 1
    assert open_at_the_end[-10:] == [1] * 10


def test_clearances_are_obeyed(
    peer: Callable[..., WebPeer], tmp_path: Path, write_ct: CtWriter
) -> None:
    uids = series(tmp_path, write_ct, 3)
    clearances = {"0.dcm": Clearance.DELIVERED, "2.dcm": Clearance.REUSED}
    web = peer()
    delivery = deliver(web, tmp_path, delivery=FolderDelivery(tmp_path, clearances=clearances))
    once(web, [uids[1]])
    assert {uri: code for uri, (_, code, _) in told(delivery).items()} == {
        "0": "already-delivered",
        "1": "stored",
        "2": "uid-reused",
    }


def test_a_connection_that_was_closed_meanwhile_is_opened_again(
    peer: Callable[..., WebPeer], tmp_path: Path, write_ct: CtWriter
) -> None:
    uids = series(tmp_path, write_ct, 4)

    def script(exchange: Exchange) -> None:
        takes_all(exchange)
        exchange.drop()  # after the answer: as with Keep-Alive: timeout=…

    web = peer(script)
    delivery = deliver(web, tmp_path, settings=dataclasses.replace(SHORT, batch_files=1))
    once(web, uids)
    assert Counter(code for _, code, _ in told(delivery).values())["stored"] >= 1


@pytest.mark.parametrize("parameters", ['"elsewhere"', None, "[]"])
def test_a_task_that_names_no_dicomweb_destination_is_rejected(
    tmp_path: Path, parameters: str | None
) -> None:
    with pytest.raises(TaskRejected, match="here are: Pacs"):
        deliver("http://127.0.0.1:1", tmp_path, delivery=FolderDelivery(tmp_path, parameters))


# The answer, instance by instance


@pytest.mark.parametrize("xml", [False, True])
@pytest.mark.parametrize("status", [200, 202, 409, 400])
def test_an_answer_is_read_instance_by_instance(
    peer: Callable[..., WebPeer], tmp_path: Path, write_ct: CtWriter, status: int, xml: bool
) -> None:
    uids = series(tmp_path, write_ct, 6)

    def script(exchange: Exchange) -> None:
        exchange.keep(uids[0], uids[1])
        answer = references(
            {uids[0]: None, uids[1]: 0xB000},
            {uids[2]: 0xA900, uids[3]: 0x0110, uids[4]: 0xC122, uids[5]: None},
        )
        if xml:
            exchange.answer(status, as_xml(answer), content_type="application/dicom+xml")
        else:
            exchange.answer(status, answer)

    delivery = deliver(peer(script), tmp_path)
    assert told(delivery) == {
        "0": (DELIVERED, "stored", False),
        "1": (DELIVERED, "B000", False),
        "2": (REJECTED, "A900", False),
        "3": (RETRY, "0110", False),
        "4": (REJECTED, "C122", False),
        "5": (REJECTED, f"http-{status}", False),
    }
    assert "coerced" in str(delivery.outcomes["1.dcm"].message)


def test_what_statuses_mean_is_the_destinations_to_say(
    peer: Callable[..., WebPeer], tmp_path: Path, write_ct: CtWriter
) -> None:
    uids = series(tmp_path, write_ct, 3)

    def script(exchange: Exchange) -> None:
        exchange.keep(uids[0], uids[1])
        exchange.answer(202, references({uids[0]: 0xB007, uids[1]: 0xB006}, {uids[2]: 0xC000}))

    delivery = deliver(peer(script), tmp_path, statuses={"B007": "reject", "Cxxx": "retry"})
    assert told(delivery) == {
        "0": (REJECTED, "B007", True),
        "1": (DELIVERED, "B006", False),
        "2": (RETRY, "C000", False),
    }


def test_no_room_for_one_makes_the_task_wait_and_keeps_what_was_told(
    peer: Callable[..., WebPeer], tmp_path: Path, write_ct: CtWriter
) -> None:
    uids = series(tmp_path, write_ct, 3)
    delivery = FolderDelivery(tmp_path)

    def script(exchange: Exchange) -> None:
        exchange.keep(uids[0])
        exchange.answer(202, references([uids[0]], {uids[1]: 0xA700, uids[2]: 0xA901}))

    with pytest.raises(DestinationUnavailable, match="A700: refused: out of resources") as caught:
        deliver(peer(script), tmp_path, delivery=delivery)
    assert caught.value.code == "out-of-resources"
    assert told(delivery) == {"0": (DELIVERED, "stored", False), "2": (REJECTED, "A901", False)}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"[]",
        b"OK",
        b'{"00081199": {"vr": "SQ"}}',
        b'{"00081199": {"vr": "SQ", "Value": [7, {"00081155": {"vr": "UI", "Value": [null]}}]}}',
        b"[" * 100_000,
        b"<NativeDicomModel/>",
        b"<html><body>stored</body>",
        b'<!DOCTYPE x [<!ENTITY a "aaaa">]><NativeDicomModel>&a;</NativeDicomModel>',
        references(["1.2.3"]),
    ],
)
def test_success_with_nothing_stored_is_a_failure(
    peer: Callable[..., WebPeer], tmp_path: Path, write_ct: CtWriter, body: bytes
) -> None:
    series(tmp_path, write_ct, 2)

    def script(exchange: Exchange) -> None:
        exchange.body()
        exchange.answer(200, body)

    delivery = FolderDelivery(tmp_path)
    with pytest.raises(DestinationUnavailable, match="answered 200 and stored nothing") as caught:
        deliver(peer(script), tmp_path, delivery=delivery)
    assert caught.value.code == "nothing-stored"
    assert told(delivery) == {}


def test_success_with_one_left_out_is_a_failure_of_that_one(
    peer: Callable[..., WebPeer], tmp_path: Path, write_ct: CtWriter
) -> None:
    uids = series(tmp_path, write_ct, 3)

    def script(exchange: Exchange) -> None:
        kept = [uid for uid in exchange.instances() if uid != uids[1]]
        exchange.answer(200, references(exchange.keep(*(kept or ["none"]))))

    for settings in (SHORT, dataclasses.replace(SHORT, batch_files=1)):
        delivery = deliver(peer(script), tmp_path, settings=settings)
        assert told(delivery).pop("1") == (RETRY, "not-stored", True)
        assert len(delivery.codes(Outcome.DELIVERED)) == 2


def test_success_without_a_word_counts_for_what_is_there(
    peer: Callable[..., WebPeer], tmp_path: Path, write_ct: CtWriter
) -> None:
    uids = series(tmp_path, write_ct, 3)

    def script(exchange: Exchange) -> None:
        exchange.keep(uids[0], uids[2])
        exchange.answer(200)

    delivery = deliver(peer(script), tmp_path)
    assert told(delivery) == {
        "0": (DELIVERED, "already-stored", False),
        "1": (RETRY, "not-stored", True),
        "2": (DELIVERED, "already-stored", False),
    }


@pytest.mark.parametrize("reason", [0x0111, 45070, 0xFE00, 0xB123])
@pytest.mark.parametrize("status", [200, 409])
def test_already_stored_is_delivered_only_if_it_is_ours(
    peer: Callable[..., WebPeer], tmp_path: Path, write_ct: CtWriter, reason: int, status: int
) -> None:
    uids = series(tmp_path / "task", write_ct, 3)
    write_ct(tmp_path / "other.dcm", number=7, SOPInstanceUID=uids[1])

    def script(exchange: Exchange) -> None:
        exchange.answer(status, references([], dict.fromkeys(exchange.instances(), reason)))

    web = peer(script)
    web.stored[uids[0]] = (tmp_path / "task" / "0.dcm").read_bytes()
    web.stored[uids[1]] = (tmp_path / "other.dcm").read_bytes()
    delivery = deliver(web, tmp_path / "task")
    assert told(delivery) == {
        "0": (DELIVERED, "already-stored", False),
        "1": (REJECTED, "verify-mismatch", False),
        "2": (REJECTED, f"{reason:04X}", True),
    }


@pytest.mark.parametrize("lookups", [400, 405, 501])
def test_already_stored_is_not_delivered_if_it_can_not_be_asked_for(
    peer: Callable[..., WebPeer], tmp_path: Path, write_ct: CtWriter, lookups: int
) -> None:
    (uid,) = series(tmp_path, write_ct, 1)

    def script(exchange: Exchange) -> None:
        exchange.keep()
        exchange.answer(409, references([], {uid: 0x0111}))

    web = peer(script)
    web.lookups = lookups
    assert told(deliver(web, tmp_path)) == {"0": (REJECTED, "0111", True)}


@pytest.mark.parametrize("status", [400, 409, 415, 422])
def test_a_refusal_without_a_word_is_told_of_those_that_bring_it_about(
    peer: Callable[..., WebPeer], tmp_path: Path, write_ct: CtWriter, status: int
) -> None:
    uids = series(tmp_path, write_ct, 9)

    def script(exchange: Exchange) -> None:
        if uids[3] in exchange.instances():
            exchange.answer(status)
        else:
            takes_all(exchange)

    web = peer(script)
    delivery = deliver(web, tmp_path)
    assert told(delivery).pop("3") == (REJECTED, f"http-{status}", False)
    once(web, [uid for uid in uids if uid != uids[3]])


def test_409_without_a_word_counts_for_what_is_there(
    peer: Callable[..., WebPeer], tmp_path: Path, write_ct: CtWriter
) -> None:
    uids = series(tmp_path, write_ct, 4)

    def script(exchange: Exchange) -> None:
        exchange.instances()
        exchange.answer(409)

    web = peer(script)
    for number in (0, 2):
        web.stored[uids[number]] = (tmp_path / f"{number}.dcm").read_bytes()
    assert told(deliver(web, tmp_path)) == {
        "0": (DELIVERED, "already-stored", False),
        "1": (REJECTED, "http-409", False),
        "2": (DELIVERED, "already-stored", False),
        "3": (REJECTED, "http-409", False),
    }


def test_a_refusal_without_a_word_leaves_a_doubt_where_nothing_can_be_asked(
    peer: Callable[..., WebPeer], tmp_path: Path, write_ct: CtWriter
) -> None:
    series(tmp_path, write_ct, 2)

    def script(exchange: Exchange) -> None:
        exchange.instances()
        exchange.answer(409)

    web = peer(script)
    web.lookups = 501
    assert told(deliver(web, tmp_path)) == dict.fromkeys("01", (REJECTED, "http-409", True))


@pytest.mark.parametrize("early", [False, True])
def test_413_halves_the_batch_and_rejects_what_is_too_large_alone(
    peer: Callable[..., WebPeer], tmp_path: Path, write_ct: CtWriter, early: bool
) -> None:
    uids = series(tmp_path, write_ct, 8)
    large = str(write_ct(tmp_path / "large.dcm", number=9, size=1500).SOPInstanceUID)

    def script(exchange: Exchange) -> None:
        if exchange.length < 5000:
            takes_all(exchange)
            return
        if not early:
            exchange.body()
        exchange.answer(413)
        if early:
            exchange.drop()  # with most of the request unread: the connection is reset

    web = peer(script)
    delivery = deliver(web, tmp_path, settings=dataclasses.replace(SHORT, answer=5))
    outcome, code, _ = told(delivery).pop("large")
    assert outcome is REJECTED
    # An answer may be lost with the connection.
    assert code in ({"too-large", "breaks-connection"} if early else {"too-large"})
    assert large not in web.stored
    once(web, uids)


def test_what_a_receiver_says_in_words_goes_nowhere(
    peer: Callable[..., WebPeer],
    tmp_path: Path,
    write_ct: CtWriter,
    caplog: pytest.LogCaptureFixture,
) -> None:
    uids = series(tmp_path, write_ct, 3)

    def script(exchange: Exchange) -> None:
        exchange.keep(uids[0])
        body = references([uids[0]], {uids[1]: 0xC000})[:-1] + b', "00081190": {"Value": ["Doe"]}}'
        head = b"HTTP/1.1 409 Doe\r\nX-Name: Doe\r\n Doe\r\nDoe^Jane\r\nContent-Length: %d\r\n\r\n"
        exchange.raw(head % len(body) + body)

    with caplog.at_level(0):
        delivery = deliver(peer(script), tmp_path)
    assert told(delivery) == {
        "0": (DELIVERED, "stored", False),
        "1": (REJECTED, "C000", False),
        "2": (REJECTED, "http-409", False),
    }
    assert "Doe" not in caplog.text + str(delivery.outcomes)


# The receiver as a whole


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("form", ["0", "1", "date"])
def test_a_rest_that_is_asked_for_is_given(
    peer: Callable[..., WebPeer], tmp_path: Path, write_ct: CtWriter, status: int, form: str
) -> None:
    uids = series(tmp_path, write_ct, 3)

    def busy(exchange: Exchange) -> None:
        exchange.body()
        at = format_datetime(SystemClock().now() + timedelta(seconds=1), usegmt=True)
        exchange.answer(status, headers={"Retry-After": at if form == "date" else form})

    web = peer(busy, busy, takes_all)
    begun = time.monotonic()
    delivery = deliver(web, tmp_path)
    assert time.monotonic() - begun >= {"0": 0.0, "1": 2.0, "date": 0.1}[form]
    assert told(delivery) == dict.fromkeys("012", (DELIVERED, "stored", False))
    once(web, uids)


def test_all_connections_rest_together(
    peer: Callable[..., WebPeer], tmp_path: Path, write_ct: CtWriter
) -> None:
    uids = series(tmp_path, write_ct, 8)
    together = threading.Barrier(4)

    def busy(exchange: Exchange) -> None:
        exchange.body()
        together.wait(10)
        exchange.answer(503, headers={"Retry-After": "1"})

    web = peer(busy, busy, busy, busy, takes_all)
    delivery = FolderDelivery(tmp_path, associations=4)
    settings = dataclasses.replace(SHORT, batch_files=2, answer=10)
    deliver(web, tmp_path, delivery=delivery, settings=settings)
    assert set(told(delivery).values()) == {(DELIVERED, "stored", False)}
    once(web, uids)


@pytest.mark.parametrize(
    ("headers", "stows"),
    [
        ({}, 1),
        ({"Retry-After": "3600"}, 1),
        ({"Retry-After": "soon"}, 1),
        ({"Retry-After": "0"}, 4),
    ],
)
@pytest.mark.parametrize("status", [429, 503])
def test_a_rest_that_is_too_long_is_the_services_to_wait_for(
    peer: Callable[..., WebPeer],
    tmp_path: Path,
    write_ct: CtWriter,
    status: int,
    headers: dict[str, str],
    stows: int,
) -> None:
    series(tmp_path, write_ct, 1)

    def busy(exchange: Exchange) -> None:
        exchange.body()
        exchange.answer(status, headers=headers)

    web = peer(busy)
    with pytest.raises(DestinationUnavailable) as caught:
        deliver(web, tmp_path)
    assert caught.value.code == f"http-{status}"
    assert web.stows == stows


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (301, "http-301", "wants to be called elsewhere.*url"),
        (307, "http-307", "wants to be called elsewhere.*url"),
        (401, "not-authorized", "credentials.*auth"),
        (403, "not-authorized", "may not"),
        (404, "http-404", "url must be that below which /studies is"),
        (405, "http-405", "url"),
        (500, "http-500", "failed"),
        (502, "http-502", "gateway"),
        (507, "http-507", "no room"),
    ],
)
def test_a_status_that_concerns_the_receiver_makes_the_task_wait(
    peer: Callable[..., WebPeer],
    tmp_path: Path,
    write_ct: CtWriter,
    status: int,
    code: str,
    words: str,
) -> None:
    series(tmp_path, write_ct, 2)
    delivery = FolderDelivery(tmp_path)

    def script(exchange: Exchange) -> None:
        exchange.body()
        exchange.answer(status, b"Doe^Jane is not known here", {"Location": "/Doe^Jane"})

    with pytest.raises(DestinationUnavailable, match=words) as caught:
        deliver(peer(script), tmp_path, delivery=delivery)
    assert caught.value.code == code
    assert "Doe" not in str(caught.value)
    assert told(delivery) == {}


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://127.0.0.1:{}/dicom-web", "connection refused"),
        ("http://nobody.invalid/dicom-web", "no host of that name"),
        ("https://127.0.0.1:{}/dicom-web", "connection refused"),
        ("ftp://127.0.0.1/", "not an http or https URL"),
    ],
)
def test_a_receiver_that_is_not_there_makes_the_task_wait(
    free_port: Callable[[], int], tmp_path: Path, write_ct: CtWriter, url: str, words: str
) -> None:
    series(tmp_path, write_ct, 1)
    with pytest.raises(DestinationUnavailable, match=words):
        deliver(url.format(free_port()), tmp_path)


# Doubt


def drops(exchange: Exchange) -> None:
    exchange.drop()


def resets(exchange: Exchange) -> None:
    exchange.reset()


def hangs(exchange: Exchange) -> None:
    time.sleep(2.0)
    exchange.drop()


def cuts_off(exchange: Exchange) -> None:
    exchange.raw(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{")


def babbles(exchange: Exchange) -> None:
    exchange.raw(b"220 mail.example ESMTP\r\n")


def trickles(exchange: Exchange) -> None:
    for _ in range(60):
        exchange.raw(b"H")
        time.sleep(0.1)


BREAKS = [drops, resets, hangs, cuts_off, babbles]


@pytest.mark.parametrize("breaks", BREAKS)
@pytest.mark.parametrize("kept", [0, 2, 4])
def test_after_a_lost_answer_only_what_is_not_there_is_sent_again(
    peer: Callable[..., WebPeer], tmp_path: Path, write_ct: CtWriter, breaks: Script, kept: int
) -> None:
    uids = series(tmp_path, write_ct, 4)

    def script(exchange: Exchange) -> None:
        sent = list(exchange.instances())
        exchange.keep(*(sent[:kept] or ["none"]))
        breaks(exchange)

    web = peer(script, takes_all)
    delivery = deliver(web, tmp_path, settings=IMPATIENT if breaks is hangs else SHORT)
    once(web, uids)
    codes = Counter(code for _, code, _ in told(delivery).values())
    assert codes == Counter({"already-stored": kept, "stored": 4 - kept})


def test_an_answer_that_trickles_counts_as_none(
    peer: Callable[..., WebPeer], tmp_path: Path, write_ct: CtWriter
) -> None:
    series(tmp_path, write_ct, 1)
    # Its size allows for a little more time than a test has.
    web = peer(trickles, takes_all)
    begun = time.monotonic()
    delivery = deliver(web, tmp_path, settings=IMPATIENT)
    assert time.monotonic() - begun < 5
    assert told(delivery) == {"0": (DELIVERED, "stored", False)}


def test_a_receiver_that_can_not_be_asked_gets_it_again(
    peer: Callable[..., WebPeer], tmp_path: Path, write_ct: CtWriter
) -> None:
    uids = series(tmp_path, write_ct, 2)

    def script(exchange: Exchange) -> None:
        exchange.keep()
        exchange.drop()

    web = peer(script, takes_all)
    web.lookups = 501
    delivery = deliver(web, tmp_path)
    assert web.times_stored == dict.fromkeys(uids, 2)
    assert told(delivery) == dict.fromkeys("01", (DELIVERED, "stored", False))


@pytest.mark.parametrize("kept", [False, True])
def test_a_refusal_after_a_lost_answer_leaves_a_doubt(
    peer: Callable[..., WebPeer], tmp_path: Path, write_ct: CtWriter, kept: bool
) -> None:
    """The receiver may yet store what it was sent first; or it has, and can't be asked."""
    (uid,) = series(tmp_path, write_ct, 1)

    def script(exchange: Exchange) -> None:
        exchange.keep(*([] if kept else ["none"]))
        exchange.drop()

    def refuses(exchange: Exchange) -> None:
        exchange.instances()
        exchange.answer(409, references([], {uid: 0xC001}))

    web = peer(script, refuses)
    web.lookups = 501 if kept else None
    assert told(deliver(web, tmp_path)) == {"0": (REJECTED, "C001", True)}


def test_another_object_that_is_there_after_a_doubt_is_not_overwritten(
    peer: Callable[..., WebPeer], tmp_path: Path, write_ct: CtWriter
) -> None:
    (uid,) = series(tmp_path / "task", write_ct, 1)
    write_ct(tmp_path / "other.dcm", number=7, SOPInstanceUID=uid)
    other = (tmp_path / "other.dcm").read_bytes()

    def script(exchange: Exchange) -> None:
        exchange.body()
        exchange.peer.stored[uid] = other
        exchange.drop()

    web = peer(script, takes_all)
    assert told(deliver(web, tmp_path / "task")) == {"0": (REJECTED, "verify-mismatch", False)}
    web = peer(script, takes_all)
    overwriting = deliver(web, tmp_path / "task", overwrite=True)
    assert told(overwriting) == {"0": (DELIVERED, "stored", False)}


def test_an_instance_that_breaks_the_connection_each_time_is_rejected_and_holds_up_nothing(
    peer: Callable[..., WebPeer], tmp_path: Path, write_ct: CtWriter
) -> None:
    uids = series(tmp_path, write_ct, 6)

    def script(exchange: Exchange) -> None:
        if uids[2] in exchange.instances():
            exchange.drop()
        else:
            takes_all(exchange)

    web = peer(script)
    delivery = deliver(web, tmp_path, settings=dataclasses.replace(SHORT, batch_files=3))
    assert told(delivery).pop("2") == (REJECTED, "breaks-connection", True)
    once(web, [uid for uid in uids if uid != uids[2]])


def test_an_instance_at_which_a_sound_receiver_fails_is_rejected(
    peer: Callable[..., WebPeer], tmp_path: Path, write_ct: CtWriter
) -> None:
    uids = series(tmp_path, write_ct, 6)

    def script(exchange: Exchange) -> None:
        if uids[4] in exchange.instances():
            exchange.answer(500)
        else:
            takes_all(exchange)

    web = peer(script)
    delivery = deliver(web, tmp_path, settings=dataclasses.replace(SHORT, batch_files=3))
    assert told(delivery).pop("4") == (REJECTED, "breaks-connection", True)
    once(web, [uid for uid in uids if uid != uids[4]])


def test_an_instance_that_fails_an_attempt_comes_last_in_the_next(
    peer: Callable[..., WebPeer], tmp_path: Path, write_ct: CtWriter
) -> None:
    uids = series(tmp_path, write_ct, 4)

    def script(exchange: Exchange) -> None:
        if uids[0] in exchange.instances():
            exchange.answer(500)
        else:
            takes_all(exchange)

    web = peer(script)
    exporter = exporter_of(web, dataclasses.replace(SHORT, batch_files=2))
    with pytest.raises(DestinationUnavailable):
        deliver(web, tmp_path, exporter=exporter)
    delivery = deliver(web, tmp_path, exporter=exporter, attempt=2)
    assert told(delivery).pop("0") == (REJECTED, "breaks-connection", True)
    once(web, uids[1:])


def test_a_receiver_that_breaks_every_connection_makes_the_task_wait(
    peer: Callable[..., WebPeer], tmp_path: Path, write_ct: CtWriter
) -> None:
    series(tmp_path, write_ct, 4)
    delivery = FolderDelivery(tmp_path)
    with pytest.raises(DestinationUnavailable, match="3 different requests in a row") as caught:
        deliver(peer(drops), tmp_path, delivery=delivery)
    assert caught.value.code == "connection-broken"
    assert told(delivery) == {}


def test_a_second_attempt_asks_first(
    peer: Callable[..., WebPeer], tmp_path: Path, write_ct: CtWriter
) -> None:
    uids = series(tmp_path, write_ct, 4)
    web = peer()
    for number in (1, 3):
        web.stored[uids[number]] = (tmp_path / f"{number}.dcm").read_bytes()
    delivery = deliver(web, tmp_path, attempt=2)
    once(web, [uids[0], uids[2]])
    assert told(delivery) == {
        "0": (DELIVERED, "stored", False),
        "1": (DELIVERED, "already-stored", False),
        "2": (DELIVERED, "stored", False),
        "3": (DELIVERED, "already-stored", False),
    }


def test_long_series_are_asked_for_page_by_page(
    peer: Callable[..., WebPeer],
    tmp_path: Path,
    write_ct: CtWriter,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("clara_results.agents.dicomweb.service.PAGE", 3)
    uids = series(tmp_path, write_ct, 7)
    web = peer()
    for number, uid in enumerate(uids):
        web.stored[uid] = (tmp_path / f"{number}.dcm").read_bytes()
    delivery = deliver(web, tmp_path, attempt=2)
    assert web.stows == 0
    assert {code for _, code, _ in told(delivery).values()} == {"already-stored"}


# The end of the agent, or of the lease


@pytest.mark.parametrize("error", [Stopping("asked to end"), LeaseLost("lost")])
def test_what_is_under_way_ends_with_the_agent_or_the_lease(
    peer: Callable[..., WebPeer], tmp_path: Path, write_ct: CtWriter, error: Exception
) -> None:
    series(tmp_path, write_ct, 4)
    over = threading.Event()
    ended = threading.Event()

    def at_checkpoint(_: int) -> None:
        if over.is_set():
            raise error

    def script(exchange: Exchange) -> None:
        exchange.body()
        over.set()
        ended.wait(20)

    web = peer(script)
    delivery = FolderDelivery(tmp_path, at_checkpoint=at_checkpoint, associations=2)
    begun = time.monotonic()
    with pytest.raises(type(error)):
        deliver(web, tmp_path, delivery=delivery, settings=WebSettings(batch_files=2))
    assert time.monotonic() - begun < 6
    assert told(delivery) == {}
    assert delivery.used[-1] == 0
    ended.set()


def test_an_answer_that_comes_in_time_counts_at_the_end(
    peer: Callable[..., WebPeer], tmp_path: Path, write_ct: CtWriter
) -> None:
    series(tmp_path, write_ct, 2)
    over = threading.Event()

    def at_checkpoint(_: int) -> None:
        if over.is_set():
            raise Stopping("asked to end")

    def script(exchange: Exchange) -> None:
        exchange.keep()
        over.set()
        time.sleep(0.3)
        exchange.answer(200, references(list(exchange.instances())))

    delivery = FolderDelivery(tmp_path, at_checkpoint=at_checkpoint)
    with pytest.raises(Stopping):
        deliver(peer(script), tmp_path, delivery=delivery, settings=WebSettings())
    assert told(delivery) == dict.fromkeys("01", (DELIVERED, "stored", False))


# Files


def test_a_file_that_changed_or_went_since_it_was_read_is_not_sent(
    peer: Callable[..., WebPeer], tmp_path: Path, write_ct: CtWriter
) -> None:
    uids = series(tmp_path, write_ct, 4)

    def script(exchange: Exchange) -> None:
        if exchange.peer.stows == 1:
            data = (tmp_path / "1.dcm").read_bytes()
            (tmp_path / "1.dcm").write_bytes(data[:-2] + b"xy")
            (tmp_path / "2.dcm").unlink()
        takes_all(exchange)

    web = peer(script)
    delivery = deliver(web, tmp_path, settings=dataclasses.replace(SHORT, batch_files=1))
    once(web, [uids[0], uids[3]])
    assert told(delivery)["1"] == (REJECTED, "file-changed", False)
    assert told(delivery)["2"] == (RETRY, "missing-file", False)


def test_a_file_that_can_not_be_read_while_it_is_sent_harms_no_other(
    peer: Callable[..., WebPeer], tmp_path: Path, write_ct: CtWriter
) -> None:
    """It is large: what is small is read before the request begins."""
    uids = series(tmp_path, write_ct, 2)
    large = write_ct(tmp_path / "5.dcm", number=5, size=3000)
    assert (tmp_path / "5.dcm").stat().st_size > 2 << 20

    class Shrinking(FolderDelivery):
        """Its large file is cut off once it has been opened to be sent."""

        @contextlib.contextmanager
        def open(self, file: ResultFile) -> Iterator[BinaryIO]:
            with super().open(file) as opened:
                yield cast("BinaryIO", Cut(opened)) if self.announced else opened

    class Cut:
        def __init__(self, file: BinaryIO) -> None:
            self._file = file
            self.fileno, self.seek = file.fileno, file.seek

        def read(self, count: int) -> bytes:
            return b"" if self._file.tell() > 1 << 20 else self._file.read(count)

    def script(exchange: Exchange) -> None:
        if len(exchange.body()) < exchange.length:
            exchange.drop()
        else:
            takes_all(exchange)

    web = peer(script)
    web.lenient = True
    delivery = deliver(web, tmp_path, delivery=Shrinking(tmp_path))
    assert told(delivery).pop("5") == (RETRY, "unreadable-input", True)
    assert large.SOPInstanceUID not in web.stored
    once(web, uids)


# Asking back


def other_pixels(file: bytes) -> bytes:
    return file[:-2] + bytes([file[-2] ^ 1]) + file[-1:]


@pytest.mark.parametrize(
    ("verify", "code"), [(Verify.OFF, "stored"), (Verify.METADATA, "stored"), (Verify.FULL, None)]
)
def test_verification_finds_what_it_compares(
    peer: Callable[..., WebPeer],
    tmp_path: Path,
    write_ct: CtWriter,
    verify: Verify,
    code: str | None,
) -> None:
    uids = series(tmp_path, write_ct, 2)

    def script(exchange: Exchange) -> None:
        kept = exchange.keep()
        exchange.peer.stored[uids[1]] = other_pixels(exchange.peer.stored[uids[1]])
        exchange.answer(200, references(kept))

    delivery = deliver(peer(script), tmp_path, verify=verify)
    assert told(delivery)["0"] == (DELIVERED, "stored", False)
    if code:
        assert told(delivery)["1"] == (DELIVERED, code, False)
    else:
        assert told(delivery)["1"] == (REJECTED, "verify-mismatch", True)


@pytest.mark.parametrize("verify", [Verify.METADATA, Verify.FULL])
def test_verification_that_finds_nothing_tries_again(
    peer: Callable[..., WebPeer], tmp_path: Path, write_ct: CtWriter, verify: Verify
) -> None:
    series(tmp_path, write_ct, 2)

    def script(exchange: Exchange) -> None:
        exchange.answer(200, references(list(exchange.instances())))

    delivery = deliver(peer(script), tmp_path, verify=verify)
    assert told(delivery) == dict.fromkeys("01", (RETRY, "verify-absent", True))


@pytest.mark.parametrize("verify", [Verify.METADATA, Verify.FULL])
@pytest.mark.parametrize("status", [406, 501])
def test_a_receiver_that_can_not_be_asked_back_makes_the_task_wait(
    peer: Callable[..., WebPeer], tmp_path: Path, write_ct: CtWriter, verify: Verify, status: int
) -> None:
    """Nothing is sent three times for nothing."""
    series(tmp_path, write_ct, 2)
    web = peer()
    web.lookups = status
    with pytest.raises(
        DestinationUnavailable, match="set the destination's verify to off"
    ) as caught:
        deliver(web, tmp_path, verify=verify)
    assert caught.value.code == "verify-unavailable"
    assert web.stows == 1


def test_an_instance_that_can_not_be_compared_is_tried_again(
    peer: Callable[..., WebPeer], tmp_path: Path, write_ct: CtWriter
) -> None:
    uids = series(tmp_path, write_ct, 2)

    def script(exchange: Exchange) -> None:
        kept = exchange.keep()
        exchange.peer.stored[uids[1]] = exchange.peer.stored[uids[1]][:-100]
        exchange.answer(200, references(kept))

    delivery = deliver(peer(script), tmp_path, verify=Verify.FULL)
    assert told(delivery) == {
        "0": (DELIVERED, "stored", False),
        "1": (RETRY, "verify-unavailable", True),
    }
