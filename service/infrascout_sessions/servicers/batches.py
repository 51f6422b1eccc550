"""What one message of `RecordExecutions` asks for, and what becomes of it."""

import asyncio
from collections.abc import Awaitable, Sequence
from typing import Final

import structlog

from infrascout.sessions.v1 import recording_service_pb2 as pb
from infrascout_sessions.errors import InvalidRequest, Overloaded, Refusal, Violation
from infrascout_sessions.messages.refusals import put_refusal
from infrascout_sessions.messages.requests import new_execution
from infrascout_sessions.messages.rules import MAXIMUM_BATCH, MAXIMUM_REQUEST_ID, violations
from infrascout_sessions.models import Actor, Execution, NewExecution, NewId
from infrascout_sessions.storage.repository import recording
from infrascout_sessions.storage.statement import Database

_log = structlog.get_logger()

_OVERLOADED_PAUSE_SECONDS: Final = 0.01


class Batch:
    """The executions of one message, recorded together.

    Raises `InvalidRequest` for a message with too many or none.
    """

    def __init__(self, message: pb.RecordExecutionsRequest, actor: Actor, new_id: NewId) -> None:
        count = len(message.executions)
        if not 1 <= count <= MAXIMUM_BATCH:
            wrong = f"has {count:,} items: 1 to {MAXIMUM_BATCH:,} are needed"
            raise InvalidRequest((Violation("executions", wrong),))
        self.size_bytes = message.ByteSize()
        # Those that are too long would make an answer that is too large for the client.
        self._request_ids = [
            request.request_id[:MAXIMUM_REQUEST_ID] for request in message.executions
        ]
        self._outcomes: dict[int, Execution | Exception] = {}
        self._items: dict[int, NewExecution] = {}
        self._pending: Awaitable[Sequence[Execution | Exception]] | None = None
        for index, request in enumerate(message.executions):
            found = violations(request)
            if found:
                self._outcomes[index] = InvalidRequest(found)
            else:
                self._items[index] = new_execution(request, actor, new_id)

    async def submit(self, database: Database) -> None:
        """Hand what is valid to the database, as soon as it has room."""
        while self._items and self._pending is None:
            try:
                self._pending = database.write_items(
                    recording.record, list(self._items.values()), self.size_bytes
                )
            except Overloaded:
                # The client waits with us: its messages are read no faster than this.
                await asyncio.sleep(_OVERLOADED_PAUSE_SECONDS)

    async def response(self) -> pb.RecordExecutionsResponse:
        """The results, once they are durable."""
        if self._pending is not None:
            try:
                self._outcomes.update(zip(self._items, await self._pending, strict=True))
            except Exception as error:
                self._outcomes.update(dict.fromkeys(self._items, error))
        response = pb.RecordExecutionsResponse()
        for index, request_id in enumerate(self._request_ids):
            result = response.results.add()
            result.request_id = request_id
            outcome = self._outcomes[index]
            if isinstance(outcome, Exception):
                if not isinstance(outcome, Refusal):
                    _log.error("execution not recorded", exc_info=outcome)
                put_refusal(result.refusal, outcome)
                continue
            result.recorded.session_id = outcome.session_id
            result.recorded.execution_id = outcome.execution_id
            result.recorded.sequence = outcome.sequence
        return response
