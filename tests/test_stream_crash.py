"""Streams of records through a kill -9 and over a full disk: nothing acknowledged is lost."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest

from harness import (
    Client,
    connected,
    get_session,
    list_executions,
    refused,
    running_session,
    service_process,
)
from infrascout.sessions.v1 import recording_service_pb2 as pb
from infrascout_sessions.client.errors import call_error
from small_disk import needs_mount, small_disk
from streams import (
    SERVICE,
    UNFINISHED,
    append,
    batch_of,
    begin,
    finish,
    outcomes,
    read_output,
    record_all,
)

AHEAD = 4


class Writer:
    """Sends messages of executions, each until it is answered, and remembers the answers."""

    def __init__(self, name: str, sessions: Sequence[str], count: int, size: int = 25) -> None:
        self.messages = [
            [(sessions[n % len(sessions)], f"{name}.{message:04}.{n:02}") for n in range(size)]
            for message in range(count)
        ]
        self.answers: list[list[pb.Recorded]] = []

    def message(self, number: int) -> pb.RecordExecutionsRequest:
        executions = [
            batch_of(session_id, [name], output={"text": name * 20}).executions[0]
            for session_id, name in self.messages[number]
        ]
        return pb.RecordExecutionsRequest(executions=executions)

    async def run(self, client: Client, progress: asyncio.Semaphore) -> None:
        """Send what is not answered, some messages ahead, until all is or the server is gone."""
        call: Any = client.recording.RecordExecutions()
        sent = len(self.answers)
        try:
            while len(self.answers) < len(self.messages):
                while sent < min(len(self.answers) + AHEAD, len(self.messages)):
                    await call.write(self.message(sent))
                    sent += 1
                response = await call.read()
                self.answers.append([result.recorded for result in response.results])
                progress.release()
            await call.done_writing()
            assert await call.read() is grpc.aio.EOF
        except grpc.aio.AioRpcError as error:
            # As the client of ours has it: grpc.aio calls a write to a dead connection INTERNAL.
            assert call_error(error).code is grpc.StatusCode.UNAVAILABLE  # noqa: PT017
        except asyncio.InvalidStateError:
            # A write to a stream that has ended.
            assert await call.code() is grpc.StatusCode.UNAVAILABLE


async def verify(client: Client, sessions: Sequence[str], writers: Sequence[Writer]) -> None:
    """All that was acknowledged is there as it was sent, once and in order, and without a gap."""
    for session_id in sessions:
        listed = await list_executions(client, session_id)
        assert [one.sequence for one in listed] == list(range(1, len(listed) + 1))
        assert (await get_session(client, session_id)).execution_count == len(listed)
        by_command = {one.command: one for one in listed}
        assert len(by_command) == len(listed)
        for writer in writers:
            sent = [
                (name, index, n)
                for index, message in enumerate(writer.messages)
                for n, (of_session, name) in enumerate(message)
                if of_session == session_id
            ]
            acknowledged = [
                (name, writer.answers[index][n])
                for name, index, n in sent
                if index < len(writer.answers)
            ]
            for name, recorded in acknowledged:
                found = by_command[name]
                assert (found.session_id, found.execution_id, found.sequence) == (
                    recorded.session_id,
                    recorded.execution_id,
                    recorded.sequence,
                )
                assert found.output.text == name * 20
            # What is there is the beginning of what was sent, in its order.
            prefix = f"{writer.messages[0][0][1].split('.')[0]}."
            own = [one.command for one in listed if one.command.startswith(prefix)]
            assert own == [name for name, *_ in sent][: len(own)]
            assert len(own) >= len(acknowledged)


async def test_kill_9_during_streams_of_records(database_url: str, tmp_path: Path) -> None:
    sessions: list[str] = []
    writers: list[Writer] = []
    for acknowledged in (3, 50, 90):
        async with (
            service_process(database_url, tmp_path / "log", command=SERVICE) as service,
            connected(service.address) as client,
        ):
            if not writers:
                sessions = [await running_session(client, f"ag_{n}") for n in range(2)]
                writers = [Writer(f"w{n}", sessions, 100) for n in range(4)]
            await verify(client, sessions, writers)
            progress = asyncio.Semaphore(0)
            async with asyncio.TaskGroup() as tasks:
                for writer in writers:
                    tasks.create_task(writer.run(client, progress))
                for _ in range(acknowledged):
                    await progress.acquire()
                await service.kill()
            assert all(len(writer.answers) < len(writer.messages) for writer in writers)
    async with (
        service_process(database_url, tmp_path / "log", command=SERVICE) as service,
        connected(service.address) as client,
    ):
        await verify(client, sessions, writers)
        # The clients go on with the same request_ids: nothing stands twice.
        progress = asyncio.Semaphore(0)
        await asyncio.gather(*(writer.run(client, progress) for writer in writers))
        await verify(client, sessions, writers)
        total = [(await get_session(client, one)).execution_count for one in sessions]
        assert sum(total) == 4 * 100 * 25
        # Everything once more is everything as it was.
        for writer in writers:
            again = await record_all(
                client, *(writer.message(number) for number in range(0, 100, 10))
            )
            assert [[result.recorded for result in results] for results in again] == (
                writer.answers[::10]
            )
        await verify(client, sessions, writers)


async def test_kill_9_while_commands_print(database_url: str, tmp_path: Path) -> None:
    """What was acknowledged of an output is there, and the agent goes on where it was."""
    sizes: dict[int, int] = {}
    session_id = ""
    whole = {sequence: bytes([sequence]) * 2_000_000 for sequence in (1, 2, 3)}

    async def print_on(client: Client, sequence: int, progress: asyncio.Semaphore) -> None:
        while sizes[sequence] < len(whole[sequence]):
            at = sizes[sequence]
            try:
                sizes[sequence] = await append(
                    client, session_id, sequence, at, whole[sequence][at : at + 30_000]
                )
            except grpc.aio.AioRpcError as error:
                assert error.code() is grpc.StatusCode.UNAVAILABLE  # noqa: PT017
                return
            progress.release()

    for acknowledged in (5, 30, 50):
        async with (
            service_process(database_url, tmp_path / "log", command=SERVICE) as service,
            connected(service.address) as client,
        ):
            if not session_id:
                session_id = await running_session(client)
                for sequence in whole:
                    await begin(client, session_id)
                    sizes[sequence] = 0
            for sequence, size in sizes.items():
                stored = b"".join(await read_output(client, session_id, sequence))
                assert stored == whole[sequence][: len(stored)]
                # At most the chunk that was on its way is there besides.
                assert size <= len(stored) <= size + 30_000
            progress = asyncio.Semaphore(0)
            async with asyncio.TaskGroup() as tasks:
                for sequence in whole:
                    tasks.create_task(print_on(client, sequence, progress))
                for _ in range(acknowledged):
                    await progress.acquire()
                await service.kill()
    async with (
        service_process(database_url, tmp_path / "log", command=SERVICE) as service,
        connected(service.address) as client,
    ):
        for execution in await list_executions(client, session_id, max_output_bytes=0):
            assert execution.state == UNFINISHED
            assert execution.output.size_bytes >= sizes[execution.sequence] > 0
        # From where they know of, which may repeat a chunk.
        await asyncio.gather(*(print_on(client, one, asyncio.Semaphore(0)) for one in whole))
        for sequence, content in whole.items():
            await finish(client, session_id, sequence)
            assert b"".join(await read_output(client, session_id, sequence)) == content


@needs_mount
@pytest.mark.parametrize("output_bytes", [200, 20_000])
async def test_a_disk_that_fills_in_the_middle_of_a_group(
    tmp_path: Path, output_bytes: int
) -> None:
    output = {"text": "x" * output_bytes}
    async with (
        small_disk(tmp_path, 6_000_000) as (service, make_room),
        connected(service.address) as client,
    ):
        sessions = [await running_session(client, f"ag_{n}") for n in range(3)]
        acknowledged: dict[tuple[str, str], pb.Recorded] = {}
        refusals: dict[tuple[str, str], None] = {}

        def message(writer: int, number: int) -> pb.RecordExecutionsRequest:
            """Of several sessions, all of it in one group with those of others."""
            executions = [
                batch_of(session_id, [f"{writer}.{number}.{n}"], output=output).executions[0]
                for n in range(5)
                for session_id in sessions
            ]
            return pb.RecordExecutionsRequest(executions=executions)

        def note(request: pb.RecordExecutionsRequest, response: Any) -> set[str]:
            """Keep what became of each; the kinds of outcomes."""
            kinds = set()
            for asked, result, what in zip(
                request.executions, response.results, outcomes(response.results), strict=True
            ):
                key = (asked.session_id, asked.request_id)
                if isinstance(what, int):
                    kinds.add("recorded")
                    acknowledged[key] = result.recorded
                    refusals.pop(key, None)
                else:
                    kinds.add(what)
                    assert result.refusal.code == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
                    refusals[key] = None
            return kinds

        async def verify_all() -> None:
            for session_id in sessions:
                listed = await list_executions(client, session_id, max_output_bytes=0)
                assert [one.sequence for one in listed] == list(range(1, len(listed) + 1))
                assert (await get_session(client, session_id)).execution_count == len(listed)
                assert {(session_id, one.command): one.execution_id for one in listed} == {
                    key: recorded.execution_id
                    for key, recorded in acknowledged.items()
                    if key[0] == session_id
                }
                for one in listed:
                    assert acknowledged[session_id, one.command].sequence == one.sequence

        streams: list[Any] = [client.recording.RecordExecutions() for _ in range(6)]

        async def write_until_full(writer: int) -> int:
            """The first number that was not sent."""
            call, number, full = streams[writer], 0, 0
            while full < 5:
                request = message(writer, number)
                await call.write(request)
                kinds = note(request, await call.read())
                assert kinds in ({"recorded"}, {"STORAGE_FULL"})
                full += kinds == {"STORAGE_FULL"}
                number += 1
            return number

        sent = await asyncio.gather(*(write_until_full(writer) for writer in range(6)))
        assert acknowledged
        assert refusals
        # Reads show what was acknowledged and nothing else.
        await verify_all()

        # Once there is room, the same streams go on.
        make_room()
        for writer, call in enumerate(streams):
            for number in range(sent[writer]):
                request = message(writer, number)
                before = {
                    (one.session_id, one.request_id): acknowledged.get(
                        (one.session_id, one.request_id)
                    )
                    for one in request.executions
                }
                await call.write(request)
                assert note(request, await call.read()) == {"recorded"}
                for key, recorded in before.items():
                    assert recorded in (None, acknowledged[key])
            await call.done_writing()
            assert await call.read() is grpc.aio.EOF
        assert not refusals
        await verify_all()


@needs_mount
async def test_a_disk_that_fills_while_a_command_prints(tmp_path: Path) -> None:
    async with (
        small_disk(tmp_path, 6_000_000) as (service, make_room),
        connected(service.address) as client,
    ):
        session_id = await running_session(client)
        await begin(client, session_id)
        size = 0
        chunk = bytes(range(256)) * 1000

        async def print_on() -> None:
            nonlocal size
            while size < 20_000_000:
                size = await append(client, session_id, 1, size, chunk)

        await refused(print_on(), grpc.StatusCode.RESOURCE_EXHAUSTED, "STORAGE_FULL")
        assert size > 0
        assert b"".join(await read_output(client, session_id, 1)) == chunk * (size // len(chunk))
        make_room()
        stored = size
        while size < stored + 10 * len(chunk):
            size = await append(client, session_id, 1, size, chunk)
        finished = await finish(client, session_id, 1)
        assert finished.output.size_bytes == size
        assert b"".join(await read_output(client, session_id, 1)) == chunk * (size // len(chunk))
