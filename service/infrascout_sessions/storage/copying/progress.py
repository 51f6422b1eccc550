"""How far a copy has come, in a table of the target that exists only while it is unfinished.

Every batch moves it in its own transaction, so that what it says is true whenever a copy dies.
"""

import json
from typing import Any, Final, NamedTuple

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from infrascout_sessions.storage.copying.pages import Key
from infrascout_sessions.storage.schema import metadata

_table = sa.Table(
    "unfinished_copy",
    # No migration knows it, and no copy takes it along.
    sa.MetaData(),
    sa.Column("source", sa.Text, nullable=False),
    sa.Column("table_name", sa.Text, nullable=False),
    sa.Column("last_key", sa.Text, nullable=False),
    sa.Column("copied", sa.BigInteger, nullable=False),
)


AGAIN: Final = "run the same command again to go on"


class CopyError(Exception):
    """The copy cannot be made, or has not come out right; the text says why and what to do."""


class Progress(NamedTuple):
    """The table under way, the last key copied and how many rows; those before it are whole."""

    table_name: str
    last_key: Key | None
    copied: int


def is_unfinished(connection: sa.Connection) -> bool:
    """Whether the database is the target of a copy that has not been brought to its end."""
    return sa.inspect(connection).has_table(_table.name)


async def find_or_begin(connection: AsyncConnection, source: str) -> Progress:
    """Where to go on with the copy of this source; at the beginning, if the target is empty.

    Raises `CopyError` if it is not, and no unfinished copy of this source either.
    """
    async with connection.begin():
        if await connection.run_sync(is_unfinished):
            row = (await connection.execute(sa.select(_table))).one()
            if row.source != source:
                raise CopyError(
                    "the target is an unfinished copy of another source, or of one that has "
                    "changed since: drop it, and copy into an empty database"
                )
            return Progress(row.table_name, _key_from_text(row.last_key), row.copied)
        for table in metadata.sorted_tables:
            if await connection.scalar(sa.select(sa.exists(sa.select(table)))):
                raise CopyError(
                    f"the target is not empty, there are {table.name} in it: copy into an empty "
                    "database"
                )
        first = Progress(metadata.sorted_tables[0].name, None, 0)
        await connection.run_sync(_table.create)
        await connection.execute(
            sa.insert(_table).values(
                source=source, table_name=first.table_name, last_key="null", copied=0
            )
        )
        return first


def _key_as_text(key: tuple[Any, ...] | None) -> str:
    """A primary key as JSON; bytes in it as hex in a list of their own."""
    return json.dumps(key, default=lambda data: [data.hex()])


def _key_from_text(text: str) -> tuple[Any, ...] | None:
    key = json.loads(text)
    return key and tuple(
        bytes.fromhex(value[0]) if isinstance(value, list) else value for value in key
    )


async def move(connection: AsyncConnection, before: Progress, after: Progress) -> None:
    """Note a batch in the transaction that writes it. Raises `CopyError` if another copy runs."""
    moved = await connection.execute(
        sa.update(_table)
        .where(_table.c.table_name == before.table_name, _table.c.copied == before.copied)
        .values(
            table_name=after.table_name, last_key=_key_as_text(after.last_key), copied=after.copied
        )
    )
    if moved.rowcount != 1:
        raise CopyError("another copy writes into this target")


async def finish(connection: AsyncConnection) -> None:
    """The copy is whole and verified."""
    async with connection.begin():
        await connection.run_sync(_table.drop)
