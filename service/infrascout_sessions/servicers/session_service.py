"""`SessionService`."""

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from typing import Any, Final, cast

from infrascout.sessions.v1 import session_service_pb2 as pb
from infrascout.sessions.v1.session_service_pb2_grpc import SessionServiceServicer
from infrascout_sessions.errors import PageTokenInvalid, ShuttingDown
from infrascout_sessions.identity import caller
from infrascout_sessions.lifecycle import Action
from infrascout_sessions.messages import page_tokens
from infrascout_sessions.messages.pages import PAGE_BYTES, fill, page_limit
from infrascout_sessions.messages.requests import request_key, session_filter
from infrascout_sessions.messages.resources import (
    executions_response,
    put_execution,
    put_insight,
    put_session,
)
from infrascout_sessions.messages.rules import MAXIMUM_OUTPUT_BYTES, check
from infrascout_sessions.models import (
    Execution,
    NewId,
    NewSession,
    OutputStream,
    Session,
    SessionFilter,
    SessionPosition,
    Step,
)
from infrascout_sessions.servicers.followers import Followers, unfinished_of
from infrascout_sessions.storage.repository import (
    executions,
    insights,
    outputs,
    session_lists,
    starts,
    transitions,
)
from infrascout_sessions.storage.session_reader import SessionReader
from infrascout_sessions.storage.statement import Connection, Database

_COUNTED_UP_TO: Final = 10_000

# The first page of a stream is small, so that its first message comes soon.
_FIRST_PAGE: Final = 50
_PAGE: Final = 1000
_NO_LIMIT: Final = 2**31
_INSIGHTS_PAGE: Final = 20
_DATA_BYTES: Final = 256 * 1024


class SessionServicer(SessionServiceServicer):
    """Starts, reads and ends sessions."""

    def __init__(
        self,
        database: Database,
        session_reader: SessionReader,
        followers: Followers,
        new_id: NewId,
        stopping: asyncio.Event,
    ) -> None:
        self._database = database
        self._sessions = session_reader
        self._followers = followers
        self._new_id = new_id
        self._stopping = stopping

    async def StartSession(
        self, request: pb.StartSessionRequest, context: Any
    ) -> pb.StartSessionResponse:
        """Open a session on an agent."""
        check(request)
        actor = caller.get().actor
        new = NewSession(
            self._new_id("sess_"),
            request.agent_id,
            request.playbook,
            request.description,
            actor,
            request_key("StartSession", actor, request, request.request_id),
        )
        session = await self._database.write_item(starts.start, new, request.ByteSize())
        response = pb.StartSessionResponse()
        put_session(response.session, session)
        return response

    async def GetSession(
        self, request: pb.GetSessionRequest, context: Any
    ) -> pb.GetSessionResponse:
        """Return one session."""
        check(request)
        response = pb.GetSessionResponse()
        put_session(response.session, await self._sessions.get(request.session_id))
        return response

    async def ListSessions(
        self, request: pb.ListSessionsRequest, context: Any
    ) -> pb.ListSessionsResponse:
        """Return a page of sessions, most recent first."""
        check(request)
        which = session_filter(request)
        filters = ["sessions", *which]
        after = None
        if request.page_token:
            if request.offset:
                raise PageTokenInvalid("cannot be used together with offset: leave out one of them")
            after = SessionPosition(*page_tokens.read(filters, request.page_token))
        limit = page_limit(request.limit)
        found, total = await self._database.read(
            partial(_page_and_total, which, after, request.offset, limit + 1, request.include_total)
        )
        response = pb.ListSessionsResponse()
        added = fill(response.sessions, put_session, found[:limit])
        if added < len(found):
            last = found[added - 1]
            response.next_page_token = page_tokens.make(
                filters, SessionPosition(last.start_time, last.session_id)
            )
        response.total_size = min(total, _COUNTED_UP_TO)
        response.total_size_capped = total > _COUNTED_UP_TO
        return response

    async def ListExecutions(
        self, request: pb.ListExecutionsRequest, context: Any
    ) -> AsyncIterator[pb.ListExecutionsResponse]:
        """Stream what was executed in a session, in order; with `follow`, what is executed, too."""
        check(request)
        limit = (
            min(request.max_output_bytes, MAXIMUM_OUTPUT_BYTES)
            if request.HasField("max_output_bytes")
            else MAXIMUM_OUTPUT_BYTES
        )
        after = request.after_sequence
        if not request.follow:
            async for found in self._pages(request, limit):
                yield executions_response(found, limit)
            return
        awaited: set[int] = set()
        self._followers.admit()
        try:
            async for found in self._pages(request, limit):
                yield executions_response(found, limit)
                after = found[-1].sequence
                awaited |= unfinished_of(found)
            async for response in self._followers.follow(request.session_id, after, awaited, limit):
                # Serialised already, which the interceptor knows to take.
                yield cast("pb.ListExecutionsResponse", response)
        finally:
            self._followers.dismiss()

    async def _pages(
        self, request: pb.ListExecutionsRequest, maximum_output_bytes: int
    ) -> AsyncIterator[list[Execution]]:
        """What is on record, in pages that fit a message."""
        left = request.limit or _NO_LIMIT
        asked = min(_FIRST_PAGE, left)

        def read(after: int, count: int) -> "asyncio.Future[tuple[list[Execution], bool]]":
            page = partial(
                executions.page,
                request.session_id,
                after,
                count,
                PAGE_BYTES,
                maximum_output_bytes,
                request.failed_only,
            )
            return asyncio.ensure_future(self._database.read(page))

        reading = read(request.after_sequence, asked)
        try:
            while True:
                found, more = await reading
                if self._stopping.is_set():
                    raise ShuttingDown
                left -= len(found)
                more = more and left > 0
                if more:
                    # Read on while this page is built and sent: as many as fitted, more if all did.
                    asked = min(len(found) + 10 if len(found) < asked else asked * 8, _PAGE, left)
                    reading = read(found[-1].sequence, asked)
                if found:
                    yield found
                if not more:
                    return
        finally:
            reading.cancel()

    async def GetExecution(
        self, request: pb.GetExecutionRequest, context: Any
    ) -> pb.GetExecutionResponse:
        """Return one execution."""
        check(request)
        execution = await self._database.read(
            partial(executions.get, request.session_id, request.sequence, MAXIMUM_OUTPUT_BYTES)
        )
        response = pb.GetExecutionResponse()
        put_execution(response.execution, execution, MAXIMUM_OUTPUT_BYTES)
        return response

    async def ReadOutput(
        self, request: pb.ReadOutputRequest, context: Any
    ) -> AsyncIterator[pb.ReadOutputResponse]:
        """Stream the bytes of an output from an offset to its end."""
        check(request)
        of = (request.session_id, request.sequence, OutputStream(request.stream))
        at = request.offset
        end = await self._database.read(partial(outputs.size, *of, at))
        while at < end:
            data = await self._database.read(partial(outputs.read, *of, at, end))
            for start in range(0, len(data), _DATA_BYTES):
                if self._stopping.is_set():
                    raise ShuttingDown
                yield pb.ReadOutputResponse(data=data[start : start + _DATA_BYTES])
            at += len(data)

    async def ListInsights(
        self, request: pb.ListInsightsRequest, context: Any
    ) -> AsyncIterator[pb.ListInsightsResponse]:
        """Stream the insights of a session, in order of first save."""
        check(request)
        after = (0, 0)
        while True:
            found = await self._database.read(
                partial(
                    insights.page, request.session_id, after, _INSIGHTS_PAGE, request.all_revisions
                )
            )
            for insight in found:
                if self._stopping.is_set():
                    raise ShuttingDown
                response = pb.ListInsightsResponse()
                put_insight(response.insight, insight)
                yield response
            if len(found) < _INSIGHTS_PAGE:
                return
            after = (found[-1].position, found[-1].revision)

    async def SubmitSession(
        self, request: pb.SubmitSessionRequest, context: Any
    ) -> pb.SubmitSessionResponse:
        """Hand a session to review."""
        response = pb.SubmitSessionResponse()
        put_session(response.session, await self._move(Action.SUBMIT, request, request.summary))
        return response

    async def FailSession(
        self, request: pb.FailSessionRequest, context: Any
    ) -> pb.FailSessionResponse:
        """End a session whose agent or playbook broke."""
        response = pb.FailSessionResponse()
        put_session(response.session, await self._move(Action.FAIL, request, request.reason))
        return response

    async def InterruptSession(
        self, request: pb.InterruptSessionRequest, context: Any
    ) -> pb.InterruptSessionResponse:
        """Stop a session at its caller's wish."""
        response = pb.InterruptSessionResponse()
        put_session(response.session, await self._move(Action.INTERRUPT, request, request.reason))
        return response

    async def _move(
        self,
        action: Action,
        request: pb.SubmitSessionRequest | pb.FailSessionRequest | pb.InterruptSessionRequest,
        text: str,
    ) -> Session:
        check(request)
        actor = caller.get().actor
        key = request_key(action, actor, request, request.request_id, request.session_id)
        step = Step(request.session_id, text, actor, key)
        return await self._database.write_item(transitions.move[action], step, request.ByteSize())


def _page_and_total(
    which: SessionFilter,
    after: SessionPosition | None,
    offset: int,
    limit: int,
    include_total: bool,
    connection: Connection,
) -> tuple[list[Session], int]:
    found = session_lists.page(which, after, offset, limit, connection)
    total = session_lists.count(which, _COUNTED_UP_TO + 1, connection) if include_total else 0
    return found, total
