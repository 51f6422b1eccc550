import asyncio
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from harness import (
    LOCAL,
    Client,
    FrozenClock,
    at,
    collect,
    get_session,
    list_executions,
    record,
    refused,
    running_session,
    submit,
)
from infrascout.sessions.v1 import execution_pb2
from infrascout.sessions.v1 import recording_service_pb2 as recording
from infrascout.sessions.v1 import session_service_pb2 as pb

MIB = 1024 * 1024
Output = execution_pb2.Output
EXITED, KILLED = execution_pb2.EXECUTION_STATE_EXITED, execution_pb2.EXECUTION_STATE_KILLED


async def get_execution(client: Client, session_id: str, sequence: int) -> execution_pb2.Execution:
    request = pb.GetExecutionRequest(session_id=session_id, sequence=sequence)
    return (await client.sessions.GetExecution(request)).execution


async def responses(client: Client, session_id: str, **fields: Any) -> list[Any]:
    request = pb.ListExecutionsRequest(session_id=session_id, **fields)
    return await collect(client.sessions.ListExecutions(request))


async def sequences(client: Client, session_id: str, **fields: Any) -> list[int]:
    return [execution.sequence for execution in await list_executions(client, session_id, **fields)]


# Recording.


async def test_an_execution_is_recorded_whole(client: Client, clock: FrozenClock) -> None:
    session_id = await running_session(client)
    clock.advance(3)
    response = await client.recording.RecordExecution(
        recording.RecordExecutionRequest(
            session_id=session_id,
            command="  ss -tln\n",
            capability="shell",
            output=Output(text="LISTEN 0\n"),
            error_output=Output(binary=b"\xff"),
            exit_code=2,
            start_time=at(-10.5),
            end_time=at(-10),
            step="2.1 listening ports",
        )
    )
    expected = execution_pb2.Execution(
        execution_id="exec_00000000000000000000000000000002",
        session_id=session_id,
        sequence=1,
        state=EXITED,
        command="  ss -tln\n",
        capability="shell",
        output=Output(
            text="LISTEN 0\n",
            size_bytes=9,
            sha256="4f1a3ccb12ddfb3e04f5cae00c364611fc383d59b0cb953f06ce446597765498",
        ),
        error_output=Output(
            binary=b"\xff",
            size_bytes=1,
            sha256="a8100ae6aa1940d0b663bb31cd466142ebbdbd5187131b92d93818987832eb89",
        ),
        exit_code=2,
        start_time=at(-10.5),
        end_time=at(-10),
        record_time=at(3),
        actor=LOCAL,
        step="2.1 listening ports",
        finish_record_time=at(3),
    )
    assert response == recording.RecordExecutionResponse(execution=expected)
    reply = await client.sessions.GetExecution(
        pb.GetExecutionRequest(session_id=session_id, sequence=1)
    )
    assert reply == pb.GetExecutionResponse(execution=expected)
    assert await responses(client, session_id) == [pb.ListExecutionsResponse(executions=[expected])]


async def test_what_is_not_sent_is_not_there(client: Client) -> None:
    session_id = await running_session(client)
    execution = await record(client, session_id, exit_code=None, end_time=None)
    assert execution == execution_pb2.Execution(
        execution_id="exec_00000000000000000000000000000002",
        session_id=session_id,
        sequence=1,
        state=KILLED,
        command="uname -a",
        capability="shell",
        start_time=at(-2),
        record_time=at(0),
        finish_record_time=at(0),
        actor=LOCAL,
    )
    assert await get_execution(client, session_id, 1) == execution


@pytest.mark.parametrize(
    ("exit_code", "state", "failed"),
    [
        (0, EXITED, False),
        (1, EXITED, True),
        (255, EXITED, True),
        (-1073741819, EXITED, True),
        (2**31 - 1, EXITED, True),
        (-(2**31), EXITED, True),
        (None, KILLED, True),
    ],
)
async def test_an_exit_code_decides_state_and_failure(
    client: Client, exit_code: int | None, state: execution_pb2.ExecutionState, failed: bool
) -> None:
    session_id = await running_session(client)
    for execution in (
        await record(client, session_id, exit_code=exit_code),
        await get_execution(client, session_id, 1),
    ):
        assert execution.state == state
        assert (execution.exit_code if execution.HasField("exit_code") else None) == exit_code
    assert (await get_session(client, session_id)).failed_execution_count == failed
    assert await sequences(client, session_id, failed_only=True) == ([1] if failed else [])


async def test_sequences_count_from_one_in_each_session(client: Client) -> None:
    first, second = await running_session(client, "ag_1"), await running_session(client, "ag_2")
    made = [
        (await record(client, session_id)).sequence
        for session_id in (first, first, second, first, second)
    ]
    assert made == [1, 2, 1, 3, 2]


async def test_many_at_once_leave_no_gap(client: Client) -> None:
    session_id = await running_session(client)
    made = await asyncio.gather(
        *(record(client, session_id, command=f"echo {n}", exit_code=n % 3) for n in range(64))
    )
    assert sorted(execution.sequence for execution in made) == list(range(1, 65))
    listed = await list_executions(client, session_id)
    assert listed == sorted(made, key=lambda execution: execution.sequence)
    session = await get_session(client, session_id)
    assert session.execution_count == 64
    assert session.failed_execution_count == 42


@pytest.mark.parametrize("time", ["start_time", "end_time"])
@pytest.mark.parametrize(
    ("sent_nanos", "kept_nanos"),
    [(123_456_000, 123_456_000), (123_456_999, 123_456_000), (999_999_999, 999_999_000), (1, 0)],
)
async def test_times_are_cut_to_the_microsecond(
    client: Client, time: str, sent_nanos: int, kept_nanos: int
) -> None:
    session_id = await running_session(client)
    # Before 1970, where rounding towards zero would show.
    start = Timestamp(seconds=-10)
    fields = {"start_time": start, "end_time": Timestamp(seconds=-5)}
    fields[time] = Timestamp(seconds=fields[time].seconds, nanos=sent_nanos)
    recorded = await record(client, session_id, **fields)
    fields[time].nanos = kept_nanos
    for execution in (recorded, await get_execution(client, session_id, 1)):
        assert execution.start_time == fields["start_time"]
        assert execution.end_time == fields["end_time"]


async def test_no_such_execution(client: Client) -> None:
    session_id = await running_session(client)
    await record(client, session_id)
    for sequence in (2, 2**31 - 1):
        answer = await refused(
            get_execution(client, session_id, sequence),
            grpc.StatusCode.NOT_FOUND,
            "EXECUTION_NOT_FOUND",
            session_id=session_id,
            sequence=str(sequence),
        )
        assert session_id in answer.message
        assert str(sequence) in answer.message


# Listing.


async def test_a_session_without_executions_is_an_empty_stream(client: Client) -> None:
    session_id = await running_session(client)
    assert await responses(client, session_id) == []
    await submit(client, session_id)
    assert await responses(client, session_id) == []


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, [1, 2, 3, 4, 5, 6]),
        ({"after_sequence": 4}, [5, 6]),
        ({"after_sequence": 6}, []),
        ({"after_sequence": 2**31 - 1}, []),
        ({"limit": 2}, [1, 2]),
        ({"limit": 6}, [1, 2, 3, 4, 5, 6]),
        ({"limit": 2**31 - 1}, [1, 2, 3, 4, 5, 6]),
        ({"after_sequence": 1, "limit": 3}, [2, 3, 4]),
        ({"failed_only": True}, [2, 4, 5]),
        ({"failed_only": True, "limit": 2}, [2, 4]),
        ({"failed_only": True, "after_sequence": 2}, [4, 5]),
        ({"failed_only": True, "after_sequence": 2, "limit": 1}, [4]),
        ({"failed_only": True, "after_sequence": 5}, []),
    ],
    ids=str,
)
async def test_what_is_listed(client: Client, fields: dict[str, Any], expected: list[int]) -> None:
    session_id = await running_session(client)
    for exit_code in (0, 1, 0, None, -1, 0):
        await record(client, session_id, exit_code=exit_code)
    assert await sequences(client, session_id, **fields) == expected


async def test_a_long_list_has_no_gap_and_no_repeat(client: Client) -> None:
    session_id = await running_session(client)
    await asyncio.gather(*(record(client, session_id) for _ in range(1100)))
    for limit in (0, 49, 50, 51, 1049, 1050, 1051, 1099, 1100, 1101):
        expected = list(range(1, min(limit or 1100, 1100) + 1))
        assert await sequences(client, session_id, limit=limit) == expected


async def test_a_broken_stream_is_resumed_after_the_last_received(client: Client) -> None:
    session_id = await running_session(client)
    await asyncio.gather(*(record(client, session_id) for _ in range(120)))
    received: list[int] = []
    while len(received) < 120:
        after = received[-1] if received else 0
        stream = client.sessions.ListExecutions(
            pb.ListExecutionsRequest(session_id=session_id, after_sequence=after)
        )
        async for response in stream:
            received += [execution.sequence for execution in response.executions]
            stream.cancel()
            break
    assert received == list(range(1, 121))


async def test_a_response_is_at_most_1_mib_whatever_fills_it(client: Client) -> None:
    session_id = await running_session(client)
    small: dict[str, Any] = {
        "step": "𝄞" * 200,
        "capability": "c" * 64,
        "output": Output(text=""),
        "error_output": Output(text=""),
        "exit_code": -1,
        "start_time": at(-(10**10)),
    }
    large: dict[str, Any] = {"command": "é" * 1000, "output": Output(text="x" * 60_000)}
    for filling, count in ((small, 1000), (large, 40)):
        await asyncio.gather(*(record(client, session_id, **filling) for _ in range(count)))
    streamed = await responses(client, session_id)
    sizes = [response.ByteSize() for response in streamed]
    assert 900_000 < max(sizes) <= MIB
    listed = [execution.sequence for response in streamed for execution in response.executions]
    assert listed == list(range(1, 1041))


async def test_an_execution_larger_than_1_mib_comes_alone(client: Client) -> None:
    session_id = await running_session(client)
    small, large = {"output": Output(text="x")}, {"output": Output(text="x" * MIB)}
    largest = {**large, "error_output": Output(text="y" * MIB), "command": "𝄞" * 65_536}
    for filling in (small, large, small, small, largest, small):
        await record(client, session_id, **filling)
    streamed = await responses(client, session_id)
    assert [[e.sequence for e in response.executions] for response in streamed] == [
        [1],
        [2],
        [3, 4],
        [5],
        [6],
    ]
    for sequence in (2, 5):
        [execution] = next(
            response.executions
            for response in streamed
            if response.executions[0].sequence == sequence
        )
        assert execution == await get_execution(client, session_id, sequence)


async def test_outputs_cut_short_let_more_into_a_response(client: Client) -> None:
    session_id = await running_session(client)
    for _ in range(8):
        await record(client, session_id, output=Output(text="x" * MIB))
    [response] = await responses(client, session_id, max_output_bytes=1000)
    assert [execution.output.text for execution in response.executions] == ["x" * 1000] * 8


async def test_a_stream_sees_what_was_recorded_while_it_ran(client: Client) -> None:
    session_id = await running_session(client)
    for _ in range(12):
        await record(client, session_id, output=Output(binary=b"\xff" * MIB))
    received: list[int] = []
    async for response in client.sessions.ListExecutions(
        pb.ListExecutionsRequest(session_id=session_id)
    ):
        received += [execution.sequence for execution in response.executions]
        if len(received) == 1:
            late = await record(client, session_id)
    assert received[:12] == list(range(1, 13))
    assert received[12:] in ([], [late.sequence])
