"""kill -9 in the middle of a load: nothing acknowledged is lost, and no retry doubles anything."""

import asyncio
from pathlib import Path

from harness import Client, connected, service_process
from ledger import Entry, Ledger, Outcome

_WRITERS = 32


async def _write(
    ledger: Ledger, client: Client, sessions: list[str], role: int, killed: asyncio.Event
) -> None:
    """One of many writers, until the server is gone."""
    turn = role
    while not killed.is_set():
        turn += 1
        session_id = sessions[turn % len(sessions)]
        if role % 4 == 0:
            session_id = await ledger.start(client)
            if session_id:
                await asyncio.gather(
                    ledger.record(client, session_id), ledger.save(client, session_id)
                )
                await ledger.submit(client, session_id)
        elif role % 4 == 1:
            await ledger.save(client, session_id)
        else:
            await ledger.record(client, session_id, 30_000 if turn % 10 == 0 else 100)


async def test_what_was_acknowledged_survives_kill_9(database_url: str, tmp_path: Path) -> None:
    ledger = Ledger()
    sessions: list[str] = []
    unchecked: list[Entry] = []
    for acknowledged in (150, 400, 250):
        async with (
            service_process(database_url, tmp_path / "log") as service,
            connected(service.address) as client,
        ):
            await ledger.verify(client)
            await ledger.repeat(client, unchecked)
            before = len(ledger.entries)
            sessions += [await ledger.start(client)]
            killed = asyncio.Event()
            async with asyncio.TaskGroup() as tasks:
                for role in range(_WRITERS):
                    tasks.create_task(_write(ledger, client, sessions, role, killed))
                await ledger.grows_by(acknowledged)
                service.process.kill()
                killed.set()
            await service.process.wait()
            unchecked = ledger.entries[before:]
            unknown = [entry for entry in unchecked if entry.outcome is Outcome.UNKNOWN]
            assert unknown, "it was not killed in the middle of a load"
            assert {entry.reason for entry in unknown} == {"UNAVAILABLE"}
    async with (
        service_process(database_url, tmp_path / "log") as service,
        connected(service.address) as client,
    ):
        await ledger.verify(client)
        await ledger.repeat(client, ledger.entries)
        await ledger.verify(client)
        # Nothing is in doubt now; what came only after its session was submitted is refused.
        assert ledger.outcomes().keys() <= {"ACKNOWLEDGED", "SESSION_NOT_RUNNING"}
