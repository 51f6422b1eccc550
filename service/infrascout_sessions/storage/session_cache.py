"""Sessions as they stand, kept in memory where this process is the only one that writes."""

from collections import OrderedDict
from functools import partial
from typing import Final

from infrascout_sessions.models import Session
from infrascout_sessions.storage.repository import sessions
from infrascout_sessions.storage.statement import Database

_MAXIMUM_SESSIONS: Final = 10_000
_MAXIMUM_TEXT: Final = 4096


class SessionCache:
    """Reads sessions through a cache that each commit empties of the sessions it changed.

    A write is answered after its commit has passed through here, so whoever has been told of it
    never sees the session as it was before.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._known: OrderedDict[str, Session] = OrderedDict()
        # The reads under way, and whether what they find may still be kept.
        self._loading: dict[str, object] = {}
        database.on_commit(self._forget)

    async def get(self, session_id: str) -> Session:
        """Raises `SessionNotFound`."""
        known = self._known.get(session_id)
        if known is not None:
            self._known.move_to_end(session_id)
            return known
        load = self._loading[session_id] = object()
        try:
            session = await self._database.read(partial(sessions.get, session_id))
        finally:
            fresh = self._loading.get(session_id) is load
            if fresh:
                del self._loading[session_id]
        if fresh and len(session.summary) + len(session.description) <= _MAXIMUM_TEXT:
            self._known[session_id] = session
            if len(self._known) > _MAXIMUM_SESSIONS:
                self._known.popitem(last=False)
        return session

    def _forget(self, changed: set[str]) -> None:
        for session_id in changed:
            self._known.pop(session_id, None)
            self._loading.pop(session_id, None)
