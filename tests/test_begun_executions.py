"""`BeginExecution`, `AppendOutput`, `FinishExecution`: on record before a command runs."""

import asyncio
from collections.abc import Awaitable, Callable
from hashlib import sha256
from typing import Any, NamedTuple

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from harness import (
    LOCAL,
    NO_SESSION,
    START_SECONDS,
    Client,
    FrozenClock,
    at,
    get_session,
    list_executions,
    record,
    refused,
    running_session,
    serving,
    submit,
)
from infrascout.sessions.v1 import execution_pb2, session_pb2
from infrascout.sessions.v1 import recording_service_pb2 as recording
from infrascout.sessions.v1 import session_service_pb2 as pb
from streams import (
    EXITED,
    KILLED,
    MIB,
    STDERR,
    STDOUT,
    UNFINISHED,
    append,
    begin,
    begin_request,
    finish,
    get_execution,
    read_output,
)

FAILED_PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION
INVALID = grpc.StatusCode.INVALID_ARGUMENT
ABORTED = grpc.StatusCode.ABORTED
Output = execution_pb2.Output


async def end(client: Client, session_id: str, action: str) -> None:
    """End a session by an RPC."""
    stub: Any = client.sessions
    if action == "SubmitSession":
        await submit(client, session_id)
    elif action == "FailSession":
        await stub.FailSession(pb.FailSessionRequest(session_id=session_id, reason="broke"))
    else:
        await stub.InterruptSession(
            pb.InterruptSessionRequest(session_id=session_id, reason="enough")
        )


ENDINGS = {
    "SubmitSession": "SESSION_STATUS_PENDING_REVIEW",
    "FailSession": "SESSION_STATUS_FAILED",
    "InterruptSession": "SESSION_STATUS_INTERRUPTED",
}


async def not_running(call: Awaitable[object], session_id: str, status: str) -> None:
    await refused(
        *(call, FAILED_PRECONDITION, "SESSION_NOT_RUNNING"), session_id=session_id, status=status
    )


async def is_finished(call: Awaitable[object], session_id: str, sequence: int = 1) -> None:
    await refused(
        *(call, FAILED_PRECONDITION, "EXECUTION_FINISHED"),
        session_id=session_id,
        sequence=str(sequence),
    )


# The whole story.


async def test_a_command_is_on_record_before_it_runs(client: Client, clock: FrozenClock) -> None:
    session_id = await running_session(client)
    clock.advance(3)
    begun = await begin(
        client,
        session_id,
        command="  tail -f log\n",
        start_time=at(-10.5),
        step="2.1 listening ports",
    )
    expected = execution_pb2.Execution(
        execution_id="exec_00000000000000000000000000000002",
        session_id=session_id,
        sequence=1,
        state=UNFINISHED,
        command="  tail -f log\n",
        capability="shell",
        start_time=at(-10.5),
        record_time=at(3),
        actor=LOCAL,
        step="2.1 listening ports",
    )

    async def seen() -> None:
        assert await get_execution(client, session_id, 1) == expected
        assert await list_executions(client, session_id) == [expected]
        assert await list_executions(client, session_id, failed_only=True) == []

    assert begun == expected
    await seen()
    clock.advance(1)
    assert await append(client, session_id, 1, 0, b"LISTEN") == 6
    expected.output.MergeFrom(Output(text="LISTEN", size_bytes=6))
    await seen()
    assert (await get_session(client, session_id)).last_activity_time == at(4)
    assert await append(client, session_id, 1, 0, b"\xff", STDERR) == 1
    expected.error_output.MergeFrom(Output(binary=b"\xff", size_bytes=1))
    await seen()
    clock.advance(2)
    finished = await finish(client, session_id, 1, 2, at(100))
    expected.state = EXITED
    expected.exit_code = 2
    expected.end_time.CopyFrom(at(100))
    expected.finish_record_time.CopyFrom(at(6))
    expected.output.sha256 = sha256(b"LISTEN").hexdigest()
    expected.error_output.sha256 = sha256(b"\xff").hexdigest()
    assert finished == expected
    assert await get_execution(client, session_id, 1) == expected
    assert await list_executions(client, session_id, failed_only=True) == [expected]
    assert (await get_session(client, session_id)).last_activity_time == at(6)


async def test_begun_and_recorded_ones_share_their_sequences(database_url: str) -> None:
    async with serving(database_url) as client:
        session_id = await running_session(client)
        made = await asyncio.gather(
            *(begin(client, session_id, command=f"begun {n}") for n in range(40)),
            *(record(client, session_id, command=f"recorded {n}") for n in range(40)),
        )
        assert sorted(one.sequence for one in made) == list(range(1, 81))
        listed = await list_executions(client, session_id)
        assert listed == sorted(made, key=lambda one: one.sequence)


@pytest.mark.parametrize(
    ("exit_code", "state", "failed"),
    [
        (0, EXITED, 0),
        (1, EXITED, 1),
        (-1073741819, EXITED, 1),
        (2**31 - 1, EXITED, 1),
        (-(2**31), EXITED, 1),
        (None, KILLED, 1),
    ],
)
async def test_a_failure_counts_once_it_is_finished(
    client: Client, exit_code: int | None, state: execution_pb2.ExecutionState, failed: int
) -> None:
    session_id = await running_session(client)

    async def counts() -> tuple[int, int, int]:
        session = await get_session(client, session_id)
        listed = await list_executions(client, session_id, failed_only=True)
        return session.execution_count, session.failed_execution_count, len(listed)

    await begin(client, session_id)
    await begin(client, session_id)
    assert await counts() == (2, 0, 0)
    for _ in range(2):  # the second is a repeat
        finished = await finish(client, session_id, 1, exit_code)
        assert finished.state == state
        assert (finished.exit_code if finished.HasField("exit_code") else None) == exit_code
        assert await counts() == (2, failed, failed)
    await submit(client, session_id)
    assert await counts() == (2, failed, failed)


# BeginExecution.


async def test_a_begin_is_repeated_with_its_request_id(database_url: str) -> None:
    async with serving(database_url) as client:
        session_id = await running_session(client, "ag_1")
        other = await running_session(client, "ag_2")
        begun = await begin(client, session_id, request_id="x")
        assert await begin(client, session_id, request_id="x") == begun
        # As it stands now.
        await append(client, session_id, 1, 0, b"abc")
        printed = await begin(client, session_id, request_id="x")
        assert printed.output == Output(text="abc", size_bytes=3)
        finished = await finish(client, session_id, 1)
        assert await begin(client, session_id, request_id="x") == finished
        for changed in ({"command": "other"}, {"step": "2"}, {"start_time": at(-3)}):
            await refused(
                begin(client, session_id, request_id="x", **changed),
                grpc.StatusCode.ALREADY_EXISTS,
                "REQUEST_ID_REUSED",
                request_id="x",
            )
        # Its scope is the session, and without one it begins another.
        assert (await begin(client, other, request_id="x")).sequence == 1
        assert (await begin(client, session_id)).sequence == 2
        assert (await begin(client, session_id)).sequence == 3
        await submit(client, session_id)
        assert await begin(client, session_id, request_id="x") == finished
        await not_running(
            begin(client, session_id, request_id="y"), session_id, "SESSION_STATUS_PENDING_REVIEW"
        )
        assert (await get_session(client, session_id)).execution_count == 3


async def test_many_repeats_of_one_begin_are_one(database_url: str) -> None:
    async with serving(database_url) as client:
        session_id = await running_session(client)
        made = await asyncio.gather(
            *(begin(client, session_id, request_id="once") for _ in range(40))
        )
        assert {one.sequence for one in made} == {1}
        assert (await get_session(client, session_id)).execution_count == 1


@pytest.mark.parametrize("action", ENDINGS)
async def test_what_is_unfinished_when_its_session_ends_stays_so(
    database_url: str, action: str
) -> None:
    async with serving(database_url) as client:
        session_id = await running_session(client)
        await begin(client, session_id)
        await append(client, session_id, 1, 0, b"before it died")
        await end(client, session_id, action)
        status = ENDINGS[action]
        for call in (
            begin(client, session_id),
            append(client, session_id, 1, 14, b"more"),
            append(client, session_id, 1, 14, b""),
            append(client, session_id, 1, 0, b"e", STDERR),
            finish(client, session_id, 1),
            finish(client, session_id, 1, None, request_id="x"),
        ):
            await not_running(call, session_id, status)
        # It is visibly unfinished, with what it printed, which may still be repeated.
        assert await append(client, session_id, 1, 7, b"it died") == 14
        left = await get_execution(client, session_id, 1)
        assert left.state == UNFINISHED
        assert left.output == Output(text="before it died", size_bytes=14)
        for field in ("end_time", "finish_record_time", "error_output", "exit_code"):
            assert not left.HasField(field)
        assert await list_executions(client, session_id) == [left]
        assert await list_executions(client, session_id, failed_only=True) == []
        assert await read_output(client, session_id, 1) == [b"before it died"]
        session = await get_session(client, session_id)
        assert (session.execution_count, session.failed_execution_count) == (1, 0)


# AppendOutput.


class Chunk(NamedTuple):
    """A chunk sent to an output that holds `abcdef`, in chunks of three."""

    offset: int
    data: bytes
    size_bytes: int | None
    """The size then; None if it is refused, whatever the state."""
    repeats: bool = False
    """Whether it is answered OK in every state."""


CHUNKS = {
    "the next": Chunk(6, b"gh", 8),
    "nothing": Chunk(6, b"", 6),
    "nothing, inside": Chunk(3, b"", 6),
    "nothing, at the beginning": Chunk(0, b"", 6),
    "nothing behind a gap": Chunk(7, b"", None),
    "the first again": Chunk(0, b"abc", 6, repeats=True),
    "the last again": Chunk(3, b"def", 6, repeats=True),
    "all again": Chunk(0, b"abcdef", 6, repeats=True),
    "across a border": Chunk(2, b"cd", 6, repeats=True),
    "one byte": Chunk(5, b"f", 6, repeats=True),
    "other content": Chunk(0, b"abx", None),
    "other content at the end": Chunk(3, b"dex", None),
    "other content across a border": Chunk(2, b"cx", None),
    "an overlap": Chunk(4, b"efg", None),
    "more than all": Chunk(0, b"abcdefg", None),
    "a gap": Chunk(7, b"h", None),
    "a gap as large as can be": Chunk(2**63 - 1, b"h", None),
}


@pytest.mark.parametrize("stream", [STDOUT, STDERR], ids=["stdout", "stderr"])
@pytest.mark.parametrize("case", CHUNKS)
async def test_chunks_at_offsets(
    client: Client, case: str, stream: execution_pb2.OutputStream
) -> None:
    chunk = CHUNKS[case]
    session_id = await running_session(client)
    held = b"abcdef"
    for sequence in (1, 2):
        await begin(client, session_id)
        await append(client, session_id, sequence, 0, held[:3], stream)
        assert await append(client, session_id, sequence, 3, held[3:], stream) == 6
    await finish(client, session_id, 2)

    async def send(sequence: int) -> int:
        return await append(client, session_id, sequence, chunk.offset, chunk.data, stream)

    # Twice: the second is a repeat.
    for _ in range(2):
        if chunk.size_bytes is None:
            answer = await refused(send(1), ABORTED, "OUTPUT_OFFSET_MISMATCH", size_bytes="6")
            assert "6" in answer.message
        else:
            assert await send(1) == chunk.size_bytes
            held = held[: chunk.offset] + chunk.data + held[chunk.offset + len(chunk.data) :]
        assert b"".join(await read_output(client, session_id, 1, stream=stream)) == held
    if chunk.repeats:
        assert await send(2) == 6
    else:
        await is_finished(send(2), session_id, 2)
    await submit(client, session_id)
    for sequence in (1, 2):
        if chunk.repeats:
            assert await send(sequence) == 6
        elif (sequence, case) != (1, "the next"):
            await not_running(send(sequence), session_id, "SESSION_STATUS_PENDING_REVIEW")
        else:
            assert await send(sequence) == 8
    for sequence, content in ((1, held), (2, b"abcdef")):
        assert b"".join(await read_output(client, session_id, sequence, stream=stream)) == content
        other = STDERR if stream == STDOUT else STDOUT
        assert await read_output(client, session_id, sequence, stream=other) == []


async def test_an_empty_chunk_says_that_the_output_is_captured(
    client: Client, clock: FrozenClock
) -> None:
    session_id = await running_session(client)
    await begin(client, session_id)
    clock.advance(5)
    assert await append(client, session_id, 1, 0, b"", STDERR) == 0
    assert (await get_session(client, session_id)).last_activity_time == at(5)
    execution = await get_execution(client, session_id, 1)
    assert execution.error_output == Output(text="")
    assert execution.error_output.WhichOneof("content") == "text"
    assert not execution.HasField("output")
    finished = await finish(client, session_id, 1)
    assert finished.error_output == Output(text="", sha256=sha256(b"").hexdigest())
    assert not finished.HasField("output")


async def test_a_sign_of_life_spares_a_session(database_url: str) -> None:
    """Those without one are interrupted, and what they have not finished stays so."""
    async with serving(database_url, idle_timeout_seconds=2) as client:
        alive = await running_session(client, "ag_alive")
        silent = await running_session(client, "ag_silent")
        for session_id in (alive, silent):
            await begin(client, session_id)
            await append(client, session_id, 1, 0, b"abc")
            await begin(client, session_id)

        async def status(session_id: str) -> str:
            return session_pb2.SessionStatus.Name((await get_session(client, session_id)).status)

        async def interrupted(session_id: str) -> None:
            """Wait for it, showing signs of life in the other one."""
            async with asyncio.timeout(20):
                while await status(session_id) == "SESSION_STATUS_RUNNING":
                    if session_id != alive:
                        await append(client, alive, 1, 3, b"")
                    await asyncio.sleep(0.1)

        await interrupted(silent)
        assert await status(alive) == "SESSION_STATUS_RUNNING"
        await interrupted(alive)
        for session_id in (alive, silent):
            assert await status(session_id) == "SESSION_STATUS_INTERRUPTED"
            await not_running(
                finish(client, session_id, 1), session_id, "SESSION_STATUS_INTERRUPTED"
            )
            first, second = await list_executions(client, session_id)
            assert (first.state, second.state) == (UNFINISHED, UNFINISHED)
            assert first.output == Output(text="abc", size_bytes=3)


async def test_the_outputs_of_an_execution_are_limited_together(database_url: str) -> None:
    async with serving(database_url, maximum_output_bytes=100) as client:
        session_id = await running_session(client)
        await begin(client, session_id)
        await append(client, session_id, 1, 0, b"o" * 60)
        await append(client, session_id, 1, 0, b"e" * 30, STDERR)
        for offset, size, stream in ((60, 11, STDOUT), (30, 11, STDERR), (60, MIB, STDOUT)):
            answer = await refused(
                append(client, session_id, 1, offset, b"x" * size, stream),
                FAILED_PRECONDITION,
                "OUTPUT_TOO_LARGE",
                session_id=session_id,
                sequence="1",
                maximum_bytes="100",
            )
            assert "100" in answer.message
        # What came before is kept, and what fits is taken, to the last byte.
        assert await append(client, session_id, 1, 60, b"o" * 9) == 69
        assert await append(client, session_id, 1, 30, b"e", STDERR) == 31
        assert await append(client, session_id, 1, 31, b"", STDERR) == 31
        assert await append(client, session_id, 1, 0, b"o" * 69) == 69
        await refused(
            *(append(client, session_id, 1, 69, b"x"), FAILED_PRECONDITION, "OUTPUT_TOO_LARGE"),
            session_id=session_id,
            sequence="1",
            maximum_bytes="100",
        )
        finished = await finish(client, session_id, 1)
        for output, content in ((finished.output, b"o" * 69), (finished.error_output, b"e" * 31)):
            assert output.text == content.decode()
            assert output.sha256 == sha256(content).hexdigest()
        # Another execution has its own hundred.
        await begin(client, session_id)
        assert await append(client, session_id, 2, 0, b"o" * 100) == 100


async def test_many_writers_of_one_chunk_write_it_once(database_url: str) -> None:
    async with serving(database_url) as client:
        session_id = await running_session(client)
        await begin(client, session_id)
        whole = bytes(range(200))
        for offset in range(0, 200, 10):
            sizes = await asyncio.gather(
                *(
                    append(client, session_id, 1, offset, whole[offset : offset + 10])
                    for _ in "1234"
                )
            )
            assert set(sizes) == {offset + 10}
        # Of those who would write different ones, one does.
        calls = [
            client.recording.AppendOutput(
                recording.AppendOutputRequest(
                    session_id=session_id,
                    sequence=1,
                    stream=STDOUT,
                    offset=200,
                    data=bytes([number] * 5),
                )
            )
            for number in range(10)
        ]
        codes = [await call.code() for call in calls]
        [winner] = [n for n, code in enumerate(codes) if code is grpc.StatusCode.OK]
        for call, code in zip(calls, codes, strict=True):
            if code is not grpc.StatusCode.OK:
                await refused(call, ABORTED, "OUTPUT_OFFSET_MISMATCH", size_bytes="205")
        finished = await finish(client, session_id, 1)
        expected = whole + bytes([winner] * 5)
        assert finished.output.sha256 == sha256(expected).hexdigest()
        assert b"".join(await read_output(client, session_id, 1)) == expected


# FinishExecution.


async def test_an_equal_finish_is_a_repeat(client: Client, clock: FrozenClock) -> None:
    session_id = await running_session(client)
    await begin(client, session_id)
    await append(client, session_id, 1, 0, b"abc")
    finished = await finish(client, session_id, 1, 1, at(5))
    after = await get_session(client, session_id)

    async def repeats() -> None:
        clock.advance(1)
        for request_id in ("", "x", "x", "y"):
            again = await finish(client, session_id, 1, 1, at(5), request_id)
            assert again == finished
        # Times are cut to the microsecond.
        cut = Timestamp(seconds=START_SECONDS + 5, nanos=999)
        assert await finish(client, session_id, 1, 1, cut) == finished

    async def others() -> None:
        for exit_code, end_time in ((0, at(5)), (None, at(5)), (1, at(6)), (1, at(4))):
            await is_finished(finish(client, session_id, 1, exit_code, end_time), session_id)
        # Even one that ends before it started.
        await is_finished(finish(client, session_id, 1, 1, at(-100)), session_id)
        await refused(
            finish(client, session_id, 1, 2, at(5), "x"),
            grpc.StatusCode.ALREADY_EXISTS,
            "REQUEST_ID_REUSED",
            request_id="x",
        )

    await repeats()
    await others()
    session = await get_session(client, session_id)
    assert (session.failed_execution_count, session.last_activity_time) == (
        after.failed_execution_count,
        after.last_activity_time,
    )
    await submit(client, session_id)
    await repeats()
    await others()


async def test_a_finish_is_repeated_with_its_request_id(client: Client) -> None:
    session_id = await running_session(client)
    for _ in range(3):
        await begin(client, session_id)
    finished = await finish(client, session_id, 1, 0, request_id="x")
    assert await finish(client, session_id, 1, 0, request_id="x") == finished
    for sequence, exit_code in ((2, 0), (1, 1)):
        await refused(
            finish(client, session_id, sequence, exit_code, request_id="x"),
            grpc.StatusCode.ALREADY_EXISTS,
            "REQUEST_ID_REUSED",
            request_id="x",
        )
    assert (await get_execution(client, session_id, 2)).state == UNFINISHED
    # A refused one is not remembered.
    await refused(finish(client, session_id, 2, 0, at(-100), "y"), INVALID, "INVALID_REQUEST")
    assert (await finish(client, session_id, 3, 0, request_id="y")).state == EXITED


async def test_what_was_recorded_whole_is_finished(client: Client) -> None:
    session_id = await running_session(client)
    whole = await record(client, session_id, exit_code=3, output={"text": "abc"})
    without_end = await record(client, session_id, end_time=None)
    assert await finish(client, session_id, 1, 3, at(-1)) == whole
    await is_finished(finish(client, session_id, 1, 0, at(-1)), session_id)
    await is_finished(finish(client, session_id, 2, 0, at(-1)), session_id, 2)
    assert await get_execution(client, session_id, 2) == without_end
    assert await append(client, session_id, 1, 0, b"abc") == 3
    await is_finished(append(client, session_id, 1, 3, b"d"), session_id)
    await is_finished(append(client, session_id, 1, 0, b"e", STDERR), session_id)
    assert await get_execution(client, session_id, 1) == whole


async def test_an_end_before_the_start_is_refused(client: Client) -> None:
    session_id = await running_session(client)
    await begin(client, session_id, start_time=at(0))
    answer = await refused(
        finish(client, session_id, 1, 0, at(-0.000001)), INVALID, "INVALID_REQUEST"
    )
    assert answer.fields == ["end_time"]
    assert (await get_execution(client, session_id, 1)).state == UNFINISHED
    assert (await finish(client, session_id, 1, 0, at(0))).end_time == at(0)


async def test_of_many_different_finishes_one_wins(database_url: str) -> None:
    async with serving(database_url) as client:
        session_id = await running_session(client)
        for sequence in range(1, 6):
            await begin(client, session_id)
            await append(client, session_id, sequence, 0, b"abc" * 1000)
            calls = [
                client.recording.FinishExecution(
                    recording.FinishExecutionRequest(
                        session_id=session_id,
                        sequence=sequence,
                        exit_code=1 + number // 3,
                        end_time=at(0),
                        request_id=f"{sequence}.{number}" if number % 2 else "",
                    )
                )
                for number in range(30)
            ]
            codes = [await call.code() for call in calls]
            winners = [n for n, code in enumerate(codes) if code is grpc.StatusCode.OK]
            first = 3 * (winners[0] // 3)
            assert winners == [first, first + 1, first + 2]
            for call, code in zip(calls, codes, strict=True):
                if code is not grpc.StatusCode.OK:
                    await is_finished(call, session_id, sequence)
            assert (await get_execution(client, session_id, sequence)).exit_code == 1 + first // 3
            session = await get_session(client, session_id)
            assert session.failed_execution_count == sequence


async def test_a_finish_that_races_appends_has_the_digest_of_the_whole(database_url: str) -> None:
    async with serving(database_url) as client:
        session_id = await running_session(client)
        for sequence in range(1, 9):
            await begin(client, session_id)
            stored = {STDOUT: b"", STDERR: b""}
            enough = asyncio.Event()

            async def print_on(
                stream: execution_pb2.OutputStream,
                sequence: int = sequence,
                stored: dict[Any, bytes] = stored,
                enough: asyncio.Event = enough,
            ) -> None:
                for number in range(200):
                    data = bytes([number]) * 50_000
                    call = append(client, session_id, sequence, len(stored[stream]), data, stream)
                    try:
                        size = await call
                    except grpc.aio.AioRpcError as error:
                        assert error.code() is FAILED_PRECONDITION  # noqa: PT017
                        return
                    stored[stream] += data
                    assert size == len(stored[stream])
                    if number == sequence:
                        enough.set()
                raise AssertionError("it was finished long ago")

            printing = asyncio.gather(print_on(STDOUT), print_on(STDERR))
            await enough.wait()
            finished = await finish(client, session_id, sequence)
            await printing
            for output, stream in ((finished.output, STDOUT), (finished.error_output, STDERR)):
                assert output.size_bytes == len(stored[stream])
                assert output.sha256 == sha256(stored[stream]).hexdigest()
                read = await read_output(client, session_id, sequence, stream=stream)
                assert b"".join(read) == stored[stream]


async def test_a_finish_that_races_a_submit_happens_or_does_not(database_url: str) -> None:
    async with serving(database_url) as client:
        results = set()
        for number in range(20):
            session_id = await running_session(client, f"ag_{number}")
            await asyncio.gather(*(begin(client, session_id) for _ in range(10)))
            calls = [
                client.recording.FinishExecution(
                    recording.FinishExecutionRequest(
                        session_id=session_id, sequence=sequence, exit_code=1, end_time=at(0)
                    )
                )
                for sequence in range(1, 11)
            ]
            if number % 2:
                await calls[number % 10].code()
            submitted = await submit(client, session_id)
            finished = [
                sequence
                for sequence, call in enumerate(calls, 1)
                if await call.code() is grpc.StatusCode.OK
            ]
            for sequence, call in enumerate(calls, 1):
                if sequence not in finished:
                    await not_running(call, session_id, "SESSION_STATUS_PENDING_REVIEW")
            assert submitted.failed_execution_count == len(finished)
            assert await get_session(client, session_id) == submitted
            listed = await list_executions(client, session_id, failed_only=True)
            assert [one.sequence for one in listed] == finished
            results |= {sequence in finished for sequence in range(1, 11)}
        assert True in results


# Refusals of all three.


async def test_what_does_not_exist(client: Client) -> None:
    session_id = await running_session(client)
    await begin(client, session_id)
    for sequence in (2, 2**31 - 1):
        for call in (
            append(client, session_id, sequence, 0, b"x"),
            append(client, session_id, sequence, 0, b""),
            finish(client, session_id, sequence),
            finish(client, session_id, sequence, request_id="x"),
        ):
            answer = await refused(
                *(call, grpc.StatusCode.NOT_FOUND, "EXECUTION_NOT_FOUND"),
                session_id=session_id,
                sequence=str(sequence),
            )
            assert session_id in answer.message
    for call in (
        begin(client, NO_SESSION),
        append(client, NO_SESSION, 1, 0, b"x"),
        append(client, NO_SESSION, 1, 0, b""),
        finish(client, NO_SESSION, 1),
    ):
        await refused(
            *(call, grpc.StatusCode.NOT_FOUND, "SESSION_NOT_FOUND"), session_id=NO_SESSION
        )


Made = Callable[[str], Any]
BROKEN: dict[str, tuple[str, Made, list[str]]] = {
    "begin: nothing": (
        "BeginExecution",
        lambda _: recording.BeginExecutionRequest(),
        ["session_id", "command", "capability", "start_time"],
    ),
    "begin: everything": (
        "BeginExecution",
        lambda _: recording.BeginExecutionRequest(
            session_id="é",
            command="x" * 65_537,
            capability="Shell",
            start_time={"nanos": -1},
            step="x" * 201,
            request_id="x" * 65,
        ),
        ["session_id", "command", "capability", "start_time", "step", "request_id"],
    ),
    "begin: blank command": (
        "BeginExecution",
        lambda session_id: begin_request(session_id, command=" \n"),
        ["command"],
    ),
    "append: nothing": (
        "AppendOutput",
        lambda _: recording.AppendOutputRequest(),
        ["session_id", "sequence", "stream"],
    ),
    "append: everything": (
        "AppendOutput",
        lambda _: recording.AppendOutputRequest(
            session_id="é",
            sequence=-1,
            stream=3,  # type: ignore[arg-type]
            offset=-1,
            data=b"x" * (MIB + 1),
        ),
        ["session_id", "sequence", "stream", "offset", "data"],
    ),
    "append: too large a chunk": (
        "AppendOutput",
        lambda session_id: recording.AppendOutputRequest(
            session_id=session_id, sequence=1, stream=STDOUT, data=b"x" * (MIB + 1)
        ),
        ["data"],
    ),
    "finish: nothing": (
        "FinishExecution",
        lambda _: recording.FinishExecutionRequest(),
        ["session_id", "sequence", "end_time"],
    ),
    "finish: everything": (
        "FinishExecution",
        lambda _: recording.FinishExecutionRequest(
            session_id="é", sequence=-1, end_time={"nanos": -1}, request_id="\0"
        ),
        ["session_id", "sequence", "end_time", "request_id"],
    ),
}


@pytest.mark.parametrize("case", BROKEN)
async def test_broken_rules_are_all_named(client: Client, case: str) -> None:
    method, made, fields = BROKEN[case]
    session_id = await running_session(client)
    begun = await begin(client, session_id)
    call = getattr(client.recording, method)(made(session_id))
    assert (await refused(call, INVALID, "INVALID_REQUEST")).fields == fields
    assert await list_executions(client, session_id) == [begun]


async def test_the_largest_chunk_is_taken(client: Client) -> None:
    session_id = await running_session(client)
    await begin(client, session_id)
    assert await append(client, session_id, 1, 0, b"x" * MIB) == MIB
    # Repeated across the borders of chunks of other sizes.
    assert await append(client, session_id, 1, MIB, b"y") == MIB + 1
    assert await append(client, session_id, 1, 1, b"x" * (MIB - 1) + b"y") == MIB + 1
