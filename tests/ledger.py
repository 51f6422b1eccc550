"""A ledger of the writes sent to a server: what it answered, and so what it must hold."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from enum import Enum, auto
from itertools import count
from typing import Any, Final

import grpc
from google.protobuf.message import Message
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from harness import Client, get_session, list_executions, list_insights, record_request
from infrascout.sessions.v1 import (
    agent_service_pb2,
    recording_service_pb2,
    session_pb2,
    session_service_pb2,
)

_NOTHING_WRITTEN: Final = frozenset({"STORAGE_FULL", "OVERLOADED", "SESSION_NOT_RUNNING"})
"""The reasons of errors that promise that nothing was written."""


class Outcome(Enum):
    """What the writer knows."""

    ACKNOWLEDGED = auto()
    REFUSED = auto()
    UNKNOWN = auto()


@dataclass
class Entry:
    """A write and what came of it."""

    request: Any
    outcome: Outcome = Outcome.UNKNOWN
    reply: Any = None
    reason: str = ""
    """Of its refusal, or the name of a status code that came without one."""


def reason_of(error: grpc.aio.AioRpcError) -> str:
    """The reason in the ErrorInfo; the name of the code where there is none."""
    status = rpc_status.from_call(error)  # type: ignore[arg-type]  # has what of a call is used
    for detail in status.details if status else ():
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info):
            return str(info.reason)
    return str(error.code().name)


class Ledger:
    """Sends writes, each with a request_id of its own, and keeps account of them."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self._numbers = count(1)
        self._acknowledged = 0
        self._milestones: dict[int, asyncio.Event] = {}

    async def grows_by(self, acknowledged: int) -> None:
        """Wait for so many further writes to be acknowledged."""
        reached = asyncio.Event()
        self._milestones[self._acknowledged + acknowledged] = reached
        await reached.wait()

    def next_id(self, prefix: str) -> str:
        """A text that no other write has."""
        return f"{prefix}{next(self._numbers)}"

    def outcomes(self) -> Counter[str]:
        """How many writes ended how."""
        return Counter(entry.reason or entry.outcome.name for entry in self.entries)

    async def send(self, client: Client, request: Any) -> Entry:
        """Send a write; whatever it ends with goes into the ledger."""
        request.request_id = self.next_id("request-")
        entry = Entry(request)
        self.entries.append(entry)
        await self._send(client, entry)
        return entry

    async def _send(self, client: Client, entry: Entry) -> None:
        calls: dict[type, Callable[..., Awaitable[Any]]] = {
            agent_service_pb2.RegisterAgentRequest: client.agents.RegisterAgent,
            session_service_pb2.StartSessionRequest: client.sessions.StartSession,
            session_service_pb2.SubmitSessionRequest: client.sessions.SubmitSession,
            recording_service_pb2.RecordExecutionRequest: client.recording.RecordExecution,
            recording_service_pb2.SaveInsightRequest: client.recording.SaveInsight,
        }
        try:
            entry.reply = await calls[type(entry.request)](entry.request)
        except grpc.aio.AioRpcError as error:
            entry.reason = reason_of(error)
            refused = entry.reason in _NOTHING_WRITTEN
            entry.outcome = Outcome.REFUSED if refused else Outcome.UNKNOWN
        else:
            entry.reason = ""
            entry.outcome = Outcome.ACKNOWLEDGED
            self._acknowledged += 1
            if self._acknowledged in self._milestones:
                self._milestones[self._acknowledged].set()

    # What writers send.

    async def register(self, client: Client) -> Entry:
        """Register a new agent."""
        return await self.send(
            client,
            agent_service_pb2.RegisterAgentRequest(
                agent_id=self.next_id("ag_"), hostname="web-1", capabilities=["shell"]
            ),
        )

    async def start(self, client: Client) -> str:
        """Register a new agent and start a session; its id, empty if either failed."""
        agent = await self.register(client)
        if agent.reply is None:
            return ""
        request = session_service_pb2.StartSessionRequest(
            agent_id=agent.request.agent_id, playbook="linux-baseline"
        )
        entry = await self.send(client, request)
        return str(entry.reply.session.session_id) if entry.reply else ""

    async def record(self, client: Client, session_id: str, output_bytes: int = 100) -> Entry:
        """Record a command that no other execution has."""
        command = self.next_id("command ")
        text = f"{command}\n" * (output_bytes // len(command))
        # A few end badly, so that failures are counted, too.
        exit_code = 1 if command.endswith("7") else 0
        return await self.send(
            client,
            record_request(session_id, command=command, output={"text": text}, exit_code=exit_code),
        )

    async def save(self, client: Client, session_id: str) -> Entry:
        """Save an insight under a key that no other has."""
        request = recording_service_pb2.SaveInsightRequest(
            session_id=session_id, category="open_ports", key=self.next_id("tcp/"), value="open"
        )
        return await self.send(client, request)

    async def submit(self, client: Client, session_id: str) -> Entry:
        """Submit a session."""
        request = session_service_pb2.SubmitSessionRequest(session_id=session_id, summary="done")
        return await self.send(client, request)

    # What must be found.

    def _of(self, kind: type[Message], *outcomes: Outcome) -> list[Entry]:
        return [
            entry
            for entry in self.entries
            if isinstance(entry.request, kind) and (not outcomes or entry.outcome in outcomes)
        ]

    async def verify(self, client: Client) -> None:
        """All that was acknowledged is there and whole, nothing that was refused is, and the
        sessions are sound.
        """
        for entry in self._of(agent_service_pb2.RegisterAgentRequest, Outcome.ACKNOWLEDGED):
            asked = agent_service_pb2.GetAgentRequest(agent_id=entry.request.agent_id)
            assert (await client.agents.GetAgent(asked)).agent == entry.reply.agent
        for entry in self._of(session_service_pb2.StartSessionRequest, Outcome.ACKNOWLEDGED):
            started = entry.reply.session
            session = await get_session(client, started.session_id)
            assert session.agent_id == started.agent_id
            assert session.start_time == started.start_time
            await self._verify_session(client, session)
        for entry in self._of(session_service_pb2.SubmitSessionRequest, Outcome.ACKNOWLEDGED):
            session = await get_session(client, entry.request.session_id)
            assert session == entry.reply.session

    async def _verify_session(self, client: Client, session: session_pb2.Session) -> None:
        executions = await list_executions(client, session.session_id)
        assert [one.sequence for one in executions] == list(range(1, len(executions) + 1))
        assert session.execution_count == len(executions)
        assert session.failed_execution_count == sum(one.exit_code != 0 for one in executions)
        sent = self._entries_of(session, recording_service_pb2.RecordExecutionRequest)
        commands = {entry.request.command: entry for entry in sent}
        assert {one.command for one in executions} <= commands.keys()
        assert len({one.command for one in executions}) == len(executions)
        found = {one.command: one for one in executions}
        for command, entry in commands.items():
            if entry.outcome is Outcome.ACKNOWLEDGED:
                assert found[command] == entry.reply.execution
            elif command in found:
                assert entry.outcome is Outcome.UNKNOWN, f"refused with {entry.reason}, yet written"
                assert found[command].output.text == entry.request.output.text

        insights = await list_insights(client, session.session_id, all_revisions=True)
        assert session.insight_count == len(insights)
        keys = {insight.key: insight for insight in insights}
        assert len(keys) == len(insights)
        for entry in self._entries_of(session, recording_service_pb2.SaveInsightRequest):
            if entry.outcome is Outcome.ACKNOWLEDGED:
                assert keys[entry.request.key] == entry.reply.insight
            else:
                assert entry.outcome is Outcome.UNKNOWN or entry.request.key not in keys

    def _entries_of(self, session: session_pb2.Session, kind: type[Message]) -> list[Entry]:
        return [entry for entry in self._of(kind) if entry.request.session_id == session.session_id]

    async def repeat(self, client: Client, entries: Iterable[Entry]) -> None:
        """Send writes again as they were: what was acknowledged is answered as before."""
        limit = asyncio.Semaphore(32)

        async def again(entry: Entry) -> None:
            before, reply = entry.outcome, entry.reply
            async with limit:
                await self._send(client, entry)
            if before is Outcome.ACKNOWLEDGED:
                assert entry.outcome is before, entry.reason
                if isinstance(entry.request, session_service_pb2.StartSessionRequest):
                    # As it stands now, which may be submitted.
                    assert entry.reply.session.session_id == reply.session.session_id
                    entry.reply = reply
                else:
                    assert entry.reply == reply
            else:
                assert entry.reason in {"", "SESSION_NOT_RUNNING"}, entry.reason

        await asyncio.gather(*map(again, entries))
