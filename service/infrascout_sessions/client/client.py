"""The client: a method for each RPC, taking the request of the contract."""

from collections.abc import AsyncGenerator, Iterable
from dataclasses import dataclass, replace
from typing import TypeVar
from uuid import uuid4

import grpc
from google.protobuf.message import Message

from infrascout.sessions.v1 import agent_service_pb2 as agent_service
from infrascout.sessions.v1 import recording_service_pb2 as recording_service
from infrascout.sessions.v1 import session_service_pb2 as session_service
from infrascout.sessions.v1.agent_pb2 import Agent
from infrascout.sessions.v1.agent_service_pb2_grpc import AgentServiceStub
from infrascout.sessions.v1.execution_pb2 import Execution
from infrascout.sessions.v1.insight_pb2 import Insight
from infrascout.sessions.v1.recording_service_pb2_grpc import RecordingServiceStub
from infrascout.sessions.v1.session_pb2 import Session
from infrascout.sessions.v1.session_service_pb2_grpc import SessionServiceStub
from infrascout_sessions.client import batches, retries, streams
from infrascout_sessions.client.retries import Metadata, Unary

_Request = TypeVar("_Request", bound=Message)
_Response = TypeVar("_Response", bound=Message)


class _Stubs:
    """The services on a channel."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.agents = AgentServiceStub(channel)
        self.sessions = SessionServiceStub(channel)
        self.recording = RecordingServiceStub(channel)


def identified(request: _Request) -> _Request:
    """A copy of a write with a `request_id` of its own, unless the caller gave one."""
    copy = type(request)()
    copy.CopyFrom(request)
    if not copy.request_id:  # type: ignore[attr-defined]  # every write but AppendOutput has it
        copy.request_id = str(uuid4())  # type: ignore[attr-defined]
    return copy


@dataclass(frozen=True)
class SessionsClient:
    """The service, as one caller sees it; made by `of`. The channel stays the caller's to close.

    Every call has a deadline and is repeated until then while the server is unavailable. A write
    gets a `request_id` if it has none, so that a repeat has one effect. A stream goes on where it
    broke; read one that you may leave early in `contextlib.aclosing`. Whatever is not answered OK
    raises `CallError`.
    """

    stubs: _Stubs
    token: str = ""
    """The bearer token that each call carries; none if empty."""
    deadline_seconds: float = 10.0
    """Of a unary call, its repeats included; of a stream, the longest time without a message."""

    @classmethod
    def of(
        cls, channel: grpc.aio.Channel, *, token: str = "", deadline_seconds: float = 10.0
    ) -> "SessionsClient":
        """A client on a channel, as `open_channel` makes it."""
        return cls(_Stubs(channel), token, deadline_seconds)

    def with_token(self, token: str) -> "SessionsClient":
        """The same connection for another caller; an empty token for one without."""
        return replace(self, token=token)

    @property
    def _metadata(self) -> Metadata:
        return (("authorization", f"Bearer {self.token}"),) if self.token else ()

    async def _read(self, method: Unary[_Request, _Response], request: _Request) -> _Response:
        return await retries.call(
            method, request, metadata=self._metadata, deadline_seconds=self.deadline_seconds
        )

    async def _write(self, method: Unary[_Request, _Response], request: _Request) -> _Response:
        return await self._read(method, identified(request))

    # Agents.

    async def register_agent(self, request: agent_service.RegisterAgentRequest) -> Agent:
        """Enrol an agent, or update it."""
        return (await self._write(self.stubs.agents.RegisterAgent, request)).agent

    async def get_agent(self, agent_id: str) -> Agent:
        """One agent."""
        request = agent_service.GetAgentRequest(agent_id=agent_id)
        return (await self._read(self.stubs.agents.GetAgent, request)).agent

    async def list_agents(
        self, request: agent_service.ListAgentsRequest
    ) -> agent_service.ListAgentsResponse:
        """One page of agents."""
        return await self._read(self.stubs.agents.ListAgents, request)

    # Sessions.

    async def start_session(self, request: session_service.StartSessionRequest) -> Session:
        """Open a session."""
        return (await self._write(self.stubs.sessions.StartSession, request)).session

    async def get_session(self, session_id: str) -> Session:
        """One session, as it stands."""
        request = session_service.GetSessionRequest(session_id=session_id)
        return (await self._read(self.stubs.sessions.GetSession, request)).session

    async def list_sessions(
        self, request: session_service.ListSessionsRequest
    ) -> session_service.ListSessionsResponse:
        """One page of sessions."""
        return await self._read(self.stubs.sessions.ListSessions, request)

    async def submit_session(self, request: session_service.SubmitSessionRequest) -> Session:
        """Hand a session to review."""
        return (await self._write(self.stubs.sessions.SubmitSession, request)).session

    async def fail_session(self, request: session_service.FailSessionRequest) -> Session:
        """End a session because something broke."""
        return (await self._write(self.stubs.sessions.FailSession, request)).session

    async def interrupt_session(self, request: session_service.InterruptSessionRequest) -> Session:
        """Stop a session."""
        return (await self._write(self.stubs.sessions.InterruptSession, request)).session

    def list_executions(
        self, request: session_service.ListExecutionsRequest
    ) -> AsyncGenerator[Execution, None]:
        """The executions of a session; with `follow`, until it is no longer RUNNING."""
        return streams.executions(
            self.stubs.sessions, request, self._metadata, self.deadline_seconds
        )

    async def get_execution(self, session_id: str, sequence: int) -> Execution:
        """One execution."""
        request = session_service.GetExecutionRequest(session_id=session_id, sequence=sequence)
        return (await self._read(self.stubs.sessions.GetExecution, request)).execution

    def read_output(
        self, request: session_service.ReadOutputRequest
    ) -> AsyncGenerator[bytes, None]:
        """The bytes of an output, from an offset on."""
        return streams.output(self.stubs.sessions, request, self._metadata, self.deadline_seconds)

    def list_insights(
        self, request: session_service.ListInsightsRequest
    ) -> AsyncGenerator[Insight, None]:
        """The insights of a session."""
        return streams.insights(self.stubs.sessions, request, self._metadata, self.deadline_seconds)

    # Recording.

    async def record_execution(
        self, request: recording_service.RecordExecutionRequest
    ) -> Execution:
        """Record a command that has run."""
        return (await self._write(self.stubs.recording.RecordExecution, request)).execution

    def record_executions(
        self, requests: Iterable[recording_service.RecordExecutionRequest]
    ) -> AsyncGenerator[recording_service.RecordExecutionsResult, None]:
        """Record many, in order; a refused one is a result, and stops no other.

        One that is refused as unavailable is a result only once the deadline of its batch has
        come. The `requests` of a `CallError` are what to send again.
        """
        return batches.record(
            self.stubs.recording,
            (identified(request) for request in requests),
            self._metadata,
            self.deadline_seconds,
        )

    async def begin_execution(self, request: recording_service.BeginExecutionRequest) -> Execution:
        """Put a command on record before it runs."""
        return (await self._write(self.stubs.recording.BeginExecution, request)).execution

    async def append_output(self, request: recording_service.AppendOutputRequest) -> int:
        """Add a chunk to an output; gives its size now. An equal repeat changes nothing."""
        return (await self._read(self.stubs.recording.AppendOutput, request)).size_bytes

    async def finish_execution(
        self, request: recording_service.FinishExecutionRequest
    ) -> Execution:
        """Record how an execution ended."""
        return (await self._write(self.stubs.recording.FinishExecution, request)).execution

    async def save_insight(self, request: recording_service.SaveInsightRequest) -> Insight:
        """Save a finding."""
        return (await self._write(self.stubs.recording.SaveInsight, request)).insight
