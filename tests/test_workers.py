"""`serve --workers`: several processes on one port, which live and end together."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Iterable
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from urllib.request import urlopen

import grpc
import pytest

from commands import run as run_command
from commands import start
from harness import (
    CONSOLE_SCRIPT,
    Client,
    ServiceProcess,
    connected,
    failed,
    migrations_held_up,
    record,
    register_agent,
    running_session,
    service_process,
    writes_held_up,
)
from infrascout.sessions.v1 import agent_service_pb2
from infrascout_sessions.client import SessionsClient
from ledger import Ledger
from replicas import until

needs_proc = pytest.mark.skipif(
    not Path("/proc/self/task").exists(), reason="finds the workers in /proc, which is Linux's"
)

SERVE_TWO = ("--listen", "127.0.0.1:0", "--workers", "2", "--database-url")

OWN_GROUP = (
    *(sys.executable, "-c", "import os, sys; os.setsid(); os.execv(sys.argv[1], sys.argv[1:])"),
    str(CONSOLE_SCRIPT),
)
"""The program in a process group of its own, which a test can signal."""


def workers_of(service: ServiceProcess) -> set[int]:
    """The ids of its worker processes."""
    return children_of(service.process.pid)


def children_of(pid: int) -> set[int]:
    """The ids of the processes that it has started."""
    return {int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}


def two_free_ports() -> int:
    """A port that is free, as is the next one."""
    while True:
        with socket.create_server(("127.0.0.1", 0)) as first, suppress(OSError):
            port = int(first.getsockname()[1])
            with socket.create_server(("127.0.0.1", port + 1)):
                return port


def alive(pids: Iterable[int]) -> bool:
    """Whether any of them runs."""
    return any(Path(f"/proc/{pid}/stat").exists() for pid in pids)


async def some_connection_is_answered(address: str) -> bool:
    """Whether a call on one of many new connections is answered soon."""

    async def answered(client: Client) -> bool:
        try:
            await client.agents.ListAgents(agent_service_pb2.ListAgentsRequest(), timeout=3)
        except grpc.aio.AioRpcError:
            return False
        return True

    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connected(address)) for _ in range(40)]
        for done in asyncio.as_completed([answered(client) for client in clients]):
            if await done:
                return True
    return False


async def answers_alone(service: ServiceProcess, worker: int) -> bool:
    """Whether a worker answers new connections while all others stand still."""
    others = workers_of(service) - {worker}
    for other in others:
        os.kill(other, signal.SIGSTOP)
    try:
        return await some_connection_is_answered(service.address)
    finally:
        for other in others:
            os.kill(other, signal.SIGCONT)


@needs_proc
async def test_all_workers_answer_and_one_that_dies_is_replaced(
    postgres_url: str, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    async with (
        service_process(postgres_url, log, "--workers", "3") as service,
        connected(service.address) as client,
    ):
        workers = workers_of(service)
        assert len(workers) == 3
        for worker in workers:
            assert await answers_alone(service, worker)

        victim = workers.pop()
        os.kill(victim, signal.SIGKILL)
        # Meanwhile the others answer whoever repeats what is UNAVAILABLE.
        retrying = SessionsClient.of(client.channel)
        await retrying.list_agents(agent_service_pb2.ListAgentsRequest())
        await until(lambda: len(workers_of(service) - {victim}) == 3, 10)
        [new] = workers_of(service) - workers - {victim}
        # It serves once it has started.
        await until(lambda: log.read_text().count('"event":"serving"') == 4, 20)
        assert await answers_alone(service, new)
        assert "worker ended, starting another" in log.read_text()


@needs_proc
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=lambda how: how.name)
async def test_the_workers_end_with_the_one_that_started_them(
    postgres_url: str, tmp_path: Path, how: signal.Signals
) -> None:
    """Killed itself, it can tell them nothing: they see it, and drain all the same."""
    ledger = Ledger()
    log = tmp_path / "log"
    async with (
        service_process(postgres_url, log, "--workers", "3", "--shutdown-grace", "5") as service,
        AsyncExitStack() as stack,
    ):
        workers = workers_of(service)
        address = service.address
        clients = [await stack.enter_async_context(connected(address)) for _ in range(12)]

        async def write(client: Client) -> None:
            session_id = await ledger.start(client)
            while not (await ledger.record(client, session_id)).reason:
                pass

        async with asyncio.TaskGroup() as tasks:
            for client in clients:
                tasks.create_task(write(client))
            await ledger.grows_by(300)
            service.process.send_signal(how)
            async with asyncio.timeout(10):
                code = await service.process.wait()
        assert code == (0 if how is signal.SIGTERM else -signal.SIGKILL)
        await until(lambda: not alive(workers), 10)
        # Each was told: none of the calls under way was cut off.
        assert ledger.outcomes().keys() <= {"ACKNOWLEDGED", "SHUTTING_DOWN", "UNAVAILABLE"}
        assert log.read_text().count('"event":"stopped"') == 3
    async with (
        service_process(postgres_url, log) as service,
        connected(service.address) as client,
    ):
        await ledger.verify(client)


@needs_proc
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT], ids=lambda how: how.name)
async def test_calls_under_way_end_when_the_whole_group_is_signalled(
    postgres_url: str, tmp_path: Path, how: signal.Signals
) -> None:
    """As Ctrl+C does it, and systemd: each worker gets the signal, and is told besides."""
    log = tmp_path / "log"
    async with (
        service_process(postgres_url, log, "--workers", "2", command=OWN_GROUP) as service,
        AsyncExitStack() as stack,
    ):
        clients = [await stack.enter_async_context(connected(service.address)) for _ in range(12)]
        session_id = await running_session(clients[0])
        async with writes_held_up(postgres_url):
            writes = [asyncio.create_task(record(client, session_id)) for client in clients]
            await asyncio.sleep(0.7)
            os.killpg(service.process.pid, how)
            await asyncio.sleep(1.5)
            assert not any(write.done() for write in writes)
        made = await asyncio.gather(*writes)
        assert sorted(one.sequence for one in made) == list(range(1, 13))
        async with asyncio.timeout(5):
            assert await service.process.wait() == 0
    assert log.read_text().count('"event":"stopped"') == 2


@needs_proc
async def test_a_second_signal_does_not_wait(postgres_url: str, tmp_path: Path) -> None:
    async with (
        service_process(
            *(postgres_url, tmp_path / "log", "--workers", "2", "--shutdown-grace", "60")
        ) as service,
        connected(service.address) as client,
    ):
        workers = workers_of(service)
        session_id = await running_session(client)
        async with writes_held_up(postgres_url):
            write = asyncio.create_task(record(client, session_id))
            await asyncio.sleep(0.5)
            service.process.terminate()
            await asyncio.sleep(1)
            assert service.process.returncode is None
            service.process.terminate()
            async with asyncio.timeout(5):
                await service.process.wait()
            assert not alive(workers)
            assert (await failed(write)).code() is grpc.StatusCode.UNAVAILABLE


@needs_proc
async def test_a_worker_killed_before_all_serve_is_a_failure(
    postgres_url: str,
) -> None:
    async with migrations_held_up(postgres_url):
        process = await start("serve", *SERVE_TWO, postgres_url)
        await until(lambda: len(children_of(process.pid)) == 2, 10)
        os.kill(children_of(process.pid).pop(), signal.SIGKILL)
    async with asyncio.timeout(20):
        said, _ = await process.communicate()
    assert process.returncode == 1
    [line] = [line for line in said.decode().splitlines() if "worker ended" in line]
    assert '"how":"signal 9"' in line


@needs_proc
@pytest.mark.parametrize("again", [False, True], ids=["grace", "second-signal"])
async def test_a_worker_that_does_not_stop_is_killed(
    postgres_url: str, tmp_path: Path, again: bool
) -> None:
    log = tmp_path / "log"
    grace = "60" if again else "0.5"
    async with service_process(
        postgres_url, log, "--workers", "2", "--shutdown-grace", grace
    ) as service:
        frozen = workers_of(service).pop()
        os.kill(frozen, signal.SIGSTOP)
        service.process.terminate()
        await asyncio.sleep(2)
        assert service.process.returncode is None
        if again:
            service.process.terminate()
        async with asyncio.timeout(1 if again else 6):
            assert await service.process.wait() == 1
        assert not alive([frozen])
    assert log.read_text().count("worker did not stop, killing it") == 1


@pytest.mark.parametrize("how", ["option", "variable"])
async def test_each_worker_serves_its_metrics_on_a_port_of_its_own(
    postgres_url: str, tmp_path: Path, how: str
) -> None:
    first = two_free_ports()
    address = f"127.0.0.1:{first}"
    async with service_process(
        *(postgres_url, tmp_path / "log", "--workers", "2"),
        *(("--metrics-listen", address) if how == "option" else ()),
        environment={"INFRASCOUT_METRICS_LISTEN": address} if how == "variable" else None,
    ) as service:
        async with connected(service.address) as client:
            await register_agent(client)
        counted = []
        for port in (first, first + 1):
            with await asyncio.to_thread(urlopen, f"http://127.0.0.1:{port}/metrics") as page:
                counted.append("RegisterAgent" in page.read().decode())
    assert sorted(counted) == [False, True]


async def test_workers_that_cannot_start_end_all_with_a_reason(
    sqlite_url: str, postgres_url: str, tmp_path: Path
) -> None:
    serve = ("serve", *SERVE_TWO)
    code, said = await run_command(*serve, sqlite_url)
    assert (code, said) == (
        1,
        "infrascout-sessions: --workers needs PostgreSQL: one process at a time uses a file\n",
    )
    code, said = await run_command(*serve, f"postgresql+asyncpg://postgres@/x?host={tmp_path}")
    assert code == 1
    assert "cannot be used" in said
    assert "Traceback" not in said
    async with service_process(postgres_url, tmp_path / "log", "--workers", "2") as service:
        # Nobody shares the port by accident.
        code, said = await run_command(
            *("serve", "--listen", service.address, "--workers", "2"),
            *("--database-url", postgres_url),
        )
        assert code == 1
        assert said.startswith(f"infrascout-sessions: cannot listen on {service.address}")
        async with connected(service.address) as client:
            await register_agent(client)
