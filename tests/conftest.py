"""Fixtures: a database of its own for each test, and a server on it with a client."""

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

# Before gRPC is loaded: its handlers crash a child, now and then, between fork and exec.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"

import pytest

from harness import Client, FrozenClock, Ids, serving
from infrascout_sessions.storage.database import migrate_database
from postgres_server import PostgresServer, postgres_server


@pytest.fixture(scope="session")
def migrated_sqlite_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty database with its tables, to be copied: migrating takes longer than most tests."""
    file = tmp_path_factory.mktemp("migrated") / "sessions.db"
    asyncio.run(migrate_database(f"sqlite+aiosqlite:///{file}"))
    return file


@pytest.fixture
def sqlite_url(tmp_path: Path, migrated_sqlite_file: Path) -> str:
    """The URL of an empty SQLite database with its tables; for what is about SQLite itself."""
    file = shutil.copy(migrated_sqlite_file, tmp_path)
    return f"sqlite+aiosqlite:///{file}"


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL, which makes databases."""
    with postgres_server() as server:
        yield server


@pytest.fixture(scope="session")
def migrated_postgres_url(postgres: PostgresServer) -> str:
    """An empty database with its tables, to be copied: migrating takes longer than most tests."""
    url = asyncio.run(postgres.new_database())
    asyncio.run(migrate_database(url))
    return url


@pytest.fixture
def postgres_url(postgres: PostgresServer, migrated_postgres_url: str) -> Iterator[str]:
    """The URL of an empty PostgreSQL database with its tables."""
    url = asyncio.run(postgres.new_database(migrated_postgres_url))
    yield url
    asyncio.run(postgres.drop_database(url))


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest) -> str:
    """The URL of an empty database with its tables; what uses it runs on each kind."""
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


@pytest.fixture
def clock() -> FrozenClock:
    """The clock of `client`'s server: it stands still until a test advances it."""
    return FrozenClock()


@pytest.fixture
async def client(database_url: str, clock: FrozenClock) -> AsyncIterator[Client]:
    """A real channel to a real server, whose clock and ids a test can tell in advance."""
    async with serving(database_url, clock=clock, ids=Ids()) as client:
        yield client
