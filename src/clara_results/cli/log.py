"""Log lines on stderr: JSON for machines, plain for people. Never patient data: callers see to that."""

import logging
import sys

import structlog

from clara_results.settings import Settings


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
    last: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if json_lines
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), pad_event_to=0)
    )
    render = [structlog.stdlib.ProcessorFormatter.remove_processors_meta, last]
    if json_lines:
        render.insert(1, structlog.processors.format_exc_info)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=render)
    )
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler], force=True)
    logging.getLogger("uvicorn.access").disabled = True  # its paths hold file names
    for noisy in ("urllib3", "uvicorn", "alembic", "asyncio", "pynetdicom", "pydicom"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
