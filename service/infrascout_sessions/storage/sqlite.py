"""SQLite behind aiosqlite: a unit of work is one hop to the thread of a connection.

aiosqlite gives its thread a function for every cursor call; here it gets one for a whole unit of
work, or for a group of them. For this `_tx` (the thread's queue) and `_conn` (its sqlite3
connection) are reached, of a pinned version; `tests/test_sqlite.py` fails if they go.
"""

import asyncio
import re
import sqlite3
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import lru_cache, partial
from itertools import chain
from time import monotonic
from typing import Any, Final, NamedTuple, TypeVar

import aiosqlite
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from infrascout_sessions.errors import (
    DatabaseUnavailable,
    Overloaded,
    Refusal,
    ShuttingDown,
    StorageFull,
)
from infrascout_sessions.models import Clock
from infrascout_sessions.storage.statement import (
    Connection,
    DialectName,
    ItemsWork,
    Row,
    Statement,
)

T = TypeVar("T")

_MAXIMUM_GROUP = 500
_BUSY_TIMEOUT_SECONDS = 5
_BUSY_PAUSE_SECONDS = 0.01

WRITER_CACHE_KIB: Final = 8 * 1024
# An INSERT of each number of rows up to this is a statement of its own, prepared once; a few
# megabytes of them.
_ROWS_AT_ONCE = 64
_PREPARED_STATEMENTS = 512

_UNAVAILABLE = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_READONLY,
        # A used-up quota comes so, too. But so does a fault after the commit stands in the log (its
        # sync, the index of the log), and STORAGE_FULL promises that nothing was written.
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_PROTOCOL,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_NOTADB,
    }
)


def create_engine(url: sa.URL) -> AsyncEngine:
    """An engine whose connections are durable, checked, and in charge of their transactions."""
    engine = create_async_engine(
        url, poolclass=NullPool, connect_args={"cached_statements": _PREPARED_STATEMENTS}
    )

    def configure(connection: Any, _record: object) -> None:
        connection.isolation_level = None
        connection.run_async(_configure)

    sa.event.listen(engine.sync_engine, "connect", configure)
    sa.event.listen(
        engine.sync_engine,
        "begin",
        lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"),
    )
    return engine


async def _configure(connection: aiosqlite.Connection) -> None:
    deadline = monotonic() + _BUSY_TIMEOUT_SECONDS
    for pragma in (
        f"busy_timeout = {_BUSY_TIMEOUT_SECONDS * 1000}",
        "journal_mode = WAL",
        "synchronous = FULL",
        "foreign_keys = ON",
    ):
        # SQLite does not wait by itself where another connection turns to the log at the same
        # time, or removes it as the last one that leaves.
        while True:
            try:
                await connection.execute(f"PRAGMA {pragma}")
                break
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or monotonic() > deadline:
                    raise
            await asyncio.sleep(_BUSY_PAUSE_SECONDS)


def _translated(error: Exception) -> Exception:
    """A fault of the database as the error the contract has for it; others as they are."""
    if not isinstance(error, sqlite3.Error):
        return error
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_FULL:
        refusal: Refusal = StorageFull()
    elif code in _UNAVAILABLE:
        refusal = DatabaseUnavailable()
    else:
        return error
    refusal.__cause__ = error
    return refusal


@lru_cache(_PREPARED_STATEMENTS)
def _of_rows(sql: str, size: int) -> str:
    """An INSERT of one row as one of several."""
    before, row, after = re.fullmatch(r"(.* VALUES )(\([?, ]+\))(.*)", sql).groups()  # type: ignore[union-attr]
    return f"{before}{', '.join([row] * size)}{after}"


class SQLiteConnection:
    """A unit of work's connection; used in its thread only."""

    __slots__ = ("_clock", "_raw", "changed")
    dialect: DialectName = "sqlite"

    def __init__(self, raw: sqlite3.Connection, clock: Clock) -> None:
        self._raw = raw
        self._clock = clock
        self.changed: set[str] = set()

    def _execute(self, statement: Statement, parameters: dict[str, Any]) -> sqlite3.Cursor:
        sql, bind, needs_server_time = statement.compiled("sqlite")
        if needs_server_time:
            parameters["server_time"] = self._clock()
        return self._raw.execute(sql, bind(parameters))

    def all(self, statement: Statement, /, **parameters: Any) -> Sequence[Row]:
        """Every row."""
        return self._execute(statement, parameters).fetchall()

    def one(self, statement: Statement, /, **parameters: Any) -> Row | None:
        """The first row, or None."""
        # All are fetched: a statement with RETURNING ends only with its last row.
        rows: list[Row] = self._execute(statement, parameters).fetchall()
        return rows[0] if rows else None

    def insert(self, statement: Statement, rows: Sequence[Row], /) -> None:
        """Run an INSERT of whole rows; the values of each are in the order of the columns."""
        sql = statement.compiled("sqlite").sql
        # Many rows a statement: with each one the thread lets go of the interpreter's lock and
        # waits to get it back.
        for at in range(0, len(rows), _ROWS_AT_ONCE):
            some = rows[at : at + _ROWS_AT_ONCE]
            self._raw.execute(_of_rows(sql, len(some)), tuple(chain.from_iterable(some)))


class _Write:
    """A unit of work that waits for the writer; `items` is None where nothing may join it."""

    __slots__ = ("future", "items", "outcome", "size_bytes", "work")

    def __init__(
        self,
        work: Callable[..., Any],
        items: Sequence[Any] | None,
        size_bytes: int,
        future: "asyncio.Future[Any]",
    ) -> None:
        self.work = work
        self.items = items
        self.size_bytes = size_bytes
        self.future = future
        self.outcome: Any = None


class SQLiteDatabase:
    """One connection writes, in groups; others read snapshots beside it."""

    dialect: DialectName = "sqlite"
    sole_writer = True

    def __init__(
        self,
        engine: AsyncEngine,
        connections: Sequence[AsyncConnection],
        drivers: Sequence[aiosqlite.Connection],
        clock: Clock,
        maximum_waiting: int,
        maximum_waiting_bytes: int,
    ) -> None:
        self._engine = engine
        self._connections = connections
        self._writer, *readers = drivers
        # The reader at the front has the fewest units of work ahead of a new one, near enough.
        self._readers = deque(readers)
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._listeners: list[Callable[[set[str]], None]] = []
        self._waiting: deque[_Write] = deque()
        self._waiting_bytes = 0
        self._maximum_waiting = maximum_waiting
        self._maximum_waiting_bytes = maximum_waiting_bytes
        self._writing = False
        self._closing = False
        self._idle = asyncio.Event()
        self._idle.set()

    @classmethod
    async def open(
        cls,
        engine: AsyncEngine,
        clock: Clock,
        readers: int = 4,
        maximum_waiting: int = 10_000,
        maximum_waiting_bytes: int = 64 * 1024 * 1024,
    ) -> "SQLiteDatabase":
        """Connect; the tables must exist."""
        connections = [await engine.connect() for _ in range(1 + readers)]
        drivers: list[Any] = [
            (await connection.get_raw_connection()).driver_connection for connection in connections
        ]
        # A new session goes to random places of eight indexes.
        await drivers[0].execute(f"PRAGMA cache_size = -{WRITER_CACHE_KIB}")
        return cls(engine, connections, drivers, clock, maximum_waiting, maximum_waiting_bytes)

    def on_commit(self, listener: Callable[[set[str]], None]) -> None:
        """Call `listener` with the ids of the sessions that each commit has changed."""
        self._listeners.append(listener)

    def on_gap(self, listener: Callable[[], None]) -> None:
        """Nothing is committed but here."""

    async def read(self, work: Callable[[Connection], T]) -> T:
        """Run `work`, which only reads, on a snapshot."""
        self._readers.rotate(1)
        reader = self._readers[0]
        try:
            return await reader._execute(partial(_read, work, self._clock), reader._conn)  # type: ignore[no-any-return, no-untyped-call]
        except sqlite3.Error as error:
            raise _translated(error) from error

    async def fetch(self, statement: Statement, /, **parameters: Any) -> Sequence[Row]:
        """Every row of a statement that only reads."""
        return await self.read(lambda connection: connection.all(statement, **parameters))

    async def write(self, work: Callable[[Connection], T], size_bytes: int = 0) -> T:
        """Run `work` with whatever else waits in one transaction; return once it is durable."""
        result: T = await self._enqueue(work, None, size_bytes)
        return result

    def write_items(
        self, work: ItemsWork[Any, Any], items: Sequence[Any], size_bytes: int = 0
    ) -> Awaitable[Sequence[Any]]:
        """Run `work` on the items, with those of others that wait, as `write` does."""
        return self._enqueue(work, items, size_bytes)

    async def write_item(self, work: ItemsWork[Any, T], item: Any, size_bytes: int = 0) -> T:
        """Run `work` on the item, with those of others that wait, as `write` does."""
        [outcome] = await self._enqueue(work, (item,), size_bytes)
        if isinstance(outcome, Exception):
            raise outcome
        result: T = outcome
        return result

    async def close(self) -> None:
        """Commit what waits, then close every connection."""
        self._closing = True
        await self._idle.wait()
        for connection in self._connections:
            await connection.close()
        await self._engine.dispose()

    def _enqueue(
        self, work: Callable[..., Any], items: Sequence[Any] | None, size_bytes: int
    ) -> "asyncio.Future[Any]":
        if self._closing:
            raise ShuttingDown
        if (
            len(self._waiting) >= self._maximum_waiting
            or self._waiting_bytes + size_bytes > self._maximum_waiting_bytes
        ):
            raise Overloaded
        future: asyncio.Future[Any] = self._loop.create_future()
        self._waiting.append(_Write(work, items, size_bytes, future))
        self._waiting_bytes += size_bytes
        if not self._writing:
            self._start_group()
        return future

    def _start_group(self) -> None:
        """Hand what waits to the writer's thread, oldest first, without what was cancelled."""
        group: list[_Write] = []
        while self._waiting and len(group) < _MAXIMUM_GROUP:
            write = self._waiting.popleft()
            self._waiting_bytes -= write.size_bytes
            if not write.future.done():
                group.append(write)
        self._writing = bool(group)
        if not group:
            self._idle.set()
            return
        self._idle.clear()
        self._writer._tx.put_nowait((None, partial(self._run_group, group)))

    def _run_group(self, group: list[_Write]) -> None:
        """In the writer's thread: one transaction for the group, then back to the loop."""
        connection = SQLiteConnection(self._writer._conn, self._clock)
        try:
            _commit_together(self._writer._conn, connection, group)
        except Exception as error:
            connection.changed.clear()
            for write in group:
                write.outcome = _translated(error)
        # The loop is closed only when the process ends without waiting for what it wrote.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._answer, group, connection.changed)

    def _answer(self, group: list[_Write], changed: set[str]) -> None:
        if changed:
            for listener in self._listeners:
                listener(changed)
        for write in group:
            if write.future.done():  # its caller has gone
                continue
            if isinstance(write.outcome, Exception):
                write.future.set_exception(write.outcome)
            else:
                write.future.set_result(write.outcome)
        self._start_group()


def _read(work: Callable[[Connection], T], clock: Clock, raw: sqlite3.Connection) -> T:
    raw.execute("BEGIN")
    try:
        return work(SQLiteConnection(raw, clock))
    finally:
        if raw.in_transaction:
            raw.execute("ROLLBACK")


def _commit_together(
    raw: sqlite3.Connection, connection: SQLiteConnection, group: list[_Write]
) -> None:
    """Run each of `group` so that it can be undone, and commit; raises if none was written."""
    try:
        raw.execute("BEGIN IMMEDIATE")
        units: dict[object, list[_Write]] = {}
        for write in group:
            units.setdefault(write if write.items is None else write.work, []).append(write)
        bounds = _SAVEPOINT if len(units) > 1 else _TRANSACTION
        for joined in units.values():
            if joined[0].items is None:
                joined[0].outcome = _attempt(raw, bounds, joined[0].work, connection)
            else:
                _attempt_items(raw, bounds, connection, joined)
        # A transaction that SQLite has ended by itself makes this raise, too.
        raw.execute("COMMIT")
    except BaseException:
        if raw.in_transaction:
            raw.execute("ROLLBACK")
        raise


class _Bounds(NamedTuple):
    """What is run before a unit of work, after it, and instead of what it did if it raises."""

    begin: tuple[str, ...]
    end: tuple[str, ...]
    undo: tuple[str, ...]


# On the driver's own connection: SQLAlchemy's begin_nested takes a third of the throughput.
_SAVEPOINT = _Bounds(("SAVEPOINT unit",), ("RELEASE unit",), ("ROLLBACK TO unit", "RELEASE unit"))
# Where it is all there is in the transaction.
_TRANSACTION = _Bounds((), (), ("ROLLBACK", "BEGIN IMMEDIATE"))


def _attempt(
    raw: sqlite3.Connection, bounds: _Bounds, work: Callable[..., Any], *arguments: Any
) -> Any:
    """The result of `work` or what it raised, in which case nothing of it is in the transaction."""
    for statement in bounds.begin:
        raw.execute(statement)
    try:
        result = work(*arguments)
    except Exception as error:
        # A full disk ends the whole transaction, and what follows would commit by itself.
        if not raw.in_transaction:
            raise
        for statement in bounds.undo:
            raw.execute(statement)
        return _translated(error)
    for statement in bounds.end:
        raw.execute(statement)
    return result


def _attempt_items(
    raw: sqlite3.Connection, bounds: _Bounds, connection: SQLiteConnection, joined: list[_Write]
) -> None:
    """Run the items of several writes as one, or one by one where that raises."""
    work = joined[0].work
    items = [item for write in joined for item in write.items or ()]
    outcomes = _attempt(raw, bounds, work, connection, items)
    if isinstance(outcomes, Exception):
        outcomes = [
            result if isinstance(result, Exception) else result[0]
            for result in (_attempt(raw, _SAVEPOINT, work, connection, [item]) for item in items)
        ]
    remaining = iter(outcomes)
    for write in joined:
        write.outcome = [next(remaining) for _ in write.items or ()]
