"""The yardstick: a bare grpc.aio server that parses, answers a constant and does nothing.

No interceptor, no log line, no check, no database. Replies have the sizes of ours.
"""

# ruff: noqa: ARG002, N802  RPCs are named as in the .proto, and these look at nothing

import argparse
import asyncio
import signal
from collections.abc import AsyncIterator
from itertools import pairwise

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from bench import samples
from infrascout.sessions.v1 import (
    actor_pb2,
    execution_pb2,
    recording_service_pb2,
    recording_service_pb2_grpc,
    session_pb2,
    session_service_pb2,
    session_service_pb2_grpc,
)

RUNNING = samples.session(session_pb2.SESSION_STATUS_RUNNING)
SUBMITTED = samples.session(
    session_pb2.SESSION_STATUS_RUNNING, session_pb2.SESSION_STATUS_PENDING_REVIEW
)
EXECUTIONS = 10_000
# As the service pages (servicers/session_service.py): fifty, then a megabyte a message.
FIRST_PAGE = 50
PAGE = 2**20 // (200 + len(samples.COMMAND) + len(samples.OUTPUT))

Row = tuple[str, int, str, int, str, int, int, int, str]
ROWS: list[Row] = [
    (
        *(samples.execution_id(n), n, samples.OUTPUT, len(samples.OUTPUT), samples.OUTPUT_SHA256),
        *(0, samples.TIME.seconds, samples.TIME.nanos, samples.LOCAL.subject),
    )
    for n in range(1, EXECUTIONS + 1)
]
SESSION_ID = samples.session_id(0)


class Sessions(session_service_pb2_grpc.SessionServiceServicer):
    started = session_service_pb2.StartSessionResponse(session=RUNNING)
    got = session_service_pb2.GetSessionResponse(session=RUNNING)
    submitted = session_service_pb2.SubmitSessionResponse(session=SUBMITTED)
    listed = session_service_pb2.ListSessionsResponse(
        sessions=[RUNNING] * 20, next_page_token=samples.PAGE_TOKEN
    )

    async def StartSession(
        self, request: session_service_pb2.StartSessionRequest, context: object
    ) -> session_service_pb2.StartSessionResponse:
        return self.started

    async def GetSession(
        self, request: session_service_pb2.GetSessionRequest, context: object
    ) -> session_service_pb2.GetSessionResponse:
        return self.got

    async def SubmitSession(
        self, request: session_service_pb2.SubmitSessionRequest, context: object
    ) -> session_service_pb2.SubmitSessionResponse:
        return self.submitted

    async def ListSessions(
        self, request: session_service_pb2.ListSessionsRequest, context: object
    ) -> session_service_pb2.ListSessionsResponse:
        return self.listed

    async def ListExecutions(
        self, request: session_service_pb2.ListExecutionsRequest, context: object
    ) -> AsyncIterator[session_service_pb2.ListExecutionsResponse]:
        """The stream without a database: messages are built from tuples in memory."""
        count = min(request.limit or EXECUTIONS, EXECUTIONS)
        for start, end in pairwise([0, *range(FIRST_PAGE, count, PAGE), count]):
            yield session_service_pb2.ListExecutionsResponse(
                executions=[_execution(row) for row in ROWS[start:end]]
            )


class Recording(recording_service_pb2_grpc.RecordingServiceServicer):
    recorded = recording_service_pb2.RecordExecutionResponse(execution=samples.execution(1))
    result = recording_service_pb2.RecordExecutionsResult(
        request_id=samples.request_id("0000", 0),
        recorded=recording_service_pb2.Recorded(
            session_id=SESSION_ID, execution_id=samples.execution_id(0), sequence=10_000
        ),
    )

    async def RecordExecution(
        self, request: recording_service_pb2.RecordExecutionRequest, context: object
    ) -> recording_service_pb2.RecordExecutionResponse:
        return self.recorded

    async def RecordExecutions(
        self,
        request_iterator: AsyncIterator[recording_service_pb2.RecordExecutionsRequest],
        context: object,
    ) -> AsyncIterator[recording_service_pb2.RecordExecutionsResponse]:
        async for message in request_iterator:
            yield recording_service_pb2.RecordExecutionsResponse(
                results=[self.result] * len(message.executions)
            )


def _execution(row: Row) -> execution_pb2.Execution:
    execution_id, sequence, text, size_bytes, sha256, exit_code, seconds, nanos, subject = row
    time = Timestamp(seconds=seconds, nanos=nanos)
    return execution_pb2.Execution(
        execution_id=execution_id,
        session_id=SESSION_ID,
        sequence=sequence,
        state=execution_pb2.EXECUTION_STATE_EXITED,
        command=samples.COMMAND,
        capability=samples.CAPABILITY,
        output=execution_pb2.Output(text=text, size_bytes=size_bytes, sha256=sha256),
        exit_code=exit_code,
        start_time=time,
        end_time=time,
        record_time=time,
        finish_record_time=time,
        actor=actor_pb2.Actor(subject=subject, kind=actor_pb2.ACTOR_KIND_SERVICE),
    )


async def serve(listen: str) -> None:
    server = grpc.aio.server()
    session_service_pb2_grpc.add_SessionServiceServicer_to_server(Sessions(), server)  # type: ignore[abstract]
    recording_service_pb2_grpc.add_RecordingServiceServicer_to_server(Recording(), server)  # type: ignore[abstract]
    port = server.add_insecure_port(listen)
    await server.start()
    print(port, flush=True)
    stop = asyncio.Event()
    for signum in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(signum, stop.set)
    await stop.wait()
    await server.stop(grace=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--listen", default="127.0.0.1:0", help="the port goes to stdout")
    asyncio.run(serve(parser.parse_args().listen))


if __name__ == "__main__":
    main()
