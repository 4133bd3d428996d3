"""Payload calls while links are put in their way: what lies outside a payload is neither read nor written."""

import ctypes
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.integration.conftest import LocalService

ROUNDS = 300
AT_FDCWD = -100
RENAME_EXCHANGE = 2
SECRET = b"what lies outside"
INSIDE = b"what lies inside"


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """Give a folder outside the payload that holds a file of the same name."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "a.dcm").write_bytes(SECRET)
    return folder


@pytest.fixture
def swapped(local: "LocalService", outside: Path) -> Iterator[list[int]]:
    """Swap the payload's folder ``op`` with a link to the outside, over and over; give the count of swaps."""
    local.put_file("op/a.dcm", INSIDE)
    folder = local.payloads / "pay" / "op"
    link = local.payloads / "pay" / "link"
    link.symlink_to(outside)
    swaps, end = [0], threading.Event()

    def swap() -> None:
        while not end.wait(0.0003):  # let others run
            exchange(folder, link)
            swaps[0] += 1

    thread = threading.Thread(target=swap)
    thread.start()
    yield swaps
    end.set()
    thread.join(10)
    assert not thread.is_alive()


def exchange(one: Path, other: Path) -> None:
    """Swap two directory entries in one step: renameat2(2) with RENAME_EXCHANGE."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(AT_FDCWD, bytes(one), AT_FDCWD, bytes(other), RENAME_EXCHANGE):
        raise OSError(ctypes.get_errno(), "renameat2")


def test_a_link_put_in_between_leads_no_reader_out(
    local: "LocalService", swapped: list[int]
) -> None:
    seen = set()
    for _ in range(ROUNDS):
        answer = local.call("GET", "/api/payloads/pay/files/op/a.dcm")
        assert SECRET not in answer.data
        if answer.status == 200:
            assert answer.data == INSIDE
        else:
            assert answer.json["code"] in {"unsafe-uri", "file-not-found"}
        seen.add(answer.status)
    assert swapped[0] > ROUNDS, "too few swaps to show anything"
    assert seen >= {200, 422}


def test_a_link_put_in_between_leads_no_writer_out(
    local: "LocalService", swapped: list[int], outside: Path
) -> None:
    seen = set()
    for number in range(ROUNDS):
        answer = local.call("PUT", f"/api/payloads/pay/files/op/{number}.dcm", raw=INSIDE)
        if answer.status != 201:
            # Once written, it is looked at again; by then the link may be there.
            assert answer.json["code"] in {"unsafe-uri", "file-not-found"}
        seen.add(answer.status)
    assert swapped[0] > ROUNDS, "too few swaps to show anything"
    assert seen >= {201, 422}
    assert [path.name for path in outside.iterdir()] == ["a.dcm"]
    assert (outside / "a.dcm").read_bytes() == SECRET


def test_a_link_put_in_between_shows_nothing_in_a_listing(
    local: "LocalService", swapped: list[int], outside: Path
) -> None:
    (outside / "other.dcm").write_bytes(SECRET)
    for _ in range(ROUNDS):
        listed = local.call("GET", "/api/payloads/pay")
        assert listed.status == 200
        assert b"other.dcm" not in listed.data
    assert swapped[0] > ROUNDS, "too few swaps to show anything"
