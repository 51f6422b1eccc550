import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pytest

from harness import (
    LOCAL,
    NO_SESSION,
    Client,
    FrozenClock,
    at,
    collect,
    get_session,
    record,
    refused,
    register_agent,
    running_session,
    save_insight,
    start_session,
    submit,
)
from infrascout.sessions.v1 import execution_pb2, recording_service_pb2, session_pb2
from infrascout.sessions.v1 import session_service_pb2 as pb
from infrascout_sessions.models import new_id

SESSION_ID = "sess_00000000000000000000000000000001"


def started(**fields: Any) -> session_pb2.Session:
    """The session that the first start makes, at second 1, changed in these fields."""
    session = session_pb2.Session(
        session_id=SESSION_ID,
        agent_id="ag_1",
        hostname="web-1",
        playbook="linux-baseline",
        description="a first look",
        status=session_pb2.SESSION_STATUS_RUNNING,
        start_time=at(1),
        last_activity_time=at(1),
        transitions=[
            session_pb2.Transition(
                status=session_pb2.SESSION_STATUS_RUNNING, time=at(1), actor=LOCAL
            )
        ],
    )
    session.MergeFrom(session_pb2.Session(**fields))
    return session


async def start(client: Client, clock: FrozenClock) -> None:
    """Make the session of `started`."""
    await register_agent(client)
    clock.advance(1)
    await start_session(client, description="a first look")


async def test_a_session_starts(client: Client, clock: FrozenClock) -> None:
    await register_agent(client)
    clock.advance(1)
    response = await client.sessions.StartSession(
        pb.StartSessionRequest(
            agent_id="ag_1", playbook="linux-baseline", description="a first look"
        )
    )
    assert response == pb.StartSessionResponse(session=started())
    reply = await client.sessions.GetSession(pb.GetSessionRequest(session_id=SESSION_ID))
    assert reply == pb.GetSessionResponse(session=started())


async def test_a_session_counts_what_is_recorded(client: Client, clock: FrozenClock) -> None:
    await start(client, clock)
    for seconds, exit_code in enumerate([0, 1, None, -1073741819, 0], 2):
        clock.advance(1)
        await record(client, SESSION_ID, exit_code=exit_code)
        assert await get_session(client, SESSION_ID) == started(
            execution_count=seconds - 1,
            failed_execution_count=[0, 1, 2, 3, 3][seconds - 2],
            last_activity_time=at(seconds),
        )
    clock.advance(1)
    await save_insight(client, SESSION_ID)
    clock.advance(1)
    await save_insight(client, SESSION_ID, value="another revision")
    assert await get_session(client, SESSION_ID) == started(
        execution_count=5, failed_execution_count=3, insight_count=1, last_activity_time=at(8)
    )


async def test_a_session_is_submitted(client: Client, clock: FrozenClock) -> None:
    await start(client, clock)
    clock.advance(1)
    response = await client.sessions.SubmitSession(
        pb.SubmitSessionRequest(session_id=SESSION_ID, summary="all is well\n")
    )
    pending = session_pb2.SESSION_STATUS_PENDING_REVIEW
    expected = started(
        status=pending,
        summary="all is well\n",
        last_activity_time=at(2),
        submit_time=at(2),
        transitions=[session_pb2.Transition(status=pending, time=at(2), actor=LOCAL)],
    )
    assert response == pb.SubmitSessionResponse(session=expected)
    assert await get_session(client, SESSION_ID) == expected


def ended(status: session_pb2.SessionStatus) -> session_pb2.Session:
    return started(
        status=status,
        status_reason="it broke",
        last_activity_time=at(2),
        end_time=at(2),
        transitions=[
            session_pb2.Transition(status=status, time=at(2), actor=LOCAL, reason="it broke")
        ],
    )


async def test_a_session_fails(client: Client, clock: FrozenClock) -> None:
    await start(client, clock)
    clock.advance(1)
    request = pb.FailSessionRequest(session_id=SESSION_ID, reason="it broke")
    expected = ended(session_pb2.SESSION_STATUS_FAILED)
    assert await client.sessions.FailSession(request) == pb.FailSessionResponse(session=expected)
    assert await get_session(client, SESSION_ID) == expected


async def test_a_session_is_interrupted(client: Client, clock: FrozenClock) -> None:
    await start(client, clock)
    clock.advance(1)
    request = pb.InterruptSessionRequest(session_id=SESSION_ID, reason="it broke")
    expected = ended(session_pb2.SESSION_STATUS_INTERRUPTED)
    response = await client.sessions.InterruptSession(request)
    assert response == pb.InterruptSessionResponse(session=expected)
    assert await get_session(client, SESSION_ID) == expected


async def test_no_session_starts_on_an_unknown_agent(client: Client) -> None:
    await register_agent(client, "ag_1")
    answer = await refused(
        start_session(client, "ag_2"),
        grpc.StatusCode.NOT_FOUND,
        "AGENT_NOT_FOUND",
        agent_id="ag_2",
    )
    assert "ag_2" in answer.message
    assert "RegisterAgent" in answer.message


async def test_an_agent_runs_one_session_at_a_time(client: Client) -> None:
    running = await running_session(client, "ag_1")
    for playbook in ("linux-baseline", "another"):
        answer = await refused(
            start_session(client, "ag_1", playbook=playbook),
            grpc.StatusCode.FAILED_PRECONDITION,
            "AGENT_BUSY",
            agent_id="ag_1",
            session_id=running,
        )
        assert "submit" in answer.message
        assert running in answer.message
    other = await running_session(client, "ag_2")
    await submit(client, running)
    again = await start_session(client, "ag_1")
    assert len({running, other, again.session_id}) == 3


async def test_of_many_starts_at_once_one_wins(client: Client) -> None:
    await register_agent(client)
    outcomes = await asyncio.gather(
        *(start_session(client) for _ in range(16)), return_exceptions=True
    )
    [winner] = [outcome for outcome in outcomes if isinstance(outcome, session_pb2.Session)]
    page = await client.sessions.ListSessions(pb.ListSessionsRequest())
    assert list(page.sessions) == [winner]


NO_SUCH_SESSION: dict[str, Callable[[Client], Awaitable[object]]] = {
    "GetSession": lambda client: get_session(client, NO_SESSION),
    "ListExecutions": lambda client: collect(
        client.sessions.ListExecutions(pb.ListExecutionsRequest(session_id=NO_SESSION))
    ),
    "GetExecution": lambda client: client.sessions.GetExecution(
        pb.GetExecutionRequest(session_id=NO_SESSION, sequence=1)
    ),
    "ReadOutput": lambda client: collect(
        client.sessions.ReadOutput(
            pb.ReadOutputRequest(
                session_id=NO_SESSION, sequence=1, stream=execution_pb2.OUTPUT_STREAM_STDOUT
            )
        )
    ),
    "BeginExecution": lambda client: client.recording.BeginExecution(
        recording_service_pb2.BeginExecutionRequest(
            session_id=NO_SESSION, command="id", capability="shell", start_time=at(0)
        )
    ),
    "AppendOutput": lambda client: client.recording.AppendOutput(
        recording_service_pb2.AppendOutputRequest(
            session_id=NO_SESSION, sequence=1, stream=execution_pb2.OUTPUT_STREAM_STDOUT, data=b"x"
        )
    ),
    "FinishExecution": lambda client: client.recording.FinishExecution(
        recording_service_pb2.FinishExecutionRequest(
            session_id=NO_SESSION, sequence=1, end_time=at(1)
        )
    ),
    "ListInsights": lambda client: collect(
        client.sessions.ListInsights(pb.ListInsightsRequest(session_id=NO_SESSION))
    ),
    "SubmitSession": lambda client: submit(client, NO_SESSION),
    "FailSession": lambda client: client.sessions.FailSession(
        pb.FailSessionRequest(session_id=NO_SESSION, reason="it broke")
    ),
    "InterruptSession": lambda client: client.sessions.InterruptSession(
        pb.InterruptSessionRequest(session_id=NO_SESSION, reason="enough")
    ),
    "RecordExecution": lambda client: record(client, NO_SESSION),
    "SaveInsight": lambda client: save_insight(client, NO_SESSION),
}


def test_every_rpc_that_names_a_session_is_in_the_table() -> None:
    assert set(NO_SUCH_SESSION) == {
        method.name
        for module in (pb, recording_service_pb2)
        for service in module.DESCRIPTOR.services_by_name.values()
        for method in service.methods
        if "session_id" in method.input_type.fields_by_name
    }


@pytest.mark.parametrize("rpc", NO_SUCH_SESSION)
async def test_an_unknown_session_is_not_found(client: Client, rpc: str) -> None:
    await running_session(client)
    answer = await refused(
        NO_SUCH_SESSION[rpc](client),
        grpc.StatusCode.NOT_FOUND,
        "SESSION_NOT_FOUND",
        session_id=NO_SESSION,
    )
    assert NO_SESSION in answer.message


async def test_a_session_id_is_compared_exactly(client: Client) -> None:
    session_id = await running_session(client)
    for other in (session_id.upper(), session_id[:-1], session_id + "0"):
        await refused(
            get_session(client, other),
            grpc.StatusCode.NOT_FOUND,
            "SESSION_NOT_FOUND",
            session_id=other,
        )


def test_ids_are_as_the_contract_writes_them_and_grow() -> None:
    ids = [new_id("sess_") for _ in range(1000)]
    assert ids == sorted(set(ids))
    for session_id in ids:
        prefix, digits = session_id[:5], session_id[5:]
        assert prefix == "sess_"
        assert len(digits) == 32
        assert set(digits) <= set("0123456789abcdef")
        assert digits[12] == "7"  # the version of a UUIDv7
