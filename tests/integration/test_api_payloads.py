"""``/api/payloads`` over HTTP: up, down, in part, and never out of the payload."""

import base64
import hashlib
import os
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

import pytest

from clara_results.wire.tasks import SuccessReport
from tests.conftest import eventually

if TYPE_CHECKING:
    from tests.integration.conftest import Answer, LocalService

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
CONTENT = bytes(range(256)) * 20


def url(uri: str, payload_id: str = "pay") -> str:
    return f"/api/payloads/{payload_id}/files/{quote(uri)}"


def digest(content: bytes) -> dict[str, str]:
    value = base64.b64encode(hashlib.sha256(content).digest()).decode()
    return {"Content-Digest": f"sha-256=:{value}:"}


def put(local: "LocalService", uri: str, content: bytes = CONTENT, **headers: str) -> "Answer":
    return local.call("PUT", url(uri), raw=content, headers=headers)


def aside(local: "LocalService") -> list[str]:
    folder = local.payloads / ".incoming"
    return sorted(os.listdir(folder)) if folder.exists() else []  # noqa: PTH208


def test_a_file_goes_up_and_comes_down_as_it_was(local: "LocalService") -> None:
    answer = local.call("PUT", url("op/ä 1.dcm"), raw=CONTENT, headers=digest(CONTENT))
    assert answer.status == 201
    assert (answer.json["uri"], answer.json["size"]) == ("op/ä 1.dcm", len(CONTENT))
    down = local.call("GET", url("op/ä 1.dcm"))
    assert (down.status, down.data) == (200, CONTENT)
    assert down.headers["Content-Type"] == "application/octet-stream"
    assert down.headers["Accept-Ranges"] == "bytes"
    assert down.headers["ETag"] == answer.headers["ETag"] == f'"{hashlib.sha256(CONTENT).hexdigest()}"'  # fmt: skip
    head = local.call("HEAD", url("op/ä 1.dcm"))
    assert (head.status, head.data) == (200, b"")
    assert head.headers["Content-Length"] == str(len(CONTENT))
    assert head.headers["ETag"] == down.headers["ETag"]
    listed = local.call("GET", "/api/payloads/pay").json
    assert listed["payloadId"] == "pay"
    assert [(f["uri"], f["size"]) for f in listed["files"]] == [("op/ä 1.dcm", len(CONTENT))]
    assert listed["files"][0]["modified"] == answer.json["modified"]


def test_an_empty_file_goes_up_and_down(local: "LocalService") -> None:
    assert put(local, "empty", b"").status == 201
    assert local.call("GET", url("empty")).data == b""


def test_a_large_file_goes_up_in_pieces(local: "LocalService") -> None:
    content = os.urandom(1 << 20) * 20  # more than a JSON body may have
    assert local.call("PUT", url("large"), raw=content, headers=digest(content)).status == 201
    assert local.call("GET", url("large")).data == content


def test_the_same_again_is_harmless_and_other_content_is_refused(local: "LocalService") -> None:
    assert put(local, "a").status == 201
    again = put(local, "a")
    assert (again.status, again.json["size"]) == (200, len(CONTENT))
    put(local, "a", b"other").problem(409, "exists-differently")
    assert local.call("GET", url("a")).data == CONTENT
    assert aside(local) == []


def test_content_that_is_not_what_was_announced_is_refused(local: "LocalService") -> None:
    answer = local.call("PUT", url("a"), raw=CONTENT, headers=digest(b"other"))
    answer.problem(422, "digest-mismatch")
    assert local.call("GET", url("a")).status == 404
    assert aside(local) == []


@pytest.mark.parametrize("header", ["sha-256=abc", "sha-256=:abc:", "sha-256=:!!!!:", "sha-256=", "sha-256=:" + "A" * 80 + ":"])  # fmt: skip
def test_a_digest_that_is_none_is_refused(local: "LocalService", header: str) -> None:
    answer = local.call("PUT", url("a"), raw=b"x", headers={"Content-Digest": header})
    answer.problem(422, "invalid-digest")


def test_a_digest_of_another_kind_is_passed_over(local: "LocalService") -> None:
    headers = {"Content-Digest": "sha-512=:AAAA:, " + digest(b"x")["Content-Digest"]}
    assert local.call("PUT", url("a"), raw=b"x", headers=headers).status == 201
    assert local.call("PUT", url("b"), raw=b"x", headers={"Content-Digest": "md5=:AA==:"}).status == 201  # fmt: skip


@pytest.mark.parametrize(
    ("header", "status", "content", "content_range"),
    [
        ("bytes=0-9", 206, CONTENT[:10], "bytes 0-9/5120"),
        ("bytes=10-", 206, CONTENT[10:], "bytes 10-5119/5120"),
        ("bytes=-5", 206, CONTENT[-5:], "bytes 5115-5119/5120"),
        ("bytes=5000-99999", 206, CONTENT[5000:], "bytes 5000-5119/5120"),
        ("bytes=5120-", 416, None, "bytes */5120"),
        ("bytes=-0", 416, None, "bytes */5120"),
        ("bytes=9999999-", 416, None, "bytes */5120"),
    ],
)  # fmt: skip
def test_a_part_of_a_file(
    local: "LocalService", header: str, status: int, content: bytes | None, content_range: str
) -> None:
    put(local, "a")
    answer = local.call("GET", url("a"), headers={"Range": header})
    assert answer.status == status
    assert answer.headers["Content-Range"] == content_range
    if content is None:
        answer.problem(416, "range-not-satisfiable")
    else:
        assert answer.data == content


@pytest.mark.parametrize(
    "header", ["bytes=9-1", "lines=1-2", "bytes=", "bytes", "bytes=a-b", "bytes=0-1,3-4"]
)
def test_a_range_that_is_none_is_passed_over(local: "LocalService", header: str) -> None:
    put(local, "a")
    answer = local.call("GET", url("a"), headers={"Range": header})
    assert (answer.status, answer.data) == (200, CONTENT)  # RFC 9110 14.2


def test_a_part_of_another_file_than_the_one_begun_is_not_given(local: "LocalService") -> None:
    put(local, "a")
    headers = {"Range": "bytes=0-9", "If-Range": '"other"'}
    assert local.call("GET", url("a"), headers=headers).data == CONTENT
    headers["Range"] = "bytes=9-1"
    assert local.call("GET", url("a"), headers=headers).data == CONTENT


@pytest.mark.parametrize(
    "path",
    ["..%2fq%2fsecret", "%2e%2e/q/secret", "a%2f..%2f..%2fq%2fsecret", "%2fetc%2fpasswd", "a%00", "%00",
     "a//b", "a%5cb", "..%5cq", "a/", "./a", "%2e/a", "C:%2fa", "", "a/%2e%2e/b"],
)  # fmt: skip
def test_an_unsafe_uri_leads_nowhere(local: "LocalService", path: str) -> None:
    (local.payloads / "q").mkdir(parents=True)
    (local.payloads / "q" / "secret").write_bytes(b"secret")
    for method in ("GET", "PUT", "HEAD"):
        status, body = bare(local, method, f"/api/payloads/pay/files/{path}")
        assert status == 422, body
        assert method == "HEAD" or b'"code":"unsafe-uri"' in body
    assert not (local.payloads / "pay").exists()


def bare(local: "LocalService", method: str, path: str) -> tuple[int, bytes]:
    """Send a request whose path nobody tidies up on the way."""
    address = urlsplit(local.url)
    with socket.create_connection((address.hostname or "", address.port or 0), 20) as connection:
        length = "Content-Length: 1\r\n" if method == "PUT" else ""
        head = f"{method} {path} HTTP/1.1\r\nHost: r\r\nConnection: close\r\n{length}\r\n"
        connection.sendall(head.encode() + (b"x" if length else b""))
        said = b""
        while piece := connection.recv(65536):
            said += piece
    answer, _, body = said.partition(b"\r\n\r\n")
    return int(answer.split()[1]), body


def test_an_encoded_slash_is_a_slash(local: "LocalService") -> None:
    assert bare(local, "PUT", "/api/payloads/pay/files/op%2Fa")[0] == 201
    assert local.call("GET", url("op/a")).data == b"x"


@pytest.mark.parametrize("payload_id", ["..", ".incoming", "a b", "%2e%2e", "a%2fb", "ä"])
def test_what_is_no_payload_id_is_refused(local: "LocalService", payload_id: str) -> None:
    for method, path in (("GET", "/files/a"), ("PUT", "/files/a"), ("GET", ""), ("DELETE", "")):
        status, _ = bare(local, method, f"/api/payloads/{quote(payload_id, safe='%')}{path}")
        assert status in {404, 405, 422}
    assert not any(path.name != "database" for path in local.payloads.parent.iterdir())


def test_a_link_that_leads_out_is_refused(local: "LocalService") -> None:
    local.put_file("a", b"x")
    (local.payloads / "pay" / "out").symlink_to("/etc")
    local.call("GET", url("out/passwd")).problem(422, "unsafe-uri")
    put(local, "out/new").problem(422, "unsafe-uri")
    put(local, "a/b").problem(422, "unsafe-uri")


@pytest.mark.parametrize("uri", ["no", "no/such", "x" * 300, "ü" * 500])
def test_what_is_not_there_is_not_found(local: "LocalService", uri: str) -> None:
    local.put_file("a", b"x")
    local.call("GET", url(uri)).problem(404, "file-not-found")


def test_a_name_too_long_for_the_disk_is_refused(local: "LocalService") -> None:
    put(local, "x" * 300).problem(422, "unsafe-uri")


def test_a_folder_is_no_file(local: "LocalService") -> None:
    local.put_file("op/a", b"x")
    local.call("GET", url("op")).problem(404, "file-not-found")
    put(local, "op").problem(409, "exists-differently")


def test_a_payload_that_is_not_there_is_not_found(local: "LocalService") -> None:
    local.call("GET", "/api/payloads/none").problem(404, "payload-not-found")
    local.call("DELETE", "/api/payloads/none").problem(404, "payload-not-found")


def test_an_upload_that_breaks_off_leaves_nothing(local: "LocalService") -> None:
    address = urlsplit(local.url)
    head = f"PUT {url('a')} HTTP/1.1\r\nHost: r\r\nContent-Length: 1000000\r\n\r\n"
    with socket.create_connection((address.hostname or "", address.port or 0)) as connection:
        connection.sendall(head.encode() + b"x" * 100_000)
        eventually(lambda: len(aside(local)) == 1, "the upload has begun")
    eventually(lambda: aside(local) == [], "what came of it is gone")
    assert local.call("GET", url("a")).status == 404


def test_of_uploads_at_once_one_is_new_and_the_rest_are_the_same(local: "LocalService") -> None:
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: put(local, "op/a"), range(6)))
    assert sorted(answer.status for answer in answers) == [200] * 5 + [201]
    assert local.call("GET", url("op/a")).data == CONTENT


def test_a_file_that_came_another_way_has_a_tag_of_its_own(local: "LocalService") -> None:
    path = local.put_file("a", b"one")
    first = local.call("GET", url("a")).headers["ETag"]
    path.write_bytes(b"three")
    assert local.call("GET", url("a")).headers["ETag"] != first


def test_the_tag_is_that_of_the_content_also_after_the_folder_was_emptied(
    local: "LocalService",
) -> None:
    put(local, "a", b"one")
    (local.payloads / "pay" / "a").unlink()  # by the platform, past the service
    answer = put(local, "a", b"two")
    assert answer.status == 201
    expected = f'"{hashlib.sha256(b"two").hexdigest()}"'
    assert answer.headers["ETag"] == local.call("GET", url("a")).headers["ETag"] == expected


def test_a_payload_in_use_is_not_removed(local: "LocalService") -> None:
    put(local, "a")
    local.register("a")
    local.call("DELETE", "/api/payloads/pay").problem(409, "payload-in-use")
    task = local.claim()
    local.call("DELETE", "/api/payloads/pay").problem(409, "payload-in-use")
    assert local.call("GET", url("a")).data == CONTENT
    local.client.succeed(task.task_id, SuccessReport())
    answer = local.call("DELETE", "/api/payloads/pay")
    assert (answer.status, answer.data) == (204, b"")
    local.call("GET", url("a")).problem(410, "payload-gone")
    assert put(local, "a", b"other").status == 201  # the place is free again
    assert local.call("GET", url("a")).headers["ETag"] == f'"{hashlib.sha256(b"other").hexdigest()}"'  # fmt: skip


def test_a_listing_leaves_out_what_no_uri_can_name(local: "LocalService") -> None:
    local.put_file("a", b"x")
    (local.payloads / "pay" / os.fsdecode(b"latin-\xe9")).write_bytes(b"")
    answer: Any = local.call("GET", "/api/payloads/pay")
    assert answer.status == 200
    assert [file["uri"] for file in answer.json["files"]] == ["a"]


@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_a_uri_with_a_line_feed_is_refused_as_unsafe(local: "LocalService", method: str) -> None:
    raw = b"content" if method == "PUT" else None
    answer = local.call(method, "/api/payloads/pay/files/a%0Ab", raw=raw)
    answer.problem(422, "unsafe-uri")
