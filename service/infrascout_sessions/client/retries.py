"""Calls that are repeated while the server is unavailable, and streams that go on where they broke.

Only UNAVAILABLE is repeated: the server says so of what a repeat can mend, and gRPC of a
connection that could not be made or broke. Every write has a `request_id`, so a repeat is safe.
"""

import asyncio
import random
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, Final, TypeVar, cast

import grpc
from google.protobuf.message import Message

from infrascout_sessions.client.errors import CallError, call_error

_Request = TypeVar("_Request", bound=Message)
_Response = TypeVar("_Response", bound=Message)
_Answer = TypeVar("_Answer")

Metadata = tuple[tuple[str, str], ...]
Unary = grpc.aio.UnaryUnaryMultiCallable[_Request, _Response]

_FIRST_PAUSE_SECONDS: Final = 0.1
_LONGEST_PAUSE_SECONDS: Final = 2.0

STREAM_SECONDS: Final = 600.0
"""The deadline that gRPC is told for a stream; one that still gives messages then is resumed."""


def _pause_seconds(error: CallError, failures: int) -> float:
    """How long to wait: twice as long each time, scattered, and never less than the server asks."""
    longest = min(_FIRST_PAUSE_SECONDS * 2.0**failures, _LONGEST_PAUSE_SECONDS)
    # Scattered, so that the clients of a server that was down do not come back as one.
    pause = longest * random.uniform(0.5, 1)  # noqa: S311 - no secret
    return max(pause, error.retry_after_seconds or 0)


async def repeated(
    attempt: Callable[[float], Awaitable[_Answer]], *, deadline_seconds: float, request_id: str = ""
) -> _Answer:
    """The answer to a call, asked for until the deadline; `attempt` is told how long it has.

    Raises `CallError`: the refusal, or the last one once another try would come too late.
    """
    now = asyncio.get_running_loop().time
    ends = now() + deadline_seconds
    failures = 0
    while True:
        try:
            # A little is left for the last try, which else would end before it began.
            return await attempt(max(ends - now(), 0.001))
        except grpc.aio.AioRpcError as raised:
            error = call_error(raised, request_id)
            error.__cause__ = raised
        except CallError as raised:
            error = raised
        pause = _pause_seconds(error, failures)
        if error.code is not grpc.StatusCode.UNAVAILABLE or now() + pause >= ends:
            raise error
        failures += 1
        await asyncio.sleep(pause)


async def call(
    method: Unary[_Request, _Response],
    request: _Request,
    *,
    metadata: Metadata,
    deadline_seconds: float,
) -> _Response:
    """The answer to a unary call. Raises `CallError`."""

    async def attempt(timeout: float) -> _Response:
        return await method(request, timeout=timeout, metadata=metadata)

    request_id = getattr(request, "request_id", "")
    return await repeated(attempt, deadline_seconds=deadline_seconds, request_id=request_id)


async def next_message(
    call: grpc.aio.UnaryStreamCall[Any, _Response] | grpc.aio.StreamStreamCall[Any, _Response],
) -> _Response | None:
    """The next message of a stream; none at its end."""
    message = await call.read()
    return None if message is grpc.aio.EOF else cast("_Response", message)


async def stream(
    opened: Callable[[], grpc.aio.UnaryStreamCall[Any, _Response]],
    *,
    deadline_seconds: float,
    may_be_silent: bool = False,
) -> AsyncGenerator[_Response, None]:
    """The messages of a stream, opened anew wherever it breaks: `opened` knows from where.

    The deadline is the longest time without a message; a stream that follows `may_be_silent`, and
    then it counts only while there is no connection. Raises `CallError`.
    """
    now = asyncio.get_running_loop().time
    ends = now() + deadline_seconds
    failures = 0
    while True:
        began = now()
        received = False
        call = opened()
        try:
            while True:
                limit = None if may_be_silent else max(ends - now(), 0.001)
                async with asyncio.timeout(limit):
                    message = await next_message(call)
                if message is None:
                    return
                received = True
                yield message
                # What the reader does with it takes its own time.
                ends = now() + deadline_seconds
        except TimeoutError as raised:
            raise CallError(
                grpc.StatusCode.DEADLINE_EXCEEDED, f"no message for {deadline_seconds:g} s"
            ) from raised
        except grpc.aio.AioRpcError as raised:
            error = call_error(raised)
            lasted = received or (may_be_silent and now() - began >= deadline_seconds)
            if lasted:
                ends, failures = now() + deadline_seconds, 0
            pause = _pause_seconds(error, failures)
            if not _resumable(error, lasted=lasted) or now() + pause >= ends:
                raise error from raised
        finally:
            call.cancel()
        failures += 1
        await asyncio.sleep(pause)


def _resumable(error: CallError, *, lasted: bool) -> bool:
    if error.code is grpc.StatusCode.UNAVAILABLE:
        return True
    return lasted and error.code is grpc.StatusCode.DEADLINE_EXCEEDED
