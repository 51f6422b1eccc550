"""A copy from beginning to end: batches that can be cut off anywhere, then the proof."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from hashlib import sha256
from typing import Any, Literal, TypeVar

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from infrascout_sessions.storage.copying import progress
from infrascout_sessions.storage.copying.ends import (
    gather_statistics,
    hold_source,
    hold_target,
    write,
)
from infrascout_sessions.storage.copying.pages import Content, Extent, Row, content, extent, page
from infrascout_sessions.storage.copying.progress import CopyError, Progress
from infrascout_sessions.storage.schema import metadata

A = TypeVar("A")
B = TypeVar("B")

Report = Callable[[Literal["copy", "verify"], str, int, int], None]
"""Is told the phase, the table, how many of its rows are done, and of how many."""


async def _both(first: Awaitable[A], second: Awaitable[B]) -> tuple[A, B]:
    """Both at once; what either raises is raised when neither runs any more."""
    done: Any = await asyncio.gather(first, second, return_exceptions=True)
    for outcome in done:
        if isinstance(outcome, BaseException):
            raise outcome
    return done[0], done[1]


def _identity(revision: str, extents: Sequence[Extent]) -> str:
    """What a source is recognised by when its copy goes on."""
    return sha256(json.dumps([revision, extents], default=bytes.hex).encode()).hexdigest()


async def copy(
    source: AsyncConnection, target: AsyncConnection, revision: str, report: Report
) -> list[Content]:
    """Copy every table, or go on with a copy of this source that was cut off; then verify it.

    Both are at `revision`. `source` is in a transaction, `target` in none. Gives what each table
    holds, on both sides. Raises `CopyError`.
    """
    await hold_source(source)
    await hold_target(target)
    extents = [await extent(source, table) for table in metadata.sorted_tables]
    totals = {found.table_name: found.rows for found in extents}
    at = await progress.find_or_begin(target, _identity(revision, extents))
    names = [table.name for table in metadata.sorted_tables]
    for table in metadata.sorted_tables[names.index(at.table_name) :]:
        at = await _copy_table(source, target, table, totals[table.name], at, report)
    await gather_statistics(target)
    found = await _verify(source, target, totals, report)
    await progress.finish(target)
    return found


async def _copy_table(
    source: AsyncConnection,
    target: AsyncConnection,
    table: sa.Table,
    total: int,
    before: Progress,
    report: Report,
) -> Progress:
    after = before if before.table_name == table.name else Progress(table.name, None, 0)
    report("copy", table.name, after.copied, total)
    rows, last = await page(source, table, after.last_key)
    while last is not None:
        after = Progress(table.name, last, after.copied + len(rows))
        # The next page is read while this one is written.
        _, (rows, last) = await _both(
            _write(target, table, rows, before, after), page(source, table, last)
        )
        report("copy", table.name, after.copied, total)
        before = after
    return before


async def _write(
    target: AsyncConnection,
    table: sa.Table,
    rows: Sequence[Row],
    before: Progress,
    after: Progress,
) -> None:
    async with target.begin():
        await progress.move(target, before, after)
        await write(target, table, rows)


async def _verify(
    source: AsyncConnection, target: AsyncConnection, totals: dict[str, int], report: Report
) -> list[Content]:
    """Read both sides from beginning to end and compare. Raises `CopyError` if they differ."""
    found = []
    wrong = []
    for table in metadata.sorted_tables:
        done = [0, 0]

        def advance(side: int, rows: int, name: str = table.name, done: list[int] = done) -> None:
            done[side] = rows
            report("verify", name, min(done), totals[name])

        async with target.begin():
            original, copied = await _both(
                content(source, table, partial(advance, 0)),
                content(target, table, partial(advance, 1)),
            )
        found.append(original)
        if original != copied:
            wrong.append(
                f"{table.name} ({original.rows:,} rows there, {copied.rows:,} here"
                + (")" if original.rows != copied.rows else ", of other content)")
            )
    if wrong:
        raise CopyError(
            f"the copy differs from its source in {'; '.join(wrong)}: one of them was changed "
            "meanwhile; drop the target, and copy into an empty database"
        )
    return found
