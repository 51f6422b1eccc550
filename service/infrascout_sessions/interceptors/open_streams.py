"""Streams under way, whose callers are looked at again also while nothing passes.

A follower may wait for hours. The streams of one proof are looked at together, so that a round
costs next to nothing, however many followers there are.
"""

import asyncio
from collections.abc import Hashable
from typing import Final, Protocol

import structlog

from infrascout_sessions.errors import Refusal

_log = structlog.get_logger()

# With what is kept of tokens in memory, a revoked one is found out within four seconds.
_INTERVAL_SECONDS: Final = 1.0
# Other calls come in between.
_AT_ONCE: Final = 100


class Stream(Protocol):
    """A stream under way, and its caller. The methods that look raise what `end` is to be told."""

    def recall(self) -> bool:
        """Whether the caller may still have it; false if that takes a look into the database."""
        ...

    async def look(self) -> None:
        """See whether the caller may still have it, wherever that takes a look."""
        ...

    def end(self, error: Refusal) -> None:
        """End it with this error."""
        ...


class OpenStreams:
    """The streams under way, by what their caller has shown for them."""

    def __init__(self) -> None:
        self._by_proof: dict[Hashable, set[Stream]] = {}

    def add(self, proof: Hashable, stream: Stream) -> None:
        """Look at the stream's caller from now on; callers with equal proofs are the same."""
        self._by_proof.setdefault(proof, set()).add(stream)

    def discard(self, proof: Hashable, stream: Stream) -> None:
        """The stream has ended."""
        streams = self._by_proof[proof]
        streams.discard(stream)
        if not streams:
            del self._by_proof[proof]

    async def keep_looking(self) -> None:
        """End the streams of callers who may not have them any more, until cancelled."""
        while True:
            await asyncio.sleep(_INTERVAL_SECONDS)
            try:
                await self._look_at_all()
            except Exception:
                _log.exception("callers of open streams not looked at")

    async def _look_at_all(self) -> None:
        forgotten: list[tuple[Stream, set[Stream]]] = []
        for number, streams in enumerate(list(self._by_proof.values()), 1):
            if number % _AT_ONCE == 0:
                await asyncio.sleep(0)
            # Any of them stands for the others; there is none if they have ended meanwhile.
            stream = next(iter(streams), None)
            try:
                if stream is not None and not stream.recall():
                    forgotten.append((stream, streams))
            except Refusal as error:
                await _end(streams, error)
        await asyncio.gather(*(_look(*each) for each in forgotten))


async def _look(stream: Stream, streams: set[Stream]) -> None:
    try:
        await stream.look()
    except Refusal as error:
        await _end(streams, error)


async def _end(streams: set[Stream], error: Refusal) -> None:
    for number, stream in enumerate(list(streams), 1):
        if number % _AT_ONCE == 0:
            await asyncio.sleep(0)
        stream.end(error)
