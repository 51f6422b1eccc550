"""Three replicas on one PostgreSQL, under load: every promise holds whichever of them is asked."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from harness import (
    Client,
    at,
    collect,
    get_session,
    list_executions,
    list_insights,
    record_request,
    register_agent,
    running_session,
)
from infrascout.sessions.v1 import execution_pb2
from infrascout.sessions.v1 import recording_service_pb2 as recording
from infrascout.sessions.v1 import session_service_pb2 as sessions
from postgres_server import PostgresServer
from replicas import everywhere, replicas


@pytest.fixture
async def clients(postgres_url: str, tmp_path: Path) -> AsyncIterator[list[Client]]:
    """A client of each of three replicas."""
    async with replicas(postgres_url, tmp_path) as running:
        yield [replica.client for replica in running]


async def test_of_racing_starts_and_submits_one_wins(
    postgres: PostgresServer, tmp_path: Path
) -> None:
    """Each request reaches every replica at once, as an impatient client's retries do."""
    # Empty: the replicas migrate it, together.
    url = await postgres.new_database()

    async def race(clients: list[Client], turn: int, agent_id: str) -> None:
        def start(number: int, client: Client) -> Any:
            request = sessions.StartSessionRequest(
                agent_id=agent_id, playbook="p", request_id=f"{agent_id}-{turn}-{number}"
            )
            return client.sessions.StartSession(request)

        def end(session_id: str, number: int, client: Client) -> Any:
            request = sessions.SubmitSessionRequest(
                session_id=session_id, summary=f"by {number}", request_id=f"{number}"
            )
            return client.sessions.SubmitSession(request)

        answers = await asyncio.gather(*(everywhere(clients, partial(start, n)) for n in range(6)))
        [won] = [each for each in answers if each != ["AGENT_BUSY"] * len(clients)]
        session_id = won[0].session.session_id
        assert won == [sessions.StartSessionResponse(session=won[0].session)] * len(clients)

        answers = await asyncio.gather(
            *(everywhere(clients, partial(end, session_id, n)) for n in range(6))
        )
        [won] = [each for each in answers if each != ["ILLEGAL_TRANSITION"] * len(clients)]
        assert won == [sessions.SubmitSessionResponse(session=won[0].session)] * len(clients)
        for client in clients:
            assert await get_session(client, session_id) == won[0].session

    async with replicas(url, tmp_path) as running:
        clients = [replica.client for replica in running]
        agents = [f"ag_{number}" for number in range(8)]
        for agent_id in agents:
            await register_agent(clients[0], agent_id)
        for turn in range(4):
            await asyncio.gather(*(race(clients, turn, agent_id) for agent_id in agents))
        page = await clients[1].sessions.ListSessions(
            sessions.ListSessionsRequest(include_total=True)
        )
        assert page.total_size == 4 * len(agents)
        assert len(page.sessions) == 20
        assert all(len(session.transitions) == 2 for session in page.sessions)


class _Writer:
    """One of many clients: sends each write to two replicas, at once or one after the other."""

    def __init__(self, clients: list[Client], session_id: str, number: int) -> None:
        self._clients = clients
        self._session_id = session_id
        self._random = random.Random(number)
        self._number = number

    async def _twice(self, call: Callable[[Client], Any]) -> Any:
        one, other, third = self._random.sample(self._clients, 3)
        if self._random.random() < 0.5:
            answer, again = await asyncio.gather(call(one), call(other))
        else:
            answer, again = await call(one), await call(other)
        assert answer == again
        return answer, third

    async def write(self, turn: int) -> None:
        """One execution or insight, or one execution in steps; another replica knows at once."""
        name = f"{self._number}-{turn}"
        kind = turn % 4
        if kind == 0:
            request = recording.SaveInsightRequest(
                session_id=self._session_id, category="c", key=name, value="v", request_id=name
            )
            _, third = await self._twice(lambda client: client.recording.SaveInsight(request))
            assert name in {one.key for one in await list_insights(third, self._session_id)}
        elif kind == 1:
            items = [
                record_request(self._session_id, command=f"{name}-{n}", request_id=f"{name}-{n}")
                for n in range(3)
            ]
            message = recording.RecordExecutionsRequest(executions=items)

            async def send(client: Client) -> list[Any]:
                [response] = await collect(client.recording.RecordExecutions(iter([message])))
                return list(response.results)

            results, third = await self._twice(send)
            await self._seen(third, results[-1].recorded.sequence, f"{name}-2")
        elif kind == 2:
            one = record_request(self._session_id, command=name, request_id=name)
            made, third = await self._twice(lambda client: client.recording.RecordExecution(one))
            await self._seen(third, made.execution.sequence, name)
        else:
            await self._step_by_step(name)

    async def _step_by_step(self, name: str) -> None:
        begin = recording.BeginExecutionRequest(
            session_id=self._session_id,
            command=name,
            capability="shell",
            start_time=at(0),
            request_id=name,
        )
        begun, _ = await self._twice(lambda client: client.recording.BeginExecution(begin))
        which = {"session_id": self._session_id, "sequence": begun.execution.sequence}
        chunk = recording.AppendOutputRequest(
            **which, stream=execution_pb2.OUTPUT_STREAM_STDOUT, data=name.encode()
        )
        appended, _ = await self._twice(lambda client: client.recording.AppendOutput(chunk))
        assert appended.size_bytes == len(name)
        finish = recording.FinishExecutionRequest(
            **which, exit_code=0, end_time=at(1), request_id=f"{name}-end"
        )
        done, third = await self._twice(lambda client: client.recording.FinishExecution(finish))
        assert done.execution.output.text == name
        await self._seen(third, which["sequence"], name)

    async def _seen(self, client: Client, sequence: int, command: str) -> None:
        """What was acknowledged by the others, this one shows."""
        assert (await get_session(client, self._session_id)).execution_count >= sequence
        [one] = await list_executions(
            client, self._session_id, after_sequence=sequence - 1, limit=1
        )
        assert (one.sequence, one.command) == (sequence, command)


async def test_retries_that_reach_other_replicas_have_one_effect(clients: list[Client]) -> None:
    session_ids = [await running_session(clients[0], f"ag_{number}") for number in range(3)]
    writers, turns = 30, 12

    async def write(number: int) -> None:
        writer = _Writer(clients, session_ids[number % 3], number)
        for turn in range(turns):
            await writer.write(turn)

    await asyncio.gather(*map(write, range(writers)))
    for client, session_id in zip(clients, session_ids, strict=True):
        listed = await list_executions(client, session_id)
        # Of four turns: an insight, a message of three, one, and one in steps.
        count = writers // 3 * turns // 4 * 5
        assert [one.sequence for one in listed] == list(range(1, count + 1))
        assert len({one.command for one in listed}) == count
        session = await get_session(client, session_id)
        assert (session.execution_count, session.insight_count) == (count, count // 5)
