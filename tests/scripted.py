"""A server that says what a test tells it to, and the real one cannot be brought to say."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

Handler = Callable[[bytes, Any], Any]

_STREAMS: Final = ("ListExecutions", "ListInsights", "ReadOutput")


@dataclass
class Script(grpc.GenericRpcHandler):
    """Answers each call, of whatever method, by the next of its steps, the last one for good."""

    steps: list[Handler]
    address: str = ""
    calls: list[tuple[str, bytes, dict[str, Any]]] = field(default_factory=list)
    """Method, request and metadata of each."""

    def service(self, details: Any) -> Any:
        method = details.method.rpartition("/")[2]
        metadata = dict(details.invocation_metadata)

        def step(request: bytes) -> Handler:
            self.calls.append((method, request, metadata))
            return self.steps.pop(0) if len(self.steps) > 1 else self.steps[0]

        async def unary(request: bytes, context: Any) -> Any:
            return await step(request)(request, context)

        async def streamed(request: bytes, context: Any) -> Any:
            async for message in step(request)(request, context):
                yield message

        async def both(requests: Any, context: Any) -> Any:
            async for request in requests:
                yield await step(request)(request, context)

        if method == "RecordExecutions":
            return grpc.stream_stream_rpc_method_handler(both)
        if method in _STREAMS:
            return grpc.unary_stream_rpc_method_handler(streamed)
        return grpc.unary_unary_rpc_method_handler(unary)


@asynccontextmanager
async def scripted(*steps: Handler) -> AsyncIterator[Script]:
    """A server that follows these steps."""
    script = Script(list(steps))
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((script,))
    script.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        yield script
    finally:
        await server.stop(None)


def answering(message: Message) -> Handler:
    """A step that answers OK."""

    async def handler(_request: bytes, _context: Any) -> bytes:
        return message.SerializeToString()

    return handler


def refusing(
    code: grpc.StatusCode,
    reason: str = "",
    delay_seconds: float | None = None,
    message: str = "no",
) -> Handler:
    """A step that refuses; without a reason, as gRPC itself does."""

    async def handler(_request: bytes, context: Any) -> None:
        await _abort(context, code, reason, delay_seconds, message)

    return handler


def streaming(*messages: bytes, then: grpc.StatusCode | None = None) -> Handler:
    """A step that streams messages and ends OK, or else as told."""

    async def handler(_request: bytes, context: Any) -> AsyncIterator[bytes]:
        for message in messages:
            yield message
        if then is not None:
            await _abort(context, then, "SHUTTING_DOWN", None, "no")

    return handler


async def _abort(
    context: Any, code: grpc.StatusCode, reason: str, delay_seconds: float | None, message: str
) -> None:
    if not reason:
        await context.abort(code, message)
    status = status_pb2.Status(code=code.value[0], message=message)
    details: list[Message] = [
        error_details_pb2.ErrorInfo(domain="sessions.infrascout", reason=reason)
    ]
    if delay_seconds is not None:
        delay = Duration()
        delay.FromMicroseconds(round(delay_seconds * 1_000_000))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    for detail in details:
        packed = AnyMessage()
        packed.Pack(detail)
        status.details.append(packed)
    await context.abort(code, message, (("grpc-status-details-bin", status.SerializeToString()),))
