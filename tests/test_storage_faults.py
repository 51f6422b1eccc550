"""What goes wrong with a disk or a database: a clear error, nothing lost, and on it goes."""

import asyncio
import os
import resource
import shutil
import signal
import sqlite3
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Any

import grpc
import pytest
import sqlalchemy as sa
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from harness import (
    CONSOLE_SCRIPT,
    Client,
    ServiceProcess,
    at,
    clean_environment,
    collect,
    connected,
    database_connection,
    get_session,
    list_executions,
    record,
    record_request,
    refused,
    running_session,
    save_insight,
    service_process,
    serving,
    writes_held_up,
)
from infrascout.sessions.v1 import execution_pb2, recording_service_pb2, session_service_pb2
from ledger import Entry, Ledger, Outcome

MIB = 1024 * 1024

WRITERS = 32


async def health(client: Client) -> Any:
    """The status of the server as a whole."""
    stub: Any = HealthStub(client.channel)
    return (await stub.Check(HealthCheckRequest())).status


def url_of(path: Path) -> str:
    return f"sqlite+aiosqlite:///{path}"


# A disk of its own, small, in a mount namespace.

FREE = 6_000_000
"""Bytes that are free on the small disk."""

NAMESPACE = ("unshare", "--user", "--map-root-user", "--mount", "--")


@cache
def can_mount() -> bool:
    mount = (*NAMESPACE, "mount", "-t", "tmpfs", "tmpfs", "/mnt")
    try:
        return subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


needs_mount = pytest.mark.skipif(not can_mount(), reason="no user and mount namespaces here")


def on_a_disk(folder: Path, *steps: str) -> tuple[str, ...]:
    """What runs the command behind it with a disk at `folder` that only it sees."""
    folder.mkdir()
    script = " && ".join(
        (f'mount -t tmpfs -o size={FREE + 20_000_000} tmpfs "$0"', *steps, 'exec "$@"')
    )
    return (*NAMESPACE, "sh", "-c", script, str(folder), str(CONSOLE_SCRIPT))


# Faults: how a server gets one, and how it is rid of it again.

Fault = tuple[ServiceProcess, Callable[[], None]]


@asynccontextmanager
async def full_disk(tmp_path: Path) -> AsyncIterator[Fault]:
    """A disk with little room left, until its ballast is removed."""
    disk = tmp_path / "disk"
    command = on_a_disk(disk, 'head -c 20000000 /dev/zero >"$0/ballast"')
    async with service_process(
        url_of(disk / "sessions.db"), tmp_path / "log", command=command
    ) as service:
        ballast = Path(f"/proc/{service.process.pid}/root{disk}/ballast")
        yield service, ballast.unlink


@asynccontextmanager
async def failing_disk(tmp_path: Path) -> AsyncIterator[Fault]:
    """A disk that takes no more than a little from this process: EFBIG, as good as EIO or EROFS."""
    (tmp_path / "disk").mkdir()
    async with service_process(url_of(tmp_path / "disk/sessions.db"), tmp_path / "log") as service:

        def limit(size_bytes: int) -> None:
            limits = (size_bytes, resource.RLIM_INFINITY)
            resource.prlimit(service.process.pid, resource.RLIMIT_FSIZE, limits)

        limit(FREE)
        yield service, lambda: limit(resource.RLIM_INFINITY)


async def write_until_refused(
    ledger: Ledger, client: Client, session_id: str, reason: str, output_bytes: int
) -> None:
    """One of many writers; once it is refused, it tries again a few times."""
    refusals = 0
    while refusals < 5:
        entry = await ledger.record(client, session_id, output_bytes)
        if entry.outcome is Outcome.ACKNOWLEDGED:
            entry = await ledger.save(client, session_id)
        if entry.outcome is not Outcome.ACKNOWLEDGED:
            assert entry.reason == reason
            refusals += 1


@pytest.mark.parametrize(
    ("fault", "code", "reason"),
    [
        pytest.param(
            *(full_disk, grpc.StatusCode.RESOURCE_EXHAUSTED, "STORAGE_FULL"),
            marks=needs_mount,
            id="full",
        ),
        pytest.param(
            *(failing_disk, grpc.StatusCode.UNAVAILABLE, "DATABASE_UNAVAILABLE"), id="failing"
        ),
    ],
)
async def test_sqlite_on_a_disk_that_takes_no_more(
    tmp_path: Path,
    fault: Callable[[Path], Any],
    code: grpc.StatusCode,
    reason: str,
) -> None:
    ledger = Ledger()
    async with (
        fault(tmp_path) as (service, mend),
        connected(service.address) as client,
    ):
        sessions = [await ledger.start(client) for _ in range(4)]
        await asyncio.gather(
            *(
                # Small ones go on when there is no room for large ones, so that it is full indeed.
                write_until_refused(ledger, client, session_id, reason, output_bytes)
                for output_bytes in (30_000, 100)
                for session_id in sessions
                for _ in range(WRITERS // 8)
            )
        )
        outcomes = ledger.outcomes()
        assert outcomes["ACKNOWLEDGED"] > 100
        assert outcomes[reason] >= WRITERS * 5
        await refused(record(client, sessions[0], output={"text": "x" * 100_000}), code, reason)

        # Reads go on, and show what was acknowledged.
        await ledger.verify(client)
        assert await health(client) == HealthCheckResponse.SERVING

        # So does what a crash would leave now.
        crashed = tmp_path / "crashed"
        service.process.send_signal(signal.SIGSTOP)
        shutil.copytree(
            f"/proc/{service.process.pid}/root{tmp_path}/disk",
            crashed,
            ignore=lambda _folder, names: {name for name in names if not name.startswith("sess")},
        )
        service.process.send_signal(signal.SIGCONT)
        async with serving(url_of(crashed / "sessions.db")) as other:
            await ledger.verify(other)

        # Once there is room, all goes on as if nothing had been.
        mend()
        await ledger.repeat(client, ledger.entries)
        await ledger.verify(client)
        assert ledger.outcomes().keys() == {"ACKNOWLEDGED"}


@needs_mount
@pytest.mark.parametrize(
    ("steps", "because"),
    [
        pytest.param(['mount -o remount,ro "$0"'], "Read-only file system", id="new"),
        pytest.param(
            [
                '"$1" migrate --database-url "sqlite+aiosqlite:///$0/sessions.db"',
                'touch "$0/sessions.db.lock"',
                'mount -o remount,ro "$0"',
            ],
            "Read-only file system",
            id="existing",
        ),
    ],
)
def test_sqlite_on_a_read_only_disk_does_not_serve(
    tmp_path: Path, steps: list[str], because: str
) -> None:
    disk = tmp_path / "disk"
    ended = subprocess.run(
        [
            *on_a_disk(disk, *steps),
            *("serve", "--listen", "127.0.0.1:0"),
            *("--database-url", url_of(disk / "sessions.db")),
        ],
        capture_output=True,
        text=True,
        env=clean_environment(),
        timeout=20,
        check=False,
    )
    assert ended.returncode == 1
    [line] = ended.stderr.splitlines()
    assert line.startswith("infrascout-sessions: ")
    assert because in line


async def test_sqlite_that_another_process_has_locked(sqlite_url: str, tmp_path: Path) -> None:
    ledger = Ledger()
    path = sa.make_url(sqlite_url).database
    assert path is not None
    async with (
        service_process(sqlite_url, tmp_path / "log") as service,
        connected(service.address) as client,
    ):
        session_id = await ledger.start(client)

        async def write() -> Entry:
            return await ledger.record(client, session_id)

        other = sqlite3.connect(path, isolation_level=None)
        try:
            # A little while is waited out.
            other.execute("BEGIN IMMEDIATE")
            soon = asyncio.gather(*(write() for _ in range(WRITERS)))
            await asyncio.sleep(0.5)
            assert not soon.done()
            other.execute("ROLLBACK")
            assert {entry.outcome for entry in await soon} == {Outcome.ACKNOWLEDGED}

            # For too long it is an error; who reads does not notice, and who came later is served.
            other.execute("BEGIN IMMEDIATE")
            late = [asyncio.create_task(write()) for _ in range(WRITERS)]
            await asyncio.sleep(0.1)
            await ledger.verify(client)
            assert await health(client) == HealthCheckResponse.SERVING
            refusals, others = await asyncio.wait(late, return_when=asyncio.FIRST_COMPLETED)
            assert {task.result().reason for task in refusals} == {"DATABASE_UNAVAILABLE"}
            other.execute("ROLLBACK")
            assert {entry.outcome for entry in await asyncio.gather(*others)} == {
                Outcome.ACKNOWLEDGED
            }
        finally:
            other.close()
        await ledger.verify(client)
        await ledger.repeat(client, ledger.entries)
        await ledger.verify(client)
        assert (await get_session(client, session_id)).execution_count == 2 * WRITERS


async def test_a_fault_that_nobody_foresaw_is_internal(database_url: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    async with (
        service_process(database_url, log) as service,
        connected(service.address) as client,
    ):
        session_id = await running_session(client)
        saved = await save_insight(client, session_id)
        async with database_connection(database_url) as connection:
            await connection.execute(sa.text("ALTER TABLE insights RENAME TO lost"))
        request = session_service_pb2.ListInsightsRequest(session_id=session_id)
        calls: list[Awaitable[object]] = [
            collect(client.sessions.ListInsights(request)),
            # In one transaction with records, which do not suffer from it.
            *(save_insight(client, session_id, key=f"tcp/{port}") for port in range(10)),
        ]
        records = asyncio.gather(*(record(client, session_id) for _ in range(10)))
        answers = await asyncio.gather(
            *(refused(call, grpc.StatusCode.INTERNAL, "INTERNAL_ERROR") for call in calls)
        )
        await records
        assert {answer.message for answer in answers} == {"internal error"}
        text = log.read_text()
        assert "Traceback" in text
        assert "insights" in text
        async with database_connection(database_url) as connection:
            await connection.execute(sa.text("ALTER TABLE lost RENAME TO insights"))
        assert await save_insight(client, session_id) == saved
        assert len(await list_executions(client, session_id)) == 10
        assert (await get_session(client, session_id)).insight_count == 1


@pytest.mark.parametrize("terminal", [False, True], ids=["log", "terminal"])
async def test_no_content_is_in_the_log_of_a_fault(
    database_url: str, tmp_path: Path, terminal: bool
) -> None:
    log = tmp_path / "log"
    said = b""
    master, slave = os.openpty()

    def read() -> None:
        nonlocal said
        said += os.read(master, 100_000)

    asyncio.get_running_loop().add_reader(master, read)
    async with (
        service_process(database_url, Path(os.ttyname(slave)) if terminal else log) as service,
        connected(service.address) as client,
    ):
        session_id = await running_session(client)
        async with database_connection(database_url) as connection:
            await connection.execute(sa.text("ALTER TABLE insights RENAME TO lost"))
        insight = save_insight(client, session_id, value="s3cret", evidence="s3cret")
        await refused(insight, grpc.StatusCode.INTERNAL, "INTERNAL_ERROR")
    await asyncio.sleep(0.1)
    asyncio.get_running_loop().remove_reader(master)
    os.close(master)
    os.close(slave)
    text = said.decode() if terminal else log.read_text()
    assert "Traceback" in text
    assert "insights" in text
    assert "s3cret" not in text


async def test_no_row_is_in_the_log_of_a_fault(postgres_url: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    async with (
        service_process(postgres_url, log) as service,
        connected(service.address) as client,
    ):
        session_id = await running_session(client)
        async with database_connection(postgres_url) as connection:
            for table, column in (("insights", "value"), ("executions", "command")):
                unforeseen = f"ADD CONSTRAINT unforeseen_{table} CHECK ({column} <> 's3cret')"
                await connection.execute(sa.text(f"ALTER TABLE {table} {unforeseen}"))
        for call in (
            save_insight(client, session_id, value="s3cret"),
            record(client, session_id, command="s3cret"),
        ):
            await refused(call, grpc.StatusCode.INTERNAL, "INTERNAL_ERROR")
    text = log.read_text()
    assert "unforeseen_insights" in text
    assert "unforeseen_executions" in text
    assert "s3cret" not in text


async def test_health_asks_the_database(database_url: str) -> None:
    async with serving(database_url) as client:
        assert await health(client) == HealthCheckResponse.SERVING
        async with database_connection(database_url) as connection:
            await connection.execute(sa.text("ALTER TABLE sessions RENAME TO lost"))
        assert await health(client) == HealthCheckResponse.NOT_SERVING
        async with database_connection(database_url) as connection:
            await connection.execute(sa.text("ALTER TABLE lost RENAME TO sessions"))
        assert await health(client) == HealthCheckResponse.SERVING


async def test_a_log_that_cannot_be_written_fails_no_call(database_url: str) -> None:
    async with (
        service_process(database_url, Path("/dev/full")) as service,
        connected(service.address) as client,
    ):
        session_id = await running_session(client)
        await asyncio.gather(*(record(client, session_id) for _ in range(100)))
        assert (await get_session(client, session_id)).execution_count == 100


async def test_too_many_writes_at_once_are_overload(database_url: str) -> None:
    async with serving(database_url, maximum_waiting_writes=4) as client:
        session_id = await running_session(client)
        requests = [
            record_request(session_id, command=f"command {number}", request_id=f"{number}")
            for number in range(200)
        ]
        async with writes_held_up(database_url):
            calls = [client.recording.RecordExecution(request) for request in requests]
            codes = [asyncio.create_task(call.code()) for call in calls]
            _, waiting = await asyncio.wait(codes, timeout=1)
            assert 4 <= len(waiting) < 50
            for call, code in zip(calls, codes, strict=True):
                if code not in waiting:
                    answer = await refused(call, grpc.StatusCode.UNAVAILABLE, "OVERLOADED")
                    assert answer.retry_delay_seconds is not None
                    assert answer.retry_delay_seconds < 5
            # Who reads does not notice.
            assert (await get_session(client, session_id)).execution_count == 0
        assert {await code for code in waiting} == {grpc.StatusCode.OK}
        assert (await get_session(client, session_id)).execution_count == len(waiting)

        # Patience is rewarded.
        made = [(await client.recording.RecordExecution(request)).execution for request in requests]
        listed = await list_executions(client, session_id)
        assert sorted(made, key=lambda one: one.sequence) == listed
        assert [one.sequence for one in listed] == list(range(1, 201))


async def test_too_much_to_write_at_once_is_overload(database_url: str) -> None:
    async with serving(database_url) as client:
        session_id = await running_session(client)
        begin = recording_service_pb2.BeginExecutionRequest(
            session_id=session_id, command="dump", capability="shell", start_time=at(0)
        )
        await client.recording.BeginExecution(begin)
        # 80 MiB are more than the 64 that may wait, and all of them the same chunk.
        request = recording_service_pb2.AppendOutputRequest(
            session_id=session_id,
            sequence=1,
            stream=execution_pb2.OUTPUT_STREAM_STDOUT,
            data=bytes(MIB),
        )
        async with writes_held_up(database_url):
            calls = [client.recording.AppendOutput(request) for _ in range(80)]
            codes = [asyncio.create_task(call.code()) for call in calls]
            _, waiting = await asyncio.wait(codes, timeout=1.5)
            assert 60 <= len(waiting) <= 65
            for call, code in zip(calls, codes, strict=True):
                if code not in waiting:
                    await refused(call, grpc.StatusCode.UNAVAILABLE, "OVERLOADED")
        assert {await code for code in waiting} == {grpc.StatusCode.OK}
        [execution] = await list_executions(client, session_id, max_output_bytes=0)
        assert execution.output.size_bytes == MIB
        # And there is room again.
        assert (await client.recording.AppendOutput(request)).size_bytes == MIB
