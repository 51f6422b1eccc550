"""Followers of sessions: what is recorded is read and serialised once for all who wait for it.

A tail reads what is new in one session after a commit and keeps the last messages. Whoever follows
takes them from there; who is too slow for that reads from the database, at its own pace, until it
has caught up. Nothing is polled.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from functools import partial
from typing import Final, NamedTuple

from infrascout_sessions.errors import Overloaded, ShuttingDown
from infrascout_sessions.lifecycle import Status
from infrascout_sessions.messages.pages import PAGE_BYTES
from infrascout_sessions.messages.resources import executions_response
from infrascout_sessions.models import Execution
from infrascout_sessions.storage.repository import executions, sessions
from infrascout_sessions.storage.statement import Connection, Database

# With what gRPC buffers for a stream (about 7 MB) a slow follower costs at most 8 MB.
_KEPT_BYTES: Final = 1024 * 1024
_PAGE: Final = 1000
_FINISHED_AT_ONCE: Final = 20
_SECONDS_PER_FOLLOWER: Final = 0.0001
_LONGEST_PAUSE: Final = 0.08


def unfinished_of(found: list[Execution]) -> frozenset[int]:
    """The sequences of those whose end is not recorded."""
    return frozenset(
        execution.sequence for execution in found if execution.finish_record_time is None
    )


def _finished(
    session_id: str, awaited: set[int], maximum_output_bytes: int, connection: Connection
) -> tuple[list[Execution], set[int]]:
    """Some of the awaited executions that have finished by now, and the others."""
    if not awaited:
        return [], awaited
    ended = sorted(awaited - executions.unfinished(session_id, connection))[:_FINISHED_AT_ONCE]
    return [
        executions.get(session_id, sequence, maximum_output_bytes, connection) for sequence in ended
    ], awaited.difference(ended)


class _Message(NamedTuple):
    """A serialised response: new executions, or one that has finished since it was sent."""

    first: int
    last: int
    has_finished: bool
    unfinished: frozenset[int]
    data: bytes

    def ends(self, awaited: set[int]) -> bool:
        """Whether one of the awaited executions has finished in it.

        It may have begun and finished between two looks: then no message of its own tells its end.
        """
        return any(
            self.first <= sequence <= self.last and sequence not in self.unfinished
            for sequence in awaited
        )


class _News(NamedTuple):
    status: Status
    position: int
    new: list[Execution]
    finished: list[Execution]
    awaited: set[int]
    more: bool


class _Tail:
    """The end of one session's stream, for all who want it with the same limit of output."""

    def __init__(
        self, database: Database, session_id: str, position: int, maximum_output_bytes: int
    ) -> None:
        self.session_id = session_id
        self.maximum_output_bytes = maximum_output_bytes
        self.position = position
        self.messages: deque[_Message] = deque()
        self.first = 0
        self.followers = 0
        self.ended = False
        self._database = database
        self._error: Exception | None = None
        self._kept_bytes = 0
        self._waiting = 0
        # The executions whose end is to come; None before the first look.
        self._awaited: set[int] | None = None
        self._changed = asyncio.Event()
        self._published = asyncio.Event()
        self._task = asyncio.create_task(self._run())

    @property
    def end(self) -> int:
        """The index of the next message; that of the oldest kept is `first`."""
        return self.first + len(self.messages)

    @property
    def ready(self) -> bool:
        """Whether everything that changes from now on will be among the messages."""
        return self._awaited is not None

    @property
    def usable(self) -> bool:
        """Whether it still brings news."""
        return not self.ended and self._error is None

    def wake(self) -> None:
        """Look for news."""
        self._changed.set()

    def fail(self, error: Exception) -> None:
        """End the stream of everybody who follows."""
        self._error = error
        self._publish()

    def close(self) -> None:
        """Stop looking."""
        self._task.cancel()

    async def published(self) -> None:
        """Wait, with all messages taken, for the next ones. Raises what has ended the stream."""
        if self._error is not None:
            raise self._error
        self._waiting += 1
        if self._waiting == self.followers:
            self.first = self.end
            self.messages.clear()
            self._kept_bytes = 0
        try:
            await self._published.wait()
        finally:
            self._waiting -= 1
        if self._error is not None:
            raise self._error

    def _publish(self) -> None:
        self._published.set()
        self._published = asyncio.Event()

    def _keep(self, found: list[Execution], *, has_finished: bool) -> None:
        data = executions_response(found, self.maximum_output_bytes).SerializeToString()
        unfinished = unfinished_of(found)
        self.messages.append(
            _Message(found[0].sequence, found[-1].sequence, has_finished, unfinished, data)
        )
        self._kept_bytes += len(data)
        while self._kept_bytes > _KEPT_BYTES and len(self.messages) > 1:
            self._kept_bytes -= len(self.messages.popleft().data)
            self.first += 1

    def _look(self, connection: Connection) -> _News:
        # In this order: once the session has ended, what is read after that is everything.
        session_id, limit = self.session_id, self.maximum_output_bytes
        session = sessions.get(session_id, connection)
        position, awaited = self.position, self._awaited
        if awaited is None:
            # Whoever asked first may have asked for what comes long after the end.
            position = min(position, session.execution_count)
        new, more = executions.page(
            session_id, position, _PAGE, PAGE_BYTES, limit, False, connection
        )
        if new:
            position = new[-1].sequence
        if awaited is None:
            awaited = executions.unfinished(session_id, connection)
        finished, awaited = _finished(session_id, awaited | unfinished_of(new), limit, connection)
        more = more or len(finished) == _FINISHED_AT_ONCE
        return _News(session.status, position, new, finished, awaited, more)

    async def _run(self) -> None:
        try:
            while True:
                self._changed.clear()
                news = await self._database.read(self._look)
                if news.new:
                    self._keep(news.new, has_finished=False)
                self.position = news.position
                for execution in news.finished:
                    self._keep([execution], has_finished=True)
                self._awaited = news.awaited
                self.ended = not news.more and news.status is not Status.RUNNING
                self._publish()
                if self.ended:
                    return
                if not news.more:
                    await self._changed.wait()
                    # Each look is a message to everybody: what comes until all have got the last
                    # one goes in the next.
                    await asyncio.sleep(min(self.followers * _SECONDS_PER_FOLLOWER, _LONGEST_PAUSE))
        except Exception as error:
            self.fail(error)


class Followers:
    """Everybody who follows a session on this server, `maximum` at most."""

    def __init__(self, database: Database, maximum: int) -> None:
        self._database = database
        self._maximum = maximum
        self._count = 0
        self._stopped = False
        # By session, then by the limit of output.
        self._tails: dict[str, dict[int, _Tail]] = {}
        database.on_commit(self._wake)
        database.on_gap(self._wake_all)

    def _wake(self, changed: set[str]) -> None:
        if self._tails:
            for session_id in changed:
                for tail in self._tails.get(session_id, {}).values():
                    tail.wake()

    def _wake_all(self) -> None:
        for tails in self._tails.values():
            for tail in tails.values():
                tail.wake()

    def stop(self) -> None:
        """End every stream: the server is going."""
        self._stopped = True
        for tails in self._tails.values():
            for tail in tails.values():
                tail.fail(ShuttingDown())

    def admit(self) -> None:
        """Count one more follower. Raises `Overloaded`, `ShuttingDown`."""
        if self._stopped:
            raise ShuttingDown
        if self._count >= self._maximum:
            raise Overloaded
        self._count += 1

    def dismiss(self) -> None:
        """Count one less."""
        self._count -= 1

    def _join(self, session_id: str, position: int, maximum_output_bytes: int) -> _Tail:
        tails = self._tails.setdefault(session_id, {})
        tail = tails.get(maximum_output_bytes)
        if tail is None or not tail.usable:
            tail = _Tail(self._database, session_id, position, maximum_output_bytes)
            tails[maximum_output_bytes] = tail
        tail.followers += 1
        return tail

    def _leave(self, tail: _Tail) -> None:
        tail.followers -= 1
        if tail.followers:
            return
        tail.close()
        tails = self._tails.get(tail.session_id, {})
        if tails.get(tail.maximum_output_bytes) is tail:
            del tails[tail.maximum_output_bytes]
            if not tails:
                del self._tails[tail.session_id]

    async def follow(
        self, session_id: str, after: int, awaited: set[int], maximum_output_bytes: int
    ) -> AsyncIterator[bytes]:
        """Serialised responses with what comes after a sequence, until the session has ended.

        `awaited` are the executions that were unfinished when they were sent; each is sent once
        more when it has finished. Raises `ShuttingDown`, and what ends a read.
        """
        if self._stopped:
            raise ShuttingDown
        tail = self._join(session_id, after, maximum_output_bytes)
        try:
            while not tail.ready:
                await tail.published()
            while True:
                # What happens from here on is among the tail's messages from `cursor` on.
                cursor, position = tail.end, tail.position
                while after < position:
                    found, _ = await self._database.read(
                        partial(
                            executions.page,
                            session_id,
                            after,
                            min(_PAGE, position - after),
                            PAGE_BYTES,
                            maximum_output_bytes,
                            False,
                        )
                    )
                    yield executions_response(found, maximum_output_bytes).SerializeToString()
                    after = found[-1].sequence
                    awaited |= unfinished_of(found)
                more = True
                while more:
                    ended, awaited = await self._database.read(
                        partial(_finished, session_id, awaited, maximum_output_bytes)
                    )
                    for execution in ended:
                        yield executions_response(
                            [execution], maximum_output_bytes
                        ).SerializeToString()
                    more = len(ended) == _FINISHED_AT_ONCE
                while cursor >= tail.first:
                    if cursor == tail.end:
                        if tail.ended:
                            return
                        await tail.published()
                        continue
                    message = tail.messages[cursor - tail.first]
                    if message.has_finished:
                        if message.first in awaited:
                            awaited.discard(message.first)
                            yield message.data
                    elif message.first > after:
                        after = message.last
                        awaited |= message.unfinished
                        yield message.data
                    elif message.last > after or message.ends(awaited):
                        break  # Some of it has been sent: the database has the others.
                    cursor += 1
        finally:
            self._leave(tail)
