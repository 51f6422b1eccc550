"""What the tests share: servers, clients, the usual calls, and how a refusal is read."""

import asyncio
import os
import re
import sys
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from inspect import getmembers, isclass
from itertools import count
from pathlib import Path
from typing import Any, Final, TypeVar

import grpc
import sqlalchemy as sa
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine
from sqlalchemy.pool import NullPool

from infrascout.sessions.v1 import (
    actor_pb2,
    agent_pb2,
    agent_service_pb2,
    agent_service_pb2_grpc,
    error_reason_pb2,
    execution_pb2,
    insight_pb2,
    recording_service_pb2,
    recording_service_pb2_grpc,
    session_pb2,
    session_service_pb2,
    session_service_pb2_grpc,
)
from infrascout_sessions import errors
from infrascout_sessions.config import Settings
from infrascout_sessions.models import Clock, NewId, new_id, system_clock
from infrascout_sessions.server import running
from infrascout_sessions.storage.schema import metadata

T = TypeVar("T")

LOCAL: Final = actor_pb2.Actor(subject="local", kind=actor_pb2.ACTOR_KIND_SERVICE)
"""Who every caller is, without identity."""

START_SECONDS: Final = 1_769_860_800
"""2026-01-31T12:00:00Z, where a `FrozenClock` begins."""

NO_SESSION: Final = "sess_00000000000000000000000000000000"
"""The id of no session."""


def at(seconds: float) -> Timestamp:
    """So long after `START_SECONDS`."""
    stamp = Timestamp()
    stamp.FromMicroseconds(START_SECONDS * 1_000_000 + round(seconds * 1_000_000))
    return stamp


class FrozenClock:
    """A server's clock that stands still until it is advanced."""

    def __init__(self) -> None:
        self.microseconds = START_SECONDS * 1_000_000

    def __call__(self) -> int:
        return self.microseconds

    def advance(self, seconds: float) -> None:
        """Let so much time pass; a negative one sets the clock back."""
        self.microseconds += round(seconds * 1_000_000)


class Ids:
    """Ids that can be told in advance: the n-th is the prefix and n as 32 hex digits."""

    def __init__(self) -> None:
        self._numbers = count(1)

    def __call__(self, prefix: str) -> str:
        return f"{prefix}{next(self._numbers):032x}"


# Servers and clients.


@dataclass(frozen=True)
class Client:
    """A channel to a server, and its services."""

    address: str
    channel: grpc.aio.Channel
    agents: agent_service_pb2_grpc.AgentServiceStub
    sessions: session_service_pb2_grpc.SessionServiceStub
    recording: recording_service_pb2_grpc.RecordingServiceStub


@asynccontextmanager
async def connected(address: str, *options: tuple[str, Any]) -> AsyncIterator[Client]:
    """A client of the server that listens there; `options` are the channel's."""
    options = (
        *options,
        ("grpc.enable_http_proxy", 0),
        # No connection, and no back-off, of a server that had the port before.
        ("grpc.use_local_subchannel_pool", 1),
    )
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        yield Client(
            address,
            channel,
            agent_service_pb2_grpc.AgentServiceStub(channel),
            session_service_pb2_grpc.SessionServiceStub(channel),
            recording_service_pb2_grpc.RecordingServiceStub(channel),
        )


def settings_for(database_url: str, **settings: Any) -> Settings:
    """Settings of a server on a free port."""
    return Settings(
        **{
            "listen": "127.0.0.1:0",
            "database_url": database_url,
            "shutdown_grace_seconds": 2,
            **settings,
        }
    )


@asynccontextmanager
async def serving(
    database_url: str, *, clock: Clock = system_clock, ids: NewId = new_id, **settings: Any
) -> AsyncIterator[Client]:
    """A server in this process, and a client of it; `settings` are fields of `Settings`."""
    async with (
        running(settings_for(database_url, **settings), clock, ids) as port,
        connected(f"127.0.0.1:{port}") as client,
    ):
        yield client


@dataclass(frozen=True)
class ServiceProcess:
    """The service as a process of its own; `log` is the file that its stderr goes to."""

    process: asyncio.subprocess.Process
    address: str
    log: Path

    async def kill(self) -> None:
        """End it as `kill -9` does, and wait until it is gone."""
        self.process.kill()
        await self.process.wait()


CONSOLE_SCRIPT: Final = Path(sys.executable).with_name("infrascout-sessions")


def clean_environment(**variables: str) -> dict[str, str]:
    """The environment of this process, less the service's own variables, plus these."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("INFRASCOUT_")}
    return {**kept, **variables}


@asynccontextmanager
async def service_process(
    database_url: str,
    log: Path,
    *arguments: str,
    command: tuple[str, ...] = (str(CONSOLE_SCRIPT),),
    environment: Mapping[str, str] | None = None,
    listen: str = "127.0.0.1:0",
) -> AsyncIterator[ServiceProcess]:
    """The service as a process of its own, serving; terminated (or else killed) at the end.

    `arguments` go behind `serve`; `command` may put another program before it.
    """
    with log.open("ab") as stderr:
        process = await asyncio.create_subprocess_exec(
            *command,
            *("serve", "--listen", listen, "--database-url", database_url),
            *arguments,
            stdout=asyncio.subprocess.PIPE,
            stderr=stderr,
            env=clean_environment(**(environment or {})),
        )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(20):
            first = (await process.stdout.readline()).decode()
        serves = re.search(r"serves on (\S+) ", first)
        assert serves is not None, f"it said {first!r}; the rest is in {log}"
        yield ServiceProcess(process, serves.group(1), log)
    finally:
        if process.returncode is None:
            process.terminate()
            try:
                async with asyncio.timeout(15):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()


# The usual calls, with defaults.


async def collect(stream: AsyncIterable[T]) -> list[T]:
    """Every message of a stream."""
    return [message async for message in stream]


async def register_agent(client: Client, agent_id: str = "ag_1", **fields: Any) -> agent_pb2.Agent:
    """Register an agent; `fields` are those of the request."""
    request = agent_service_pb2.RegisterAgentRequest(
        agent_id=agent_id, **{"hostname": "web-1", **fields}
    )
    return (await client.agents.RegisterAgent(request)).agent


async def start_session(
    client: Client, agent_id: str = "ag_1", **fields: Any
) -> session_pb2.Session:
    """Start a session; `fields` are those of the request. The agent must be registered."""
    request = session_service_pb2.StartSessionRequest(
        agent_id=agent_id, **{"playbook": "linux-baseline", **fields}
    )
    return (await client.sessions.StartSession(request)).session


async def running_session(client: Client, agent_id: str = "ag_1", **fields: Any) -> str:
    """Register an agent and start a session; returns the session's id."""
    await register_agent(client, agent_id)
    return (await start_session(client, agent_id, **fields)).session_id


def record_request(session_id: str, **fields: Any) -> recording_service_pb2.RecordExecutionRequest:
    """A command that has run, successfully unless `fields` say otherwise.

    `exit_code=None` leaves it unset: killed, or never started.
    """
    defaults = {
        "command": "uname -a",
        "capability": "shell",
        "exit_code": 0,
        "start_time": at(-2),
        "end_time": at(-1),
    }
    return recording_service_pb2.RecordExecutionRequest(
        session_id=session_id, **{**defaults, **fields}
    )


async def record(client: Client, session_id: str, **fields: Any) -> execution_pb2.Execution:
    """Record a command; `fields` as in `record_request`."""
    return (await client.recording.RecordExecution(record_request(session_id, **fields))).execution


async def save_insight(client: Client, session_id: str, **fields: Any) -> insight_pb2.Insight:
    """Save a finding; `fields` are those of the request."""
    defaults = {"category": "open_ports", "key": "tcp/22", "value": "ssh listens everywhere"}
    request = recording_service_pb2.SaveInsightRequest(
        session_id=session_id, **{**defaults, **fields}
    )
    return (await client.recording.SaveInsight(request)).insight


async def get_session(client: Client, session_id: str) -> session_pb2.Session:
    """The session as it stands."""
    request = session_service_pb2.GetSessionRequest(session_id=session_id)
    return (await client.sessions.GetSession(request)).session


async def submit(client: Client, session_id: str, **fields: Any) -> session_pb2.Session:
    """Submit a session; `fields` are those of the request."""
    request = session_service_pb2.SubmitSessionRequest(
        session_id=session_id, **{"summary": "done", **fields}
    )
    return (await client.sessions.SubmitSession(request)).session


async def list_executions(
    client: Client, session_id: str, **fields: Any
) -> list[execution_pb2.Execution]:
    """What ListExecutions streams, as one list; `fields` are those of the request."""
    request = session_service_pb2.ListExecutionsRequest(session_id=session_id, **fields)
    responses = await collect(client.sessions.ListExecutions(request))
    return [execution for response in responses for execution in response.executions]


async def list_insights(
    client: Client, session_id: str, **fields: Any
) -> list[insight_pb2.Insight]:
    """What ListInsights streams; `fields` are those of the request."""
    request = session_service_pb2.ListInsightsRequest(session_id=session_id, **fields)
    return [response.insight for response in await collect(client.sessions.ListInsights(request))]


# Refusals.


@dataclass(frozen=True)
class Refused:
    """How a call was refused."""

    message: str
    violations: list[tuple[str, str]]
    """Field and description of each, from BadRequest."""
    retry_delay_seconds: float | None
    """From RetryInfo."""

    @property
    def fields(self) -> list[str]:
        """The violated fields."""
        return [field for field, _ in self.violations]


_CLASS_NAMES = {
    name
    for module in (errors, sa.exc, grpc.aio)
    for name, value in getmembers(module, isclass)
    if issubclass(value, BaseException)
}
_LEAK: Final = re.compile(
    r"\b(SELECT|INSERT|UPDATE|DELETE|PRAGMA|SAVEPOINT|COMMIT|CONSTRAINT)\b"
    r"|(?i:sqlite|sqlalchemy|asyncpg|traceback|infrascout_sessions)"
    r"|\w(Error|Exception)\b|<class | object at 0x|\.py\b"
    rf"|\b({'|'.join(sorted(_CLASS_NAMES))})\b"
)

_RETRIED: Final = frozenset(
    {"OVERLOADED", "DATABASE_UNAVAILABLE", "SHUTTING_DOWN", "QUOTA_EXCEEDED"}
)


async def failed(call: Awaitable[object]) -> grpc.aio.AioRpcError:
    """The error that a call ends with, whose message gives nothing away."""
    try:
        reply = await call
    except grpc.aio.AioRpcError as caught:
        error = caught
    else:
        raise AssertionError(f"not refused, but answered: {str(reply)[:500]}")
    assert not _LEAK.search(error.details() or ""), error.details()
    return error


async def refused(
    call: Awaitable[object], code: grpc.StatusCode, reason: str, /, **metadata: str
) -> Refused:
    """Await a call that must be refused in exactly this way, and say how it was.

    A stream is awaited as `collect(stream)`. `metadata` must be the ErrorInfo's, no more, no less.
    """
    error = await failed(call)
    assert error.code() is code, f"{error.code()}: {error.details()}"
    status = rpc_status.from_call(error)  # type: ignore[arg-type]  # has what of a call is used
    assert status is not None, "without details"
    assert status.message == error.details()
    details = {detail.TypeName(): detail for detail in status.details}
    assert len(details) == len(status.details)

    def detail(kind: type[Message]) -> Any:
        message = kind()
        packed = details.pop(message.DESCRIPTOR.full_name, None)
        return message if packed is not None and packed.Unpack(message) else None

    info = detail(error_details_pb2.ErrorInfo)
    bad_request = detail(error_details_pb2.BadRequest)
    retry_info = detail(error_details_pb2.RetryInfo)
    assert not details
    assert (info.reason, info.domain) == (reason, "sessions.infrascout")
    assert f"ERROR_REASON_{reason}" in error_reason_pb2.ErrorReason.keys()  # noqa: SIM118
    assert dict(info.metadata) == metadata
    assert (bad_request is not None) == (code is grpc.StatusCode.INVALID_ARGUMENT)
    assert (retry_info is not None) == (reason in _RETRIED)
    violations = [
        (violation.field, violation.description)
        for violation in (bad_request.field_violations if bad_request else ())
    ]
    for _, description in violations:
        assert not _LEAK.search(description), description
    delay = retry_info.retry_delay.ToTimedelta().total_seconds() if retry_info else None
    assert delay is None or delay > 0
    return Refused(status.message, violations, delay)


# The database itself, for what no RPC can bring about.


@asynccontextmanager
async def database_connection(database_url: str) -> AsyncIterator[AsyncConnection]:
    """A transaction beside the server's; committed at the end.

    The server keeps sessions that it was asked for in memory: change none that GetSession has read.
    """
    engine = create_async_engine(database_url, poolclass=NullPool)
    try:
        async with engine.begin() as connection:
            yield connection
    finally:
        await engine.dispose()


@asynccontextmanager
async def writes_held_up(database_url: str) -> AsyncIterator[None]:
    """While the block runs, writes of the server wait for the database; reads do not."""
    async with database_connection(database_url) as connection:
        if connection.dialect.name == "postgresql":
            tables = ", ".join(table.name for table in metadata.sorted_tables)
            await connection.execute(sa.text(f"LOCK TABLE {tables} IN EXCLUSIVE MODE"))
        else:
            await connection.execute(sa.text("UPDATE agents SET os = os"))
        yield


@asynccontextmanager
async def migrations_held_up(database_url: str) -> AsyncIterator[None]:
    """While the block runs, servers that start wait, as if another one migrated."""
    async with database_connection(database_url) as connection:
        await connection.execute(sa.select(sa.func.pg_advisory_xact_lock(0x696E_6672_6173_0001)))
        yield


async def complete(
    database_url: str,
    session_id: str,
    *,
    reviewer: str = "human:ada",
    comment: str = "",
    seconds: float = 0,
) -> None:
    """Make a session that is PENDING_REVIEW COMPLETED, as its review will, at `at(seconds)`."""
    async with database_connection(database_url) as connection:
        changed = await connection.execute(
            sa.text(
                "UPDATE sessions SET status = 'completed', end_time = :time,"
                " last_activity_time = :time, end_actor = :reviewer, review_comment = :comment"
                " WHERE session_id = :session_id"
            ),
            {
                "session_id": session_id,
                "time": at(seconds).ToMicroseconds(),
                "reviewer": reviewer,
                "comment": comment,
            },
        )
        assert changed.rowcount == 1
