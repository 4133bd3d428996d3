"""What reaches stderr: our own lines as asked for, and of others nothing that could be a patient's."""

import json
import subprocess
import sys

import pytest

MARKER = "MARKED-4711"
BEGIN = f"""
import asyncio, logging, threading, warnings
from clara_results.cli.log import set_up_logging
from clara_results.errors import NotFound
from clara_results.settings import Settings
MARKER = "MARKED-" + "4711"  # so that the source, which a traceback shows, does not hold it
assert MARKER == {MARKER!r}
def fault():
    try:
        try:
            int(MARKER)
        except ValueError as error:
            raise NotFound("one of ours") from error
    except NotFound:
        open("/none/" + MARKER)
"""


def said(script: str, log_format: str = "json", log_level: str = "debug") -> str:
    """Run a script and return what it printed on stderr."""
    setting = f"set_up_logging(Settings(log_format={log_format!r}, log_level={log_level!r}))\n"
    run = subprocess.run(
        [sys.executable, "-c", BEGIN + setting + script],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert run.stdout == ""
    return run.stderr


LOGGED = """
try:
    fault()
except OSError:
    logging.getLogger("clara_results.x").exception("it failed")
"""


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_a_traceback_shows_where_and_what_but_no_foreign_message(log_format: str) -> None:
    text = said(LOGGED, log_format)
    assert MARKER not in text
    for part in ("it failed", "in fault", "builtins.ValueError", "NotFound: one of ours",
                 "builtins.FileNotFoundError: No such file or directory"):  # fmt: skip
        assert part in text
    if log_format == "json":
        assert json.loads(text)["logger"] == "clara_results.x"


@pytest.mark.parametrize(
    "script",
    [
        "fault()",
        "t = threading.Thread(target=fault); t.start(); t.join()",
        "async def main():\n    t = asyncio.create_task(later()); await asyncio.sleep(0); del t\n"
        "async def later():\n    fault()\nasyncio.run(main())",
    ],
)
def test_what_nobody_caught_is_logged_without_its_message(script: str) -> None:
    text = said(script)
    assert MARKER not in text
    assert "builtins.FileNotFoundError: No such file or directory" in text
    assert all(json.loads(line) for line in text.splitlines())


def test_python_warnings_are_not_shown() -> None:
    assert said("warnings.warn('bad value ' + MARKER)") == ""


def test_our_level_is_as_asked_for_and_libraries_speak_from_warnings_on() -> None:
    script = "for name in ('clara_results.x', 'urllib3.connectionpool', 'some.library'):\n" + "".join(
        f"    logging.getLogger(name).{level}('{level} of ' + name)\n"
        for level in ("debug", "info", "warning", "error")
    )  # fmt: skip
    lines = [json.loads(line)["event"] for line in said(script).splitlines()]
    assert [line for line in lines if "clara" in line] == [
        f"{level} of clara_results.x" for level in ("debug", "info", "warning", "error")
    ]
    assert [line for line in lines if "some.library" in line] == [
        "warning of some.library",
        "error of some.library",
    ]
    quiet = [json.loads(line)["event"] for line in said(script, log_level="error").splitlines()]
    assert all(line.startswith("error") for line in quiet)
    assert len(quiet) == 3
