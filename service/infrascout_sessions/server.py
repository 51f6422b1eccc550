"""Builds the server and runs it until it is told to stop."""

import asyncio
import errno
import gc
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from time import monotonic
from typing import Final
from urllib.parse import unquote

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
    review_service_pb2,
    review_service_pb2_grpc,
    session_service_pb2,
    session_service_pb2_grpc,
)
from infrascout_sessions import exposure
from infrascout_sessions.config import Settings
from infrascout_sessions.health import HealthServicer
from infrascout_sessions.idle import interrupt_idle_sessions
from infrascout_sessions.interceptors.assembly import guarding
from infrascout_sessions.interceptors.rpc import Interceptor
from infrascout_sessions.models import Clock, Independence, NewId, new_id, system_clock
from infrascout_sessions.servicers.agent_service import AgentServicer
from infrascout_sessions.servicers.followers import Followers
from infrascout_sessions.servicers.recording_service import RecordingServicer
from infrascout_sessions.servicers.review_service import ReviewServicer
from infrascout_sessions.servicers.session_service import SessionServicer
from infrascout_sessions.storage.database import open_database
from infrascout_sessions.storage.session_reader import SessionReader
from infrascout_sessions.storage.statement import Database
from infrascout_sessions.tls import TLSError, TLSFiles

_log = structlog.get_logger()

_OPTIONS: Final = (
    ("grpc.max_receive_message_length", 4 * 1024 * 1024),
    # By default gRPC cancels calls at random once 1,000 wait to be taken, with a code that no
    # client retries; too many writes are refused as OVERLOADED instead.
    ("grpc.server.max_pending_requests", 100_000),
    ("grpc.server.max_pending_requests_hard_limit", 100_000),
)

_KEEPALIVE_TIMEOUT_SECONDS: Final = 20
_MINIMUM_PING_INTERVAL_SECONDS: Final = 10
# How long no call must have come before gRPC is told to stop.
_QUIET_SECONDS: Final = 0.1
# How long calls of a connection that is too old may take to end.
_CONNECTION_GRACE_SECONDS: Final = 300

# Reflection serves the files it finds in the pool; nothing else here names this one.
_ = error_reason_pb2

_SERVICES: Final = tuple(
    service
    for module in (
        session_service_pb2,
        recording_service_pb2,
        review_service_pb2,
        agent_service_pb2,
    )
    for service in module.DESCRIPTOR.services_by_name.values()
)
SERVICES: Final = tuple(service.full_name for service in _SERVICES)


_STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


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
    review_service_pb2_grpc.add_ReviewServiceServicer_to_server(
        ReviewServicer(database, settings.review_independence), server
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


def _options(settings: Settings) -> list[tuple[str, int]]:
    """What gRPC is told, most of it bounds."""
    options = {
        # A second server on the port is an error, and not a share of its calls, but for a worker.
        "grpc.so_reuseport": int(settings.share_port),
        "grpc.max_metadata_size": settings.maximum_metadata_bytes,
        # Between the two, gRPC would refuse at random.
        "grpc.absolute_max_metadata_size": settings.maximum_metadata_bytes,
        # A peer that is gone without a word is found out, and so is one that only pings.
        "grpc.keepalive_time_ms": round(settings.keepalive_seconds * 1000),
        "grpc.keepalive_timeout_ms": _KEEPALIVE_TIMEOUT_SECONDS * 1000,
        "grpc.http2.min_ping_interval_without_data_ms": _MINIMUM_PING_INTERVAL_SECONDS * 1000,
    }
    if settings.maximum_connection_age_seconds:
        options["grpc.max_connection_age_ms"] = round(
            settings.maximum_connection_age_seconds * 1000
        )
        options["grpc.max_connection_age_grace_ms"] = _CONNECTION_GRACE_SECONDS * 1000
    return [*_OPTIONS, *options.items()]


def _credentials(settings: Settings) -> grpc.ServerCredentials | None:
    if not settings.tls_cert:
        return None
    files = TLSFiles(settings.tls_cert, settings.tls_key, settings.tls_client_ca)
    try:
        return files.credentials()
    except TLSError as error:
        raise ListenError(str(error)) from error


def _warn(settings: Settings) -> None:
    """Say in the log what the settings give up."""
    if settings.plaintext:
        _log.warning(
            "plaintext",
            listen=settings.listen,
            cost="whoever is on the way can read and change what is sent, tokens included",
        )
    if settings.review_independence is Independence.NONE:
        _log.warning(
            "review independence is not required",
            cost="who ran a session may complete it, if human and a reviewer; reviews say so",
        )


def require_free(address: str) -> None:
    """Raise `ListenError` if another program has the address, or one that its name stands for."""
    if address.startswith("unix:"):
        # gRPC would put its socket in the place of another one, which is fine if nobody answers
        # there: a server that is killed leaves it behind.
        with socket.socket(socket.AF_UNIX) as client:
            client.setblocking(False)
            found = client.connect_ex(unquote(address.removeprefix("unix:")))
        if found not in (errno.ECONNREFUSED, errno.ENOENT):
            raise cannot_listen(address)
        return
    host, _, port = address.rpartition(":")
    if int(port) == 0:
        return
    try:
        found_addresses = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
    except OSError as error:
        raise cannot_listen(address) from error
    # gRPC would be content with one of them, while another program answers on the others.
    for family, kind, _, _, found_address in found_addresses:
        try:
            with socket.socket(family, kind) as ours:
                ours.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                ours.bind(found_address)
        except OSError as error:
            # A machine may lack one: localhost is ::1, too, where there is no IPv6.
            if error.errno == errno.EADDRINUSE:
                raise cannot_listen(address) from error


def cannot_listen(address: str) -> ListenError:
    """The error that says so."""
    return ListenError(
        f"cannot listen on {address}: another program does, or it is no address of this machine; "
        "choose another one with --listen"
    )


def _listen(
    server: grpc.aio.Server, settings: Settings, credentials: grpc.ServerCredentials | None
) -> int:
    address = settings.listen
    try:
        if not settings.share_port:
            require_free(address)
        if credentials is not None:
            return server.add_secure_port(address, credentials)
        return server.add_insecure_port(address)
    except (OSError, RuntimeError) as error:
        raise cannot_listen(address) from error


def _serve_metrics(address: str) -> None:
    host, _, port = address.rpartition(":")
    try:
        start_http_server(int(port), host.strip("[]") or "127.0.0.1")
    except (OSError, OverflowError, ValueError) as error:
        raise ListenError(
            f"cannot serve metrics on {address!r}: another program listens there, or it is no "
            "HOST:PORT of this machine; choose another one with --metrics-listen"
        ) from error


@asynccontextmanager
async def running(
    settings: Settings, clock: Clock = system_clock, ids: NewId = new_id
) -> AsyncIterator[int]:
    """A server that answers until the block ends, and then drains; gives its port.

    Raises `ListenError`, `DatabaseSetupError`, and what `guarding` does.
    """
    exposure.check(settings)
    credentials = _credentials(settings)
    stopping = asyncio.Event()
    async with (
        open_database(settings, clock) as database,
        guarding(settings, _SERVICES, database, clock, stopping) as guard,
    ):
        interceptor = Interceptor(guard, stopping)
        server = grpc.aio.server(interceptors=(interceptor,), options=_options(settings))
        followers = Followers(database, settings.maximum_followers)
        _add_services(server, database, settings, ids, followers, stopping)
        port = _listen(server, settings, credentials)
        _warn(settings)
        await server.start()
        idle = (
            asyncio.create_task(interrupt_idle_sessions(database, settings.idle_timeout_seconds))
            if settings.idle_timeout_seconds
            else None
        )
        try:
            yield port
        finally:
            # Streams, health and new calls are told first. Calls that gRPC has not handed over by
            # the time it stops are CANCELLED, which no client retries.
            grace_seconds = settings.shutdown_grace_seconds
            began = monotonic()
            stopping.set()
            followers.stop()
            await interceptor.quiet(min(_QUIET_SECONDS, grace_seconds / 100))
            if idle is not None:
                idle.cancel()
                with suppress(asyncio.CancelledError):
                    await idle
            await server.stop(max(0, grace_seconds - (monotonic() - began)))


async def serve(settings: Settings, ready: Callable[[int], None]) -> None:
    """Serve until SIGTERM or SIGINT; `ready` is told the port.

    Before it serves, a signal has its default action: to start may mean to wait for another server
    that migrates, or for a database that is frozen, and there is nothing yet that could be lost. A
    second signal does not wait for calls under way. Raises as `running` does.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    # Otherwise it is an exception, which would wait until the database is closed.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if settings.share_port:
        # A worker's standard input is closed when who started it stops, or has gone.
        stdin = sys.stdin.fileno()

        def told() -> None:
            # It stays readable: the loop would do nothing else while it drains.
            loop.remove_reader(stdin)
            if not stop.is_set():
                signal.raise_signal(signal.SIGTERM)

        loop.add_reader(stdin, told)
    if settings.metrics_listen:
        _serve_metrics(settings.metrics_listen)
    async with running(settings) as port:
        for name in _STOP_SIGNALS:
            loop.add_signal_handler(name, stop.set)
        # What lives now lives for good: the collector need not look at it with every pass.
        gc.collect()
        gc.freeze()
        # Rows and messages come and go by the thousand, and none of them in circles.
        gc.set_threshold(50_000, 20, 50)
        ready(port)
        _log.info("serving", listen=settings.listen, port=port)
        await stop.wait()
        # The next one ends the process at once, which loses nothing that was acknowledged.
        for name in _STOP_SIGNALS:
            signal.signal(name, signal.SIG_DFL)
        _log.info("stopping", grace_seconds=settings.shutdown_grace_seconds)
    _log.info("stopped")
