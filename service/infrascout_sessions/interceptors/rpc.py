"""The interceptor: lets callers in, parses, answers errors from the table, counts, and logs.

It gets requests as bytes, so that nothing of one is looked at before its caller is known.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from time import monotonic, perf_counter
from types import TracebackType
from typing import Any, Final

import grpc
import structlog
from google.protobuf import descriptor_pool
from google.protobuf.message import DecodeError, Message

from infrascout_sessions.errors import InvalidRequest, ShuttingDown, Violation
from infrascout_sessions.interceptors.access import role_of
from infrascout_sessions.interceptors.guard import Guard, Passage
from infrascout_sessions.interceptors.metrics import of_method
from infrascout_sessions.messages.refusals import INTERNAL, answer_to, status_of
from infrascout_sessions.messages.rules import is_id

_log = structlog.get_logger()

# Named in the log line where the request has them, in the form that ids have: it is not checked by
# then, and anything may be in it.
_IDS = ("session_id", "agent_id", "sequence")
# Sessions named in one line of a stream of records.
_MAXIMUM_SESSIONS: Final = 100

# What a flood of bad callers brings about: logged so many times a second, and then counted.
_SAMPLED: Final = frozenset({"PROOF_MISSING_OR_INVALID", "QUOTA_EXCEEDED"})
_SAMPLES_PER_SECOND: Final = 10
_ALWAYS: Final[Mapping[str, int]] = {}


class _Sampler:
    """Says which lines to write, and how many went unwritten before."""

    def __init__(self) -> None:
        self._second = 0
        self._written = 0
        self._unwritten = 0

    def take(self) -> Mapping[str, int] | None:
        """What to add to the line, None to leave it out."""
        second = int(monotonic())
        if second != self._second:
            self._second, self._written = second, 0
        if self._written >= _SAMPLES_PER_SECOND:
            self._unwritten += 1
            return None
        self._written += 1
        unwritten, self._unwritten = self._unwritten, 0
        return {"unwritten_before": unwritten} if unwritten else {}


_sampler = _Sampler()


class _Method:
    """What is known of a method before it is called. Raises `UndeclaredRoleError`."""

    def __init__(self, path: str, handler: Any, guard: Guard, stopping: asyncio.Event) -> None:
        self.path = path
        self.role = role_of(path, guard.roles)
        self.guard = guard
        self.streams = handler.unary_unary is None
        self.parse: Callable[[bytes], Message] = handler.request_deserializer
        # Generated code registers the class method FromString of the request.
        request = handler.request_deserializer.__self__.DESCRIPTOR
        self.request_name = request.full_name
        self.ids = tuple(field for field in _IDS if field in request.fields_by_name)
        # StartSession: the id of its session is known when it is answered.
        self.answers_with_session = (
            self.role is not None
            and "session_id" not in request.fields_by_name
            and "session" in _answer_of(path).fields_by_name
        )
        self.log = _log.debug if self.role is None else _log.info
        # Health is asked until the end.
        self.stopping = asyncio.Event() if self.role is None else stopping
        self.metrics = of_method(path)

    def parsed(self, data: bytes) -> Message:
        """The request. Raises `InvalidRequest` for bytes that are none."""
        try:
            return self.parse(data)
        except DecodeError as error:
            raise InvalidRequest(
                (Violation("", f"the bytes sent are no valid {self.request_name}"),)
            ) from error


def _answer_of(path: str) -> Any:
    name = path[1:].replace("/", ".")
    return descriptor_pool.Default().FindMethodByName(name).output_type


class _Call:
    """One RPC, from its first byte to its log line."""

    __slots__ = (
        "code",
        "context",
        "error",
        "ids",
        "method",
        "passage",
        "reason",
        "sessions",
        "started",
    )

    def __init__(self, method: _Method, context: Any) -> None:
        self.method = method
        self.context = context
        self.started = perf_counter()
        self.code = grpc.StatusCode.OK
        self.reason: str | None = None
        self.error: Exception | None = None
        self.ids: dict[str, Any] = {}
        self.sessions: set[str] = set()
        self.passage = Passage(method.guard, method.role, method.streams, context)

    def request(self, data: bytes) -> Message:
        if self.method.stopping.is_set():
            raise ShuttingDown
        request = self.method.parsed(data)
        for name in self.method.ids:
            value = getattr(request, name)
            if value and (not isinstance(value, str) or is_id(value)):
                self.ids[name] = value
        if self.method.streams:
            # Its last line may be hours away.
            self.passage.note(self.method.path, None, **self.ids)
        return request

    def batch(self, data: bytes) -> Message:
        """One of several requests, each of which may be of several sessions."""
        request: Any = self.method.parsed(data)
        named = {execution.session_id for execution in getattr(request, "executions", ())}
        self.sessions.update(filter(is_id, named))
        if len(self.sessions) > _MAXIMUM_SESSIONS:
            self.passage.note(self.method.path, None, session_ids=sorted(self.sessions))
            self.sessions.clear()
        return request  # type: ignore[no-any-return]

    def answer(self, response: Message) -> bytes:
        if self.method.answers_with_session:
            self.ids["session_id"] = response.session.session_id  # type: ignore[attr-defined]
        return response.SerializeToString()

    async def __aenter__(self) -> "_Call":
        return self

    async def __aexit__(
        self,
        _kind: type[BaseException] | None,
        error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        # From here on nobody cancels what is on its way to the caller.
        self.passage.leave()
        try:
            if error is None:
                return
            if isinstance(error, grpc.aio.AbortError):
                self.code = self.context.code()
            elif isinstance(error, Exception):
                await self._refuse(error)
            elif isinstance(error, asyncio.CancelledError) and self.passage.ended is not None:
                await self._refuse(self.passage.ended)
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
        sample = _sampler.take() if self.reason in _SAMPLED else _ALWAYS
        if sample is None:
            return
        self._note(sample)
        # Once the answer is on its way: its caller need not wait for the line.
        asyncio.get_running_loop().call_soon(self._write_line, seconds, sample)

    def _write_line(self, seconds: float, sample: Mapping[str, int]) -> None:
        line = {
            "method": self.method.path,
            "code": self.code.name,
            "duration_ms": round(seconds * 1000, 3),
            **self.ids,
            **sample,
            **self.passage.caller(),
        }
        if self.error is None:
            self.method.log("rpc", **line)
        elif self.reason == INTERNAL.reason:
            _log.error("rpc", reason=self.reason, exc_info=self.error, **line)
        elif self.error.__cause__ is not None:
            _log.warning("rpc", reason=self.reason, cause=str(self.error.__cause__), **line)
        else:
            self.method.log("rpc", reason=self.reason, **line)

    def _note(self, sample: Mapping[str, int]) -> None:
        """Tell the access log."""
        fields: dict[str, Any] = {**self.ids, **sample}
        if self.reason is not None:
            fields["reason"] = self.reason
        if self.sessions:
            fields["session_ids"] = sorted(self.sessions)
        self.passage.note(self.method.path, self.code.name, **fields)


class Interceptor(grpc.aio.ServerInterceptor):
    """Wraps the handler of each method once; its bytes reach the wrapper unparsed.

    Once `stopping` is set it refuses every call of ours.
    """

    def __init__(self, guard: Guard, stopping: asyncio.Event) -> None:
        self._guard = guard
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
            method = _Method(path, handler, self._guard, self._stopping)
            wrapped = self._wrapped[path] = _wrap(method, handler)
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
            await call.passage.enter()
            return call.answer(await behaviour(call.request(data), context))

    return answer


def _stream(method: _Method, behaviour: Callable[..., AsyncIterator[Message]]) -> Any:
    async def answer(data: bytes, context: Any) -> AsyncIterator[bytes]:
        async with _Call(method, context) as call:
            await call.passage.enter()
            call.passage.watch()
            async for response in behaviour(call.request(data), context):
                await call.passage.go_on()
                # What many followers get is serialised once, by the servicer.
                yield response if isinstance(response, bytes) else response.SerializeToString()
                call.passage.wait()

    return answer


def _streams(method: _Method, behaviour: Callable[..., AsyncIterator[Message]]) -> Any:
    async def answer(data: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        call = _Call(method, context)
        parse = method.parsed if method.role is None else call.batch

        async def requests() -> AsyncIterator[Message]:
            async for message in data:
                await call.passage.go_on()
                yield parse(message)

        async with call:
            await call.passage.enter()
            async for response in behaviour(requests(), context):
                yield response.SerializeToString()

    return answer
