"""What a proof costs."""

import asyncio
from pathlib import Path
from statistics import median
from time import monotonic
from typing import Any

from callers import SERVICE, bearer, make_token
from harness import connected, running_session, service_process
from infrascout.sessions.v1 import session_service_pb2 as pb
from infrascout_sessions.models import Role

CALLERS = 16


async def test_with_a_token_get_session_keeps_nine_tenths_of_its_throughput(
    database_url: str, tmp_path: Path
) -> None:
    token = await make_token(database_url, "caller", SERVICE, Role.VIEWER)
    async with (
        service_process(database_url, tmp_path / "log") as server,
        connected(server.address) as client,
    ):
        data = pb.GetSessionRequest(session_id=await running_session(client)).SerializeToString()
        get: Any = client.channel.unary_unary("/infrascout.sessions.v1.SessionService/GetSession")

        async def throughput(metadata: Any) -> float:
            done = 0
            end = monotonic() + 0.4

            async def call() -> None:
                nonlocal done
                while monotonic() < end:
                    await get(data, metadata=metadata)
                    done += 1

            await asyncio.gather(*(call() for _ in range(CALLERS)))
            return done / 0.4

        await throughput(())
        # Turn by turn, so that whatever else the machine does falls on both.
        rounds = [(await throughput(()), await throughput(bearer(token))) for _ in range(12)]
    assert median(proved / plain for plain, proved in rounds) >= 0.9, rounds
