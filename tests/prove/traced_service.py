"""``python traced_service.py FILE serve``: the service, that writes every statement SQLite runs for it to FILE.

The values are in the text, as the plan was made for them; one JSON string a line.
"""

import json
import sqlite3
import sys
import threading
from pathlib import Path
from typing import Any

from clara_results.cli.app import run

_door = threading.Lock()
_log = Path(sys.argv[1]).open("a", buffering=1)  # noqa: SIM115  (until the process ends)


def _write(statement: str) -> None:
    with _door:
        _log.write(json.dumps(statement) + "\n")


def _trace(connection: sqlite3.Connection) -> None:
    while True:
        try:
            connection.set_trace_callback(_write)
        except sqlite3.ProgrammingError:
            continue  # the event comes a moment before the connection can be used
        return


def _heard(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "sqlite3.connect/handle":
        threading.Thread(target=_trace, args=arguments).start()


sys.addaudithook(_heard)
sys.exit(run(sys.argv[2:]))
