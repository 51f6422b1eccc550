"""Tokens that callers have shown, kept in memory for some seconds.

A look into the database for each call would halve what the service can do. What is kept is never
older than `_MAXIMUM_AGE_SECONDS`, so a revoked token is refused by every replica soon after.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from time import monotonic
from typing import Any, Final

import structlog

from infrascout_sessions.errors import Refusal
from infrascout_sessions.identity import InvalidProofError
from infrascout_sessions.models import Clock, Principal, Proof, Token
from infrascout_sessions.storage.gathered_reads import GatheredReads
from infrascout_sessions.storage.repository import tokens
from infrascout_sessions.storage.statement import Database
from infrascout_sessions.tokens import has_form

_log = structlog.get_logger()

# The contract allows 5 seconds until a revoked token is refused.
_MAXIMUM_AGE_SECONDS: Final = 3.0
# Looked up anew beside the calls, so that none of them waits.
_REFRESH_AGE_SECONDS: Final = 1.5
_MAXIMUM_KNOWN: Final = 10_000
_MAXIMUM_UNKNOWN: Final = 10_000
_MINUTE: Final = 60_000_000
_NOTE_INTERVAL_SECONDS: Final = 60.0


class _Known:
    """A token as the database had it not long ago."""

    __slots__ = ("checked", "last_use_time", "noted_time", "principal", "token")

    def __init__(self, token: Token, checked: float) -> None:
        self.token = token
        self.principal = Principal(token.name, token.kind, token.roles, Proof.TOKEN)
        self.checked = checked
        self.last_use_time = 0
        self.noted_time = token.last_use_time or 0


class KnownTokens:
    """Whose a token is, from memory where that is fresh and from the database where it is not."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._known: OrderedDict[bytes, _Known] = OrderedDict()
        # Digests of no token, by when that was found: not asked for again and again.
        self._unknown: OrderedDict[bytes, float] = OrderedDict()
        self._reads = GatheredReads(self._read)

    def recall(self, digest: bytes) -> Principal | None:
        """The caller whose token has this digest, if that is known and fresh.

        Raises `InvalidProofError` if it is known that nobody's has it now.
        """
        known = self._known.get(digest)
        if known is None:
            return None
        age = monotonic() - known.checked
        if age > _REFRESH_AGE_SECONDS:
            # A failure shows when what is known gets too old.
            self._reads.ask(digest)
            if age > _MAXIMUM_AGE_SECONDS:
                return None
        return self._checked(known)

    def was_known(self, digest: bytes) -> bool:
        """Whether it was somebody's when last looked at, however long ago that is."""
        return digest in self._known

    async def find(self, secret: str, digest: bytes) -> Principal:
        """The caller whose token this is, from the database.

        Raises `InvalidProofError`, `DatabaseUnavailable`.
        """
        found = self._unknown.get(digest)
        if not has_form(secret) or (
            found is not None and monotonic() - found < _MAXIMUM_AGE_SECONDS
        ):
            raise InvalidProofError("no such token")
        # A caller that goes away leaves the others their answer.
        known = await asyncio.shield(self._reads.ask(digest))
        if known is None:
            raise InvalidProofError("no such token")
        return self._checked(known)

    def _checked(self, known: _Known) -> Principal:
        token = known.token
        if token.revoke_time is not None:
            raise InvalidProofError(f"the token of {token.name} is revoked")
        now = self._clock()
        if token.expire_time is not None and token.expire_time <= now:
            raise InvalidProofError(f"the token of {token.name} has expired")
        known.last_use_time = now
        return known.principal

    async def _read(self, digests: Sequence[bytes]) -> Mapping[bytes, _Known]:
        asked = monotonic()
        found = await self._database.read(partial(tokens.find_several, digests))
        fresh = {digest: self._fresh(token, asked) for digest, token in found.items()}
        for digest in digests:
            if digest in fresh:
                _keep(self._known, digest, fresh[digest], _MAXIMUM_KNOWN)
            else:
                self._known.pop(digest, None)
                _keep(self._unknown, digest, asked, _MAXIMUM_UNKNOWN)
        return fresh

    def _fresh(self, token: Token, asked: float) -> _Known:
        fresh = _Known(token, asked)
        before = self._known.get(token.digest)
        if before is not None:
            fresh.last_use_time = before.last_use_time
            fresh.noted_time = max(before.noted_time, fresh.noted_time)
        return fresh

    async def note_uses(self) -> None:
        """Write down, to the minute, when tokens were used last."""
        uses = {
            digest: (known, known.last_use_time - known.last_use_time % _MINUTE)
            for digest, known in self._known.items()
            if known.last_use_time - known.last_use_time % _MINUTE > known.noted_time
        }
        if not uses:
            return
        await self._database.write(
            partial(tokens.note_uses, [(digest, time) for digest, (_, time) in uses.items()])
        )
        for digest in uses:
            known, time = uses[digest]
            known.noted_time = time
            current = self._known.get(digest)
            if current is not None:
                current.noted_time = max(current.noted_time, time)

    async def keep_noting(self) -> None:
        """Note uses once a minute, until cancelled, and then a last time."""
        try:
            while True:
                await asyncio.sleep(_NOTE_INTERVAL_SECONDS)
                await _logged(self.note_uses)
        finally:
            await _logged(self.note_uses)


async def _logged(work: Callable[[], Any]) -> None:
    try:
        await work()
    except Refusal as error:
        _log.warning("uses of tokens not noted", cause=str(error))
    except Exception:
        _log.exception("uses of tokens not noted")


def _keep(kept: "OrderedDict[bytes, Any]", digest: bytes, value: object, maximum: int) -> None:
    """Put a value in; the one that was put in first goes where there are too many."""
    kept[digest] = value
    kept.move_to_end(digest)
    if len(kept) > maximum:
        kept.popitem(last=False)
