"""A stop: calls under way end, streams are told, nothing is lost. And a second server."""

import asyncio
import signal
import socket
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from time import monotonic
from typing import Any

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from commands import start
from harness import (
    CONSOLE_SCRIPT,
    Client,
    ServiceProcess,
    clean_environment,
    connected,
    failed,
    get_session,
    list_executions,
    migrations_held_up,
    record,
    refused,
    running_session,
    service_process,
    writes_held_up,
)
from infrascout.sessions.v1 import session_service_pb2
from ledger import Ledger, Outcome

SIGNALS = pytest.mark.parametrize(
    "stop", [signal.SIGTERM, signal.SIGINT], ids=lambda stop: stop.name
)

MIB = 1024 * 1024


async def ended(service: ServiceProcess, within_seconds: float) -> int | None:
    """The exit code, once it has ended."""
    async with asyncio.timeout(within_seconds):
        await service.process.wait()
    return service.process.returncode


async def slowly(stream: Any, received: list[session_service_pb2.ListExecutionsResponse]) -> None:
    """Read a stream to its end, taking time for each message."""
    async for message in stream:
        received.append(message)
        await asyncio.sleep(0.05)


async def to_its_end(stream: Any) -> None:
    """Read what is left of a stream of which something has been read."""
    while await stream.read() is not grpc.aio.EOF:
        pass


MANY = 16
"""So many MiB are more than what a stream holds between its server and a client."""


FIXED_WINDOW = ("grpc.http2.bdp_probe", 0)
"""A client's option: otherwise it takes the more, unread, the slower the machine seems to be."""


async def record_many(client: Client, session_id: str) -> None:
    """A session with more than that."""
    output = {"text": "x" * MIB}
    await asyncio.gather(*(record(client, session_id, output=output) for _ in range(MANY)))


@SIGNALS
async def test_calls_under_way_end_and_no_further_one_is_taken(
    database_url: str, tmp_path: Path, stop: signal.Signals
) -> None:
    async with (
        service_process(database_url, tmp_path / "log") as service,
        connected(service.address) as client,
    ):
        session_id = await running_session(client)
        health: Any = HealthStub(client.channel)
        watch = health.Watch(HealthCheckRequest())
        assert (await watch.read()).status == HealthCheckResponse.SERVING
        async with writes_held_up(database_url):
            writes = [asyncio.create_task(record(client, session_id)) for _ in range(20)]
            await asyncio.sleep(0.7)
            service.process.send_signal(stop)
            assert (await watch.read()).status == HealthCheckResponse.NOT_SERVING
            await to_its_end(watch)
            late = await failed(get_session(client, session_id))
            assert late.code() is grpc.StatusCode.UNAVAILABLE
            # Long after the server has begun to stop.
            await asyncio.sleep(1.2)
            assert not any(write.done() for write in writes)
            assert service.process.returncode is None
        made = await asyncio.gather(*writes)
        assert sorted(one.sequence for one in made) == list(range(1, 21))
        assert await ended(service, within_seconds=5) == 0
        said = (tmp_path / "log").read_text()
        assert '"event":"stopped"' in said
        assert '"level":"info"' in said
        assert '"level":"error"' not in said
        assert "Traceback" not in said
    async with (
        service_process(database_url, tmp_path / "log") as service,
        connected(service.address) as client,
    ):
        assert len(await list_executions(client, session_id)) == 20


@SIGNALS
async def test_a_stream_that_is_read_slowly_is_told(
    database_url: str, tmp_path: Path, stop: signal.Signals
) -> None:
    received: list[session_service_pb2.ListExecutionsResponse] = []
    async with (
        service_process(database_url, tmp_path / "log") as service,
        connected(service.address) as client,
    ):
        session_id = await running_session(client)
        await record_many(client, session_id)
        request = session_service_pb2.ListExecutionsRequest(session_id=session_id)
        stream = client.sessions.ListExecutions(request)
        reading = asyncio.create_task(slowly(stream, received))
        await asyncio.sleep(0.2)
        service.process.send_signal(stop)
        told = await refused(reading, grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN")
        assert told.retry_delay_seconds
        assert await ended(service, within_seconds=5) == 0
    sequences = [one.sequence for response in received for one in response.executions]
    assert 1 <= len(sequences) < MANY
    assert sequences == list(range(1, len(sequences) + 1))
    async with (
        service_process(database_url, tmp_path / "log") as service,
        connected(service.address) as client,
    ):
        rest = await list_executions(client, session_id, after_sequence=sequences[-1])
        assert [*sequences, *(one.sequence for one in rest)] == list(range(1, MANY + 1))


async def stalled(client: Client, session_id: str) -> AsyncIterator[Any]:
    """A stream of which nobody reads more than the first message."""
    await record_many(client, session_id)
    request = session_service_pb2.ListExecutionsRequest(session_id=session_id)
    stream = client.sessions.ListExecutions(request)
    await stream.read()
    await asyncio.sleep(0.5)
    yield stream


async def test_a_stream_that_nobody_reads_holds_up_the_stop_no_longer_than_the_grace(
    database_url: str, tmp_path: Path
) -> None:
    async with (
        service_process(database_url, tmp_path / "log", "--shutdown-grace", "1") as service,
        connected(service.address, FIXED_WINDOW) as client,
    ):
        session_id = await running_session(client)
        async for stream in stalled(client, session_id):
            begun = monotonic()
            service.process.terminate()
            assert await ended(service, within_seconds=10) == 0
            # By default it is 10 seconds.
            assert monotonic() - begun < 5
            error = await failed(to_its_end(stream))
            assert error.code() is grpc.StatusCode.UNAVAILABLE


async def test_an_idle_server_does_not_take_the_grace(sqlite_url: str, tmp_path: Path) -> None:
    async with service_process(sqlite_url, tmp_path / "log", "--shutdown-grace", "3600") as service:
        service.process.terminate()
        assert await ended(service, within_seconds=5) == 0


async def test_a_second_signal_does_not_wait(database_url: str, tmp_path: Path) -> None:
    async with (
        service_process(database_url, tmp_path / "log", "--shutdown-grace", "60") as service,
        connected(service.address, FIXED_WINDOW) as client,
    ):
        session_id = await running_session(client)
        async for _stream in stalled(client, session_id):
            service.process.terminate()
            await asyncio.sleep(0.5)
            assert service.process.returncode is None
            service.process.terminate()
            assert await ended(service, within_seconds=5) == -signal.SIGTERM
    async with (
        service_process(database_url, tmp_path / "log") as service,
        connected(service.address) as client,
    ):
        assert len(await list_executions(client, session_id, max_output_bytes=0)) == MANY


async def test_a_stop_in_the_middle_of_a_load_loses_nothing(
    database_url: str, tmp_path: Path
) -> None:
    ledger = Ledger()
    async with (
        service_process(database_url, tmp_path / "log") as service,
        connected(service.address) as client,
    ):
        session_id = await ledger.start(client)

        async def write() -> None:
            while (await ledger.record(client, session_id)).outcome is Outcome.ACKNOWLEDGED:
                pass

        async with asyncio.TaskGroup() as tasks:
            for _ in range(32):
                tasks.create_task(write())
            await ledger.grows_by(200)
            service.process.terminate()
        assert await ended(service, within_seconds=5) == 0
        # None is CANCELLED, as gRPC would do by itself: no client retries that.
        assert ledger.outcomes().keys() <= {"ACKNOWLEDGED", "SHUTTING_DOWN", "UNAVAILABLE"}
    async with (
        service_process(database_url, tmp_path / "log") as service,
        connected(service.address) as client,
    ):
        await ledger.verify(client)
        await ledger.repeat(client, ledger.entries)
        await ledger.verify(client)


@SIGNALS
@pytest.mark.parametrize("workers", ["1", "2"])
async def test_a_server_that_waits_to_migrate_is_stopped_at_once(
    postgres_url: str, stop: signal.Signals, workers: str
) -> None:
    async with migrations_held_up(postgres_url):
        process = await start(
            *("serve", "--listen", "127.0.0.1:0", "--workers", workers),
            *("--database-url", postgres_url),
        )
        await asyncio.sleep(4)
        assert process.returncode is None
        process.send_signal(stop)
        try:
            async with asyncio.timeout(5):
                said, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
    assert process.returncode == (-stop if workers == "1" else 0)
    assert said == b""


async def test_a_signal_as_soon_as_it_says_that_it_serves_is_a_stop(
    sqlite_url: str, tmp_path: Path
) -> None:
    for _ in range(3):
        async with service_process(sqlite_url, tmp_path / "log") as service:
            service.process.terminate()
            assert await ended(service, within_seconds=5) == 0


# Beside a server that runs.


async def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return await asyncio.to_thread(
        subprocess.run,
        [str(CONSOLE_SCRIPT), *arguments],
        capture_output=True,
        text=True,
        env=clean_environment(),
        timeout=30,
    )


async def refused_beside(
    database_url: str, log: Path, *, listen: str | None, other_url: str
) -> str:
    """What a second server says that is refused, while a first one goes on; on its port if None."""
    async with (
        service_process(database_url, log) as service,
        connected(service.address) as client,
    ):
        session_id = await running_session(client)
        second = await run(
            "serve", "--listen", listen or service.address, "--database-url", other_url
        )
        assert second.returncode == 1
        assert second.stdout == ""
        assert "Traceback" not in second.stderr
        assert (await record(client, session_id)).sequence == 1
        return second.stderr.replace(service.address, "ADDRESS")


async def test_a_second_server_on_a_port_is_refused(database_url: str, tmp_path: Path) -> None:
    other_url = f"sqlite+aiosqlite:///{tmp_path}/other.db"
    said = await refused_beside(database_url, tmp_path / "log", listen=None, other_url=other_url)
    assert "infrascout-sessions: cannot listen on ADDRESS: another program does" in said


@pytest.mark.parametrize("path", ["{}/socket", "//{}/socket", "{}/a%20socket"])
async def test_a_second_server_on_a_socket_is_refused_unless_nobody_answers_there(
    database_url: str, tmp_path: Path, path: str
) -> None:
    address = f"unix:{path.format(tmp_path)}"
    other_url = f"sqlite+aiosqlite:///{tmp_path}/other.db"
    log = tmp_path / "log"
    async with (
        service_process(database_url, log, listen=address) as service,
        connected(address) as client,
    ):
        session_id = await running_session(client)
        second = await run("serve", "--listen", address, "--database-url", other_url)
        assert (second.returncode, second.stdout) == (1, "")
        assert f"infrascout-sessions: cannot listen on {address}: another" in second.stderr
        assert (await record(client, session_id)).sequence == 1
        await service.kill()
    async with (
        service_process(database_url, log, listen=address),
        connected(address) as client,
    ):
        assert (await record(client, session_id)).sequence == 2


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_a_port_of_which_one_address_is_taken_is_refused(
    postgres_url: str, workers: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"localhost:{other.getsockname()[1]}"
        ended = await run(
            *("serve", "--listen", address, "--workers", workers, "--database-url", postgres_url)
        )
    assert (ended.returncode, ended.stdout) == (1, "")
    assert f"infrascout-sessions: cannot listen on {address}: another" in ended.stderr


async def test_a_second_server_on_an_sqlite_file_is_refused(
    sqlite_url: str, tmp_path: Path
) -> None:
    said = await refused_beside(
        sqlite_url, tmp_path / "log", listen="127.0.0.1:0", other_url=sqlite_url
    )
    assert "infrascout-sessions: another server uses " in said


async def test_a_second_server_on_a_link_to_an_sqlite_file_is_refused(
    sqlite_url: str, tmp_path: Path
) -> None:
    link = tmp_path / "elsewhere" / "link.db"
    link.parent.mkdir()
    link.symlink_to(sqlite_url.removeprefix("sqlite+aiosqlite:///"))
    said = await refused_beside(
        sqlite_url,
        tmp_path / "log",
        listen="127.0.0.1:0",
        other_url=f"sqlite+aiosqlite:///{link}",
    )
    assert "infrascout-sessions: another server uses " in said


async def test_migrate_may_run_beside_a_server(database_url: str, tmp_path: Path) -> None:
    async with (
        service_process(database_url, tmp_path / "log") as service,
        connected(service.address) as client,
    ):
        session_id = await running_session(client)
        migration = asyncio.create_task(run("migrate", "--database-url", database_url))
        written = 0
        while not migration.done():
            await record(client, session_id)
            written += 1
        assert (await migration).returncode == 0, (await migration).stderr
        assert (await get_session(client, session_id)).execution_count == written > 1
