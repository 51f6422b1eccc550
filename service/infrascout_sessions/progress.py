"""Shows how far a copy has come: a bar on a terminal, a line now and then elsewhere."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Literal, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Phase = Literal["copy", "verify"]

_VERBS: Final = {"copy": "copying", "verify": "verifying"}
_SECONDS_BETWEEN_LINES: Final = 5.0


class Report(Protocol):
    """Is told the phase, the table, how many of its rows are done, and of how many."""

    def __call__(self, phase: Phase, table: str, done: int, total: int, /) -> None: ...


@contextmanager
def shown(console: Console) -> Iterator[Report]:
    """Show what is reported until the block ends."""
    if not console.is_terminal:
        yield _Lines(console)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        tasks = {}

        def report(phase: Phase, table: str, done: int, total: int, /) -> None:
            if (phase, table) not in tasks:
                tasks[phase, table] = progress.add_task(f"{_VERBS[phase]} {table}")
            progress.update(tasks[phase, table], completed=done, total=total)

        yield report


class _Lines:
    """A line where a copy goes on, for each table done, and for a long one every few seconds."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._last = time.monotonic()
        self._first = True

    def __call__(self, phase: Phase, table: str, done: int, total: int, /) -> None:
        now = time.monotonic()
        goes_on, self._first = self._first and done > 0, False
        if done < total and not goes_on and now - self._last < _SECONDS_BETWEEN_LINES:
            return
        self._last = now
        self._console.print(
            f"{_VERBS[phase]} {table}: {done:,} of {total:,}", highlight=False, soft_wrap=True
        )
