"""What PostgreSQL, a database or a role is set to, as it was before or changes under a server."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
import sqlalchemy as sa

from commands import run as run_command
from harness import get_session, migrations_held_up, record, running_session
from own_postgres import OwnPostgres, own_postgres
from replicas import answer_to, replicas, until


@pytest.fixture(scope="module")
def own() -> Iterator[OwnPostgres]:
    """A PostgreSQL that nobody else uses."""
    with own_postgres() as server:
        yield server


@asynccontextmanager
async def _connection(url: str) -> AsyncIterator[Any]:
    connection = await asyncpg.connect(url.replace("+asyncpg", ""))
    try:
        yield connection
    finally:
        await connection.close()


async def test_no_write_is_taken_while_a_reload_gives_up_durability(
    own: OwnPostgres, tmp_path: Path
) -> None:
    url = await own.new_database()
    async with replicas(url, tmp_path, count=1) as [replica]:
        session_id = await running_session(replica.client)
        log = replica.service.log

        async def is_answered(expected: str) -> bool:
            answer = await answer_to(record(replica.client, session_id))
            return (answer if isinstance(answer, str) else "OK") == expected

        assert await is_answered("OK")
        await own.run("ALTER SYSTEM SET synchronous_commit = off", "SELECT pg_reload_conf()")
        try:
            await until(lambda: is_answered("DATABASE_UNAVAILABLE"), 5)
            for _ in range(20):
                assert await is_answered("DATABASE_UNAVAILABLE")
            assert "synchronous_commit off, and may lose" in log.read_text()
            # What is on record can be read.
            count = (await get_session(replica.client, session_id)).execution_count
        finally:
            await own.run("ALTER SYSTEM RESET synchronous_commit", "SELECT pg_reload_conf()")
        await until(lambda: is_answered("OK"), 5)
        assert (await get_session(replica.client, session_id)).execution_count == count + 1


async def test_a_later_connection_must_be_durable_too(own: OwnPostgres, tmp_path: Path) -> None:
    """A setting of the role is that of its next connections, as is that of another server."""
    url = await own.new_database()
    async with replicas(url, tmp_path, count=1) as [replica], _connection(url) as other:
        session_id = await running_session(replica.client)
        await own.run("ALTER ROLE postgres SET synchronous_commit = off")
        try:
            await other.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE application_name = 'infrascout-sessions'"
            )
            for _ in range(20):
                answer = await answer_to(record(replica.client, session_id))
                assert answer == "DATABASE_UNAVAILABLE"
        finally:
            await own.run("ALTER ROLE postgres RESET synchronous_commit")

        async def is_recorded() -> bool:
            return not isinstance(await answer_to(record(replica.client, session_id)), str)

        await until(is_recorded, 5)
        assert (await get_session(replica.client, session_id)).execution_count == 1


async def test_a_database_that_lacks_characters_is_refused(own: OwnPostgres) -> None:
    await own.run("CREATE DATABASE latin1 ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
    serve = ("serve", "--listen", "127.0.0.1:0", "--database-url", own.url("latin1"))
    code, said = await run_command(*serve)
    assert (code, said.count("\n")) == (1, 1)
    assert said.startswith("infrascout-sessions: the database has the encoding LATIN1")


@pytest.mark.parametrize(
    "listen", ["nonsense", "postgresql+asyncpg://u:secret@host:x/db", "sqlite+aiosqlite:///a.db"]
)
async def test_what_cannot_be_listened_on_is_refused(own: OwnPostgres, listen: str) -> None:
    serve = ("serve", "--listen", "127.0.0.1:0", "--database-url", own.url("postgres"))
    code, said = await run_command(*serve, "--listen-database-url", listen)
    assert (code, said.count("\n")) == (1, 1)
    assert said.startswith("infrascout-sessions: --listen-database-url needs PostgreSQL: write it")


@pytest.fixture
async def hasty(own: OwnPostgres) -> str:
    """A role with the time-outs that docs/scaling.md asks for behind pgbouncer, only shorter."""
    name = f"hasty_{uuid4().hex}"
    limits = ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout")
    await own.run(
        f"CREATE ROLE {name} SUPERUSER LOGIN",
        *(f"ALTER ROLE {name} SET {limit} = '200ms'" for limit in limits),
    )
    return name


async def test_a_migration_waits_for_another_whatever_time_its_role_has(
    own: OwnPostgres, hasty: str
) -> None:
    url = await own.new_database()
    async with _connection(url) as other, migrations_held_up(url):
        migrating = asyncio.create_task(
            run_command("migrate", "--database-url", url.replace("postgres@", f"{hasty}@"))
        )
        await until(lambda: _waits_for_the_lock(other), 20)
        await asyncio.sleep(0.5)
    code, said = await migrating
    assert code == 0, said


async def _waits_for_the_lock(connection: Any) -> bool:
    return bool(await connection.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"))


async def test_a_copy_takes_the_time_it_takes(own: OwnPostgres, hasty: str, tmp_path: Path) -> None:
    source, target = await own.new_database(), await own.new_database()
    async with replicas(source, tmp_path, count=1) as [replica]:
        session_id = await running_session(replica.client)
        await record(replica.client, session_id)
    assert (await run_command("migrate", "--database-url", target))[0] == 0
    async with _connection(target) as other, other.transaction():
        # As a VACUUM does, for which ANALYZE waits.
        await other.execute("LOCK TABLE executions IN SHARE UPDATE EXCLUSIVE MODE")
        urls = [url.replace("postgres@", f"{hasty}@") for url in (source, target)]
        copying = asyncio.create_task(run_command("copy", "--from", urls[0], "--to", urls[1]))
        await until(lambda: _waits_for_the_lock(other), 20)
        await asyncio.sleep(0.5)
    code, said = await copying
    assert code == 0, said


async def test_another_isolation_by_default_changes_nothing(
    own: OwnPostgres, tmp_path: Path
) -> None:
    url = await own.new_database()
    name = sa.make_url(url).database
    await own.run(f"ALTER DATABASE {name} SET default_transaction_isolation = 'repeatable read'")
    # They migrate at the same time, ...
    async with replicas(url, tmp_path, count=3) as running:
        session_id = await running_session(running[0].client)

        async def record_some(number: int) -> list[Any]:
            client = running[number % 3].client
            return [await answer_to(record(client, session_id)) for _ in range(20)]

        # ... and record in one session.
        answers = await asyncio.gather(*map(record_some, range(6)))
        refused = [one for some in answers for one in some if isinstance(one, str)]
        assert refused == []
        session = await get_session(running[1].client, session_id)
        assert session.execution_count == 120


async def test_a_record_that_met_another_write_is_made_again(
    own: OwnPostgres, tmp_path: Path
) -> None:
    """Where nothing sets the isolation of a statement by itself: `--pgbouncer` leaves it alone."""
    url = await own.new_database()
    name = sa.make_url(url).database
    await own.run(f"ALTER DATABASE {name} SET default_transaction_isolation = 'repeatable read'")
    async with (
        replicas(url, tmp_path, "--pgbouncer", count=1) as [replica],
        _connection(url) as other,
    ):
        session_id = await running_session(replica.client)
        async with other.transaction():
            await other.execute("UPDATE sessions SET insight_count = insight_count")
            recording = asyncio.create_task(record(replica.client, session_id))
            await until(lambda: _waits_for_the_lock(other), 5)
        assert (await recording).sequence == 1
