"""Rows that a statement is given, or gives, as one JSON text, on SQLite.

With every row that a statement steps to, its thread lets go of the interpreter's lock, and beside a
busy event loop gets it back late. So what several callers write at the same time goes into few
statements, which take and give all of their rows at once.
"""

from collections.abc import Sequence
from typing import Any

import orjson
import sqlalchemy as sa

from infrascout_sessions.storage.statement import Connection, DialectName, Row, Statement

_GIVEN = sa.func.json_each(sa.bindparam("given", type_=sa.Text)).table_valued("value", name="given")


def value(index: int, kind: Any = sa.Text) -> sa.ColumnElement[Any]:
    """A value of a given row, by its place in the row."""
    path: sa.ColumnElement[str] = sa.literal_column(f"'$[{index}]'")
    return sa.func.json_extract(_GIVEN.c.value, path, type_=kind)


def run(
    statement: Statement, rows: Sequence[Sequence[str | int]], connection: Connection
) -> Sequence[Row]:
    """Run a statement on the rows."""
    return connection.all(statement, given=orjson.dumps(rows).decode())


def gathered(*columns: sa.ColumnElement[Any]) -> sa.Select[Any]:
    """A SELECT that gives its rows, none of which holds bytes, as one: for `select`."""
    return sa.select(sa.func.json_group_array(sa.func.json_array(*columns)))


def gathered_in_order(select: sa.Select[Any], dialect: DialectName) -> sa.Select[Any]:
    """A SELECT for `rows_of`."""
    if dialect != "sqlite":
        return select
    found = select.subquery()
    return gathered(*found.c).select_from(found)


def rows_of(statement: Statement, connection: Connection, /, **parameters: Any) -> Sequence[Row]:
    """What a SELECT that is `gathered_in_order` finds."""
    rows = connection.all(statement, **parameters)
    return orjson.loads(rows[0][0]) if connection.dialect == "sqlite" else rows


def select(
    statement: Statement, rows: Sequence[Sequence[str | int]], connection: Connection
) -> Sequence[Row]:
    """What a SELECT that is `gathered` finds for the rows."""
    [[found]] = run(statement, rows, connection)
    return orjson.loads(found)  # type: ignore[no-any-return]
