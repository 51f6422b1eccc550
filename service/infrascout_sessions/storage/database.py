"""Opens the database that a URL names."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import sqlalchemy as sa
from filelock import FileLock, Timeout
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from infrascout_sessions.config import Settings
from infrascout_sessions.models import Clock, system_clock
from infrascout_sessions.storage import sqlite
from infrascout_sessions.storage.migrations import DatabaseTooNewError, migrate
from infrascout_sessions.storage.statement import Database

_SQLITE = "sqlite+aiosqlite"
_POSTGRESQL = "postgresql+asyncpg"


class DatabaseSetupError(Exception):
    """The database cannot be used as it stands; the text says why and what to do."""


def parsed(url: str) -> sa.URL:
    """The URL, if it names a database that can be used. Raises `DatabaseSetupError`."""
    try:
        result = sa.make_url(url)
    except ArgumentError as error:
        raise DatabaseSetupError(
            "the database URL is not one: write it like sqlite+aiosqlite:///data/sessions.db"
        ) from error
    if result.drivername not in (_SQLITE, _POSTGRESQL):
        raise DatabaseSetupError(
            f"databases of the kind {result.drivername} are not supported: use "
            "sqlite+aiosqlite:///path/to/sessions.db or postgresql+asyncpg://user@host/database"
        )
    if result.drivername == _SQLITE and (result.database in (None, "", ":memory:") or result.query):
        raise DatabaseSetupError(
            "SQLite needs a plain file, since what is acknowledged must outlive the process: "
            "use sqlite+aiosqlite:///path/to/sessions.db"
        )
    return result


def shown(url: str) -> str:
    """A database as it may be printed: a path, or a URL without its password."""
    address = parsed(url)
    return str(_file(address)) if address.drivername == _SQLITE else address.render_as_string()


def require_replicas(url: str, option: str) -> None:
    """Raise `DatabaseSetupError` unless many processes may use the database at once."""
    if parsed(url).drivername == _SQLITE:
        raise DatabaseSetupError(f"{option} needs PostgreSQL: one process at a time uses a file")


def _file(url: sa.URL) -> Path:
    return Path(str(url.database))


def _engine(url: sa.URL) -> AsyncEngine:
    if url.drivername == _SQLITE:
        return sqlite.create_engine(url)
    try:
        from infrascout_sessions.storage import postgres
    except ImportError as error:
        raise DatabaseSetupError(
            "PostgreSQL needs the extra of that name: pip install 'infrascout-sessions[postgres]'"
        ) from error
    return postgres.create_engine(url)


async def _migrate(engine: AsyncEngine, url: sa.URL) -> None:
    name = _file(url) if url.drivername == _SQLITE else url.render_as_string()
    try:
        async with engine.begin() as connection:
            await connection.run_sync(migrate)
    except DatabaseTooNewError as error:
        raise DatabaseSetupError(str(error)) from error
    except (SQLAlchemyError, OSError) as error:
        reason = getattr(error, "orig", None) or error
        raise DatabaseSetupError(f"{name} cannot be used: {reason}") from error


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
    address = parsed(url)
    if address.drivername == _SQLITE:
        _make_folder(address)
    engine = _engine(address)
    try:
        await _migrate(engine, address)
    finally:
        await engine.dispose()


@asynccontextmanager
async def open_for_command(url: str, clock: Clock) -> AsyncIterator[Database]:
    """The database, migrated, until the block ends; a server may use it at the same time.

    Raises `DatabaseSetupError`.
    """
    await migrate_database(url)
    address = parsed(url)
    if address.drivername == _SQLITE:
        engine = _engine(address)
        database: Database = await sqlite.SQLiteDatabase.open(engine, clock, readers=1)
    else:
        from infrascout_sessions.storage import postgres

        settings = Settings(database_url=url, allow_unsafe_durability=True)
        database = await postgres.PostgresDatabase.open(address, settings, None)
    try:
        yield database
    finally:
        await database.close()


def open_database(settings: Settings, clock: Clock) -> AbstractAsyncContextManager[Database]:
    """The database, migrated; an SQLite file is this process's alone until the block ends.

    Raises `DatabaseSetupError`, some of it on entering.
    """
    url = parsed(settings.database_url)
    open_kind = _open_sqlite if url.drivername == _SQLITE else _open_postgres
    return open_kind(url, settings, clock)


@asynccontextmanager
async def _open_sqlite(url: sa.URL, settings: Settings, clock: Clock) -> AsyncIterator[Database]:
    _make_folder(url)
    lock = FileLock(f"{url.database}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise DatabaseSetupError(
            f"another server uses {url.database}: stop it, or give this one a file of its own"
        ) from error
    except OSError as error:
        raise DatabaseSetupError(f"{lock.lock_file} cannot be made: {error.strerror}") from error
    try:
        engine = _engine(url)
        await _migrate(engine, url)
        database = await sqlite.SQLiteDatabase.open(
            engine, clock, maximum_waiting=settings.maximum_waiting_writes
        )
        try:
            yield database
        finally:
            await database.close()
    finally:
        lock.release()


@asynccontextmanager
async def _open_postgres(url: sa.URL, settings: Settings, clock: Clock) -> AsyncIterator[Database]:
    engine = _engine(url)
    try:
        await _migrate(engine, url)
    finally:
        await engine.dispose()
    from infrascout_sessions.storage import postgres

    try:
        database = await postgres.PostgresDatabase.open(
            url, settings, None if clock is system_clock else clock
        )
    except postgres.UnsafeDurabilityError as error:
        raise DatabaseSetupError(str(error)) from error
    try:
        yield database
    finally:
        await database.close()
