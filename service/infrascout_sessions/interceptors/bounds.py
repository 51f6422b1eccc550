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

# Health and reflection are answered to whoever asks.
_MAXIMUM_OPEN_STREAMS: Final = 1000
_MAXIMUM_PEERS: Final = 10_000
_MAXIMUM_BAD: Final = 10_000
# One that did not hold may hold by now: its issuer was away, or it had not been issued yet.
_BAD_SECONDS: Final = 60.0
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
    """Counts the calls under way, in total and of each caller, and the streams of nobody."""

    def __init__(self, settings: Settings) -> None:
        self._maximum_calls = settings.maximum_calls
        self._maximum_of_caller = settings.maximum_calls_of_caller
        self._maximum_streams_of_caller = settings.maximum_streams_of_caller
        self._calls = 0
        self._calls_of: dict[Actor, int] = {}
        self._streams_of: dict[Actor, int] = {}
        self._maximum_open_streams = min(_MAXIMUM_OPEN_STREAMS, settings.maximum_calls)
        self._open_streams = 0

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

    def enter_open(self) -> None:
        """Count a stream of a service that asks for no role. Raises as `enter` does.

        These take no room from callers who are known.
        """
        if self._open_streams >= self._maximum_open_streams:
            raise QuotaExceeded("calls")
        self._open_streams += 1

    def leave_open(self) -> None:
        """Count such a stream that has ended."""
        self._open_streams -= 1


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

    def take(self, key: str, now: float, *, reserve: float = 0.0) -> bool:
        """Take one, if there is one left beyond a reserve."""
        if self.left(key, now) < 1 + reserve:
            return False
        self._change(key, -1, now)
        return True

    def give_back(self, key: str, now: float) -> None:
        """Give back one that was taken."""
        self._change(key, 1, now)

    def _change(self, key: str, by: float, now: float) -> None:
        self._left[key] = (self.left(key, now) + by, now)
        self._left.move_to_end(key)
        if len(self._left) > _MAXIMUM_PEERS:
            self._left.popitem(last=False)


class FailedProofs:
    """Bounds how often the proofs from one connection, and from one address, may fail.

    Many callers may share a connection, behind a proxy or on a Unix socket. So a connection's bound
    holds up only what is known to be bad; a proof that is new here needs room within the bound of
    its address alone.
    """

    def __init__(self, failures_per_second: float, stopping: asyncio.Event) -> None:
        self._of_connection = _Allowances(_FAILURES_OF_CONNECTION, _BURST_OF_CONNECTION)
        burst = failures_per_second * _BURST_SECONDS
        self._of_address = _Allowances(failures_per_second, burst)
        # A connection on which much fails leaves so many to the others of its address.
        self._reserve = burst / 2
        # Digests of proofs that did not hold, by when that was found; those shown last at the end.
        self._bad: OrderedDict[bytes, float] = OrderedDict()
        self._held = 0
        self._held_of: dict[tuple[str, bool], int] = {}
        self._stopping = stopping

    async def look(
        self, peer: str, digest: bytes, find: Callable[[], Awaitable[Principal]]
    ) -> Principal:
        """Whom a look at a proof finds; while it goes on, it counts as one that has failed.

        Raises what `find` does, and `QuotaExceeded`, late, where too many have failed.
        """
        new = not self._is_bad(digest)
        own = await self._count(peer, new=new)
        try:
            principal = await find()
        except InvalidProofError:
            self._note_bad(digest)
            raise
        except BaseException:
            # Whether it holds is not known: the database is away, or the caller is.
            self._uncount(peer, own=own)
            raise
        self._uncount(peer, own=own)
        self._bad.pop(digest, None)
        return principal

    async def count(self, peer: str) -> None:
        """Count a proof that is known to be bad. Raises `QuotaExceeded` as `look` does."""
        await self._count(peer, new=False)

    async def _count(self, peer: str, *, new: bool) -> bool:
        """Count a proof, and say whether it was within its connection's own bound."""
        now = monotonic()
        own = self._of_connection.take(peer, now)
        if (own or new) and self._of_address.take(
            _address(peer), now, reserve=0.0 if own else self._reserve
        ):
            return own
        await self._hold(peer, new=new)
        raise QuotaExceeded("failed_proofs")

    def _uncount(self, peer: str, *, own: bool) -> None:
        now = monotonic()
        self._of_address.give_back(_address(peer), now)
        if own:
            self._of_connection.give_back(peer, now)

    def _is_bad(self, digest: bytes) -> bool:
        noted = self._bad.get(digest)
        if noted is None:
            return False
        self._bad.move_to_end(digest)
        return monotonic() - noted < _BAD_SECONDS

    def _note_bad(self, digest: bytes) -> None:
        self._bad[digest] = monotonic()
        if len(self._bad) > _MAXIMUM_BAD:
            self._bad.popitem(last=False)

    async def _hold(self, peer: str, *, new: bool) -> None:
        """Wait until those before it on the connection have been answered, or the server stops.

        New proofs and bad ones are two queues: neither waits for the other.
        """
        if self._held >= _MAXIMUM_HELD:
            return
        self._held += 1
        queue = (peer, new)
        turn = self._held_of[queue] = self._held_of.get(queue, 0) + 1
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(min(turn * _HOLD_SECONDS, _LONGEST_HOLD_SECONDS)):
                    await self._stopping.wait()
        finally:
            self._held -= 1
            _one_less(self._held_of, queue)


def _address(peer: str) -> str:
    return peer.rpartition(":")[0]
