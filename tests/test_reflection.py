from collections.abc import AsyncIterator

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool
from grpc_reflection.v1alpha.reflection_pb2 import (
    ServerReflectionRequest,
    ServerReflectionResponse,
)

from harness import Client

OURS = "infrascout.sessions.v1"
SERVICES = {
    f"{OURS}.ReviewService": {"CompleteSession"},
    f"{OURS}.AgentService": {"RegisterAgent", "GetAgent", "ListAgents"},
    f"{OURS}.RecordingService": {
        "RecordExecution",
        "RecordExecutions",
        "BeginExecution",
        "AppendOutput",
        "FinishExecution",
        "SaveInsight",
    },
    f"{OURS}.SessionService": {
        "StartSession",
        "GetSession",
        "ListSessions",
        "ListExecutions",
        "GetExecution",
        "ReadOutput",
        "ListInsights",
        "SubmitSession",
        "FailSession",
        "InterruptSession",
    },
}
OTHERS = {
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
}
VERSIONS = pytest.mark.parametrize("version", ["v1", "v1alpha"])


async def ask(
    client: Client, version: str, *requests: ServerReflectionRequest
) -> list[ServerReflectionResponse]:
    call = client.channel.stream_stream(
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
        request_serializer=ServerReflectionRequest.SerializeToString,
        response_deserializer=ServerReflectionResponse.FromString,
    )

    async def sent() -> AsyncIterator[ServerReflectionRequest]:
        for request in requests:
            yield request

    return [response async for response in call(sent())]


async def described(client: Client, version: str, symbol: str) -> descriptor_pool.DescriptorPool:
    """A pool of nothing but what the server says about a symbol."""
    [response] = await ask(client, version, ServerReflectionRequest(file_containing_symbol=symbol))
    pool = descriptor_pool.DescriptorPool()
    files = {
        file.name: file
        for file in map(
            descriptor_pb2.FileDescriptorProto.FromString,
            response.file_descriptor_response.file_descriptor_proto,
        )
    }

    def add(name: str) -> None:
        file = files.pop(name, None)
        if file is not None:
            for dependency in file.dependency:
                add(dependency)
            pool.Add(file)

    for name in list(files):
        add(name)
    return pool


@VERSIONS
async def test_every_service_is_listed(client: Client, version: str) -> None:
    [response] = await ask(client, version, ServerReflectionRequest(list_services=""))
    assert {service.name for service in response.list_services_response.service} == {
        *SERVICES,
        *OTHERS,
    }


@VERSIONS
@pytest.mark.parametrize("service", SERVICES)
async def test_a_service_is_described_with_all_its_messages(
    client: Client, version: str, service: str
) -> None:
    pool = await described(client, version, service)
    methods = pool.FindServiceByName(service).methods
    assert {method.name for method in methods} == SERVICES[service]
    for method in methods:
        assert method.input_type.full_name == f"{OURS}.{method.name}Request"
        assert method.output_type.full_name == f"{OURS}.{method.name}Response"


@VERSIONS
async def test_the_error_reasons_are_described(client: Client, version: str) -> None:
    pool = await described(client, version, f"{OURS}.ErrorReason")
    assert (
        "ERROR_REASON_AGENT_BUSY" in pool.FindEnumTypeByName(f"{OURS}.ErrorReason").values_by_name
    )


@VERSIONS
async def test_an_unknown_symbol_is_an_answer_and_the_stream_goes_on(
    client: Client, version: str
) -> None:
    responses = await ask(
        client,
        version,
        ServerReflectionRequest(file_containing_symbol=f"{OURS}.NoSuchThing"),
        ServerReflectionRequest(list_services=""),
    )
    assert [response.WhichOneof("message_response") for response in responses] == [
        "error_response",
        "list_services_response",
    ]
