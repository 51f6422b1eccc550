"""What the tests of streams and of large outputs share: the calls, a cut connection, a process."""

import asyncio
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from harness import Client, ServiceProcess, at, collect, connected, record_request
from infrascout.sessions.v1 import error_reason_pb2, execution_pb2
from infrascout.sessions.v1 import recording_service_pb2 as recording
from infrascout.sessions.v1 import session_service_pb2 as sessions

MIB: Final = 1024 * 1024
UNFINISHED: Final = execution_pb2.EXECUTION_STATE_UNFINISHED
EXITED: Final = execution_pb2.EXECUTION_STATE_EXITED
KILLED: Final = execution_pb2.EXECUTION_STATE_KILLED
STDOUT: Final = execution_pb2.OUTPUT_STREAM_STDOUT
STDERR: Final = execution_pb2.OUTPUT_STREAM_STDERR

SERVICE: Final = (sys.executable, "-m", "infrascout_sessions")
"""The program of these sources, whether or not it is installed."""


# Executions that are begun before they run.


def begin_request(session_id: str, **fields: Any) -> recording.BeginExecutionRequest:
    """A command that is about to run."""
    defaults = {"command": "tail -f log", "capability": "shell", "start_time": at(-2)}
    return recording.BeginExecutionRequest(session_id=session_id, **{**defaults, **fields})


async def begin(client: Client, session_id: str, **fields: Any) -> execution_pb2.Execution:
    """Put a command on record before it runs; `fields` are those of the request."""
    return (await client.recording.BeginExecution(begin_request(session_id, **fields))).execution


async def append(
    client: Client,
    session_id: str,
    sequence: int,
    offset: int,
    data: bytes,
    stream: execution_pb2.OutputStream = STDOUT,
) -> int:
    """Add a chunk to an output; the output's size."""
    request = recording.AppendOutputRequest(
        session_id=session_id, sequence=sequence, stream=stream, offset=offset, data=data
    )
    return (await client.recording.AppendOutput(request)).size_bytes


async def finish(
    client: Client,
    session_id: str,
    sequence: int,
    exit_code: int | None = 0,
    end_time: Timestamp | None = None,
    request_id: str = "",
) -> execution_pb2.Execution:
    """Record how a command has ended."""
    request = recording.FinishExecutionRequest(
        session_id=session_id,
        sequence=sequence,
        exit_code=exit_code,
        end_time=end_time or at(-1),
        request_id=request_id,
    )
    return (await client.recording.FinishExecution(request)).execution


async def get_execution(client: Client, session_id: str, sequence: int) -> execution_pb2.Execution:
    """The execution as it stands."""
    request = sessions.GetExecutionRequest(session_id=session_id, sequence=sequence)
    return (await client.sessions.GetExecution(request)).execution


async def read_output(
    client: Client,
    session_id: str,
    sequence: int,
    offset: int = 0,
    stream: execution_pb2.OutputStream = STDOUT,
) -> list[bytes]:
    """The messages of ReadOutput."""
    request = sessions.ReadOutputRequest(
        session_id=session_id, sequence=sequence, stream=stream, offset=offset
    )
    return [response.data for response in await collect(client.sessions.ReadOutput(request))]


# RecordExecutions.


def batch(*executions: recording.RecordExecutionRequest) -> recording.RecordExecutionsRequest:
    """One message of the stream."""
    return recording.RecordExecutionsRequest(executions=executions)


def batch_of(session_id: str, commands: Iterable[str], **fields: Any) -> Any:
    """One message with an execution a command, whose `request_id` is the command."""
    return batch(
        *(
            record_request(session_id, command=command, request_id=command, **fields)
            for command in commands
        )
    )


async def record_all(
    client: Client, *messages: recording.RecordExecutionsRequest
) -> list[list[recording.RecordExecutionsResult]]:
    """Send messages on one stream, and end it: the results of each."""
    responses = await collect(client.recording.RecordExecutions(iter(messages)))
    return [list(response.results) for response in responses]


def outcome(result: recording.RecordExecutionsResult) -> int | str:
    """The sequence, or the reason of the refusal."""
    if result.WhichOneof("result") == "recorded":
        return result.recorded.sequence
    return error_reason_pb2.ErrorReason.Name(result.refusal.reason).removeprefix("ERROR_REASON_")


def outcomes(results: Sequence[recording.RecordExecutionsResult]) -> list[int | str]:
    """The sequence of each, or why it was refused."""
    return [outcome(result) for result in results]


# Following.


def follow(client: Client, session_id: str, **fields: Any) -> Any:
    """The call of ListExecutions with `follow`."""
    request = sessions.ListExecutionsRequest(session_id=session_id, follow=True, **fields)
    return client.sessions.ListExecutions(request)


async def executions_of(stream: Any) -> AsyncIterator[execution_pb2.Execution]:
    """What a stream of ListExecutions brings, one by one."""
    async for response in stream:
        assert response.executions
        for execution in response.executions:
            yield execution


def check_followed(
    executions: Sequence[execution_pb2.Execution],
    expected: Iterable[int],
    final: Mapping[int, execution_pb2.Execution],
) -> None:
    """Each sequence came once and in order; what was unfinished came once more, as it ended.

    `final` is how the executions stand at the end, by sequence.
    """
    first = {}
    again = Counter[int]()
    for execution in executions:
        sequence = execution.sequence
        if sequence not in first:
            first[sequence] = execution
            continue
        assert first[sequence].state == UNFINISHED, f"{sequence} came again for nothing"
        again[sequence] += 1
        assert execution == final[sequence]
    assert list(first) == list(expected)
    for sequence, execution in first.items():
        if execution.state != UNFINISHED:
            assert execution == final[sequence]
        finished_later = execution.state == UNFINISHED and final[sequence].state != UNFINISHED
        assert again[sequence] == finished_later, sequence


# Processes and connections.


def memory_bytes(service: ServiceProcess, field: str = "VmRSS") -> int:
    """The memory of the process; `VmHWM` is the most it ever had."""
    status = Path(f"/proc/{service.process.pid}/status").read_text()
    [line] = [line for line in status.splitlines() if line.startswith(f"{field}:")]
    return int(line.split()[1]) * 1024


class Cable:
    """A connection to a server that can be cut."""

    def __init__(self, address: str) -> None:
        self.cuts = 0
        self._to = address.rsplit(":", 1)
        self._streams: set[asyncio.StreamWriter] = set()
        self._pumps: set[asyncio.Task[None]] = set()
        self._left: dict[str, float] = {}

    def cut_after(self, size_bytes: int, direction: str = "in") -> None:
        """Cut it when so many bytes more have gone `in` to the server or `out` of it."""
        self._left[direction] = size_bytes

    def cut(self) -> None:
        """Cut it now; the next call finds a new one."""
        self.cuts += 1
        for stream in self._streams:
            stream.transport.abort()

    async def connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Take a connection of a client."""
        to_reader, to_writer = await asyncio.open_connection(*self._to)
        self._streams |= {writer, to_writer}
        await asyncio.gather(
            self._pump(reader, to_writer, "in"), self._pump(to_reader, writer, "out")
        )
        self._streams -= {writer, to_writer}

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, direction: str
    ) -> None:
        with suppress(OSError):
            while data := await reader.read(65_536):
                if direction in self._left:
                    self._left[direction] -= len(data)
                    if self._left[direction] < 0:
                        del self._left[direction]
                        self.cut()
                        break
                writer.write(data)
                await writer.drain()
        writer.transport.abort()


@asynccontextmanager
async def cabled(address: str) -> AsyncIterator[tuple[Client, Cable]]:
    """A client of the server at an address, and the cable between them."""
    cable = Cable(address)
    server = await asyncio.start_server(cable.connect, "127.0.0.1", 0)
    async with server:
        host, port = server.sockets[0].getsockname()
        async with connected(f"{host}:{port}") as client:
            yield client, cable
        server.close()


async def cut_off(error: grpc.aio.AioRpcError) -> None:
    """The connection was cut, which is no answer of the service."""
    assert error.code() is grpc.StatusCode.UNAVAILABLE, error
    assert not any(key == "grpc-status-details-bin" for key, _ in error.trailing_metadata() or ())
