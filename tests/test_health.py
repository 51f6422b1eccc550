import asyncio
from time import monotonic
from typing import Any

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from prometheus_client import REGISTRY

from harness import Client, connected, failed, serving, settings_for
from infrascout_sessions.server import running
from infrascout_sessions.storage.repository.health import ask

SERVICES = [
    "",
    "infrascout.sessions.v1.AgentService",
    "infrascout.sessions.v1.RecordingService",
    "infrascout.sessions.v1.SessionService",
]
CHECK = "/grpc.health.v1.Health/Check"


async def check(client: Client, service: str) -> HealthCheckResponse:
    call = client.channel.unary_unary(
        CHECK,
        request_serializer=HealthCheckRequest.SerializeToString,
        response_deserializer=HealthCheckResponse.FromString,
    )
    return await call(HealthCheckRequest(service=service))


def watch(client: Client, service: str) -> Any:
    call = client.channel.unary_stream(
        "/grpc.health.v1.Health/Watch",
        request_serializer=HealthCheckRequest.SerializeToString,
        response_deserializer=HealthCheckResponse.FromString,
    )
    return call(HealthCheckRequest(service=service))


@pytest.mark.parametrize("service", SERVICES, ids=lambda service: service or "server")
async def test_check_says_serving(client: Client, service: str) -> None:
    assert (await check(client, service)).status == HealthCheckResponse.SERVING


async def test_check_of_an_unknown_service_is_not_found_and_counted_so(database_url: str) -> None:
    def answered() -> float:
        labels = {"method": CHECK, "code": "NOT_FOUND"}
        return REGISTRY.get_sample_value("infrascout_sessions_rpcs_total", labels) or 0

    before = answered()
    async with serving(database_url) as client:
        error = await failed(check(client, "no.such.Service"))
        assert error.code() is grpc.StatusCode.NOT_FOUND
    # A call is counted after its reply, but before its server has stopped.
    assert answered() == before + 1


@pytest.mark.parametrize("service", SERVICES, ids=lambda service: service or "server")
async def test_watch_says_serving_until_the_server_stops(database_url: str, service: str) -> None:
    seen = []
    server = running(settings_for(database_url))
    port = await server.__aenter__()
    async with connected(f"127.0.0.1:{port}") as client:
        async for response in watch(client, service):
            seen.append(response.status)
            if len(seen) == 1:
                await server.__aexit__(None, None, None)
    assert seen == [HealthCheckResponse.SERVING, HealthCheckResponse.NOT_SERVING]


async def test_who_watches_shares_the_question_and_each_check_asks_anew(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0

    def counted(connection: Any) -> Any:
        nonlocal asked
        asked += 1
        return ask(connection)

    monkeypatch.setattr("infrascout_sessions.health.ask", counted)
    async with serving(database_url) as client:
        began = monotonic()
        streams = [watch(client, "") for _ in range(100)]
        for stream in streams:
            assert (await stream.read()).status == HealthCheckResponse.SERVING
        # Some leave, and one of them has asked.
        for stream in streams[:50]:
            stream.cancel()
        await asyncio.sleep(2)
        assert 3 <= asked <= 10 * (monotonic() - began) + 5
        for stream in streams:
            stream.cancel()
        await asyncio.sleep(0.3)
        before = asked
        for _ in range(5):
            await check(client, "")
        assert asked == before + 5


async def test_watch_of_an_unknown_service_says_so_and_goes_on(client: Client) -> None:
    stream = watch(client, "no.such.Service")
    async for response in stream:
        assert response.status == HealthCheckResponse.SERVICE_UNKNOWN
        break
    assert not stream.done()
    stream.cancel()
