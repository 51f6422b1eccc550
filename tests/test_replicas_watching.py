"""Three replicas on one PostgreSQL: what one of them does, the others know and do not repeat."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from statistics import median
from time import monotonic

import grpc
import pytest
import sqlalchemy as sa

from callers import SERVICE, calling, make_token, revoke
from harness import (
    Client,
    collect,
    database_connection,
    get_session,
    record,
    refused,
    running_session,
    start_session,
    submit,
)
from infrascout.sessions.v1 import session_pb2
from infrascout.sessions.v1 import session_service_pb2 as sessions
from infrascout_sessions.models import Role
from replicas import answer_to, everywhere, replicas, until


@pytest.fixture
async def clients(postgres_url: str, tmp_path: Path) -> AsyncIterator[list[Client]]:
    """A client of each of three replicas."""
    async with replicas(postgres_url, tmp_path) as running:
        yield [replica.client for replica in running]


async def _follow(client: Client, session_id: str, arrivals: dict[str, float]) -> list[int]:
    """The sequences that a follower gets until the session ends; notes when commands arrive."""
    sequences = []
    request = sessions.ListExecutionsRequest(session_id=session_id, follow=True)
    async for response in client.sessions.ListExecutions(request):
        for one in response.executions:
            sequences.append(one.sequence)
            arrivals[one.command] = monotonic()
    return sequences


async def _lose_listeners(database_url: str, count: int) -> int:
    """Cut connections on which replicas tell each other; how many it were."""
    async with database_connection(database_url) as connection:
        cut = await connection.execute(
            sa.text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE application_name = 'infrascout-sessions listener'"
                " AND datname = current_database() ORDER BY random() LIMIT :count"
            ),
            {"count": count},
        )
        return sum(row[0] for row in cut)


async def test_followers_see_at_once_what_other_replicas_record(
    clients: list[Client], postgres_url: str
) -> None:
    """Also after the connections are lost on which replicas tell each other.

    Delays are from the acknowledgement by one replica to the arrival from another. Half of them
    must be below 100 ms, which no polling would do: the replicas' own looks twice a second where
    they cannot listen, and so would make half of them longer than 250 ms.
    """
    session_id = await running_session(clients[0])
    others = [await running_session(client, f"ag_{n}") for n, client in enumerate(clients, 10)]
    arrivals: list[dict[str, float]] = [{} for _ in clients]
    followers = [
        asyncio.create_task(_follow(client, session_id, arrivals[number]))
        for number, client in enumerate(clients)
    ]
    delays: list[float] = []
    done = asyncio.Event()

    async def load(number: int) -> None:
        while not done.is_set():
            await record(clients[number % 3], others[number % 3], output={"text": "x" * 500})
            await asyncio.sleep(0.05)

    async def send(command: str, number: int) -> None:
        await record(clients[number], session_id, command=command)
        acknowledged = monotonic()
        other = arrivals[(number + 1) % 3]
        await until(lambda: command in other, 20)
        delays.append(other[command] - acknowledged)

    async with asyncio.TaskGroup() as loads:
        for number in range(12):
            loads.create_task(load(number))
        for turn in range(60):
            await send(f"before {turn}", turn % 3)
            await asyncio.sleep(random.uniform(0, 0.05))
        assert median(delays) < 0.1, sorted(delays)
        assert len(delays) == 60

        for lost in (3, 1, 1, 1):
            assert await _lose_listeners(postgres_url, lost) == lost
            unheard = {f"lost {monotonic()} {turn}" for turn in range(9)}
            for turn, command in enumerate(sorted(unheard)):
                await record(clients[turn % 3], session_id, command=command)
            # They listen again after a second, and tell each other what they have not told.
            await until(lambda: all(unheard <= each.keys() for each in arrivals), 3)  # noqa: B023
            # All of them.
            await asyncio.sleep(0.5)
        delays.clear()
        for turn in range(30):
            await send(f"after {turn}", turn % 3)
        assert median(delays) < 0.1, sorted(delays)
        done.set()
    await submit(clients[0], session_id)
    async with asyncio.timeout(10):
        for follower in followers:
            assert await follower == list(range(1, 60 + 4 * 9 + 30 + 1))


async def test_an_idle_session_is_interrupted_once(postgres_url: str, tmp_path: Path) -> None:
    async with replicas(postgres_url, tmp_path, "--idle-timeout", "1") as running:
        clients = [replica.client for replica in running]
        ids = [await running_session(clients[n % 3], f"ag_{n}") for n in range(45)]
        request = sessions.ListSessionsRequest(status=session_pb2.SESSION_STATUS_RUNNING)

        async def all_are_interrupted() -> bool:
            return not (await clients[0].sessions.ListSessions(request)).sessions

        await until(all_are_interrupted, 1 + 5 + 5)
        for number, session_id in enumerate(ids):
            session = await get_session(clients[number % 3], session_id)
            assert session.status == session_pb2.SESSION_STATUS_INTERRUPTED
            assert len(session.transitions) == 2
            # Each agent is free, and only once.
            answers = await everywhere(clients, partial(start_session, agent_id=f"ag_{number}"))
            assert Counter(map(str, answers))["AGENT_BUSY"] == 2
        said = "".join(replica.service.log.read_text() for replica in running)
        for session_id in ids:
            assert said.count(f'"session_id":"{session_id}","reason":"idle for') == 1


async def test_a_revoked_token_is_refused_by_every_replica(
    clients: list[Client], postgres_url: str
) -> None:
    token = await make_token(postgres_url, "watcher", SERVICE, Role.VIEWER)
    session_id = await running_session(clients[0])
    request = sessions.ListExecutionsRequest(session_id=session_id, follow=True)
    no_proof = (grpc.StatusCode.UNAUTHENTICATED, "PROOF_MISSING_OR_INVALID")

    async def refuses(watcher: Client) -> bool:
        await asyncio.sleep(0.05)
        return isinstance(await answer_to(get_session(watcher, session_id)), str)

    async def watch(client: Client, revoked: asyncio.Event) -> None:
        async with calling(client.address, token) as watcher:
            # Nothing passes on this stream.
            quiet = asyncio.create_task(collect(watcher.sessions.ListExecutions(request)))
            await until(partial(refuses, watcher), 20)
            assert revoked.is_set()
            await refused(get_session(watcher, session_id), *no_proof)
            await refused(quiet, *no_proof)

    revoked = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        for client in clients:
            tasks.create_task(watch(client, revoked))
        await asyncio.sleep(2)
        revoked.set()
        await revoke(postgres_url, "watcher")
        began = monotonic()
    assert monotonic() - began < 5
