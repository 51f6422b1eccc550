"""Fixtures: a database of its own for each test, and a server on it with a client."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from harness import Client, FrozenClock, Ids, serving


@pytest.fixture(params=["sqlite"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database; every test that uses it runs on each kind."""
    assert request.param == "sqlite"
    return f"sqlite+aiosqlite:///{tmp_path / 'sessions.db'}"


@pytest.fixture
def clock() -> FrozenClock:
    """The clock of `client`'s server: it stands still until a test advances it."""
    return FrozenClock()


@pytest.fixture
async def client(database_url: str, clock: FrozenClock) -> AsyncIterator[Client]:
    """A real channel to a real server, whose clock and ids a test can tell in advance."""
    async with serving(database_url, clock=clock, ids=Ids()) as client:
        yield client
