"""A DICOMweb service that does what a test tells it to: scripts for what is stored, truth for what is asked."""

import contextlib
import json
import re
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from typing import Any
from urllib.parse import parse_qs, urlsplit

from pydicom import Dataset, dcmread

STORED, FAILED = "00081199", "00081198"
JSON = "application/dicom+json"


class Exchange:
    """A request in a script's hands.

    Attributes:
        peer: Whose it is.
        method: HTTP method.
        path: With its query.
        headers: Of the request.
    """

    def __init__(self, peer: "WebPeer", handler: BaseHTTPRequestHandler) -> None:
        self.peer = peer
        self._handler = handler
        self.method = handler.command
        self.path = handler.path
        self.headers = dict(handler.headers)
        self._body: bytes | None = None

    @property
    def length(self) -> int:
        return int(self.headers.get("Content-Length", 0))

    def body(self) -> bytes:
        """Read the request's body to its end."""
        if self._body is None:
            self._body = self._handler.rfile.read(self.length)
            assert len(self._body) == self.length or self.peer.lenient
        return self._body

    def instances(self) -> dict[str, bytes]:
        """Return the Part 10 files of a STOW-RS request by SOP Instance UID."""
        content_type = self.headers["Content-Type"]
        boundary = re.search(r"boundary=([^;]+)", content_type)
        assert boundary is not None
        assert 'type="application/dicom"' in content_type
        pieces = self.body().split(b"\r\n--" + boundary[1].encode())
        assert pieces[0] == b""
        assert pieces[-1] == b"--\r\n"
        found = {}
        for piece in pieces[1:-1]:
            head, file = piece.split(b"\r\n\r\n", 1)
            assert head == b"\r\nContent-Type: application/dicom"
            found[str(dcmread(BytesIO(file), stop_before_pixels=True).SOPInstanceUID)] = file
        return found

    def keep(self, *uids: str) -> list[str]:
        """Keep instances of a STOW-RS request, all or some, as a receiver that has stored them; return their UIDs."""
        sent = self.instances()
        kept = [uid for uid in sent if not uids or uid in uids]
        with self.peer.lock:
            for uid in kept:
                self.peer.stored[uid] = sent[uid]
                self.peer.times_stored[uid] = self.peer.times_stored.get(uid, 0) + 1
        return kept

    def answer(
        self,
        status: int,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        content_type: str = JSON,
    ) -> None:
        """Answer, and keep the connection open."""
        with self.peer.lock:
            self.peer.answers.append((self.method, self.path, status))
        self._handler.send_response(status)
        if body:
            self._handler.send_header("Content-Type", content_type)
        self._handler.send_header("Content-Length", str(len(body)))
        for name, value in (headers or {}).items():
            self._handler.send_header(name, value)
        self._handler.end_headers()
        self._handler.wfile.write(body)

    def raw(self, data: bytes) -> None:
        """Send bytes as they are, and close."""
        self._handler.wfile.write(data)
        self._handler.wfile.flush()
        self._handler.close_connection = True

    def drop(self) -> None:
        """Close the connection without an answer."""
        self._handler.close_connection = True

    def reset(self) -> None:
        """Break the connection at once."""
        connection = self._handler.connection
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._handler.close_connection = True
        connection.close()

    def pieces(self) -> Iterator[bytes]:
        """Read the request's body piece by piece."""
        left = self.length
        while left and (piece := self._handler.rfile.read(min(left, 1 << 20))):
            left -= len(piece)
            yield piece


Script = Callable[[Exchange], None]


def references(
    stored: Mapping[str, int | None] | list[str], failed: Mapping[str, int | None] | None = None
) -> bytes:
    """Return a STOW-RS answer (PS3.18 I.2) in JSON: UIDs, with the reason of a warning or a failure."""
    if isinstance(stored, list):
        stored = dict.fromkeys(stored)
    sequences: dict[str, list[tuple[str, int | None, str]]] = {
        STORED: [(uid, reason, "00081196") for uid, reason in stored.items()],
        FAILED: [(uid, reason, "00081197") for uid, reason in (failed or {}).items()],
    }
    answer: dict[str, Any] = {}
    for tag, items in sequences.items():
        values = []
        for uid, reason, reason_tag in items:
            item: dict[str, Any] = {
                "00081150": {"vr": "UI", "Value": ["1.2.840.10008.5.1.4.1.1.2"]},
                "00081155": {"vr": "UI", "Value": [uid]},
            }
            if reason is not None:
                item[reason_tag] = {"vr": "US", "Value": [reason]}
            values.append(item)
        if values:
            answer[tag] = {"vr": "SQ", "Value": values}
    return json.dumps(answer).encode()


def as_xml(answer: bytes) -> bytes:
    """Return a STOW-RS answer in XML (PS3.19 A.1)."""
    text = ""
    for tag, sequence in json.loads(answer).items():
        text += f'<DicomAttribute tag="{tag}" vr="SQ" keyword="X">'
        for number, item in enumerate(sequence["Value"], 1):
            text += f'<Item number="{number}">'
            for inner, element in item.items():
                text += f'<DicomAttribute tag="{inner}" vr="{element["vr"]}"><Value number="1">'
                text += f"{element['Value'][0]}</Value></DicomAttribute>"
            text += "</Item>"
        text += "</DicomAttribute>"
    space = "http://dicom.nema.org/PS3.19/models/NativeDICOM"
    return f'<?xml version="1.0" encoding="UTF-8"?><NativeDicomModel xmlns="{space}">{text}</NativeDicomModel>'.encode()


def takes_all(exchange: Exchange) -> None:
    """Store all, and say so."""
    exchange.answer(200, references(exchange.keep()))


class WebPeer:
    """A scripted DICOMweb service, one script for each STOW-RS request; the last one for all that follow.

    What is asked (QIDO-RS, WADO-RS) is answered from what was kept, unless ``asked`` gives a status for it.

    Attributes:
        stored: Part 10 files by SOP Instance UID.
        times_stored: How often each was kept.
        answers: Method, path and status of each answer.
        requests: Each request's method, path and headers.
        lookups: The status with which queries and retrievals are answered; None: truly.
    """

    def __init__(self, *scripts: Script, context: ssl.SSLContext | None = None) -> None:
        self._scripts = scripts or (takes_all,)
        self.lock = threading.Lock()
        self.stored: dict[str, bytes] = {}
        self.times_stored: dict[str, int] = {}
        self.answers: list[tuple[str, str, int]] = []
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.lookups: int | None = None
        self.authorized: Callable[[dict[str, str]], bool] = lambda _: True
        self.lenient = False
        self.stows = 0
        self.open_connections = 0
        self.most_connections = 0
        self._errors: list[BaseException] = []
        peer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 20

            def setup(self) -> None:
                super().setup()
                with peer.lock:
                    peer.open_connections += 1
                    peer.most_connections = max(peer.most_connections, peer.open_connections)

            def finish(self) -> None:
                with contextlib.suppress(OSError):
                    super().finish()
                with peer.lock:
                    peer.open_connections -= 1

            def do_GET(self) -> None:
                peer.serve(self)

            def do_POST(self) -> None:
                peer.serve(self)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass  # a script that breaks off

        self._server = Server(("127.0.0.1", 0), Handler)
        if context is not None:
            self._server.socket = context.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        self.port = int(self._server.server_address[1])
        scheme = "http" if context is None else "https"
        self.url = f"{scheme}://127.0.0.1:{self.port}/dicom-web"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def forget(self, uid: str) -> None:
        """Have an instance as if it had never been stored."""
        with self.lock:
            del self.stored[uid]
            self.times_stored[uid] -= 1
            if not self.times_stored[uid]:
                del self.times_stored[uid]

    def stop(self) -> None:
        """End, and raise what a script raised."""
        self._server.shutdown()
        self._thread.join(10)
        self._server.server_close()
        for error in self._errors:
            raise error

    def serve(self, handler: BaseHTTPRequestHandler) -> None:
        exchange = Exchange(self, handler)
        with self.lock:
            self.requests.append((exchange.method, exchange.path, exchange.headers))
        try:
            if not self.authorized(exchange.headers):
                exchange.body()
                exchange.answer(401)
            elif exchange.method == "POST":
                self._store(exchange)
            else:
                self._look_up(exchange)
        except OSError:
            handler.close_connection = True
        except BaseException as error:  # noqa: BLE001  (told by stop, in the test's own thread)
            self._errors.append(error)
            handler.close_connection = True

    def _store(self, exchange: Exchange) -> None:
        assert exchange.path == "/dicom-web/studies", exchange.path
        with self.lock:
            script = self._scripts[min(self.stows, len(self._scripts) - 1)]
            self.stows += 1
        script(exchange)

    def _look_up(self, exchange: Exchange) -> None:
        if self.lookups is not None:
            exchange.answer(self.lookups)
            return
        parts = urlsplit(exchange.path)
        found = re.fullmatch(
            r"/dicom-web/studies/([^/]+)/series/([^/]+)/instances(?:/([^/]+)(/metadata)?)?",
            parts.path,
        )
        assert found is not None, exchange.path
        study, series, uid, metadata = found.groups()
        mine = {
            key: file
            for key, file in sorted(self.stored.items())
            for image in [dcmread(BytesIO(file), stop_before_pixels=True)]
            if (image.StudyInstanceUID, image.SeriesInstanceUID) == (study, series)
        }
        if uid is None:
            query = parse_qs(parts.query)
            start = int(query["offset"][0])
            page = list(mine)[start : start + int(query["limit"][0])]
            listed = [{"00080018": {"vr": "UI", "Value": [key]}} for key in page]
            exchange.answer(200, json.dumps(listed).encode()) if listed else exchange.answer(204)
        elif uid not in mine:
            exchange.answer(404)
        elif metadata:
            exchange.answer(200, json.dumps([described(mine[uid])]).encode())
        else:
            body = (
                b"--mark\r\nContent-Type: application/dicom\r\n\r\n"
                + mine[uid]
                + b"\r\n--mark--\r\n"
            )
            kind = 'multipart/related; type="application/dicom"; boundary=mark'
            exchange.answer(200, body, content_type=kind)


def described(file: bytes) -> dict[str, Any]:
    """Return a file's attributes as WADO-RS metadata: without its pixels."""
    image: Dataset = dcmread(BytesIO(file), stop_before_pixels=True)
    return dict(image.to_json_dict())
