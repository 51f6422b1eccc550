"""Tells other replicas which sessions a commit has changed, with PostgreSQL's LISTEN and NOTIFY.

NOTIFY in a writing transaction holds a lock of the whole database through its commit; here one task
notifies after commits, with the ids that have come together. A notice is a hint: what goes unheard
while a connection is lost is made up for by `on_gap`, when it is back and every few seconds.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Final

import structlog

_log = structlog.get_logger()

_CHANNEL: Final = "infrascout_sessions"
_SEPARATOR: Final = " "
# A payload has at most 8,000 bytes.
_IDS_AT_ONCE: Final = 150
# While there is no connection. The others find the rest by themselves.
_MAXIMUM_KEPT: Final = 10_000
_COLLECT_SECONDS: Final = 0.02
_RECONNECT_SECONDS: Final = 1.0
_POLL_SECONDS: Final = 5.0
_POLL_WITHOUT_LISTENING_SECONDS: Final = 0.5


def _nobody_hears(_changed: set[str]) -> None:
    pass


class Notices:
    """One connection that sends and hears; `connect` opens it, None where LISTEN cannot work."""

    def __init__(self, connect: Callable[[], Awaitable[Any]] | None) -> None:
        self.listener: Callable[[set[str]], None] = _nobody_hears
        self.on_gap: Callable[[], None] = lambda: None
        self._connect = connect
        self._connection: Any = None
        self._changed: set[str] = set()
        self._wake = asyncio.Event()
        self._closing = False
        self._tasks = [asyncio.create_task(self._poll())]
        if connect is not None:
            self._tasks.append(asyncio.create_task(self._keep_sending(connect)))

    def send(self, changed: set[str]) -> None:
        """Tell the others, soon; if there is no connection, once there is."""
        if self._connect is not None and len(self._changed) < _MAXIMUM_KEPT:
            self._changed |= changed
            self._wake.set()

    async def close(self) -> None:
        """Send what is left and stop."""
        self._closing = True
        self._wake.set()
        if self._connection is not None:
            await asyncio.wait(self._tasks[1:], timeout=_RECONNECT_SECONDS)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _poll(self) -> None:
        seconds = _POLL_SECONDS if self._connect else _POLL_WITHOUT_LISTENING_SECONDS
        while True:
            await asyncio.sleep(seconds)
            self.on_gap()

    async def _keep_sending(self, connect: Callable[[], Awaitable[Any]]) -> None:
        while True:
            try:
                self._connection = await connect()
                self._connection.add_termination_listener(lambda _: self._wake.set())
                try:
                    await self._connection.add_listener(_CHANNEL, self._hear)
                    self.on_gap()
                    self._wake.set()
                    while not self._connection.is_closed():
                        await self._wait()
                        await self._flush()
                        if self._closing:
                            return
                finally:
                    connection, self._connection = self._connection, None
                    connection.terminate()
            except Exception as error:
                _log.warning("not listening for other replicas", cause=str(error))
            await asyncio.sleep(_RECONNECT_SECONDS)

    async def _wait(self) -> None:
        """Until there is something to send, or it is time to see whether the connection lives."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_POLL_SECONDS):
                await self._wake.wait()
        self._wake.clear()
        await asyncio.sleep(_COLLECT_SECONDS)

    async def _flush(self) -> None:
        # What changes again meanwhile is told again.
        changed, self._changed = list(self._changed), set()
        told = 0
        try:
            while told < len(changed):
                ids = changed[told : told + _IDS_AT_ONCE]
                payload = _SEPARATOR.join(ids)
                await self._connection.execute("SELECT pg_notify($1, $2)", _CHANNEL, payload)
                told += len(ids)
            if not changed:
                await self._connection.execute("SELECT 1")
        finally:
            self._changed.update(changed[told:])

    def _hear(self, _connection: Any, process: int, _channel: str, payload: object) -> None:
        if self._connection is not None and process == self._connection.get_server_pid():
            return
        self.listener(set(str(payload).split(_SEPARATOR)))
