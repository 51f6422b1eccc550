"""Through pgbouncer, as `--pgbouncer` says: between transactions any connection may be another."""

import asyncio
import os
import shutil
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import median
from time import monotonic
from typing import Any

import pytest
import sqlalchemy as sa

from harness import (
    Client,
    at,
    collect,
    database_connection,
    get_session,
    list_executions,
    list_insights,
    record,
    record_request,
    running_session,
    save_insight,
    settings_for,
    submit,
)
from infrascout.sessions.v1 import execution_pb2, session_pb2
from infrascout.sessions.v1 import recording_service_pb2 as recording
from infrascout.sessions.v1 import session_service_pb2 as sessions
from infrascout_sessions.server import running
from infrascout_sessions.storage.database import DatabaseSetupError
from replicas import replicas, until

pytestmark = pytest.mark.skipif(
    shutil.which("pgbouncer") is None,
    reason="there is no pgbouncer on the PATH: install it, on Debian `apt-get install pgbouncer`",
)

POOL_SIZE = 4


def _user(host: object) -> str:
    """Whom to be instead of root, which it refuses; a socket's folder may be its owner's alone."""
    folder = Path(str(host))
    return folder.owner() if folder.is_absolute() else "nobody"


@asynccontextmanager
async def pooler(folder: Path, database: str, user: str = "nobody") -> AsyncIterator[int]:
    """The port of a pgbouncer before a database, until the block ends."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    settings, log = folder / "pgbouncer.ini", folder / "pgbouncer.log"
    settings.write_text(
        f"""
[databases]
* = {database}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = {POOL_SIZE}
"""
    )
    with log.open("w") as output:
        process = await asyncio.create_subprocess_exec(
            *("pgbouncer", *(["-u", user] if os.geteuid() == 0 else []), str(settings)),
            stdout=output,
            stderr=output,
        )
    try:
        await until(lambda: "process up" in log.read_text(), 10)
        yield port
    finally:
        process.terminate()
        await process.wait()


@pytest.fixture
async def pooled_url(postgres_url: str, tmp_path: Path) -> AsyncIterator[str]:
    """The URL of the same database through a pgbouncer of its own."""
    url = sa.make_url(postgres_url)
    # The part of a URL that says where, or of its query for a socket's folder.
    host = url.query.get("host", url.host)
    password = f" password={url.password}" if url.password else ""
    database = f"host={host} port={url.port or 5432} user={url.username}{password}"
    async with pooler(tmp_path, database, _user(host)) as port:
        yield f"postgresql+asyncpg://{url.username}@127.0.0.1:{port}/{url.database}"


async def assess(client: Client, other: Client, agent_id: str) -> None:
    """A session from its start to its submit, with all that can be recorded, on two replicas."""
    session_id = await running_session(client, agent_id)
    made = [await record(each, session_id, request_id="r1") for each in (client, other, client)]
    assert made == made[:1] * 3
    items = [record_request(session_id, command=f"{number}") for number in range(50)]
    message = recording.RecordExecutionsRequest(executions=items)
    [response] = await collect(other.recording.RecordExecutions(iter([message])))
    assert [one.recorded.sequence for one in response.results] == list(range(2, 52))
    begin = recording.BeginExecutionRequest(
        session_id=session_id, command="b", capability="shell", start_time=at(0)
    )
    which: dict[str, Any] = {
        "session_id": session_id,
        "sequence": (await client.recording.BeginExecution(begin)).execution.sequence,
    }
    chunk = recording.AppendOutputRequest(
        **which, stream=execution_pb2.OUTPUT_STREAM_STDOUT, data=b"output"
    )
    assert (await other.recording.AppendOutput(chunk)).size_bytes == 6
    finish = recording.FinishExecutionRequest(**which, exit_code=0, end_time=at(1))
    assert (await client.recording.FinishExecution(finish)).execution.output.text == "output"
    saved = await save_insight(other, session_id, execution_sequences=[1, 52])
    assert await list_insights(client, session_id) == [saved]
    submitted = await submit(other, session_id)
    assert submitted.status == session_pb2.SESSION_STATUS_PENDING_REVIEW
    assert await get_session(client, session_id) == submitted
    assert len(await list_executions(client, session_id)) == 52


async def follow(client: Client, session_id: str, arrivals: dict[int, float]) -> None:
    """Note when executions arrive, until the session ends."""
    request = sessions.ListExecutionsRequest(session_id=session_id, follow=True)
    async for response in client.sessions.ListExecutions(request):
        for one in response.executions:
            assert one.sequence == len(arrivals) + 1
            arrivals[one.sequence] = monotonic()


@pytest.mark.parametrize("listens", [True, False], ids=["listening", "polling"])
async def test_all_works_through_pgbouncer(
    pooled_url: str, postgres_url: str, tmp_path: Path, listens: bool
) -> None:
    arguments = ["--listen-database-url", postgres_url] if listens else []
    async with replicas(pooled_url, tmp_path, "--pgbouncer", *arguments, count=2) as running:
        one, other = [replica.client for replica in running]
        followed = await running_session(one, "ag_followed")
        arrivals: dict[int, float] = {}
        following = asyncio.create_task(follow(other, followed, arrivals))
        # More than the pool has connections.
        await asyncio.gather(
            *(assess(one, other, f"ag_{n}") for n in range(POOL_SIZE * 4)),
            *(assess(other, one, f"ag_{n}") for n in range(100, 100 + POOL_SIZE * 4)),
        )
        async with database_connection(postgres_url) as connection:
            connected = await connection.execute(
                sa.text(
                    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
                    " AND pid <> pg_backend_pid()"
                )
            )
            # So it is the pool's connections that were used; replicas have one each to listen.
            assert connected.scalar_one() <= POOL_SIZE + (2 if listens else 0)

        delays = []
        count = 20 if listens else 6
        for sequence in range(1, count + 1):
            await record(one, followed)
            acknowledged = monotonic()
            await until(lambda: sequence in arrivals, 5)  # noqa: B023
            delays.append(arrivals[sequence] - acknowledged)
        # Polling, it looks twice a second.
        assert median(delays) < (0.1 if listens else 1), sorted(delays)
        await submit(one, followed)
        async with asyncio.timeout(10):
            await following
        assert len(arrivals) == count
        for replica in running:
            assert "INTERNAL" not in replica.service.log.read_text()


async def test_a_pooler_that_reaches_no_database_is_said_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes the connection, and would let the first statement wait for two minutes."""
    monkeypatch.setattr("infrascout_sessions.storage.postgres._FIRST_ANSWER_SECONDS", 1)
    async with pooler(tmp_path, "host=127.0.0.1 port=1 user=nobody") as port:
        url = f"postgresql+asyncpg://nobody@127.0.0.1:{port}/none"
        with pytest.raises(DatabaseSetupError, match="cannot be used: it did not answer in time"):
            async with asyncio.timeout(10), running(settings_for(url, pgbouncer=True)):
                pass
