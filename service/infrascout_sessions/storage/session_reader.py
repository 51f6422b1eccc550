"""Sessions as they stand, read together and, where this process alone writes, kept in memory."""

import asyncio
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Final

from infrascout_sessions.errors import SessionNotFound
from infrascout_sessions.models import Session
from infrascout_sessions.storage.gathered_reads import GatheredReads
from infrascout_sessions.storage.repository import sessions
from infrascout_sessions.storage.statement import Database

_MAXIMUM_SESSIONS: Final = 10_000
_MAXIMUM_TEXT: Final = 4096


class SessionReader:
    """Reads sessions one by one for many: who asks during a read is answered by the next one.

    Where no other process writes, each is kept until a commit changes it. A write is answered after
    its commit has passed through here, so whoever has been told of it never sees the session as it
    was before.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._known: OrderedDict[str, Session] = OrderedDict()
        self._reads = GatheredReads(self._read)
        # The sessions of the read under way that no commit has changed since it began.
        self._unchanged: set[str] = set()
        database.on_commit(self._forget)

    async def get(self, session_id: str) -> Session:
        """Raises `SessionNotFound`, and what ends a read."""
        known = self._known.get(session_id)
        if known is not None:
            self._known.move_to_end(session_id)
            return known
        session = await asyncio.shield(self._reads.ask(session_id))
        if session is None:
            raise SessionNotFound(session_id)
        return session

    async def _read(self, session_ids: Sequence[str]) -> Mapping[str, Session]:
        self._unchanged = set(session_ids)
        rows = await self._database.fetch(
            sessions.select_several,
            session_ids=sessions.several_ids(session_ids, self._database.dialect),
        )
        found = {row[0]: sessions.session_of(row) for row in rows}
        for session in found.values():
            if session.session_id in self._unchanged:
                self._keep(session)
        return found

    def _keep(self, session: Session) -> None:
        if not self._database.sole_writer:
            return
        if len(session.summary) + len(session.description) > _MAXIMUM_TEXT:
            return
        self._known[session.session_id] = session
        if len(self._known) > _MAXIMUM_SESSIONS:
            self._known.popitem(last=False)

    def _forget(self, changed: set[str]) -> None:
        self._unchanged -= changed
        for session_id in changed:
            self._known.pop(session_id, None)
