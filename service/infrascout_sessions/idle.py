"""Interrupts sessions in which nothing is written any more."""

import asyncio
from functools import partial
from typing import Final

import structlog

from infrascout_sessions.errors import Refusal
from infrascout_sessions.models import SERVER
from infrascout_sessions.storage.repository import transitions
from infrascout_sessions.storage.statement import Database

_log = structlog.get_logger()

# The contract allows 5 seconds.
_INTERVAL_SECONDS: Final = 2.0


async def _interrupt(database: Database, timeout_seconds: float) -> None:
    timeout = round(timeout_seconds * 1_000_000)
    reason = f"idle for {timeout_seconds:g} seconds"
    for session_id in await database.read(partial(transitions.idle, timeout)):
        session = await database.write(
            partial(transitions.interrupt_idle, session_id, timeout, reason, SERVER)
        )
        if session is not None:
            _log.info("session interrupted", session_id=session_id, reason=reason)


async def interrupt_idle_sessions(database: Database, timeout_seconds: float) -> None:
    """Interrupt every session that is idle for so long, until cancelled.

    A write in a session and its interruption are one statement each on the same row, so a session
    that is written to at the last moment is spared, whichever replica looks.
    """
    while True:
        await asyncio.sleep(min(_INTERVAL_SECONDS, timeout_seconds))
        try:
            await _interrupt(database, timeout_seconds)
        except Refusal as error:
            _log.warning("idle sessions not interrupted", cause=str(error))
        except Exception:
            _log.exception("idle sessions not interrupted")
