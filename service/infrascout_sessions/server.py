"""Builds the server and runs it until it is told to stop."""

import asyncio
import gc
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Final

import grpc
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc
from prometheus_client import start_http_server

from infrascout.sessions.v1 import (
    agent_service_pb2,
    agent_service_pb2_grpc,
    error_reason_pb2,
    recording_service_pb2,
    recording_service_pb2_grpc,
    session_service_pb2,
    session_service_pb2_grpc,
)
from infrascout_sessions.config import Settings
from infrascout_sessions.health import HealthServicer
from infrascout_sessions.idle import interrupt_idle_sessions
from infrascout_sessions.interceptors.rpc import Interceptor
from infrascout_sessions.models import Clock, NewId, new_id, system_clock
from infrascout_sessions.servicers.agent_service import AgentServicer
from infrascout_sessions.servicers.followers import Followers
from infrascout_sessions.servicers.recording_service import RecordingServicer
from infrascout_sessions.servicers.session_service import SessionServicer
from infrascout_sessions.storage.database import open_database
from infrascout_sessions.storage.session_reader import SessionReader
from infrascout_sessions.storage.statement import Database

_log = structlog.get_logger()

_OPTIONS: Final = (("grpc.max_receive_message_length", 4 * 1024 * 1024),)

# Reflection serves the files it finds in the pool; nothing else here names this one.
_ = error_reason_pb2

SERVICES: Final = tuple(
    service.full_name
    for module in (session_service_pb2, recording_service_pb2, agent_service_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
)


def _options(settings: Settings) -> list[tuple[str, int]]:
    # A second server on the port is an error, and not a share of its calls, unless it is a worker.
    return [*_OPTIONS, ("grpc.so_reuseport", int(settings.share_port))]


class ListenError(Exception):
    """The address cannot be listened on; the text says why."""


def _add_services(
    server: grpc.aio.Server,
    database: Database,
    settings: Settings,
    new_id: NewId,
    followers: Followers,
    stopping: asyncio.Event,
) -> None:
    session_service_pb2_grpc.add_SessionServiceServicer_to_server(
        SessionServicer(database, SessionReader(database), followers, new_id, stopping), server
    )
    recording_service_pb2_grpc.add_RecordingServiceServicer_to_server(
        RecordingServicer(database, new_id, settings.maximum_output_bytes, stopping), server
    )
    agent_service_pb2_grpc.add_AgentServiceServicer_to_server(AgentServicer(database), server)
    health_pb2_grpc.add_HealthServicer_to_server(
        HealthServicer(database, SERVICES, stopping), server
    )
    _add_reflection(server)


def _add_reflection(server: grpc.aio.Server) -> None:
    """Reflection v1alpha as the library serves it, and v1, which has the same messages."""
    names = (
        *SERVICES,
        health_pb2.DESCRIPTOR.services_by_name["Health"].full_name,
        reflection.SERVICE_NAME,
        "grpc.reflection.v1.ServerReflection",
    )
    servicer = reflection.aio.ReflectionServicer(names)
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(  # type: ignore[no-untyped-call]
        servicer, server
    )
    server.add_generic_rpc_handlers(
        (
            grpc.method_handlers_generic_handler(
                "grpc.reflection.v1.ServerReflection",
                {
                    "ServerReflectionInfo": grpc.stream_stream_rpc_method_handler(
                        servicer.ServerReflectionInfo,
                        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
                        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
                    )
                },
            ),
        )
    )


def _listen(server: grpc.aio.Server, address: str) -> int:
    try:
        return server.add_insecure_port(address)
    except RuntimeError as error:
        raise ListenError(
            f"cannot listen on {address}: another program does, or it is no address of this "
            "machine; choose another one with --listen"
        ) from error


@asynccontextmanager
async def running(
    settings: Settings, clock: Clock = system_clock, ids: NewId = new_id
) -> AsyncIterator[int]:
    """A server that answers until the block ends, and then drains; gives its port.

    Raises `ListenError` and `DatabaseSetupError`.
    """
    async with open_database(settings, clock) as database:
        stopping = asyncio.Event()
        server = grpc.aio.server(interceptors=(Interceptor(),), options=_options(settings))
        followers = Followers(database, settings.maximum_followers)
        _add_services(server, database, settings, ids, followers, stopping)
        port = _listen(server, settings.listen)
        await server.start()
        idle = (
            asyncio.create_task(interrupt_idle_sessions(database, settings.idle_timeout_seconds))
            if settings.idle_timeout_seconds
            else None
        )
        try:
            yield port
        finally:
            # Streams and health see this first; then no call is taken, and those under way end.
            stopping.set()
            followers.stop()
            if idle is not None:
                idle.cancel()
                with suppress(asyncio.CancelledError):
                    await idle
            await server.stop(settings.shutdown_grace_seconds)


async def serve(settings: Settings, ready: Callable[[int], None]) -> None:
    """Serve until SIGTERM or SIGINT; `ready` is told the port.

    A second signal does not wait for calls under way. Raises as `running` does.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stop.set)
    if settings.share_port:
        # A worker's standard input is closed when who started it has gone.
        loop.add_reader(sys.stdin.fileno(), stop.set)
    if settings.metrics_listen:
        host, _, metrics_port = settings.metrics_listen.rpartition(":")
        start_http_server(int(metrics_port), host or "127.0.0.1")
    async with running(settings) as port:
        # What lives now lives for good: the collector need not look at it with every pass.
        gc.collect()
        gc.freeze()
        ready(port)
        _log.info("serving", listen=settings.listen, port=port)
        await stop.wait()
        _log.info("stopping", grace_seconds=settings.shutdown_grace_seconds)
    _log.info("stopped")
