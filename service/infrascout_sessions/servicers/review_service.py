"""`ReviewService`."""

from functools import partial
from typing import Any

from infrascout.sessions.v1 import review_service_pb2 as pb
from infrascout.sessions.v1.review_service_pb2_grpc import ReviewServiceServicer
from infrascout_sessions.identity import caller
from infrascout_sessions.lifecycle import Action
from infrascout_sessions.messages.requests import request_key
from infrascout_sessions.messages.resources import put_session
from infrascout_sessions.messages.rules import check
from infrascout_sessions.models import Independence
from infrascout_sessions.storage.repository import transitions
from infrascout_sessions.storage.statement import Database


class ReviewServicer(ReviewServiceServicer):
    """Completes sessions. That the caller is a human is seen to before (`interceptors.access`)."""

    def __init__(self, database: Database, independence: Independence) -> None:
        self._database = database
        self._independence = independence

    async def CompleteSession(
        self, request: pb.CompleteSessionRequest, context: Any
    ) -> pb.CompleteSessionResponse:
        """Accept a session that awaits its review."""
        check(request)
        actor = caller.get().actor
        key = request_key(Action.COMPLETE, actor, request, request.request_id, request.session_id)
        session = await self._database.write(
            partial(
                transitions.complete,
                request.session_id,
                request.comment,
                actor,
                self._independence,
                key,
            ),
            request.ByteSize(),
        )
        response = pb.CompleteSessionResponse()
        put_session(response.session, session)
        return response
