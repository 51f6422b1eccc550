"""Several servers on one PostgreSQL, each a process of its own."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from harness import Client, ServiceProcess, connected, service_process
from ledger import reason_of


@dataclass(frozen=True)
class Replica:
    """One of the servers, and a client of it alone."""

    service: ServiceProcess
    client: Client


@asynccontextmanager
async def replicas(
    database_url: str, folder: Path, *arguments: str, count: int = 3
) -> AsyncIterator[list[Replica]]:
    """So many servers, started at the same time; `arguments` go behind `serve`."""
    async with AsyncExitStack() as stack:

        async def start(number: int) -> Replica:
            log = folder / f"log-{number}"
            service = await stack.enter_async_context(
                service_process(database_url, log, *arguments)
            )
            return Replica(service, await stack.enter_async_context(connected(service.address)))

        async with asyncio.TaskGroup() as tasks:
            starting = [tasks.create_task(start(number)) for number in range(count)]
        yield [task.result() for task in starting]


async def answer_to(call: Awaitable[Any]) -> Any:
    """What a call is answered, or the reason of its refusal."""
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        return reason_of(error)


async def everywhere(clients: list[Client], call: Callable[[Client], Any]) -> list[Any]:
    """What each replica answers to the same request at the same time."""
    return await asyncio.gather(*(answer_to(call(client)) for client in clients))


async def until(holds: Callable[[], Awaitable[bool]] | Callable[[], bool], seconds: float) -> None:
    """Wait until something holds, and no longer than so many seconds."""
    async with asyncio.timeout(seconds):
        while True:
            answer = holds()
            if answer if isinstance(answer, bool) else await answer:
                return
            await asyncio.sleep(0.001)
