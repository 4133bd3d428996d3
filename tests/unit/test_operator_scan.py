"""Scanning inputs: every regular file, or an error."""

import os
import socket
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from clara_results.errors import InvalidInput, UnreadableInput, UnsafeUri
from clara_results.operator.scan import FILE_LIMIT, Input, scan


def write(path: Path, text: str = "x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def silent(text: str) -> None:
    raise AssertionError(f"nothing is to be warned of, but: {text}")


def names(path: Path, warn: Callable[[str], None] = silent) -> list[str]:
    return [file.relative for file in scan([Input("in", str(path))], warn)]


def test_every_file_at_any_depth_in_the_order_of_its_bytes(tmp_path: Path) -> None:
    for name in ("b", "a/z", "a-b", "a.b", "B", ".hidden", "ä/1", "a/b/c/d/e", "empty"):
        write(tmp_path / name)
    (tmp_path / "no" / "files").mkdir(parents=True)
    assert names(tmp_path) == [
        ".hidden", "B", "a-b", "a.b", "a/b/c/d/e", "a/z", "b", "empty", "ä/1",
    ]  # fmt: skip


def test_size_and_time_to_the_microsecond(tmp_path: Path) -> None:
    file = write(tmp_path / "a", "12345")
    os.utime(file, ns=(0, 1_700_000_000_123_456_999))
    (found,) = scan([Input("in", str(tmp_path))], silent)
    assert found.size == 5
    assert found.modified == datetime(2023, 11, 14, 22, 13, 20, 123456, tzinfo=UTC)
    assert found.path == str(file)


def test_a_time_before_1970(tmp_path: Path) -> None:
    os.utime(write(tmp_path / "a"), ns=(0, -1_500))
    (found,) = scan([Input("in", str(tmp_path))], silent)
    assert found.modified == datetime(1969, 12, 31, 23, 59, 59, 999998, tzinfo=UTC)


def test_folders_deeper_than_pythons_stack(tmp_path: Path) -> None:
    here = os.open(tmp_path, os.O_RDONLY)
    for _ in range(1100):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=here))
    os.close(here)
    try:
        with pytest.raises(UnsafeUri, match="1024"):  # a URI has its limit, but the walk came there
            names(tmp_path)
    finally:
        subprocess.run(["rm", "-r", tmp_path / "d"], check=True)  # shutil.rmtree recurses


def test_links_to_files_and_folders_inside_are_followed(tmp_path: Path) -> None:
    write(tmp_path / "a" / "1")
    (tmp_path / "link").symlink_to("a")
    (tmp_path / "file").symlink_to(tmp_path / "a" / "1")
    (tmp_path / "twice").symlink_to("link")
    assert names(tmp_path) == ["a/1", "file", "link/1", "twice/1"]


def test_the_input_itself_may_be_a_link(tmp_path: Path) -> None:
    write(tmp_path / "real" / "a" / "1")
    (tmp_path / "real" / "b").symlink_to("a")
    (tmp_path / "in").symlink_to("real")
    assert names(tmp_path / "in") == ["a/1", "b/1"]


def test_links_that_lead_back_end(tmp_path: Path) -> None:
    write(tmp_path / "a" / "1")
    write(tmp_path / "b" / "2")
    (tmp_path / "a" / "up").symlink_to("..")
    (tmp_path / "a" / "self").symlink_to(".")
    (tmp_path / "a" / "b").symlink_to("../b")
    (tmp_path / "b" / "a").symlink_to("../a")
    warnings: list[str] = []
    assert names(tmp_path, warnings.append) == ["a/1", "a/b/2", "b/2", "b/a/1"]
    assert all("leads back to" in text for text in warnings)
    assert len(warnings) == 6


@pytest.mark.parametrize("target", ["../out", "../out/1", "/etc/hostname", "/", "../in-sibling"])
def test_a_link_that_leads_out_is_an_error(tmp_path: Path, target: str) -> None:
    write(tmp_path / "out" / "1")
    write(tmp_path / "in-sibling" / "1")
    write(tmp_path / "in" / "1")
    (tmp_path / "in" / "link").symlink_to(target)
    with pytest.raises(UnreadableInput, match="in/link' is a symbolic link out of its input in"):
        names(tmp_path / "in")


@pytest.mark.parametrize("target", ["missing", "link"])
def test_a_link_that_leads_nowhere_is_an_error(tmp_path: Path, target: str) -> None:
    (tmp_path / "link").symlink_to(target)
    with pytest.raises(UnreadableInput, match="leads nowhere"):
        names(tmp_path)


def test_pipes_and_sockets_are_passed_over_aloud(tmp_path: Path) -> None:
    write(tmp_path / "a")
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.open(tmp_path, os.O_RDONLY)
        listener.bind(f"/proc/self/fd/{here}/sock")  # a socket's path is limited to 108 bytes
        os.close(here)
        (tmp_path / "link").symlink_to("pipe")
        warnings: list[str] = []
        assert names(tmp_path, warnings.append) == ["a"]
    assert sorted(text.rsplit("/", 1)[1] for text in warnings) == [
        "link' is a pipe, not a file",
        "pipe' is a pipe, not a file",
        "sock' is a socket, not a file",
    ]


@pytest.mark.parametrize("name", [b"\xff.dcm", b"a\nb", b"a\\b", b"\x1b[2J", b"\x7f"])
def test_names_that_are_no_uri_are_refused_escaped(tmp_path: Path, name: bytes) -> None:
    (tmp_path / os.fsdecode(name)).write_text("x")
    with pytest.raises(UnsafeUri) as raised:
        names(tmp_path)
    assert raised.value.exit_code == 2
    assert "rename it" in str(raised.value)
    assert str(raised.value).isprintable()


def test_what_is_not_there_or_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UnreadableInput, match="does not exist: is it mapped"):
        names(tmp_path / "missing")
    with pytest.raises(UnreadableInput, match="is not a folder"):
        names(write(tmp_path / "file"))


def test_an_input_within_another_is_scanned_once(tmp_path: Path) -> None:
    write(tmp_path / "a")
    write(tmp_path / "seg" / "b")
    (tmp_path / "link").symlink_to("seg")
    found = scan([Input("all", str(tmp_path)), Input("seg", str(tmp_path / "seg"))], silent)
    assert [(file.source.name, file.relative) for file in found] == [("all", "a"), ("seg", "b")]


def test_one_folder_by_two_names_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(".")
    with pytest.raises(InvalidInput, match="inputs a and b are the same folder"):
        scan([Input("a", str(tmp_path)), Input("b", str(tmp_path / "link"))], silent)


def test_links_in_circles_come_to_an_end(tmp_path: Path) -> None:
    everyone = [tmp_path / f"d{number}" for number in range(10)]
    for folder in everyone:
        folder.mkdir()
        for other in everyone:
            (folder / other.name).symlink_to(other)
    with pytest.raises(InvalidInput, match="more than 1000 symbolic links to folders"):
        names(tmp_path, lambda _: None)


def test_more_files_than_the_service_takes(tmp_path: Path) -> None:
    folder = os.open(tmp_path, os.O_RDONLY)
    for number in range(FILE_LIMIT + 1):
        os.close(os.open(str(number), os.O_CREAT | os.O_WRONLY, dir_fd=folder))
    os.close(folder)
    with pytest.raises(InvalidInput, match="more than 100000 files") as raised:
        names(tmp_path)
    assert raised.value.code == "too-many-files"
