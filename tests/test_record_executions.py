"""`RecordExecutions`: batches in, results out, and no execution lost, doubled or half there."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from harness import (
    LOCAL,
    NO_SESSION,
    Client,
    FrozenClock,
    at,
    connected,
    failed,
    get_session,
    list_executions,
    record,
    record_request,
    refused,
    running_session,
    service_process,
    serving,
    submit,
)
from infrascout.sessions.v1 import error_reason_pb2, execution_pb2
from infrascout.sessions.v1 import recording_service_pb2 as pb
from streams import (
    EXITED,
    MIB,
    SERVICE,
    batch,
    batch_of,
    memory_bytes,
    outcomes,
    record_all,
)

INVALID = grpc.StatusCode.INVALID_ARGUMENT
METHOD = "/infrascout.sessions.v1.RecordingService/RecordExecutions"


async def commands(client: Client, session_id: str) -> list[str]:
    """What is on record, in order; the sequences must have no gap."""
    executions = await list_executions(client, session_id, max_output_bytes=0)
    assert [one.sequence for one in executions] == list(range(1, len(executions) + 1))
    return [one.command for one in executions]


# What is recorded.


async def test_a_batch_is_recorded_whole(client: Client, clock: FrozenClock) -> None:
    first, second = await running_session(client, "ag_1"), await running_session(client, "ag_2")
    clock.advance(3)
    [results] = await record_all(
        client,
        batch(
            record_request(first, command="one", output={"text": "1"}, request_id="a"),
            record_request(second, command="two", error_output={"binary": b"\xff"}),
            record_request(first, command="three", exit_code=None, end_time=None, step="2.1"),
        ),
    )
    listed = [*await list_executions(client, first), *await list_executions(client, second)]
    ids = {one.command: one.execution_id for one in listed}
    assert len(set(ids.values())) == 3
    assert [(result.request_id, result.recorded) for result in results] == [
        (request_id, pb.Recorded(session_id=session, execution_id=ids[command], sequence=sequence))
        for request_id, session, command, sequence in (
            ("a", first, "one", 1),
            ("", second, "two", 1),
            ("", first, "three", 2),
        )
    ]
    # As RecordExecution would have recorded them.
    as_sent: list[dict[str, Any]] = [
        {"command": "one", "output": {"text": "1"}},
        {"command": "three", "exit_code": None, "end_time": None, "step": "2.1"},
        {"command": "two", "error_output": {"binary": b"\xff"}},
    ]
    for execution, fields in zip(listed, as_sent, strict=True):
        alone = await record(client, execution.session_id, **fields)
        assert execution.record_time == at(3)
        alone.execution_id, alone.sequence = execution.execution_id, execution.sequence
        assert execution == alone
        assert execution.actor == LOCAL
    assert (await get_session(client, first)).failed_execution_count == 2


async def test_each_message_is_answered_in_order(database_url: str) -> None:
    async with serving(database_url) as client:
        sessions = [await running_session(client, f"ag_{number}") for number in range(5)]
        sizes = (1, 1000, 2, 999, 3, 63, 64, 65, 500)
        sent: dict[str, list[str]] = {session_id: [] for session_id in sessions}
        messages = []
        for message, size in enumerate(sizes):
            executions = []
            for index in range(size):
                session_id = sessions[(index * 7 + message) % 5]
                command = f"{message}.{index}"
                sent[session_id].append(command)
                executions.append(record_request(session_id, command=command, exit_code=index % 3))
            messages.append(batch(*executions))
        answered = await record_all(client, *messages)
        assert [len(results) for results in answered] == list(sizes)
        # Those of a session got their sequences in the order sent.
        for session_id, expected in sent.items():
            assert await commands(client, session_id) == expected
            recorded = [
                result.recorded.sequence
                for results in answered
                for result in results
                if result.recorded.session_id == session_id
            ]
            assert recorded == list(range(1, len(expected) + 1))
            session = await get_session(client, session_id)
            assert session.execution_count == len(expected)
            executions_ = await list_executions(client, session_id)
            assert session.failed_execution_count == sum(e.exit_code != 0 for e in executions_)


async def test_a_message_is_answered_before_the_next_is_sent(database_url: str) -> None:
    async with serving(database_url) as client:
        session_id = await running_session(client)
        call: Any = client.recording.RecordExecutions()
        for number in range(1, 21):
            await call.write(batch(record_request(session_id, command=f"{number}")))
            response = await call.read()
            assert outcomes(response.results) == [number]
            # It is durable, and there for everybody, by now.
            assert (await get_session(client, session_id)).execution_count == number
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
        assert await call.code() is grpc.StatusCode.OK


async def test_many_streams_and_calls_at_once_leave_no_gap(database_url: str) -> None:
    async with serving(database_url) as client:
        sessions = [await running_session(client, f"ag_{number}") for number in range(3)]

        async def stream(name: str) -> list[tuple[str, int, str]]:
            """Session, sequence and command of each."""
            requests = [
                [record_request(sessions[i % 3], command=f"{name}.{m}.{i}") for i in range(30)]
                for m in range(10)
            ]
            answered = await record_all(client, *(batch(*message) for message in requests))
            return [
                (result.recorded.session_id, result.recorded.sequence, request.command)
                for message, results in zip(requests, answered, strict=True)
                for request, result in zip(message, results, strict=True)
            ]

        async def unary(name: str) -> list[tuple[str, int, str]]:
            made = [
                await record(client, sessions[number % 3], command=f"{name}.{number}")
                for number in range(30)
            ]
            return [(one.session_id, one.sequence, one.command) for one in made]

        told = await asyncio.gather(
            *(stream(f"stream {n}") for n in range(6)), *(unary(f"unary {n}") for n in range(6))
        )
        recorded = sorted(one for some in told for one in some)
        listed = [
            (session_id, sequence, command)
            for session_id in sorted(sessions)
            for sequence, command in enumerate(await commands(client, session_id), 1)
        ]
        assert listed == recorded
        assert len(recorded) == 6 * 300 + 6 * 30
        for some in told:
            for session_id in sessions:
                own = [sequence for one, sequence, _ in some if one == session_id]
                assert own == sorted(own)


# What is refused, one by one.


async def test_a_refused_one_stops_no_other(database_url: str) -> None:
    async with serving(database_url) as client:
        session_id = await running_session(client, "ag_1")
        ended = await running_session(client, "ag_2")
        await record(client, ended, command="before", request_id="before")
        await record(client, session_id, command="known", request_id="known")
        await submit(client, ended)
        good = record_request(session_id, command="good")
        cases: list[tuple[pb.RecordExecutionRequest, str, dict[str, str], list[str]]] = [
            (record_request(NO_SESSION), "SESSION_NOT_FOUND", {"session_id": NO_SESSION}, []),
            (
                record_request(ended, request_id="r"),
                "SESSION_NOT_RUNNING",
                {"session_id": ended, "status": "SESSION_STATUS_PENDING_REVIEW"},
                [],
            ),
            (
                record_request(session_id, command="other", request_id="known"),
                "REQUEST_ID_REUSED",
                {"request_id": "known"},
                [],
            ),
            (
                record_request(ended, command="other", request_id="before"),
                "REQUEST_ID_REUSED",
                {"request_id": "before"},
                [],
            ),
            (
                record_request(session_id, command=" ", capability="No", end_time=at(-3)),
                "INVALID_REQUEST",
                {},
                ["command", "capability", "end_time"],
            ),
            (
                record_request(session_id, output={"text": "x" * (MIB + 1)}),
                "INVALID_REQUEST",
                {},
                ["output"],
            ),
            (record_request(""), "INVALID_REQUEST", {}, ["session_id"]),
            (
                pb.RecordExecutionRequest(),
                "INVALID_REQUEST",
                {},
                ["session_id", "command", "capability", "start_time"],
            ),
        ]
        requests = [one for request, *_ in cases for one in (good, request)]
        for twice in range(2):
            # All in one message, and each in a message of its own.
            messages = [batch(*requests)] if twice else [batch(one) for one in requests]
            answered = await record_all(client, *messages)
            results = [result for message in answered for result in message]
            assert len(results) == len(requests)
            for result in results[::2]:
                assert result.WhichOneof("result") == "recorded"
            for result, (request, reason, metadata, fields) in zip(
                results[1::2], cases, strict=True
            ):
                alone = await failed(client.recording.RecordExecution(request))
                refusal = result.refusal
                assert result.WhichOneof("result") == "refusal"
                assert result.request_id == request.request_id
                assert refusal.code == alone.code().value[0]
                assert error_reason_pb2.ErrorReason.Name(refusal.reason) == f"ERROR_REASON_{reason}"
                assert refusal.message == alone.details()
                assert refusal.metadata == metadata
                assert [one.field for one in refusal.violations] == fields
                assert all(violation.description for violation in refusal.violations)
        assert await commands(client, session_id) == ["known", *["good"] * 16]
        assert await commands(client, ended) == ["before"]


async def test_the_violations_of_a_refused_one_are_bounded(client: Client) -> None:
    session_id = await running_session(client)
    bad = pb.RecordExecutionRequest(
        session_id="é" * 1000,
        command="\0",
        capability="É",
        step="x" * 201,
        request_id="y" * 65,
        output=execution_pb2.Output(text="x" * (MIB + 1)),
        start_time={"nanos": -1},
        end_time={"nanos": -1},
    )
    [results] = await record_all(client, batch(*[bad] * 3, record_request(session_id)))
    alone = await refused(client.recording.RecordExecution(bad), INVALID, "INVALID_REQUEST")
    assert outcomes(results) == ["INVALID_REQUEST"] * 3 + [1]
    for result in results[:3]:
        found = [(one.field, one.description) for one in result.refusal.violations]
        assert found == alone.violations
        assert len(found) >= 8


async def test_long_request_ids_make_no_answer_that_is_too_large(client: Client) -> None:
    session_id = await running_session(client)
    good = record_request(session_id, request_id="g" * 64)
    bad = [
        record_request(
            session_id, command="", capability="", request_id=f"{number:04d}" + "é" * 2000
        )
        for number in range(999)
    ]
    message = batch(good, *bad)
    assert message.ByteSize() > 4_050_000
    [results] = await record_all(client, message)
    assert outcomes(results) == [1, *["INVALID_REQUEST"] * 999]
    assert [result.request_id for result in results] == [
        one.request_id[:64] for one in message.executions
    ]
    assert len(results[1].refusal.violations) == 3


async def test_a_session_that_ends_in_between_refuses_the_rest(database_url: str) -> None:
    async with serving(database_url) as client:
        session_id = await running_session(client, "ag_1")
        other = await running_session(client, "ag_2")
        call: Any = client.recording.RecordExecutions()
        both = batch(record_request(session_id), record_request(other))
        await call.write(both)
        assert outcomes((await call.read()).results) == [1, 1]
        await submit(client, session_id)
        await call.write(both)
        assert outcomes((await call.read()).results) == ["SESSION_NOT_RUNNING", 2]
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
        assert await call.code() is grpc.StatusCode.OK


async def test_streams_that_race_a_submit_leave_no_gap(database_url: str) -> None:
    async with serving(database_url) as client:
        session_id = await running_session(client)
        results: list[int | str] = []
        in_the_middle = asyncio.Event()

        async def stream(name: int) -> None:
            call: Any = client.recording.RecordExecutions()
            for message in range(20):
                await call.write(batch_of(session_id, [f"{name}.{message}.{n}" for n in range(7)]))
                results.extend(outcomes((await call.read()).results))
                if len(results) > 300:
                    in_the_middle.set()
            await call.done_writing()
            assert await call.read() is grpc.aio.EOF

        load = asyncio.gather(*(stream(name) for name in range(8)))
        await in_the_middle.wait()
        submitted = await submit(client, session_id)
        await load
        recorded = [one for one in results if isinstance(one, int)]
        assert sorted(recorded) == list(range(1, len(recorded) + 1))
        assert {one for one in results if isinstance(one, str)} == {"SESSION_NOT_RUNNING"}
        assert submitted.execution_count == len(recorded) == len(await commands(client, session_id))


# Retries.


async def test_a_repeat_is_recognised_wherever_it_comes(database_url: str) -> None:
    """In a message, in a stream, in another stream, as a call of its own: one scope."""
    async with serving(database_url) as client:
        session_id = await running_session(client)

        def one(name: str) -> pb.RecordExecutionRequest:
            return record_request(session_id, command=name, request_id=name)

        unary = await client.recording.RecordExecution(one("unary"))
        answered = await record_all(
            client,
            batch(one("a"), one("a"), one("b")),  # in the message
            batch(one("b"), one("c"), one("unary")),  # in the stream; and across RPCs
            batch(one("d")),
        )
        assert [outcomes(results) for results in answered] == [[2, 2, 3], [3, 4, 1], [5]]
        ids = {result.recorded.execution_id for results in answered for result in results}
        assert len(ids) == 5
        assert answered[1][2].recorded.execution_id == unary.execution.execution_id
        # Another stream.
        again = await record_all(client, batch(*map(one, "dcba"), one("e")))
        assert [outcomes(results) for results in again] == [[5, 4, 3, 2, 6]]
        # A call.
        assert (await client.recording.RecordExecution(one("c"))).execution.sequence == 4
        # After the submit, too.
        await submit(client, session_id)
        [late] = await record_all(client, batch(one("a"), one("f"), one("unary")))
        assert outcomes(late) == [2, "SESSION_NOT_RUNNING", 1]
        assert await commands(client, session_id) == ["unary", "a", "b", "c", "d", "e"]


async def test_an_id_with_other_content_is_refused_alone(database_url: str) -> None:
    async with serving(database_url) as client:
        session_id = await running_session(client, "ag_1")
        other = await running_session(client, "ag_2")
        first = record_request(session_id, command="first", request_id="x")
        changed = record_request(session_id, command="changed", request_id="x")
        elsewhere = record_request(other, command="elsewhere", request_id="x")
        anonymous = record_request(session_id, command="anonymous")
        answered = await record_all(
            client,
            batch(first, changed, anonymous, elsewhere),
            batch(changed, first, anonymous),
        )
        assert [outcomes(results) for results in answered] == [
            [1, "REQUEST_ID_REUSED", 2, 1],
            ["REQUEST_ID_REUSED", 1, 3],
        ]
        assert await commands(client, session_id) == ["first", "anonymous", "anonymous"]
        assert await commands(client, other) == ["elsewhere"]


async def test_the_ids_of_other_calls_are_others(database_url: str) -> None:
    async with serving(database_url) as client:
        session_id = await running_session(client)
        begun = await client.recording.BeginExecution(
            pb.BeginExecutionRequest(
                session_id=session_id,
                command="c",
                capability="shell",
                start_time=at(0),
                request_id="x",
            )
        )
        [results] = await record_all(client, batch(record_request(session_id, request_id="x")))
        assert outcomes(results) == [begun.execution.sequence + 1]


async def test_many_streams_with_the_same_content_record_it_once(database_url: str) -> None:
    async with serving(database_url) as client:
        session_id = await running_session(client)
        names = [f"command {number}" for number in range(60)]
        messages = [batch_of(session_id, names[start : start + 20]) for start in (0, 20, 40)]
        answered = await asyncio.gather(
            *(record_all(client, *messages) for _ in range(8)),
            *(record_all(client, *reversed(messages)) for _ in range(2)),
        )
        recorded = {
            (result.request_id, result.recorded.sequence, result.recorded.execution_id)
            for stream in answered
            for results in stream
            for result in results
        }
        assert len(recorded) == 60
        listed = await list_executions(client, session_id)
        assert {(one.command, one.sequence, one.execution_id) for one in listed} == recorded
        assert len(listed) == (await get_session(client, session_id)).execution_count == 60


# What ends a stream.


async def test_a_stream_that_sends_nothing_ends_without_an_answer(database_url: str) -> None:
    async with serving(database_url) as client:
        assert await record_all(client) == []
        # Many that stay open do not keep others from theirs.
        silent: list[Any] = [client.recording.RecordExecutions() for _ in range(200)]
        await asyncio.gather(*(call.wait_for_connection() for call in silent))
        session_id = await running_session(client)
        [results] = await record_all(client, batch(record_request(session_id)))
        assert outcomes(results) == [1]
        for call in silent[:100]:
            call.cancel()
        for call in silent[100:]:
            await call.done_writing()
            assert await call.read() is grpc.aio.EOF
            assert await call.code() is grpc.StatusCode.OK


def serialized(message: pb.RecordExecutionsRequest) -> bytes:
    return message.SerializeToString()


def too_many(session_id: str) -> bytes:
    return serialized(batch(*[record_request(session_id)] * 1001))


@pytest.mark.parametrize(
    ("message", "field"),
    [
        pytest.param(lambda _: b"", "executions", id="none"),
        pytest.param(too_many, "executions", id="1,001"),
        pytest.param(lambda _: b"\xff\xff", "", id="no message"),
        pytest.param(lambda _: b"\x0a\x05abc", "", id="cut short"),
    ],
)
async def test_a_bad_message_ends_the_stream_after_what_came_before(
    database_url: str, message: Callable[[str], bytes], field: str
) -> None:
    async with serving(database_url) as client:
        session_id = await running_session(client)
        good = [batch_of(session_id, [f"{m}.{i}" for i in range(200)]) for m in range(20)]
        late = batch_of(session_id, ["late"])
        call: Any = client.channel.stream_stream(
            METHOD, response_deserializer=pb.RecordExecutionsResponse.FromString
        )()
        received: list[list[int | str]] = []

        async def write() -> None:
            for data in (*map(serialized, good), message(session_id), serialized(late)):
                try:
                    await call.write(data)
                except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                    return  # the stream has ended

        async def to_the_end() -> None:
            while (response := await call.read()) is not grpc.aio.EOF:
                received.append(outcomes(response.results))

        writer = asyncio.create_task(write())
        answer = await refused(to_the_end(), INVALID, "INVALID_REQUEST")
        await writer
        assert answer.fields == [field]
        assert received == [list(range(first, first + 200)) for first in range(1, 4001, 200)]
        assert len(await commands(client, session_id)) == 4000
        # It can be sent again, on another stream.
        [results] = await record_all(client, late)
        assert outcomes(results) == [4001]


async def test_a_full_thousand_is_taken(database_url: str) -> None:
    async with serving(database_url) as client:
        session_id = await running_session(client)
        [results] = await record_all(client, batch(*[record_request(session_id)] * 1000))
        assert outcomes(results) == list(range(1, 1001))


async def test_a_message_over_4_mib_ends_the_stream(database_url: str) -> None:
    async with serving(database_url) as client:
        session_id = await running_session(client)
        text = {"text": "x" * 1_000_000}
        large = record_request(session_id, output=text, error_output=text)
        fits = batch(large, record_request(session_id, output=text, error_output=text))
        assert 3_900_000 < fits.ByteSize() < 4 * MIB
        call: Any = client.recording.RecordExecutions()
        await call.write(fits)
        assert outcomes((await call.read()).results) == [1, 2]
        await call.write(batch(large, large, large))
        error = await failed(call.read())
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        # Nothing acknowledged is lost, nothing of the refused is there, and on it goes.
        assert len(await commands(client, session_id)) == 2
        [results] = await record_all(client, fits)
        assert outcomes(results) == [3, 4]


async def test_the_largest_message_of_results_can_be_received(database_url: str) -> None:
    async with serving(database_url) as client:
        bad = pb.RecordExecutionRequest(
            session_id="é" * 128,
            command="\0",
            capability="É",
            step="x" * 201,
            request_id="𝄞" * 64,
            start_time={"nanos": -1},
            end_time={"nanos": -1},
        )
        [results] = await record_all(client, batch(*[bad] * 1000))
        assert outcomes(results) == ["INVALID_REQUEST"] * 1000


async def test_a_cancelled_stream_leaves_whole_messages(database_url: str) -> None:
    output = {"text": "x" * 500}
    async with serving(database_url) as client:
        for attempt in range(10):
            session_id = await running_session(client, f"ag_{attempt}")
            messages = [[f"{m}.{i}" for i in range(20)] for m in range(12)]
            sent = [name for names in messages for name in names]
            # Some are answered, others are on their way.
            acknowledged = 1 + attempt // 5
            call: Any = client.recording.RecordExecutions()
            for names in messages[: acknowledged + attempt]:
                await call.write(batch_of(session_id, names, output=output))
            for _ in range(acknowledged):
                assert len((await call.read()).results) == 20
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call.read()
            # What is there at any time is the first messages, each whole, and what was answered.
            present = await commands(client, session_id)
            assert len(present) % 20 == 0
            assert len(present) >= 20 * acknowledged
            assert present == sent[: len(present)]
            for execution in await list_executions(client, session_id):
                assert (execution.state, execution.output.text) == (EXITED, "x" * 500)
            # And the client goes on as if nothing had been.
            again = await record_all(
                client, *(batch_of(session_id, names, output=output) for names in messages)
            )
            recorded = [one for results in again for one in outcomes(results)]
            assert sorted(map(int, recorded)) == list(range(1, 241))
            assert sorted(await commands(client, session_id)) == sorted(sent)


async def test_a_deadline_ends_a_stream(database_url: str) -> None:
    async with serving(database_url) as client:
        session_id = await running_session(client)
        call: Any = client.recording.RecordExecutions(timeout=0.5)
        await call.write(batch(record_request(session_id)))
        assert outcomes((await call.read()).results) == [1]
        error = await failed(call.read())
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        [results] = await record_all(client, batch(record_request(session_id)))
        assert outcomes(results) == [2]


async def test_a_server_that_stops_ends_a_stream(database_url: str, tmp_path: Path) -> None:
    """What was sent is answered first, and nobody waits for a client that sends nothing."""
    async with (
        service_process(
            *(database_url, tmp_path / "log", "--shutdown-grace", "60"), command=SERVICE
        ) as service,
        connected(service.address) as client,
    ):
        session_id = await running_session(client)
        calls: list[Any] = [client.recording.RecordExecutions() for _ in range(5)]
        for number, call in enumerate(calls[1:], 1):
            await call.write(batch(record_request(session_id)))
            assert outcomes((await call.read()).results) == [number]
        await calls[0].wait_for_connection()
        service.process.terminate()
        for call in calls:
            await refused(call.read(), grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN")
        async with asyncio.timeout(20):
            assert await service.process.wait() == 0


# Back-pressure.


async def test_too_many_waiting_writes_make_a_stream_wait(database_url: str) -> None:
    """Where a call of its own would be OVERLOADED, the stream is read no faster than it writes."""
    async with serving(database_url, maximum_waiting_writes=1) as client:
        session_id = await running_session(client)
        messages = [[f"{m}.{i}" for i in range(10)] for m in range(40)]
        streams = await asyncio.gather(
            *(
                record_all(
                    client,
                    *(batch_of(session_id, [f"{s}.{n}" for n in names]) for names in messages),
                )
                for s in range(4)
            )
        )
        recorded = [one for stream in streams for results in stream for one in outcomes(results)]
        assert sorted(map(int, recorded)) == list(range(1, 1601))


async def test_memory_stays_flat_when_a_client_sends_faster_than_the_disk_writes(
    database_url: str, tmp_path: Path
) -> None:
    async with (
        service_process(database_url, tmp_path / "log", command=SERVICE) as service,
        connected(service.address) as client,
    ):
        session_id = await running_session(client)
        text = {"text": "x" * 900_000}
        large = record_request(session_id, output=text, error_output=text)
        message = batch(large, large)
        await record_all(client, message)
        before = memory_bytes(service)
        count = 210_000_000 // message.ByteSize()
        answered = await record_all(client, *[message] * count)
        recorded = [one for results in answered for one in outcomes(results)]
        assert recorded == list(range(3, 2 * count + 3))
        assert memory_bytes(service, "VmHWM") - before < 120 * MIB


async def test_memory_stays_flat_when_a_client_reads_no_acknowledgement(
    database_url: str, tmp_path: Path
) -> None:
    async with (
        service_process(database_url, tmp_path / "log", command=SERVICE) as service,
        connected(service.address) as client,
    ):
        session_id = await running_session(client)
        text = {"text": "x" * 900_000}
        large = [record_request(session_id, output=text) for _ in range(4)]
        # With long answers: more than all the buffers on the way hold.
        message = batch(*large, *[pb.RecordExecutionRequest()] * 996)
        await record_all(client, message)
        before = memory_bytes(service)
        call: Any = client.recording.RecordExecutions()
        sent = 0
        while sent < 58:  # 210 MB
            write = asyncio.create_task(call.write(message))
            await asyncio.wait([write], timeout=1)
            if not write.done():
                break
            sent += 1
        assert not write.done(), "it reads on, whoever reads its answers"
        assert memory_bytes(service, "VmHWM") - before < 120 * MIB
        # Others do not notice.
        other = await running_session(client, "ag_other")
        assert (await record(client, other)).sequence == 1
        # Once they are read, everything is answered.
        for number in range(1, sent + 2):
            response = await call.read()
            first = 4 * number
            assert outcomes(response.results[:4]) == list(range(first + 1, first + 5))
            assert outcomes(response.results[4:]) == ["INVALID_REQUEST"] * 996
        await write
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
        assert await call.code() is grpc.StatusCode.OK
