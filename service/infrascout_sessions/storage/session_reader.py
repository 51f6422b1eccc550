"""Sessions as they stand, read together and, where this process alone writes, kept in memory."""

import asyncio
from collections import OrderedDict
from functools import partial
from typing import Final

from infrascout_sessions.errors import SessionNotFound
from infrascout_sessions.models import Session
from infrascout_sessions.storage.repository import sessions
from infrascout_sessions.storage.statement import Database

_MAXIMUM_SESSIONS: Final = 10_000
_MAXIMUM_TEXT: Final = 4096

_Outcome = Session | Exception | None


class SessionReader:
    """Reads sessions one by one for many: who asks during a read is answered by the next one.

    Where no other process writes, each is kept until a commit changes it. A write is answered after
    its commit has passed through here, so whoever has been told of it never sees the session as it
    was before.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._known: OrderedDict[str, Session] = OrderedDict()
        self._asked: dict[str, asyncio.Future[_Outcome]] = {}
        # The sessions of the read under way that no commit has changed since it began.
        self._unchanged: set[str] = set()
        self._reading: asyncio.Task[None] | None = None
        database.on_commit(self._forget)

    async def get(self, session_id: str) -> Session:
        """Raises `SessionNotFound`, and what ends a read."""
        known = self._known.get(session_id)
        if known is not None:
            self._known.move_to_end(session_id)
            return known
        answer = self._asked.get(session_id)
        if answer is None:
            answer = self._asked[session_id] = asyncio.get_running_loop().create_future()
            if self._reading is None:
                self._reading = asyncio.create_task(self._read())
        outcome = await asyncio.shield(answer)
        if outcome is None:
            raise SessionNotFound(session_id)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def _read(self) -> None:
        while self._asked:
            asked, self._asked = self._asked, {}
            self._unchanged = set(asked)
            try:
                found = await self._database.read(partial(sessions.get_several, list(asked)))
            except Exception as error:
                for answer in asked.values():
                    answer.set_result(error)
                continue
            for session_id, answer in asked.items():
                session = found.get(session_id)
                if session is not None and session_id in self._unchanged:
                    self._keep(session)
                answer.set_result(session)
        self._reading = None

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
