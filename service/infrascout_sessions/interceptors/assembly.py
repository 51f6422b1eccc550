"""The guard of a server, put together from its settings."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager, suppress

from google.protobuf.descriptor import ServiceDescriptor

from infrascout_sessions.config import Settings
from infrascout_sessions.exposure import roles_by_name, takes_local
from infrascout_sessions.interceptors.access import declared_roles
from infrascout_sessions.interceptors.access_log import access_log
from infrascout_sessions.interceptors.bounds import Bounds, FailedProofs
from infrascout_sessions.interceptors.certificates import Certificates
from infrascout_sessions.interceptors.guard import Guard
from infrascout_sessions.interceptors.known_tokens import KnownTokens
from infrascout_sessions.interceptors.open_streams import OpenStreams
from infrascout_sessions.interceptors.proofs import Bearers, Proofs
from infrascout_sessions.models import Clock
from infrascout_sessions.storage.statement import Database


@asynccontextmanager
async def guarding(
    settings: Settings,
    services: Iterable[ServiceDescriptor],
    database: Database,
    clock: Clock,
    stopping: asyncio.Event,
) -> AsyncIterator[Guard]:
    """The guard of the services, until the block ends; nobody is held up once `stopping` is set.

    Raises `UndeclaredRoleError`, `ExposureError`, `AccessLogError`.
    """
    roles = declared_roles(services)
    certificates = (
        Certificates(roles_by_name(settings.mtls_roles, "--mtls-role", humans=False))
        if settings.tls_client_ca
        else None
    )
    tokens = KnownTokens(database, clock)
    async with AsyncExitStack() as stack:
        log = stack.enter_context(access_log(settings.access_log))
        jwts: Bearers | None = None
        if settings.oidc_issuer:
            # Its library is an extra.
            from infrascout_sessions.oidc import verifying

            jwts = await stack.enter_async_context(verifying(settings))
        open_streams = OpenStreams()
        looking = asyncio.create_task(open_streams.keep_looking())
        noting = asyncio.create_task(tokens.keep_noting())
        try:
            yield Guard(
                roles,
                Proofs(
                    tokens,
                    jwts,
                    certificates,
                    FailedProofs(settings.maximum_failed_proofs, stopping),
                    takes_local(settings),
                ),
                Bounds(settings),
                log,
                open_streams,
            )
        finally:
            for task in (looking, noting):
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
