"""PostgreSQL goes and comes back, has no connection left, or would lose what it acknowledges."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, suppress
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

import asyncpg
import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from callers import SERVICE, bearer, make_token
from commands import run as run_command
from harness import (
    Client,
    failed,
    get_session,
    list_executions,
    record,
    record_request,
    running_session,
    save_insight,
    service_process,
    serving,
    submit,
    writes_held_up,
)
from infrascout.sessions.v1 import agent_service_pb2 as agents_pb
from infrascout.sessions.v1 import recording_service_pb2 as recording
from infrascout.sessions.v1 import session_service_pb2 as sessions
from infrascout_sessions.client import SessionsClient
from infrascout_sessions.client.errors import call_error
from infrascout_sessions.models import Role
from ledger import Ledger
from own_postgres import MAXIMUM_CONNECTIONS, OwnPostgres, own_postgres
from replicas import answer_to, replicas, until
from streams import STDOUT, begin

SERVING, NOT_SERVING = (
    health_pb2.HealthCheckResponse.SERVING,
    health_pb2.HealthCheckResponse.NOT_SERVING,
)


@pytest.fixture(scope="module")
def own() -> Iterator[OwnPostgres]:
    """A PostgreSQL that nobody else uses."""
    with own_postgres() as server:
        yield server


async def _health(client: Client) -> Any:
    stub: Any = health_pb2_grpc.HealthStub(client.channel)
    return (await stub.Check(health_pb2.HealthCheckRequest(), timeout=5)).status


async def _health_becomes(client: Client, status: Any, seconds: float) -> None:
    async def has_become() -> bool:
        await asyncio.sleep(0.1)
        return bool(await _health(client) == status)

    await until(has_become, seconds)


async def _watch(client: Client, seen: list[Any]) -> None:
    stub: Any = health_pb2_grpc.HealthStub(client.channel)
    async for response in stub.Watch(health_pb2.HealthCheckRequest()):
        seen.append(response.status)  # noqa: PERF401 - as they come


def _calls(client: Client, session_id: str) -> list[Callable[[float], Any]]:
    """One call of each kind."""
    get = sessions.GetSessionRequest(session_id=session_id)
    start = sessions.StartSessionRequest(agent_id="probed", playbook="p")
    submit = sessions.SubmitSessionRequest(session_id=session_id, summary="s")
    record = record_request(session_id)
    return [
        lambda seconds: client.sessions.GetSession(get, timeout=seconds),
        lambda seconds: client.sessions.ListSessions(
            sessions.ListSessionsRequest(), timeout=seconds
        ),
        lambda seconds: client.sessions.StartSession(start, timeout=seconds),
        lambda seconds: client.sessions.SubmitSession(submit, timeout=seconds),
        lambda seconds: client.recording.RecordExecution(record, timeout=seconds),
    ]


async def _unavailable(call: Any) -> None:
    """Await a call that must be refused, in a way that a client knows to repeat."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    error = call_error(caught.value)
    assert error.code is grpc.StatusCode.UNAVAILABLE, error
    assert error.reason in {"DATABASE_UNAVAILABLE", "OVERLOADED"}
    assert (error.retry_after_seconds or 0) > 0


@pytest.mark.parametrize(("away", "back"), [("stop", "start"), ("freeze", "thaw")])
async def test_all_recovers_by_itself_when_the_database_returns(
    own: OwnPostgres, tmp_path: Path, away: str, back: str
) -> None:
    url = await own.new_database()
    ledger = Ledger()
    done = asyncio.Event()
    longest = 0.0
    async with replicas(url, tmp_path, count=2) as running:
        clients = [replica.client for replica in running]
        probed = await running_session(clients[0], "probed")
        session_ids = [await ledger.start(client) for client in clients * 2]
        statuses: list[list[Any]] = [[] for _ in clients]

        async def write(number: int) -> None:
            """Goes on, whatever it is answered."""
            nonlocal longest
            turn = number
            while not done.is_set():
                turn += 1
                client = clients[turn % 2]
                session_id = session_ids[turn % 4]
                began = monotonic()
                if turn % 5 == 0:
                    entry = await ledger.register(client)
                elif turn % 5 == 1:
                    entry = await ledger.save(client, session_id)
                else:
                    entry = await ledger.record(client, session_id)
                longest = max(longest, monotonic() - began)
                await asyncio.sleep(0.5 if entry.reason else 0.05)

        async def follow(client: Client) -> list[int]:
            """One that resumes, as the client of this project does."""
            following = SessionsClient.of(client.channel, deadline_seconds=40).list_executions(
                sessions.ListExecutionsRequest(session_id=session_ids[0], follow=True)
            )
            return [one.sequence async for one in following]

        async def insist(client: Client, number: int) -> int:
            """One that repeats what is UNAVAILABLE: it notices nothing but time."""
            insistent = SessionsClient.of(client.channel, deadline_seconds=40)
            made = 0
            while not done.is_set():
                await insistent.record_execution(
                    record_request(probed, command=f"insist {number} {made}")
                )
                made += 1
            return made

        async with asyncio.TaskGroup() as tasks:
            watching = [
                tasks.create_task(_watch(client, seen))
                for client, seen in zip(clients, statuses, strict=True)
            ]
            followers = [tasks.create_task(follow(client)) for client in clients]
            insistent = [
                tasks.create_task(insist(client, number)) for number, client in enumerate(clients)
            ]
            writers = [tasks.create_task(write(number)) for number in range(24)]
            await ledger.grows_by(300)

            await asyncio.to_thread(own.do, away)
            gone = monotonic()
            await asyncio.gather(*(_health_becomes(each, NOT_SERVING, 5) for each in clients))
            while monotonic() - gone < 10:
                calls = [each for client in clients for each in _calls(client, probed)]
                await asyncio.gather(*(_unavailable(call(8)) for call in calls))
                await asyncio.sleep(0.2)
            await asyncio.to_thread(own.do, back)
            await asyncio.gather(*(_health_becomes(each, SERVING, 10) for each in clients))
            await ledger.grows_by(300)

            done.set()
            await asyncio.gather(*writers)
            made = [await each for each in insistent]
            await submit(clients[1], session_ids[0])
            for follower in followers:
                sequences = await follower
                assert sequences == list(range(1, len(sequences) + 1))
            for seen, task in zip(statuses, watching, strict=True):
                await until(partial([SERVING, NOT_SERVING, SERVING].__eq__, seen), 5)
                task.cancel()
        assert longest < 8
        assert ledger.outcomes().keys() <= {"ACKNOWLEDGED", "DATABASE_UNAVAILABLE", "OVERLOADED"}
        assert len(ledger.outcomes()) > 1

        commands = [one.command for one in await list_executions(clients[0], probed)]
        assert sorted(commands) == sorted(
            f"insist {number} {turn}" for number, count in enumerate(made) for turn in range(count)
        )
        entries = list(ledger.entries)
        await ledger.verify(clients[0])
        await ledger.repeat(clients[1], entries)
        await ledger.verify(clients[0])


async def test_nobody_is_blamed_for_a_proof_that_could_not_be_looked_at(own: OwnPostgres) -> None:
    url = await own.new_database()
    async with serving(url) as server:
        token = await make_token(url, "assessor", SERVICE, Role.VIEWER)

        async def ask(seconds: float) -> object:
            return await server.agents.ListAgents(
                agents_pb.ListAgentsRequest(), metadata=bearer(token), timeout=seconds
            )

        await asyncio.to_thread(own.do, "stop")
        try:
            for _ in range(30):
                await _unavailable(ask(8))
        finally:
            await asyncio.to_thread(own.do, "start")
        await asyncio.to_thread(own.do, "freeze")
        try:
            # Nor for one that it did not wait for.
            for _ in range(30):
                error = await failed(ask(0.1))
                assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        finally:
            await asyncio.to_thread(own.do, "thaw")
        insistent = SessionsClient.of(server.channel, token=token, deadline_seconds=20)
        await insistent.list_agents(agents_pb.ListAgentsRequest())


async def _connections(url: str) -> AsyncIterator[Any]:
    """As many as there are left."""
    while True:
        try:
            yield await asyncpg.connect(url.replace("+asyncpg", ""))
        except asyncpg.TooManyConnectionsError:
            return


async def test_without_a_connection_left_calls_are_refused_in_time(
    own: OwnPostgres, tmp_path: Path
) -> None:
    url = await own.new_database()
    async with replicas(url, tmp_path, count=1) as [replica], AsyncExitStack() as others:
        client = replica.client
        session_id = await running_session(client, "probed")
        # Others take every connection that is left.
        taken = [connection async for connection in _connections(url)]
        assert len(taken) > MAXIMUM_CONNECTIONS / 2
        for connection in taken:
            others.push_async_callback(connection.close)

        async def ask(number: int) -> str:
            try:
                await _calls(client, session_id)[number % 2](8)
            except grpc.aio.AioRpcError as refusal:
                error = call_error(refusal)
                assert error.code is grpc.StatusCode.UNAVAILABLE, error
                assert (error.retry_after_seconds or 0) > 0
                return error.reason
            return "OK"

        answers = await asyncio.gather(*map(ask, range(200)))
        assert set(answers) <= {"OK", "DATABASE_UNAVAILABLE", "OVERLOADED"}
        assert "OK" in answers

        code, said = await run_command("serve", "--listen", "127.0.0.1:0", "--database-url", url)
        assert code == 1
        assert "Traceback" not in said
        assert said.startswith("infrascout-sessions: ")
        assert "too many clients" in said

        await others.aclose()
        assert set(await asyncio.gather(*map(ask, range(200)))) == {"OK"}
        assert (await get_session(client, session_id)).execution_count == 0


@pytest.mark.parametrize(
    ("change", "restore", "names"),
    [
        ("ALTER SYSTEM SET fsync = off", "ALTER SYSTEM RESET fsync", "fsync off"),
        (
            "ALTER ROLE postgres SET synchronous_commit = off",
            "ALTER ROLE postgres RESET synchronous_commit",
            "synchronous_commit off",
        ),
    ],
)
async def test_a_database_that_may_lose_what_it_acknowledges_is_refused(
    own: OwnPostgres, tmp_path: Path, change: str, restore: str, names: str
) -> None:
    url = await own.new_database()
    await own.run(change, "SELECT pg_reload_conf()")
    try:
        await asyncio.sleep(0.5)
        code, said = await run_command("serve", "--listen", "127.0.0.1:0", "--database-url", url)
        assert (code, said.count("\n")) == (1, 1)
        assert said.startswith(f"infrascout-sessions: PostgreSQL runs with {names}, and may lose")
        assert "--allow-unsafe-durability" in said
        async with service_process(url, tmp_path / "log", "--allow-unsafe-durability"):
            pass
    finally:
        await own.run(restore, "SELECT pg_reload_conf()")


async def test_writes_whose_callers_have_gone_still_count(own: OwnPostgres, tmp_path: Path) -> None:
    """They hold what they write until PostgreSQL has answered, or has not in time."""
    url = await own.new_database()
    arguments = ("--maximum-waiting-writes", "20")
    async with replicas(url, tmp_path, *arguments, count=1) as [replica]:
        client = replica.client
        session_id = await running_session(client)
        sequence = (await begin(client, session_id)).sequence
        request = recording.AppendOutputRequest(
            session_id=session_id, sequence=sequence, stream=STDOUT, data=b"x"
        )

        async def wave() -> list[Any]:
            calls = (client.recording.AppendOutput(request, timeout=0.3) for _ in range(15))
            return await asyncio.gather(*map(answer_to, calls))

        async with writes_held_up(url):
            assert await wave() == ["DEADLINE_EXCEEDED"] * 15
            assert (await wave()).count("OVERLOADED") == 10
            assert await wave() == ["OVERLOADED"] * 15

        async def appended() -> bool:
            return not isinstance(await answer_to(client.recording.AppendOutput(request)), str)

        await until(appended, 5)


class _Detour:
    """A way to PostgreSQL on which connections can lose each other without a word."""

    def __init__(self, own: OwnPostgres) -> None:
        self._socket = f"{own.folder}/.s.PGSQL.5432"
        self._open = [asyncio.Event()]
        self._open[0].set()

    def lose(self) -> None:
        """Let nothing through any more on the connections that there are."""
        self._open[-1].clear()
        self._open.append(asyncio.Event())
        self._open[-1].set()

    def end(self) -> None:
        """Let all through, so that all ends."""
        for event in self._open:
            event.set()

    async def connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Take a connection of a client."""
        is_open = self._open[-1]
        to_reader, to_writer = await asyncio.open_unix_connection(self._socket)

        async def pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
            with suppress(OSError):
                while data := await source.read(65_536):
                    await is_open.wait()
                    target.write(data)
                await is_open.wait()
                target.close()

        await asyncio.gather(pump(reader, to_writer), pump(to_reader, writer))


async def test_who_finds_a_connection_dead_finds_it_out_for_all(
    own: OwnPostgres, tmp_path: Path
) -> None:
    """After a failover by DNS, say, where new connections work and old ones are never closed."""
    url = await own.new_database()
    detour = _Detour(own)
    server = await asyncio.start_server(detour.connect, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    through = url.partition("?")[0].replace("@/", f"@127.0.0.1:{port}/")
    async with replicas(through, tmp_path, "--database-timeout", "1", count=1) as [replica]:
        client = replica.client
        session_ids = [await running_session(client, f"ag_{n}") for n in range(10)]
        # As many at once as there are connections.
        async with writes_held_up(url):
            saving = asyncio.gather(*(save_insight(client, each) for each in session_ids))
            await asyncio.sleep(0.5)
        await saving

        detour.lose()
        lost = monotonic()

        async def recorded() -> bool:
            answer = await answer_to(record(client, session_ids[0]))
            assert answer == "DATABASE_UNAVAILABLE" or not isinstance(answer, str)
            return not isinstance(answer, str)

        await until(recorded, 30)
        # One time-out of a statement, and what else was under way.
        assert monotonic() - lost < 6
        detour.end()
    server.close()


async def test_a_stop_while_the_database_does_not_answer_is_a_stop(
    own: OwnPostgres, tmp_path: Path
) -> None:
    url = await own.new_database()
    arguments = ("--database-timeout", "1")
    async with replicas(url, tmp_path, *arguments, count=1) as [replica]:
        await running_session(replica.client)
        await asyncio.to_thread(own.do, "freeze")
        try:
            replica.service.process.terminate()
            async with asyncio.timeout(20):
                assert await replica.service.process.wait() == 0
        finally:
            await asyncio.to_thread(own.do, "thaw")
        assert "Traceback" not in replica.service.log.read_text()
