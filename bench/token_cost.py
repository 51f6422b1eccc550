"""What a bearer token costs: GetSession with one against GetSession without, turn by turn.

`python -m bench.token_cost` prints the median ratio of the throughputs, and each round's.
"""

import asyncio
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from time import monotonic
from typing import Any

import grpc

from bench import samples
from infrascout.sessions.v1 import session_service_pb2 as pb

CALLERS = 16
ROUNDS = 12
SECONDS = 1.0
PROGRAM = (sys.executable, "-m", "infrascout_sessions")
SERVICES = "/infrascout.sessions.v1."


async def measure(address: str, token: str) -> list[tuple[float, float]]:
    """Calls a second without and with the token, for each round."""
    async with grpc.aio.insecure_channel(address) as channel:
        register: Any = channel.unary_unary(f"{SERVICES}AgentService/RegisterAgent")
        start: Any = channel.unary_unary(f"{SERVICES}SessionService/StartSession")
        await register(samples.register_agent("token", 0).SerializeToString())
        reply = await start(samples.start_session("token", 0).SerializeToString())
        session = pb.StartSessionResponse.FromString(reply).session
        data = pb.GetSessionRequest(session_id=session.session_id).SerializeToString()
        get: Any = channel.unary_unary(f"{SERVICES}SessionService/GetSession")

        async def throughput(metadata: Any) -> float:
            done = 0
            end = monotonic() + SECONDS

            async def call() -> None:
                nonlocal done
                while monotonic() < end:
                    await get(data, metadata=metadata)
                    done += 1

            await asyncio.gather(*(call() for _ in range(CALLERS)))
            return done / SECONDS

        proof = (("authorization", f"Bearer {token}"),)
        await throughput(())
        return [(await throughput(()), await throughput(proof)) for _ in range(ROUNDS)]


def main() -> None:
    """Start a server on a temporary database, measure, and print."""
    with tempfile.TemporaryDirectory() as folder:
        database = ("--database-url", f"sqlite+aiosqlite:///{folder}/sessions.db")
        with (Path(folder) / "log").open("wb") as log:
            server = subprocess.Popen(
                (*PROGRAM, "serve", "--listen", "127.0.0.1:0", *database),
                stdout=subprocess.PIPE,
                stderr=log,
            )
        try:
            assert server.stdout is not None
            serves = re.search(r"serves on (\S+)", server.stdout.readline().decode())
            assert serves is not None
            create = (*PROGRAM, "token", "create", "bench", "--service", "--role", "viewer")
            token = subprocess.run((*create, *database), stdout=subprocess.PIPE, check=True)
            rounds = asyncio.run(measure(serves.group(1), token.stdout.decode().strip()))
        finally:
            server.terminate()
            server.wait()
    ratios = [proved / plain for plain, proved in rounds]
    print(f"with a token: {median(ratios):.0%} of the throughput without")
    print("each round:", *(f"{ratio:.0%}" for ratio in ratios))


if __name__ == "__main__":
    main()
