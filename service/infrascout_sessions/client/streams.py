"""The streams of the service, each resumed where it broke."""

from collections.abc import AsyncGenerator

from infrascout.sessions.v1.execution_pb2 import EXECUTION_STATE_UNFINISHED, Execution
from infrascout.sessions.v1.insight_pb2 import Insight
from infrascout.sessions.v1.session_service_pb2 import (
    ListExecutionsRequest,
    ListInsightsRequest,
    ReadOutputRequest,
)
from infrascout.sessions.v1.session_service_pb2_grpc import SessionServiceStub
from infrascout_sessions.client.retries import STREAM_SECONDS, Metadata, stream


class _Position:
    """How far the executions have come, and where to resume so that none is missed."""

    def __init__(self, request: ListExecutionsRequest) -> None:
        self._asked = request
        self._highest = request.after_sequence
        self._given = 0
        self._unfinished: set[int] = set()

    def request(self) -> ListExecutionsRequest:
        """The request that asks for what is still to come."""
        request = ListExecutionsRequest()
        request.CopyFrom(self._asked)
        request.after_sequence = min(self._unfinished, default=self._highest + 1) - 1
        if self._asked.limit:
            request.limit = self._asked.limit - self._given
        return request

    @property
    def complete(self) -> bool:
        """Whether as many as asked for have been given."""
        return 0 < self._asked.limit <= self._given

    def is_new(self, execution: Execution) -> bool:
        """Note an execution; false if the reader has it already, as it stands."""
        sequence = execution.sequence
        ended = execution.state != EXECUTION_STATE_UNFINISHED
        if sequence <= self._highest and not (ended and sequence in self._unfinished):
            return False
        self._highest = max(self._highest, sequence)
        self._given += 1
        # Only who follows is told of an end that comes later.
        if ended:
            self._unfinished.discard(sequence)
        elif self._asked.follow:
            self._unfinished.add(sequence)
        return True


async def executions(
    stub: SessionServiceStub,
    request: ListExecutionsRequest,
    metadata: Metadata,
    deadline_seconds: float,
) -> AsyncGenerator[Execution, None]:
    """Every execution asked for, once; with `follow`, an unfinished one again when it ends."""
    position = _Position(request)
    responses = stream(
        lambda: stub.ListExecutions(position.request(), timeout=STREAM_SECONDS, metadata=metadata),
        deadline_seconds=deadline_seconds,
        may_be_silent=request.follow,
    )
    async for response in responses:
        for execution in response.executions:
            if position.is_new(execution):
                yield execution
        if position.complete:
            return


async def insights(
    stub: SessionServiceStub,
    request: ListInsightsRequest,
    metadata: Metadata,
    deadline_seconds: float,
) -> AsyncGenerator[Insight, None]:
    """Every insight asked for, once: the stream itself begins anew when it breaks."""
    given: set[tuple[str, str, int]] = set()
    responses = stream(
        lambda: stub.ListInsights(request, timeout=STREAM_SECONDS, metadata=metadata),
        deadline_seconds=deadline_seconds,
    )
    async for response in responses:
        insight = response.insight
        revision = insight.revision if request.all_revisions else 0
        identity = (insight.category, insight.key, revision)
        if identity not in given:
            given.add(identity)
            yield insight


async def output(
    stub: SessionServiceStub,
    request: ReadOutputRequest,
    metadata: Metadata,
    deadline_seconds: float,
) -> AsyncGenerator[bytes, None]:
    """The bytes of an output, in order."""
    rest = ReadOutputRequest()
    rest.CopyFrom(request)
    responses = stream(
        lambda: stub.ReadOutput(rest, timeout=STREAM_SECONDS, metadata=metadata),
        deadline_seconds=deadline_seconds,
    )
    async for response in responses:
        rest.offset += len(response.data)
        yield response.data
