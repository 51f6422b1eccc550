"""Many executions at once, a bounded batch after another."""

from collections.abc import AsyncGenerator, Iterable, Iterator
from typing import Final

import grpc

from infrascout.sessions.v1.recording_service_pb2 import (
    RecordExecutionRequest,
    RecordExecutionsRequest,
    RecordExecutionsResponse,
    RecordExecutionsResult,
)
from infrascout.sessions.v1.recording_service_pb2_grpc import RecordingServiceStub
from infrascout_sessions.client.errors import CallError
from infrascout_sessions.client.retries import Metadata, next_message, repeated

_MAXIMUM_COUNT: Final = 500
# A message may have 4 MiB. One execution alone may have a little over two.
_MAXIMUM_BYTES: Final = 1024 * 1024


def _batches(requests: Iterable[RecordExecutionRequest]) -> Iterator[RecordExecutionsRequest]:
    batch, size = RecordExecutionsRequest(), 0
    for request in requests:
        weight = request.ByteSize()
        full = len(batch.executions) == _MAXIMUM_COUNT or size + weight > _MAXIMUM_BYTES
        if batch.executions and full:
            yield batch
            batch, size = RecordExecutionsRequest(), 0
        batch.executions.append(request)
        size += weight
    if batch.executions:
        yield batch


async def record(
    stub: RecordingServiceStub,
    requests: Iterable[RecordExecutionRequest],
    metadata: Metadata,
    deadline_seconds: float,
) -> AsyncGenerator[RecordExecutionsResult, None]:
    """The result of each, in order. The deadline is that of a batch, its repeats included."""
    for batch in _batches(requests):

        async def attempt(
            timeout: float, batch: RecordExecutionsRequest = batch
        ) -> RecordExecutionsResponse:
            # A stream for each batch, so that a repeat is the same call again.
            call = stub.RecordExecutions(iter((batch,)), timeout=timeout, metadata=metadata)
            response = await next_message(call)
            if response is None:
                raise CallError(grpc.StatusCode.INTERNAL, "a batch was not answered")
            return response

        for result in (await repeated(attempt, deadline_seconds=deadline_seconds)).results:
            yield result
