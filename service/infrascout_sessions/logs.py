"""How the log is written: one JSON object a line on stderr, or colours on a terminal."""

import logging
import sys
from contextlib import suppress
from typing import Any

import structlog


class _Stderr:
    """stderr, without its faults: a log that cannot be written fails no call and stops no server.

    Its disk may be full, and its reader may have gone.
    """

    def write(self, text: str) -> None:
        with suppress(OSError):
            sys.stderr.write(text)

    def flush(self) -> None:
        with suppress(OSError):
            sys.stderr.flush()


def configure(level: str) -> None:
    """Set up the log for this process; `level` is debug, info, warning or error."""
    terminal = sys.stderr.isatty()
    stderr: Any = _Stderr()
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *([] if terminal else [structlog.processors.format_exc_info]),
            structlog.dev.ConsoleRenderer() if terminal else structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.getLevelNamesMapping()[level.upper()]
        ),
        logger_factory=structlog.WriteLoggerFactory(stderr),
        cache_logger_on_first_use=True,
    )
