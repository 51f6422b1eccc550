"""Opens the database that a URL names."""

import sqlite3
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import sqlalchemy as sa
from filelock import FileLock, Timeout
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from infrascout_sessions.config import Settings
from infrascout_sessions.errors import DatabaseUnavailable
from infrascout_sessions.models import Clock, system_clock
from infrascout_sessions.storage import sqlite
from infrascout_sessions.storage.copying import run
from infrascout_sessions.storage.copying.pages import Content
from infrascout_sessions.storage.copying.progress import AGAIN, CopyError, is_unfinished
from infrascout_sessions.storage.migrations import (
    DatabaseTooNewError,
    DatabaseTooOldError,
    migrate,
    require_migrated,
)
from infrascout_sessions.storage.statement import Database

_SQLITE = "sqlite+aiosqlite"
_POSTGRESQL = "postgresql+asyncpg"


class DatabaseSetupError(Exception):
    """The database cannot be used as it stands; the text says why and what to do."""


def parsed(url: str) -> sa.URL:
    """The URL, if it names a database that can be used. Raises `DatabaseSetupError`."""
    try:
        result = sa.make_url(url)
    except (ArgumentError, ValueError) as error:
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
    return _name(parsed(url))


def require_replicas(url: str, option: str) -> None:
    """Raise `DatabaseSetupError` unless many processes may use the database at once."""
    if parsed(url).drivername == _SQLITE:
        raise DatabaseSetupError(f"{option} needs PostgreSQL: one process at a time uses a file")


def _require_postgres(url: str, option: str) -> None:
    """Raise `DatabaseSetupError` unless the URL is empty or one of PostgreSQL."""
    try:
        fits = not url or parsed(url).drivername == _POSTGRESQL
    except DatabaseSetupError:
        fits = False
    if not fits:
        raise DatabaseSetupError(
            f"{option} needs PostgreSQL: write it like postgresql+asyncpg://user@host/database"
        )


def _file(url: sa.URL) -> Path:
    return Path(str(url.database))


def missing_file(url: str) -> Path | None:
    """The file of an SQLite database that is not there. Raises `DatabaseSetupError`."""
    address = parsed(url)
    if address.drivername != _SQLITE or _file(address).exists():
        return None
    return _file(address)


def _engine(url: sa.URL) -> AsyncEngine:
    if url.drivername == _SQLITE:
        return sqlite.create_engine(url)
    try:
        from infrascout_sessions.storage import postgres
    except ImportError as error:
        raise DatabaseSetupError(
            "PostgreSQL needs the extra of that name: in the clone, pip install -e '.[postgres]'"
        ) from error
    return postgres.create_engine(url)


def _name(url: sa.URL) -> str:
    if url.drivername == _SQLITE:
        return str(_file(url))
    secret = [name for name in url.query if "password" in name]
    return url.difference_update_query(secret).render_as_string()


def _reason(error: BaseException | None) -> object:
    cause = getattr(error, "orig", None) or error
    return "it did not answer in time" if isinstance(cause, TimeoutError) else cause


async def _migrate(engine: AsyncEngine, url: sa.URL, *, to_serve: bool = False) -> None:
    try:
        if url.drivername == _SQLITE:
            if not _file(url).exists():
                # Evidence is nobody else's to read; SQLite gives its other files the same mode.
                _file(url).touch(mode=0o600)
            # Where opening fails, aiosqlite leaves a thread behind that may outlive the event loop,
            # and then ends with a traceback.
            sqlite3.connect(_file(url)).close()
        async with engine.begin() as connection:
            await connection.run_sync(migrate)
            if to_serve and await connection.run_sync(is_unfinished):
                raise DatabaseSetupError(
                    f"{_name(url)} is an unfinished copy: run `infrascout-sessions copy` again, "
                    "which goes on where it was stopped"
                )
    except DatabaseTooNewError as error:
        raise DatabaseSetupError(str(error)) from error
    except (SQLAlchemyError, sqlite3.Error, OSError) as error:
        raise DatabaseSetupError(f"{_name(url)} cannot be used: {_reason(error)}") from error


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


async def copy_database(from_url: str, to_url: str, report: run.Report) -> Sequence[Content]:
    """Copy everything from one database to another one that is empty, and verify it.

    Goes on with a copy that was stopped. Gives what each table holds, on both sides. Raises
    `DatabaseSetupError`.
    """
    source, target = parsed(from_url), parsed(to_url)
    if source == target:
        raise DatabaseSetupError("--from and --to name the same database")
    with ExitStack() as stack:
        if source.drivername == _SQLITE:
            if not _file(source).is_file():
                raise DatabaseSetupError(f"there is no database {source.database}")
            stack.enter_context(_sole_use(source))
        if target.drivername == _SQLITE:
            _make_folder(target)
            stack.enter_context(_sole_use(target))
        return await _copy(source, target, report)


async def _copy(source: sa.URL, target: sa.URL, report: run.Report) -> Sequence[Content]:
    from_engine, to_engine = _engine(source), _engine(target)
    try:
        async with _begun(from_engine, source) as from_connection:
            revision = await from_connection.run_sync(require_migrated)
            await _migrate(to_engine, target)
            async with to_engine.connect() as to_connection:
                return await run.copy(from_connection, to_connection, revision, report)
    except (DatabaseTooNewError, DatabaseTooOldError) as error:
        raise DatabaseSetupError(f"{_name(source)}: {error}") from error
    except CopyError as error:
        raise DatabaseSetupError(str(error)) from error
    except (SQLAlchemyError, OSError) as error:
        raise DatabaseSetupError(f"the copy was cut off: {_reason(error)}; {AGAIN}") from error
    finally:
        await from_engine.dispose()
        await to_engine.dispose()


@asynccontextmanager
async def _begun(engine: AsyncEngine, url: sa.URL) -> AsyncIterator[AsyncConnection]:
    """A transaction. Raises `DatabaseSetupError`."""
    connection = engine.connect()
    try:
        await connection.start()
    except (SQLAlchemyError, OSError) as error:
        raise DatabaseSetupError(f"{_name(url)} cannot be used: {_reason(error)}") from error
    try:
        async with connection.begin():
            yield connection
    finally:
        await connection.close()


def open_database(settings: Settings, clock: Clock) -> AbstractAsyncContextManager[Database]:
    """The database, migrated; an SQLite file is this process's alone until the block ends.

    Raises `DatabaseSetupError`, some of it on entering.
    """
    url = parsed(settings.database_url)
    open_kind = _open_sqlite if url.drivername == _SQLITE else _open_postgres
    return open_kind(url, settings, clock)


@contextmanager
def _sole_use(url: sa.URL) -> Iterator[None]:
    """Hold the lock of an SQLite file. Raises `DatabaseSetupError`."""
    # One lock, by whatever link the file is reached.
    lock = FileLock(f"{_file(url).resolve()}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise DatabaseSetupError(
            f"another server uses {url.database}: stop it, or give this one a file of its own"
        ) from error
    except OSError as error:
        raise DatabaseSetupError(f"{lock.lock_file} cannot be made: {error.strerror}") from error
    try:
        yield
    finally:
        lock.release()


@asynccontextmanager
async def _open_sqlite(url: sa.URL, settings: Settings, clock: Clock) -> AsyncIterator[Database]:
    _make_folder(url)
    with _sole_use(url):
        engine = _engine(url)
        await _migrate(engine, url, to_serve=True)
        database = await sqlite.SQLiteDatabase.open(
            engine, clock, maximum_waiting=settings.maximum_waiting_writes
        )
        try:
            yield database
        finally:
            await database.close()


@asynccontextmanager
async def _open_postgres(url: sa.URL, settings: Settings, clock: Clock) -> AsyncIterator[Database]:
    _require_postgres(settings.listen_database_url, "--listen-database-url")
    engine = _engine(url)
    try:
        await _migrate(engine, url, to_serve=True)
    finally:
        await engine.dispose()
    from infrascout_sessions.storage import postgres

    try:
        database = await postgres.PostgresDatabase.open(
            url, settings, None if clock is system_clock else clock
        )
    except postgres.UnfitDatabaseError as error:
        raise DatabaseSetupError(str(error)) from error
    except DatabaseUnavailable as error:
        raise DatabaseSetupError(
            f"{_name(url)} cannot be used: {_reason(error.__cause__)}"
        ) from error
    try:
        yield database
    finally:
        await database.close()
