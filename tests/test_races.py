"""Many callers at once: one winner, no gap, no stale read, and no request that fails for it."""

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from itertools import count
from typing import Any

import grpc
import pytest
import sqlalchemy as sa
from structlog.testing import capture_logs

from harness import (
    NO_SESSION,
    Client,
    collect,
    connected,
    database_connection,
    get_session,
    list_executions,
    list_insights,
    record,
    record_request,
    refused,
    register_agent,
    running_session,
    save_insight,
    serving,
    start_session,
    submit,
)
from infrascout.sessions.v1 import agent_service_pb2, session_pb2, session_service_pb2
from ledger import reason_of

FAILED_PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION


async def rows(database_url: str, query: str, **parameters: object) -> list[tuple[object, ...]]:
    """What the database holds."""
    async with database_connection(database_url) as connection:
        return [tuple(row) for row in await connection.execute(sa.text(query), parameters)]


async def test_of_many_starts_one_wins(database_url: str) -> None:
    async with serving(database_url) as client:
        await register_agent(client)
        for _ in range(3):
            request = session_service_pb2.StartSessionRequest(agent_id="ag_1", playbook="p")
            calls = [client.sessions.StartSession(request) for _ in range(50)]
            codes = [await call.code() for call in calls]
            [winner] = [
                call for call, code in zip(calls, codes, strict=True) if code is grpc.StatusCode.OK
            ]
            session_id = (await winner).session.session_id
            for call in calls:
                if call is not winner:
                    await refused(
                        *(call, FAILED_PRECONDITION, "AGENT_BUSY"),
                        agent_id="ag_1",
                        session_id=session_id,
                    )
            running = "SELECT session_id FROM sessions WHERE status = 'running'"
            assert await rows(database_url, running) == [(session_id,)]
            await submit(client, session_id)
        assert await rows(database_url, "SELECT count(*) FROM sessions") == [(3,)]


async def test_many_repeats_of_one_start_are_one_start(database_url: str) -> None:
    async with serving(database_url) as client:
        await register_agent(client)
        sessions = await asyncio.gather(
            *(start_session(client, request_id="once") for _ in range(50))
        )
        assert len({session.session_id for session in sessions}) == 1
        assert await rows(database_url, "SELECT count(*) FROM sessions") == [(1,)]


async def test_starts_that_wait_together_are_each_decided_for_itself(database_url: str) -> None:
    async with serving(database_url) as client:
        for number in range(20):
            await register_agent(client, f"ag_{number}", hostname=f"Host-{number}")
        busy = (await start_session(client, "ag_0", request_id="before")).session_id
        # Of one, the session that it repeats has ended: its agent is free for another.
        ended = (await start_session(client, "ag_1", request_id="ended")).session_id
        await submit(client, ended)

        def start(agent_id: str, request_id: str = "") -> grpc.aio.UnaryUnaryCall[Any, Any]:
            return client.sessions.StartSession(
                session_service_pb2.StartSessionRequest(
                    agent_id=agent_id,
                    playbook=f"of {agent_id}",
                    description='"quotes", \u2028 and 😀',
                    request_id=request_id,
                )
            )

        fresh = {f"ag_{number}": start(f"ag_{number}", f"r{number}") for number in range(2, 20)}
        twins = [start(f"ag_{number}", f"r{number}") for number in range(2, 20)]
        unknown = start("ag_none")
        refused_as_busy = start("ag_0")
        repeats = [start_session(client, "ag_0", request_id="before") for _ in range(5)]
        repeat_of_ended = start_session(client, "ag_1", request_id="ended")
        for agent_id, call in fresh.items():
            session = (await call).session
            assert (session.agent_id, session.playbook) == (agent_id, f"of {agent_id}")
            assert session.hostname == f"Host-{agent_id[3:]}"
            assert session.description == '"quotes", \u2028 and 😀'
            assert session == await get_session(client, session.session_id)
        for call, twin in zip(fresh.values(), twins, strict=True):
            assert (await call).session.session_id == (await twin).session.session_id
        await refused(unknown, grpc.StatusCode.NOT_FOUND, "AGENT_NOT_FOUND", agent_id="ag_none")
        await refused(
            *(refused_as_busy, FAILED_PRECONDITION, "AGENT_BUSY"), agent_id="ag_0", session_id=busy
        )
        assert {(await one).session_id for one in repeats} == {busy}
        assert (await repeat_of_ended).session_id == ended
        assert await rows(database_url, "SELECT count(*) FROM sessions") == [(20,)]


async def test_steps_that_wait_together_are_each_decided_for_itself(database_url: str) -> None:
    async with serving(database_url) as client:
        ids = [await running_session(client, f"ag_{number}") for number in range(20)]
        gone = ids.pop()
        await submit(client, gone, summary="before", request_id="before")

        def submitting(session_id: str, **fields: str) -> grpc.aio.UnaryUnaryCall[Any, Any]:
            return client.sessions.SubmitSession(
                session_service_pb2.SubmitSessionRequest(session_id=session_id, **fields)
            )

        firsts = [submitting(one, summary=f"of {one}", request_id="once") for one in ids]
        twins = [submitting(one, summary=f"of {one}", request_id="once") for one in ids]
        thirds = [submitting(one, summary="another") for one in ids]
        unknown = submitting(NO_SESSION, summary="none")
        repeat = submitting(gone, summary="before", request_id="before")
        refused_one = submitting(gone, summary="again")
        for session_id, first, twin, third in zip(ids, firsts, twins, thirds, strict=True):
            outcomes = [await call.code() for call in (first, twin, third)]
            won = await get_session(client, session_id)
            assert won.status == session_pb2.SESSION_STATUS_PENDING_REVIEW
            # Either the one with the request's id and its repeat, or the other one.
            if outcomes[0] is grpc.StatusCode.OK:
                assert won.summary == f"of {session_id}"
                assert (await first).session == (await twin).session == won
                losers = [third]
            else:
                assert (await third).session == won
                assert won.summary == "another"
                losers = [first, twin]
            for loser in losers:
                await refused(
                    *(loser, FAILED_PRECONDITION, "ILLEGAL_TRANSITION"),
                    session_id=session_id,
                    status="SESSION_STATUS_PENDING_REVIEW",
                    action="SubmitSession",
                )
        await refused(
            *(unknown, grpc.StatusCode.NOT_FOUND, "SESSION_NOT_FOUND"), session_id=NO_SESSION
        )
        assert (await repeat).session.summary == "before"
        await refused(
            *(refused_one, FAILED_PRECONDITION, "ILLEGAL_TRANSITION"),
            session_id=gone,
            status="SESSION_STATUS_PENDING_REVIEW",
            action="SubmitSession",
        )


async def test_records_that_race_a_submit_leave_no_gap(database_url: str) -> None:
    async with serving(database_url) as client:
        session_id = await running_session(client)
        acknowledged: dict[int, str] = {}
        refusals: list[str] = []
        in_the_middle = asyncio.Event()

        async def add(number: int) -> None:
            try:
                made = await record(
                    client, session_id, command=f"command {number}", exit_code=number % 2
                )
            except grpc.aio.AioRpcError as error:
                refusals.append(reason_of(error))
            else:
                acknowledged[made.sequence] = made.command
                if len(acknowledged) == 50:
                    in_the_middle.set()

        async def add_some(first: int) -> None:
            for number in range(first, 300, 60):
                await add(number)

        load = asyncio.gather(*(add_some(first) for first in range(60)))
        await in_the_middle.wait()
        submitted = await submit(client, session_id)
        await load
        assert set(refusals) == {"SESSION_NOT_RUNNING"}
        assert sorted(acknowledged) == list(range(1, len(acknowledged) + 1))
        assert submitted.execution_count == len(acknowledged) == 300 - len(refusals)
        listed = await list_executions(client, session_id)
        assert {one.sequence: one.command for one in listed} == acknowledged
        assert [one.sequence for one in listed] == sorted(acknowledged)
        assert submitted.failed_execution_count == sum(one.exit_code != 0 for one in listed)
        assert await get_session(client, session_id) == submitted
        last = max(one.record_time.ToMicroseconds() for one in listed)
        assert last <= submitted.submit_time.ToMicroseconds()


async def test_many_repeats_of_one_record_are_one_record(database_url: str) -> None:
    async with serving(database_url) as client:
        session_id = await running_session(client)
        made = await asyncio.gather(
            *(record(client, session_id, request_id=f"{number % 3}") for number in range(90))
        )
        assert len({one.execution_id for one in made}) == 3
        assert sorted({one.sequence for one in made}) == [1, 2, 3]
        assert len(await list_executions(client, session_id)) == 3


async def test_records_of_one_request_id_that_differ_are_told_apart(database_url: str) -> None:
    async with serving(database_url) as client:
        session_id = await running_session(client)

        async def add(command: str) -> str:
            try:
                return (await record(client, session_id, command=command, request_id="one")).command
            except grpc.aio.AioRpcError as error:
                return reason_of(error)

        answers = Counter(
            await asyncio.gather(*(add(f"command {number % 5}") for number in range(50)))
        )
        [made] = await list_executions(client, session_id)
        assert answers == {made.command: 10, "REQUEST_ID_REUSED": 40}


async def test_saves_of_one_insight_make_revisions_without_gap(database_url: str) -> None:
    async with serving(database_url) as client:
        session_id = await running_session(client)
        saved = await asyncio.gather(
            *(save_insight(client, session_id, value=f"value {number}") for number in range(50))
        )
        assert sorted(insight.revision for insight in saved) == list(range(1, 51))
        listed = await list_insights(client, session_id, all_revisions=True)
        assert listed == sorted(saved, key=lambda insight: insight.revision)
        assert (await get_session(client, session_id)).insight_count == 1


ENDS: dict[str, Callable[[Client, str], Awaitable[object]]] = {
    "SubmitSession": lambda client, session_id: client.sessions.SubmitSession(
        session_service_pb2.SubmitSessionRequest(session_id=session_id, summary="done")
    ),
    "FailSession": lambda client, session_id: client.sessions.FailSession(
        session_service_pb2.FailSessionRequest(session_id=session_id, reason="broke")
    ),
    "InterruptSession": lambda client, session_id: client.sessions.InterruptSession(
        session_service_pb2.InterruptSessionRequest(session_id=session_id, reason="stop")
    ),
}


async def test_of_many_ends_one_wins(database_url: str) -> None:
    randomness = random.Random(2)
    async with serving(database_url) as client:
        await register_agent(client)
        for _ in range(12):
            session_id = (await start_session(client)).session_id
            actions = [*ENDS] * 7
            randomness.shuffle(actions)
            answers = await asyncio.gather(
                *(ENDS[action](client, session_id) for action in actions), return_exceptions=True
            )
            assert sum(not isinstance(answer, BaseException) for answer in answers) == 1
            session = await get_session(client, session_id)
            assert len(session.transitions) == 2
            for action, answer in zip(actions, answers, strict=True):
                if not isinstance(answer, BaseException):
                    assert answer.session == session  # type: ignore[attr-defined]
                    continue
                await refused(
                    *(_raise(answer), FAILED_PRECONDITION, "ILLEGAL_TRANSITION"),
                    session_id=session_id,
                    status=session_pb2.SessionStatus.Name(session.status),
                    action=action,
                )


async def _raise(error: BaseException) -> None:
    raise error


async def test_refusals_among_writes_harm_none_of_them(database_url: str) -> None:
    async with serving(database_url) as client:
        session_id = await running_session(client, "ag_1")
        ended_id = await running_session(client, "ag_2")
        await submit(client, ended_id)

        async def answer(call: Awaitable[object]) -> str:
            try:
                await call
            except grpc.aio.AioRpcError as error:
                return reason_of(error)
            return "OK"

        kinds: dict[str, Callable[[int], Awaitable[object]]] = {
            "OK": lambda number: record(client, session_id, command=f"command {number}"),
            "SESSION_NOT_RUNNING": lambda _: record(client, ended_id),
            "EXECUTION_NOT_FOUND": lambda number: save_insight(
                client, session_id, key=f"{number}", execution_sequences=[1000]
            ),
            "AGENT_BUSY": lambda _: start_session(client, "ag_1"),
            "AGENT_NOT_FOUND": lambda _: start_session(client, "ag_3"),
            "SESSION_NOT_FOUND": lambda _: submit(client, NO_SESSION),
        }
        expected = [kind for _ in range(40) for kind in kinds]
        calls = [answer(kinds[kind](number)) for number, kind in enumerate(expected)]
        assert await asyncio.gather(*calls) == expected
        session = await get_session(client, session_id)
        assert (session.execution_count, session.insight_count) == (40, 0)
        assert len({one.command for one in await list_executions(client, session_id)}) == 40
        assert await list_insights(client, session_id) == []
        assert await list_executions(client, ended_id) == []
        # What was refused left no trace of itself, such as a session's last activity.
        assert (
            session.last_activity_time
            == (await list_executions(client, session_id))[-1].record_time
        )


async def test_64_callers_and_no_request_fails(database_url: str) -> None:
    rounds, records = 2, 6
    async with serving(database_url) as first, connected(first.address) as second:

        async def caller(number: int) -> None:
            client = (first, second)[number % 2]
            agent_id = f"ag_{number}"
            agent = await register_agent(client, agent_id, hostname=f"host-{number}")
            for _ in range(rounds):
                session_id = (await start_session(client, agent_id)).session_id
                made = await asyncio.gather(
                    *(
                        record(client, session_id, output={"text": f"{number} {turn}" * 100})
                        for turn in range(records)
                    )
                )
                saved = await save_insight(client, session_id, execution_sequences=[1, records])
                listed, insights, session, page, known = await asyncio.gather(
                    list_executions(client, session_id),
                    list_insights(client, session_id),
                    get_session(client, session_id),
                    client.sessions.ListSessions(
                        session_service_pb2.ListSessionsRequest(agent_id=agent_id, limit=1)
                    ),
                    client.agents.GetAgent(agent_service_pb2.GetAgentRequest(agent_id=agent_id)),
                )
                assert listed == sorted(made, key=lambda one: one.sequence)
                assert insights == [saved]
                assert (session.execution_count, session.insight_count) == (records, 1)
                assert list(page.sessions) == [session]
                assert known.agent == agent
                await submit(client, session_id)

        await asyncio.gather(*map(caller, range(64)))
        pages = session_service_pb2.ListSessionsRequest(include_total=True)
        assert (await first.sessions.ListSessions(pages)).total_size == 64 * rounds
    counts = "SELECT sum(execution_count), sum(insight_count) FROM sessions"
    assert await rows(database_url, counts) == [(64 * rounds * records, 64 * rounds)]
    assert await rows(database_url, "SELECT count(*) FROM executions") == [(64 * rounds * records,)]


@pytest.mark.parametrize("how", ["cancelled", "late"])
async def test_a_write_that_is_given_up_happens_whole_or_not_at_all(
    database_url: str, how: str
) -> None:
    randomness = random.Random(how)
    output = {"text": "x" * 5000}
    given_up = Counter[str]()
    with capture_logs() as log:
        async with serving(database_url) as client:
            session_id = await running_session(client)

            async def give_up(number: int) -> None:
                patience = randomness.uniform(0, 0.02)
                call = client.recording.RecordExecution(
                    record_request(
                        session_id,
                        command=f"command {number}",
                        output=output,
                        request_id=f"{number}",
                    ),
                    timeout=patience if how == "late" else None,
                )
                if how == "cancelled":
                    await asyncio.sleep(patience)
                    call.cancel()
                try:
                    await call
                except asyncio.CancelledError:
                    given_up["CANCELLED"] += 1
                except grpc.aio.AioRpcError as error:
                    given_up[error.code().name] += 1
                else:
                    given_up["OK"] += 1

            for begin in range(0, 400, 40):
                await asyncio.gather(*map(give_up, range(begin, begin + 40)))
                # Who comes after is served.
                await record(client, session_id, command=f"after {begin}")

            expected = {"cancelled": "CANCELLED", "late": "DEADLINE_EXCEEDED"}[how]
            assert given_up[expected] > 50
            assert given_up.keys() <= {expected, "OK"}

            listed = await list_executions(client, session_id)
            happened = {one.command for one in listed if one.command.startswith("command")}
            assert [one.sequence for one in listed] == list(range(1, len(happened) + 11))
            assert (await get_session(client, session_id)).execution_count == len(listed)
            assert len(happened) >= given_up["OK"]
            assert {one.output.size_bytes for one in listed} == {0, 5000}

            # A repeat finds what has happened, and makes good what has not.
            by_command = {one.command: one for one in listed}
            for number in range(400):
                command = f"command {number}"
                again = await record(
                    client, session_id, command=command, output=output, request_id=f"{number}"
                )
                assert again == by_command.get(command, again)
            assert len(await list_executions(client, session_id)) == 410
    assert not [line for line in log if line["log_level"] in {"error", "critical"}]


async def test_a_start_that_is_given_up_leaves_a_session_or_none(database_url: str) -> None:
    randomness = random.Random(4)
    async with serving(database_url) as client:
        for number in range(60):
            agent_id = f"ag_{number}"
            await register_agent(client, agent_id)
            request = session_service_pb2.StartSessionRequest(
                agent_id=agent_id, playbook="p", request_id=agent_id
            )
            call = client.sessions.StartSession(request)
            await asyncio.sleep(randomness.uniform(0, 0.003))
            call.cancel()
            session = (await client.sessions.StartSession(request)).session
            assert session.status == session_pb2.SESSION_STATUS_RUNNING
            await refused(
                *(start_session(client, agent_id), FAILED_PRECONDITION, "AGENT_BUSY"),
                agent_id=agent_id,
                session_id=session.session_id,
            )
        page = session_service_pb2.ListSessionsRequest(include_total=True)
        assert (await client.sessions.ListSessions(page)).total_size == 60


async def test_a_list_that_is_given_up_harms_nobody(database_url: str) -> None:
    async with serving(database_url) as client:
        session_id = await running_session(client)
        await asyncio.gather(
            *(record(client, session_id, output={"text": "x" * 50_000}) for _ in range(60))
        )
        request = session_service_pb2.ListExecutionsRequest(session_id=session_id)
        for _ in range(20):
            streams = [client.sessions.ListExecutions(request) for _ in range(4)]
            for stream in streams:
                await stream.read()
                stream.cancel()
        assert len(await collect(client.sessions.ListExecutions(request))) >= 3
        assert len(await list_executions(client, session_id)) == 60


async def test_what_was_acknowledged_is_seen_by_every_read_after(database_url: str) -> None:
    async with serving(database_url) as client:
        session_ids = [await running_session(client, f"ag_{number}") for number in range(3)]
        acknowledged = dict.fromkeys(session_ids, 0)
        insights = dict.fromkeys(session_ids, 0)
        done = asyncio.Event()
        numbers = count(1)
        reads = 0

        async def write(session_id: str) -> None:
            for turn in range(25):
                made = await record(client, session_id)
                acknowledged[session_id] = max(acknowledged[session_id], made.sequence)
                assert (await get_session(client, session_id)).execution_count >= made.sequence
                if turn % 5 == 0:
                    await save_insight(client, session_id, key=f"tcp/{next(numbers)}")
                    insights[session_id] += 1

        async def read(session_id: str) -> None:
            nonlocal reads
            seen = 0
            while not done.is_set():
                least, least_insights = acknowledged[session_id], insights[session_id]
                session = await get_session(client, session_id)
                assert session.execution_count >= max(least, seen)
                assert session.insight_count >= least_insights
                seen = session.execution_count
                reads += 1
                if reads % 10 == 0:
                    request = session_service_pb2.ListSessionsRequest(agent_id=session.agent_id)
                    [listed] = (await client.sessions.ListSessions(request)).sessions
                    assert listed.execution_count >= seen
                    executions = await list_executions(
                        client, session_id, after_sequence=max(seen - 1, 0), limit=1
                    )
                    sequences = [one.sequence for one in executions]
                    assert sequences == [seen] if seen else sequences in ([], [1])

        async with asyncio.TaskGroup() as readers:
            for session_id in session_ids * 6:
                readers.create_task(read(session_id))
            async with asyncio.TaskGroup() as writers:
                for session_id in session_ids * 6:
                    writers.create_task(write(session_id))
            for session_id in session_ids:
                await submit(client, session_id)
                session = await get_session(client, session_id)
                assert session.status == session_pb2.SESSION_STATUS_PENDING_REVIEW
                assert session.execution_count == acknowledged[session_id] == 6 * 25
                assert session.insight_count == insights[session_id] == 6 * 5
            done.set()
        assert reads > 100
