"""How much a caller may have under way, and how often one may fail to prove who it is."""

import asyncio
from collections import OrderedDict
from time import monotonic
from typing import Final

from infrascout_sessions.config import Settings
from infrascout_sessions.errors import QuotaExceeded
from infrascout_sessions.models import Actor

_MAXIMUM_PEERS: Final = 10_000
# One connection may fail about once a second for good, and some times at first.
_FAILURES_OF_CONNECTION: Final = 1.0
_BURST_OF_CONNECTION: Final = 10.0
_BURST_SECONDS: Final = 4.0
# Who fails too often is answered late: only so do callers that wait for their answers stop taking
# the server's time from the others.
_HELD_SECONDS: Final = 1.0
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


def _one_less(counts: dict[Actor, int], actor: Actor) -> None:
    if counts[actor] > 1:
        counts[actor] -= 1
    else:
        del counts[actor]


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

    def __init__(self, failures_per_second: float) -> None:
        self._of_connection = _Allowances(_FAILURES_OF_CONNECTION, _BURST_OF_CONNECTION)
        self._of_address = _Allowances(failures_per_second, failures_per_second * _BURST_SECONDS)
        self._held = 0

    async def begin(self, peer: str) -> None:
        """Before a proof is looked at: count it as failed until `succeeded` is told.

        Raises `QuotaExceeded`, late, for a peer that has failed too often.
        """
        now = monotonic()
        address = peer.rpartition(":")[0]
        if self._of_connection.left(peer, now) < 1 or self._of_address.left(address, now) < 1:
            await self._hold()
            raise QuotaExceeded("failed_proofs")
        self._of_connection.change(peer, -1, now)
        self._of_address.change(address, -1, now)

    def succeeded(self, peer: str) -> None:
        """The proof holds."""
        now = monotonic()
        self._of_connection.change(peer, 1, now)
        self._of_address.change(peer.rpartition(":")[0], 1, now)

    async def _hold(self) -> None:
        if self._held >= _MAXIMUM_HELD:
            return
        self._held += 1
        try:
            await asyncio.sleep(_HELD_SECONDS)
        finally:
            self._held -= 1
