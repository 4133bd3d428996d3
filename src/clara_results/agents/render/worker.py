"""The child process in which files are looked at and converted."""

import json
import shutil
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import SimpleITK

from clara_results.agents.render.conversion import convert
from clara_results.agents.render.converter import FAILED, FILES, MADE
from clara_results.agents.render.faults import Unshowable
from clara_results.agents.render.planning import plan
from clara_results.agents.render.source import Group
from clara_results.payloads.child import serve
from clara_results.wire.codec import from_json, to_json


def _answer(connection: Connection) -> None:
    request = json.loads(connection.recv_bytes())
    scratch = Path(request["scratch"])
    try:
        answer = b'{"result":' + _done(scratch, request) + b"}"
    except Unshowable as fault:
        answer = _fault(str(fault), fault.code, fault.uri)
    except Exception as error:  # noqa: BLE001  (outermost loop: whatever a file makes a library raise)
        answer = _fault(f"the converter failed: {type(error).__name__}", FAILED, None)
    connection.send_bytes(answer)


def _fault(message: str, code: str, uri: str | None) -> bytes:
    return json.dumps({"fault": {"message": message, "code": code, "uri": uri}}).encode()


def _done(scratch: Path, request: dict[str, Any]) -> bytes:
    folder = scratch / FILES
    if "group" not in request:
        return to_json(plan(folder, request["uris"], request["around"]))
    out = scratch / MADE
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    return to_json(convert(folder, from_json(Group, request["group"]), out))


def main() -> None:
    """Run the child process."""
    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    serve(_answer)


if __name__ == "__main__":
    main()
