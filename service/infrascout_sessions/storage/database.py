"""Opens the database that a URL names."""

import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import sqlalchemy as sa
from filelock import FileLock, Timeout
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from infrascout_sessions.models import Clock
from infrascout_sessions.storage import sqlite
from infrascout_sessions.storage.migrations import DatabaseTooNewError, migrate
from infrascout_sessions.storage.statement import Database


class DatabaseSetupError(Exception):
    """The database cannot be used as it stands; the text says why and what to do."""


def _parsed(url: str) -> sa.URL:
    try:
        parsed = sa.make_url(url)
    except ArgumentError as error:
        raise DatabaseSetupError(
            "the database URL is not one: write it like sqlite+aiosqlite:///data/sessions.db"
        ) from error
    if parsed.drivername != "sqlite+aiosqlite":
        raise DatabaseSetupError(
            f"databases of the kind {parsed.drivername} are not supported: "
            "use sqlite+aiosqlite:///path/to/sessions.db"
        )
    if parsed.database in (None, "", ":memory:") or parsed.query:
        raise DatabaseSetupError(
            "SQLite needs a plain file, since what is acknowledged must outlive the process: "
            "use sqlite+aiosqlite:///path/to/sessions.db"
        )
    return parsed


def _file(url: sa.URL) -> Path:
    return Path(str(url.database))


async def _migrate(engine: AsyncEngine, url: sa.URL) -> None:
    try:
        # Where opening fails, aiosqlite leaves a thread behind that may outlive the event loop, and
        # then ends with a traceback.
        sqlite3.connect(_file(url)).close()
        async with engine.begin() as connection:
            await connection.run_sync(migrate)
    except DatabaseTooNewError as error:
        raise DatabaseSetupError(str(error)) from error
    except (SQLAlchemyError, sqlite3.Error) as error:
        reason = getattr(error, "orig", None) or error
        raise DatabaseSetupError(f"{_file(url)} cannot be used: {reason}") from error


def _make_folder(url: sa.URL) -> None:
    folder = _file(url).parent
    try:
        # Evidence is nobody else's to read.
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise DatabaseSetupError(f"the folder {folder} cannot be made: {error.strerror}") from error


async def migrate_database(url: str) -> None:
    """Bring the database to the revision of this program; it may be in use by a server.

    Raises `DatabaseSetupError`.
    """
    parsed = _parsed(url)
    _make_folder(parsed)
    engine = sqlite.create_engine(parsed)
    try:
        await _migrate(engine, parsed)
    finally:
        await engine.dispose()


@asynccontextmanager
async def open_database(url: str, clock: Clock, maximum_waiting: int) -> AsyncIterator[Database]:
    """The database, migrated and this process's alone until the block ends.

    `maximum_waiting` bounds the writes that wait. Raises `DatabaseSetupError`.
    """
    parsed = _parsed(url)
    _make_folder(parsed)
    lock = FileLock(f"{parsed.database}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise DatabaseSetupError(
            f"another server uses {parsed.database}: stop it, or give this one a file of its own"
        ) from error
    except OSError as error:
        raise DatabaseSetupError(f"{lock.lock_file} cannot be made: {error.strerror}") from error
    try:
        engine = sqlite.create_engine(parsed)
        try:
            await _migrate(engine, parsed)
            database = await sqlite.SQLiteDatabase.open(
                engine, clock, maximum_waiting=maximum_waiting
            )
            try:
                yield database
            finally:
                await database.close()
        finally:
            await engine.dispose()
    finally:
        lock.release()
