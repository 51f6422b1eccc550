"""`ReadOutput`, and outputs larger than a message: every byte from any offset."""

import asyncio
import os
from hashlib import sha256
from pathlib import Path
from typing import Any

import grpc
import pytest

from harness import (
    NO_SESSION,
    Client,
    collect,
    get_session,
    list_executions,
    record,
    refused,
    running_session,
    service_process,
    serving,
    submit,
)
from infrascout.sessions.v1 import execution_pb2
from infrascout.sessions.v1 import session_service_pb2 as pb
from streams import (
    MIB,
    SERVICE,
    STDERR,
    STDOUT,
    append,
    begin,
    cabled,
    cut_off,
    finish,
    get_execution,
    memory_bytes,
    read_output,
)

INVALID = grpc.StatusCode.INVALID_ARGUMENT
OUT_OF_RANGE = grpc.StatusCode.OUT_OF_RANGE
FAILED_PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION
KIB = 1024


def content(size: int) -> bytes:
    """Bytes none of whose parts is like another."""
    return b"".join(number.to_bytes(4, "big") for number in range(-(-size // 4)))[:size]


async def print_chunks(
    client: Client,
    session_id: str,
    sizes: list[int],
    stream: execution_pb2.OutputStream = STDOUT,
) -> bytes:
    """Begin the execution 1 if there is none, and let it print chunks of these sizes."""
    if not (await get_session(client, session_id)).execution_count:
        await begin(client, session_id)
    whole = content(sum(sizes))
    at = 0
    for size in sizes:
        at = await append(client, session_id, 1, at, whole[at : at + size], stream)
    return whole


SHAPES: dict[str, list[int]] = {
    "one byte": [1],
    "one chunk": [1000],
    "equal chunks": [10, 10, 10],
    "chunks of all sizes": [1, 2, 300, 4, 1, 1, 5000, 1],
    "a message": [256 * KIB],
    "a message and a byte": [256 * KIB, 1],
    "a byte and a message": [1, 256 * KIB],
    "a large chunk": [MIB],
    "large chunks": [MIB, MIB - 1, 2],
}


@pytest.mark.parametrize("stream", [STDOUT, STDERR], ids=["stdout", "stderr"])
@pytest.mark.parametrize("shape", SHAPES)
async def test_an_output_is_read_from_any_offset(
    database_url: str, shape: str, stream: execution_pb2.OutputStream
) -> None:
    async with serving(database_url) as client:
        session_id = await running_session(client)
        whole = await print_chunks(client, session_id, SHAPES[shape], stream)
        size = len(whole)
        borders = {0, size, 256 * KIB, MIB}
        for end in range(len(SHAPES[shape])):
            borders.add(sum(SHAPES[shape][:end]))
        offsets = sorted(
            {border + n for border in borders for n in (-1, 0, 1) if 0 <= border + n <= size}
        )
        for _finished in (False, True):
            for offset in offsets:
                read = await read_output(client, session_id, 1, offset, stream)
                assert b"".join(read) == whole[offset:]
                assert all(0 < len(data) <= 256 * KIB for data in read)
            for offset in (size + 1, size + MIB, 2**63 - 1):
                answer = await refused(
                    read_output(client, session_id, 1, offset, stream),
                    *(OUT_OF_RANGE, "OUTPUT_OFFSET_BEYOND_END"),
                    size_bytes=str(size),
                )
                assert str(size) in answer.message
            finished = await finish(client, session_id, 1)
        output = finished.output if stream == STDOUT else finished.error_output
        assert output.sha256 == sha256(whole).hexdigest()
        await submit(client, session_id)
        assert b"".join(await read_output(client, session_id, 1, 0, stream)) == whole


async def test_an_output_recorded_whole_is_read_too(database_url: str) -> None:
    async with serving(database_url) as client:
        session_id = await running_session(client)
        out, err = content(MIB), "é" * (MIB // 2)
        await record(client, session_id, output={"binary": out}, error_output={"text": err})
        for stream, whole in ((STDOUT, out), (STDERR, err.encode())):
            for offset in (0, 1, 256 * KIB, MIB - 1, MIB):
                read = await read_output(client, session_id, 1, offset, stream)
                assert b"".join(read) == whole[offset:]
                assert [len(data) for data in read[:-1]] == [256 * KIB] * (len(read) - 1)


@pytest.mark.parametrize("captured", [False, True])
async def test_nothing_is_read_of_nothing(client: Client, captured: bool) -> None:
    session_id = await running_session(client)
    await begin(client, session_id)
    if captured:
        await append(client, session_id, 1, 0, b"")
    await record(client, session_id, **({"output": {"text": ""}} if captured else {}))
    for sequence in (1, 2):
        assert (await get_execution(client, session_id, sequence)).HasField("output") == captured
        for stream in (STDOUT, STDERR):
            assert await read_output(client, session_id, sequence, 0, stream) == []
            await refused(
                read_output(client, session_id, sequence, 1, stream),
                *(OUT_OF_RANGE, "OUTPUT_OFFSET_BEYOND_END"),
                size_bytes="0",
            )


async def test_an_unfinished_output_is_read_as_it_grows(database_url: str) -> None:
    async with serving(database_url) as client:
        session_id = await running_session(client)
        await begin(client, session_id)
        whole = content(500_000)
        read = b""
        for at in range(0, 500_000, 50_000):
            assert await read_output(client, session_id, 1, len(read)) == []
            await append(client, session_id, 1, at, whole[at : at + 50_000])
            read += b"".join(await read_output(client, session_id, 1, len(read)))
            assert read == whole[: at + 50_000]


async def test_a_read_ends_where_the_output_ended_when_it_was_asked_for(database_url: str) -> None:
    async with serving(database_url) as client:
        session_id = await running_session(client)
        # More than gRPC takes ahead of its reader.
        whole = await print_chunks(client, session_id, [MIB] * 10)
        request = pb.ReadOutputRequest(session_id=session_id, sequence=1, stream=STDOUT)
        call: Any = client.sessions.ReadOutput(request)
        read = (await call.read()).data
        await append(client, session_id, 1, len(whole), b"late")
        while (response := await call.read()) is not grpc.aio.EOF:
            read += response.data
        assert read == whole


async def test_what_is_refused(client: Client) -> None:
    session_id = await running_session(client)
    await record(client, session_id)
    for fields, violated in (
        ({}, ["session_id", "sequence", "stream"]),
        (
            {"session_id": "é", "sequence": -1, "stream": 3, "offset": -1},
            ["session_id", "sequence", "stream", "offset"],
        ),
        ({"session_id": session_id, "sequence": 1}, ["stream"]),
        ({"session_id": session_id, "sequence": 0, "stream": STDOUT}, ["sequence"]),
        ({"session_id": session_id, "sequence": 1, "stream": 1, "offset": -1}, ["offset"]),
    ):
        request = pb.ReadOutputRequest(**fields)  # type: ignore[arg-type]
        call = collect(client.sessions.ReadOutput(request))
        assert (await refused(call, INVALID, "INVALID_REQUEST")).fields == violated
    not_found = grpc.StatusCode.NOT_FOUND
    for sequence in (2, 2**31 - 1):
        await refused(
            *(read_output(client, session_id, sequence), not_found, "EXECUTION_NOT_FOUND"),
            session_id=session_id,
            sequence=str(sequence),
        )
    await refused(
        *(read_output(client, NO_SESSION, 1), not_found, "SESSION_NOT_FOUND"),
        session_id=NO_SESSION,
    )


# What a message shows of an output larger than it: how many bytes of what, and how many of them.
HEADS: dict[str, tuple[bytes, int]] = {
    "1 MiB": (b"x" * MIB, MIB),
    "a byte more": (b"x" * (MIB + 1), MIB),
    "far more": (b"x" * (2 * MIB + 5), MIB),
    "a character across the border": (b"x" * (MIB - 1) + "é".encode() + b"y", MIB - 1),
    "a character behind the border": (b"x" * MIB + "é".encode(), MIB),
    "four bytes across the border": (b"x" * (MIB - 3) + "𝄞".encode() * 2, MIB - 3),
    "binary behind the border": (b"x" * MIB + b"\xff", MIB),
    "binary before it": (b"\xff" + b"x" * MIB, MIB),
}


@pytest.mark.parametrize("case", HEADS)
async def test_a_message_carries_the_first_mebibyte(database_url: str, case: str) -> None:
    whole, shown = HEADS[case]
    async with serving(database_url) as client:
        session_id = await running_session(client)
        await begin(client, session_id)
        at = 0
        while at < len(whole):  # chunks whose borders are not those of the head
            at = await append(client, session_id, 1, at, whole[at : at + 700_001])
            await append(client, session_id, 1, at - 1, whole[at - 1 : at])
        at = 0
        while at < len(whole):
            at = await append(client, session_id, 1, at, whole[at : at + MIB], STDERR)
        unfinished = await get_execution(client, session_id, 1)
        assert await list_executions(client, session_id) == [unfinished]
        finished = await finish(client, session_id, 1)
        assert await get_execution(client, session_id, 1) == finished
        assert await list_executions(client, session_id) == [finished]
        [cut] = await list_executions(client, session_id, max_output_bytes=10)
        [bare] = await list_executions(client, session_id, max_output_bytes=0)
        digest = sha256(whole).hexdigest()
        binary = whole.startswith(b"\xff")
        for execution, size, sha in (
            (unfinished, shown, ""),
            (finished, shown, digest),
            (cut, 10, digest),
            (bare, 0, digest),
        ):
            for output in (execution.output, execution.error_output):
                expected = execution_pb2.Output(
                    size_bytes=len(whole), truncated=size < len(whole), sha256=sha
                )
                if size and binary:
                    expected.binary = whole[:size]
                elif size:
                    expected.text = whole[:size].decode()
                assert output == expected
        # The rest is read from there.
        rest = await read_output(client, session_id, 1, shown)
        assert whole[:shown] + b"".join(rest) == whole


async def test_64_mib_over_a_connection_that_is_cut(database_url: str, tmp_path: Path) -> None:
    async with (
        service_process(
            *(database_url, tmp_path / "log"),
            command=SERVICE,
            # What malloc keeps for each thread is nothing that the service holds.
            environment={"MALLOC_ARENA_MAX": "1"},
        ) as service,
        cabled(service.address) as (client, cable),
    ):
        session_id = await running_session(client)
        await begin(client, session_id)
        assert await append(client, session_id, 1, 0, b"") == 0
        whole = os.urandom(64 * MIB)
        before = memory_bytes(service)

        # In by chunks; twice the connection is cut within one.
        at, asks, later = 0, False, [17 * MIB + 500_000]
        cable.cut_after(20 * MIB + 300_000)
        while at < len(whole):
            try:
                if asks:
                    at = (await get_execution(client, session_id, 1)).output.size_bytes
                    asks = False
                at = await append(client, session_id, 1, at, whole[at : at + MIB])
            except grpc.aio.AioRpcError as error:
                await cut_off(error)
                if later:  # the same chunk again, ...
                    cable.cut_after(later.pop())
                else:  # ... or what the server says
                    asks = True
        assert cable.cuts == 2

        # Not a byte more.
        for stream, offset in ((STDOUT, at), (STDERR, 0)):
            await refused(
                append(client, session_id, 1, offset, b"x", stream),
                *(FAILED_PRECONDITION, "OUTPUT_TOO_LARGE"),
                session_id=session_id,
                sequence="1",
                maximum_bytes=str(64 * MIB),
            )

        # Others are answered while it is hashed.
        answered = 0
        finishing = asyncio.create_task(finish(client, session_id, 1))
        while not finishing.done():
            await get_session(client, session_id)
            await record(client, session_id)
            answered += 1
        assert answered >= 5
        finished = await finishing
        assert finished.output.sha256 == sha256(whole).hexdigest()
        assert (finished.output.size_bytes, finished.output.truncated) == (64 * MIB, True)

        # Out again, cut twice.
        received = bytearray()
        cable.cut_after(15 * MIB, "out")
        while len(received) < len(whole):
            request = pb.ReadOutputRequest(
                session_id=session_id, sequence=1, stream=STDOUT, offset=len(received)
            )
            try:
                async for response in client.sessions.ReadOutput(request):
                    received += response.data
            except grpc.aio.AioRpcError as error:
                await cut_off(error)
                if cable.cuts == 3:
                    cable.cut_after(30 * MIB, "out")
        assert cable.cuts == 4
        assert received == whole
        assert memory_bytes(service, "VmHWM") - before < 40 * MIB
