"""`RecordingService`."""

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from typing import Any, Final

from infrascout.sessions.v1 import recording_service_pb2 as pb
from infrascout.sessions.v1.recording_service_pb2_grpc import RecordingServiceServicer
from infrascout_sessions.errors import ShuttingDown
from infrascout_sessions.identity import caller
from infrascout_sessions.messages.requests import (
    begun_execution,
    new_execution,
    new_insight,
    request_key,
    time_of,
)
from infrascout_sessions.messages.resources import put_execution, put_insight
from infrascout_sessions.messages.rules import MAXIMUM_OUTPUT_BYTES, check
from infrascout_sessions.models import NewId, Output, OutputStream
from infrascout_sessions.servicers.batches import Batch
from infrascout_sessions.storage.repository import insights, outputs, recording
from infrascout_sessions.storage.statement import Database

# How many messages of a stream may wait for their commit while the next one is read; one that is
# larger than this counts as several.
_MESSAGES_AHEAD: Final = 8
_MESSAGE_BYTES: Final = 1024 * 1024


def _room_for(batch: Batch) -> int:
    return 1 + batch.size_bytes // _MESSAGE_BYTES


class RecordingServicer(RecordingServiceServicer):
    """Adds executions and insights to running sessions."""

    def __init__(
        self,
        database: Database,
        new_id: NewId,
        maximum_output_bytes: int,
        stopping: asyncio.Event,
    ) -> None:
        self._database = database
        self._new_id = new_id
        self._maximum_output_bytes = maximum_output_bytes
        self._stopping = stopping

    async def RecordExecution(
        self, request: pb.RecordExecutionRequest, context: Any
    ) -> pb.RecordExecutionResponse:
        """Record a command that has run."""
        check(request)
        [outcome] = await self._database.write_items(
            recording.record,
            [new_execution(request, caller.get().actor, self._new_id)],
            request.ByteSize(),
        )
        if isinstance(outcome, Exception):
            raise outcome
        response = pb.RecordExecutionResponse()
        put_execution(response.execution, outcome, MAXIMUM_OUTPUT_BYTES)
        return response

    async def RecordExecutions(
        self, request_iterator: AsyncIterator[pb.RecordExecutionsRequest], context: Any
    ) -> AsyncIterator[pb.RecordExecutionsResponse]:
        """Record many commands that have run, message by message."""
        batches: asyncio.Queue[Batch | Exception | None] = asyncio.Queue()
        room = asyncio.Semaphore(_MESSAGES_AHEAD)
        reader = asyncio.create_task(self._read_batches(request_iterator, batches, room))
        stopper = asyncio.create_task(self._stop_reading(reader, batches))
        try:
            while (batch := await batches.get()) is not None:
                if isinstance(batch, Exception):
                    raise batch
                yield await batch.response()
                for _ in range(_room_for(batch)):
                    room.release()
        finally:
            reader.cancel()
            stopper.cancel()

    async def _read_batches(
        self,
        messages: AsyncIterator[pb.RecordExecutionsRequest],
        batches: "asyncio.Queue[Batch | Exception | None]",
        room: asyncio.Semaphore,
    ) -> None:
        """Hand each message to the database as it comes; what ends the stream comes last."""
        try:
            async for message in messages:
                batch = Batch(message, caller.get().actor, self._new_id)
                await batch.submit(self._database)
                batches.put_nowait(batch)
                for _ in range(_room_for(batch)):
                    await room.acquire()
            batches.put_nowait(None)
        except Exception as error:
            batches.put_nowait(error)

    async def _stop_reading(
        self, reader: "asyncio.Task[None]", batches: "asyncio.Queue[Batch | Exception | None]"
    ) -> None:
        """End the stream when the server stops, after what was read has been answered."""
        await self._stopping.wait()
        reader.cancel()
        batches.put_nowait(ShuttingDown())

    async def BeginExecution(
        self, request: pb.BeginExecutionRequest, context: Any
    ) -> pb.BeginExecutionResponse:
        """Put a command on record before it runs."""
        check(request)
        new = begun_execution(request, caller.get().actor, self._new_id)
        execution = await self._database.write(partial(recording.begin, new), request.ByteSize())
        response = pb.BeginExecutionResponse()
        put_execution(response.execution, execution, MAXIMUM_OUTPUT_BYTES)
        return response

    async def AppendOutput(
        self, request: pb.AppendOutputRequest, context: Any
    ) -> pb.AppendOutputResponse:
        """Add a chunk of what a command prints."""
        check(request)
        size_bytes = await self._database.write(
            partial(
                outputs.append,
                request.session_id,
                request.sequence,
                OutputStream(request.stream),
                request.offset,
                request.data,
                self._maximum_output_bytes,
                caller.get().actor,
            ),
            request.ByteSize(),
        )
        return pb.AppendOutputResponse(size_bytes=size_bytes)

    async def FinishExecution(
        self, request: pb.FinishExecutionRequest, context: Any
    ) -> pb.FinishExecutionResponse:
        """Record how a command has ended."""
        check(request)
        session_id, sequence, actor = request.session_id, request.sequence, caller.get().actor
        exit_code = request.exit_code if request.HasField("exit_code") else None
        end_time = time_of(request.end_time)
        key = request_key("FinishExecution", actor, request, request.request_id, session_id)
        digests = {stream: outputs.Digest(session_id, sequence, stream) for stream in OutputStream}
        end = recording.End(exit_code, end_time, digests)
        while True:
            begun = await self._database.read(
                partial(recording.to_finish, session_id, sequence, exit_code, end_time, key)
            )
            if begun.finish_record_time is None:
                await self._hash(begun.output, digests[OutputStream.STDOUT])
                await self._hash(begun.error_output, digests[OutputStream.STDERR])
            try:
                execution = await self._database.write(
                    partial(recording.finish, session_id, sequence, end, actor, key)
                )
            except recording.OutputsChangedError:
                continue
            response = pb.FinishExecutionResponse()
            put_execution(response.execution, execution, MAXIMUM_OUTPUT_BYTES)
            return response

    async def _hash(self, output: Output | None, digest: outputs.Digest) -> None:
        """Take in what the output has, in steps between which others get their turn."""
        while output is not None and digest.lacks(output.size_bytes):
            await self._database.read(partial(digest.advance, output.size_bytes))

    async def SaveInsight(
        self, request: pb.SaveInsightRequest, context: Any
    ) -> pb.SaveInsightResponse:
        """Save a finding."""
        check(request)
        actor = caller.get().actor
        key = request_key("SaveInsight", actor, request, request.request_id, request.session_id)
        insight = await self._database.write(
            partial(insights.save, request.session_id, new_insight(request), actor, key),
            request.ByteSize(),
        )
        response = pb.SaveInsightResponse()
        put_insight(response.insight, insight)
        return response
