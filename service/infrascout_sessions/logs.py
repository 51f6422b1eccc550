"""How the log is written: one JSON object a line on stderr, or colours on a terminal."""

import asyncio
import logging
import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Literal

import orjson
import structlog


class _Stderr:
    """stderr, without its faults: a log that cannot be written fails no call and stops no server.

    Its disk may be full, and its reader may have gone. What one turn of the event loop logs is
    written at its end, all at once: with each write the loop lets go of the interpreter's lock.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._lines: list[Any] = []

    def write(self, line: Any) -> None:
        """Take a line."""
        self._lines.append(line)

    def flush(self) -> None:
        """Write what was taken, soon."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self._write_out()
            return
        if len(self._lines) == 1:
            loop.call_soon(self._write_out)

    def _write_out(self) -> None:
        lines, self._lines = self._lines, []
        if lines:
            with suppress(OSError):
                self._stream.write(type(lines[0])().join(lines))
                self._stream.flush()


def _stamp(
    _logger: object, level: str, line: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    line["level"] = level
    line["timestamp"] = datetime.now(UTC)  # orjson writes it, as RFC 3339
    return line


def _json(line: structlog.typing.EventDict, default: Callable[[Any], Any]) -> bytes:
    return orjson.dumps(line, default=default, option=orjson.OPT_UTC_Z)


def configure(level: Literal["debug", "info", "warning", "error"]) -> None:
    """Set up the log for this process."""
    wrapper = structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()])
    if sys.stderr.isatty():
        terminal: Any = _Stderr(sys.stderr)
        structlog.configure(
            processors=[
                structlog.processors.add_log_level,
                structlog.processors.TimeStamper(fmt="iso", utc=True),
                # A traceback with the values of its variables would show commands and tokens.
                structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback),
            ],
            wrapper_class=wrapper,
            logger_factory=structlog.WriteLoggerFactory(terminal),
            cache_logger_on_first_use=True,
        )
        return
    stderr: Any = _Stderr(sys.stderr.buffer)
    structlog.configure(
        # Of all that a call costs here, the line costs most: orjson, and no step more than needed.
        processors=[
            _stamp,
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(serializer=_json),
        ],
        wrapper_class=wrapper,
        logger_factory=structlog.BytesLoggerFactory(stderr),
        cache_logger_on_first_use=True,
    )
