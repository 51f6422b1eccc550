"""Health, as the gRPC health checking protocol has it: the database is asked.

Each `Check` asks anew, and all who watch together: anybody may, and as many as like.
"""

import asyncio
from collections.abc import AsyncIterator, Collection
from time import monotonic
from typing import Any, Final

import grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthServicer as GeneratedHealthServicer

from infrascout_sessions.storage.repository.health import ask
from infrascout_sessions.storage.statement import Database

_PATIENCE_SECONDS: Final = 2.0
_WATCH_INTERVAL_SECONDS: Final = 1.0
_SHARED_SECONDS: Final = 0.1


class HealthServicer(GeneratedHealthServicer):
    """Serving means: not stopping, and the database answers."""

    def __init__(
        self, database: Database, services: Collection[str], stopping: asyncio.Event
    ) -> None:
        self._database = database
        self._services = {"", *services}
        self._stopping = stopping
        self._asked = 0.0
        self._asking: asyncio.Task[Any] | None = None

    async def _status(self) -> Any:
        if self._stopping.is_set():
            return HealthCheckResponse.NOT_SERVING
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                await self._database.read(ask)
        except Exception:
            return HealthCheckResponse.NOT_SERVING
        return HealthCheckResponse.SERVING

    async def _shared_status(self) -> Any:
        """The status of a moment ago, where another one who watches has asked for it."""
        if self._stopping.is_set():
            return HealthCheckResponse.NOT_SERVING
        now = monotonic()
        asking = self._asking
        if asking is None or (asking.done() and now - self._asked > _SHARED_SECONDS):
            self._asked = now
            asking = self._asking = asyncio.create_task(self._status())
        # One that goes away leaves the others their answer.
        return await asyncio.shield(asking)

    async def Check(self, request: HealthCheckRequest, context: Any) -> HealthCheckResponse:
        """The status now; NOT_FOUND for a service that is not here."""
        if request.service not in self._services:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such service")
        return HealthCheckResponse(status=await self._status())

    async def Watch(
        self, request: HealthCheckRequest, context: Any
    ) -> AsyncIterator[HealthCheckResponse]:
        """The status now and each time it changes, until the server stops."""
        last = None
        while True:
            # Looked at before the status: a stop during the yield must still be told.
            stopping = self._stopping.is_set()
            if request.service in self._services:
                status = await self._shared_status()
            else:
                status = HealthCheckResponse.SERVICE_UNKNOWN
            if status != last:
                yield HealthCheckResponse(status=status)
                last = status
            if stopping:
                return
            try:
                async with asyncio.timeout(_WATCH_INTERVAL_SECONDS):
                    await self._stopping.wait()
            except TimeoutError:
                continue
