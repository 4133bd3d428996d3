"""Payloads as folders: what can be read and written, and that nothing leads out of a payload."""

import contextlib
import hashlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clara_results.errors import (
    ClaraResultsError,
    ExistsDifferently,
    InvalidInput,
    NotFound,
    ServiceUnavailable,
    UnsafeUri,
)
from clara_results.payloads import FolderStore
from clara_results.payloads.folder import INCOMING

if TYPE_CHECKING:
    from collections.abc import Callable

SECRET = b"of another payload"


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    """Give a store whose payload ``p`` holds ``a`` and ``op/b``, and, beside it, files that nobody may reach."""
    root = tmp_path / "payloads"
    (root / "p" / "op").mkdir(parents=True)
    (root / "p" / "a").write_bytes(b"alpha")
    (root / "p" / "op" / "b").write_bytes(b"beta")
    (root / "q").mkdir()
    (root / "q" / "secret").write_bytes(SECRET)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_bytes(SECRET)
    return FolderStore(root)


def read(store: FolderStore, uri: str, payload_id: str = "p") -> bytes:
    with store.open(payload_id, uri) as file:
        return file.read()


def upload(store: FolderStore, uri: str, content: bytes, payload_id: str = "p") -> bool:
    with store.receive(payload_id, uri) as incoming:
        incoming.write(content)
        return incoming.commit()


def leftovers(store: FolderStore) -> list[Path]:
    return sorted((store.root / INCOMING).iterdir()) if (store.root / INCOMING).exists() else []


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208  (of this process, not of a path)


def test_a_file_is_read_and_described(store: FolderStore) -> None:
    os.utime(store.root / "p" / "a", ns=(0, 1_767_323_045_678_901_999))
    assert read(store, "a") == b"alpha"
    assert read(store, "op/b") == b"beta"
    found = store.stat("p", "a")
    assert (found.uri, found.size) == ("a", 5)
    assert found.modified == datetime(2026, 1, 2, 3, 4, 5, 678_901, tzinfo=UTC)


@pytest.mark.parametrize("uri", ["op", "no", "no/a", "a/b", "op/no", "x" * 256, "ü" * 200, "x" * 256 + "/a"])  # fmt: skip
def test_what_is_no_regular_file_is_not_found(store: FolderStore, uri: str) -> None:
    with pytest.raises(NotFound) as raised:
        store.open("p", uri)
    assert raised.value.code == "file-not-found"


def test_a_fifo_is_not_found_and_nobody_waits_for_its_writer(store: FolderStore) -> None:
    os.mkfifo(store.root / "p" / "fifo")
    with pytest.raises(NotFound, match="not a regular file"):
        store.open("p", "fifo")


def test_a_payload_that_is_not_there_is_not_found(store: FolderStore) -> None:
    for look in (lambda: store.open("r", "a"), lambda: store.files("r"), lambda: store.delete("r")):
        with pytest.raises(NotFound):
            look()


@pytest.mark.parametrize("uri", ["../q/secret", "op/../a", "/etc/passwd", "", "a\0", "op//b"])
def test_an_unsafe_uri_is_refused_for_reading_and_writing(store: FolderStore, uri: str) -> None:
    for look in (store.open, store.stat, store.receive):
        with pytest.raises(UnsafeUri):
            look("p", uri)


@pytest.mark.parametrize("payload_id", ["..", ".", INCOMING, "", "p/op", "/etc"])
def test_what_is_no_payload_id_is_refused(store: FolderStore, payload_id: str) -> None:
    calls: list[Callable[[], object]] = [
        lambda: store.open(payload_id, "a"),
        lambda: store.files(payload_id),
        lambda: store.delete(payload_id),
        lambda: store.receive(payload_id, "a"),
    ]
    for call in calls:
        with pytest.raises(InvalidInput):
            call()


@pytest.mark.parametrize(
    ("link", "target", "uri"),
    [
        ("l", "a", "l"),
        ("l", "./op/.././a", "l"),
        ("l", "op", "l/b"),
        ("op/l", "../a", "op/l"),
        ("op/l", "..", "op/l/a"),
        ("op/l", "..", "op/l/op/b"),
        ("op/l", ".//b", "op/l"),
        ("l", "{root}/p/op/b", "l"),
        ("l", "{root}/p/op", "l/b"),
        ("op/l", "{root}/p", "op/l/a"),
        ("op/l", "{root}/p/", "op/l/op/b"),
    ],
)  # fmt: skip
def test_a_link_that_stays_inside_is_followed(
    store: FolderStore, link: str, target: str, uri: str
) -> None:
    (store.root / "p" / link).symlink_to(target.format(root=store.root))
    expected = b"alpha" if (store.root / "p" / uri).resolve().name == "a" else b"beta"
    assert read(store, uri) == expected


@pytest.mark.parametrize(
    ("link", "target", "uri"),
    [
        ("l", "../q/secret", "l"),
        ("l", "../../outside/secret", "l"),
        ("l", "..", "l/q/secret"),
        ("l", "op/../../q/secret", "l"),
        ("op/l", "../../q/secret", "op/l"),
        ("l", "../p/a", "l"),
        ("l", "{root}/q/secret", "l"),
        ("l", "{root}", "l/q/secret"),
        ("l", "{root}/p/../q/secret", "l"),
        ("l", "{root}/p2/secret", "l"),
        ("l", "/etc", "l/passwd"),
        ("l", "/", "l/etc/passwd"),
    ],
)  # fmt: skip
def test_a_link_that_leads_out_is_refused(
    store: FolderStore, link: str, target: str, uri: str
) -> None:
    (store.root / "p2").mkdir()
    (store.root / "p2" / "secret").write_bytes(SECRET)
    (store.root / "p" / link).symlink_to(target.format(root=store.root))
    with pytest.raises(UnsafeUri, match="leads out of its payload"):
        store.open("p", uri)


@pytest.mark.parametrize(
    ("link", "target", "uri"),
    [("l", "l", "l"), ("l", "op/m", "l"), ("l", "no", "l"), ("l", "a/b", "l"), ("l", "op", "l")],
)
def test_a_link_in_a_loop_or_to_nothing_is_not_found(
    store: FolderStore, link: str, target: str, uri: str
) -> None:
    (store.root / "p" / link).symlink_to(target)
    (store.root / "p" / "op" / "m").symlink_to("../l")
    with pytest.raises(NotFound):
        store.open("p", uri)


def test_a_long_chain_of_links_ends(store: FolderStore) -> None:
    (store.root / "p" / "l0").symlink_to("a")
    for number in range(1, 60):
        (store.root / "p" / f"l{number}").symlink_to(f"l{number - 1}")
    assert read(store, "l30") == b"alpha"
    with pytest.raises(NotFound):
        store.open("p", "l59")


def test_a_payload_that_is_a_link_is_none(store: FolderStore) -> None:
    (store.root / "z").symlink_to(store.root.parent / "outside")
    for look in (
        lambda: store.open("z", "secret"),
        lambda: store.files("z"),
        lambda: store.delete("z"),
    ):
        with pytest.raises(NotFound):
            look()
    assert (store.root.parent / "outside" / "secret").exists()
    with pytest.raises(UnsafeUri):
        upload(store, "new", b"x", "z")


parts = st.sampled_from(["a", "op", "b", "l", "m", "..", "."])
paths = st.lists(parts, min_size=1, max_size=5).map("/".join)


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(one=paths, other=paths, absolute=st.booleans(), uri=paths)
def test_whatever_the_links_nothing_outside_is_ever_read(
    store: FolderStore, one: str, other: str, absolute: bool, uri: str
) -> None:
    payload = store.root / "p"
    for name, target in (("l", one), ("op/m", f"{payload}/{other}" if absolute else other)):
        (payload / name).unlink(missing_ok=True)
        (payload / name).symlink_to(target)
    before = open_descriptors()
    real = (payload / uri).resolve() if not _loops(payload / uri) else None
    try:
        content = read(store, uri)
    except ClaraResultsError:
        content = None
    assert open_descriptors() == before
    if content is not None:
        assert real is not None
        assert real.is_relative_to(payload)
        assert real.read_bytes() == content


def _loops(path: Path) -> bool:
    try:
        path.resolve(strict=True)
    except (OSError, RuntimeError):
        return True
    return False


def test_a_folder_swapped_for_a_link_in_the_meantime_lets_nobody_out(store: FolderStore) -> None:
    payload, stop = store.root / "p", threading.Event()
    (payload / "real").mkdir()
    (payload / "real" / "secret").write_bytes(b"harmless")

    def swap() -> None:
        while not stop.is_set():
            (payload / "real").rename(payload / "x")
            (payload / "real").symlink_to("../q")
            (payload / "real").unlink()
            (payload / "x").rename(payload / "real")

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        seen = set()
        for _ in range(2000):
            try:
                seen.add(read(store, "real/secret"))
            except (NotFound, UnsafeUri):
                continue
        assert seen == {b"harmless"}
    finally:
        stop.set()
        thread.join(10)


def test_files_lists_all_regular_files_by_uri_and_follows_no_link(store: FolderStore) -> None:
    (store.root / "p" / "l").symlink_to("op")
    (store.root / "p" / "m").symlink_to("a")
    (store.root / "p" / "empty").mkdir()
    os.mkfifo(store.root / "p" / "fifo")
    (store.root / "p" / "op-1").write_bytes(b"")
    assert [(f.uri, f.size) for f in store.files("p")] == [("a", 5), ("op-1", 0), ("op/b", 4)]


def test_files_leaves_out_what_has_no_uri(store: FolderStore) -> None:
    (store.root / "p" / "back\\slash").write_bytes(b"")
    (store.root / "p" / "line\nfeed").write_bytes(b"")
    (store.root / "p" / os.fsdecode(b"latin-\xe9")).write_bytes(b"")
    assert [f.uri for f in store.files("p")] == ["a", "op/b"]


def test_an_upload_is_there_when_it_is_committed_and_not_before(store: FolderStore) -> None:
    with store.receive("new", "deep/er/c") as incoming:
        incoming.write(b"one")
        incoming.write(b"two")
        with pytest.raises(NotFound):
            store.open("new", "deep/er/c")
        assert incoming.commit()
        assert incoming.size == 6
        assert incoming.sha256 == hashlib.sha256(b"onetwo").hexdigest()
    assert read(store, "deep/er/c", "new") == b"onetwo"
    assert leftovers(store) == []


def test_an_upload_that_is_given_up_leaves_nothing(store: FolderStore) -> None:
    def give_up() -> None:
        with store.receive("p", "c") as incoming:
            incoming.write(b"x" * 1000)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        give_up()
    assert leftovers(store) == []
    with pytest.raises(NotFound):
        store.open("p", "c")


def test_the_same_upload_again_is_harmless(store: FolderStore) -> None:
    assert upload(store, "op/c", b"same")
    modified = store.stat("p", "op/c").modified
    assert not upload(store, "op/c", b"same")
    assert store.stat("p", "op/c").modified == modified
    assert not upload(store, "a", b"alpha")  # likewise for what came otherwise
    assert leftovers(store) == []


@pytest.mark.parametrize("content", [b"ALPHA", b"alph", b"alphabet", b""])
def test_other_content_at_the_same_place_is_refused(store: FolderStore, content: bytes) -> None:
    with pytest.raises(ExistsDifferently) as raised:
        upload(store, "a", content)
    assert raised.value.code == "exists-differently"
    assert read(store, "a") == b"alpha"
    assert leftovers(store) == []


def test_an_upload_onto_a_folder_or_a_dead_link_is_refused(store: FolderStore) -> None:
    (store.root / "p" / "dead").symlink_to("nowhere")
    os.mkfifo(store.root / "p" / "fifo")
    for uri in ("op", "dead", "fifo"):
        with pytest.raises(ExistsDifferently):
            upload(store, uri, b"x")
    assert not (store.root / "p" / "nowhere").exists()


@pytest.mark.parametrize("target", ["op", "../q", "/etc"])
def test_an_upload_never_goes_through_a_link(store: FolderStore, target: str) -> None:
    (store.root / "p" / "l").symlink_to(target)
    with pytest.raises(UnsafeUri):
        upload(store, "l/new", b"x")
    assert not (store.root / "q" / "new").exists()


def test_an_upload_below_a_file_is_refused(store: FolderStore) -> None:
    with pytest.raises(UnsafeUri, match="is no folder"):
        upload(store, "a/b", b"x")


@pytest.mark.parametrize("uri", ["x" * 256, "ü" * 200, "x" * 256 + "/a"])
def test_an_upload_to_a_name_too_long_for_the_disk_is_refused(store: FolderStore, uri: str) -> None:
    with pytest.raises(UnsafeUri, match="too long"):
        upload(store, uri, b"x")


def test_of_uploads_of_one_uri_at_once_one_wins_and_the_file_is_whole(store: FolderStore) -> None:
    contents = [bytes([65 + number]) * 50_000 for number in range(4)] * 4
    together = threading.Barrier(len(contents))

    def send(content: bytes) -> bool | None:
        with store.receive("new", "deep/file") as incoming:
            incoming.write(content)
            together.wait(20)
            try:
                return incoming.commit()
            except ExistsDifferently:
                return None

    with ThreadPoolExecutor(len(contents)) as pool:
        results = list(pool.map(send, contents))
    there = read(store, "deep/file", "new")
    assert results.count(True) == 1
    assert there == contents[results.index(True)]
    assert all((result is not None) == (content == there) for result, content in zip(results, contents, strict=True))  # fmt: skip
    assert leftovers(store) == []


def test_what_a_crash_left_behind_disturbs_nobody_and_is_swept_when_it_is_old(
    store: FolderStore,
) -> None:
    with store.receive("p", "c") as incoming:
        incoming.write(b"half")
        (old,) = leftovers(store)
        kept = old.with_name("crashed")
        kept.write_bytes(b"half")
        folder = old.with_name("removed-1")
        (folder / "inner").mkdir(parents=True)
        (folder / "inner" / "f").write_bytes(b"x")
        for path in (kept, folder):
            os.utime(path, (1, 1))
        assert upload(store, "d", b"whole")
        store.sweep(datetime.now(UTC) - timedelta(days=1))  # noqa: TID251  (files have the machine's time)
        assert leftovers(store) == [old]  # one that still grows stays
        assert incoming.commit()
    assert [f.uri for f in store.files("p")] == ["a", "c", "d", "op/b"]
    assert leftovers(store) == []


def test_sweeping_before_the_first_upload_does_nothing(tmp_path: Path) -> None:
    FolderStore(tmp_path / "not yet").sweep(datetime(2026, 1, 1, tzinfo=UTC))
    assert list(tmp_path.iterdir()) == []


def test_delete_removes_the_payload_and_nothing_else(store: FolderStore) -> None:
    (store.root / "p" / "l").symlink_to("../q")
    with store.open("p", "a") as file:
        store.delete("p")
        assert file.read() == b"alpha"  # a download under way comes to its end
    assert not (store.root / "p").exists()
    assert read(store, "secret", "q") == SECRET
    assert leftovers(store) == []
    with pytest.raises(NotFound):
        store.delete("p")
    assert upload(store, "a", b"other")  # the place is free again


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read and write everything")
def test_a_folder_that_cannot_be_written_says_so(store: FolderStore) -> None:
    store.root.chmod(0o500)
    try:
        with pytest.raises(ServiceUnavailable, match="payload store"):
            upload(store, "c", b"x")
    finally:
        store.root.chmod(0o700)


def test_a_root_that_cannot_be_made_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    store = FolderStore(tmp_path / "file" / "payloads")
    with pytest.raises(ServiceUnavailable) as raised:
        store.receive("p", "a")
    assert raised.value.code == "storage-unavailable"


def test_no_call_leaves_a_descriptor_open(store: FolderStore) -> None:
    (store.root / "p" / "l").symlink_to("op/../..")
    before = open_descriptors()
    for uri in ("a", "op/b", "l", "l/q", "no", "op", "a/b"):
        with contextlib.suppress(NotFound, UnsafeUri):
            read(store, uri)
        with contextlib.suppress(ExistsDifferently, UnsafeUri):
            upload(store, uri, b"x")
    assert open_descriptors() == before
