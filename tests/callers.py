"""What the tests of identity share: tokens, callers that show them, and every RPC by its name."""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final

import grpc
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message_factory import GetMessageClass

from harness import Client, T, collect
from infrascout.sessions.v1 import (
    access_pb2,
    agent_service_pb2,
    agent_service_pb2_grpc,
    recording_service_pb2,
    recording_service_pb2_grpc,
    review_service_pb2,
    review_service_pb2_grpc,
    session_service_pb2,
    session_service_pb2_grpc,
)
from infrascout_sessions.models import ActorKind, Clock, NewToken, Role, system_clock
from infrascout_sessions.storage.database import open_for_command
from infrascout_sessions.storage.repository import tokens
from infrascout_sessions.tokens import issue

HUMAN: Final = ActorKind.HUMAN
SERVICE: Final = ActorKind.SERVICE

MODULES: Final = (
    session_service_pb2,
    recording_service_pb2,
    review_service_pb2,
    agent_service_pb2,
)
METHODS: Final = [
    method
    for module in MODULES
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
]


def declared_role(method: MethodDescriptor) -> Role:
    """The role that the .proto asks for."""
    options: Any = method.GetOptions()
    name = access_pb2.Role.Name(options.Extensions[access_pb2.role])
    return Role(name.removeprefix("ROLE_").lower())


async def in_database(database_url: str, work: Callable[..., Any], clock: Clock) -> Any:
    """Run a unit of work beside the server, as the command line does."""
    async with open_for_command(database_url, clock) as database:
        return await database.write(work)


async def make_token(
    database_url: str,
    name: str,
    kind: ActorKind,
    *roles: Role,
    expire_time: int | None = None,
    clock: Clock = system_clock,
) -> str:
    """Issue a token, as `token create` does."""
    token, new = issue(name, kind, roles, expire_time)
    await in_database(database_url, partial(tokens.create, new), clock)
    return token


async def make_tokens(
    database_url: str, callers: Iterable[tuple[str, ActorKind, Iterable[Role]]]
) -> dict[str, str]:
    """Issue a token for each of several callers at once, by their names."""
    made = {name: issue(name, kind, roles, None) for name, kind, roles in callers}

    def create(news: list[NewToken], connection: Any) -> None:
        for new in news:
            tokens.create(new, connection)

    await in_database(
        database_url, partial(create, [new for _, new in made.values()]), system_clock
    )
    return {name: token for name, (token, _) in made.items()}


async def revoke(database_url: str, name: str) -> None:
    """Revoke a token, as `token revoke` does."""
    await in_database(database_url, partial(tokens.revoke, name), system_clock)


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    """The metadata that shows a token."""
    return (("authorization", f"Bearer {token}"),)


def _shown(
    metadata: tuple[tuple[str, str], ...],
) -> list[grpc.aio.ClientInterceptor]:
    """Interceptors that add metadata to every call; gRPC takes each for one kind of call only."""

    async def go_on(_self: object, call: Any, details: Any, request: Any) -> Any:
        return await call(details._replace(metadata=grpc.aio.Metadata(*metadata)), request)

    return [
        type("Showing", (kind,), {method: go_on})()
        for kind, method in (
            (grpc.aio.UnaryUnaryClientInterceptor, "intercept_unary_unary"),
            (grpc.aio.UnaryStreamClientInterceptor, "intercept_unary_stream"),
            (grpc.aio.StreamStreamClientInterceptor, "intercept_stream_stream"),
        )
    ]


@asynccontextmanager
async def calling(
    address: str,
    token: str | None = None,
    *,
    metadata: tuple[tuple[str, str], ...] = (),
    credentials: grpc.ChannelCredentials | None = None,
    options: tuple[tuple[str, Any], ...] = (),
) -> AsyncIterator[Client]:
    """A client on a connection of its own that shows a token, or other metadata, with each call."""
    metadata = (*metadata, *(bearer(token) if token is not None else ()))
    arguments: dict[str, Any] = {
        "options": (
            ("grpc.enable_http_proxy", 0),
            ("grpc.use_local_subchannel_pool", 1),
            *options,
        ),
        "interceptors": _shown(metadata) if metadata else None,
    }
    channel = (
        grpc.aio.insecure_channel(address, **arguments)
        if credentials is None
        else grpc.aio.secure_channel(address, credentials, **arguments)
    )
    async with channel:
        yield Client(
            address,
            channel,
            agent_service_pb2_grpc.AgentServiceStub(channel),
            session_service_pb2_grpc.SessionServiceStub(channel),
            recording_service_pb2_grpc.RecordingServiceStub(channel),
        )


def review(client: Client) -> review_service_pb2_grpc.ReviewServiceStub:
    """The client's ReviewService."""
    return review_service_pb2_grpc.ReviewServiceStub(client.channel)


async def complete_session(client: Client, session_id: str, **fields: Any) -> Any:
    """Complete a session; `fields` are those of the request."""
    request = review_service_pb2.CompleteSessionRequest(session_id=session_id, **fields)
    return (await review(client).CompleteSession(request)).session


async def collect_to_status(call: Callable[[], AsyncIterable[T]]) -> list[T]:
    """Every message of a call that the server may refuse before its first request is written.

    Where that request is written just as the call ends, grpc.aio says INTERNAL, whatever the server
    said (https://github.com/grpc/grpc/issues/36066). Such a call is made again.
    """
    for _ in range(20):
        try:
            return await collect(call())
        except grpc.aio.AioRpcError as error:
            if error.details() != "Internal error from Core":
                raise
    raise AssertionError("grpc.aio never said how the call ended")


async def call(
    client: Client,
    method: MethodDescriptor,
    data: bytes = b"",
    metadata: tuple[tuple[str, str], ...] = (),
) -> list[Any]:
    """Call any RPC with any bytes for a request, and return what it answers."""
    path = f"/{method.containing_service.full_name}/{method.name}"
    answer = GetMessageClass(method.output_type).FromString
    channel = client.channel
    if method.client_streaming:

        async def requests() -> AsyncIterator[bytes]:
            yield data

        both: Any = channel.stream_stream(path, response_deserializer=answer)
        return await collect_to_status(lambda: both(requests(), metadata=metadata))
    if method.server_streaming:
        streaming: Any = channel.unary_stream(path, response_deserializer=answer)
        return [message async for message in streaming(data, metadata=metadata)]
    unary: Any = channel.unary_unary(path, response_deserializer=answer)
    return [await unary(data, metadata=metadata)]


async def code_of(
    client: Client,
    method: MethodDescriptor,
    data: bytes = b"",
    metadata: tuple[tuple[str, str], ...] = (),
) -> grpc.StatusCode:
    """How such a call ends."""
    try:
        async with asyncio.timeout(20):
            await call(client, method, data, metadata)
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK
