"""Reads one by one for many, together."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final, Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")

_MAXIMUM_KEYS: Final = 1000


class GatheredReads(Generic[K, V]):
    """Gathers what is asked for during a read, and asks for all of it in the next one.

    An answer is never older than its question.
    """

    def __init__(self, read: Callable[[Sequence[K]], Awaitable[Mapping[K, V]]]) -> None:
        self._read_several = read
        self._asked: dict[K, asyncio.Future[V | None]] = {}
        self._reading: asyncio.Task[None] | None = None

    def ask(self, key: K) -> "asyncio.Future[V | None]":
        """What there is under a key, None for nothing; shared with others, so shield it."""
        answer = self._asked.get(key)
        if answer is None:
            answer = self._asked[key] = asyncio.get_running_loop().create_future()
            # Nobody may wait for it any more.
            answer.add_done_callback(lambda done: done.cancelled() or done.exception())
            if self._reading is None:
                self._reading = asyncio.create_task(self._read())
        return answer

    def _taken(self) -> dict[K, "asyncio.Future[V | None]"]:
        if len(self._asked) <= _MAXIMUM_KEYS:
            taken, self._asked = self._asked, {}
            return taken
        return {key: self._asked.pop(key) for key in list(self._asked)[:_MAXIMUM_KEYS]}

    async def _read(self) -> None:
        while self._asked:
            asked = self._taken()
            try:
                found = await self._read_several(list(asked))
            except Exception as error:
                waiting = list(asked.values())
                if isinstance(error.__cause__, TimeoutError):
                    # The database does not answer: who asked meanwhile would wait as long again.
                    waiting += self._asked.values()
                    self._asked = {}
                for answer in waiting:
                    answer.set_exception(error)
                continue
            for key, answer in asked.items():
                answer.set_result(found.get(key))
        self._reading = None
