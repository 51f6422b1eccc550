"""`infrascout-sessions copy`: everything arrives, whatever kills it, or it says what is wrong.

COPY_EXECUTIONS sets how many executions the copy that is killed has; 1,000,000 take some minutes.
"""

import asyncio
import os
import pty
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine
from sqlalchemy.pool import NullPool

import commands
from callers import make_token
from filling import fill
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
    serving,
    submit,
)
from infrascout.sessions.v1 import (
    agent_service_pb2,
    execution_pb2,
    recording_service_pb2,
    session_service_pb2,
)
from infrascout_sessions.models import ActorKind, Role
from infrascout_sessions.storage.database import migrate_database
from infrascout_sessions.storage.schema import metadata
from postgres_server import PostgresServer

EXECUTIONS = int(os.environ.get("COPY_EXECUTIONS", "20000"))
KILLED_TIMEOUT = 120 + EXECUTIONS // 1000

MEBIBYTE = 1024 * 1024
BINARY = bytes(range(256)) * 3
VERIFIED = "Copied and verified: counts and digests are the same on both sides."


class Urls:
    """URLs of databases of each kind that do not exist yet, or are empty."""

    def __init__(self, folder: Path, postgres: PostgresServer) -> None:
        self._folder = folder
        self._postgres = postgres
        self._count = 0

    async def new(self, kind: str) -> str:
        if kind == "postgresql":
            return await self._postgres.new_database()
        self._count += 1
        return f"sqlite+aiosqlite:///{self._folder / f'{self._count}.db'}"


@pytest.fixture
def urls(tmp_path: Path, postgres: PostgresServer) -> Urls:
    return Urls(tmp_path, postgres)


def path_of(url: str) -> Path:
    return Path(url.partition(":///")[2])


async def copy(source: str, target: str) -> tuple[int, str]:
    return await commands.run("copy", "--from", source, "--to", target)


async def refused(source: str, target: str) -> str:
    code, said = await copy(source, target)
    assert code == 1, said
    last = said.strip().splitlines()[-1]
    assert last.startswith("infrascout-sessions: "), said
    assert "Traceback" not in said
    return last


async def filled(url: str, executions: int = 1000) -> str:
    """A database of SQLite with so many executions."""
    await migrate_database(url)
    await asyncio.to_thread(fill, path_of(url), executions)
    return url


async def rows_of(url: str, table: str) -> int:
    async with database_connection(url) as connection:
        return int(await connection.scalar(sa.text(f"SELECT count(*) FROM {table}")) or 0)


# Everything.


async def make_history(client: Client) -> str:
    """A session with something in every table; gives its id."""
    session_id = await running_session(client)
    await record(client, session_id, request_id="again", output=text("naïve 日本\x00"))
    await record(client, session_id, output=binary(BINARY), error_output=text(""), exit_code=None)
    begun = await client.recording.BeginExecution(
        recording_service_pb2.BeginExecutionRequest(
            session_id=session_id, command="dump", capability="shell", start_time=at(0)
        )
    )
    for offset in (0, MEBIBYTE):
        await client.recording.AppendOutput(
            recording_service_pb2.AppendOutputRequest(
                session_id=session_id,
                sequence=begun.execution.sequence,
                stream=execution_pb2.OUTPUT_STREAM_STDOUT,
                offset=offset,
                data=os.urandom(MEBIBYTE),
            )
        )
    for value in ("first", "second"):
        await save_insight(client, session_id, value=value, evidence="line\nline")
    await submit(client, session_id)
    await running_session(client, "ag_2")
    return session_id


def text(content: str) -> execution_pb2.Output:
    return execution_pb2.Output(text=content)


def binary(content: bytes) -> execution_pb2.Output:
    return execution_pb2.Output(binary=content)


async def everything(client: Client) -> list[object]:
    """All that the API gives of every session."""
    found: list[object] = []
    found += (await client.agents.ListAgents(agent_service_pb2.ListAgentsRequest())).agents
    listed = await client.sessions.ListSessions(session_service_pb2.ListSessionsRequest())
    for session in listed.sessions:
        found.append(await get_session(client, session.session_id))
        found += await list_insights(client, session.session_id, all_revisions=True)
        executions = await list_executions(client, session.session_id)
        found += executions
        for execution in executions:
            for stream in (
                execution_pb2.OUTPUT_STREAM_STDOUT,
                execution_pb2.OUTPUT_STREAM_STDERR,
            ):
                read = session_service_pb2.ReadOutputRequest(
                    session_id=session.session_id, sequence=execution.sequence, stream=stream
                )
                found += await collect(client.sessions.ReadOutput(read))
    return found


@pytest.mark.parametrize("to_kind", ["sqlite", "postgresql"])
@pytest.mark.parametrize("from_kind", ["sqlite", "postgresql"])
async def test_a_copy_is_the_whole_record(from_kind: str, to_kind: str, urls: Urls) -> None:
    source, target = await urls.new(from_kind), await urls.new(to_kind)
    async with serving(source) as client:
        session_id = await make_history(client)
        original = await everything(client)
        await make_token(source, "tool", ActorKind.SERVICE, Role.RECORDER)

    code, said = await copy(source, target)

    assert (code, said.strip().splitlines()[-1]) == (0, VERIFIED), said
    counts = dict(re.findall(r"^(\w+) +([\d,]+) rows  sha256 [0-9a-f]{64}$", said, re.MULTILINE))
    assert set(counts) == set(metadata.tables)
    for table in metadata.tables:
        assert await rows_of(source, table) > 0, f"make_history leaves {table} empty"
        assert await rows_of(target, table) == await rows_of(source, table) == int(counts[table])
    async with serving(target) as client:
        assert await everything(client) == original
        repeated = record_request(session_id, request_id="again", output=text("naïve 日本\x00"))
        assert (await client.recording.RecordExecution(repeated)).execution.sequence == 1
        # And what begins there goes on as anywhere.
        running = session_service_pb2.ListSessionsRequest(agent_id="ag_2")
        session = (await client.sessions.ListSessions(running)).sessions[0]
        assert (await record(client, session.session_id)).sequence == 1


# Killed.


@asynccontextmanager
async def watching(url: str) -> AsyncIterator[AsyncConnection]:
    engine = create_async_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    try:
        async with engine.connect() as connection:
            yield connection
    finally:
        await engine.dispose()


async def progress(target: AsyncConnection) -> tuple[str, int] | None:
    """The table under way and how many of its rows there are; None before, and when it is over."""
    try:
        row = (
            await target.execute(sa.text("SELECT table_name, copied FROM unfinished_copy"))
        ).first()
    except sa.exc.DBAPIError:
        return None
    return None if row is None else (row[0], row[1])


@pytest.mark.timeout(KILLED_TIMEOUT)
@pytest.mark.parametrize(
    ("from_kind", "to_kind"), [("sqlite", "postgresql"), ("postgresql", "sqlite")]
)
async def test_a_copy_that_is_killed_goes_on(from_kind: str, to_kind: str, urls: Urls) -> None:
    source = await filled(await urls.new("sqlite"), EXECUTIONS)
    if from_kind == "postgresql":
        moved = await urls.new("postgresql")
        assert (await copy(source, moved))[0] == 0
        source = moved
    target = await urls.new(to_kind)
    await migrate_database(target)

    killed_at: list[tuple[str, int]] = []
    async with watching(target) as connection:
        for _ in range(4):
            process = await commands.start("copy", "--from", source, "--to", target)
            while process.returncode is None:
                now = await progress(connection)
                further = now is not None and now[1] > 0 and now not in killed_at
                # The first kill comes early, each of the others a good bit later.
                if now is not None and further and (len(killed_at) % 2 == 0 or now[1] > 10_000):
                    process.kill()
                    killed_at.append(now)
                    break
                await asyncio.sleep(0.001)
            await process.communicate()
        at_last = await progress(connection)
    assert len(killed_at) >= 2, killed_at
    if at_last is not None:
        order = [table.name for table in metadata.sorted_tables]
        reached = [(order.index(table), rows) for table, rows in killed_at]
        assert reached == sorted(reached), "a copy never starts anew"
        # Half a record is not served.
        code, said = await commands.run("serve", "--listen", "127.0.0.1:0", *database(target))
        assert (code, "is an unfinished copy" in said) == (1, True), said

        code, said = await commands.run("copy", "--from", source, "--to", target, seconds=900)
        assert (code, said.strip().splitlines()[-1]) == (0, VERIFIED), said
        assert said.startswith(f"copying {at_last[0]}: {at_last[1]:,} of "), said
    assert await rows_of(target, "executions") == EXECUTIONS
    async with watching(target) as connection:
        assert await progress(connection) is None
    assert "the target is not empty" in await refused(source, target)


def database(url: str) -> tuple[str, str]:
    return "--database-url", url


async def killed_copy(source: str, target: str) -> None:
    """A copy that is killed in the middle of the executions, of more than a page."""
    await migrate_database(target)
    process = await commands.start("copy", "--from", source, "--to", target)
    async with watching(target) as connection:
        while process.returncode is None:
            now = await progress(connection)
            if now is not None and now[0] == "executions" and now[1] > 0:
                process.kill()
                break
            await asyncio.sleep(0.001)
        await process.communicate()
        assert await progress(connection) is not None, "it was over before it was killed"


# Refused.


async def test_what_was_changed_meanwhile_is_found(urls: Urls) -> None:
    source, target = await filled(await urls.new("sqlite"), 12_000), await urls.new("postgresql")
    await killed_copy(source, target)
    async with database_connection(target) as connection:
        await connection.execute(
            sa.text("UPDATE requests SET resource = '0' WHERE request_id = 'request-7'")
        )

    for _ in range(2):
        message = await refused(source, target)
        assert "differs from its source in requests" in message
        assert "of other content" in message

    async with database_connection(target) as connection:
        await connection.execute(
            sa.text("UPDATE requests SET resource = '7' WHERE request_id = 'request-7'")
        )
    code, said = await copy(source, target)
    assert (code, VERIFIED in said) == (0, True), said


async def test_an_unfinished_copy_goes_on_from_its_own_source_only(urls: Urls) -> None:
    source, target = await filled(await urls.new("sqlite"), 12_000), await urls.new("postgresql")
    await killed_copy(source, target)

    other = await filled(await urls.new("sqlite"))
    assert "an unfinished copy of another source" in await refused(other, target)

    async with serving(source) as client:
        await running_session(client, "ag_new")
    assert "has changed since" in await refused(source, target)


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
async def test_a_target_that_is_not_empty_is_refused(kind: str, urls: Urls) -> None:
    source, target = await filled(await urls.new("sqlite")), await urls.new(kind)
    async with serving(target) as client:
        await client.agents.RegisterAgent(
            agent_service_pb2.RegisterAgentRequest(agent_id="ag_mine", hostname="here")
        )
    assert "not empty, there are agents in it" in await refused(source, target)
    assert await rows_of(target, "executions") == 0


async def test_a_database_that_a_server_uses_is_refused(urls: Urls) -> None:
    used, other = await urls.new("sqlite"), await filled(await urls.new("sqlite"))
    async with serving(used):
        assert f"another server uses {path_of(used)}" in await refused(used, other)
        assert f"another server uses {path_of(used)}" in await refused(other, used)


async def test_nobody_writes_in_a_postgresql_source_meanwhile(urls: Urls) -> None:
    source, target = await urls.new("postgresql"), await urls.new("sqlite")
    await migrate_database(source)
    async with database_connection(source) as connection:
        await connection.execute(
            sa.text("INSERT INTO agents VALUES ('ag_1', 'h', 'h', 'Linux', '[]', 1, 1)")
        )
        message = await refused(source, target)
    assert "the source cannot be kept still" in message
    assert (await copy(source, target))[0] == 0


async def test_two_copies_into_one_target_are_one_too_many(urls: Urls) -> None:
    source, again = (
        await filled(await urls.new("sqlite"), 12_000),
        await filled(await urls.new("sqlite")),
    )
    for target in (await urls.new("postgresql"), await urls.new("sqlite")):
        first = await commands.start("copy", "--from", source, "--to", target)
        assert first.stdout is not None
        await first.stdout.readline()  # it has the target
        message = await refused(again, target)
        said, _ = await first.communicate()
        assert (first.returncode, VERIFIED in said.decode()) == (0, True)
        # Of PostgreSQL's, the second waits a little for one that was killed: this one may be over.
        assert re.search("another (copy writes into|server uses)|is not empty", message), message


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
async def test_a_source_of_another_revision_is_refused(kind: str, urls: Urls) -> None:
    source, target = await urls.new(kind), await urls.new("sqlite")
    if kind == "postgresql":  # empty
        assert "run `infrascout-sessions migrate`" in await refused(source, target)
    await migrate_database(source)
    for revision, says in (("0001", "run `infrascout-sessions migrate`"), ("9999", "run the ver")):
        async with database_connection(source) as connection:
            await connection.execute(
                sa.text("UPDATE alembic_version SET version_num = :revision"),
                {"revision": revision},
            )
        message = await refused(source, target)
        assert f"revision {revision}" in message
        assert says in message
        assert not path_of(target).exists()


async def test_what_is_no_database_is_refused(urls: Urls, tmp_path: Path) -> None:
    there, empty = await filled(await urls.new("sqlite")), await urls.new("sqlite")
    assert "there is no database" in await refused(empty, there)
    assert not path_of(empty).exists()
    assert "the same database" in await refused(there, there)
    noise = tmp_path / "noise.db"
    noise.write_bytes(b"noise" * 1000)
    assert "file is not a database" in await refused(f"sqlite+aiosqlite:///{noise}", empty)
    nobody = "postgresql+asyncpg://nobody@127.0.0.1:1/none"
    assert "cannot be used" in await refused(nobody, empty)
    assert "cannot be used" in await refused(there, nobody)


# How.


async def test_memory_stays_flat(urls: Urls) -> None:
    """Two outputs of 64 MiB, in chunks of one; a wrapped process tells its own peak."""
    source, target = await urls.new("sqlite"), await urls.new("postgresql")
    async with serving(source) as client:
        session_id = await running_session(client)
        for _ in range(2):
            begun = await client.recording.BeginExecution(
                recording_service_pb2.BeginExecutionRequest(
                    session_id=session_id, command="dump", capability="shell", start_time=at(0)
                )
            )
            for chunk in range(64):
                await client.recording.AppendOutput(
                    recording_service_pb2.AppendOutputRequest(
                        session_id=session_id,
                        sequence=begun.execution.sequence,
                        stream=execution_pb2.OUTPUT_STREAM_STDOUT,
                        offset=chunk * MEBIBYTE,
                        data=os.urandom(MEBIBYTE),
                    )
                )

    process = await commands.start("copy", "--from", source, "--to", target)
    peak = 0
    status = Path(f"/proc/{process.pid}/status")
    while process.returncode is None:
        # It may be gone before that is known here.
        with suppress(FileNotFoundError, ProcessLookupError):
            peaks = re.search(r"VmHWM:\s+(\d+) kB", await asyncio.to_thread(status.read_text))
            peak = max(peak, int(peaks.group(1)) if peaks else 0)
        await asyncio.sleep(0.01)
    said, _ = await process.communicate()

    assert VERIFIED in said.decode()
    assert 0 < peak < 200 * 1024, f"{peak} kB"


async def test_a_terminal_gets_a_bar(urls: Urls) -> None:
    source, target = await filled(await urls.new("sqlite")), await urls.new("sqlite")
    reader, terminal = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        *commands.PROGRAM,
        *("copy", "--from", source, "--to", target),
        stdout=terminal,
        stderr=terminal,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
    )
    os.close(terminal)
    said = b""
    while True:
        try:
            said += await asyncio.to_thread(os.read, reader, 65536)
        except OSError:  # closed at the other end
            break
    os.close(reader)
    assert await process.wait() == 0
    assert "━" in said.decode()
    assert re.search(r"verifying executions.*1000/1000", said.decode())
    assert VERIFIED in said.decode()
