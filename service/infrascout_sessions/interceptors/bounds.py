"""How much a caller may have under way, and how often one may fail to prove who it is."""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from contextlib import suppress
from time import monotonic
from typing import Final, TypeVar

from infrascout_sessions.config import Settings
from infrascout_sessions.errors import QuotaExceeded
from infrascout_sessions.identity import InvalidProofError
from infrascout_sessions.models import Actor, Principal

_Key = TypeVar("_Key")

_MAXIMUM_PEERS: Final = 10_000
# One connection may fail about every other second for good, and some times at first.
_FAILURES_OF_CONNECTION: Final = 0.5
_BURST_OF_CONNECTION: Final = 10.0
_BURST_SECONDS: Final = 4.0
# A refusal costs the server as much as an answer. So who fails too often is answered late, and who
# has many calls under way no faster than who has one.
_HOLD_SECONDS: Final = 1.0
_LONGEST_HOLD_SECONDS: Final = 30.0
_MAXIMUM_HELD: Final = 10_000


class Bounds:
    """Counts the calls under way, in total and of each caller."""

    def __init__(self, settings: Settings) -> None:
        self._maximum_calls = settings.maximum_calls
        self._maximum_of_caller = settings.maximum_calls_of_caller
        self._maximum_streams_of_caller = settings.maximum_streams_of_caller
        self._calls = 0
        self._calls_of: dict[Actor, int] = {}
        self._streams_of: dict[Actor, int] = {}

    def enter(self, actor: Actor, streams: bool) -> None:
        """Count a call that begins. Raises `QuotaExceeded`, and then it does not count."""
        calls = self._calls_of.get(actor, 0)
        if self._calls >= self._maximum_calls:
            raise QuotaExceeded("calls")
        if calls >= self._maximum_of_caller:
            raise QuotaExceeded("calls_of_caller")
        if streams:
            open_streams = self._streams_of.get(actor, 0)
            if open_streams >= self._maximum_streams_of_caller:
                raise QuotaExceeded("streams_of_caller")
            self._streams_of[actor] = open_streams + 1
        self._calls += 1
        self._calls_of[actor] = calls + 1

    def leave(self, actor: Actor, streams: bool) -> None:
        """Count a call that has ended."""
        self._calls -= 1
        _one_less(self._calls_of, actor)
        if streams:
            _one_less(self._streams_of, actor)


def _one_less(counts: dict[_Key, int], key: _Key) -> None:
    if counts[key] > 1:
        counts[key] -= 1
    else:
        del counts[key]


class _Allowances:
    """So many a second for each key, and some at once."""

    def __init__(self, per_second: float, burst: float) -> None:
        self._per_second = per_second
        self._burst = burst
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def left(self, key: str, now: float) -> float:
        """How many are left to it."""
        left, since = self._left.get(key, (self._burst, now))
        return min(self._burst, left + (now - since) * self._per_second)

    def change(self, key: str, by: float, now: float) -> None:
        """Take some, or give them back."""
        self._left[key] = (self.left(key, now) + by, now)
        self._left.move_to_end(key)
        if len(self._left) > _MAXIMUM_PEERS:
            self._left.popitem(last=False)


class FailedProofs:
    """Bounds how often the proofs from one connection, and from one address, may fail."""

    def __init__(self, failures_per_second: float, stopping: asyncio.Event) -> None:
        self._of_connection = _Allowances(_FAILURES_OF_CONNECTION, _BURST_OF_CONNECTION)
        self._of_address = _Allowances(failures_per_second, failures_per_second * _BURST_SECONDS)
        self._held = 0
        self._held_of: dict[str, int] = {}
        self._stopping = stopping

    async def look(self, peer: str, find: Callable[[], Awaitable[Principal]]) -> Principal:
        """Whom a look at a proof finds; while it goes on, it counts as one that has failed.

        Raises what `find` does, and `QuotaExceeded`, late, for a peer that has failed too often.
        """
        await self.count(peer)
        try:
            principal = await find()
        except InvalidProofError:
            raise
        except BaseException:
            # Whether it holds is not known: the database is away, or the caller is.
            self._uncount(peer)
            raise
        self._uncount(peer)
        return principal

    async def count(self, peer: str) -> None:
        """Count a proof that does not hold. Raises `QuotaExceeded` as `look` does."""
        now = monotonic()
        address = _address(peer)
        own, others = self._of_connection.left(peer, now), self._of_address.left(address, now)
        if own >= 1:
            self._of_connection.change(peer, -1, now)
        if own >= 1 and others >= 1:
            self._of_address.change(address, -1, now)
            return
        await self._hold(peer)
        raise QuotaExceeded("failed_proofs")

    def _uncount(self, peer: str) -> None:
        now = monotonic()
        self._of_connection.change(peer, 1, now)
        self._of_address.change(_address(peer), 1, now)

    async def _hold(self, peer: str) -> None:
        """Wait until those before it on the connection have been answered, or the server stops."""
        if self._held >= _MAXIMUM_HELD:
            return
        self._held += 1
        turn = self._held_of[peer] = self._held_of.get(peer, 0) + 1
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(min(turn * _HOLD_SECONDS, _LONGEST_HOLD_SECONDS)):
                    await self._stopping.wait()
        finally:
            self._held -= 1
            _one_less(self._held_of, peer)


def _address(peer: str) -> str:
    return peer.rpartition(":")[0]
