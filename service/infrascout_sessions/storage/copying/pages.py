"""Tables read in the order of their keys, a page at a time, on either database.

A page is bounded in rows and in bytes: a row may be a chunk of an output and have a mebibyte.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from hashlib import sha256
from typing import Any, Final, NamedTuple

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.expression import ColumnElement
from sqlalchemy.sql.visitors import InternalTraversal

Key = tuple[Any, ...]
Row = tuple[Any, ...]

PAGE_ROWS: Final = 10_000
PAGE_BYTES: Final = 4 * 1024 * 1024


class _SizeBytes(ColumnElement[int]):
    """How many bytes a text or binary column has in this row."""

    inherit_cache = True
    type = sa.BigInteger()

    _traverse_internals = [("column", InternalTraversal.dp_clauseelement)]  # noqa: RUF012

    def __init__(self, column: sa.Column[Any]) -> None:
        self.column = column


@compiles(_SizeBytes, "sqlite")
def _sqlite_size(element: _SizeBytes, compiler: SQLCompiler, **kw: Any) -> str:
    column = compiler.process(element.column, **kw)
    # The length of text is that of its characters, and OCTET_LENGTH is newer than Debian 12. The
    # length of a blob is known without reading it, unless it is cast.
    if isinstance(element.column.type, sa.LargeBinary):
        return f"COALESCE(LENGTH({column}), 0)"
    return f"COALESCE(LENGTH(CAST({column} AS BLOB)), 0)"


@compiles(_SizeBytes, "postgresql")
def _postgresql_size(element: _SizeBytes, compiler: SQLCompiler, **kw: Any) -> str:
    return f"COALESCE(OCTET_LENGTH({compiler.process(element.column, **kw)}), 0)"


def key_columns(table: sa.Table) -> tuple[sa.Column[Any], ...]:
    """The columns of the primary key, in its order."""
    return tuple(table.primary_key.columns)


def _compared_with(columns: Sequence[sa.Column[Any]], key: Key) -> tuple[Any, Any]:
    # Plain Text: the column's own collation decides.
    types = [sa.Text() if isinstance(column.type, sa.Text) else column.type for column in columns]
    values = (sa.literal(value, kind) for value, kind in zip(key, types, strict=True))
    return sa.tuple_(*columns), sa.tuple_(*values)


def _behind(table: sa.Table, after: Key | None) -> list[ColumnElement[bool]]:
    if after is None:
        return []
    key, bound = _compared_with(key_columns(table), after)
    return [key > bound]


def _last_of_page(table: sa.Table, after: Key | None) -> sa.Select[Any]:
    """The key of the last row of the next page: the first row is in it, however large."""
    key = key_columns(table)
    measured = [c for c in table.c if isinstance(c.type, sa.Text | sa.LargeBinary)]
    size: ColumnElement[int] = sum(
        (_SizeBytes(column) for column in measured), sa.literal_column("0")
    )
    rows = (
        sa.select(*key, size.label("size_bytes"))
        .where(*_behind(table, after))
        .order_by(*key)
        .limit(PAGE_ROWS)
        .subquery()
    )
    order = [rows.c[column.name] for column in key]
    before = sa.func.sum(rows.c.size_bytes).over(order_by=order, rows=(None, 0))
    sized = sa.select(*order, (before - rows.c.size_bytes).label("before_bytes")).subquery()
    order = [sized.c[column.name] for column in key]
    return (
        sa.select(*order)
        .where(sized.c.before_bytes < PAGE_BYTES)
        .order_by(*(column.desc() for column in order))
        .limit(1)
    )


async def page(
    connection: AsyncConnection, table: sa.Table, after: Key | None
) -> tuple[list[Row], Key | None]:
    """The rows behind a key and the key of the last one, which is None if there are none."""
    found = (await connection.execute(_last_of_page(table, after))).first()
    if found is None:
        return [], None
    last = tuple(found)
    columns = key_columns(table)
    key, bound = _compared_with(columns, last)
    rows = await connection.execute(
        sa.select(table)
        .where(*_behind(table, after), key <= bound)
        .order_by(*columns)
        # Says nothing new, but to the planner: it is few rows.
        .limit(PAGE_ROWS)
    )
    return list(map(tuple, rows.all())), last


async def pages(
    connection: AsyncConnection, table: sa.Table, after: Key | None = None
) -> AsyncIterator[tuple[list[Row], Key]]:
    """Every page behind a key."""
    while True:
        rows, last = await page(connection, table, after)
        if last is None:
            return
        yield rows, last
        after = last


class Content(NamedTuple):
    """What a table holds: how many rows, and the SHA-256 of all of them in order."""

    table_name: str
    rows: int
    sha256: str


async def content(
    connection: AsyncConnection, table: sa.Table, advance: Callable[[int], None]
) -> Content:
    """Read a whole table; `advance` is told how many rows have been read so far."""
    digest = sha256()
    count = 0
    async for rows, _ in pages(connection, table):
        # Python's own text of a row: there is one for each None, int, str and bytes.
        digest.update("".join(map(repr, rows)).encode())
        count += len(rows)
        advance(count)
    return Content(table.name, count, digest.hexdigest())


class Extent(NamedTuple):
    """How much a table holds and from where to where: enough to tell one source from another."""

    table_name: str
    rows: int
    first: Key | None
    last: Key | None


async def extent(connection: AsyncConnection, table: sa.Table) -> Extent:
    """Measure a table."""
    key = key_columns(table)
    rows = await connection.scalar(sa.select(sa.func.count()).select_from(table))
    ends = []
    for order in (key, tuple(column.desc() for column in key)):
        end = (await connection.execute(sa.select(*key).order_by(*order).limit(1))).first()
        ends.append(None if end is None else tuple(end))
    return Extent(table.name, int(rows or 0), *ends)
