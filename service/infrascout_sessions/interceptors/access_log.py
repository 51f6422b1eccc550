"""The access log, for auditors: a line for each call of ours, who made it and what came of it."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import Any, Final, TextIO

import structlog

_log = structlog.get_logger()

# How often it is looked whether the file has been moved away.
_LOOK_INTERVAL_SECONDS: Final = 1.0

# json.dumps would make one for each line, which takes longer than the line.
_encode: Final = json.JSONEncoder(ensure_ascii=False, separators=(", ", ": ")).encode


class AccessLogError(Exception):
    """The file cannot be written; the text says why."""


class AccessLog:
    """Writes JSON lines, each at once, to a file or to stderr.

    A file that is moved away (rotated) is opened anew under its name.
    """

    def __init__(self, path: Path | None, *, apart: bool = True) -> None:
        self.apart = apart
        """Whether it is kept; if not, the log's own lines say who called."""
        self._path = path
        self._file: TextIO | None = None
        self._identity: tuple[int, int] | None = None
        self._looked = monotonic()
        self._failing = False
        self._left_behind = False

    def open(self) -> None:
        """Open the file, in place of one that is open, which stays if it raises `OSError`."""
        if self._path is not None:
            # Who read what is not everybody's to read.
            file = open(  # noqa: SIM115 - open until the server stops
                self._path, "a", encoding="utf-8", opener=_opener
            )
            self.close()
            self._file, self._identity = file, _identity(os.fstat(file.fileno()))

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            with suppress(OSError):
                self._file.close()

    def write(self, **fields: Any) -> None:
        """Write a line. That it cannot be written is logged, once, and stops nobody."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line = _encode({"event": "access", "time": now, **fields})
        try:
            self._follow()
            target = self._file or sys.stderr
            target.write(f"{line}\n")
            target.flush()
        except (OSError, ValueError) as error:
            if not self._failing:
                self._failing = True
                _log.error("access log cannot be written", cause=str(error))
        else:
            self._failing = False

    def _follow(self) -> None:
        """Open the file anew if its name stands for another one, or none, by now."""
        if self._path is None or monotonic() - self._looked < _LOOK_INTERVAL_SECONDS:
            return
        self._looked = monotonic()
        try:
            if not self._is_current(self._path):
                self.open()
        except OSError as error:
            # Its folder may be back in a moment. Until then the old file has the lines.
            if not self._left_behind:
                self._left_behind = True
                _log.error(
                    "access log cannot be opened anew: lines go on into the file that was open; "
                    "see that its folder is there and can be written",
                    cause=str(error),
                )
        else:
            self._left_behind = False

    def _is_current(self, path: Path) -> bool:
        try:
            return _identity(path.stat()) == self._identity
        except FileNotFoundError:
            return False


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


def _opener(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


@contextmanager
def access_log(path: str) -> Iterator[AccessLog]:
    """The access log: a file, or stderr for `-`; none if empty.

    Raises `AccessLogError`.
    """
    log = AccessLog(None if path in ("", "-") else Path(path), apart=bool(path))
    try:
        log.open()
    except OSError as error:
        raise AccessLogError(
            f"the access log {path} cannot be written: {error.strerror}"
        ) from error
    try:
        yield log
    finally:
        log.close()
