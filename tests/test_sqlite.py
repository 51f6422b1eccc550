"""What storage/sqlite.py leans on: of aiosqlite, below its documented surface, and of SQLite."""

import sqlite3
import threading
from asyncio import Future, get_running_loop
from collections.abc import AsyncIterator
from functools import partial
from importlib.metadata import requires, version
from pathlib import Path
from typing import Any

import aiosqlite
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from infrascout_sessions.storage.sqlite import create_engine


@pytest.fixture
async def connection(tmp_path: Path) -> AsyncIterator[AsyncConnection]:
    """A connection as the server has them."""
    engine = create_engine(sa.make_url(f"sqlite+aiosqlite:///{tmp_path}/a.db"))
    async with engine.connect() as connection:
        yield connection
    await engine.dispose()


@pytest.fixture
async def driver(connection: AsyncConnection) -> Any:
    return (await connection.get_raw_connection()).driver_connection


def test_aiosqlite_is_pinned() -> None:
    pinned = [one for one in requires("infrascout-sessions") or () if one.startswith("aiosqlite")]
    assert pinned == [f"aiosqlite=={version('aiosqlite')}"]


async def test_conn_is_the_connection_of_sqlite3(driver: Any) -> None:
    assert isinstance(driver, aiosqlite.Connection)
    assert isinstance(driver._conn, sqlite3.Connection)


async def test_tx_runs_a_function_on_the_thread_of_the_connection(driver: Any) -> None:
    loop = get_running_loop()
    ran: Future[tuple[int, object]] = loop.create_future()

    def run() -> None:
        # sqlite3 lets no other thread do this.
        [one] = driver._conn.execute("SELECT 1").fetchone()
        loop.call_soon_threadsafe(ran.set_result, (one, threading.get_ident()))

    driver._tx.put_nowait((None, run))
    one, thread = await ran
    assert one == 1
    assert thread == await driver._execute(threading.get_ident) != threading.get_ident()


async def test_tx_keeps_order_and_survives_what_raises(driver: Any) -> None:
    ran: list[int] = []

    def fail() -> None:
        raise ZeroDivisionError

    for number in range(100):
        driver._tx.put_nowait((None, partial(ran.append, number)))
        driver._tx.put_nowait((None, fail))
    # Behind all of those, with a result.
    assert await driver._execute(lambda: list(ran)) == list(range(100))
    with pytest.raises(ZeroDivisionError):
        await driver._execute(fail)


@pytest.mark.parametrize(
    ("pragma", "value"),
    [
        ("journal_mode", "wal"),
        # FULL: a commit is an fsync.
        ("synchronous", 2),
        ("foreign_keys", 1),
        ("busy_timeout", 5000),
        # The default; a writer that never checkpoints fills the disk.
        ("wal_autocheckpoint", 1000),
    ],
)
async def test_a_connection_is_durable_and_checked(
    connection: AsyncConnection, pragma: str, value: object
) -> None:
    assert (await connection.exec_driver_sql(f"PRAGMA {pragma}")).scalar() == value


async def test_sqlalchemy_begins_what_it_writes_as_a_writer(connection: AsyncConnection) -> None:
    """A transaction that becomes a writer's only later can fail as busy without any wait."""
    await connection.exec_driver_sql("SELECT 1")
    other = sqlite3.connect(str(connection.engine.url.database), timeout=0)
    try:
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            other.execute("BEGIN IMMEDIATE")
        await connection.rollback()
        other.execute("BEGIN IMMEDIATE")
    finally:
        other.close()
