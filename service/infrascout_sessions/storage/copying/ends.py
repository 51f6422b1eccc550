"""The two ends of a copy: how each kind of database is kept still, and written fast."""

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from infrascout_sessions.storage.copying.pages import Row
from infrascout_sessions.storage.copying.progress import AGAIN, CopyError
from infrascout_sessions.storage.migrations import WITHOUT_TIME_LIMITS
from infrascout_sessions.storage.schema import metadata

# Any number that nobody else locks; migrations have another.
_LOCK = 0x696E_6672_6173_0002
# A copy that was killed a moment ago may hold its locks for as long as its server takes to notice.
_PATIENCE = "5s"


async def hold_source(connection: AsyncConnection) -> None:
    """Keep everybody from writing in the source until the transaction of `connection` ends.

    SQLite's has the write lock already, and its file is locked. Raises `CopyError`.
    """
    if connection.dialect.name == "sqlite":
        return
    names = ", ".join(table.name for table in metadata.sorted_tables)
    try:
        await connection.execute(WITHOUT_TIME_LIMITS, {"local": True})
        await connection.execute(sa.text(f"SET LOCAL lock_timeout = '{_PATIENCE}'"))
        await connection.execute(sa.text(f"LOCK TABLE {names} IN SHARE MODE"))
    except DBAPIError as error:
        raise CopyError(
            f"the source cannot be kept still: {error.orig}; stop the servers that write in it"
        ) from error


async def hold_target(connection: AsyncConnection) -> None:
    """Keep other copies out of the target until `connection` is closed. Raises `CopyError`."""
    if connection.dialect.name == "sqlite":
        return
    try:
        async with connection.begin():
            await connection.execute(WITHOUT_TIME_LIMITS, {"local": False})
            await connection.execute(sa.text(f"SET LOCAL lock_timeout = '{_PATIENCE}'"))
            await connection.execute(sa.select(sa.func.pg_advisory_lock(_LOCK)))
    except DBAPIError as error:
        raise CopyError("another copy writes into this target") from error


async def write(connection: AsyncConnection, table: sa.Table, rows: Sequence[Row]) -> None:
    """Insert whole rows in the transaction of `connection`, by the driver's fastest way.

    Raises `CopyError`.
    """
    driver: Any = (await connection.get_raw_connection()).driver_connection
    names = [column.name for column in table.c]
    try:
        if connection.dialect.name == "postgresql":
            await driver.copy_records_to_table(table.name, records=rows, columns=names)
        else:
            marks = ", ".join("?" * len(names))
            await driver.executemany(
                f"INSERT INTO {table.name} ({', '.join(names)}) VALUES ({marks})",  # noqa: S608
                rows,
            )
    except Exception as error:  # the driver's own, of either driver
        raise CopyError(f"{table.name} cannot be written: {error}; {AGAIN}") from error


async def gather_statistics(connection: AsyncConnection) -> None:
    """Tell PostgreSQL's planner what it has got, instead of when autovacuum comes by.

    SQLite is better off without: schema.py's indexes are chosen by rule.
    """
    if connection.dialect.name == "postgresql":
        async with connection.begin():
            for table in metadata.sorted_tables:
                await connection.execute(sa.text(f"ANALYZE {table.name}"))
