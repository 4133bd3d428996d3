"""Log lines on stderr: JSON for machines, plain for people. Never patient data.

Our own lines hold ids, codes and counts; callers see to that. What others would add is kept out here: libraries'
lines below a warning, Python's warnings, and the messages of errors that are not ours, as any of them may quote
the value that it is about.
"""

import logging
import sys
import threading
import traceback
from collections.abc import Iterator
from types import TracebackType
from typing import TextIO

import structlog

from clara_results.errors import ClaraResultsError
from clara_results.settings import Settings

_log = logging.getLogger(__name__)


def set_up_logging(settings: Settings) -> None:
    """Have every log line of this process go to stderr as the settings ask."""
    json_lines = settings.log_format == "json" or (
        settings.log_format == "auto" and not sys.stderr.isatty()
    )
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    last: list[structlog.typing.Processor] = (
        [
            structlog.processors.ExceptionRenderer(_traceback),
            structlog.processors.JSONRenderer(),
        ]
        if json_lines
        else [
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(), pad_event_to=0, exception_formatter=_write_traceback
            )
        ]
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    level = getattr(logging, settings.log_level.upper())
    logging.basicConfig(level=max(level, logging.WARNING), handlers=[handler], force=True)
    logging.getLogger("clara_results").setLevel(level)
    logging.getLogger("uvicorn.access").disabled = True  # its paths hold file names
    for quoting in ("pydicom", "pynetdicom"):  # the values that they warn of
        logging.getLogger(quoting).setLevel(logging.CRITICAL)
    logging.getLogger("asyncio").addFilter(_first_line)
    logging.captureWarnings(True)
    logging.getLogger("py.warnings").disabled = True
    sys.excepthook = _process_ended
    threading.excepthook = _thread_ended


def _traceback(exc_info: structlog.typing.ExcInfo) -> str:
    """Return where an error and its causes came from, the messages of foreign ones left out."""
    return "\n".join(_parts(exc_info[1]))


def _write_traceback(out: TextIO, exc_info: structlog.typing.ExcInfo) -> None:
    out.write("\n" + _traceback(exc_info))


def _parts(error: BaseException) -> Iterator[str]:
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if cause is not None:
        yield from _parts(cause)
        yield "which led to"
    yield "".join(traceback.format_tb(error.__traceback__)).rstrip()
    yield f"{type(error).__module__}.{type(error).__qualname__}{_harmless(error)}"


def _harmless(error: BaseException) -> str:
    """Return of an error's message what can't be a patient's."""
    if isinstance(error, ClaraResultsError):
        return f": {error}"
    if isinstance(error, OSError) and error.strerror:
        return f": {error.strerror}"  # and not the file
    return ""


def _first_line(record: logging.LogRecord) -> bool:
    """Cut asyncio's lines after what they say; what follows describes objects, their errors too."""
    record.msg = str(record.msg).partition("\n")[0]
    return True


def _process_ended(
    _kind: type[BaseException], error: BaseException, _trace: TracebackType | None
) -> None:
    _log.critical("ended by a fault of its own", exc_info=error)


def _thread_ended(arguments: threading.ExceptHookArgs) -> None:
    _log.critical("a thread ended by a fault of its own", exc_info=arguments.exc_value)
