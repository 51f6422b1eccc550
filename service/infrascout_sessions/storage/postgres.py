"""PostgreSQL behind asyncpg.

A unit of work is an ordinary function: it runs in a greenlet, as SQLAlchemy's own asyncio does it,
which waits for each statement. Round trips are what costs:
reads run in AUTOCOMMIT, and what several callers record goes in one statement.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from time import monotonic
from typing import Any, Final, NoReturn, TypeVar

import asyncpg
import sqlalchemy as sa
import structlog
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool
from sqlalchemy.util import await_only, greenlet_spawn

from infrascout_sessions.config import Settings
from infrascout_sessions.errors import (
    DatabaseUnavailable,
    Overloaded,
    Refusal,
    ShuttingDown,
    StorageFull,
)
from infrascout_sessions.models import Clock
from infrascout_sessions.storage.notices import Notices
from infrascout_sessions.storage.statement import (
    Connection,
    DialectName,
    ItemsWork,
    Row,
    Statement,
    UniqueViolationError,
)

_log = structlog.get_logger()

T = TypeVar("T")

# What one statement takes with ease within the time-out.
_MAXIMUM_GROUP: Final = 1000
_MAXIMUM_GROUP_BYTES: Final = 8 * 1024 * 1024
_ATTEMPTS: Final = 3
# How long a connection may go unused.
_IDLE_SECONDS: Final = 300.0
# For the first answer to who is about to migrate or to copy, which then takes as long as it takes.
_FIRST_ANSWER_SECONDS: Final = 10.0
# How long what a reload of PostgreSQL's settings gives up may go unnoticed.
_DURABILITY_INTERVAL_SECONDS: Final = 1.0

# Another transaction was in the way, and is not any more.
_CONFLICT: Final = (asyncpg.DeadlockDetectedError, asyncpg.SerializationError)
_TRY_AGAIN: Final = (UniqueViolationError, *_CONFLICT)

# The server has not even said that it gives up, or what it said while it went came out of turn.
_ABANDONED: Final = (TimeoutError, asyncpg.InternalClientError)

_FULL: Final = (asyncpg.DiskFullError,)
_UNAVAILABLE: Final = (
    OSError,
    TimeoutError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.PostgresConnectionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.OperatorInterventionError,
    asyncpg.ObjectNotInPrerequisiteStateError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.TransactionRollbackError,
    asyncpg.InternalServerError,
    asyncpg.PostgresSystemError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
)


def _dsn(url: sa.URL) -> str:
    """The URL as asyncpg reads it, with libpq's names for parameters."""
    # SQLAlchemy's name for it.
    query = {"sslmode" if name == "ssl" else name: value for name, value in url.query.items()}
    return url.set(drivername="postgresql", query=query).render_as_string(hide_password=False)


async def _connect(dsn: str, first: str, timeout: float, **settings: Any) -> Any:
    """A connection on which a first statement has been answered. Raises `TimeoutError`."""
    connection = await asyncpg.connect(dsn, timeout=timeout, **settings)
    try:
        await connection.execute(first, timeout=timeout)
    except BaseException:
        connection.terminate()
        raise
    return connection


def create_engine(url: sa.URL) -> AsyncEngine:
    """An engine for migrations; units of work use the driver's own pool."""
    dsn = _dsn(url)
    return create_async_engine(
        url,
        poolclass=NullPool,
        # Whatever the database or the role has for a default: a migration that has waited for
        # another one must see what that has done.
        isolation_level="READ COMMITTED",
        # Statements without a name: those of others are still there behind a pooler.
        connect_args={
            # With the URL as the driver reads it, so that both know the same parameters.
            # It is asked at once: a pooler that reaches no database takes connections, too.
            "async_creator_fn": lambda *_, **__: _connect(
                dsn, "SELECT 1", _FIRST_ANSWER_SECONDS, statement_cache_size=0
            ),
            "prepared_statement_cache_size": 0,
            "prepared_statement_name_func": lambda: "",
        },
    )


def _translated(error: Exception) -> Exception:
    """A fault of the database as the error the contract has for it; others as they are."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, _FULL):
        refusal: Refusal = StorageFull()
    elif isinstance(error, (*_UNAVAILABLE, UnsafeDurabilityError)):
        refusal = DatabaseUnavailable()
    else:
        if isinstance(error, asyncpg.PostgresError):
            # The row, with commands and outputs, which no log may hold.
            error.detail = None
        return error
    refusal.__cause__ = error
    return refusal


def _raise_translated(error: Exception) -> NoReturn:
    """Raise what `_translated` makes of an error; the log tells its cause."""
    translated = _translated(error)
    raise translated from translated.__cause__


class UnfitDatabaseError(Exception):
    """The database answers, and cannot keep the record; the text says why and what to do."""


class UnsafeDurabilityError(UnfitDatabaseError):
    """The database acknowledges what it may lose."""

    def __init__(self, settings: Sequence[str]) -> None:
        super().__init__(
            f"PostgreSQL runs with {', '.join(f'{name} off' for name in settings)}, and may lose "
            "what it has acknowledged: switch it on, or accept that with --allow-unsafe-durability"
        )


async def _require_durability(connection: Any) -> None:
    """Raise `UnsafeDurabilityError`; each connection has settings of its role and its server."""
    off = await connection.fetch(
        "SELECT name FROM unnest(ARRAY['fsync', 'full_page_writes', 'synchronous_commit']) name"
        # What is like PostgreSQL may not have them.
        " WHERE current_setting(name, true) = 'off'"
    )
    if off:
        raise UnsafeDurabilityError([row[0] for row in off])


async def _require_unicode(pool: Any) -> None:
    """Raise `UnfitDatabaseError` unless the database takes every text that the contract does."""
    encoding = await pool.fetchval("SELECT current_setting('server_encoding')")
    if encoding != "UTF8":
        raise UnfitDatabaseError(
            f"the database has the encoding {encoding}, which lacks characters that commands and "
            "findings may have: make one with ENCODING 'UTF8' TEMPLATE template0"
        )


async def _keep_as_it_is(_connection: Any) -> None:
    """Instead of asyncpg's reset, which costs a round trip: nothing here changes a connection."""


async def _connect_notices(dsn: str, timeout: float) -> Any:
    return await _connect(
        dsn,
        # A notice is no evidence: writes are not to wait for its fsync. Not among the settings of
        # the start, of which pgbouncer takes a few only.
        "SET synchronous_commit = off",
        timeout,
        # Without it, a connection that died unnoticed would be waited for for ever.
        command_timeout=timeout,
        server_settings={"application_name": "infrascout-sessions listener"},
    )


class PostgresConnection:
    """A unit of work's connection; used in its greenlet only."""

    __slots__ = ("_clock", "_raw", "changed")
    dialect: DialectName = "postgresql"

    def __init__(self, raw: Any, clock: Clock | None) -> None:
        self._raw = raw
        self._clock = clock
        self.changed: set[str] = set()

    def all(self, statement: Statement, /, **parameters: Any) -> Sequence[Row]:
        """Every row."""
        sql, bind, needs_server_time = statement.compiled("postgresql")
        if needs_server_time:
            parameters["server_time"] = None if self._clock is None else self._clock()
        try:
            rows: Sequence[Row] = await_only(self._raw.fetch(sql, *bind(parameters)))
        except asyncpg.UniqueViolationError as error:
            raise UniqueViolationError from error
        except _ABANDONED:
            self._abandon()
            raise
        return rows

    def one(self, statement: Statement, /, **parameters: Any) -> Row | None:
        """The first row, or None."""
        rows = self.all(statement, **parameters)
        return rows[0] if rows else None

    def insert(self, statement: Statement, rows: Sequence[Row], /) -> None:
        """Run an INSERT of whole rows; the values of each are in the order of the columns."""
        if not rows:
            return
        try:
            await_only(self._raw.executemany(statement.compiled("postgresql").sql, rows))
        except asyncpg.UniqueViolationError as error:
            raise UniqueViolationError from error
        except _ABANDONED:
            self._abandon()
            raise

    def _abandon(self) -> None:
        """Close the connection at once: to roll back or to cancel would take as long again."""
        self._raw.terminate()


class _Items:
    """Items that wait to be run with others."""

    __slots__ = ("future", "items", "size_bytes", "work")

    def __init__(
        self,
        work: ItemsWork[Any, Any],
        items: Sequence[Any],
        size_bytes: int,
        future: "asyncio.Future[Any]",
    ) -> None:
        self.work = work
        self.items = items
        self.size_bytes = size_bytes
        self.future = future


class _Use:
    """Of a connection, for a block."""

    __slots__ = ("_database", "_raw")

    def __init__(self, database: "PostgresDatabase") -> None:
        self._database = database

    async def __aenter__(self) -> Any:
        self._raw = await self._database.take()
        return self._raw

    async def __aexit__(
        self, _kind: object, error: BaseException | None, _traceback: object
    ) -> None:
        await self._database.give_back(self._raw, error)


class PostgresDatabase:
    """A pool of connections, and one statement at a time for what is recorded together."""

    dialect: DialectName = "postgresql"
    sole_writer = False

    def __init__(
        self,
        pool: Any,
        notices: Notices,
        clock: Clock | None,
        patience_seconds: float,
        maximum_waiting: int,
        maximum_waiting_bytes: int = 64 * 1024 * 1024,
        *,
        requires_durability: bool = True,
    ) -> None:
        self._pool = pool
        self._notices = notices
        # None for the database's own, which its replicas share.
        self._clock = clock
        self._patience_seconds = patience_seconds
        self._maximum_waiting = maximum_waiting
        self._maximum_waiting_bytes = maximum_waiting_bytes
        self._listeners: list[Callable[[set[str]], None]] = []
        self._waiting: deque[_Items] = deque()
        self._waiting_bytes = 0
        self._writes = 0
        # Connections out of the pool that nobody uses: to ask it for one and give it back takes as
        # long as a small statement. Nothing is kept while somebody waits for the pool.
        self._kept: list[tuple[Any, float]] = []
        self._acquiring = 0
        self._running = False
        self._closing = False
        self._tasks: set[asyncio.Task[Any]] = set()
        notices.listener = self._hear
        self._unsafe: UnsafeDurabilityError | None = None
        self._ending = asyncio.Event()
        if requires_durability:
            self._start(self._watch_durability())

    @classmethod
    async def open(cls, url: sa.URL, settings: Settings, clock: Clock | None) -> "PostgresDatabase":
        """Connect; the tables must exist. Raises `UnfitDatabaseError`, `DatabaseUnavailable`."""
        timeout = settings.database_timeout_seconds
        milliseconds = str(round(timeout * 1000))
        pool = await asyncpg.create_pool(
            _dsn(url),
            # None that the pool would open by itself, and say so in a log of its own if it cannot.
            min_size=0,
            max_size=settings.database_connections,
            max_inactive_connection_lifetime=_IDLE_SECONDS,
            timeout=timeout,
            # The server gives up before the client does.
            command_timeout=timeout + 1,
            init=None if settings.allow_unsafe_durability else _require_durability,
            reset=_keep_as_it_is,
            # A pooler between transactions keeps no prepared statements and no settings.
            **(
                {"statement_cache_size": 0}
                if settings.pgbouncer
                else {
                    "statement_cache_size": 500,
                    "max_cached_statement_lifetime": 0,
                    "server_settings": {
                        "application_name": "infrascout-sessions",
                        "statement_timeout": milliseconds,
                        "lock_timeout": milliseconds,
                        "idle_in_transaction_session_timeout": milliseconds,
                        "default_transaction_isolation": "read committed",
                        # Plans are made once: a generic one is right for every statement here.
                        "plan_cache_mode": "force_generic_plan",
                        "jit": "off",
                    },
                }
            ),
        )
        try:
            await _require_unicode(pool)
        except _UNAVAILABLE as error:
            await pool.close()
            raise DatabaseUnavailable from error
        except BaseException:
            await pool.close()
            raise
        listen = (
            _dsn(sa.make_url(settings.listen_database_url))
            if settings.listen_database_url
            else (None if settings.pgbouncer else _dsn(url))
        )
        notices = Notices(None if listen is None else partial(_connect_notices, listen, timeout))
        return cls(
            pool,
            notices,
            clock,
            timeout,
            settings.maximum_waiting_writes,
            requires_durability=not settings.allow_unsafe_durability,
        )

    def on_commit(self, listener: Callable[[set[str]], None]) -> None:
        """Call `listener` with the ids of the sessions that a commit of any replica has changed."""
        self._listeners.append(listener)

    def on_gap(self, listener: Callable[[], None]) -> None:
        """Call `listener` when commits of other replicas may have gone unheard."""
        self._notices.on_gap = listener

    async def read(self, work: Callable[[Connection], T]) -> T:
        """Run `work`, which only reads; each statement sees what is committed by then."""
        result: T = await self._shielded(self._start(self._read(work)))
        return result

    async def fetch(self, statement: Statement, /, **parameters: Any) -> Sequence[Row]:
        """Every row of a statement that only reads, without the greenlet of a unit of work."""
        try:
            async with _Use(self) as raw:
                sql, bind, _ = statement.compiled("postgresql")
                rows: Sequence[Row] = await raw.fetch(sql, *bind(parameters))
                return rows
        except Exception as error:
            _raise_translated(error)

    async def write(self, work: Callable[[Connection], T], size_bytes: int = 0) -> T:
        """Run `work` in a transaction of its own; return once it is durable."""
        self._admit(size_bytes)
        self._writes += 1
        self._waiting_bytes += size_bytes
        task = self._start(self._write(work))

        def done(_task: object) -> None:
            # And not before: it runs on, and holds its bytes, when its caller has gone.
            self._writes -= 1
            self._waiting_bytes -= size_bytes

        task.add_done_callback(done)
        result: T = await self._shielded(task)
        return result

    def write_items(
        self, work: ItemsWork[Any, Any], items: Sequence[Any], size_bytes: int = 0
    ) -> Awaitable[Sequence[Any]]:
        """Run `work` on the items, with those of others that wait: one statement, one commit."""
        self._admit(size_bytes)
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Items(work, items, size_bytes, future))
        self._waiting_bytes += size_bytes
        if not self._running:
            self._running = True
            self._start(self._run_groups())
        return future

    async def write_item(self, work: ItemsWork[Any, T], item: Any, size_bytes: int = 0) -> T:
        """Run `work` on the item in a transaction of its own, as `write` does."""

        def on_item(connection: Connection) -> T:
            [outcome] = work(connection, [item])
            if isinstance(outcome, Refusal):
                raise outcome
            return outcome

        return await self.write(on_item, size_bytes)

    async def close(self) -> None:
        """Commit what waits, then close every connection."""
        self._closing = True
        self._ending.set()
        while self._tasks:
            await asyncio.wait(self._tasks)
        await self._notices.close()
        while (raw := self._take_kept()) is not None:
            await self._pool.release(raw)
        # It has closed them all by then, whether the server answered or not.
        with suppress(*_UNAVAILABLE):
            await self._pool.close()

    def _admit(self, size_bytes: int) -> None:
        if self._closing:
            raise ShuttingDown
        if self._unsafe is not None:
            raise DatabaseUnavailable from self._unsafe
        if (
            len(self._waiting) + self._writes >= self._maximum_waiting
            or self._waiting_bytes + size_bytes > self._maximum_waiting_bytes
        ):
            raise Overloaded

    def _start(self, running: Any) -> "asyncio.Task[Any]":
        task = asyncio.create_task(running)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _shielded(self, task: "asyncio.Task[Any]") -> Any:
        # A client that goes away must not leave a connection in the middle of something.
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
            raise

    async def take(self) -> Any:
        """A connection. Raises `Overloaded`."""
        return self._take_kept() or await self._acquire()

    async def give_back(self, raw: Any, error: BaseException | None) -> None:
        """Let others have a connection, whose use has ended with `error`."""
        if isinstance(error, _ABANDONED):
            # After BEGIN or COMMIT; after any other statement it is closed, and not ours any more.
            with suppress(asyncpg.InterfaceError):
                raw.terminate()
            await self._expire()
        if error is not None or self._acquiring or self._closing:
            # One that has expired is closed, which its other end may not answer.
            with suppress(TimeoutError):
                await self._pool.release(raw, timeout=self._patience_seconds)
        else:
            self._kept.append((raw, monotonic()))

    async def _expire(self) -> None:
        """Use no connection again that is open now: the way that one has lost, they may all have.

        Else each would be found out by a caller who waits for it.
        """
        for kept, _ in self._kept:
            with suppress(asyncpg.InterfaceError):
                kept.terminate()
        self._kept.clear()
        await self._pool.expire_connections()

    async def _watch_durability(self) -> None:
        """Take no writes while PostgreSQL may lose them, by settings that were changed since."""
        while not self._closing:
            # To be cancelled would leave a connection in the middle of something.
            with suppress(TimeoutError):
                async with asyncio.timeout(_DURABILITY_INTERVAL_SECONDS):
                    await self._ending.wait()
                    return
            try:
                async with _Use(self) as raw:
                    await _require_durability(raw)
            except UnsafeDurabilityError as error:
                if self._unsafe is None:
                    _log.error("no writes are taken", cause=str(error))
                self._unsafe = error
            except Exception:  # noqa: S112 - calls say that it is away
                continue
            else:
                self._unsafe = None

    def _take_kept(self) -> Any | None:
        """The connection that was used last, unless it is closed or was idle for long."""
        while self._kept:
            raw, since = self._kept.pop()
            # The pool has taken back one that the server has closed.
            with suppress(asyncpg.InterfaceError):
                if monotonic() - since < _IDLE_SECONDS and not raw.is_closed():
                    return raw
                raw.terminate()
        return None

    async def _acquire(self) -> Any:
        self._acquiring += 1
        try:
            return await self._pool.acquire(timeout=self._patience_seconds)
        except TimeoutError as error:
            raise Overloaded from error
        finally:
            self._acquiring -= 1

    async def _read(self, work: Callable[[Connection], T]) -> T:
        try:
            async with _Use(self) as raw:
                return await greenlet_spawn(work, PostgresConnection(raw, self._clock))
        except Exception as error:
            _raise_translated(error)

    async def _write(self, work: Callable[[Connection], T]) -> T:
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                async with _Use(self) as raw:
                    connection = PostgresConnection(raw, self._clock)
                    async with raw.transaction(isolation="read_committed"):
                        result = await greenlet_spawn(work, connection)
                self._committed(connection.changed)
                return result
            except Refusal as refusal:
                # What refused it may have been the same request on another replica, which has
                # committed since it was first looked for.
                if attempt > 1 or isinstance(refusal, Overloaded):
                    raise
            except _TRY_AGAIN as error:
                if attempt == _ATTEMPTS:
                    _raise_translated(error)
            except Exception as error:
                _raise_translated(error)
        raise AssertionError

    async def _run_groups(self) -> None:
        """Run what waits, a group at a time: what comes meanwhile is the next group."""
        while self._waiting:
            group: list[_Items] = []
            items, size_bytes = 0, 0
            while self._waiting and items < _MAXIMUM_GROUP and size_bytes < _MAXIMUM_GROUP_BYTES:
                if group and self._waiting[0].work is not group[0].work:
                    break
                waiting = self._waiting.popleft()
                self._waiting_bytes -= waiting.size_bytes
                if not waiting.future.done():
                    group.append(waiting)
                    items += len(waiting.items)
                    size_bytes += waiting.size_bytes
            if group:
                outcomes = await self._outcomes(group)
                remaining = iter(outcomes)
                for waiting in group:
                    own = [next(remaining) for _ in waiting.items]
                    if not waiting.future.done():
                        waiting.future.set_result(own)
                if isinstance(outcomes[-1], Refusal):
                    self._give_up_after(outcomes[-1])
        self._running = False

    def _give_up_after(self, refusal: Refusal) -> None:
        """Refuse what waits, too, if the database did not answer: it would wait as long again."""
        if not isinstance(refusal.__cause__, TimeoutError):
            return
        while self._waiting:
            waiting = self._waiting.popleft()
            self._waiting_bytes -= waiting.size_bytes
            if not waiting.future.done():
                waiting.future.set_result([refusal] * len(waiting.items))

    async def _outcomes(self, group: list[_Items]) -> Sequence[Any]:
        work = group[0].work
        items = [item for waiting in group for item in waiting.items]
        try:
            return await self._attempt(work, items)
        except Exception as error:
            if len(items) == 1:
                return [_translated(error)]
            fault = _translated(error)
            if isinstance(fault, Refusal):
                return [fault] * len(items)
        outcomes: list[Any] = []
        for item in items:
            try:
                outcomes.extend(await self._attempt(work, [item]))
            except Exception as error:
                outcomes.append(_translated(error))
        return outcomes

    async def _attempt(self, work: ItemsWork[Any, Any], items: Sequence[Any]) -> Sequence[Any]:
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                async with _Use(self) as raw:
                    connection = PostgresConnection(raw, self._clock)
                    # In AUTOCOMMIT: what writes here is one statement.
                    outcomes = await greenlet_spawn(work, connection, items)
                self._committed(connection.changed)
                return outcomes
            except _CONFLICT:
                if attempt == _ATTEMPTS:
                    raise
        raise AssertionError

    def _committed(self, changed: set[str]) -> None:
        if changed:
            self._hear(changed)
            self._notices.send(changed)

    def _hear(self, changed: set[str]) -> None:
        for listener in self._listeners:
            listener(changed)
