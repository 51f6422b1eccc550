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
_UNAVAILABLE: Final = grpc.StatusCode.UNAVAILABLE.value[0]


class _PartlyRecordedError(CallError):
    """A batch of which some were refused in a way that a repeat can mend; has the whole answer."""

    def __init__(self, response: RecordExecutionsResponse) -> None:
        super().__init__(grpc.StatusCode.UNAVAILABLE, "a part of the batch was not recorded")
        self.response = response


def _filled(
    first: RecordExecutionRequest, others: Iterator[RecordExecutionRequest]
) -> tuple[RecordExecutionsRequest, RecordExecutionRequest | None]:
    """A batch that begins with the first, and the one that it has no room for."""
    batch, size = RecordExecutionsRequest(executions=[first]), first.ByteSize()
    for request in others:
        size += request.ByteSize()
        if len(batch.executions) == _MAXIMUM_COUNT or size > _MAXIMUM_BYTES:
            return batch, request
        batch.executions.append(request)
    return batch, None


async def record(
    stub: RecordingServiceStub,
    requests: Iterable[RecordExecutionRequest],
    metadata: Metadata,
    deadline_seconds: float,
) -> AsyncGenerator[RecordExecutionsResult, None]:
    """The result of each, in order. The deadline is that of a batch, its repeats included."""
    others = iter(requests)
    first = next(others, None)
    while first is not None:
        batch, following = _filled(first, others)

        async def attempt(
            timeout: float, batch: RecordExecutionsRequest = batch
        ) -> RecordExecutionsResponse:
            # A stream for each batch, so that a repeat is the same call again.
            call = stub.RecordExecutions(iter((batch,)), timeout=timeout, metadata=metadata)
            response = await next_message(call)
            if response is None:
                raise CallError(grpc.StatusCode.INTERNAL, "a batch was not answered")
            # All of it again: what is on record has its request_id, and is answered the same.
            if any(result.refusal.code == _UNAVAILABLE for result in response.results):
                raise _PartlyRecordedError(response)
            return response

        try:
            response = await repeated(attempt, deadline_seconds=deadline_seconds)
        except _PartlyRecordedError as error:
            response = error.response
        except CallError as error:
            # The one that was to follow has been taken out of what the caller gave, too.
            error.requests = (*batch.executions, *(() if following is None else (following,)))
            raise
        for result in response.results:
            yield result
        first = following
