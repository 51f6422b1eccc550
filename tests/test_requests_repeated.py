"""Writes repeated with the same `request_id`."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import grpc
import pytest
from google.protobuf.message import Message

from harness import (
    Client,
    FrozenClock,
    at,
    complete,
    failed,
    get_session,
    list_executions,
    list_insights,
    record,
    record_request,
    refused,
    register_agent,
    running_session,
    save_insight,
    start_session,
    submit,
    writes_held_up,
)
from infrascout.sessions.v1 import agent_service_pb2 as agents
from infrascout.sessions.v1 import recording_service_pb2 as recording
from infrascout.sessions.v1 import session_pb2
from infrascout.sessions.v1 import session_service_pb2 as sessions


class Write(NamedTuple):
    """An RPC that writes: the field to change for another content, and its request."""

    stub: Callable[[Client], Callable[[Any], Awaitable[Any]]]
    request: Callable[[str, str], Any]
    """Of the ids of an agent, which is registered, and of its session."""
    changed: str
    needs_session: bool = True


WRITES: dict[str, Write] = {
    "RegisterAgent": Write(
        lambda client: client.agents.RegisterAgent,
        lambda agent_id, _: agents.RegisterAgentRequest(agent_id=agent_id, hostname="web-1"),
        "hostname",
    ),
    "StartSession": Write(
        lambda client: client.sessions.StartSession,
        lambda agent_id, _: sessions.StartSessionRequest(agent_id=agent_id, playbook="baseline"),
        "playbook",
        needs_session=False,
    ),
    "SubmitSession": Write(
        lambda client: client.sessions.SubmitSession,
        lambda _, session_id: sessions.SubmitSessionRequest(session_id=session_id, summary="done"),
        "summary",
    ),
    "FailSession": Write(
        lambda client: client.sessions.FailSession,
        lambda _, session_id: sessions.FailSessionRequest(session_id=session_id, reason="broke"),
        "reason",
    ),
    "InterruptSession": Write(
        lambda client: client.sessions.InterruptSession,
        lambda _, session_id: sessions.InterruptSessionRequest(
            session_id=session_id, reason="enough"
        ),
        "reason",
    ),
    "RecordExecution": Write(
        lambda client: client.recording.RecordExecution,
        lambda _, session_id: record_request(session_id),
        "command",
    ),
    "BeginExecution": Write(
        lambda client: client.recording.BeginExecution,
        lambda _, session_id: recording.BeginExecutionRequest(
            session_id=session_id, command="id", capability="shell", start_time=at(0)
        ),
        "command",
    ),
    "FinishExecution": Write(
        lambda client: client.recording.FinishExecution,
        lambda _, session_id: recording.FinishExecutionRequest(
            session_id=session_id, sequence=1, exit_code=0, end_time=at(1)
        ),
        "exit_code",
    ),
    "SaveInsight": Write(
        lambda client: client.recording.SaveInsight,
        lambda _, session_id: recording.SaveInsightRequest(
            session_id=session_id, category="c", key="k", value="v"
        ),
        "value",
    ),
}

EVERY_WRITE = pytest.mark.parametrize("rpc", WRITES)


def changed(request: Any, field: str) -> Any:
    """The request with other content."""
    other = type(request)()
    other.CopyFrom(request)
    value = getattr(other, field)
    setattr(other, field, value + 1 if isinstance(value, int) else f"{value} otherwise")
    return other


async def prepared(
    client: Client, rpc: str, request_id: str, agent_id: str = "ag_1"
) -> tuple[Callable[[Any], Awaitable[Message]], Any]:
    """The RPC, and a request that it answers."""
    write = WRITES[rpc]
    await register_agent(client, agent_id)
    session_id = (await start_session(client, agent_id)).session_id if write.needs_session else ""
    if rpc == "FinishExecution":
        await client.recording.BeginExecution(
            recording.BeginExecutionRequest(
                session_id=session_id, command="id", capability="shell", start_time=at(0)
            )
        )
    request = write.request(agent_id, session_id)
    request.request_id = request_id
    return write.stub(client), request


async def everything(client: Client) -> list[Message]:
    """All that the service keeps."""
    page = await client.sessions.ListSessions(sessions.ListSessionsRequest(limit=200))
    kept: list[Message] = [
        *(await client.agents.ListAgents(agents.ListAgentsRequest(limit=200))).agents,
        *page.sessions,
    ]
    for session in page.sessions:
        kept += await list_executions(client, session.session_id)
        kept += await list_insights(client, session.session_id, all_revisions=True)
    return kept


def test_every_rpc_that_takes_a_request_id_is_in_the_table() -> None:
    assert set(WRITES) == {
        method.name
        for module in (agents, sessions, recording)
        for service in module.DESCRIPTOR.services_by_name.values()
        for method in service.methods
        if "request_id" in method.input_type.fields_by_name
    }


@EVERY_WRITE
async def test_a_repeat_has_no_second_effect(client: Client, clock: FrozenClock, rpc: str) -> None:
    call, request = await prepared(client, rpc, "r-1")
    clock.advance(1)
    first = await call(request)
    kept = await everything(client)
    for _ in range(3):
        clock.advance(1)
        assert await call(request) == first
        assert await everything(client) == kept


@EVERY_WRITE
async def test_16_at_once_have_one_effect(client: Client, rpc: str) -> None:
    call, request = await prepared(client, rpc, "r-1")
    before = await everything(client)
    replies = await asyncio.gather(*(call(request) for _ in range(16)))
    assert replies == [replies[0]] * 16
    alone = await everything(client)
    assert alone != before or rpc == "RegisterAgent"
    assert await call(request) == replies[0]
    assert await everything(client) == alone
    session_id = getattr(request, "session_id", "")
    if session_id:
        session = await get_session(client, session_id)
        assert session.execution_count == rpc.endswith("Execution")
        assert session.insight_count == (rpc == "SaveInsight")
        assert len(session.transitions) == 1 + rpc.endswith("Session")


@EVERY_WRITE
async def test_other_content_is_refused(client: Client, clock: FrozenClock, rpc: str) -> None:
    call, request = await prepared(client, rpc, "r-1")
    first = await call(request)
    kept = await everything(client)
    clock.advance(1)
    answer = await refused(
        call(changed(request, WRITES[rpc].changed)),
        grpc.StatusCode.ALREADY_EXISTS,
        "REQUEST_ID_REUSED",
        request_id="r-1",
    )
    assert "r-1" in answer.message
    assert await everything(client) == kept
    assert await call(request) == first


@EVERY_WRITE
async def test_of_16_different_ones_at_once_one_counts(client: Client, rpc: str) -> None:
    call, request = await prepared(client, rpc, "r-1")
    requests = []
    for n in range(16):
        requests.append(type(request)())
        requests[-1].CopyFrom(request)
        field = WRITES[rpc].changed
        setattr(requests[-1], field, n if field == "exit_code" else f"content {n}")
    outcomes = await asyncio.gather(*map(call, requests), return_exceptions=True)
    answered = [n for n, outcome in enumerate(outcomes) if isinstance(outcome, Message)]
    assert len(answered) == 1
    codes = {o.code() for o in outcomes if isinstance(o, grpc.aio.AioRpcError)}
    assert codes == {grpc.StatusCode.ALREADY_EXISTS}
    for n, other in enumerate(requests):
        if n in answered:
            assert await call(other) == outcomes[n]
        else:
            await refused(
                call(other),
                grpc.StatusCode.ALREADY_EXISTS,
                "REQUEST_ID_REUSED",
                request_id="r-1",
            )


REQUEST_IDS = ["x", "x" * 64, "𝄞" * 64, " ", "X", "a\nb\t\x01", "100% é"]


@EVERY_WRITE
async def test_a_request_id_is_any_string(client: Client, rpc: str) -> None:
    for n, request_id in enumerate(REQUEST_IDS):
        call, request = await prepared(client, rpc, request_id, f"ag_{n}")
        assert await call(request) == await call(request)
        answer = await refused(
            call(changed(request, WRITES[rpc].changed)),
            grpc.StatusCode.ALREADY_EXISTS,
            "REQUEST_ID_REUSED",
            request_id=request_id,
        )
        assert request_id in answer.message


# Without an id.


async def test_without_an_id_every_record_is_a_new_one(client: Client) -> None:
    session_id = await running_session(client)
    first, second = await record(client, session_id), await record(client, session_id)
    assert (first.sequence, second.sequence) == (1, 2)
    assert first.execution_id != second.execution_id


async def test_without_an_id_a_repeated_start_names_the_first_session(client: Client) -> None:
    first = await running_session(client)
    await refused(
        start_session(client),
        grpc.StatusCode.FAILED_PRECONDITION,
        "AGENT_BUSY",
        agent_id="ag_1",
        session_id=first,
    )


# A repeat is answered with the resource as it stands now.


async def test_a_start_repeated_later_shows_the_session_as_it_is(
    client: Client, clock: FrozenClock
) -> None:
    await register_agent(client)
    first = await start_session(client, request_id="r-1")
    clock.advance(1)
    await record(client, first.session_id)
    await submit(client, first.session_id)
    again = await start_session(client, request_id="r-1")
    assert again == await get_session(client, first.session_id)
    assert again.status == session_pb2.SESSION_STATUS_PENDING_REVIEW
    # The agent runs another one now, and is not said to be busy.
    other = await start_session(client, request_id="r-2")
    assert await start_session(client, request_id="r-1") == again
    assert other.session_id != first.session_id


async def test_a_registration_repeated_later_shows_the_agent_as_it_is(
    client: Client, clock: FrozenClock
) -> None:
    await register_agent(client, os="Debian 12", request_id="r-1")
    clock.advance(1)
    newer = await register_agent(client, os="Debian 13")
    clock.advance(1)
    assert await register_agent(client, os="Debian 12", request_id="r-1") == newer


async def test_a_submit_repeated_after_the_review_shows_the_session_completed(
    client: Client, database_url: str
) -> None:
    session_id = await running_session(client)
    await submit(client, session_id, request_id="r-1")
    await complete(database_url, session_id)
    again = await submit(client, session_id, request_id="r-1")
    assert again.status == session_pb2.SESSION_STATUS_COMPLETED
    assert again == await get_session(client, session_id)


ENDS: dict[str, Any] = {
    "SubmitSession": lambda client, session_id: submit(client, session_id),
    "FailSession": lambda client, session_id: client.sessions.FailSession(
        sessions.FailSessionRequest(session_id=session_id, reason="broke")
    ),
    "InterruptSession": lambda client, session_id: client.sessions.InterruptSession(
        sessions.InterruptSessionRequest(session_id=session_id, reason="enough")
    ),
}


@pytest.mark.parametrize("end", ENDS)
async def test_a_record_repeated_after_the_end_gets_its_first_execution(
    client: Client, clock: FrozenClock, end: str
) -> None:
    session_id = await running_session(client)
    first = await record(client, session_id, request_id="r-1")
    await record(client, session_id, request_id="r-2")
    clock.advance(1)
    await ENDS[end](client, session_id)
    before = await get_session(client, session_id)
    assert await record(client, session_id, request_id="r-1") == first
    assert await get_session(client, session_id) == before
    # An id that is new, or says something else, is recognised as such before the state is.
    await refused(
        record(client, session_id, request_id="r-1", command="id"),
        grpc.StatusCode.ALREADY_EXISTS,
        "REQUEST_ID_REUSED",
        request_id="r-1",
    )
    await refused(
        record(client, session_id, request_id="r-3"),
        grpc.StatusCode.FAILED_PRECONDITION,
        "SESSION_NOT_RUNNING",
        session_id=session_id,
        status=session_pb2.SessionStatus.Name(before.status),
    )


@pytest.mark.parametrize("end", ENDS)
async def test_an_insight_repeated_after_the_end_gets_the_newest_revision(
    client: Client, clock: FrozenClock, end: str
) -> None:
    session_id = await running_session(client)
    first = await save_insight(client, session_id, value="1", request_id="r-1")
    assert await save_insight(client, session_id, value="1", request_id="r-1") == first
    clock.advance(1)
    newest = await save_insight(client, session_id, value="2")
    assert await save_insight(client, session_id, value="1", request_id="r-1") == newest
    await ENDS[end](client, session_id)
    assert await save_insight(client, session_id, value="1", request_id="r-1") == newest
    assert [i.revision for i in await list_insights(client, session_id, all_revisions=True)] == [
        1,
        2,
    ]


async def test_an_unchanged_save_is_remembered_too(client: Client) -> None:
    session_id = await running_session(client)
    first = await save_insight(client, session_id, value="1")
    assert await save_insight(client, session_id, value="1", request_id="r-1") == first
    await refused(
        save_insight(client, session_id, value="2", request_id="r-1"),
        grpc.StatusCode.ALREADY_EXISTS,
        "REQUEST_ID_REUSED",
        request_id="r-1",
    )


# Scope.


async def test_an_id_belongs_to_its_rpc(client: Client) -> None:
    await register_agent(client, request_id="r")
    session = await start_session(client, request_id="r")
    assert (await record(client, session.session_id, request_id="r")).sequence == 1
    assert (await save_insight(client, session.session_id, request_id="r")).revision == 1
    ended = await submit(client, session.session_id, request_id="r")
    assert ended.status == session_pb2.SESSION_STATUS_PENDING_REVIEW
    for request in (
        sessions.FailSessionRequest(session_id=session.session_id, reason="broke", request_id="r"),
        sessions.InterruptSessionRequest(
            session_id=session.session_id, reason="enough", request_id="r"
        ),
    ):
        rpc = type(request).__name__.removesuffix("Request")
        await refused(
            getattr(client.sessions, rpc)(request),
            grpc.StatusCode.FAILED_PRECONDITION,
            "ILLEGAL_TRANSITION",
            session_id=session.session_id,
            status="SESSION_STATUS_PENDING_REVIEW",
            action=rpc,
        )


@pytest.mark.parametrize(
    "rpc",
    [name for name, write in WRITES.items() if write.needs_session and name != "RegisterAgent"],
)
async def test_an_id_belongs_to_its_session_where_the_request_names_one(
    client: Client, rpc: str
) -> None:
    call, request = await prepared(client, rpc, "r-1", "ag_1")
    _, other = await prepared(client, rpc, "r-1", "ag_2")
    first, second = await call(request), await call(changed(other, WRITES[rpc].changed))
    assert first != second
    assert await call(request) == first


async def test_an_id_is_shared_by_agents_where_the_request_names_no_session(
    client: Client,
) -> None:
    await register_agent(client, "ag_1", request_id="r")
    await refused(
        register_agent(client, "ag_2", request_id="r"),
        grpc.StatusCode.ALREADY_EXISTS,
        "REQUEST_ID_REUSED",
        request_id="r",
    )
    await register_agent(client, "ag_2")
    await start_session(client, "ag_1", request_id="r")
    await refused(
        start_session(client, "ag_2", request_id="r"),
        grpc.StatusCode.ALREADY_EXISTS,
        "REQUEST_ID_REUSED",
        request_id="r",
    )


# A refused call is not remembered.


async def test_a_start_refused_as_busy_can_be_repeated(client: Client) -> None:
    first = await running_session(client)
    await refused(
        start_session(client, request_id="r"),
        grpc.StatusCode.FAILED_PRECONDITION,
        "AGENT_BUSY",
        agent_id="ag_1",
        session_id=first,
    )
    await submit(client, first)
    assert (await start_session(client, playbook="another", request_id="r")).session_id != first


async def test_a_start_on_an_unknown_agent_can_be_repeated(client: Client) -> None:
    await refused(
        start_session(client, request_id="r"),
        grpc.StatusCode.NOT_FOUND,
        "AGENT_NOT_FOUND",
        agent_id="ag_1",
    )
    await register_agent(client)
    assert (await start_session(client, request_id="r")).agent_id == "ag_1"


async def test_an_insight_refused_for_an_execution_can_be_repeated(client: Client) -> None:
    session_id = await running_session(client)
    await refused(
        save_insight(client, session_id, execution_sequences=[1], request_id="r"),
        grpc.StatusCode.NOT_FOUND,
        "EXECUTION_NOT_FOUND",
        session_id=session_id,
        sequence="1",
    )
    await record(client, session_id)
    saved = await save_insight(client, session_id, execution_sequences=[1], request_id="r")
    assert saved.revision == 1


@EVERY_WRITE
async def test_an_id_of_an_invalid_request_can_be_used_again(client: Client, rpc: str) -> None:
    call, request = await prepared(client, rpc, "r-1")
    invalid = changed(request, WRITES[rpc].changed)
    if rpc == "FinishExecution":
        invalid.ClearField("end_time")
    else:
        setattr(invalid, WRITES[rpc].changed, "\0")
    await refused(call(invalid), grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
    await call(request)


async def test_requests_written_in_one_transaction_do_not_spoil_each_other(
    client: Client, database_url: str
) -> None:
    session_id = await running_session(client)
    first = await record(client, session_id, request_id="r-1")
    requests = [
        {"request_id": "r-0"},
        {"request_id": "r-1", "command": "something else"},
        {"request_id": "r-1"},
        {"request_id": "r-2"},
        {"request_id": "r-2"},
        {"request_id": "r-1", "command": "yet another"},
        {"request_id": "r-1"},
    ]
    async with writes_held_up(database_url):
        # One of these waits for the database, the others for that one, to be written together.
        calls = [asyncio.create_task(record(client, session_id, **fields)) for fields in requests]
        await asyncio.create_task(get_session(client, session_id))
        assert not any(call.done() for call in calls)
    other, again, new, new_again, yet_another, again_too = (
        await asyncio.gather(*calls, return_exceptions=True)
    )[1:]
    assert again == again_too == first
    assert new == new_again
    for refusal in (other, yet_another):
        assert isinstance(refusal, grpc.aio.AioRpcError)
        assert refusal.code() is grpc.StatusCode.ALREADY_EXISTS
    assert (await get_session(client, session_id)).execution_count == 3


@pytest.mark.parametrize("rpc", [name for name in WRITES if name != "RegisterAgent"])
async def test_a_write_past_its_deadline_can_be_repeated_and_counts_once(
    client: Client, database_url: str, rpc: str
) -> None:
    _, request = await prepared(client, rpc, "r-1")
    stub: Any = WRITES[rpc].stub(client)
    async with writes_held_up(database_url):
        error = await failed(stub(request, timeout=0.05))
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    first = await stub(request)
    kept = await everything(client)
    assert await stub(request) == first
    assert await everything(client) == kept
    session_id = getattr(request, "session_id", "")
    if session_id:
        session = await get_session(client, session_id)
        assert session.execution_count == rpc.endswith("Execution")
        assert session.insight_count == (rpc == "SaveInsight")
        assert len(session.transitions) == 1 + rpc.endswith("Session")
    else:
        assert sum(isinstance(record, session_pb2.Session) for record in kept) == 1
