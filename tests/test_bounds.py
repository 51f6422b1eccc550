"""What callers may have at once, and what they get who ask for more."""

import asyncio
import json
import secrets
import signal
import sys
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from functools import partial
from pathlib import Path
from statistics import median
from time import monotonic
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status

from callers import (
    HUMAN,
    SERVICE,
    bearer,
    calling,
    collect_to_status,
    in_database,
    make_token,
    make_tokens,
)
from harness import (
    Client,
    connected,
    failed,
    record,
    record_request,
    refused,
    running_session,
    service_process,
    serving,
)
from infrascout.sessions.v1 import agent_service_pb2 as agents_pb
from infrascout.sessions.v1 import recording_service_pb2 as pb
from infrascout.sessions.v1 import session_service_pb2 as session_service
from infrascout_sessions.models import Role, system_clock
from infrascout_sessions.storage.repository.tokens import create as create_token
from infrascout_sessions.tokens import PREFIX, issue

EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
NO_PROOF = (grpc.StatusCode.UNAUTHENTICATED, "PROOF_MISSING_OR_INVALID")


async def _over(call: Awaitable[object], quota: str) -> float:
    """A call that must be refused for a quota; returns when it may be repeated, in seconds."""
    error = await failed(call)
    assert error.code() is EXHAUSTED
    status = rpc_status.from_call(error)  # type: ignore[arg-type]
    assert status is not None
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    assert status.details[0].Unpack(info)
    assert status.details[1].Unpack(retry)
    assert (info.reason, dict(info.metadata)) == ("QUOTA_EXCEEDED", {"quota": quota})
    return float(retry.retry_delay.ToTimedelta().total_seconds())


async def _list(client: Client, **arguments: Any) -> object:
    return await client.agents.ListAgents(agents_pb.ListAgentsRequest(), **arguments)


async def _healthy(client: Client) -> bool:
    stub: Any = health_pb2_grpc.HealthStub(client.channel)
    answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=5)
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


async def _follow(client: Client, session_id: str) -> Any:
    """An open stream that has sent its first message."""
    request = session_service.ListExecutionsRequest(session_id=session_id, follow=True)
    stream = client.sessions.ListExecutions(request)
    await stream.read()
    return stream


@pytest.mark.parametrize(
    ("setting", "quota"),
    [
        ("maximum_calls", "calls"),
        ("maximum_calls_of_caller", "calls_of_caller"),
        ("maximum_streams_of_caller", "streams_of_caller"),
    ],
)
async def test_calls_under_way_are_bounded(database_url: str, setting: str, quota: str) -> None:
    token = await make_token(database_url, "other", SERVICE, Role.VIEWER)
    bound: dict[str, Any] = {setting: 2}
    async with (
        serving(database_url, **bound) as client,
        calling(client.address, token) as other,
    ):
        session_id = await running_session(client)
        await record(client, session_id)
        streams = [await _follow(client, session_id) for _ in range(2)]
        assert await _over(_follow(client, session_id), quota) > 0

        async def requests() -> Any:
            yield pb.RecordExecutionsRequest(executions=[record_request(session_id)])

        recording = collect_to_status(lambda: client.recording.RecordExecutions(requests()))
        assert await _over(recording, quota) > 0
        if quota == "streams_of_caller":
            await _list(client)
        else:
            await _over(_list(client), quota)
        if quota == "calls":
            await _over(_list(other), quota)
        else:
            (await _follow(other, session_id)).cancel()
        assert await _healthy(client)
        # What has ended, however, makes room.
        for stream in streams:
            stream.cancel()
        async with asyncio.timeout(5):
            while True:
                try:
                    (await _follow(client, session_id)).cancel()
                    break
                except grpc.aio.AioRpcError:
                    await asyncio.sleep(0.01)


async def _watch(client: Client, **arguments: Any) -> Any:
    """A stream of health that has said how it is."""
    stub: Any = health_pb2_grpc.HealthStub(client.channel)
    stream = stub.Watch(health_pb2.HealthCheckRequest(), **arguments)
    assert (await stream.read()).status == health_pb2.HealthCheckResponse.SERVING
    return stream


async def _reflect(client: Client, *, ends: bool = False) -> Any:
    """A stream of reflection that has answered; unless it `ends`, it waits for more."""
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(client.channel)  # type: ignore[arg-type]
    stream = stub.ServerReflectionInfo()
    await stream.write(reflection_pb2.ServerReflectionRequest(list_services=""))
    assert (await stream.read()).list_services_response.service
    if ends:
        await stream.done_writing()
        assert await stream.read() is grpc.aio.EOF
    return stream


async def _soon(begin: Callable[[], Awaitable[Any]]) -> Any:
    """What there is room for before long."""
    async with asyncio.timeout(5):
        while True:
            # Of a stream of requests that is refused at once, grpc.aio may lose how.
            with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
                return await begin()
            await asyncio.sleep(0.01)


async def test_streams_that_ask_for_no_role_are_bounded(database_url: str) -> None:
    async with serving(database_url, maximum_calls=3) as client:
        streams = [await _watch(client), await _watch(client), await _reflect(client)]
        # However they end, there is room again, and for no more.
        for _ in range(5):
            assert await _over(_watch(client), "calls") > 0
            # What tells whether the server is there is answered, and so are callers.
            assert await _healthy(client)
            await _list(client)
            for stream in streams:
                stream.cancel()
            await _soon(partial(_reflect, client, ends=True))
            late = await _soon(partial(_watch, client, timeout=0.2))
            assert await late.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            async with connected(client.address) as gone:
                await _soon(partial(_watch, gone))
                await _soon(partial(_reflect, gone))
            streams = [await _soon(partial(_watch, client)) for _ in range(3)]
        for stream in streams:
            stream.cancel()


async def test_a_thousand_streams_that_ask_for_no_role(database_url: str) -> None:
    async with serving(database_url) as client:
        streams = await asyncio.gather(*(_watch(client) for _ in range(1000)))
        await _over(_watch(client), "calls")
        assert await _healthy(client)
        for stream in streams:
            stream.cancel()


async def test_refused_calls_do_not_count(database_url: str) -> None:
    async with serving(database_url, maximum_calls=1, maximum_calls_of_caller=1) as client:
        for _ in range(5):
            await refused(
                client.agents.GetAgent(agents_pb.GetAgentRequest()),
                grpc.StatusCode.INVALID_ARGUMENT,
                "INVALID_REQUEST",
            )
            await failed(_list(client, metadata=bearer("bad")))
            assert await _list(client) is not None


async def test_large_metadata_is_refused(database_url: str) -> None:
    async with serving(database_url, maximum_metadata_bytes=8192) as client:
        await _list(client, metadata=(("x-large", "x" * 7000),))
        error = await failed(_list(client, metadata=(("x-large", "x" * 8200),)))
        assert error.code() is EXHAUSTED
        await _list(client)


async def test_a_connection_ends_at_its_age_and_no_call_with_it(
    database_url: str, tmp_path: Path
) -> None:
    log = tmp_path / "access.log"
    async with serving(
        database_url, access_log=str(log), maximum_connection_age_seconds=1
    ) as client:
        session_id = await running_session(client)
        await record(client, session_id)
        stream = await _follow(client, session_id)
        end = monotonic() + 2.5
        while monotonic() < end:
            await _list(client)
            await asyncio.sleep(0.02)
        await record(client, session_id)
        assert (await stream.read()).executions[0].sequence == 2
    peers = {json.loads(line)["peer"] for line in log.read_text().splitlines()}
    assert len(peers) >= 2


async def test_failed_proofs_of_a_connection(database_url: str) -> None:
    tokens = await make_tokens(
        database_url, [(name, HUMAN, [Role.VIEWER]) for name in ("known", "new")]
    )
    async with (
        serving(database_url) as client,
        calling(client.address) as bad,
        calling(client.address) as other,
    ):
        await _list(bad, metadata=bearer(tokens["known"]))
        for _ in range(8):
            await refused(_list(bad, metadata=bearer("bad")), *NO_PROOF)
        started = monotonic()
        waves = await asyncio.gather(
            *(_over(_list(bad, metadata=bearer("bad")), "failed_proofs") for _ in range(10)),
            return_exceptions=True,
        )
        assert [wave for wave in waves if not isinstance(wave, AssertionError)] >= [1.0] * 7
        # Late, so that who waits for the answer does not ask again at once.
        assert monotonic() - started > 0.9
        # Whoever is known is not kept out by it, nor is anybody on another connection.
        await _list(bad, metadata=bearer(tokens["known"]))
        await _list(other, metadata=bearer(tokens["new"]))
        assert await _healthy(bad)
        await asyncio.sleep(2.5)
        await refused(_list(bad, metadata=bearer("bad")), *NO_PROOF)


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "unix:"])
async def test_a_bad_caller_on_a_shared_connection_keeps_nobody_out(
    database_url: str, tmp_path: Path, listen: str
) -> None:
    """Behind a proxy callers share a connection, and on a Unix socket they all look like one."""
    names = [f"caller-{number}" for number in range(20)]
    tokens = await make_tokens(database_url, [(name, SERVICE, [Role.VIEWER]) for name in names])
    if listen == "unix:":
        listen += str(tmp_path / "socket")
    async with serving(database_url, listen=listen) as client:
        address = client.address if listen == "127.0.0.1:0" else listen
        async with calling(address) as shared:
            bad = _made_up()
            for _ in range(10):
                await refused(_list(shared, metadata=bearer(bad)), *NO_PROOF)
            held = [
                asyncio.create_task(_over(_list(shared, metadata=bearer(each)), "failed_proofs"))
                for each in [bad, "no token"] * 10
            ]
            await asyncio.sleep(0.3)
            for token in tokens.values():
                await _list(shared, metadata=bearer(token))
            await asyncio.gather(*(_list(shared, metadata=bearer(t)) for t in tokens.values()))
            # What is bad waits all the same.
            assert not all(call.done() for call in held)
            for call in held:
                call.cancel()
            await asyncio.gather(*held, return_exceptions=True)


async def test_what_was_bad_a_while_ago_is_looked_at_again(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token that is shown before it is issued, on a connection that others use up."""
    monkeypatch.setattr("infrascout_sessions.interceptors.bounds._BAD_SECONDS", 4)
    token, new = issue("early", SERVICE, [Role.VIEWER], None)
    async with serving(database_url) as client, calling(client.address) as shared:
        await refused(_list(shared, metadata=bearer(token)), *NO_PROOF)
        await in_database(database_url, partial(create_token, new), system_clock)
        await asyncio.sleep(4)
        others = [
            asyncio.create_task(failed(_list(shared, metadata=bearer("bad")))) for _ in range(20)
        ]
        await asyncio.sleep(0.2)
        assert not all(call.done() for call in others)
        await _list(shared, metadata=bearer(token))
        for call in others:
            call.cancel()
        await asyncio.gather(*others, return_exceptions=True)


async def test_made_up_proofs_are_bounded_by_their_address(database_url: str) -> None:
    """Ever new ones, each of which might be somebody's."""
    tokens = await make_tokens(
        database_url, [(name, SERVICE, [Role.VIEWER]) for name in ("known", "new")]
    )
    async with (
        serving(database_url, maximum_failed_proofs=10) as client,
        calling(client.address) as bad,
        calling(client.address) as other,
    ):
        await _list(bad, metadata=bearer(tokens["known"]))
        started = monotonic()
        calls = [
            asyncio.create_task(failed(_list(bad, metadata=bearer(_made_up())))) for _ in range(80)
        ]
        await asyncio.sleep(0.5)
        # Who is known notices nothing, and on another connection there is room for who is not.
        await _list(bad, metadata=bearer(tokens["known"]))
        await _list(other, metadata=bearer(tokens["new"]))
        await asyncio.sleep(2)
        seconds = monotonic() - started
        codes = [call.result().code() for call in calls if call.done()]
        # 20 at once, and then no more than ten a second; those beyond are refused late.
        assert 20 <= codes.count(grpc.StatusCode.UNAUTHENTICATED) <= 20 + 10 * seconds
        assert 1 <= codes.count(EXHAUSTED) <= seconds + 1
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)


def _made_up() -> str:
    """What could be a token."""
    return PREFIX + secrets.token_urlsafe(32)


async def test_failed_proofs_of_an_address(database_url: str) -> None:
    token = await make_token(database_url, "known", HUMAN, Role.VIEWER)
    async with serving(database_url, maximum_failed_proofs=5) as client:
        await _list(client, metadata=bearer(token))
        async with AsyncExitStack() as stack:
            callers = [await stack.enter_async_context(calling(client.address)) for _ in range(8)]
            errors = await asyncio.gather(
                *(failed(_list(caller, metadata=bearer("bad"))) for caller in callers * 4)
            )
        # 20 at once; not many more, however many connections they come from.
        codes = [error.code() for error in errors]
        assert 20 <= codes.count(grpc.StatusCode.UNAUTHENTICATED) <= 25
        assert codes.count(EXHAUSTED) == 32 - codes.count(grpc.StatusCode.UNAUTHENTICATED)
        await _list(client, metadata=bearer(token))


async def test_refusals_of_a_connection_leave_one_after_the_other(database_url: str) -> None:
    async with serving(database_url) as client, calling(client.address) as bad:
        for _ in range(10):
            await failed(_list(bad, metadata=bearer("bad")))
        calls = [
            asyncio.create_task(_over(_list(bad, metadata=bearer("bad")), "failed_proofs"))
            for _ in range(30)
        ]
        await asyncio.sleep(4.5)
        # Many at once get no more out of the server than one after the other.
        assert 3 <= sum(call.done() for call in calls) <= 6
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        # Who does not wait for the answer is not waited for.
        started = monotonic()
        await failed(_list(bad, metadata=bearer("bad")))
        assert monotonic() - started < 3


async def test_a_server_that_stops_does_not_wait_for_who_is_held(
    database_url: str, tmp_path: Path
) -> None:
    async with (
        service_process(database_url, tmp_path / "log") as server,
        calling(server.address) as bad,
    ):
        for _ in range(10):
            await failed(_list(bad, metadata=bearer("bad")))
        calls = [asyncio.create_task(failed(_list(bad, metadata=bearer("bad")))) for _ in range(30)]
        await asyncio.sleep(0.5)
        started = monotonic()
        server.process.terminate()
        await server.process.wait()
        assert monotonic() - started < 5
        await asyncio.gather(*calls)


FLOOD = """
import asyncio, secrets, sys
import grpc

def shown(token):
    # "new" stands for another one each time that could be a token.
    return sys.argv[3] + secrets.token_urlsafe(32) if token == "new" else token

async def bad(address, token, at_once):
    options = (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0))
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        call = channel.unary_unary("/infrascout.sessions.v1.AgentService/ListAgents")
        async def ask():
            while True:
                try:
                    await call(b"", metadata=(("authorization", "Bearer " + shown(token)),))
                except grpc.aio.AioRpcError:
                    pass
        await asyncio.gather(*(ask() for _ in range(at_once)))

async def main(address, at_once, tokens):
    await asyncio.gather(*(bad(address, token, at_once) for token in tokens))

asyncio.run(main(sys.argv[1], int(sys.argv[2]), sys.argv[4:]))
"""


async def _rate(client: Client, seconds: float) -> float:
    done = 0
    end = monotonic() + seconds
    while monotonic() < end:
        await _list(client)
        done += 1
    return done / seconds


async def _let_in(newcomer: Client) -> None:
    """Somebody whom the server does not know yet gets in, by doing as it is told."""
    async with asyncio.timeout(10):
        while True:
            try:
                await _list(newcomer)
                return
            except grpc.aio.AioRpcError as error:
                if error.code() is not EXHAUSTED:
                    raise
                await asyncio.sleep(1)


@pytest.mark.parametrize("made_up", [False, True], ids=["repeated", "made up"])
async def test_64_bad_callers_leave_a_good_one_a_third(
    database_url: str, tmp_path: Path, made_up: bool
) -> None:
    token = await make_token(database_url, "good", HUMAN, Role.VIEWER)
    late = await make_token(database_url, "late", HUMAN, Role.VIEWER)
    log = tmp_path / "log"
    # Half of them show what could be a token, each another one, or another one each time.
    shown = [("new" if made_up else _made_up()) if n % 2 else f"bad{n}" for n in range(64)]
    async with (
        service_process(database_url, log) as server,
        calling(server.address, token) as good,
    ):
        flood = await asyncio.create_subprocess_exec(
            sys.executable, "-c", FLOOD, server.address, "16", PREFIX, *shown
        )
        try:
            await asyncio.sleep(3)
            # By turns, since the machine has other things to do, too, now less and now more.
            alone, flooded = [], []
            for _ in range(7):
                flood.send_signal(signal.SIGSTOP)
                alone.append(await _rate(good, 0.5))
                flood.send_signal(signal.SIGCONT)
                flooded.append(await _rate(good, 0.5))
            assert await _healthy(good)
            async with calling(server.address, late) as newcomer:
                await _let_in(newcomer)
        finally:
            flood.kill()
            await flood.wait()
        assert median(flooded) >= median(alone) / 3, (flooded, alone)
    # Nor do they fill the disk.
    refused_lines = [line for line in log.read_text().splitlines() if "failed_proofs" in line]
    assert len(refused_lines) < 400
