import asyncio
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from harness import (
    NO_SESSION,
    Client,
    at,
    record,
    record_request,
    running_session,
    save_insight,
    service_process,
    start_session,
    submit,
)
from infrascout.sessions.v1.agent_service_pb2 import ListAgentsRequest, RegisterAgentRequest
from infrascout.sessions.v1.execution_pb2 import (
    EXECUTION_STATE_EXITED,
    EXECUTION_STATE_UNFINISHED,
    OUTPUT_STREAM_STDOUT,
    Execution,
    Output,
)
from infrascout.sessions.v1.insight_pb2 import Insight
from infrascout.sessions.v1.recording_service_pb2 import (
    AppendOutputRequest,
    BeginExecutionRequest,
    FinishExecutionRequest,
    RecordExecutionsRequest,
    RecordExecutionsResponse,
    SaveInsightRequest,
)
from infrascout.sessions.v1.session_pb2 import (
    SESSION_STATUS_FAILED,
    SESSION_STATUS_INTERRUPTED,
    SESSION_STATUS_PENDING_REVIEW,
    SESSION_STATUS_RUNNING,
    Session,
)
from infrascout.sessions.v1.session_service_pb2 import (
    FailSessionRequest,
    GetSessionResponse,
    InterruptSessionRequest,
    ListExecutionsRequest,
    ListExecutionsResponse,
    ListInsightsRequest,
    ListInsightsResponse,
    ListSessionsRequest,
    ReadOutputRequest,
    ReadOutputResponse,
    StartSessionRequest,
    StartSessionResponse,
    SubmitSessionRequest,
)
from infrascout_sessions.client import AddressError, CallError, SessionsClient, open_channel
from scripted import Handler, Script, answering, refusing, scripted, streaming


@asynccontextmanager
async def sessions_client(address: str, **settings: Any) -> AsyncIterator[SessionsClient]:
    async with open_channel(address) as channel:
        yield SessionsClient.of(channel, **settings)


async def error_of(call: Any) -> CallError:
    with pytest.raises(CallError) as caught:
        await call
    return caught.value


async def test_every_call(client: Client) -> None:
    async with sessions_client(client.address) as sessions:
        agent = await sessions.register_agent(
            RegisterAgentRequest(agent_id="ag_1", hostname="web-1", capabilities=["shell"])
        )
        assert await sessions.get_agent("ag_1") == agent
        assert list((await sessions.list_agents(ListAgentsRequest())).agents) == [agent]

        started = await sessions.start_session(
            StartSessionRequest(agent_id="ag_1", playbook="linux-baseline")
        )
        assert started.status == SESSION_STATUS_RUNNING
        session_id = started.session_id
        first = await sessions.record_execution(
            record_request(session_id, output=Output(text="Linux\n"))
        )
        begun = await sessions.begin_execution(
            BeginExecutionRequest(
                session_id=session_id, command="id", capability="shell", start_time=at(1)
            )
        )
        chunk = AppendOutputRequest(
            session_id=session_id, sequence=2, stream=OUTPUT_STREAM_STDOUT, data=b"uid=0"
        )
        assert await sessions.append_output(chunk) == 5
        finished = await sessions.finish_execution(
            FinishExecutionRequest(session_id=session_id, sequence=2, exit_code=0, end_time=at(2))
        )
        assert (begun.sequence, finished.state) == (2, EXECUTION_STATE_EXITED)
        results = [
            result
            async for result in sessions.record_executions(
                record_request(session_id if n != 3 else NO_SESSION, command=f"echo {n}")
                for n in range(1200)
            )
        ]
        assert [r.WhichOneof("result") for r in results].count("refusal") == 1
        assert results[3].refusal.metadata == {"session_id": NO_SESSION}
        assert [r.recorded.sequence for r in results if r.HasField("recorded")] == list(
            range(3, 1202)
        )

        listed = [
            execution
            async for execution in sessions.list_executions(
                ListExecutionsRequest(session_id=session_id, limit=1100)
            )
        ]
        assert listed[:2] == [first, finished]
        assert [execution.sequence for execution in listed] == list(range(1, 1101))
        assert await sessions.get_execution(session_id, 2) == finished
        read = ReadOutputRequest(
            session_id=session_id, sequence=1, stream=OUTPUT_STREAM_STDOUT, offset=2
        )
        assert b"".join([data async for data in sessions.read_output(read)]) == b"nux\n"

        insight = await sessions.save_insight(
            SaveInsightRequest(session_id=session_id, category="c", key="k", value="v")
        )
        insights = sessions.list_insights(ListInsightsRequest(session_id=session_id))
        assert [each async for each in insights] == [insight]

        submitted = await sessions.submit_session(
            SubmitSessionRequest(session_id=session_id, summary="done")
        )
        assert submitted.status == SESSION_STATUS_PENDING_REVIEW
        assert await sessions.get_session(session_id) == submitted
        for end, status in (
            (sessions.fail_session, SESSION_STATUS_FAILED),
            (sessions.interrupt_session, SESSION_STATUS_INTERRUPTED),
        ):
            request_type: Any = (
                FailSessionRequest if status == SESSION_STATUS_FAILED else InterruptSessionRequest
            )
            another = await start_session(client)
            ended = await end(request_type(session_id=another.session_id, reason="why"))
            assert ended.status == status
        page = await sessions.list_sessions(ListSessionsRequest(limit=2))
        assert len(page.sessions) == 2
        assert page.next_page_token


async def test_a_refusal_carries_everything(client: Client) -> None:
    session_id = await running_session(client)
    async with sessions_client(client.address) as sessions:
        busy = await error_of(
            sessions.start_session(StartSessionRequest(agent_id="ag_1", playbook="p"))
        )
        assert (busy.code, busy.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "AGENT_BUSY")
        assert busy.metadata == {"agent_id": "ag_1", "session_id": session_id}
        assert session_id in busy.message
        assert str(busy) == f"FAILED_PRECONDITION AGENT_BUSY: {busy.message}"
        assert busy.request_id
        assert not busy.unanswered

        wrong = await error_of(sessions.start_session(StartSessionRequest(agent_id="a b")))
        assert wrong.reason == "INVALID_REQUEST"
        assert [field for field, _ in wrong.violations] == ["agent_id", "playbook"]

        stream = sessions.list_executions(ListExecutionsRequest(session_id=NO_SESSION))
        missing = await error_of(anext(stream))
        assert (missing.reason, missing.metadata) == (
            "SESSION_NOT_FOUND",
            {"session_id": NO_SESSION},
        )


async def test_a_callers_request_id_is_kept_and_the_request_unchanged(client: Client) -> None:
    await running_session(client, "ag_1")
    await running_session(client, "ag_2")
    async with sessions_client(client.address) as sessions:
        request = record_request((await start_agent(client, "ag_3")).session_id)
        await sessions.record_execution(request)
        assert not request.request_id
        request.request_id = "mine"
        first = await sessions.record_execution(request)
        assert await sessions.record_execution(request) == first


async def start_agent(client: Client, agent_id: str) -> Session:
    await client.agents.RegisterAgent(RegisterAgentRequest(agent_id=agent_id, hostname="web-1"))
    return await start_session(client, agent_id)


async def test_a_server_that_is_down_is_unavailable_within_the_deadline() -> None:
    async with sessions_client("127.0.0.1:1", deadline_seconds=1) as sessions:
        for call in (
            sessions.get_session("s"),
            anext(sessions.list_executions(ListExecutionsRequest(session_id="s"))),
            anext(sessions.record_executions([record_request("s")])),
        ):
            began = time.monotonic()
            down = await error_of(call)
            assert time.monotonic() - began < 2
            assert (down.code, down.reason) == (grpc.StatusCode.UNAVAILABLE, "")
            assert down.unanswered


async def test_a_server_that_says_nothing_is_a_passed_deadline() -> None:
    # It is connected to, and never accepts.
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        async with sessions_client(address, deadline_seconds=0.5) as sessions:
            for call in (
                sessions.get_session("s"),
                anext(sessions.list_executions(ListExecutionsRequest(session_id="s"))),
            ):
                silent = await error_of(call)
                assert silent.code is grpc.StatusCode.DEADLINE_EXCEEDED
                assert silent.unanswered


UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


@asynccontextmanager
async def scripted_client(
    *steps: Handler, **settings: Any
) -> AsyncIterator[tuple[SessionsClient, Script]]:
    async with (
        scripted(*steps) as script,
        sessions_client(script.address, **settings) as sessions,
    ):
        yield sessions, script


async def test_unavailable_is_repeated_with_the_same_request_id_after_the_delay_told() -> None:
    started = StartSessionResponse(session=Session(session_id="sess_1"))
    async with scripted_client(
        refusing(UNAVAILABLE, "OVERLOADED", 0.4),
        refusing(UNAVAILABLE),
        answering(started),
    ) as (sessions, script):
        began = time.monotonic()
        session = await sessions.start_session(StartSessionRequest(agent_id="a", playbook="p"))
        assert session.session_id == "sess_1"
        assert time.monotonic() - began >= 0.4
        requests = {request for _, request, _ in script.calls}
        assert len(script.calls) == 3
        assert len(requests) == 1
        assert StartSessionRequest.FromString(requests.pop()).request_id


def _batch(*refusals: str) -> Handler:
    """Answers a batch: an item each, refused as unavailable for a reason, or recorded."""
    response = RecordExecutionsResponse()
    for sequence, reason in enumerate(refusals, 1):
        result = response.results.add()
        if reason:
            result.refusal.code = UNAVAILABLE.value[0]
            result.refusal.message = reason
        else:
            result.recorded.sequence = sequence
    return answering(response)


async def test_what_is_unavailable_in_a_batch_is_repeated_with_it() -> None:
    requests = [record_request("s", command=f"c{number}") for number in range(2)]
    async with scripted_client(
        _batch("", "overloaded"), refusing(UNAVAILABLE), _batch("away", ""), _batch("", "")
    ) as (sessions, script):
        results = [result async for result in sessions.record_executions(requests)]
        assert [result.recorded.sequence for result in results] == [1, 2]
        assert len(script.calls) == 4
        sent = {request for _, request, _ in script.calls}
        assert len(sent) == 1
        batch = RecordExecutionsRequest.FromString(sent.pop())
        assert len({request.request_id for request in batch.executions} - {""}) == 2


async def test_what_stays_unavailable_in_a_batch_is_a_result_at_the_deadline() -> None:
    requests = [record_request("s", command=f"c{number}") for number in range(2)]
    async with scripted_client(_batch("", "away"), deadline_seconds=1) as (sessions, script):
        began = time.monotonic()
        results = [result async for result in sessions.record_executions(requests)]
        assert 0.2 < time.monotonic() - began < 2
        assert [result.WhichOneof("result") for result in results] == ["recorded", "refusal"]
        assert results[1].refusal.message == "away"
        assert len(script.calls) > 2


async def test_a_batch_whose_repeat_is_not_answered_is_given_back() -> None:
    requests = [record_request("s", command=f"c{number}") for number in range(2)]
    async with scripted_client(
        _batch("", "away"), refusing(UNAVAILABLE, "SHUTTING_DOWN", 30), deadline_seconds=1
    ) as (sessions, script):
        error = await error_of(anext(sessions.record_executions(requests)))
        assert error.reason == "SHUTTING_DOWN"
        sent = RecordExecutionsRequest.FromString(script.calls[0][1])
        assert list(error.requests) == list(sent.executions)


async def test_what_was_not_answered_is_sent_again_with_one_effect(
    database_url: str, tmp_path: Path
) -> None:
    commands = [f"c{number}" for number in range(1200)]
    answered: list[str] = []

    async def send(sessions: SessionsClient, requests: Any, until: int = 10_000) -> None:
        async for result in sessions.record_executions(requests):
            assert result.recorded.sequence
            answered.append(result.request_id)
            if len(answered) == until:
                await server.kill()

    async with (
        service_process(database_url, tmp_path / "log") as server,
        sessions_client(server.address, deadline_seconds=3) as sessions,
    ):
        session_id = await _running(sessions)
        requests = (record_request(session_id, command=command) for command in commands)
        error = await error_of(send(sessions, requests, 500))
    assert error.unanswered
    # The one that did not fit into the batch, too.
    assert len(error.requests) == 501
    assert [request.command for request in error.requests] == commands[500:1001]
    async with (
        service_process(database_url, tmp_path / "log") as server,
        sessions_client(server.address) as sessions,
    ):
        # However often.
        await send(sessions, error.requests)
        await send(sessions, error.requests)
        await send(sessions, requests)
        assert len(set(answered)) == 1200
        listed = sessions.list_executions(ListExecutionsRequest(session_id=session_id))
        assert [execution.command async for execution in listed] == commands


async def _running(sessions: SessionsClient) -> str:
    await sessions.register_agent(RegisterAgentRequest(agent_id="ag_1", hostname="web-1"))
    started = StartSessionRequest(agent_id="ag_1", playbook="p")
    return (await sessions.start_session(started)).session_id


async def test_a_delay_beyond_the_deadline_is_not_waited_for() -> None:
    async with scripted_client(refusing(UNAVAILABLE, "SHUTTING_DOWN", 30), deadline_seconds=2) as (
        sessions,
        _,
    ):
        began = time.monotonic()
        refused = await error_of(sessions.get_session("s"))
        assert time.monotonic() - began < 1
        assert (refused.reason, refused.retry_after_seconds) == ("SHUTTING_DOWN", 30)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "STORAGE_FULL"),
        (grpc.StatusCode.INTERNAL, "INTERNAL_ERROR"),
        (grpc.StatusCode.FAILED_PRECONDITION, "AGENT_BUSY"),
        (grpc.StatusCode.UNAUTHENTICATED, "PROOF_MISSING_OR_INVALID"),
    ],
)
async def test_nothing_else_is_repeated(code: grpc.StatusCode, reason: str) -> None:
    async with scripted_client(refusing(code, reason)) as (sessions, script):
        refused = await error_of(sessions.get_session("s"))
        assert (refused.code, refused.reason, len(script.calls)) == (code, reason, 1)


async def test_the_token_is_a_callers_own() -> None:
    answer = answering(GetSessionResponse())
    async with scripted_client(answer, answer, answer, token="one") as (sessions, script):
        await sessions.get_session("s")
        await sessions.with_token("two").get_session("s")
        await sessions.with_token("").get_session("s")
        sent = [metadata.get("authorization") for _, _, metadata in script.calls]
        assert sent == ["Bearer one", "Bearer two", None]


def _executions(*executions: tuple[int, Any]) -> bytes:
    return ListExecutionsResponse(
        executions=[Execution(sequence=n, state=state) for n, state in executions]
    ).SerializeToString()


EXITED, UNFINISHED = EXECUTION_STATE_EXITED, EXECUTION_STATE_UNFINISHED


async def test_executions_go_on_where_the_stream_broke() -> None:
    async with scripted_client(
        streaming(then=UNAVAILABLE),
        streaming(_executions((3, EXITED), (4, UNFINISHED)), then=UNAVAILABLE),
        streaming(_executions((5, EXITED)), then=grpc.StatusCode.DEADLINE_EXCEEDED),
        streaming(_executions((6, EXITED))),
    ) as (sessions, script):
        request = ListExecutionsRequest(session_id="s", after_sequence=2, limit=9, failed_only=True)
        listed = [each.sequence async for each in sessions.list_executions(request)]
        assert listed == [3, 4, 5, 6]
        asked = [ListExecutionsRequest.FromString(call[1]) for call in script.calls]
        assert [(each.after_sequence, each.limit) for each in asked] == [
            (2, 9),
            (2, 9),
            (4, 7),
            (5, 6),
        ]
        assert all(each.failed_only for each in asked)


async def test_following_resumes_before_the_oldest_unfinished_and_repeats_nothing() -> None:
    async with scripted_client(
        streaming(_executions((1, EXITED), (2, UNFINISHED), (3, EXITED)), then=UNAVAILABLE),
        streaming(_executions((2, UNFINISHED), (3, EXITED), (4, EXITED)), then=UNAVAILABLE),
        streaming(
            _executions((2, EXITED), (3, EXITED), (4, EXITED), (5, EXITED)), then=UNAVAILABLE
        ),
        streaming(),
    ) as (sessions, script):
        request = ListExecutionsRequest(session_id="s", follow=True)
        followed = [(each.sequence, each.state) async for each in sessions.list_executions(request)]
        assert followed == [
            (1, EXITED),
            (2, UNFINISHED),
            (3, EXITED),
            (4, EXITED),
            (2, EXITED),
            (5, EXITED),
        ]
        asked = [ListExecutionsRequest.FromString(call[1]).after_sequence for call in script.calls]
        assert asked == [0, 1, 1, 5]


async def test_insights_and_outputs_are_resumed() -> None:
    def insight(key: str) -> bytes:
        return ListInsightsResponse(insight=Insight(key=key)).SerializeToString()

    def data(content: bytes) -> bytes:
        return ReadOutputResponse(data=content).SerializeToString()

    async with scripted_client(
        streaming(insight("a"), insight("b"), then=UNAVAILABLE),
        streaming(insight("a"), insight("b"), insight("c")),
        streaming(data(b"abc"), then=UNAVAILABLE),
        streaming(data(b"def")),
    ) as (sessions, script):
        insights = sessions.list_insights(ListInsightsRequest(session_id="s"))
        assert [each.key async for each in insights] == ["a", "b", "c"]
        read = ReadOutputRequest(session_id="s", sequence=1, offset=4)
        assert [chunk async for chunk in sessions.read_output(read)] == [b"abc", b"def"]
        offsets = [ReadOutputRequest.FromString(c[1]).offset for c in script.calls[2:]]
        assert offsets == [4, 7]
        assert read.offset == 4


async def test_a_restarted_server_is_followed_without_gap_or_repeat(
    database_url: str, tmp_path: Path
) -> None:
    async with (
        service_process(database_url, tmp_path / "1.log") as service,
        sessions_client(service.address, deadline_seconds=60) as sessions,
    ):
        await sessions.register_agent(RegisterAgentRequest(agent_id="ag_1", hostname="h"))
        session = await sessions.start_session(StartSessionRequest(agent_id="ag_1", playbook="p"))
        request = ListExecutionsRequest(session_id=session.session_id, follow=True)
        followed: list[int] = []
        seen = asyncio.Event()

        async def follow() -> None:
            async for execution in sessions.list_executions(request):
                followed.append(execution.sequence)
                seen.set()

        following = asyncio.create_task(follow())
        await sessions.record_execution(record_request(session.session_id))
        await seen.wait()
        await service.kill()
        writing = asyncio.create_task(sessions.record_execution(record_request(session.session_id)))
        await asyncio.sleep(0.5)
        async with service_process(database_url, tmp_path / "2.log", listen=service.address):
            assert (await writing).sequence == 2
            await sessions.record_execution(record_request(session.session_id))
            await sessions.submit_session(
                SubmitSessionRequest(session_id=session.session_id, summary="done")
            )
            async with asyncio.timeout(60):
                await following
        assert followed == [1, 2, 3]


async def test_a_stream_that_is_left_early_is_cancelled(client: Client) -> None:
    session_id = await running_session(client)
    await record(client, session_id)
    async with sessions_client(client.address) as sessions:
        request = ListExecutionsRequest(session_id=session_id, follow=True)
        async with aclosing(sessions.list_executions(request)) as followed:
            assert (await anext(followed)).sequence == 1
        await save_insight(client, session_id)
        await submit(client, session_id)


# Channels.


@pytest.mark.parametrize("address", ["", "nowhere", ":50051", "host:", "host:port", "h:70000"])
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(AddressError, match="is no address"):
        open_channel(address)


async def test_a_token_does_not_leave_the_machine_in_the_clear() -> None:
    with pytest.raises(AddressError, match="unencrypted"):
        open_channel("sessions.example.com:443", token="secret")
    for address in ("127.0.0.1:1", "[::1]:1", "localhost:1", "unix:/tmp/x"):
        await open_channel(address, token="secret").close()
    await open_channel("sessions.example.com:443", token="secret", tls=True).close()


async def test_over_tls_the_server_proves_its_name(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    _certificate(key, certificate)
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Script([answering(GetSessionResponse())]),))
    credentials = grpc.ssl_server_credentials([(key.read_bytes(), certificate.read_bytes())])
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    try:
        address = f"localhost:{port}"
        async with open_channel(
            address, tls=True, root_certificates=certificate.read_bytes(), token="t"
        ) as channel:
            await SessionsClient.of(channel, token="t").get_session("s")
        async with open_channel(address, tls=True) as channel:
            untrusted = await error_of(
                SessionsClient.of(channel, deadline_seconds=1).get_session("s")
            )
            assert untrusted.code is UNAVAILABLE
    finally:
        await server.stop(None)


def _certificate(key: Path, certificate: Path) -> None:
    """A key and a certificate for localhost that signs itself."""
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-keyout", str(key), "-out", str(certificate), "-days", "2"),
            *("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"),
        ],
        check=True,
        capture_output=True,
    )


def test_it_imports_nothing_of_the_server() -> None:
    script = (
        "import sys, infrascout_sessions.client\n"
        "print([name for name in sys.modules if name.startswith(('sqlalchemy', 'aiosqlite',"
        " 'alembic', 'sqlite3', 'infrascout_sessions.'))])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    imported = set(eval(done.stdout))
    assert all(name.startswith("infrascout_sessions.client") for name in imported), imported
