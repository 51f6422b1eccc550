"""What one message of `RecordExecutions` asks for, and what becomes of it."""

import asyncio
from collections.abc import Awaitable, Sequence
from typing import Final

import structlog

from infrascout.sessions.v1 import recording_service_pb2 as pb
from infrascout_sessions.errors import InvalidRequest, Overloaded, Refusal, Violation
from infrascout_sessions.messages.refusals import put_refusal
from infrascout_sessions.messages.requests import new_execution
from infrascout_sessions.messages.rules import MAXIMUM_BATCH, violations
from infrascout_sessions.models import Actor, Execution, NewExecution, NewId
from infrascout_sessions.storage.repository import recording
from infrascout_sessions.storage.statement import Database

_log = structlog.get_logger()

_OVERLOADED_PAUSE_SECONDS: Final = 0.01


class Batch:
    """The executions of one message; those of a session are recorded together.

    Raises `InvalidRequest` for a message with too many or none.
    """

    def __init__(self, message: pb.RecordExecutionsRequest, actor: Actor, new_id: NewId) -> None:
        count = len(message.executions)
        if not 1 <= count <= MAXIMUM_BATCH:
            wrong = f"has {count:,} items: 1 to {MAXIMUM_BATCH:,} are needed"
            raise InvalidRequest((Violation("executions", wrong),))
        self._request_ids: list[str] = []
        self._outcomes: dict[int, Execution | Exception] = {}
        self._groups: dict[str, tuple[list[int], list[NewExecution]]] = {}
        self._pending: list[tuple[list[int], Awaitable[Sequence[Execution | Exception]]]] = []
        self._size_bytes = message.ByteSize()
        for index, request in enumerate(message.executions):
            self._request_ids.append(request.request_id)
            found = violations(request)
            if found:
                self._outcomes[index] = InvalidRequest(found)
                continue
            session_id = request.session_id
            group = self._groups.get(session_id)
            if group is None:
                group = self._groups[session_id] = ([], [])
            group[0].append(index)
            group[1].append(new_execution(request, actor, new_id))

    async def submit(self, database: Database) -> None:
        """Hand every group to the database, each as soon as it has room."""
        share = self._size_bytes // max(len(self._groups), 1)
        for session_id, (indexes, items) in self._groups.items():
            while True:
                try:
                    awaited = database.write_items(recording.record, session_id, items, share)
                except Overloaded:
                    # The client waits with us: its messages are read no faster than this.
                    await asyncio.sleep(_OVERLOADED_PAUSE_SECONDS)
                    continue
                self._pending.append((indexes, awaited))
                break

    async def response(self) -> pb.RecordExecutionsResponse:
        """The results, once they are durable."""
        for indexes, awaited in self._pending:
            try:
                self._outcomes.update(zip(indexes, await awaited, strict=True))
            except Exception as error:
                self._outcomes.update(dict.fromkeys(indexes, error))
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
