"""`ListExecutions` with `follow`: history, then what is recorded, with no gap and no repeat."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from harness import (
    NO_SESSION,
    Client,
    collect,
    complete,
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
from infrascout.sessions.v1 import execution_pb2
from infrascout.sessions.v1 import session_service_pb2 as pb
from streams import (
    EXITED,
    MIB,
    SERVICE,
    UNFINISHED,
    append,
    batch,
    batch_of,
    begin,
    cabled,
    check_followed,
    cut_off,
    executions_of,
    finish,
    follow,
    memory_bytes,
    record_all,
)

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
Execution = execution_pb2.Execution


async def end(client: Client, session_id: str, action: str) -> None:
    """End a session by an RPC."""
    if action == "SubmitSession":
        await submit(client, session_id)
    elif action == "FailSession":
        await client.sessions.FailSession(
            pb.FailSessionRequest(session_id=session_id, reason="broke")
        )
    else:
        await client.sessions.InterruptSession(
            pb.InterruptSessionRequest(session_id=session_id, reason="enough")
        )


class Follower:
    """Follows a session in the background."""

    def __init__(self, client: Client, session_id: str, **fields: Any) -> None:
        self.received: list[Execution] = []
        self.after = fields.get("after_sequence", 0)
        self._more = asyncio.Event()
        self.call = follow(client, session_id, **fields)
        self.ended = asyncio.create_task(self._follow())

    async def _follow(self) -> None:
        async for execution in executions_of(self.call):
            self.received.append(execution)
            self._more.set()

    async def has(self, count: int) -> None:
        """Wait until so many have come."""
        async with asyncio.timeout(30):
            while len(self.received) < count:
                self._more.clear()
                await self._more.wait()

    async def end(self) -> list[Execution]:
        """All that came, once the stream has ended, OK."""
        async with asyncio.timeout(60):
            await self.ended
        assert await self.call.code() is grpc.StatusCode.OK
        return self.received


async def final(client: Client, session_id: str, **fields: Any) -> dict[int, Execution]:
    """How the executions stand, by sequence."""
    listed = await list_executions(client, session_id, **fields)
    assert [one.sequence for one in listed] == list(range(1, len(listed) + 1))
    return {one.sequence: one for one in listed}


# What comes, and in which order.


async def test_history_comes_first_and_then_what_is_recorded(database_url: str) -> None:
    async with serving(database_url) as client:
        session_id = await running_session(client)
        await record_all(client, batch_of(session_id, [f"h{n}" for n in range(120)]))
        follower = Follower(client, session_id)
        await follower.has(120)
        # Each comes without another being needed to push it.
        for count in range(121, 126):
            made = await record(client, session_id, output={"text": f"{count}"})
            await follower.has(count)
            assert follower.received[-1] == made
        begun = await begin(client, session_id)
        await follower.has(126)
        assert follower.received[-1] == begun
        await append(client, session_id, 126, 0, b"abc")
        last = await record(client, session_id)
        await follower.has(127)
        # Finished, it comes once more, and only then: what it prints is no news.
        assert follower.received[-1] == last
        finished = await finish(client, session_id, 126, 1)
        await follower.has(128)
        assert follower.received[-1] == finished
        assert (finished.state, finished.output.text) == (EXITED, "abc")
        # Repeats are no news, nor is a session's other traffic.
        await finish(client, session_id, 126, 1)
        await record_all(client, batch_of(session_id, ["h0", "h1"]))
        await submit(client, session_id)
        assert len(await follower.end()) == 128
        check_followed(follower.received, range(1, 128), await final(client, session_id))


async def test_a_session_without_executions_is_followed(database_url: str) -> None:
    async with serving(database_url) as client:
        session_id = await running_session(client)
        follower = Follower(client, session_id)
        made = await record(client, session_id)
        await follower.has(1)
        assert follower.received == [made]
        nothing = await running_session(client, "ag_2")
        silent = Follower(client, nothing)
        await submit(client, nothing)
        assert await silent.end() == []


async def test_followers_of_one_session_hear_nothing_of_another(database_url: str) -> None:
    async with serving(database_url) as client:
        sessions = [await running_session(client, f"ag_{n}") for n in range(5)]
        followers = [Follower(client, session_id) for session_id in sessions for _ in range(3)]
        await asyncio.gather(
            *(record(client, session_id, command=session_id) for session_id in sessions * 20)
        )
        for session_id in sessions[:4]:
            await submit(client, session_id)
        for follower, session_id in zip(followers[:12], sessions[:4] * 3, strict=False):
            await follower.end()
            assert len({one.session_id for one in follower.received}) == 1
            assert len(follower.received) == 20
            assert session_id
        assert not any(follower.ended.done() for follower in followers[12:])
        await submit(client, sessions[4])
        await asyncio.gather(*(follower.end() for follower in followers[12:]))


async def record_and_follow(client: Client, session_id: str) -> list[Follower]:
    """Begin, finish and record at once, while followers come, at any offset."""
    followers: list[Follower] = []
    count = 0

    async def record_many(name: str) -> None:
        nonlocal count
        for message in range(12):
            names = [f"{name}.{message}.{n}" for n in range(1 + message * 3)]
            await record_all(client, batch_of(session_id, names))
            count += len(names)
            after = count * (message % 3) // 4 if message % 2 else 0
            followers.append(Follower(client, session_id, after_sequence=after))

    async def begin_many(name: str) -> None:
        nonlocal count
        for number in range(12):
            begun = await begin(client, session_id, command=f"{name}.{number}")
            count += 1
            followers.append(Follower(client, session_id))
            if number % 4 != 3:
                await append(client, session_id, begun.sequence, 0, b"abc")
                await finish(client, session_id, begun.sequence, number)

    await asyncio.gather(
        *(record_many(f"record {n}") for n in range(3)),
        *(begin_many(f"begin {n}") for n in range(3)),
    )
    assert (await submit(client, session_id)).execution_count == count
    return followers


async def test_the_seam_has_no_gap_and_no_repeat(database_url: str) -> None:
    async with serving(database_url) as client:
        for attempt in range(3):
            session_id = await running_session(client, f"ag_{attempt}")
            followers = await record_and_follow(client, session_id)
            assert len(followers) == 72
            stands = await final(client, session_id)
            assert {one.state for one in stands.values()} == {EXITED, UNFINISHED}
            for follower in followers:
                expected = range(follower.after + 1, len(stands) + 1)
                check_followed(await follower.end(), expected, stands)


async def test_an_end_before_others_have_seen_the_beginning_comes(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reading for all pauses; meanwhile one who came from the database saw it begin."""
    for seconds in ("_SECONDS_PER_FOLLOWER", "_LONGEST_PAUSE"):
        monkeypatch.setattr(f"infrascout_sessions.servicers.followers.{seconds}", 0.7)
    async with serving(database_url) as client:
        session_id = await running_session(client)
        slow = Follower(client, session_id)
        await record(client, session_id)
        await slow.has(1)
        await asyncio.sleep(1)
        await record(client, session_id)
        # From here on it pauses.
        begun = await begin(client, session_id)
        quick = Follower(client, session_id)
        await quick.has(3)
        await asyncio.sleep(0.1)
        assert len(slow.received) == 1
        await finish(client, session_id, begun.sequence, 0)
        await submit(client, session_id)
        stands = await final(client, session_id)
        for follower in (quick, slow):
            check_followed(await follower.end(), range(1, 4), stands)
        assert [one.sequence for one in quick.received] == [1, 2, 3, 3]


async def test_many_that_finish_at_once_come_all(database_url: str) -> None:
    async with serving(database_url) as client:
        session_id = await running_session(client)
        await asyncio.gather(*(begin(client, session_id) for _ in range(150)))
        followers = [Follower(client, session_id) for _ in range(5)]
        for follower in followers:
            await follower.has(150)
        await asyncio.gather(
            *(finish(client, session_id, sequence, 0) for sequence in range(1, 141))
        )
        late = Follower(client, session_id, after_sequence=100)
        await asyncio.gather(*(follower.has(290) for follower in followers))
        await submit(client, session_id)
        stands = await final(client, session_id)
        for follower in followers:
            check_followed(await follower.end(), range(1, 151), stands)
        check_followed(await late.end(), range(101, 151), stands)


async def test_a_follower_from_beyond_the_end_disturbs_nobody(database_url: str) -> None:
    """It gets what comes behind its place, and the others all that comes before."""
    async with serving(database_url) as client:
        session_id = await running_session(client)
        for _ in range(3):
            await record(client, session_id)
        far = Follower(client, session_id, after_sequence=2**31 - 1)
        ahead = Follower(client, session_id, after_sequence=10)
        others = []
        for after in (0, 2, 3):
            others.append(Follower(client, session_id, after_sequence=after))
            await others[-1].has(3 - after)
        for _ in range(9):
            await record(client, session_id)
        await ahead.has(2)
        for follower in others:
            await follower.has(12 - follower.after)
        await submit(client, session_id)
        stands = await final(client, session_id)
        assert await far.end() == []
        for follower in (ahead, *others):
            check_followed(await follower.end(), range(follower.after + 1, 13), stands)


LIMITS: list[dict[str, int]] = [
    {},
    {"max_output_bytes": 0},
    {"max_output_bytes": 3},
    {"max_output_bytes": 700_000},
    {"max_output_bytes": 2**40},
]


async def test_each_follower_has_its_limit_of_output(database_url: str) -> None:
    async with serving(database_url) as client:
        session_id = await running_session(client)

        async def print_some() -> None:
            for text in ("ab", "abcdef", "x" * 700_001):
                await record(client, session_id, output={"text": text})
            begun = await begin(client, session_id)
            for at in (0, MIB):
                await append(client, session_id, begun.sequence, at, b"y" * MIB)
            await finish(client, session_id, begun.sequence)

        await print_some()
        followers = [Follower(client, session_id, **limit) for limit in LIMITS]
        for follower in followers:
            await follower.has(4)
        await print_some()
        for follower in followers:
            await follower.has(9)
        await submit(client, session_id)
        for follower, limit in zip(followers, LIMITS, strict=True):
            stands = await final(client, session_id, **limit)
            check_followed(await follower.end(), range(1, 9), stands)


async def test_a_response_of_a_follower_is_at_most_1_mib(database_url: str) -> None:
    async with serving(database_url) as client:
        session_id = await running_session(client)
        live = follow(client, session_id)
        sizes = []
        message = batch(*[record_request(session_id, output={"text": "x" * 90_000})] * 30)
        [_] = await record_all(client, message)
        await record(client, session_id, output={"text": "x" * MIB}, command="x" * 65_536)
        history = follow(client, session_id)
        await submit(client, session_id)
        for stream in (live, history):
            async for response in stream:
                sizes.append(response.ByteSize())
                assert response.ByteSize() <= MIB or len(response.executions) == 1
        assert max(sizes) > MIB


# How a stream ends.


@pytest.mark.parametrize("action", ["SubmitSession", "FailSession", "InterruptSession"])
async def test_it_ends_when_the_session_does(database_url: str, action: str) -> None:
    async with serving(database_url) as client:
        session_id = await running_session(client)
        followers = [Follower(client, session_id) for _ in range(10)]
        await begin(client, session_id)
        load = asyncio.gather(
            *(client.recording.RecordExecution(record_request(session_id)) for _ in range(100)),
            return_exceptions=True,
        )
        await followers[0].has(2)
        await end(client, session_id, action)
        await load
        # Everything that was recorded has come; what is unfinished stays so.
        stands = await final(client, session_id)
        assert len(stands) == (await get_session(client, session_id)).execution_count
        for follower in followers:
            check_followed(await follower.end(), stands, stands)
            assert follower.received[0].state == UNFINISHED
        # It has ended, for those who come now, too.
        late = [Follower(client, session_id, after_sequence=after) for after in (0, 1, 2**31 - 1)]
        for follower in late:
            expected = range(follower.after + 1, len(stands) + 1)
            check_followed(await follower.end(), expected, stands)


async def test_it_ends_when_the_session_was_idle(database_url: str) -> None:
    async with serving(database_url, idle_timeout_seconds=1) as client:
        session_id = await running_session(client)
        await begin(client, session_id)
        follower = Follower(client, session_id)
        # Following is no write: it keeps nothing alive.
        [left] = await follower.end()
        assert left.state == UNFINISHED


async def test_it_ends_at_once_where_the_session_has_been_completed(database_url: str) -> None:
    async with serving(database_url) as client:
        session_id = await running_session(client)
        await begin(client, session_id)
        await record(client, session_id)
        await submit(client, session_id)
    await complete(database_url, session_id)
    async with serving(database_url) as client:
        received = await Follower(client, session_id).end()
        check_followed(received, [1, 2], await final(client, session_id))


async def test_a_stream_that_was_cut_is_resumed(database_url: str, tmp_path: Path) -> None:
    """As its comment says: after the highest received, or before the oldest unfinished."""
    async with (
        service_process(database_url, tmp_path / "log", command=SERVICE) as service,
        connected(service.address) as client,
        cabled(service.address) as (cut_client, cable),
    ):
        session_id = await running_session(client)
        simple: list[Execution] = []
        careful: dict[int, list[Execution]] = {}
        got: dict[str, asyncio.Event] = {"simple": asyncio.Event(), "careful": asyncio.Event()}

        async def follow_simply() -> None:
            while True:
                after = max((one.sequence for one in simple), default=0)
                try:
                    async for one in executions_of(
                        follow(cut_client, session_id, after_sequence=after)
                    ):
                        simple.append(one)
                        got["simple"].set()
                    return
                except grpc.aio.AioRpcError as error:
                    await cut_off(error)

        async def follow_carefully() -> None:
            while True:
                open_ones = [n for n, seen in careful.items() if seen[-1].state == UNFINISHED]
                after = min(open_ones) - 1 if open_ones else max(careful, default=0)
                try:
                    async for one in executions_of(
                        follow(cut_client, session_id, after_sequence=after)
                    ):
                        careful.setdefault(one.sequence, []).append(one)
                        got["careful"].set()
                    return
                except grpc.aio.AioRpcError as error:
                    await cut_off(error)

        following = asyncio.gather(follow_simply(), follow_carefully())
        for turn in range(12):
            begun = await begin(client, session_id)
            for event in got.values():
                event.clear()
            await record_all(client, batch_of(session_id, [f"{turn}.{n}" for n in range(20)]))
            await asyncio.gather(*(event.wait() for event in got.values()))
            cable.cut()
            if turn % 4 != 3:
                await finish(client, session_id, begun.sequence)
        await submit(client, session_id)
        async with asyncio.timeout(60):
            await following
        stands = await final(client, session_id)
        # The simple one has every one, once, but may have missed an end; ...
        first: dict[int, Execution] = {}
        for one in simple:
            if one.sequence in first:
                assert first[one.sequence].state == UNFINISHED != one.state
            else:
                first[one.sequence] = one
        assert list(first) == list(stands)
        # ... the careful one every end, too.
        assert {n: seen[-1] for n, seen in careful.items()} == stands
        assert cable.cuts == 12


async def test_a_server_that_stops_says_so(database_url: str, tmp_path: Path) -> None:
    async with (
        service_process(
            *(database_url, tmp_path / "log", "--shutdown-grace", "60"), command=SERVICE
        ) as service,
        connected(service.address) as client,
    ):
        session_id = await running_session(client)
        other = await running_session(client, "ag_2")
        followers = [
            *(Follower(client, session_id) for _ in range(20)),
            *(Follower(client, session_id, max_output_bytes=0) for _ in range(5)),
            Follower(client, other),
        ]
        for one in (session_id, other):
            await record(client, one)
        for follower in followers:
            await follower.has(1)
        service.process.terminate()
        for follower in followers:
            answer = await refused(follower.ended, UNAVAILABLE, "SHUTTING_DOWN")
            assert answer.retry_delay_seconds is not None
        async with asyncio.timeout(20):  # far less than its grace
            assert await service.process.wait() == 0


# What is refused.


async def test_what_cannot_be_followed(client: Client) -> None:
    session_id = await running_session(client)
    for fields, violated in (
        ({"failed_only": True}, ["failed_only"]),
        ({"limit": 1}, ["limit"]),
        ({"failed_only": True, "limit": 2}, ["failed_only", "limit"]),
        ({"after_sequence": -1, "max_output_bytes": -1}, ["after_sequence", "max_output_bytes"]),
    ):
        call = collect(follow(client, session_id, **fields))
        answer = await refused(call, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
        assert answer.fields == violated
    await refused(
        *(collect(follow(client, NO_SESSION)), grpc.StatusCode.NOT_FOUND, "SESSION_NOT_FOUND"),
        session_id=NO_SESSION,
    )


async def test_there_is_a_limit_of_followers(database_url: str) -> None:
    async with serving(database_url, maximum_followers=3) as client:
        session_id = await running_session(client, "ag_1")
        other = await running_session(client, "ag_2")
        for one in (session_id, other):
            await record(client, one)
        # What is refused or has ended takes no place.
        ended = await running_session(client, "ag_3")
        await submit(client, ended)
        for _ in range(5):
            await failed(collect(follow(client, NO_SESSION)))
            await failed(collect(follow(client, session_id, limit=1)))
            assert await collect(follow(client, ended)) == []
        followers = [Follower(client, one) for one in (session_id, session_id, other)]
        for follower in followers:
            await follower.has(1)
        for one in (session_id, other, ended):
            answer = await refused(collect(follow(client, one)), UNAVAILABLE, "OVERLOADED")
            assert answer.retry_delay_seconds is not None
            assert answer.retry_delay_seconds < 5
        # Nobody suffers from it.
        assert len(await list_executions(client, session_id)) == 1
        await record(client, session_id)
        await followers[0].has(2)
        # Who goes makes room.
        followers[0].call.cancel()
        async with asyncio.timeout(20):
            while True:
                late = Follower(client, session_id)
                await asyncio.wait(
                    [late.ended, asyncio.create_task(late.has(2))],
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if not late.ended.done():
                    break
                await refused(late.ended, UNAVAILABLE, "OVERLOADED")
        for one in (session_id, other):
            await submit(client, one)
        for follower in (*followers[1:], late):
            await follower.end()


# Many, and slow ones.


@asynccontextmanager
async def clients(address: str, count: int) -> AsyncIterator[list[Client]]:
    """Several connections to a server."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(connected(address)) for _ in range(count)]


async def test_a_thousand_followers_see_every_execution(database_url: str, tmp_path: Path) -> None:
    async with (
        service_process(database_url, tmp_path / "log", command=SERVICE) as service,
        clients(service.address, 10) as followed_by,
        connected(service.address) as client,
    ):
        session_id = await running_session(client)
        begun = [await begin(client, session_id) for _ in range(10)]
        # What of each has come, as (sequence, state), not to keep millions of messages.
        received: list[list[tuple[int, int]]] = [[] for _ in range(1000)]
        joined = asyncio.Semaphore(0)

        async def follow_to_the_end(number: int) -> None:
            waiting = True
            call = follow(followed_by[number % 10], session_id, max_output_bytes=0)
            async for one in executions_of(call):
                received[number].append((one.sequence, one.state))
                if waiting:
                    joined.release()
                    waiting = False

        async with asyncio.timeout(90), asyncio.TaskGroup() as tasks:
            for number in range(1000):
                tasks.create_task(follow_to_the_end(number))
            for _ in range(500):  # the others come meanwhile
                await joined.acquire()
            call: Any = client.recording.RecordExecutions()
            for message in range(10):
                await call.write(batch_of(session_id, [f"{message}.{n}" for n in range(199)]))
                assert len((await call.read()).results) == 199
                if message < 8:
                    await finish(client, session_id, begun[message].sequence)
            await call.done_writing()
            await submit(client, session_id)
        stands = await final(client, session_id)
        count = len(stands)
        assert count == 2000
        for got in received:
            seen: dict[int, list[int]] = {}
            for sequence, state in got:
                seen.setdefault(sequence, []).append(state)
            assert list(seen) == list(range(1, count + 1))
            for sequence, states in seen.items():
                state = stands[sequence].state
                # Once as it is; or unfinished, and once more when it has finished.
                assert states == [state] or (
                    states == [UNFINISHED, state] and state != UNFINISHED
                ), sequence
        # Those who came first saw the ends come.
        assert sum(len(got) == count + 8 for got in received) >= 500


async def test_who_stops_reading_slows_nobody_and_misses_nothing(
    database_url: str, tmp_path: Path
) -> None:
    stalled_count = 4
    async with (
        service_process(database_url, tmp_path / "log", command=SERVICE) as service,
        clients(service.address, stalled_count) as stalled_by,
        connected(service.address) as client,
        connected(service.address) as reader,
    ):
        session_id = await running_session(client)
        await begin(client, session_id)
        await begin(client, session_id)
        calls = [follow(one, session_id) for one in stalled_by]
        stalled: list[list[Execution]] = []
        for call in calls:
            first = await call.read()
            assert [one.sequence for one in first.executions] == [1, 2]
            stalled.append(list(first.executions))
        # Nothing is read of these from here on.
        quick = Follower(reader, session_id, max_output_bytes=0)
        await quick.has(2)
        before = memory_bytes(service)
        text = "x" * 100_000
        last = 2
        for message in range(14):  # 42 MB
            names = [f"{message}.{n}" for n in range(30)]
            [results] = await record_all(client, batch_of(session_id, names, output={"text": text}))
            last = results[-1].recorded.sequence
            if message == 10:
                await finish(client, session_id, 1)
            await quick.has(last + (message >= 10))
        grown = memory_bytes(service, "VmHWM") - before
        assert grown < (stalled_count * 8 + 60) * MIB
        await submit(client, session_id)
        bare = await final(client, session_id, max_output_bytes=0)
        check_followed(await quick.end(), range(1, last + 1), bare)
        # Once they read on, they get everything.
        stands = await final(client, session_id)
        for call, received in zip(calls, stalled, strict=True):
            while (response := await call.read()) is not grpc.aio.EOF:
                received.extend(response.executions)
            assert await call.code() is grpc.StatusCode.OK
            check_followed(received, range(1, last + 1), stands)
            assert len(received) == last + 1
