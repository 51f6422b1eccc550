"""`RecordingService`."""

from functools import partial
from typing import Any

from infrascout.sessions.v1 import recording_service_pb2 as pb
from infrascout.sessions.v1.recording_service_pb2_grpc import RecordingServiceServicer
from infrascout_sessions.identity import caller
from infrascout_sessions.messages.requests import new_execution, new_insight, request_key
from infrascout_sessions.messages.resources import put_execution, put_insight
from infrascout_sessions.messages.rules import MAXIMUM_OUTPUT_BYTES, check
from infrascout_sessions.models import NewId
from infrascout_sessions.storage.repository import executions, insights
from infrascout_sessions.storage.statement import Database


class RecordingServicer(RecordingServiceServicer):
    """Adds executions and insights to running sessions."""

    def __init__(self, database: Database, new_id: NewId) -> None:
        self._database = database
        self._new_id = new_id

    async def RecordExecution(
        self, request: pb.RecordExecutionRequest, context: Any
    ) -> pb.RecordExecutionResponse:
        """Record a command that has run."""
        check(request)
        [outcome] = await self._database.write_items(
            executions.record,
            request.session_id,
            [new_execution(request, caller.get(), self._new_id)],
            request.ByteSize(),
        )
        if isinstance(outcome, Exception):
            raise outcome
        response = pb.RecordExecutionResponse()
        put_execution(response.execution, outcome, MAXIMUM_OUTPUT_BYTES)
        return response

    async def SaveInsight(
        self, request: pb.SaveInsightRequest, context: Any
    ) -> pb.SaveInsightResponse:
        """Save a finding."""
        check(request)
        actor = caller.get()
        key = request_key("SaveInsight", actor, request, request.request_id, request.session_id)
        insight = await self._database.write(
            partial(insights.save, request.session_id, new_insight(request), actor, key),
            request.ByteSize(),
        )
        response = pb.SaveInsightResponse()
        put_insight(response.insight, insight)
        return response
