"""SQLAlchemy Core statements, compiled once for each database and run on the driver's connection.

Executing a statement through SQLAlchemy costs more than the statement itself at this size; a
compiled one is a text and the order of its parameters.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from operator import itemgetter
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.dialects.postgresql.asyncpg import dialect as asyncpg_dialect
from sqlalchemy.dialects.sqlite.aiosqlite import dialect as aiosqlite_dialect
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.expression import ColumnElement

from infrascout_sessions.errors import Refusal

DialectName = Literal["sqlite", "postgresql"]
Row = Sequence[Any]
T = TypeVar("T")
I = TypeVar("I", contravariant=True)  # noqa: E741 - an item
O = TypeVar("O", covariant=True)  # noqa: E741 - its outcome

_DIALECTS: Mapping[DialectName, Callable[[], sa.Dialect]] = {
    "sqlite": aiosqlite_dialect,
    "postgresql": asyncpg_dialect,
}

insert_for: Mapping[DialectName, Callable[[sa.Table], Any]] = {
    "sqlite": sqlite.insert,
    "postgresql": postgresql.insert,
}
"""The INSERT of a dialect, which knows its ON CONFLICT."""


class ServerTime(ColumnElement[int]):
    """The time of now: the service's clock on SQLite, the database's where replicas share one."""

    inherit_cache = True
    type = sa.BigInteger()


_GIVEN_TIME = sa.bindparam("server_time", type_=sa.BigInteger)
_DATABASE_TIME = sa.cast(
    sa.extract("epoch", sa.func.statement_timestamp()) * sa.literal_column("1000000"),
    sa.BigInteger,
)


@compiles(ServerTime, "sqlite")
def _sqlite_server_time(_element: ServerTime, compiler: SQLCompiler, **kw: Any) -> str:
    return compiler.process(_GIVEN_TIME, **kw)


@compiles(ServerTime, "postgresql")
def _postgresql_server_time(_element: ServerTime, compiler: SQLCompiler, **kw: Any) -> str:
    return compiler.process(sa.func.coalesce(_GIVEN_TIME, _DATABASE_TIME), **kw)


def server_time_after(column: sa.Column[int]) -> ColumnElement[int]:
    """The time of now, but never before `column`: in a session time does not go back."""
    return sa.case((column > ServerTime(), column), else_=ServerTime())


def _in_order(names: Sequence[str]) -> Callable[[Mapping[str, Any]], Sequence[Any]]:
    if not names:
        return lambda _: ()
    get = itemgetter(*names)
    return get if len(names) > 1 else lambda parameters: (get(parameters),)


class Compiled(NamedTuple):
    """A statement as a driver takes it."""

    sql: str
    bind: Callable[[Mapping[str, Any]], Sequence[Any]]
    """Puts parameters given by name in the order that the text has them."""
    needs_server_time: bool


class Statement:
    """A statement for every database, compiled when first used there."""

    __slots__ = ("_build", "_compiled")

    def __init__(self, build: Callable[[DialectName], sa.Executable]) -> None:
        self._build = build
        self._compiled: dict[DialectName, Compiled] = {}

    def compiled(self, dialect: DialectName) -> Compiled:
        """The text and the parameters' order for one dialect."""
        known = self._compiled.get(dialect)
        return known if known is not None else self._compile(dialect)

    def _compile(self, dialect: DialectName) -> Compiled:
        statement = self._build(dialect)
        compiled = statement.compile(dialect=_DIALECTS[dialect]())  # type: ignore[attr-defined]
        names = tuple(compiled.positiontup or ())
        in_order = _in_order(names)
        constants = {name: value for name, value in compiled.params.items() if value is not None}
        bind = (lambda parameters: in_order({**constants, **parameters})) if constants else in_order
        result = Compiled(compiled.string, bind, "server_time" in names)
        self._compiled[dialect] = result
        return result


def statement(build: Callable[[DialectName], sa.Executable]) -> Statement:
    """Make a `Statement` of a function that builds it for a dialect."""
    return Statement(build)


class UniqueViolationError(Exception):
    """A row with this key has come into being; on SQLite, where there is one writer, never."""


class Connection(Protocol):
    """What a unit of work runs its statements on."""

    dialect: DialectName
    changed: set[str]
    """The sessions this unit of work has changed, by id: for who listens after the commit."""

    def all(self, statement: Statement, /, **parameters: Any) -> Sequence[Row]:
        """Every row."""
        ...

    def one(self, statement: Statement, /, **parameters: Any) -> Row | None:
        """The first row, or None."""
        ...

    def insert(self, statement: Statement, rows: Sequence[Row], /) -> None:
        """Run an INSERT of whole rows; the values of each are in the order of the columns."""
        ...


class ItemsWork(Protocol[I, O]):
    """A unit of work on several items, with an outcome for each."""

    def __call__(self, connection: Connection, items: Sequence[I], /) -> Sequence[O | Refusal]: ...


class Database(Protocol):
    """Where units of work run. Each is a function of a connection and runs whole or not at all."""

    dialect: DialectName
    sole_writer: bool
    """Whether this process alone writes, so that it may keep in memory what it has read."""

    async def read(self, work: Callable[[Connection], T]) -> T:
        """Run `work`, which only reads, on a snapshot.

        Raises `DatabaseUnavailable`.
        """
        ...

    async def fetch(self, statement: Statement, /, **parameters: Any) -> Sequence[Row]:
        """Every row of one statement that only reads, sooner than `read`.

        The caller must not be cancelled meanwhile. Raises `DatabaseUnavailable`.
        """
        ...

    async def write(self, work: Callable[[Connection], T], size_bytes: int = 0) -> T:
        """Run `work` in a transaction and return once it is durable.

        Raises what `work` raises, and then nothing of it is written; `Overloaded`, `StorageFull`,
        `DatabaseUnavailable`, `ShuttingDown`.
        """
        ...

    def write_items(
        self, work: ItemsWork[I, O], items: Sequence[I], size_bytes: int = 0
    ) -> Awaitable[Sequence[O | Exception]]:
        """Run `work` on items; await an outcome for each, once durable.

        Items of other calls may run in one with these, those of earlier calls before them. Should
        that raise, each item runs by itself, and what it raises is its outcome. Raises `Overloaded`
        or `ShuttingDown` at once, and when awaited as `write` does.
        """
        ...

    async def write_item(self, work: ItemsWork[I, O], item: I, size_bytes: int = 0) -> O:
        """Run `work` on one item, where that pays in one with items of other calls.

        Raises the outcome if it is a refusal, and then nothing of it is written, and as `write`
        does.
        """
        ...

    def on_commit(self, listener: Callable[[set[str]], None]) -> None:
        """Call `listener` with the ids of the sessions changed after each commit of this process,
        before those who wrote are answered.
        """
        ...

    def on_gap(self, listener: Callable[[], None]) -> None:
        """Call `listener` when commits may have gone by that `on_commit` did not tell."""
        ...

    async def close(self) -> None:
        """Finish what waits and let go of the database."""
        ...
