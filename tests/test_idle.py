"""Sessions in which nothing is written any more."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from time import monotonic

import grpc
import pytest

from harness import (
    Client,
    connected,
    get_session,
    record,
    refused,
    running_session,
    save_insight,
    service_process,
    serving,
    start_session,
    submit,
)
from infrascout.sessions.v1 import actor_pb2, session_pb2, session_service_pb2

SERVER = actor_pb2.Actor(subject="infrascout-sessions", kind=actor_pb2.ACTOR_KIND_SERVICE)


async def interrupted(client: Client, session_id: str) -> session_pb2.Session:
    """The session, once it is."""
    async with asyncio.timeout(10):
        while True:
            session = await get_session(client, session_id)
            if session.status == session_pb2.SESSION_STATUS_INTERRUPTED:
                return session
            await asyncio.sleep(0.05)


async def test_an_idle_session_is_interrupted_and_others_are_spared(
    database_url: str, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    async with (
        service_process(database_url, log, "--idle-timeout", "1") as service,
        connected(service.address) as client,
    ):
        idle, recorded, saved, submitted = [
            await running_session(client, f"ag_{number}") for number in range(4)
        ]
        await submit(client, submitted)
        begun = monotonic()

        async def keep_awake(session_id: str, write: Callable[..., Awaitable[object]]) -> int:
            last, writes = 0, 0
            while monotonic() < begun + 5:
                await asyncio.sleep(0.05)
                try:
                    await write(client, session_id)
                except grpc.aio.AioRpcError:
                    # Right, if this machine has stalled for so long.
                    session = await get_session(client, session_id)
                    assert session.end_time.ToMicroseconds() - last >= 1_000_000
                    break
                session = await get_session(client, session_id)
                before, last = last, session.last_activity_time.ToMicroseconds()
                assert last > before
                writes += 1
            return writes

        awake = asyncio.gather(
            keep_awake(recorded, record),
            # Saves nothing new, and yet is a write.
            keep_awake(saved, save_insight),
        )
        session = await interrupted(client, idle)
        assert 1 <= monotonic() - begun < 1 + 5
        assert session.status_reason.startswith("idle for ")
        assert session.transitions[-1] == session_pb2.Transition(
            status=session_pb2.SESSION_STATUS_INTERRUPTED,
            time=session.end_time,
            actor=SERVER,
            reason=session.status_reason,
        )
        waited = session.end_time.ToMicroseconds() - session.start_time.ToMicroseconds()
        assert waited >= 1_000_000
        assert session.last_activity_time == session.end_time
        # It is as good as any other that has ended: its agent is free.
        await refused(
            *(record(client, idle), grpc.StatusCode.FAILED_PRECONDITION, "SESSION_NOT_RUNNING"),
            session_id=idle,
            status="SESSION_STATUS_INTERRUPTED",
        )
        assert (await start_session(client, "ag_0")).status == session_pb2.SESSION_STATUS_RUNNING

        assert min(await awake) > 20
        session = await get_session(client, submitted)
        assert session.status == session_pb2.SESSION_STATUS_PENDING_REVIEW
    assert f'"session_id":"{idle}","reason":"idle for ' in log.read_text()


async def test_many_that_are_idle_are_all_interrupted(database_url: str) -> None:
    async with serving(database_url, idle_timeout_seconds=0.5) as client:
        session_ids = [await running_session(client, f"ag_{number}") for number in range(120)]
        for session_id in session_ids:
            await interrupted(client, session_id)
        request = session_service_pb2.ListSessionsRequest(status=session_pb2.SESSION_STATUS_RUNNING)
        assert not (await client.sessions.ListSessions(request)).sessions


@pytest.mark.parametrize(("timeout_seconds", "wait_seconds"), [(0, 0.5), (3600, 2.5)])
async def test_a_session_is_left_alone_for_as_long_as_it_may_be_idle(
    database_url: str, timeout_seconds: float, wait_seconds: float
) -> None:
    async with serving(database_url, idle_timeout_seconds=timeout_seconds) as client:
        session_id = await running_session(client)
        await asyncio.sleep(wait_seconds)
        session = await get_session(client, session_id)
        assert session.status == session_pb2.SESSION_STATUS_RUNNING


async def test_what_became_idle_while_no_server_ran_is_interrupted(database_url: str) -> None:
    async with serving(database_url, idle_timeout_seconds=0) as client:
        session_id = await running_session(client)
    await asyncio.sleep(0.3)
    async with serving(database_url, idle_timeout_seconds=0.3) as client:
        await interrupted(client, session_id)
