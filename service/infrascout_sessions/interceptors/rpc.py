"""The interceptor: parses, answers errors from the table, counts, and logs one line an RPC."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from time import perf_counter
from types import TracebackType
from typing import Any

import grpc
import structlog
from google.protobuf.message import DecodeError, Message

from infrascout_sessions.errors import InvalidRequest, ShuttingDown, Violation
from infrascout_sessions.interceptors.metrics import of_method
from infrascout_sessions.messages.refusals import INTERNAL, answer_to, status_of

_log = structlog.get_logger()

# Named in the log line where the request has them.
_IDS = ("session_id", "agent_id", "sequence")
_OURS = "/infrascout.sessions.v1."


class _Method:
    """What is known of a method before it is called."""

    def __init__(self, path: str, handler: Any, stopping: asyncio.Event) -> None:
        self.path = path
        self.parse: Callable[[bytes], Message] = handler.request_deserializer
        # Generated code registers the class method FromString of the request.
        request = handler.request_deserializer.__self__.DESCRIPTOR
        self.request_name = request.full_name
        self.ids = tuple(field for field in _IDS if field in request.fields_by_name)
        ours = path.startswith(_OURS)
        self.log = _log.info if ours else _log.debug
        # Health is asked until the end.
        self.stopping = stopping if ours else asyncio.Event()
        self.metrics = of_method(path)

    def parsed(self, data: bytes) -> Message:
        """The request. Raises `InvalidRequest` for bytes that are none."""
        try:
            return self.parse(data)
        except DecodeError as error:
            raise InvalidRequest(
                (Violation("", f"the bytes sent are no valid {self.request_name}"),)
            ) from error


class _Call:
    """One RPC, from its first byte to its log line."""

    __slots__ = ("code", "context", "error", "ids", "method", "reason", "started")

    def __init__(self, method: _Method, context: Any) -> None:
        self.method = method
        self.context = context
        self.started = perf_counter()
        self.code = grpc.StatusCode.OK
        self.reason: str | None = None
        self.error: Exception | None = None
        self.ids: dict[str, Any] = {}

    def request(self, data: bytes) -> Message:
        if self.method.stopping.is_set():
            raise ShuttingDown
        request = self.method.parsed(data)
        for name in self.method.ids:
            value = getattr(request, name)
            if value:
                self.ids[name] = value
        return request

    async def __aenter__(self) -> "_Call":
        return self

    async def __aexit__(
        self,
        _kind: type[BaseException] | None,
        error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                return
            if isinstance(error, grpc.aio.AbortError):
                self.code = self.context.code()
            elif isinstance(error, Exception):
                await self._refuse(error)
            else:  # cancelled, by the client or its deadline
                self.code = grpc.StatusCode.CANCELLED
        finally:
            self.end()

    async def _refuse(self, error: Exception) -> None:
        """End the RPC with the status for an error."""
        self.error = error
        self.reason = answer_to(error).reason
        self.code, message, details = status_of(error)
        await self.context.abort(self.code, message, (("grpc-status-details-bin", details),))

    def end(self) -> None:
        seconds = perf_counter() - self.started
        self.method.metrics.count(self.code.name, seconds)
        line = {
            "method": self.method.path,
            "code": self.code.name,
            "duration_ms": round(seconds * 1000, 3),
            **self.ids,
        }
        if self.error is None:
            self.method.log("rpc", **line)
        elif self.reason == INTERNAL.reason:
            _log.error("rpc", reason=self.reason, exc_info=self.error, **line)
        elif self.error.__cause__ is not None:
            _log.warning("rpc", reason=self.reason, cause=str(self.error.__cause__), **line)
        else:
            self.method.log("rpc", reason=self.reason, **line)


class Interceptor(grpc.aio.ServerInterceptor):
    """Wraps the handler of each method once; its bytes reach the wrapper unparsed.

    Once `stopping` is set it refuses every call of ours.
    """

    def __init__(self, stopping: asyncio.Event) -> None:
        self._stopping = stopping
        self._wrapped: dict[str, Any] = {}
        self._taken = 0

    async def quiet(self, seconds: float) -> None:
        """Wait until no call has come for so long, or for ten times as long at most."""
        for _ in range(10):
            taken = self._taken
            await asyncio.sleep(seconds)
            if self._taken == taken:
                return

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """The wrapped handler, or None for a method that does not exist."""
        self._taken += 1
        path = handler_call_details.method
        wrapped = self._wrapped.get(path)
        if wrapped is None:
            handler = await continuation(handler_call_details)
            if handler is None:
                return None
            wrapped = self._wrapped[path] = _wrap(_Method(path, handler, self._stopping), handler)
        return wrapped


def _wrap(method: _Method, handler: Any) -> Any:
    unparsed = handler._replace(request_deserializer=None, response_serializer=None)
    if handler.unary_unary is not None:
        return unparsed._replace(unary_unary=_unary(method, handler.unary_unary))
    if handler.unary_stream is not None:
        return unparsed._replace(unary_stream=_stream(method, handler.unary_stream))
    return unparsed._replace(stream_stream=_streams(method, handler.stream_stream))


def _unary(method: _Method, behaviour: Callable[..., Awaitable[Message]]) -> Any:
    async def answer(data: bytes, context: Any) -> bytes:
        async with _Call(method, context) as call:
            response = await behaviour(call.request(data), context)
            return response.SerializeToString()

    return answer


def _stream(method: _Method, behaviour: Callable[..., AsyncIterator[Message]]) -> Any:
    async def answer(data: bytes, context: Any) -> AsyncIterator[bytes]:
        async with _Call(method, context) as call:
            async for response in behaviour(call.request(data), context):
                # What many followers get is serialised once, by the servicer.
                yield response if isinstance(response, bytes) else response.SerializeToString()

    return answer


def _streams(method: _Method, behaviour: Callable[..., AsyncIterator[Message]]) -> Any:
    async def answer(data: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        async def requests() -> AsyncIterator[Message]:
            async for message in data:
                yield method.parsed(message)

        async with _Call(method, context):
            async for response in behaviour(requests(), context):
                yield response.SerializeToString()

    return answer
